"""How sure one can be of a mean: Student's t over blocks, paired differences, clusters.

A block is one order of the tasks with one seed. Settings are judged on the same blocks, with common random
numbers, so they are compared within blocks; the spread over blocks is what an interval measures.
Blocks that share an order, or a stage, are not independent: `clusters_of` says which, and an interval is
over these; nor are blocks that share a seed (`ways_of`). Held-out blocks share nothing, each is a cluster of
its own. Two questions have two intervals: what other orders and seeds would give (`mean_interval`), and what
other seeds would give on the orders that were run (`fixed_orders`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtr, stdtrit  # scipy.stats takes seconds to import

FEWEST = 3  # independent values that an interval is given for: t(0.975) is 12.7 for two of them
NONE = 1e-12  # a spread at the level of rounding is none: 0.3 - 0.2 and 0.2 - 0.1 differ by 3e-17
ANYWHERE = (-np.inf, np.inf)


class Interval(NamedTuple):
    """mean, and the bounds between which the true mean lies with the level asked for.

    n: of independent clusters; values: their means. The bounds are nan for fewer than `FEWEST` of them, and
    where all are equal: there the values are to be shown.
    """

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = ()


class Difference(NamedTuple):
    """mean of a - b with its interval; p: two-sided, of a mean difference of 0; n, values: as of Interval."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    values: tuple[float, ...] = ()


@lru_cache(maxsize=4096)
def clusters_of(blocks: tuple[tuple[str, int], ...], by_seed: bool = False) -> tuple[int, ...]:
    """The cluster of each block (task names joined by " > ", seed): blocks of different ones share nothing.

    Two blocks are of one cluster if they share an order, a first stage (its task and seed), or with
    `by_seed` a seed alone (one joint run serves all orders of a seed); and so on from there. A stage that
    two runs share is trained once, and its noise is in both of them. Where there is a single order the
    mean is that order's, and its seeds are independent.
    """
    orders, seeds = zip(*blocks, strict=True) if blocks else ((), ())
    first = seeds if by_seed else [(order.split(" > ")[0], seed) for order, seed in blocks]
    code, before = list(range(len(blocks))), None
    while code != before:
        before = code
        for key in (first, orders) if len(set(orders)) > 1 else (first,):
            least: dict[object, int] = {}
            for name, number in zip(key, code, strict=True):
                least[name] = min(number, least.get(name, number))
            code = [least[name] for name in key]
    return tuple(code)


@lru_cache(maxsize=4096)
def ways_of(blocks: tuple[tuple[str, int], ...], by_seed: bool = False) -> tuple[tuple[int, int], ...]:
    """For each block its cluster by order, as in `clusters_of`, and its seed: (N, 2) for `mean_interval`.

    Orders of one seed share LoRA's first weights, replay samples, gates and shuffles, also where they share
    no stage. by_seed: a joint run serves all orders of a seed, so that a single seed is a single cluster.
    """
    seeds = [seed for _, seed in blocks]
    order = clusters_of(blocks) if not by_seed or len(set(seeds)) > 1 else [0] * len(blocks)
    return tuple(zip(order, seeds, strict=True))


def mean_interval(
    values: ArrayLike,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
    within: tuple[float, float] = ANYWHERE,
) -> Interval:
    """Student's t interval for the mean of values that are independent, or so from cluster to cluster.

        mean ± t(level, f) · s

    with s and f of `standard_error`; nan values are left out. within: the scale of the values, which no
    bound goes beyond, see `on_scale`. The mean is nan for no value.
    """
    x = np.asarray(values, dtype=float)
    known = ~np.isnan(x)
    x = x[known]
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    kept = np.arange(len(x)) if clusters is None else np.asarray(clusters)[known]
    error, freedom, n = standard_error(x, kept)
    mean, each = float(x.mean()), cluster_means(x, kept)
    if n < FEWEST or not error >= NONE:
        return Interval(mean, float("nan"), float("nan"), n, each)
    return Interval(mean, *on_scale(mean, half_of(error, freedom, level), within), n, each)


def half_of(error: float, freedom: float, level: float) -> float:
    """Half the width of the t interval of a mean with that error."""
    return float(stdtrit(freedom, (1 + level) / 2)) * error


def on_scale(mean: float, half: float, within: tuple[float, float]) -> tuple[float, float]:
    """Bounds of a mean of values on a scale from a to b.

        u = (mean - a) / (b - a)        u ± h        and        logit⁻¹( logit u ± h / (u (1 - u)) )

    whichever is wider, cut off at the ends; h: half the width of the t interval, on the scale from 0 to 1.
    The second is the t interval of the mean's own logit (by the delta method, so it is still the mean that it
    speaks of). Near an end scores are skewed, and the t interval ends too early on the side away from it:
    of 3 to 8 blocks it covers 88 to 94 % there, this one 94 to 96 %; in the middle the two are one
    (benchmarks/coverage.py).
    """
    a, b = within
    if not np.isfinite([a, b]).all():
        return mean - half, mean + half
    u, h = (mean - a) / (b - a), half / (b - a)
    low, high = u - h, u + h
    if 0 < u < 1:
        odds = np.log(u / (1 - u)) + np.array([-1, 1]) * h / (u * (1 - u))
        inner = 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
        low, high = min(low, float(inner[0])), max(high, float(inner[1]))
    return a + (b - a) * max(low, 0.0), a + (b - a) * min(high, 1.0)


def cluster_means(x: np.ndarray, clusters: np.ndarray) -> tuple[float, ...]:
    """The mean of each cluster's values (of the partition that decides), in the order of their numbers."""
    code = told_apart(np.asarray(clusters).reshape(len(x), -1).T)[0]
    return tuple((np.bincount(code, x) / np.bincount(code)).tolist())


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
    within: tuple[float, float] = ANYWHERE,
) -> Difference:
    """Mean of a - b over pairs, its t interval, and the paired t test's two-sided p; clusters: of the pairs.

    A pair with a nan is left out. within: what a difference can be; bounds are cut off there. p is nan where
    the bounds are: for fewer than `FEWEST` clusters, and where all differences are equal: without spread
    there is nothing to test against.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    known = ~np.isnan(d)
    kept = None if clusters is None else np.asarray(clusters)[known]
    mean, low, high, n, each = mean_interval(d[known], level, kept)
    low, high = max(low, within[0]), min(high, within[1])
    if np.isnan(low):
        return Difference(mean, low, high, float("nan"), n, each)
    error, freedom, _ = standard_error(d[known], kept)
    return Difference(mean, low, high, float(2 * stdtr(freedom, -abs(mean) / error)), n, each)


def standard_error(x: np.ndarray, clusters: np.ndarray | None) -> tuple[float, float, int]:
    """(s of the mean of x, its degrees of freedom f, number of clusters G); nan for fewer than 2.

        s² = (G-1)/G · Σ_g (x̄_(g) - mean x̄_(·))²        f = (G + G*) / 2 - 1        G* = (Σ n_g)² / Σ n_g²

    x̄_(g): mean without cluster g, of n_g values: the delete-a-group jackknife (Miller 1974, Biometrika 61).
    Of single values s is their standard deviation over √n, and f = n - 1. Of clusters of unequal sizes
    the large ones decide: G* is how many equal ones they are worth where values of a cluster are all alike
    (Kish, Survey Sampling, 1965). Runs of a cluster are so in part, hence half-way: where 95 % is asked for,
    intervals cover 93.9 to 95.6 % with G - 1, 95 to 96.5 % with G* - 1 (3 to 24 orders of 4 to 8 tasks).
    f is at least 1.

    clusters: (N,), or (N, 2) from `ways_of`, by order and by seed. Where one contains the other it alone
    counts; a single seed says nothing of other seeds, and is left out. Where they cross, both bring noise:

        s² = s_o² + s_s²        f = s⁴ / (s_o⁴ / f_o + s_s⁴ / f_s)        if  s_s² > s_i², else s_o and f_o

    (Satterthwaite 1946, Biometrics 2), and G is that of the orders. s_i² = mean e² / ((G_o - 1)(G_s - 1)), of
    what is left beside the means of orders and seeds, is how far seeds' means differ without an effect of
    their own. Intervals cover 95 to 98 %, but 90 to 94 % where two seeds that differ half as much again as
    orders do serve six orders or more (benchmarks/coverage.py).
    """
    if clusters is None:
        clusters = np.arange(len(x))
    ways = np.asarray(clusters).reshape(len(x), -1).T
    kept = told_apart(ways)
    error, freedom, G = jackknife(x, kept[0])
    if len(kept) == 1 or G < 2:
        return error, freedom, G
    of_seeds, freedom_of_seeds, _ = jackknife(x, kept[1])
    if of_seeds**2 > interplay(x, *kept):
        parts = np.array([error**2, of_seeds**2])
        freedom = max(float(parts.sum() ** 2 / (parts**2 / [freedom, freedom_of_seeds]).sum()), 1.0)
        error = float(parts.sum() ** 0.5)
    return error, freedom, G


def interplay(x: np.ndarray, orders: np.ndarray, seeds: np.ndarray) -> float:
    """s_i² of `standard_error`, from the means of what an order's cluster and a seed have in common.

    Orders of one cluster differ too, equally with each seed, and that is no interplay.
    """
    means = (np.bincount(code, x) / np.bincount(code) for code in (orders, seeds))
    e = x + x.mean() - sum(mean[code] for mean, code in zip(means, (orders, seeds), strict=True))
    cell = np.unique(orders * (seeds.max() + 1) + seeds, return_inverse=True)[1]
    e = (np.bincount(cell, e) / np.bincount(cell))[cell]
    return float((e**2).mean()) / int(orders.max() * seeds.max())


def told_apart(ways: np.ndarray) -> list[np.ndarray]:
    """The partitions that count, each as numbers from 0: of two the one that contains the other, or both."""
    code = [np.unique(way, return_inverse=True)[1] for way in ways]
    if len(code) < 2:
        return code
    orders, seeds = (int(way.max()) + 1 for way in code)
    if seeds == 1:
        return code[:1]
    both = len(np.unique(code[0] * seeds + code[1]))
    return code[:1] if both == seeds else code[1:] if both == orders else code


def jackknife(x: np.ndarray, code: np.ndarray) -> tuple[float, float, int]:
    """`standard_error` over one partition, clusters numbered from 0."""
    sizes = np.bincount(code)
    G = len(sizes)
    if G < 2:
        return float("nan"), float("nan"), G
    y = x - x.mean()  # of small numbers: less rounding
    left = -np.bincount(code, y) / (len(x) - sizes)
    alike = len(x) ** 2 / float((sizes**2).sum())
    freedom = max((G + alike) / 2 - 1, 1.0)
    return float(((G - 1) / G * ((left - left.mean()) ** 2).sum()) ** 0.5), freedom, G


def fixed_orders(
    values: ArrayLike,
    blocks: Sequence[tuple[str, int]],
    level: float = 0.95,
    within: tuple[float, float] = ANYWHERE,
) -> Interval:
    """Student's t interval for the mean on the orders that were run: seeds are the replicates.

        s² = 1/N² · Σ_s ( Σ_o e_os )²        e_os = (x_os - x̄_o) · √(S_o / (S_o - 1))
        f = Σ_c (S_c - 1)

    x_os: value of order o with seed s; x̄_o: mean of the order's S_o seeds; N values in all. Orders that share
    a seed share LoRA's first weights, samples and shuffles, so a seed's deviations are summed before they are
    squared. c: a group of orders tied by common seeds, S_c of them. Of crossed orders and seeds it is the t
    interval over the seeds' means, of orders with seeds of their own that of stratified samples.
    n: f + 1; values: the seeds' means. No bounds where some order has a single seed, or n < `FEWEST`.
    """
    x = np.asarray(values, dtype=float)
    known = ~np.isnan(x)
    x, kept = x[known], [block for block, there in zip(blocks, known, strict=True) if there]
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    order, seed = (
        np.unique([str(part) for part in parts], return_inverse=True)[1] for parts in zip(*kept, strict=True)
    )
    sizes, tied = np.bincount(order), np.zeros(len(x), dtype=int)
    if len(sizes) > 1:
        tied = np.array(clusters_of(tuple(kept), by_seed=True))
    own = np.unique(np.column_stack([tied, seed]), axis=0)
    freedom = len(own) - len(set(tied.tolist()))
    mean, each = float(x.mean()), cluster_means(x, seed)
    if sizes.min() < 2:
        return Interval(mean, float("nan"), float("nan"), 1, each)
    e = (x - (np.bincount(order, x) / sizes)[order]) * np.sqrt(sizes / (sizes - 1))[order]
    error = float(np.sqrt((np.bincount(seed, e) ** 2).sum())) / len(x)
    if freedom + 1 < FEWEST or not error >= NONE:
        return Interval(mean, float("nan"), float("nan"), freedom + 1, each)
    return Interval(mean, *on_scale(mean, half_of(error, freedom, level), within), freedom + 1, each)


def holm(p: ArrayLike) -> np.ndarray:
    """p values of m tests, adjusted so that a false one is among those below 5 % with 5 % at most.

    Holm 1979, Scandinavian Journal of Statistics 6: the k-th smallest times m - k + 1, never falling. nan is
    no test.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # nan last
    m = int((~np.isnan(p)).sum())
    adjusted = np.full(len(p), np.nan)
    factor = m - np.arange(m)
    adjusted[order[:m]] = np.minimum(np.maximum.accumulate(p[order[:m]] * factor), 1)
    return adjusted


def clustered_jackknife(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(estimate, low, high) where runs share work: whole clusters of them are left out in turn.

        s² = (G-1)/G · Σ_g (θ_(g) - mean θ_(·))²        estimate ± t(level, G-1) · s

    statistic: (samples, G) of 0 and 1, which clusters a sample holds → (samples, k), k values at once.
    The delete-a-group jackknife (Miller 1974, Biometrika 61) with Student's t on the clusters: of the mean
    of equal clusters it is the t interval over their means, which holds its level however unequal their
    spreads are (Ibragimov & Müller 2010, JBES 28). Bounds are nan where the statistic is nan without some
    cluster, or the same without any, and for fewer than `FEWEST` clusters.

    Against resampling clusters with replacement: on 4 to 8 clusters percentiles of that bootstrap cover
    80 to 90 % where 95 % is asked for, and its studentised form needs six of them; below that its samples
    are too few and too alike (77 % for a spread with 4). Measured in test_robustness.py: 93 to 97 %.
    """
    kept = np.vstack([np.ones((1, clusters)), 1 - np.eye(clusters)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a statistic that a sample is too small for
        values = np.asarray(statistic(kept), dtype=float).reshape(clusters + 1, -1)
        estimate, left = values[0], values[1:]
        spread = (clusters - 1) ** 0.5 * left.std(axis=0)
        enough = (spread >= NONE) & (clusters >= FEWEST)
        half = half_of(1.0, max(clusters - 1, 1), level) * np.where(enough, spread, np.nan)
    return estimate, estimate - half, estimate + half


def expected_range(n: int) -> float:
    """Mean distance of the largest from the smallest of n independent normal values, in standard deviations.

    d2(n) = ∫ 1 - Φ(x)ⁿ - (1 - Φ(x))ⁿ dx            (Tippett 1925, Biometrika 17)
    """
    x = np.linspace(-9, 9, 3601)
    below = ndtr(x)
    return float(np.trapezoid(1 - below**n - (1 - below) ** n, x))
