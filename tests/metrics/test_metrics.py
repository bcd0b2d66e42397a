"""Every metric on a run whose numbers can be worked out by eye, and on runs for which it has no meaning."""

from dataclasses import replace

import numpy as np
import pytest

from dgg_ray.analysis.run_table import metric_values, metrics, stacked_by_length
from dgg_ray.core.scores import ScoreMatrix, reads_outside

NAN = np.nan

# Three tasks of unequal size; the second gains after it was learned, the first loses, gains, loses.
# Of two tasks that are only evaluated, the first one loses and the second one gains.
RUN = ScoreMatrix(
    R=np.array([[0.80, 0.30, 0.10], [0.60, 0.50, 0.25], [0.40, 0.70, 0.90]]),
    sizes=np.array([10, 20, 30]),
    base=np.array([0.05, 0.10, 0.20]),
    outside=np.array([[0.70, 0.20], [0.90, 0.30], [0.50, 0.45]]),
    outside_base=np.array([0.75, 0.40]),
)
LAST = np.array([[NAN], [NAN], [1.0]])
JOINT = replace(RUN, R=RUN.R * LAST, outside=RUN.outside * LAST)
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
    "zero_shot_transfer": ((0.3 - 0.1) + (0.1 - 0.2) + (0.25 - 0.2)) / 3,
    "retention": ((0.5 - 0.75) + (0.45 - 0.4)) / 2,
    "stability": (0.4 + 0.7) / 2,
    "plasticity": (0.5 + 0.9) / 2,
}
LAST_ROW_ONLY = {"faa", "average_accuracy", "mfn", "retention"}
TRANSFER = {"forward_transfer", "zero_shot_transfer"}  # of tasks before their turn


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
    has_score = name in LAST_ROW_ONLY - {"retention"} | {"mft", "maa"}
    assert value == pytest.approx(0.8) if has_score else np.isnan(value)


@pytest.mark.parametrize("name", ["stability", "plasticity", "forgetting", "backward_transfer"])
def test_a_joint_run_of_two_tasks_is_no_sequence_either(name):
    two = ScoreMatrix(np.array([[NAN, NAN], [0.4, 0.7]]), np.array([10, 20]), np.array([0.1, 0.2]))
    assert np.isnan(metrics()[name](two))


@pytest.mark.parametrize("name", EXPECTED)
def test_only_transfer_looks_at_tasks_before_their_turn(name):
    lower = replace(RUN, R=np.where(np.tri(3), RUN.R, NAN), base=np.full(3, NAN))
    value = metrics()[name](lower)
    assert np.isnan(value) if name in TRANSFER else value == pytest.approx(EXPECTED[name])


def test_zero_shot_transfer_needs_every_task_that_is_still_to_come():
    next_alone = replace(RUN, R=np.where(np.tri(3, k=1), RUN.R, NAN))
    assert metrics()["forward_transfer"](next_alone) == pytest.approx(EXPECTED["forward_transfer"])
    assert np.isnan(metrics()["zero_shot_transfer"](next_alone))


@pytest.mark.parametrize("name", EXPECTED)
def test_only_retention_looks_at_tasks_that_are_only_evaluated(name):
    without = ScoreMatrix(RUN.R, RUN.sizes, RUN.base)
    value = metrics()[name](without)
    assert np.isnan(value) if name == "retention" else value == pytest.approx(EXPECTED[name])
    assert reads_outside(metrics()[name]) == (name == "retention")


def test_retention_needs_the_untouched_model_and_the_last_stage():
    no_base = replace(RUN, outside_base=np.array([NAN, 0.4]))
    no_end = replace(RUN, outside=np.where(np.arange(3)[:, None] < 2, RUN.outside, NAN))
    assert np.isnan([metrics()["retention"](scores) for scores in (no_base, no_end)]).all()


def test_the_first_stages_are_a_sequence_of_their_own():
    two = RUN.first(2)
    assert metrics()["faa"](two) == pytest.approx((0.6 * 10 + 0.5 * 20) / 30)
    assert metrics()["retention"](two) == pytest.approx(((0.9 - 0.75) + (0.3 - 0.4)) / 2)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_unfinished_run_has_no_score_that_needs_its_end(name):
    begun = np.where(np.arange(3)[:, None] < 2, 1.0, NAN)
    value = metrics()[name](replace(RUN, R=RUN.R * begun, outside=RUN.outside * begun))
    assert np.isnan(value) or name in TRANSFER  # they need no more than the stage before last


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
    unfinished = replace(RUN, R=np.where(np.arange(3)[:, None] < 2, RUN.R, NAN))
    other = ScoreMatrix(RUN.R[::-1] / 2, RUN.sizes[::-1], RUN.base * 2, RUN.outside / 2, RUN.outside_base)
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
