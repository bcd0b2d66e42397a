"""Intervals against textbook numbers, and against what an interval promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dgg_ray import draws
from dgg_ray.intervals import clusters_of, mean_interval, paired_difference

VALUES = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=3, max_size=12).filter(
    lambda values: max(values) > min(values)
)


def test_the_interval_of_four_values_is_the_textbook_one():
    # mean 5, s = √(20/3); t(0.975, 3) = 3.182446
    mean, low, high, n, _ = mean_interval([2, 4, 6, 8])
    half = 3.182446 * (20 / 3) ** 0.5 / 2
    assert (mean, n) == (5, 4)
    assert (low, high) == pytest.approx((5 - half, 5 + half), rel=1e-6)


def test_the_paired_difference_is_gossets_sleep_data():
    # Student, Biometrika 1908: mean 1.58, t = 4.0621 with 9 degrees of freedom, two-sided p = 0.002833
    hyoscyamine = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    hyoscine = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    mean, low, high, p, n, _ = paired_difference(hyoscine, hyoscyamine)
    assert (mean, n) == (pytest.approx(1.58), 10)
    assert (low, high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert p == pytest.approx(0.00283289, abs=1e-7)


@pytest.mark.parametrize("values", [[], [0.4], [0.4, np.nan], [0.3, 0.5], [0.3, 0.5, np.nan]])
def test_fewer_than_three_values_have_no_bounds_and_are_shown_themselves(values):
    found = mean_interval(values)
    known = tuple(value for value in values if value == value)
    assert np.isnan([found.low, found.high]).all()
    assert (found.n, found.values) == (len(known), known)
    assert found.mean == pytest.approx(0.4) if known else np.isnan(found.mean)


def test_values_that_are_all_equal_have_no_interval_of_width_zero():
    found = mean_interval([0.1 + 0.2, 0.3, 0.3, 0.3])
    assert np.isnan([found.low, found.high]).all()
    assert found.n == 4


def test_equal_differences_have_no_p():
    difference = paired_difference([0.3, 0.2, 0.9], [0.2, 0.1, 0.8])
    assert difference.mean == pytest.approx(0.1)
    assert np.isnan([difference.low, difference.high, difference.p]).all()


def test_no_bound_goes_beyond_what_the_values_can_be():
    found = mean_interval([0.99, 0.9, 1.0], within=(0, 1))
    free = mean_interval([0.99, 0.9, 1.0])
    assert (found.high, found.low) == (1, free.low)
    assert free.high > 1


def test_a_pair_with_a_missing_half_is_left_out():
    assert paired_difference([0.5, 0.9, np.nan], [0.4, np.nan, 0.1]).n == 1


@pytest.mark.parametrize("n", [3, 5, 20])
def test_95_percent_intervals_cover_the_mean_95_percent_of_the_time(n):
    rng = draws.generator(n, "", "coverage")
    intervals = [mean_interval(rng.normal(0.6, 0.1, n)) for _ in range(3000)]
    coverage = np.mean([low <= 0.6 <= high for _, low, high, *_ in intervals])
    assert 0.93 < coverage < 0.97


@given(VALUES)
def test_a_higher_level_gives_an_interval_that_holds_the_narrower_one(values):
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


@given(VALUES, st.floats(-1, 1))
def test_moving_every_value_moves_the_interval_along(values, by):
    before, after = mean_interval(values), mean_interval(np.array(values) + by)
    assert after[:3] == pytest.approx([x + by for x in before[:3]], abs=1e-9)


@given(VALUES)
def test_exchanging_the_two_sides_turns_the_difference_round(values):
    a, b = np.array(values), np.array(values) ** 2 * 0.5
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), nan_ok=True)
    assert there.p == pytest.approx(back.p, nan_ok=True)


def test_blocks_that_share_an_order_or_a_first_stage_are_of_one_cluster():
    same_seed = [("a > b > c", 0), ("a > c > b", 0), ("b > a > c", 0)]
    assert clusters_of(tuple(same_seed)) == (0, 0, 2)
    crossed = [("a > b > c", 0), ("a > b > c", 1), ("b > a > c", 0), ("b > a > c", 1)]
    assert clusters_of(tuple(crossed)) == (0, 0, 2, 2)
    # a > b and a > c share no stage at seeds 0 and 1, and are yet tied by a > c at seed 0
    chain = [("a > b", 0), ("a > c", 1), ("a > c", 0)]
    assert clusters_of(tuple(chain)) == (0, 0, 0)


def test_held_out_blocks_and_the_seeds_of_a_single_order_are_independent():
    assert clusters_of((("a > b > c", 2), ("a > c > b", 3), ("b > a > c", 4))) == (0, 1, 2)
    assert clusters_of((("a > b", 0), ("a > b", 1))) == (0, 1)


def test_a_joint_run_ties_all_orders_of_its_seed():
    crossed = (("a > b", 0), ("b > a", 0), ("a > b", 1), ("b > a", 1))
    assert clusters_of(crossed, by_seed=True) == (0, 0, 0, 0)
    assert clusters_of((("a > b", 0), ("b > a", 1)), by_seed=True) == (0, 1)


def test_equal_clusters_have_the_t_interval_of_their_means():
    found = mean_interval([0.1, 0.3, 0.4, 0.6, 0.9, 0.9], clusters=[0, 0, 1, 1, 2, 2])
    assert found[:4] == pytest.approx(mean_interval([0.2, 0.5, 0.9])[:4])
    assert found.values == pytest.approx((0.2, 0.5, 0.9))


def test_clusters_of_unequal_sizes_keep_the_mean_and_lose_freedom():
    # Without a cluster the mean is 4, 3 or 5: s² = 2/3 · (1² + 1²) = 4/3; G* = 5² / (1 + 4 + 4)
    mean, low, high, n, _ = mean_interval([4, 5, 6, 1, 4], clusters=[0, 1, 1, 2, 2])
    half = stats.t.ppf(0.975, (3 + 25 / 9) / 2 - 1) * (4 / 3) ** 0.5
    assert (mean, n) == (4, 3)
    assert (low, high) == pytest.approx((4 - half, 4 + half))


def test_one_cluster_has_a_mean_and_no_bounds():
    mean, low, high, n, _ = mean_interval([0.2, 0.4], clusters=[0, 0])
    assert (mean, n) == (pytest.approx(0.3), 1)
    assert np.isnan([low, high]).all()
    difference = paired_difference([0.2, 0.4], [0.1, 0.1], clusters=[0, 0])
    assert (difference.n, difference.mean) == (1, pytest.approx(0.2))
    assert np.isnan(difference.p)
