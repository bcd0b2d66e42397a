"""Monotone curves from stages that are compared within blocks, with bootstrap bands over clusters of blocks.

    y = f(x) + c + p + e       x: the value tried; c: the block; p: the peer group; e: noise

    symbol  in the code    meaning
    f       levels         least squares, one number for each value tried, without any assumed shape
    c       block_effects  of a block, free: blocks are easier and harder, whatever value was tried
    p       peers          of stages that share more than the block, at one nesting level or several; each
                           level is shrunk as a random effect as large as the noise. So the stages that share
                           most are compared first, and a stage without peers still contributes
    f̂       isotonic       the nearest monotone curve to f, values weighted by their numbers of stages [1]

Bands are f̂ ± t(m-1) · √((m+1)/(m-1)) · s. m is the number of clusters in which x was tried: blocks that
share an order or a first stage form one cluster (intervals.py). s is the spread of f over resamples of whole
clusters. A cluster enters a resample with an exponential weight and never drops out [2, 3], because some
values may have been tried in few clusters, and without one of them nothing could be compared. The root undoes
what the weights take from the variance. So the band is Student's t interval, exact for normal clusters of one
size, wherever every block has every value. f is resampled rather than f̂: where values were pooled, the
spread of f̂ is 0, which understates the uncertainty.

[1] Barlow, Bartholomew, Bremner & Brunk 1972    [2] Rubin, Annals of Statistics 1981
[3] Xu, Gotwalt, Hong, King & Meeker, The American Statistician 2020
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression
from scipy.special import stdtrit

from dgg_ray.core.rng import make_rng
from dgg_ray.stats.intervals import MIN_CLUSTERS, block_clusters

RESAMPLES = 2000


class MonotoneFit(NamedTuple):
    """Least squares over K values tried, for M outcomes.

    levels: (K, M), f at the mean level of the blocks.
    resamples: (resamples, K, M), f of each resample, centred so that the mean over the stages is 0; how
        blocks differ in level does not affect the shape.
    block_effects: (blocks, M), how far each block lies above the mean level, by block number.
    stages, blocks: (K,), numbers of stages of each value, and of clusters that compare it with another value.
    """

    levels: np.ndarray
    resamples: np.ndarray
    block_effects: np.ndarray
    stages: np.ndarray
    blocks: np.ndarray


class NormalEquations(NamedTuple):
    """The terms of the normal equations from each of n blocks; a resample is a weighted sum of them.

    matrix: (n, K, K) and vector: (n, K, M), for f with the block's effect projected out.
    share: (n, K) and mean: (n, M): the block's effect is mean - share · f.
    stages: (n, K), how often the block tried each value.
    """

    matrix: np.ndarray
    vector: np.ndarray
    share: np.ndarray
    mean: np.ndarray
    stages: np.ndarray


def fit_effects(
    value: ArrayLike,
    block: ArrayLike,
    peers: ArrayLike,
    y: ArrayLike,
    resamples: int = RESAMPLES,
    block_names: Sequence[tuple[str, int]] | None = None,
) -> MonotoneFit:
    """Fit f to stages; value and block are numbers from 0, one for each stage; y is (stages, M).

    peers: (stages, levels) numbers, equal where two stages are peers. All stages must be `comparable_stages`.
    block_names: (order, seed) of each block by its number, which tell what blocks share; None: they share
        nothing.
    """
    value, block = np.asarray(value, dtype=int), np.asarray(block, dtype=int)
    peers = np.asarray(peers, dtype=int).reshape(len(value), -1)
    y = np.asarray(y, dtype=float).reshape(len(value), -1)
    count = value.max() + 1
    values_by_block = [block == number for number in np.unique(block)]
    terms = [block_equations(value[rows], peers[rows], y[rows], count) for rows in values_by_block]
    equations = NormalEquations(*map(np.stack, zip(*terms, strict=True)))
    n, tried = len(terms), equations.stages > 0
    shares = equations.stages.sum(axis=0) / len(value)
    shape = solve(equations, shares, np.ones((1, n)))[0]
    block_effects = equations.mean - equations.share @ shape
    level = block_effects.mean(axis=0)
    compares = tried & (tried.sum(axis=1, keepdims=True) > 1)
    cluster = clusters_of_comparisons(compares.any(axis=1), block_names)
    m = cluster.max() + 1
    weights = m * make_rng(m, "", "curves").dirichlet(np.ones(m), resamples)  # (resamples, m)
    return MonotoneFit(
        level + shape,
        solve(equations, shares, weights[:, cluster]),
        block_effects - level,
        equations.stages.sum(axis=0),
        np.stack([compares[cluster == g].any(axis=0) for g in range(m)]).sum(axis=0),
    )


def clusters_of_comparisons(
    compares: np.ndarray, block_names: Sequence[tuple[str, int]] | None
) -> np.ndarray:
    """Return the cluster of each block, numbered from 0. A block that compares nothing links no others."""
    cluster, comparing = np.arange(len(compares)), np.flatnonzero(compares)
    if block_names is not None:
        names = tuple(block_names[number] for number in comparing.tolist())
        cluster[comparing] = comparing[list(block_clusters(names))]
    return np.unique(cluster, return_inverse=True)[1]


def block_equations(value: np.ndarray, peers: np.ndarray, y: np.ndarray, count: int) -> NormalEquations:
    """Return the terms of one block's stages."""
    tried = np.eye(count)[value]  # (stages, K)
    shared_levels = (peers[:, None] == peers).sum(axis=-1)
    # The covariance of all p + e, each of variance 1:
    inverse = np.linalg.inv(np.eye(len(value)) + shared_levels)
    weight = inverse.sum(axis=0)
    projected = inverse - np.outer(weight, weight) / weight.sum()
    share, mean = weight @ tried / weight.sum(), weight @ y / weight.sum()
    matrix, vector = tried.T @ projected @ tried, tried.T @ projected @ y
    return NormalEquations(matrix, vector, share, mean, tried.sum(axis=0))


def solve(equations: NormalEquations, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return f for each row of block weights, (B, K, M), with its mean over the stages at 0."""
    matrix = np.einsum("bn,nij->bij", weights, equations.matrix)
    # f is determined up to a constant: this fixes the constant, and nothing else.
    matrix += np.trace(matrix, axis1=1, axis2=2)[:, None, None] * np.outer(shares, shares)
    return np.linalg.solve(matrix, np.einsum("bn,nim->bim", weights, equations.vector))


def comparable_stages(value: ArrayLike, block: ArrayLike) -> np.ndarray:
    """Return a mask of the stages whose values are connected by blocks.

    Two values are compared in a block that has both, or through other values. Of several groups without a
    connection, the one with the most stages is kept.
    """
    value, block = np.asarray(value, dtype=int), np.asarray(block, dtype=int)
    tried = np.zeros((value.max() + 1, block.max() + 1), dtype=int)
    tried[value, block] = 1
    connected = np.linalg.matrix_power((tried @ tried.T > 0).astype(float), len(tried)) > 0
    stages = np.bincount(value)
    return connected[np.argmax(connected @ stages)][value]


def isotonic(y: ArrayLike, weights: ArrayLike, rising: bool = True) -> np.ndarray:
    """Return the nearest curve that never falls (or never rises), in weighted squares."""
    return isotonic_regression(y, weights=weights, increasing=rising).x


def band_half_width(resamples: ArrayLike, blocks: ArrayLike, level: float = 0.95) -> np.ndarray:
    """Return half the band's width, from resamples along the first axis; nan for fewer than 3 clusters."""
    m = np.where(np.asarray(blocks) < MIN_CLUSTERS, np.nan, np.asarray(blocks, dtype=float))
    spread = np.std(np.asarray(resamples), axis=0)
    return stdtrit(m - 1, (1 + level) / 2) * np.sqrt((m + 1) / (m - 1)) * spread
