"""Tests of the power analysis: how many blocks a comparison needs."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dgg_ray.core.orders import design
from dgg_ray.stats.intervals import block_clusters, paired_difference
from dgg_ray.stats.power import (
    LEVEL,
    POWER,
    blocks_needed,
    design_effects,
    detectable_difference,
    effective_samples,
    orders_needed,
    power,
)

SPREADS = st.floats(0.1, 20)


@pytest.mark.parametrize(("sd", "normal"), [(1, 4), (2, 13), (3.2, 32)])
def test_blocks_needed_exceed_the_normal_approximation_by_two_or_three(sd, normal):
    # (1.96 + 0.84)² (sd / 1.6)², rounded up: 3.07, 12.3, 31.4
    assert normal == np.ceil((1.960 + 0.8416) ** 2 * (sd / 1.6) ** 2)
    assert normal + 2 <= blocks_needed(1.6, sd) <= normal + 3


def test_published_sample_sizes_are_reproduced():
    # Cohen's d of 0.8, 0.5, 0.2 in a paired t test, two-sided 5 %, power 80 % (G*Power 3.1: 15, 34, 199)
    assert [blocks_needed(d, 1.0) for d in (0.8, 0.5, 0.2)] == [15, 34, 199]


@pytest.mark.parametrize(("n", "difference", "sd"), [(4, 1.6, 1.0), (6, 2.0, 2.0), (15, 1.6, 2.0)])
def test_power_is_the_share_of_simulated_studies_that_detect_the_difference(n, difference, sd):
    d = np.random.default_rng(1).normal(difference, sd, size=(20_000, n))
    seen = stats.ttest_1samp(d, 0, axis=1).pvalue < LEVEL
    assert power(n, difference, sd) == pytest.approx(seen.mean(), abs=0.012)  # 3.4 standard errors


@pytest.mark.parametrize("n", [3, 3.5, 8, 100])
@pytest.mark.parametrize("d", [0.01, 0.3, 1.0, 3.0])
def test_power_agrees_with_the_noncentral_t_distribution(n, d):
    critical, shift = stats.t.ppf(0.975, n - 1), d * n**0.5
    both = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    # SciPy's is nan where the power is nearly 1.
    assert power(n, d, 1.0) == pytest.approx(1.0 if np.isnan(both) else both, abs=1e-5)


@given(n=st.floats(3, 1e4), sd=SPREADS, freedom=st.none() | st.floats(1, 100))
def test_the_detectable_difference_is_detected_with_80_percent_power(n, sd, freedom):
    assert power(n, detectable_difference(n, sd, freedom), sd, freedom) == pytest.approx(POWER, abs=1e-6)


@given(difference=st.floats(0.2, 50), sd=SPREADS)
def test_blocks_needed_is_the_smallest_number_with_enough_power(difference, sd):
    n = blocks_needed(difference, sd)
    assert n is not None
    assert power(n, difference, sd) >= POWER > power(n - 1, difference, sd)


def test_two_blocks_detect_nothing_and_a_million_detect_no_tiny_difference():
    assert power(2, 5.0, 1.0) == 0 < power(3, 5.0, 1.0)
    assert detectable_difference(2.9, 1.0) == inf
    assert blocks_needed(1000.0, 1.0) == 3  # fewer blocks have no interval
    assert blocks_needed(1e-4, 3.0) is None


def test_clusters_count_as_fewer_by_their_shared_stages():
    # 2 clusters of m = 3 orders that share 2 of 5 stages: 1 + (3 - 1) · 0.4
    orders = ["abcde", "abdec", "abecd", "cdabe", "cdbea", "cdeab"]
    assert last(design_effects(orders)) == pytest.approx(1 + 2 * 2 / 5)
    assert set(design_effects(design("cyclic", "abcdef"))) == {1}
    assert list(design_effects([("a", "b", "c"), ("a", "c", "b")])) == pytest.approx([1, 1 + 1 / 3])


def last(values):
    return list(values)[-1]


@pytest.mark.parametrize("own", [0.0, 0.3, 1.0])
def test_the_effective_sample_of_several_seeds_follows_from_the_variance_of_their_mean(own):
    # Variance 1 of a block, `own` of it the order's: its mean has own / O + (1 - own) / (O S).
    assert 1 / last(effective_samples(design("cyclic", "abcde"), 3, own)).blocks == pytest.approx(
        own / 5 + (1 - own) / 15
    )


@pytest.mark.parametrize(
    ("orders", "seeds", "freedom"),
    [
        (["abcd"], 5, 4),  # a single order: its seeds are independent
        (["abcd", "badc"], 5, np.nan),  # two clusters have no interval
        (["abcd", "abdc"], 5, np.nan),  # one cluster
        (design("all", "abcd"), 4, 3),
        (["abcd", "abdc", "badc", "cadb"], 2, (3 + 8**2 / (4**2 + 2**2 + 2**2)) / 2 - 1),
    ],
)
def test_seeds_add_no_freedom_to_several_orders(orders, seeds, freedom):
    assert last(effective_samples(orders, seeds)).freedom == pytest.approx(freedom, nan_ok=True)


def test_an_orders_share_of_the_variance_does_not_count_with_a_single_order():
    assert last(effective_samples(["abcd"], 3, order_share=1.0)) == (3, 2)


def test_a_test_on_one_degree_of_freedom_detects_little():
    # t on 1 degree of freedom detects a true difference of σ in one study of five, not in four of five.
    assert power(10, 3.0, 3.0, freedom=1) == pytest.approx(0.20, abs=0.01)
    assert power(10, 3.0, 3.0) >= POWER


def test_one_joint_run_of_a_seed_serves_all_orders():
    found = last(effective_samples(design("cyclic", "abcd"), 3, joint=True))
    assert found == pytest.approx((3, np.nan), nan_ok=True)


def simulated(orders, seeds: int, difference: float, sd: float, own: float) -> float:
    """Return the share of studies whose report detects the difference.

    A run's difference is the sum of one draw for each of its stages; a share `own` of its variance is the
    same for all seeds.
    """
    rng, draws = np.random.default_rng(3), {}
    for order in orders:
        for t in range(len(order)):
            alike, noise = rng.normal(size=(2_000, 1)), rng.normal(size=(2_000, seeds))
            draws.setdefault(tuple(order[: t + 1]), own**0.5 * alike + (1 - own) ** 0.5 * noise)
    runs = [sum(draws[tuple(order[: t + 1])] for t in range(len(order))) for order in orders]
    found = difference + sd * np.concatenate(runs, axis=1) / len(orders[0]) ** 0.5
    clusters = block_clusters(tuple((" > ".join(order), seed) for order in orders for seed in range(seeds)))
    return float(np.mean([paired_difference(d, 0 * d, clusters=clusters).p < LEVEL for d in found]))


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("name", "tasks", "seeds", "difference", "own", "needed"),
    [
        ("williams", 8, 1, 3.5, 0.0, 8),  # blocks without shared stages
        ("latin", 4, 2, 4.4, 0.3, 7),
        ("shared_prefix", 6, 2, 2.8, 0.0, 11),
    ],
)
def test_the_report_detects_the_difference_on_orders_needed_and_not_on_fewer(
    name, tasks, seeds, difference, own, needed
):
    orders = design(name, "abcdefgh"[:tasks], 100)
    assert orders_needed(difference, 3.0, orders, seeds, own) == needed
    assert 0.75 < simulated(orders[:needed], seeds, difference, 3.0, own) < 0.9
    assert simulated(orders[: needed - 1], seeds, difference, 3.0, own) < POWER


@pytest.mark.statistics
def test_the_report_detects_the_difference_on_seeds_needed_of_one_order_and_not_on_fewer():
    seeds = blocks_needed(3.0, 3.0)
    assert seeds == 10
    assert (
        simulated(["abcd"], seeds - 1, 3.0, 3.0, 0.0)
        < POWER
        < simulated(["abcd"], seeds, 3.0, 3.0, 0.0)
        < 0.9
    )


def test_all_orders_of_four_tasks_may_be_too_few():
    # 24 orders share so many stages that they are worth 24 / 2.5 blocks, on 3 degrees of freedom.
    n, freedom = last(effective_samples(design("all", "abcd"), 1))
    assert (n, freedom) == pytest.approx((9.6, 3))
    assert power(n, 3.0, 3.0) >= 0.75 > power(n, 3.0, 3.0, freedom)
    assert orders_needed(3.0, 3.0, design("all", "abcd"), 1) is None


def test_the_design_effect_is_the_variance_of_a_mean_of_shared_stages():
    # The model: a run's difference is the sum of one draw for each of its stages, of variance 1/T.
    orders = design("shared_prefix", "abcd", prefix_length=2, suffixes=2)
    rng, draws = np.random.default_rng(2), {}
    for order in orders:
        for t in range(4):
            draws.setdefault(order[: t + 1], rng.normal(0, 0.5, 20_000))
    mean = np.mean([draws[order[: t + 1]] for order in orders for t in range(4)], axis=0) * 4
    assert mean.var() * len(orders) == pytest.approx(last(design_effects(orders)), rel=0.04)
