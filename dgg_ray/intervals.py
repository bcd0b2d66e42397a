"""How sure one can be of a mean: Student's t over blocks, paired differences, bootstrap bands, clusters.

A block is one order of the tasks with one seed. Settings are judged on the same blocks, with common random
numbers, so they are compared within blocks; the spread over blocks is what an interval measures.
Blocks that share an order or a seed are treated as independent; where orders begin alike they share
stages, and the interval is then too narrow. `clustered_jackknife` resamples what shares nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from dgg_ray import draws


class Interval(NamedTuple):
    """mean, and the bounds between which the true mean lies with the level asked for; n: blocks behind it."""

    mean: float
    low: float
    high: float
    n: int


class Difference(NamedTuple):
    """mean of a - b with its interval; p: two-sided, of a mean difference of 0; n: pairs behind it."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval for the mean of independent values; nan values are left out.

        mean ± t(level, n-1) · s / √n

    Bounds are nan for fewer than 2 values, the mean too for none. Exact for normal values.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    n = len(x)
    if n < 2:
        return Interval(float(x[0]) if n else float("nan"), float("nan"), float("nan"), n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(x.std(ddof=1)) / n**0.5
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, n)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """Mean of a - b over pairs, its t interval, and the paired t test's two-sided p.

    A pair with a nan is left out. p is nan for fewer than 2 pairs, and where all differences are
    equal: without spread there is nothing to test against.
    """
    d = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    d = d[~np.isnan(d)]
    mean, low, high, n = mean_interval(d, level)
    error = float(d.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    # A spread at the level of rounding is none: 0.3 - 0.2 and 0.2 - 0.1 differ by 3e-17.
    if error < 1e-12:
        return Difference(mean, low, high, float("nan"), n)
    return Difference(mean, low, high, float(2 * stats.t.sf(abs(mean) / error, n - 1)), n)


def bootstrap_band(
    curves: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap (Efron 1979) of the mean curve: (low, high), one value a point of the curve.

    curves: (blocks, points), nan where a block lacks a point. Whole blocks are resampled, because
    points of one block are not independent. nan where fewer than 2 blocks have the point. Bands over
    few blocks are too narrow (5 blocks: about 85 % where 95 % is asked for): they show, and do not test.
    """
    y = np.atleast_2d(np.asarray(curves, dtype=float))
    blocks = len(y)
    seen = ~np.isnan(y)  # (blocks, points)
    times = resampled(blocks, resamples, seed)
    count = (times @ seen).astype(float)  # (resamples, points)
    count[count == 0] = np.nan  # this resample happens to lack the point
    means = times @ np.where(seen, y, 0.0) / count
    low, high = np.full(y.shape[1], np.nan), np.full(y.shape[1], np.nan)
    enough = seen.sum(axis=0) >= 2
    if enough.any():
        low[enough], high[enough] = np.nanquantile(
            means[:, enough], [(1 - level) / 2, (1 + level) / 2], axis=0
        )
    return low, high


@lru_cache(maxsize=1)
def resampled(blocks: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, blocks): how often each resample holds each block; settings of a study share them."""
    rng = draws.generator(seed, "", "bootstrap")
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)


def clustered_jackknife(
    statistic: Callable[[np.ndarray], np.ndarray], clusters: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(estimate, low, high) where runs share work: whole clusters of them are left out in turn.

        s² = (G-1)/G · Σ_g (θ_(g) - mean θ_(·))²        estimate ± t(level, G-1) · s

    statistic: (samples, G) of 0 and 1, which clusters a sample holds → (samples, k), k values at once.
    The delete-a-group jackknife (Miller 1974, Biometrika 61) with Student's t on the clusters: of the mean
    of equal clusters it is the t interval over their means, which holds its level however unequal their
    spreads are (Ibragimov & Müller 2010, JBES 28). Bounds are nan where the statistic is nan without some
    cluster.

    Against resampling clusters with replacement: on 4 to 8 clusters percentiles of that bootstrap cover
    80 to 90 % where 95 % is asked for, and its studentised form needs six of them; below that its samples
    are too few and too alike (77 % for a spread with 4). Measured in tests/test_robustness.py: 93 to 97 %.
    """
    kept = np.vstack([np.ones((1, clusters)), 1 - np.eye(clusters)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a statistic that a sample is too small for
        values = np.asarray(statistic(kept), dtype=float).reshape(clusters + 1, -1)
        estimate, left = values[0], values[1:]
        spread = (clusters - 1) ** 0.5 * left.std(axis=0)
        half = float(stats.t.ppf((1 + level) / 2, clusters - 1)) * spread if clusters > 1 else np.nan
    return estimate, estimate - half, estimate + half


def expected_range(n: int) -> float:
    """Mean distance of the largest from the smallest of n independent normal values, in standard deviations.

    d2(n) = ∫ 1 - Φ(x)ⁿ - (1 - Φ(x))ⁿ dx            (Tippett 1925, Biometrika 17)
    """
    x = np.linspace(-9, 9, 3601)
    below = stats.norm.cdf(x)
    return float(np.trapezoid(1 - below**n - (1 - below) ** n, x))
