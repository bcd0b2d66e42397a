"""How many blocks a comparison needs."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dgg_ray.orders import design
from dgg_ray.power import (
    LEVEL,
    POWER,
    between,
    design_effect,
    detectable,
    fewest,
    needed,
    power,
    worth,
)

SPREADS = st.floats(0.1, 20)


@pytest.mark.parametrize(("sd", "normal"), [(1, 4), (2, 13), (3.2, 32)])
def test_blocks_needed_are_two_or_three_more_than_the_normal_approximation_says(sd, normal):
    # (1.96 + 0.84)² (sd / 1.6)², rounded up: 3.07, 12.3, 31.4
    assert normal == np.ceil((1.960 + 0.8416) ** 2 * (sd / 1.6) ** 2)
    assert normal + 2 <= needed(1.6, sd) <= normal + 3


def test_published_sample_sizes_are_found():
    # Cohen's d of 0.8, 0.5, 0.2 in a paired t test, two-sided 5 %, power 80 % (G*Power 3.1: 15, 34, 199)
    assert [needed(d, 1.0) for d in (0.8, 0.5, 0.2)] == [15, 34, 199]


@pytest.mark.parametrize(("n", "difference", "sd"), [(4, 1.6, 1.0), (6, 2.0, 2.0), (15, 1.6, 2.0)])
def test_power_is_the_share_of_simulated_studies_that_see_the_difference(n, difference, sd):
    d = np.random.default_rng(1).normal(difference, sd, size=(20_000, n))
    seen = stats.ttest_1samp(d, 0, axis=1).pvalue < LEVEL
    assert power(n, difference, sd) == pytest.approx(seen.mean(), abs=0.012)  # 3.4 standard errors


@pytest.mark.parametrize("n", [2, 2.5, 3, 8, 100])
@pytest.mark.parametrize("d", [0.01, 0.3, 1.0, 3.0])
def test_power_agrees_with_the_noncentral_t_distribution(n, d):
    critical, shift = stats.t.ppf(0.975, n - 1), d * n**0.5
    both = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    # SciPy's is nan where the power is nearly 1.
    assert power(n, d, 1.0) == pytest.approx(1.0 if np.isnan(both) else both, abs=1e-5)


@given(n=st.floats(2, 1e4), sd=SPREADS)
def test_the_detectable_difference_is_seen_with_80_percent_power(n, sd):
    assert power(n, detectable(n, sd), sd) == pytest.approx(POWER, abs=1e-6)


@given(difference=st.floats(0.2, 50), sd=SPREADS, effect=st.floats(1, 5), step=st.integers(1, 24))
def test_needed_is_the_fewest_multiple_that_is_enough(difference, sd, effect, step):
    n = needed(difference, sd, effect, step)
    assert n is not None
    assert n % step == 0
    assert power(n / effect, difference, sd) >= POWER > power((n - step) / effect, difference, sd)


def test_one_block_sees_nothing_and_no_million_sees_a_speck():
    assert power(1, 5.0, 1.0) == 0
    assert detectable(1.9, 1.0) == inf
    assert needed(1e-4, 3.0) is None


def test_clusters_count_as_fewer_by_their_shared_stages():
    # 2 clusters of m = 3 orders that share 2 of 5 stages: 1 + (3 - 1) · 0.4
    orders = ["abcde", "abdec", "abecd", "cdabe", "cdbea", "cdeab"]
    assert design_effect(orders) == pytest.approx(1 + 2 * 2 / 5)
    assert design_effect(design("cyclic", "abcdef")) == 1
    assert design_effect([("a", "b", "c"), ("a", "c", "b")]) == pytest.approx(1 + 1 / 3)


@pytest.mark.parametrize("own", [0.0, 0.3, 1.0])
def test_blocks_of_several_seeds_are_worth_what_the_variance_of_their_mean_says(own):
    # Variance 1 of a block, `own` of it the order's: its mean has own / O + (1 - own) / (O S).
    assert 1 / worth(5, 3, own=own) == pytest.approx(own / 5 + (1 - own) / 15)


def test_more_seeds_stop_helping_where_orders_differ():
    assert needed(1.6, 2.0, step=4) == 16
    assert needed(1.6, 2.0, step=4, own=0.3) is None  # never worth more than 4 / 0.3 = 13 blocks, of 15
    assert needed(1.6, 2.0, step=5, own=0.3) == 75  # 15 seeds
    assert power(75 / (1 + 14 * 0.3), 1.6, 2.0) >= POWER > power(70 / (1 + 13 * 0.3), 1.6, 2.0)


def test_where_all_orders_are_taken_none_is_left_to_differ():
    assert [between(0.5, orders, 6) for orders in (1, 2, 6)] == pytest.approx([0.5, 0.4, 0])
    # All six orders of three tasks are worth six blocks a seed less what pairs share: 24 / (4/3) = 18 of 15.
    assert fewest(1.6, 2.0, design("all", "abc"), own=1.0) == (6, 4)


def test_the_design_effect_is_the_variance_of_a_mean_of_shared_stages():
    # The model: a run's difference is the sum of one draw for each of its stages, of variance 1/T.
    orders = design("shared_prefix", "abcd", prefix=2, endings=2)
    rng, draws = np.random.default_rng(2), {}
    for order in orders:
        for t in range(4):
            draws.setdefault(order[: t + 1], rng.normal(0, 0.5, 20_000))
    mean = np.mean([draws[order[: t + 1]] for order in orders for t in range(4)], axis=0) * 4
    assert mean.var() * len(orders) == pytest.approx(design_effect(orders), rel=0.04)
