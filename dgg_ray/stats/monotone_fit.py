"""Monotone curves from stages that are compared within blocks, with bootstrap bands over clusters of blocks.

    y = f(x) + c + p + e       x: the value tried; c: the block; p: the peers; e: noise

    symbol  here       what
    f       free       least squares, one number for each value tried; free of any shape
    c       effects    of a block, free: blocks are easier and harder, and no value tried is to blame
    p       peers      of stages that have more in common than the block, at one level or at several; each
                       level shrunk as a random effect as large as the noise, so that the stages with most
                       in common are compared first, and one without peers still says something
    f̂       isotonic   the nearest monotone curve to f, values weighted by their stages [1]

Bands are f̂ ± t(m-1) · √((m+1)/(m-1)) · s, with m the clusters in which x was tried and s the spread of f over
resamples of whole clusters: blocks that share an order or a first stage are one (intervals.py). A cluster
enters a resample with an exponential weight and never drops out [2, 3]: where some values were tried in few,
dropping one could leave nothing to compare them by. The root undoes what the weights take from the variance,
so that the band is Student's t interval, exact for normal clusters of one size, wherever every block has
every value. f is resampled rather than f̂, whose spread is 0 wherever values were pooled, and zero is not how
sure one can be of them.

[1] Barlow, Bartholomew, Bremner & Brunk 1972    [2] Rubin, Annals of Statistics 1981
[3] Xu, Gotwalt, Hong, King & Meeker, The American Statistician 2020
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from dgg_ray.core import draws
from dgg_ray.stats.intervals import FEWEST, clusters_of

RESAMPLES = 2000


class Fit(NamedTuple):
    """Least squares over K values tried, for M outcomes.

    free: (K, M), at the mean level of the blocks.
    draws: (resamples, K, M), of each resample, without a level: the mean over the stages is 0. How blocks
        differ in level is no doubt about the shape.
    effects: (blocks, M), how far each block lies above the mean level, in the order of its number.
    stages, blocks: (K,), stages of a value, and clusters of blocks that compare it with another.
    """

    free: np.ndarray
    draws: np.ndarray
    effects: np.ndarray
    stages: np.ndarray
    blocks: np.ndarray


class Sums(NamedTuple):
    """What the normal equations need of each of n blocks; a resample is a weighted sum of them.

    left: (n, K, K) and right: (n, K, M), of f with the block's effect projected out.
    share: (n, K) and mean: (n, M): the block's effect is mean - share · f.
    stages: (n, K), how often the block tried each value.
    """

    left: np.ndarray
    right: np.ndarray
    share: np.ndarray
    mean: np.ndarray
    stages: np.ndarray


def fit(
    place: ArrayLike,
    block: ArrayLike,
    peers: ArrayLike,
    y: ArrayLike,
    resamples: int = RESAMPLES,
    named: Sequence[tuple[str, int]] | None = None,
) -> Fit:
    """f from stages; place and block are numbers from 0, one a stage; y is (stages, M).

    peers: (stages, levels) numbers, equal where two stages are peers. All values must be `comparable`.
    named: (order, seed) of each block by its number, which say what blocks share; without them nothing.
    """
    place, block = np.asarray(place, dtype=int), np.asarray(block, dtype=int)
    peers = np.asarray(peers, dtype=int).reshape(len(place), -1)
    y = np.asarray(y, dtype=float).reshape(len(place), -1)
    count = place.max() + 1
    sums = [
        of_block(place[mine], peers[mine], y[mine], count) for b in np.unique(block) for mine in [block == b]
    ]
    total = Sums(*map(np.stack, zip(*sums, strict=True)))
    n, tried = len(sums), total.stages > 0
    shares = total.stages.sum(axis=0) / len(place)
    shape = solve(total, shares, np.ones((1, n)))[0]
    effects = total.mean - total.share @ shape
    level = effects.mean(axis=0)
    compares = tried & (tried.sum(axis=1, keepdims=True) > 1)
    code = clusters(compares.any(axis=1), named)
    m = code.max() + 1
    weights = m * draws.generator(m, "", "curves").dirichlet(np.ones(m), resamples)  # (resamples, m)
    return Fit(
        level + shape,
        solve(total, shares, weights[:, code]),
        effects - level,
        total.stages.sum(axis=0),
        np.stack([compares[code == g].any(axis=0) for g in range(m)]).sum(axis=0),
    )


def clusters(compares: np.ndarray, named: Sequence[tuple[str, int]] | None) -> np.ndarray:
    """The cluster of each block, numbered from 0. A block that compares nothing ties no others together."""
    code, those = np.arange(len(compares)), np.flatnonzero(compares)
    if named is not None:
        code[those] = those[list(clusters_of(tuple(named[b] for b in those.tolist())))]
    return np.unique(code, return_inverse=True)[1]


def of_block(place: np.ndarray, peers: np.ndarray, y: np.ndarray, count: int) -> Sums:
    """The sums of one block's stages."""
    tried = np.eye(count)[place]  # (stages, K)
    alike = (peers[:, None] == peers).sum(axis=-1)
    inverse = np.linalg.inv(np.eye(len(place)) + alike)  # of the covariance of all p + e, each of variance 1
    each = inverse.sum(axis=0)
    projected = inverse - np.outer(each, each) / each.sum()
    share, mean = each @ tried / each.sum(), each @ y / each.sum()
    return Sums(tried.T @ projected @ tried, tried.T @ projected @ y, share, mean, tried.sum(axis=0))


def solve(sums: Sums, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """f for each row of block weights, (B, K, M), with its mean over the stages at 0."""
    left = np.einsum("bn,nij->bij", weights, sums.left)
    # f is known up to a constant: this fixes the constant, and nothing else.
    left += np.trace(left, axis1=1, axis2=2)[:, None, None] * np.outer(shares, shares)
    return np.linalg.solve(left, np.einsum("bn,nim->bim", weights, sums.right))


def comparable(place: ArrayLike, block: ArrayLike) -> np.ndarray:
    """Which stages tried values that blocks connect: two values are compared in a block that has both, or
    over others. Of several groups without a connection the one with the most stages."""
    place, block = np.asarray(place, dtype=int), np.asarray(block, dtype=int)
    tried = np.zeros((place.max() + 1, block.max() + 1), dtype=int)
    tried[place, block] = 1
    connected = np.linalg.matrix_power((tried @ tried.T > 0).astype(float), len(tried)) > 0
    stages = np.bincount(place)
    return connected[np.argmax(connected @ stages)][place]


def isotonic(y: ArrayLike, weights: ArrayLike, rising: bool = True) -> np.ndarray:
    """The nearest curve that never falls (or never rises), in weighted squares; along the last axis.

        f̂_i = max over j ≤ i, min over k ≥ i, of the mean of y_j … y_k

    Equal to `scipy.optimize.isotonic_regression`, for a whole array of curves at once.
    """
    y = np.asarray(y, dtype=float) if rising else -np.asarray(y, dtype=float)
    w = np.broadcast_to(np.asarray(weights, dtype=float), y.shape)
    before = np.tril(np.ones((y.shape[-1],) * 2), -1).astype(bool)  # k < j: no range

    def within(x: np.ndarray) -> np.ndarray:
        """Sums over j … k, as [..., j, k]."""
        upto = np.cumsum(x, axis=-1)
        return upto[..., None, :] - (upto - x)[..., None]

    means = np.where(before, np.inf, within(w * y) / np.where(before, 1, within(w)))
    lowest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
    best = np.where(before, -np.inf, lowest).max(axis=-2)
    return best if rising else -best


def half_width(draws: ArrayLike, blocks: ArrayLike, level: float = 0.95) -> np.ndarray:
    """Half the band's width, from resamples along the first axis; nan for fewer than 3 clusters."""
    m = np.where(np.asarray(blocks) < FEWEST, np.nan, np.asarray(blocks, dtype=float))
    spread = np.std(np.asarray(draws), axis=0)
    return stdtrit(m - 1, (1 + level) / 2) * np.sqrt((m + 1) / (m - 1)) * spread
