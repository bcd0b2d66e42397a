"""A model of single stages predicts whole runs, on simulated studies whose stages are known exactly."""

from itertools import product

import numpy as np
import pytest

from dgg_ray.config.sections import SearchParameter
from dgg_ray.search import stage_model
from dgg_ray.search.stage_model import PARTS, Axis, Fit, Inputs, StageModel, kernel

TASKS = ("a", "b", "c", "d")
VALUES = (0.0, 0.1, 0.3, 0.5, 1.0)
LISTED = Axis.of(SearchParameter(values=VALUES, per_task=True))

AXES = {f"strategy.alpha.{task}": LISTED for task in TASKS}


def inputs(own, before=None, earlier=None, shared=None):
    """Inputs of as many stages as `own` has values; parts that are not given have no coordinates."""
    empty = np.zeros((len(own), 0))
    parts = [np.array(own, float)[:, None]]
    parts += [empty if part is None else np.array(part, float) for part in (before, earlier, shared)]
    return Inputs(*parts)


# -- where values lie ------------------------------------------------------------------------------


def test_listed_numbers_lie_at_even_steps_in_their_order():
    axis = Axis.of(SearchParameter(values=(1.0, 0.0, 0.05)))
    assert axis.points.ravel().tolist() == [1.0, 0.0, 0.5]
    assert axis.place(0.025).tolist() == [0.25]  # between the first two
    assert axis.place(7.0).tolist() == [1.0]


def test_values_of_a_range_lie_on_its_scale():
    axis = Axis.of(SearchParameter(low=1e-3, high=1e3, log=True))
    assert len(axis.values) == 13
    assert axis.points.ravel() == pytest.approx(np.arange(13) / 12)
    whole = Axis.of(SearchParameter(low=1, high=4))
    assert whole.values == (1, 2, 3, 4)


def test_other_values_lie_equally_far_from_each_other():
    axis = Axis.of(SearchParameter(values=("always", "never", None)))
    apart = ((axis.points[:, None] - axis.points) ** 2).sum(-1)
    assert apart == pytest.approx(1 - np.eye(3))
    assert axis.place("never").tolist() == axis.points[1].tolist()


def test_a_line_begins_in_the_middle_and_then_halves():
    seven = Axis.of(SearchParameter(values=tuple(range(7))))
    assert [seven.values[i] for i in seven.line] == [3, 1, 5, 0, 2, 4, 6]
    wide = Axis.of(SearchParameter(low=0.0, high=12.0))
    assert [wide.values[i] for i in wide.line] == [6, 2, 10, 0, 4, 8, 12]  # every second of 13
    few = Axis.of(SearchParameter(low=1, high=6))
    assert sorted(few.values[i] for i in few.line) == [1, 2, 3, 4, 5, 6]


# -- the Gaussian process --------------------------------------------------------------------------


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shared", [None, [[0.2], [0.9]]])
def test_the_kernel_is_2_for_a_stage_with_itself(parts, shared):
    two = inputs([0.1, 0.6], [[0.3], [0.4]], [[0.3, 0.9], [0.4, 0.1]], shared)
    found = kernel(two, two, 0.35, parts)
    assert found.diagonal() == pytest.approx([2, 2])
    assert np.linalg.eigvalsh(found).min() > 0
    assert 1 < found[0, 1] < 2


def test_two_stages_by_hand():
    """At the value of one of two stages the prediction lies between both scores, nearer to its own."""
    length, noise = 0.35, 0.15
    two = inputs([0.0, 1.0])
    fit = Fit.of(two, np.array([[0.2], [0.6]]), length, PARTS[0], noise)
    apart = np.exp(-1 / (2 * length**2))
    # The mean is 0.4, and the scores are ∓0.2 from it. By symmetry the unknown mean of the kernel cancels:
    # the weights are ∓1 / (1 - apart + noise) of the standardized scores.
    expected = 0.4 - 0.2 * (1 - apart) / (1 - apart + noise)
    mean, variance = fit.predict(inputs([0.0]), spread=True)
    assert mean[0, 0] == pytest.approx(expected)
    assert fit.predict(inputs([0.5]), spread=False)[0][0, 0] == pytest.approx(0.4)
    assert variance[0] < fit.predict(inputs([0.5]), spread=True)[1][0]  # nothing was seen there


# -- predictions -----------------------------------------------------------------------------------


def stage(order, t, before, alphas):
    """Exact scores: the new task loses 0.2 α², earlier ones a share of 0.4 (1 - α)²."""
    alpha = alphas[order[t]] if t else 0.0
    return [*(score * (1 - 0.4 * (1 - alpha) ** 2) for score in before), 0.8 - 0.2 * alpha**2]


def run(order, alphas):
    R = np.full((len(order), len(order)), np.nan)
    scores: list[float] = []
    for t in range(len(order)):
        scores = stage(order, t, scores, alphas)
        R[t, : t + 1] = scores
    return R


def keys(order, alphas):
    """Of a run's stages: the first task's α bears on none."""
    return [f"{order[: t + 1]} {[alphas[name] for name in order[1 : t + 1]]}" for t in range(len(order))]


def settings_of(alphas):
    return {f"strategy.alpha.{name}": value for name, value in alphas.items()}


def model_of(orders, seen):
    model = StageModel(orders, AXES, ["strategy.alpha"], [False] * len(orders))
    for alphas in seen:
        for block, order in enumerate(orders):
            model.add(settings_of(alphas), block, keys(order, alphas), run(order, alphas))
    return model


CONSTANTS = [dict.fromkeys(TASKS, value) for value in VALUES]


@pytest.mark.parametrize("orders", [[TASKS], [TASKS, ("c", "a", "d", "b")]])
def test_constants_suffice_where_a_value_acts_in_its_own_stage_alone(orders):
    model = model_of(orders, CONSTANTS)
    every = np.array(list(product(range(len(VALUES)), repeat=len(TASKS))))
    matrices, _ = model.predict(model.points(every))
    for order, R in zip(orders, matrices, strict=True):
        exact = np.array(
            [
                run(order, {name: VALUES[i] for name, i in zip(sorted(TASKS), row, strict=True)})
                for row in every
            ]
        )
        assert np.nanmax(np.abs(R - exact)) < 0.05
        assert np.corrcoef(R[:, -1].mean(1), exact[:, -1].mean(1))[0, 1] > 0.99


def test_a_stage_that_runs_share_counts_once():
    alphas = {"a": 0.0, "b": 0.3, "c": 0.1, "d": 0.5}
    model = model_of([TASKS], [alphas, {**alphas, "a": 1.0}, {**alphas, "d": 1.0}])
    assert [len(beginning.new) for beginning in model.beginnings.values()] == [1, 1, 1, 2]


def test_orders_that_begin_alike_share_what_was_learned():
    alphas = {"a": 0.0, "b": 0.3, "c": 0.1, "d": 0.5}
    orders = [TASKS, ("a", "b", "d", "c")]
    model = StageModel(orders, AXES, ["strategy.alpha"], [False, False])
    for block, order in enumerate(orders):
        model.add(settings_of(alphas), block, keys(order, alphas), run(order, alphas))
    assert model.can_predict
    assert {order: len(beginning.new) for order, beginning in model.beginnings.items()} == {
        ("a",): 1,
        ("a", "b"): 1,  # one stage, which both blocks train
        ("a", "b", "c"): 1,
        TASKS: 1,
        ("a", "b", "d"): 1,
        ("a", "b", "d", "c"): 1,
    }


def test_two_seeds_of_an_order_are_two_observations():
    alphas = {"a": 0.0, "b": 0.3, "c": 0.1, "d": 0.5}
    model = StageModel([TASKS, TASKS], AXES, ["strategy.alpha"], [False, False])
    for seed in (0, 1):
        model.add(
            settings_of(alphas), seed, [f"{key} {seed}" for key in keys(TASKS, alphas)], run(TASKS, alphas)
        )
    assert [len(beginning.new) for beginning in model.beginnings.values()] == [2, 2, 2, 2]
    one, two = model.predict(model.points_of(settings_of(alphas)))[0]
    assert np.array_equal(one, two, equal_nan=True)


def test_a_run_counts_as_far_as_it_was_evaluated():
    model, alphas = model_of([TASKS], []), CONSTANTS[2]
    R = run(TASKS, alphas)
    R[2:] = np.nan  # pruned after two tasks
    model.add(settings_of(alphas), 0, keys(TASKS, alphas), R)
    assert [len(beginning.new) for beginning in model.beginnings.values()] == [1, 1, 0, 0]
    assert not model.can_predict


def test_what_was_seen_is_less_uncertain_than_what_was_not():
    model = model_of([TASKS], CONSTANTS[1:4])
    _, (deviations,) = model.predict(
        model.points(np.array([[2, 2, 2, 2], [2, 0, 4, 0], [2, 4, 4, 4]])), spread=True
    )
    deviation = deviations.mean(axis=1)
    assert deviation[0] < deviation[1]
    assert deviation[0] < deviation[2]


def test_no_predicted_score_exceeds_1():
    """Two runs rise by a half at every stage, one from high scores and one from low ones."""
    model = StageModel([TASKS[:3]], dict(list(AXES.items())[:3]), ["strategy.alpha"], [False])
    for level, value in ((0.9, 0.1), (0.4, 1.0)):
        alphas = dict.fromkeys(TASKS[:3], value)
        R = np.full((3, 3), np.nan)
        R[np.tril_indices(3)] = [
            level,
            min(1.5 * level, 1),
            level,
            min(2.25 * level, 1),
            min(1.5 * level, 1),
            level,
        ]
        model.add(settings_of({**alphas}), 0, keys(TASKS[:3], alphas), R)
    every = np.array(list(product(range(len(VALUES)), repeat=3)))
    assert np.nanmax(model.predict(model.points(every))[0][0]) == 1.0


def test_shares_are_bounded_where_a_score_was_near_zero():
    beginning = stage_model.Beginning()
    beginning.add(inputs([0.0]), np.array([0.0]), np.array([0.3, 0.5]))
    beginning.refit()
    _, _, kept, _ = beginning.predict(inputs([0.0]), spread=False)
    assert kept[0, 0] == pytest.approx(1.5)
