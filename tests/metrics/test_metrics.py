"""Every metric on a run whose numbers can be worked out by eye, and on runs for which it has no meaning."""

import numpy as np
import pytest

from dgg_ray.analysis.run_table import metric_values, metrics, stacked_by_length
from dgg_ray.core.scores import ScoreMatrix

NAN = np.nan

# Three tasks of unequal size; the second gains after it was learned, the first loses, gains, loses.
RUN = ScoreMatrix(
    R=np.array([[0.80, 0.30, 0.10], [0.60, 0.50, 0.25], [0.40, 0.70, 0.90]]),
    sizes=np.array([10, 20, 30]),
    base=np.array([0.05, 0.10, 0.20]),
)
JOINT = ScoreMatrix(np.array([[NAN] * 3, [NAN] * 3, [0.4, 0.7, 0.9]]), RUN.sizes, RUN.base)
SINGLE = ScoreMatrix(np.array([[0.8]]), np.array([10]), np.array([0.1]))

EXPECTED = {
    "faa": (0.4 * 10 + 0.7 * 20 + 0.9 * 30) / 60,
    "average_accuracy": (0.4 + 0.7 + 0.9) / 3,
    "mfn": (0.4 + 0.7 + 0.9) / 3,
    "mft": (0.8 + 0.5 + 0.9) / 3,
    "maa": (0.8 + (0.6 + 0.5) / 2 + (0.4 + 0.7 + 0.9) / 3) / 3,
    "backward_transfer": ((0.4 - 0.8) + (0.7 - 0.5)) / 2,
    "forgetting": ((0.8 - 0.4) + (0.5 - 0.7)) / 2,
    "forward_transfer": ((0.3 - 0.1) + (0.25 - 0.2)) / 2,
    "stability": (0.4 + 0.7) / 2,
    "plasticity": (0.5 + 0.9) / 2,
}
LAST_ROW_ONLY = {"faa", "average_accuracy", "mfn"}


def test_every_metric_has_a_value_worked_out_by_hand():
    assert set(metrics()) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_metric_gives_the_number_worked_out_by_hand(name):
    assert metrics()[name](RUN) == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_joint_run_has_final_scores_and_no_metric_of_a_sequence(name):
    value = metrics()[name](JOINT)
    assert value == pytest.approx(EXPECTED[name]) if name in LAST_ROW_ONLY else np.isnan(value)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_single_task_has_scores_but_no_transfer(name):
    value = metrics()[name](SINGLE)
    assert value == pytest.approx(0.8) if name in LAST_ROW_ONLY | {"mft", "maa"} else np.isnan(value)


@pytest.mark.parametrize("name", ["stability", "plasticity", "forgetting", "backward_transfer"])
def test_a_joint_run_of_two_tasks_is_no_sequence_either(name):
    two = ScoreMatrix(np.array([[NAN, NAN], [0.4, 0.7]]), np.array([10, 20]), np.array([0.1, 0.2]))
    assert np.isnan(metrics()[name](two))


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"forward_transfer"}))
def test_only_forward_transfer_looks_at_tasks_before_their_turn(name):
    lower = ScoreMatrix(np.where(np.tri(3), RUN.R, NAN), RUN.sizes, np.full(3, NAN))
    assert metrics()[name](lower) == pytest.approx(EXPECTED[name])
    assert np.isnan(metrics()["forward_transfer"](lower))


@pytest.mark.parametrize("name", EXPECTED)
def test_an_unfinished_run_has_no_score_that_needs_its_end(name):
    R = RUN.R.copy()
    R[2] = NAN
    value = metrics()[name](ScoreMatrix(R, RUN.sizes, RUN.base))
    assert np.isnan(value) or name == "forward_transfer"  # it needs no more than the stage before last


def test_forgetting_counts_from_the_best_score_and_backward_transfer_from_the_first():
    R = np.array([[0.5, NAN, NAN], [0.8, 0.6, NAN], [0.7, 0.6, 0.9]])
    scores = ScoreMatrix(R, RUN.sizes, RUN.base)
    assert metrics()["forgetting"](scores) == pytest.approx((0.8 - 0.7) / 2)
    assert metrics()["backward_transfer"](scores) == pytest.approx((0.7 - 0.5) / 2)


def test_a_task_that_was_never_learned_is_not_stable():
    R = np.array([[0.1, NAN, NAN], [0.1, 0.6, NAN], [0.1, 0.5, 0.9]])
    assert metrics()["stability"](ScoreMatrix(R, RUN.sizes, RUN.base)) == pytest.approx((0.1 + 0.5) / 2)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_metric_gives_each_run_of_a_stack_its_own_value(name):
    unfinished = ScoreMatrix(np.where(np.arange(3)[:, None] < 2, RUN.R, NAN), RUN.sizes, RUN.base)
    other = ScoreMatrix(RUN.R[::-1] / 2, RUN.sizes[::-1], RUN.base * 2)
    found = [RUN, JOINT, unfinished, other]
    ((places, stack),) = stacked_by_length(found)
    assert places.tolist() == [0, 1, 2, 3]
    assert stack.R.shape == (4, 3, 3)
    np.testing.assert_array_equal(metrics()[name](stack), [metrics()[name](m) for m in found])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stack_of_single_tasks_is_no_special_case(name):
    ((_, stack),) = stacked_by_length([SINGLE, SINGLE])
    np.testing.assert_allclose(metrics()[name](stack), [metrics()[name](SINGLE)] * 2)


def test_a_metric_written_for_one_run_is_computed_run_by_run():
    ((_, stack),) = stacked_by_length([RUN, JOINT])
    assert metric_values(
        lambda scores: float(scores.R[-1].max() + scores.sizes[0]), stack
    ).tolist() == pytest.approx([10.9, 10.9])
    assert metric_values(lambda scores: float(scores.base[0]), stack).tolist() == [0.05, 0.05]


def test_runs_of_different_length_are_stacked_separately():
    found = {tuple(places): stack.R.shape for places, stack in stacked_by_length([SINGLE, RUN, SINGLE])}
    assert found == {(0, 2): (2, 1, 1), (1,): (1, 3, 3)}
