"""Intervals equal textbook numbers, and keep their promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dgg_ray.core.rng import make_rng
from dgg_ray.stats.intervals import (
    block_clusters,
    fixed_orders_interval,
    holm,
    interaction_variance,
    mean_interval,
    paired_difference,
    two_way_clusters,
)

VALUES = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=3, max_size=12).filter(
    lambda values: max(values) > min(values)
)


def test_the_interval_of_four_values_equals_the_textbook():
    # mean 5, s = √(20/3); t(0.975, 3) = 3.182446
    mean, low, high, n, _ = mean_interval([2, 4, 6, 8])
    half = 3.182446 * (20 / 3) ** 0.5 / 2
    assert (mean, n) == (5, 4)
    assert (low, high) == pytest.approx((5 - half, 5 + half), rel=1e-6)


def test_the_paired_difference_reproduces_gossets_sleep_data():
    # Student, Biometrika 1908: mean 1.58, t = 4.0621 with 9 degrees of freedom, two-sided p = 0.002833
    hyoscyamine = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    hyoscine = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    mean, low, high, p, n, _ = paired_difference(hyoscine, hyoscyamine)
    assert (mean, n) == (pytest.approx(1.58), 10)
    assert (low, high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert p == pytest.approx(0.00283289, abs=1e-7)


@pytest.mark.parametrize("values", [[], [0.4], [0.4, np.nan], [0.3, 0.5], [0.3, 0.5, np.nan]])
def test_fewer_than_three_values_have_no_bounds_and_are_returned_themselves(values):
    found = mean_interval(values)
    known = tuple(value for value in values if value == value)
    assert np.isnan([found.low, found.high]).all()
    assert (found.n, found.values) == (len(known), known)
    assert found.mean == pytest.approx(0.4) if known else np.isnan(found.mean)


def test_equal_values_have_no_interval_of_width_zero():
    found = mean_interval([0.1 + 0.2, 0.3, 0.3, 0.3])
    assert np.isnan([found.low, found.high]).all()
    assert found.n == 4


def test_equal_differences_have_no_p():
    difference = paired_difference([0.3, 0.2, 0.9], [0.2, 0.1, 0.8])
    assert difference.mean == pytest.approx(0.1)
    assert np.isnan([difference.low, difference.high, difference.p]).all()


def test_no_bound_exceeds_the_scale_of_the_values():
    found = mean_interval([0.99, 0.9, 1.0], within=(0, 1))
    free = mean_interval([0.99, 0.9, 1.0])
    assert found.high == 1 < free.high
    difference = paired_difference([0.99, 0.9, 1.0, 0.4], [0, 0, 0, 0], within=(-1, 1))
    assert difference.high == 1


def test_the_interval_is_the_t_interval_in_the_middle_of_a_scale_and_wider_inwards_near_an_end():
    middle, near = [0.48, 0.5, 0.51, 0.53], [0.93, 0.97, 0.99, 0.98]
    assert mean_interval(middle, within=(0, 1))[:3] == pytest.approx(mean_interval(middle)[:3], abs=1e-4)
    found, free = mean_interval(near, within=(0, 1)), mean_interval(near)
    # the t interval of the mean's logit: u = 0.9675, h = 3.1824 s / 2, divided by u (1 - u)
    u, h = 0.9675, 3.182446 * np.std(near, ddof=1) / 2
    odds = math.log(u / (1 - u)) - h / (u * (1 - u))
    assert found.low == pytest.approx(1 / (1 + math.exp(-odds)))
    assert found.low < free.low - 0.01
    turned = mean_interval([1 - x for x in near], within=(0, 1))
    assert (1 - turned.high, 1 - turned.low) == pytest.approx((found.low, found.high))
    assert mean_interval([2 * x - 1 for x in near], within=(-1, 1)).low == pytest.approx(2 * found.low - 1)


# -- orders and seeds ------------------------------------------------------------------------------

CROSSED = tuple((f"{first} > x", seed) for first in "abc" for seed in (0, 1))


def test_crossed_orders_and_seeds_add_their_variances():
    x = np.array([1.0, 2, 3, 4, 6, 8])  # by order 1.5, 3.5, 7; by seed 10/3, 14/3
    by_order, by_seed = np.var([1.5, 3.5, 7], ddof=1) / 3, np.var([10 / 3, 14 / 3], ddof=1) / 2
    freedom = (by_order + by_seed) ** 2 / (by_order**2 / 2 + by_seed**2 / 1)
    mean, low, high, n, values = mean_interval(x, clusters=two_way_clusters(CROSSED))
    half = stats.t.ppf(0.975, freedom) * (by_order + by_seed) ** 0.5
    assert (mean, n, values) == (4, 3, (1.5, 3.5, 7))
    assert (low, high) == pytest.approx((4 - half, 4 + half))


def test_different_orders_of_one_cluster_are_no_interaction_with_seeds():
    orders, seeds = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1] * 4)
    of_order = np.array([0.1, 0.1, 0.5, 0.5, 0.2, 0.2, 0.4, 0.4])  # two orders begin with one task
    assert interaction_variance(of_order + 0.03 * seeds, orders, seeds) == pytest.approx(0)
    assert interaction_variance(of_order + 0.03 * seeds * (orders == 2), orders, seeds) > 1e-6


def test_the_orders_are_the_clusters_with_one_seed_or_a_seed_for_each_order():
    x = [1.0, 2, 4, 7]
    alone = mean_interval(x)
    one_seed = two_way_clusters(tuple((f"{first} > x", 5) for first in "abcd"))
    own_seed = two_way_clusters(tuple((f"{first} > x", seed) for seed, first in enumerate("abcd")))
    assert mean_interval(x, clusters=one_seed) == alone == mean_interval(x, clusters=own_seed)
    assert (
        mean_interval(x, clusters=two_way_clusters(tuple((f"{first} > x", 5) for first in "abcd"), True)).n
        == 1
    )


def test_a_seed_with_orders_of_its_own_is_one_cluster():
    blocks = tuple((f"{first} > x", seed) for first, seed in zip("abcdef", (0, 0, 1, 1, 2, 2), strict=True))
    found = mean_interval([1.0, 2, 4, 4, 6, 9], clusters=two_way_clusters(blocks))
    assert found[:4] == pytest.approx(mean_interval([1.5, 4, 7.5])[:4])


def test_seeds_are_the_replicates_on_fixed_orders():
    blocks = tuple((order, seed) for order in ("a > b", "b > a") for seed in (0, 1, 2))
    found = fixed_orders_interval([0.2, 0.4, 0.3, 0.6, 0.7, 0.8], blocks)
    assert found[:4] == pytest.approx(mean_interval([0.4, 0.55, 0.55])[:4])  # each seed's mean over orders
    own = tuple(("ab"[i // 2] + " > c", i) for i in range(4))  # two orders with two seeds each of their own
    # deviations ∓0.1 and ∓0.2: s² = (2 · 0.1² + 2 · 0.2²) · 2 / 16, two degrees of freedom
    mean, low, high, n, _ = fixed_orders_interval([0.2, 0.4, 0.5, 0.9], own)
    half = stats.t.ppf(0.975, 2) * (0.1 * 2 / 16) ** 0.5
    assert (mean, low, high, n) == pytest.approx((0.5, 0.5 - half, 0.5 + half, 3))


def test_fixed_orders_have_no_bounds_if_one_has_a_single_seed():
    found = fixed_orders_interval(
        [0.2, 0.4, 0.3, 0.6], (("a > b", 0), ("a > b", 1), ("a > b", 2), ("b > a", 0))
    )
    assert np.isnan([found.low, found.high]).all()
    assert fixed_orders_interval([0.2, 0.4], (("a > b", 0), ("a > b", 1))).n == 2


def test_holms_p_values_equal_the_textbook():
    # smallest times 4, next times 3 …, never decreasing; nan does not count as a test
    found = holm([0.01, np.nan, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, np.nan, 0.06, 0.06, 0.02], nan_ok=True)


def test_an_incomplete_pair_is_left_out():
    assert paired_difference([0.5, 0.9, np.nan], [0.4, np.nan, 0.1]).n == 1


@pytest.mark.parametrize("n", [3, 5, 20])
def test_95_percent_intervals_cover_the_mean_95_percent_of_the_time(n):
    rng = make_rng(n, "", "coverage")
    intervals = [mean_interval(rng.normal(0.6, 0.1, n)) for _ in range(3000)]
    coverage = np.mean([low <= 0.6 <= high for _, low, high, *_ in intervals])
    assert 0.93 < coverage < 0.97


@given(VALUES)
def test_an_interval_of_a_higher_level_contains_the_narrower_one(values):
    narrow, wide = mean_interval(values, 0.8), mean_interval(values, 0.99)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


@given(VALUES, st.floats(-1, 1))
def test_shifting_every_value_shifts_the_interval(values, by):
    before, after = mean_interval(values), mean_interval(np.array(values) + by)
    assert after[:3] == pytest.approx([x + by for x in before[:3]], abs=1e-9)


@given(VALUES)
def test_swapping_the_two_sides_negates_the_difference(values):
    a, b = np.array(values), np.array(values) ** 2 * 0.5
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), nan_ok=True)
    assert there.p == pytest.approx(back.p, nan_ok=True)


def test_blocks_that_share_an_order_or_a_first_stage_are_one_cluster():
    same_seed = [("a > b > c", 0), ("a > c > b", 0), ("b > a > c", 0)]
    assert block_clusters(tuple(same_seed)) == (0, 0, 2)
    crossed = [("a > b > c", 0), ("a > b > c", 1), ("b > a > c", 0), ("b > a > c", 1)]
    assert block_clusters(tuple(crossed)) == (0, 0, 2, 2)
    # a > b at seed 0 and a > c at seed 1 share no stage, but a > c at seed 0 links them
    chain = [("a > b", 0), ("a > c", 1), ("a > c", 0)]
    assert block_clusters(tuple(chain)) == (0, 0, 0)


def test_held_out_blocks_and_the_seeds_of_a_single_order_are_independent():
    assert block_clusters((("a > b > c", 2), ("a > c > b", 3), ("b > a > c", 4))) == (0, 1, 2)
    assert block_clusters((("a > b", 0), ("a > b", 1))) == (0, 1)


def test_a_joint_run_links_all_orders_of_its_seed():
    crossed = (("a > b", 0), ("b > a", 0), ("a > b", 1), ("b > a", 1))
    assert block_clusters(crossed, by_seed=True) == (0, 0, 0, 0)
    assert block_clusters((("a > b", 0), ("b > a", 1)), by_seed=True) == (0, 1)


def test_equal_clusters_have_the_t_interval_of_their_means():
    found = mean_interval([0.1, 0.3, 0.4, 0.6, 0.9, 0.9], clusters=[0, 0, 1, 1, 2, 2])
    assert found[:4] == pytest.approx(mean_interval([0.2, 0.5, 0.9])[:4])
    assert found.values == pytest.approx((0.2, 0.5, 0.9))


def test_clusters_of_unequal_sizes_keep_the_mean_and_lose_degrees_of_freedom():
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
