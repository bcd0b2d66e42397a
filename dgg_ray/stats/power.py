"""Power analysis: how many blocks a comparison needs (paired t test, two-sided, level 5 %).

With n paired differences of standard deviation σ around a true difference δ, the test's t is noncentral
Student with ν = n - 1 degrees of freedom and noncentrality λ = δ √n / σ (Cohen 1988, ch. 2): t = (z + λ) / s
with z normal and s² = χ²(ν) / ν. Given s, both tails are known. So with c = t(0.975, ν) and s(u) the
u-quantile of s

    power = P(|t| > c) = ∫ Φ(λ - c s(u)) + Φ(-λ - c s(u)) du  over [0, 1]

by Gauss–Legendre quadrature; SciPy's noncentral t and F return nan where the power is nearly 1. For many
blocks n → (1.96 + 0.84)² (σ/δ)² at a power of 80 %.

Blocks whose runs share stages count as fewer. Let ρ(i, j) be the share of their stages that runs i and j have
in common. If each stage contributes an equal and independent part of a difference's variance, the mean over N
blocks has the variance σ²/N · D. So N blocks are worth N / D (the design effect, Kish 1965):

    D = mean over i of  Σ_j ρ(i, j)            1 + (m - 1) ρ for clusters of m runs

That assumption is cautious: differences between strategies arise after the first stage. Orders with seeds of
their own share no stage (D = 1). Orders that share a seed also share what is drawn from it. D ignores this:
there, the observed difference is that seed's.

Further seeds on the same orders add less where a difference depends on the order. If a share r of its
variance belongs to an order, whatever the seed, the blocks of S seeds count as fewer by a further factor 1 +
(S - 1) r.

The degrees of freedom ν, how well the error itself is known, are another matter. The report takes ν from
clusters of blocks that share an order or a first stage (intervals.py). Several orders have at most as many
clusters as first tasks, and seeds add none, unless each order has its own. The seeds of a single order are
independent, and the mean is that order's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from math import inf
from typing import NamedTuple

import numpy as np

LEVEL, POWER = 0.05, 0.80
MAX_BLOCKS = 1_000_000


class EffectiveSample(NamedTuple):
    """The effective sample size of a comparison.

    blocks: number of independent blocks that its blocks are worth.
    freedom: ν of its test; nan where there are too few clusters for one.
    """

    blocks: float
    freedom: float


def power(n: float, difference: float, sd: float, freedom: float | None = None) -> float:
    """Return the probability that the test detects a true difference.

    n: effective number of independent blocks; sd: σ, above 0; freedom: ν, n - 1 by default. The power is 0
    where ν is below 1 or nan, or, by default, where there are fewer blocks than an interval needs.
    """
    from scipy import special  # late: a plan that only counts stages does not load SciPy

    from dgg_ray.stats.intervals import MIN_CLUSTERS

    if freedom is None:
        freedom = n - 1 if n >= MIN_CLUSTERS else 0.0
    if not freedom >= 1:
        return 0.0
    nodes, weights = quadrature_rule()
    s = np.sqrt(2 * special.gammaincinv(freedom / 2, (nodes + 1) / 2) / freedom)
    critical, shift = special.stdtrit(freedom, 1 - LEVEL / 2) * s, difference / sd * n**0.5
    return float(weights @ (special.ndtr(shift - critical) + special.ndtr(-shift - critical)) / 2)


@cache
def quadrature_rule() -> tuple[np.ndarray, np.ndarray]:
    """Return 200 Gauss–Legendre nodes in [-1, 1] and their weights, which give the power to 1e-5."""
    return np.polynomial.legendre.leggauss(200)


def detectable_difference(n: float, sd: float, freedom: float | None = None) -> float:
    """Return the smallest true difference detected with 80 % power, in the unit of `sd`.

    It is infinite where the power is 0.
    """
    from scipy.optimize import root_scalar

    if power(n, 1.0, 1.0, freedom) == 0:
        return inf
    # 3 blocks, and 2 clusters, detect a difference of 100 σ.
    bracket = (1e-6, 100.0)
    return sd * float(root_scalar(lambda d: power(n, d, 1.0, freedom) - POWER, bracket=bracket).root)


def blocks_needed(difference: float, sd: float) -> int | None:
    """Return the fewest independent blocks that detect a true difference with 80 % power.

    None: a million blocks are too few.
    """
    low, high = 0, MAX_BLOCKS
    if power(high, difference, sd) < POWER:
        return None
    while high - low > 1:  # power grows with the blocks
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, sd) >= POWER else (middle, high)
    return high


def effective_samples(
    orders: Sequence[Sequence[str]],
    seeds: int,
    order_share: float = 0.0,
    joint: bool = False,
    own_seeds: bool = False,
) -> Iterator[EffectiveSample]:
    """Yield the effective sample of the first order, of the first two and so on, each with all seeds.

    order_share: r above. joint: one run of a seed serves all orders. own_seeds: no two orders share a seed.
    """
    from dgg_ray.stats.intervals import MIN_CLUSTERS, block_clusters, standard_error  # late, as above

    blocks = tuple(
        (" > ".join(order), seed + i * seeds if own_seeds else seed)
        for i, order in enumerate(orders)
        for seed in range(seeds)
    )
    clusters = np.array(block_clusters(blocks, by_seed=joint))
    seed_effect = 1 + (seeds - 1) * order_share if len(orders) > 1 else 1.0
    for count, effect in enumerate(design_effects(orders), start=1):
        n = count * seeds
        _, freedom, cluster_count = standard_error(np.zeros(n), clusters[:n])
        if cluster_count < MIN_CLUSTERS:
            freedom = np.nan
        if joint and not own_seeds:
            yield EffectiveSample(seeds, freedom)
        else:
            yield EffectiveSample(n / ((1.0 if own_seeds else effect) * seed_effect), freedom)


def orders_needed(
    difference: float,
    sd: float,
    orders: Sequence[Sequence[str]],
    seeds: int,
    order_share: float = 0.0,
    own_seeds: bool = False,
) -> int | None:
    """Return how many of these orders, from the first, detect a true difference; None: all are too few."""
    samples = effective_samples(orders, seeds, order_share, own_seeds=own_seeds)
    for count, (n, freedom) in enumerate(samples, start=1):
        if power(n, difference, sd, freedom) >= POWER:
            return count
    return None


def design_effects(orders: Sequence[Sequence[str]]) -> Iterator[float]:
    """Yield D of a run over the first order, the first two and so on; 1 while no two begin alike.

    Runs of different seeds share nothing, so D holds for any number of seeds.
    """
    runs_by_beginning, pairs = Counter[tuple[str, ...]](), 0
    for count, order in enumerate(orders, start=1):
        for t in range(len(order)):
            beginning = tuple(order[: t + 1])
            # A beginning that m runs share makes m² pairs of runs with that stage in common.
            pairs += 2 * runs_by_beginning[beginning] + 1  # m² → (m + 1)²
            runs_by_beginning[beginning] += 1
        yield pairs / (count * len(order))
