"""How many blocks a comparison needs: power of the paired t test (two-sided, level 5 %).

With n paired differences of spread σ around a true difference δ, the test's t is noncentral Student with
ν = n - 1 degrees of freedom and noncentrality λ = δ √n / σ (Cohen 1988, ch. 2): t = (z + λ) / s with z normal
and s² = χ²(ν) / ν. Given s its two tails are known, so with c = t(0.975, ν) and s(u) the u-quantile of s

    power = P(|t| > c) = ∫ Φ(λ - c s(u)) + Φ(-λ - c s(u)) du  over [0, 1]

by Gauss and Legendre's rule; SciPy's noncentral t and F give nan where the power is nearly 1. For many blocks
n → (1.96 + 0.84)² (σ/δ)² at a power of 80 %.

Blocks whose runs share stages count as fewer. Let ρ(i, j) be the share of their stages that runs i and j
have in common. If each stage brings an equal and independent part of a difference's spread, the mean over N
blocks has the variance σ²/N · D, and N blocks are worth N / D (the design effect, Kish 1965):

    D = mean over i of  Σ_j ρ(i, j)            1 + (m - 1) ρ for clusters of m runs

That is an assumption, and a cautious one: differences between strategies arise after the first stage. Orders
with seeds of their own share no stage (D = 1). Orders that share a seed also share what is drawn from it, of
which D knows nothing: there the difference that is seen is that seed's.

Further seeds on the same orders tell less where a difference hangs on the order: if a share r of its variance
is an order's own, whatever the seed, the blocks of S seeds count as fewer by 1 + (S - 1) r besides.

How well the error itself is known, ν, is another matter. The report takes it from clusters of blocks that
share an order or a first stage (intervals.py): of several orders there are no more than tasks to begin with,
and seeds add none, unless each order has its own. The seeds of a single order are independent, and the mean
is that order's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from math import inf
from typing import NamedTuple

import numpy as np

LEVEL, POWER = 0.05, 0.80
MOST = 1_000_000  # blocks


class Worth(NamedTuple):
    """blocks: independent ones that a comparison's are worth; freedom: ν of its test, nan where the
    clusters are too few for one."""

    blocks: float
    freedom: float


def power(n: float, difference: float, sd: float, freedom: float | None = None) -> float:
    """Probability of seeing a true difference; n: worth in independent blocks. sd > 0.

    freedom: of the test; n - 1 where none is given. 0 where it is below 1 or nan, or without it for fewer
        blocks than an interval is given for.
    """
    from scipy import special  # late: who only counts stages does not wait for it

    from dgg_ray.stats.intervals import FEWEST

    freedom = (n - 1 if n >= FEWEST else 0.0) if freedom is None else freedom
    if not freedom >= 1:
        return 0.0
    nodes, weights = rule()
    s = np.sqrt(2 * special.gammaincinv(freedom / 2, (nodes + 1) / 2) / freedom)
    bound, shift = special.stdtrit(freedom, 1 - LEVEL / 2) * s, difference / sd * n**0.5
    return float(weights @ (special.ndtr(shift - bound) + special.ndtr(-shift - bound)) / 2)


@cache
def rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [-1, 1] and weights; power is known to 1e-5 with so many."""
    return np.polynomial.legendre.leggauss(200)


def detectable(n: float, sd: float, freedom: float | None = None) -> float:
    """Smallest true difference seen with 80 % power, in the unit of `sd`; infinite where power is 0."""
    from scipy.optimize import root_scalar

    if power(n, 1.0, 1.0, freedom) == 0:
        return inf
    # A difference of 100 σ is seen by 3 blocks, and by 2 clusters.
    return sd * float(root_scalar(lambda d: power(n, d, 1.0, freedom) - POWER, bracket=(1e-6, 100.0)).root)


def needed(difference: float, sd: float) -> int | None:
    """Fewest independent blocks that see a true difference with 80 % power; None: a million do not."""
    low, high = 0, MOST
    if power(high, difference, sd) < POWER:
        return None
    while high - low > 1:  # power grows with the blocks
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, sd) >= POWER else (middle, high)
    return high


def worths(
    orders: Sequence[Sequence[str]],
    seeds: int,
    own: float = 0.0,
    together: bool = False,
    apart: bool = False,
) -> Iterator[Worth]:
    """Of the first order, of the first two and so on, each with all seeds, in a comparison of these orders.

    own: r above. together: one run of a seed serves all orders. apart: no two orders share a seed.
    """
    from dgg_ray.stats.intervals import FEWEST, clusters_of, standard_error  # late, as above

    blocks = tuple(
        (" > ".join(order), seed + i * seeds * apart)
        for i, order in enumerate(orders)
        for seed in range(seeds)
    )
    clusters = np.array(clusters_of(blocks, by_seed=together))
    again = 1 + (seeds - 1) * own if len(orders) > 1 else 1.0
    for count, effect in enumerate(effects(orders), start=1):
        n = count * seeds
        _, freedom, those = standard_error(np.zeros(n), clusters[:n])
        freedom = freedom if those >= FEWEST else np.nan
        alike = 1.0 if apart else effect
        yield Worth(seeds if together and not apart else n / (alike * again), freedom)


def fewest(
    difference: float,
    sd: float,
    orders: Sequence[Sequence[str]],
    seeds: int,
    own: float = 0.0,
    apart: bool = False,
) -> int | None:
    """How many of these orders, the first ones, see a true difference with so many seeds; None: not all."""
    for count, (n, freedom) in enumerate(worths(orders, seeds, own, apart=apart), start=1):
        if power(n, difference, sd, freedom) >= POWER:
            return count
    return None


def effects(orders: Sequence[Sequence[str]]) -> Iterator[float]:
    """D of a run over the first order, the first two and so on; 1 while no two begin alike.

    Other seeds share nothing, so it holds for any number of seeds.
    """
    beginnings, pairs = Counter[tuple[str, ...]](), 0
    for count, order in enumerate(orders, start=1):
        for t in range(len(order)):
            beginning = tuple(order[: t + 1])
            # A beginning that m runs share makes m² pairs of runs with that stage in common.
            pairs += 2 * beginnings[beginning] + 1  # m² → (m + 1)²
            beginnings[beginning] += 1
        yield pairs / (count * len(order))
