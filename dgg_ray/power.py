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

That is an assumption, and a cautious one: differences between strategies arise after the first stage.

Further seeds on the same orders tell less where a difference hangs on the order: if a share r of its variance
is an order's own, whatever the seed, the blocks of S seeds count as fewer by 1 + (S - 1) r besides. Of O
orders among all M that there are, r counts as r (M - O) / (M - 1): with all of them none is left to differ by
(Cochran 1977, ch. 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import factorial, inf

import numpy as np

LEVEL, POWER = 0.05, 0.80
MOST = 1_000_000  # blocks


def power(n: float, difference: float, sd: float) -> float:
    """Probability of seeing a true difference; n blocks, not always whole; 0 for fewer than 2. sd > 0."""
    from scipy import special  # late: who only counts stages does not wait for it

    if n < 2:
        return 0.0
    nodes, weights = rule()
    s = np.sqrt(2 * special.gammaincinv((n - 1) / 2, (nodes + 1) / 2) / (n - 1))
    bound, shift = special.stdtrit(n - 1, 1 - LEVEL / 2) * s, difference / sd * n**0.5
    return float(weights @ (special.ndtr(shift - bound) + special.ndtr(-shift - bound)) / 2)


@cache
def rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [-1, 1] and weights; power is known to 1e-5 with so many."""
    return np.polynomial.legendre.leggauss(200)


def detectable(n: float, sd: float) -> float:
    """Smallest true difference seen with 80 % power, in the unit of `sd`; infinite below 2 blocks."""
    from scipy.optimize import root_scalar

    if n < 2:
        return inf
    # A difference of 100 σ is seen by 2 blocks.
    return sd * float(root_scalar(lambda d: power(n, d, 1.0) - POWER, bracket=(1e-6, 100.0)).root)


def needed(difference: float, sd: float, effect: float = 1.0, step: int = 1, own: float = 0.0) -> int | None:
    """Fewest blocks, a multiple of `step`, that see a true difference with 80 % power.

    effect: D above, by which the blocks count as fewer; own: r above, where a step is a seed on all
    orders. None where a million blocks are not enough.
    """

    def seen(steps: int) -> bool:
        return power(worth(step, steps, effect, own), difference, sd) >= POWER

    low, high = 0, MOST // step
    if not seen(high):
        return None
    while high - low > 1:  # power grows with the blocks
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high * step


def worth(orders: int, seeds: int, effect: float = 1.0, own: float = 0.0) -> float:
    """Independent blocks that all these orders with each seed are worth, see above."""
    return orders * seeds / (effect * (1 + (seeds - 1) * own))


def between(own: float, orders: int, of: int) -> float:
    """What r counts as where so many orders are taken of all there are."""
    return own * (of - orders) / max(of - 1, 1)


def fewest(
    difference: float, sd: float, orders: Sequence[Sequence[str]], own: float
) -> tuple[int, int] | None:
    """(Orders, seeds) that see a true difference, the fewest seeds first: of these orders the first ones.

    own: r, of all orders. None where a million blocks are not enough.
    """
    of = factorial(len(orders[0]))
    share = between(own, len(orders), of)
    blocks = needed(difference, sd, design_effect(orders), len(orders), share)
    if blocks is None:
        return None
    seeds, beginnings, pairs = blocks // len(orders), Counter[tuple[str, ...]](), 0
    for count, order in enumerate(orders, start=1):
        for t in range(len(order)):
            beginning = tuple(order[: t + 1])
            pairs += 2 * beginnings[beginning] + 1  # m² → (m + 1)²
            beginnings[beginning] += 1
        effect = pairs / beginnings.total()
        if power(worth(count, seeds, effect, between(own, count, of)), difference, sd) >= POWER:
            return count, seeds
    return len(orders), seeds


def design_effect(orders: Sequence[Sequence[str]]) -> float:
    """D of runs over these orders with one seed; 1 where no two orders begin alike.

    Other seeds share nothing, so it holds for any number of seeds.
    """
    beginnings = Counter(tuple(order[: t + 1]) for order in orders for t in range(len(order)))
    # A beginning that m runs share makes m² pairs of runs with that stage in common.
    return sum(m * m for m in beginnings.values()) / sum(beginnings.values())
