"""Pruning: a setting that is behind the best one is stopped before all its blocks are run.

After each block (order × seed) b, and between its tasks, the candidate's differences to an incumbent on the
blocks so far, d_1 … d_b, are tested:

    prune  if  d̄ < − t(1 − level / looks, df) · s / √c       looks = (blocks − 1) · settings evaluated

d̄ is the mean over the c clusters of blocks so far of each cluster's mean difference. s is the spread of one
block's difference over clusters. Blocks that share an order or a first stage are one cluster (intervals.py),
because the effect of an order on a setting is the same with all its seeds. Counting block by block instead,
where orders hold nine tenths of the variance, prunes the best of eight settings in 8 to 17 % of studies at a
level of 5 % (2 orders × 2 or 3 seeds, 3 × 3; test_pruning.py). Where all blocks are one cluster, nothing is
pruned.

The Bonferroni division keeps the chance that the best setting is ever pruned below `level`: over the blocks,
because repeated tests lose their level (Birattari's F-race, GECCO 2002, has no such correction); and over all
settings evaluated so far, because an incumbent is the luckiest of them on these very blocks. s is taken over
all settings evaluated so far, with its own degrees of freedom, as two blocks alone have almost no power.
Where the candidate's own spread over clusters is larger, that is used.

Between tasks, a run is extrapolated with the best that is known: earlier tasks lose nothing more, and later
ones reach the highest score that any setting so far had on them. A candidate may surpass that, so these looks
can err. They are not among the looks that divide the level: a run that is behind with such an extrapolation
is nearly always behind at the block's end, which is one of them. Simulated with these looks, over settings
equal and apart, of equal and unequal spread, the best is pruned less often than the level says
(test_pruning.py). That assumes spreads of one size, because on its first block a candidate has no spread of
its own. A best setting twice as noisy as all seven others was pruned in 7 % of studies at a level of 5 %, one
ten times as noisy as four others in 23 %.

Pruning saves most on orders that begin differently, with a seed each, or on one order with several seeds,
where the best setting is the best on that order. Further seeds of several orders prune no sooner.

With several objectives a setting must be behind one incumbent in every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dgg_ray.config.sections import Constraint
from dgg_ray.core import plugins
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.search.objective import (
    Evidence,
    Values,
    extrapolate_run,
    first_scores,
    rank_settings,
    values_by_block,
)

if TYPE_CHECKING:
    from dgg_ray.config.study import Block, Setting, Study


class PruningTest(NamedTuple):
    """The scores that a candidate is compared with, all of it known when it is proposed.

    incumbents: the best settings.
    level: the significance level, divided by the number of settings evaluated before.
    best_scores: task → the best score seen on it right after its training.
    spread: per objective, the standard deviation of a paired difference between blocks of different
        clusters, and its degrees of freedom.
    clusters: of each block.
    """

    incumbents: tuple[Setting, ...]
    level: float
    best_scores: Mapping[str, float]
    spread: tuple[tuple[float, int], ...]
    clusters: tuple[int, ...]


def should_prune(
    pruning_test: PruningTest,
    objective: Sequence[str],
    blocks: Sequence[Block],
    mine: Sequence[ScoreMatrix],
    theirs: Sequence[Sequence[ScoreMatrix]],
) -> bool:
    """Return whether the candidate should be pruned.

    mine: the candidate's matrices on the first blocks, the last one perhaps not finished.
    theirs: each incumbent's matrices on all blocks.
    """
    if len(mine) == len(blocks) and not np.isnan(mine[-1].R.diagonal()).any():
        return False  # it was evaluated to the end
    extrapolated = [
        extrapolate_run(s, b[0], pruning_test.best_scores, (), 1.0)
        for s, b in zip(mine, blocks, strict=False)
    ]
    looks = max(1, len(blocks) - 1)
    return any(
        all(
            is_behind(
                name,
                extrapolated,
                baseline,
                pruning_test.level / looks,
                *pruning_test.spread[j],
                pruning_test.clusters,
            )
            for j, name in enumerate(objective)
        )
        for baseline in theirs
    )


def is_behind(
    metric: str,
    mine: Sequence[ScoreMatrix],
    theirs: Sequence[ScoreMatrix],
    level: float,
    spread: float,
    freedom: int,
    clusters: Sequence[int],
) -> bool:
    """Return whether the candidate is behind an incumbent in one objective."""
    score = plugins.find("metrics", metric)
    d = np.array([score(a) - score(b) for a, b in zip(mine, theirs, strict=False)])
    return trails_beyond_chance(d, level, spread, freedom, clusters)


def trails_beyond_chance(
    d: np.ndarray, level: float, spread: float, freedom: int, clusters: Sequence[int]
) -> bool:
    """Return whether the differences on the first blocks are significantly below 0 at this level."""
    means, _ = cluster_means(d, clusters[: len(d)])
    if len(means) > 2:
        spread = max(spread, float(means.std(ddof=1)))
    return bool(means.mean() < -critical_value(level, freedom) * spread / np.sqrt(len(means)))


def cluster_means(table: np.ndarray, clusters: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(Mean over each cluster along the last axis, the place of each block's cluster among these)."""
    _, code = np.unique(clusters, return_inverse=True)
    belongs = np.eye(code.max() + 1)[code]  # (blocks, clusters)
    return table @ belongs / belongs.sum(axis=0), code


@lru_cache(maxsize=4096)
def critical_value(level: float, freedom: int) -> float:
    """t(1 - level, freedom), one-sided."""
    from scipy.special import stdtrit  # not scipy.stats, which takes seconds to import

    return float(stdtrit(freedom, 1 - level))


def paired_spread(table: np.ndarray, clusters: Sequence[int]) -> tuple[float, int]:
    """(standard deviation over clusters of the difference of two settings on one block, degrees of freedom).

    table: (settings, blocks) values. √2 times the residual of settings + clusters, to which blocks within a
    cluster add what their means took away: a cluster of which one block is known says no more than that one.
    (nan, 0) where there is nothing to estimate it from.
    """
    means, code = cluster_means(table, clusters)
    n, count = means.shape
    freedom = (n - 1) * (count - 1)
    if not freedom:
        return float("nan"), 0
    rest = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    variance = (rest**2).sum() / freedom
    sizes = np.bincount(code)
    if inner := (n - 1) * int((sizes - 1).sum()):
        within = table - means[:, code]
        within = within - within.mean(0)
        variance += (within**2).sum() / inner * (1 - (1 / sizes).mean())
    return float(np.sqrt(2 * variance)), freedom


def make_test(
    study: Study, settings: Sequence[Setting], values: Sequence[Values], evidence: Sequence[Evidence]
) -> PruningTest | None:
    """Make the test of the next setting against the best of those evaluated so far.

    settings, values, evidence: of the settings evaluated on every block, in the order proposed. None where
    they cannot say how far a paired difference scatters, or where the best of them breaks a constraint.
    """
    search = study.search
    assert search is not None
    assert search.prune_level is not None
    if len(settings) < 2 or len(study.blocks) < 2:
        return None
    ranking = rank_settings(values, settings)
    if any(values[ranking[0]].excess):
        return None
    from dgg_ray.stats.intervals import block_clusters  # late: SciPy, which trials do without

    clusters = block_clusters(study.named_blocks)
    spread = []
    for name in search.objective:
        score = plugins.find("metrics", name)
        table = np.array([[score(matrix) for matrix in of.scores] for of in evidence])
        spread.append(paired_spread(table, clusters))
    if any(not freedom for _, freedom in spread):
        return None
    orders = [order for order, _ in study.blocks]
    runs = [pair for of in evidence for pair in zip(orders, of.scores, strict=True)]
    best_scores = {task: max(scores) for task, scores in first_scores(runs).items()}
    count = 1 if len(search.objective) == 1 else 3
    incumbents = tuple(settings[i] for i in ranking[:count] if not any(values[i].excess))
    return PruningTest(
        incumbents, search.prune_level / len(settings), best_scores, tuple(spread), tuple(clusters)
    )


def extrapolate(
    evidence: Evidence,
    incumbent: Evidence,
    evaluated: Sequence[Values],
    objective: Sequence[str],
    constraints: Sequence[Constraint],
) -> Values:
    """The values of a pruned setting: the incumbent's, plus the mean difference on the blocks finished.

    evaluated: values of the settings evaluated to the end; a setting that was pruned inside its first block
    is taken to be no better than the worst of them.
    """
    own = values_by_block(evidence, objective, constraints)  # nan on blocks that it did not finish
    theirs = values_by_block(incumbent, objective, constraints)
    count = len(objective)
    finished = ~np.isnan(own[:, :count]).any(axis=1)
    if not finished.any():
        worst = tuple(min(values.objective[j] for values in evaluated) for j in range(count))
        return Values(worst, tuple(1.0 for _ in constraints))
    difference = (own - theirs)[finished, :count].mean(axis=0)
    met = own[finished, count:].mean(axis=0)  # by how much each constraint is kept
    reached = theirs[:, :count].mean(axis=0) + difference
    return Values(tuple(reached.tolist()), tuple(np.maximum(-met, 0.0).tolist()))
