"""How sure one can be of a mean: Student's t over blocks, paired differences, bootstrap bands.

A block is one order of the tasks with one seed. Settings are judged on the same blocks, with common random
numbers, so they are compared within blocks; the spread over blocks is what an interval measures.
Blocks that share an order or a seed are treated as independent; where orders begin alike they share
stages, and the interval is then somewhat too narrow.
"""

from __future__ import annotations

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
    rng = draws.generator(seed, "", "bootstrap")
    times = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)  # (resamples, blocks)
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
