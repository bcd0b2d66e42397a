"""Confidence intervals of means: Student's t over blocks, for means, paired differences and clusters.

A block is one order of the tasks with one seed. Settings are evaluated on the same blocks, with common random
numbers, and compared within blocks. An interval measures the spread over blocks.

Blocks that share an order or a stage are not independent. `block_clusters` groups them, and an interval is
over these clusters. Blocks that share a seed are not independent either (`two_way_clusters`). Held-out blocks
share nothing, so each is a cluster of its own.

There are two questions, with two intervals. `mean_interval` says what other orders and seeds would give.
`fixed_orders_interval` says what other seeds would give on the orders that were run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtr, stdtrit  # scipy.stats takes seconds to import

MIN_CLUSTERS = 3  # the fewest independent values with an interval: t(0.975) is 12.7 for two of them
ROUNDING_ERROR = 1e-12  # smaller spreads count as none: 0.3 - 0.2 and 0.2 - 0.1 differ by 3e-17
UNBOUNDED = (-np.inf, np.inf)


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval.

    n: number of independent clusters; values: their means. The bounds are nan for fewer than `MIN_CLUSTERS`
    of them, and where all are equal; then the values are shown instead.
    """

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = ()


class Difference(NamedTuple):
    """The mean of a - b with its interval.

    p: two-sided, of the hypothesis that the mean difference is 0; n, values: as in Interval.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    values: tuple[float, ...] = ()


@lru_cache(maxsize=4096)
def block_clusters(blocks: tuple[tuple[str, int], ...], by_seed: bool = False) -> tuple[int, ...]:
    """Return the cluster of each block (task names joined by " > ", seed); different clusters share nothing.

    Two blocks belong to one cluster if they share an order, or a first stage (its task and seed), or with
    `by_seed` a seed alone (one joint run serves all orders of a seed); and so on, transitively. A stage that
    two runs share is trained once, and its noise is in both of them. With a single order, the mean is that
    order's, and its seeds are independent.
    """
    orders, seeds = zip(*blocks, strict=True) if blocks else ((), ())
    first = seeds if by_seed else [(order.split(" > ")[0], seed) for order, seed in blocks]
    links = (first, orders) if len(set(orders)) > 1 else (first,)
    labels, before = list(range(len(blocks))), None
    while labels != before:
        before = labels
        for link in links:  # all blocks with an equal link get the lowest label among them
            lowest: dict[object, int] = {}
            for shared, label in zip(link, labels, strict=True):
                lowest[shared] = min(label, lowest.get(shared, label))
            labels = [lowest[shared] for shared in link]
    return tuple(labels)


@lru_cache(maxsize=4096)
def two_way_clusters(
    blocks: tuple[tuple[str, int], ...], by_seed: bool = False
) -> tuple[tuple[int, int], ...]:
    """Return each block's cluster by order, as in `block_clusters`, and its seed: (N, 2) for `mean_interval`.

    Orders of one seed share LoRA's initial weights, replay samples, gates and shuffles, even where they share
    no stage. by_seed: a joint run serves all orders of a seed, so a single seed is a single cluster.
    """
    seeds = [seed for _, seed in blocks]
    by_order = block_clusters(blocks) if not by_seed or len(set(seeds)) > 1 else [0] * len(blocks)
    return tuple(zip(by_order, seeds, strict=True))


def mean_interval(
    values: ArrayLike,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
    within: tuple[float, float] = UNBOUNDED,
) -> Interval:
    """Return Student's t interval for the mean of values that are independent, or so between clusters.

        mean ± t(level, f) · s

    with s and f of `standard_error`. nan values are left out; without any value the mean is nan. within: the
    scale of the values, which no bound exceeds; see `bounds_on_scale`.
    """
    x = np.asarray(values, dtype=float)
    known = ~np.isnan(x)
    x = x[known]
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    of_known = np.arange(len(x)) if clusters is None else np.asarray(clusters)[known]
    error, freedom, n = standard_error(x, of_known)
    mean, means = float(x.mean()), cluster_means(x, of_known)
    if n < MIN_CLUSTERS or not error >= ROUNDING_ERROR:
        return Interval(mean, float("nan"), float("nan"), n, means)
    return Interval(mean, *bounds_on_scale(mean, t_half_width(error, freedom, level), within), n, means)


def t_half_width(error: float, freedom: float, level: float) -> float:
    """Return half the width of the t interval of a mean with that standard error."""
    return float(stdtrit(freedom, (1 + level) / 2)) * error


def bounds_on_scale(mean: float, half: float, within: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds of a mean of values on a scale from a to b.

        u = (mean - a) / (b - a)        u ± h        and        logit⁻¹( logit u ± h / (u (1 - u)) )

    whichever is wider, cut off at the ends; h is half the width of the t interval, on the scale from 0 to 1.
    The second form is the t interval of the mean's own logit, by the delta method, so it is still about the
    mean. Near an end scores are skewed, and the t interval is too short on the side away from the end. With 3
    to 8 blocks it covers 88 to 94 % there, and this one 94 to 96 %. In the middle both are the same
    (benchmarks/coverage.py).
    """
    a, b = within
    if not np.isfinite([a, b]).all():
        return mean - half, mean + half
    u, h = (mean - a) / (b - a), half / (b - a)
    low, high = u - h, u + h
    if 0 < u < 1:
        logits = np.log(u / (1 - u)) + np.array([-1, 1]) * h / (u * (1 - u))
        on_logit_scale = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        low, high = min(low, float(on_logit_scale[0])), max(high, float(on_logit_scale[1]))
    return a + (b - a) * max(low, 0.0), a + (b - a) * min(high, 1.0)


def cluster_means(x: np.ndarray, clusters: np.ndarray) -> tuple[float, ...]:
    """Return the mean of each cluster, of the first partition that counts, in the order of the labels."""
    labels = effective_partitions(np.asarray(clusters).reshape(len(x), -1).T)[0]
    return tuple((np.bincount(labels, x) / np.bincount(labels)).tolist())


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
    within: tuple[float, float] = UNBOUNDED,
) -> Difference:
    """Return the mean of a - b over pairs, its t interval, and the two-sided p of the paired t test.

    clusters: of the pairs; a pair with a nan is left out. within: the possible range of a difference, which
    no bound exceeds. p is nan where the bounds are: for fewer than `MIN_CLUSTERS` clusters, and where all
    differences are equal, because without spread nothing can be tested.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    known = ~np.isnan(d)
    of_known = None if clusters is None else np.asarray(clusters)[known]
    mean, low, high, n, means = mean_interval(d[known], level, of_known)
    low, high = max(low, within[0]), min(high, within[1])
    if np.isnan(low):
        return Difference(mean, low, high, float("nan"), n, means)
    error, freedom, _ = standard_error(d[known], of_known)
    return Difference(mean, low, high, float(2 * stdtr(freedom, -abs(mean) / error)), n, means)


def standard_error(x: np.ndarray, clusters: np.ndarray | None) -> tuple[float, float, int]:
    """Return (s of the mean of x, its degrees of freedom f, number of clusters G); nan for fewer than 2.

        s² = (G-1)/G · Σ_g (x̄_(g) - mean x̄_(·))²        f = (G + G*) / 2 - 1        G* = (Σ n_g)² / Σ n_g²

    x̄_(g): mean without cluster g of n_g values; this is the delete-a-group jackknife (Miller 1974,
    Biometrika 61). For single values, s is their standard deviation over √n, and f = n - 1. With clusters of
    unequal sizes the large ones dominate: G* is the number of equal clusters that they are worth if all
    values of a cluster are the same (Kish, Survey Sampling, 1965). Runs of a cluster are the same in part, so
    f lies half-way. At a level of 95 %, intervals cover 93.9 to 95.6 % with G - 1, and 95 to 96.5 % with
    G* - 1 (3 to 24 orders of 4 to 8 tasks). f is at least 1.

    clusters: (N,), or (N, 2) from `two_way_clusters`, by order and by seed. If one partition contains the
    other, it alone counts. A single seed says nothing of other seeds, so that partition is left out. If the
    partitions cross, both contribute noise:

        s² = s_o² + s_s²        f = s⁴ / (s_o⁴ / f_o + s_s⁴ / f_s)        if  s_s² > s_i², else s_o and f_o

    (Satterthwaite 1946, Biometrics 2), and G is that of the orders. s_i² = mean e² / ((G_o - 1)(G_s - 1)),
    with e the residual after the means of orders and seeds, is how far seeds' means differ without a seed
    effect. Intervals cover 95 to 98 %. They cover only 90 to 94 % where two seeds serve six orders or more
    and differ half as much again as the orders (benchmarks/coverage.py).
    """
    if clusters is None:
        clusters = np.arange(len(x))
    partitions = effective_partitions(np.asarray(clusters).reshape(len(x), -1).T)
    error, freedom, G = jackknife(x, partitions[0])
    if len(partitions) == 1 or G < 2:
        return error, freedom, G
    seed_error, seed_freedom, _ = jackknife(x, partitions[1])
    if seed_error**2 > interaction_variance(x, *partitions):
        variances = np.array([error**2, seed_error**2])
        freedom = max(float(variances.sum() ** 2 / (variances**2 / [freedom, seed_freedom]).sum()), 1.0)
        error = float(variances.sum() ** 0.5)
    return error, freedom, G


def interaction_variance(x: np.ndarray, orders: np.ndarray, seeds: np.ndarray) -> float:
    """Return s_i² of `standard_error`, from the means over the values of one order's cluster and one seed.

    Orders within a cluster differ too, but equally for each seed; that is no interaction.
    """
    order_means, seed_means = (np.bincount(labels, x) / np.bincount(labels) for labels in (orders, seeds))
    e = x + x.mean() - (order_means[orders] + seed_means[seeds])
    cell = np.unique(orders * (seeds.max() + 1) + seeds, return_inverse=True)[1]
    e = (np.bincount(cell, e) / np.bincount(cell))[cell]
    return float((e**2).mean()) / int(orders.max() * seeds.max())


def effective_partitions(partitions: np.ndarray) -> list[np.ndarray]:
    """Return the partitions that count, labelled from 0: the one that contains the other, or both."""
    labels = [np.unique(partition, return_inverse=True)[1] for partition in partitions]
    if len(labels) < 2:
        return labels
    orders, seeds = (int(partition.max()) + 1 for partition in labels)
    if seeds == 1:
        return labels[:1]
    cells = len(np.unique(labels[0] * seeds + labels[1]))
    if cells == seeds:  # each seed belongs to one cluster of orders
        return labels[:1]
    if cells == orders:
        return labels[1:]
    return labels


def jackknife(x: np.ndarray, labels: np.ndarray) -> tuple[float, float, int]:
    """Return `standard_error` over one partition, with clusters labelled from 0."""
    sizes = np.bincount(labels)
    G = len(sizes)
    if G < 2:
        return float("nan"), float("nan"), G
    y = x - x.mean()  # smaller numbers round less
    without = -np.bincount(labels, y) / (len(x) - sizes)
    equal_clusters = len(x) ** 2 / float((sizes**2).sum())
    freedom = max((G + equal_clusters) / 2 - 1, 1.0)
    return float(((G - 1) / G * ((without - without.mean()) ** 2).sum()) ** 0.5), freedom, G


def fixed_orders_interval(
    values: ArrayLike,
    blocks: Sequence[tuple[str, int]],
    level: float = 0.95,
    within: tuple[float, float] = UNBOUNDED,
) -> Interval:
    """Return Student's t interval for the mean on the orders that were run, with seeds as replicates.

        s² = 1/N² · Σ_s ( Σ_o e_os )²        e_os = (x_os - x̄_o) · √(S_o / (S_o - 1))
        f = Σ_c (S_c - 1)

    x_os: value of order o with seed s; x̄_o: mean of the order's S_o seeds; N: number of values. Orders that
    share a seed share LoRA's initial weights, samples and shuffles, so a seed's deviations are summed before
    they are squared. c: a group of orders linked by common seeds, with S_c seeds. For crossed orders and
    seeds this is the t interval over the seeds' means; for orders with seeds of their own, that of stratified
    samples.
    n: f + 1; values: the seeds' means. There are no bounds where some order has a single seed, or n <
    `MIN_CLUSTERS`.
    """
    x = np.asarray(values, dtype=float)
    known = ~np.isnan(x)
    x, blocks = x[known], [block for block, is_known in zip(blocks, known, strict=True) if is_known]
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    order, seed = (
        np.unique([str(part) for part in parts], return_inverse=True)[1]
        for parts in zip(*blocks, strict=True)
    )
    sizes, linked = np.bincount(order), np.zeros(len(x), dtype=int)
    if len(sizes) > 1:
        linked = np.array(block_clusters(tuple(blocks), by_seed=True))
    seeds_of_groups = np.unique(np.column_stack([linked, seed]), axis=0)
    freedom = len(seeds_of_groups) - len(set(linked.tolist()))
    mean, means = float(x.mean()), cluster_means(x, seed)
    if sizes.min() < 2:
        return Interval(mean, float("nan"), float("nan"), 1, means)
    e = (x - (np.bincount(order, x) / sizes)[order]) * np.sqrt(sizes / (sizes - 1))[order]
    error = float(np.sqrt((np.bincount(seed, e) ** 2).sum())) / len(x)
    if freedom + 1 < MIN_CLUSTERS or not error >= ROUNDING_ERROR:
        return Interval(mean, float("nan"), float("nan"), freedom + 1, means)
    bounds = bounds_on_scale(mean, t_half_width(error, freedom, level), within)
    return Interval(mean, *bounds, freedom + 1, means)


def holm(p: ArrayLike) -> np.ndarray:
    """Adjust the p values of m tests so that with 5 % probability at most, a false one is below 5 %.

    Holm 1979, Scandinavian Journal of Statistics 6: the k-th smallest times m - k + 1, never decreasing. nan
    stands for no test.
    """
    p = np.asarray(p, dtype=float)
    ascending = np.argsort(p)  # nan last
    m = int((~np.isnan(p)).sum())
    adjusted = np.full(len(p), np.nan)
    factor = m - np.arange(m)
    adjusted[ascending[:m]] = np.minimum(np.maximum.accumulate(p[ascending[:m]] * factor), 1)
    return adjusted


def clustered_jackknife(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (estimate, low, high) of a statistic where runs share stages: whole clusters are left out in
    turn.

        s² = (G-1)/G · Σ_g (θ_(g) - mean θ_(·))²        estimate ± t(level, G-1) · s

    statistic: (samples, G) of 0 and 1, the clusters that each sample holds → (samples, k), k values at once.
    This is the delete-a-group jackknife (Miller 1974, Biometrika 61) with Student's t on the clusters. For
    the mean of equal clusters it is the t interval over their means, which holds its level even if their
    spreads differ (Ibragimov & Müller 2010, JBES 28). Bounds are nan where the statistic is nan without some
    cluster, or the same without any, and for fewer than `MIN_CLUSTERS` clusters.

    Why no bootstrap of clusters: with 4 to 8 clusters its percentiles cover 80 to 90 % at a level of 95 %.
    The studentised form needs six clusters; below that its samples are too few and too similar (77 % for a
    spread with 4). The tests measure 93 to 97 % for this one.
    """
    included = np.vstack([np.ones((1, clusters)), 1 - np.eye(clusters)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a sample may be too small for the statistic
        values = np.asarray(statistic(included), dtype=float).reshape(clusters + 1, -1)
        estimate, without = values[0], values[1:]
        error = (clusters - 1) ** 0.5 * without.std(axis=0)
        has_bounds = (error >= ROUNDING_ERROR) & (clusters >= MIN_CLUSTERS)
        half = t_half_width(1.0, max(clusters - 1, 1), level) * np.where(has_bounds, error, np.nan)
    return estimate, estimate - half, estimate + half


def expected_range(n: int) -> float:
    """Return the mean range, largest minus smallest, of n independent standard normal values.

    d2(n) = ∫ 1 - Φ(x)ⁿ - (1 - Φ(x))ⁿ dx            (Tippett 1925, Biometrika 17)
    """
    x = np.linspace(-9, 9, 3601)
    below = ndtr(x)
    return float(np.trapezoid(1 - below**n - (1 - below) ** n, x))
