"""Intervals against textbook numbers, and against what an interval promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgg_ray import draws
from dgg_ray.intervals import bootstrap_band, mean_interval, paired_difference

VALUES = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


def test_the_interval_of_four_values_is_the_textbook_one():
    # mean 5, s = √(20/3); t(0.975, 3) = 3.182446
    mean, low, high, n = mean_interval([2, 4, 6, 8])
    half = 3.182446 * (20 / 3) ** 0.5 / 2
    assert (mean, n) == (5, 4)
    assert (low, high) == pytest.approx((5 - half, 5 + half), rel=1e-6)


def test_the_paired_difference_is_gossets_sleep_data():
    # Student, Biometrika 1908: mean 1.58, t = 4.0621 with 9 degrees of freedom, two-sided p = 0.002833
    hyoscyamine = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    hyoscine = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    mean, low, high, p, n = paired_difference(hyoscine, hyoscyamine)
    assert (mean, n) == (pytest.approx(1.58), 10)
    assert (low, high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert p == pytest.approx(0.00283289, abs=1e-7)


@pytest.mark.parametrize("values", [[], [0.4], [0.4, np.nan]])
def test_fewer_than_two_values_have_no_bounds(values):
    mean, low, high, n = mean_interval(values)
    assert np.isnan([low, high]).all()
    assert n == len(values[:1])
    assert np.isnan(mean) if not values else mean == 0.4


def test_equal_differences_have_no_p():
    difference = paired_difference([0.3, 0.2], [0.2, 0.1])
    assert difference.mean == pytest.approx(0.1)
    assert np.isnan(difference.p)


def test_a_pair_with_a_missing_half_is_left_out():
    assert paired_difference([0.5, 0.9, np.nan], [0.4, np.nan, 0.1]).n == 1


@pytest.mark.parametrize("n", [2, 5, 20])
def test_95_percent_intervals_cover_the_mean_95_percent_of_the_time(n):
    rng = draws.generator(n, "", "coverage")
    intervals = [mean_interval(rng.normal(0.6, 0.1, n)) for _ in range(3000)]
    coverage = np.mean([low <= 0.6 <= high for _, low, high, _ in intervals])
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
    a, b = np.array(values), np.array(values)[::-1] * 0.5
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == pytest.approx(back.p, nan_ok=True)


def test_a_bootstrap_band_of_normal_blocks_is_as_wide_as_theory_says():
    # 400 blocks: the mean's standard error is the sample's s/√n, times 1.96 on each side
    blocks = draws.generator(1, "", "band").normal(0, 1, (400, 1))
    low, high = bootstrap_band(blocks)
    assert (high - low)[0] == pytest.approx(2 * 1.96 * blocks.std() / 20, rel=0.06)


def test_a_bootstrap_band_is_the_same_each_time_and_another_for_another_seed():
    blocks = np.array([[0.1, 0.5], [0.3, 0.6], [0.7, 0.4]])
    assert np.array_equal(bootstrap_band(blocks), bootstrap_band(blocks))
    assert not np.array_equal(
        bootstrap_band(blocks, resamples=50), bootstrap_band(blocks, resamples=50, seed=1)
    )


def test_a_bootstrap_resamples_whole_blocks():
    # The two points sum to 1 in every block, so in every resample too: the bands mirror each other.
    blocks = np.array([[0.1, 0.9], [0.3, 0.7], [0.8, 0.2], [0.4, 0.6]])
    low, high = bootstrap_band(blocks)
    assert low == pytest.approx(1 - high[::-1])


def test_a_point_that_one_block_has_gets_no_band_and_spoils_no_other():
    low, high = bootstrap_band([[0.2, 0.5], [0.4, np.nan]])
    assert (low[0], high[0]) == pytest.approx((0.2, 0.4))
    assert np.isnan([low[1], high[1]]).all()
