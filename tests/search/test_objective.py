"""Which setting is better, and how a run that stopped early is carried on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.search.objective import (
    Constraint,
    Evidence,
    Values,
    continue_like,
    dominates,
    extrapolate_run,
    first_scores,
    fit_response,
    hypervolume,
    kept_shares,
    objective_values,
    rank_settings,
    simplicity,
)

NAN = np.nan


def scores(*rows):
    """A matrix from its rows, nan where a row is short or missing; all tasks of equal size."""
    size = max(len(rows), max(map(len, rows)))
    R = np.full((size, size), NAN)
    for t, row in enumerate(rows):
        R[t, : len(row)] = row
    return ScoreMatrix(R, np.ones(size), np.full(size, 0.1))


def test_values_are_means_over_blocks_and_a_constraint_is_broken_by_what_is_missing():
    mine = [scores([0.5], [0.3, 0.6]), scores([0.5], [0.5, 0.8])]  # plasticity 0.6, 0.8; stability 0.3, 0.5
    finetune = [scores([0.5], [0.1, 0.9]), scores([0.5], [0.1, 0.7])]  # plasticity 0.9, 0.7
    limit = Constraint.parse("plasticity >= finetune - 2 points")
    found = objective_values(Evidence(mine, {"finetune": finetune}), ["stability"], [limit])
    assert found.objective == pytest.approx((0.4,))
    assert found.excess == pytest.approx((0.8 - 0.02 - 0.7,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plasticity >= finetune - 2 points", ("plasticity", "finetune", -0.02)),
        ("plasticity>=finetune-1.5 %", ("plasticity", "finetune", -0.015)),
        ("faa >= replay", ("faa", "replay", 0.0)),
        ("faa >= replay + 1 point", ("faa", "replay", 0.01)),
        ("stability >= 60 %", ("stability", None, 0.6)),
        ("stability >= 0.6", ("stability", None, 0.6)),
    ],
)
def test_constraints_are_read(text, expected):
    found = Constraint.parse(text)
    assert (found.metric, found.baseline, found.bound) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["plasticity", "plasticity > 3", "faa >= finetune - two", ">= 3", "a >= b >= c"]
)
def test_other_texts_are_no_constraints(text):
    assert Constraint.parse(text) is None


def test_a_setting_that_keeps_its_constraints_comes_before_a_better_one_that_breaks_them():
    found = [Values((0.9,), (0.1,)), Values((0.5,), (0.0,)), Values((0.6,), (0.0,)), Values((0.99,), (0.02,))]
    assert rank_settings(found) == [2, 1, 3, 0]


def test_fronts_follow_each_other_and_the_highest_mean_leads_its_front():
    found = [Values(v) for v in ((0.2, 0.9), (0.6, 0.6), (0.5, 0.6), (0.8, 0.3), (0.1, 0.1))]
    assert rank_settings(found) == [1, 0, 3, 2, 4]  # 2 is dominated by 1, 4 by all


def test_of_equals_the_simpler_setting_is_preferred():
    settings = [
        {"strategy.alpha.a": 0.3, "strategy.alpha.b": 0.1, "strategy.buffer": 10, "adapter.rank": 4},
        {"strategy.alpha.a": 0.5, "strategy.alpha.b": 0.5, "strategy.buffer": 10, "adapter.rank": 4},
        {"strategy.alpha.a": 0.3, "strategy.alpha.b": 0.3, "strategy.buffer": 20, "adapter.rank": 4},
        {"strategy.alpha.a": 0.3, "strategy.alpha.b": 0.3, "strategy.buffer": 10, "adapter.rank": 8},
        {"strategy.alpha.a": 0.3, "strategy.alpha.b": 0.3, "strategy.buffer": 10, "adapter.rank": 4},
    ]
    equal = [Values((0.1 + 0.2,)), Values((0.3,)), Values((0.3,)), Values((0.3,)), Values((0.3,))]
    assert rank_settings(equal, settings) == [4, 3, 2, 1, 0]
    assert rank_settings(equal) == [0, 1, 2, 3, 4]
    assert rank_settings([*equal[:4], Values((0.3 - 1e-9,))], settings) == [3, 2, 1, 0, 4]
    both = [Values((0.2, 0.4)), Values((0.4, 0.2))]
    assert rank_settings(both, settings[:2]) == [1, 0]


def test_any_two_settings_have_an_order_of_simplicity():
    none = {"strategy.name": "dgg", "strategy.alpha": None}
    nought = {"strategy.name": "dgg", "strategy.alpha": 0.0}
    other = {"strategy.name": "ewc", "strategy.alpha": float("nan")}
    assert sorted([other, nought, none], key=simplicity) == [none, other, nought]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_nothing_dominates_what_is_preferred_to_all(points):
    best = points[rank_settings([Values(p) for p in points])[0]]
    assert not any(dominates(p, best) for p in points)


def test_hypervolume_is_the_area_below_a_staircase():
    # 0.2 wide up to 0.9, 0.4 more up to 0.6, 0.2 more up to 0.3
    assert hypervolume([(0.2, 0.9), (0.6, 0.6), (0.8, 0.3), (0.5, 0.5)]) == pytest.approx(0.18 + 0.24 + 0.06)
    assert hypervolume([(0.5, 0.5, 0.5), (1.0, 0.1, 0.1)]) == pytest.approx(0.125 + 0.5 * 0.01)
    assert hypervolume([]) == 0


def test_a_run_that_stopped_is_completed_by_own_scores_and_shares_kept_by_age():
    # After two of three tasks; kept 0.8 a stage after learning, 0.9 later; task c begins at 0.4
    half = scores([0.6], [0.5, 0.8], [])
    R = extrapolate_run(half, ("a", "b", "c"), {"c": 0.4}, [0.8, 0.9], 0.0).R
    assert R[2] == pytest.approx([0.5 * 0.9, 0.8 * 0.8, 0.4])
    assert extrapolate_run(half, ("a", "b", "c"), {}, (), 1.0).R[2] == pytest.approx([0.5, 0.8, 1.0])
    assert np.isnan(half.R[2]).all()


def test_a_run_follows_another_by_what_that_one_kept_of_each_task():
    other = scores([0.8], [0.4, 0.6], [0.2, 0.3, 0.7])  # a keeps half, b keeps half
    R = continue_like(scores([0.8], [0.6, 0.5], []), other).R
    assert R[2] == pytest.approx([0.3, 0.25, 0.7])


def test_shares_kept_are_quantiles_by_age_and_never_above_one():
    a = scores([0.8], [0.4, 0.5], [0.4, 0.25, 0.9])  # age 0: 0.5, 0.5; age 1: 1
    b = scores([0.5], [0.5, 0.6], [0.6, 0.3, 0.9])  # age 0: 1, 0.5; age 1: 1.2, cut to 1
    assert kept_shares([a, b], 0.5) == pytest.approx([0.5, 1.0])
    assert kept_shares([a, b], 1.0) == pytest.approx([1.0, 1.0])
    assert first_scores([(("x", "y", "z"), a)]) == {"x": [0.8], "y": [0.5], "z": [0.9]}


def test_points_on_a_parabola_are_left_where_they_are_and_an_outlier_is_drawn_to_it():
    x = [0.0, 0.1, 0.3, 0.6, 1.0]
    parameters = {"strategy.alpha.a": None}
    settings = [{"strategy.alpha.a": v} for v in x]
    curve = np.array([[0.5 + 0.25 * r - 0.06 * r * r] for r in range(5)])  # in their ranks
    assert fit_response(curve, [0] * 5, settings, parameters) == pytest.approx(curve)
    off = curve.copy()
    off[2] += 0.1
    assert abs(fit_response(off, [0] * 5, settings, parameters)[2] - curve[2]) < 0.05


def test_parents_have_levels_of_their_own_on_one_curve():
    x = [0.0, 0.1, 0.3, 0.6]
    settings = [{"a": v} for v in x] * 2
    table = np.array([[r - r * r / 3] for r in range(4)] + [[0.2 + r - r * r / 3] for r in range(4)])
    assert fit_response(table, [0] * 4 + [1] * 4, settings, {"a": None}) == pytest.approx(table)


def test_a_peak_at_a_small_alpha_is_found():
    # In α itself the nearest parabola has its top at α = 0.5, and calls 0.3 the best.
    x, scores_ = [0.0, 0.05, 0.1, 0.3, 1.0], [0.50, 0.58, 0.60, 0.57, 0.40]
    table = np.array(scores_)[:, None]
    read = fit_response(table, [0] * 5, [{"a": v} for v in x], {"a": None})
    assert x[int(read.argmax())] == 0.1
    raw = np.vander(x, 3) @ np.linalg.lstsq(np.vander(x, 3), table, rcond=None)[0]
    assert x[int(raw.argmax())] == 0.3


def test_a_log_range_keeps_its_own_scale():
    x = [1e-4, 2e-4, 1e-3, 4e-3, 1e-2]
    table = np.array([[np.log(v) - np.log(v) ** 2] for v in x])
    of = FloatDistribution(1e-4, 1e-2, log=True)
    assert fit_response(table, [0] * 5, [{"a": v} for v in x], {"a": of}) == pytest.approx(table)


def test_too_few_points_are_taken_as_they_are():
    table = np.array([[0.1], [0.9], [0.2]])
    assert fit_response(table, [0, 0, 0], [{"a": v} for v in (0, 1, 2)], {"a": None}) is table
