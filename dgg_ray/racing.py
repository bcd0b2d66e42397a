"""Racing: a setting that is behind the best one is given up before all its blocks are run.

After each block (order × seed) b, and between its tasks, the candidate's differences to an incumbent on
the blocks so far, d_1 … d_b, are tested:

    give up  if  d̄ < − t(1 − level / looks, df) · s / √b          looks = (blocks − 1) · settings judged

The Bonferroni division keeps the chance that the best setting is ever given up below `level`: over the
blocks, because repeated tests lose their level (Birattari's F-race, GECCO 2002, has no such correction), and
over all settings judged so far, because an incumbent is the luckiest of them on these very blocks. s is the
spread of paired differences over all settings judged so far, with its own degrees of freedom: two blocks
alone have almost no power. Where the candidate's own spread is larger, that is taken.

Between tasks a run is completed with the best that is known: earlier tasks lose nothing more, later ones
reach the highest score that any setting judged so far had on them. A candidate may surpass that, so these
looks can err; they are not among the looks that divide the level, as a run that is behind with such a
completion is nearly always behind at the block's end, which is one of them. Simulated with these looks, over
settings equal and apart, of equal and unequal spread, the best is given up less often than the level says
(tests/test_racing.py). That rests on spreads of one size, as on its first block a candidate has none of its
own to show: a best setting twice as noisy as all seven others was given up in 7 % of studies at a level of
5 %, one ten times as noisy as four others in 23 %.

The level holds for blocks that share no order and no first stage (task and seed): s / √b takes them for
independent, and what an order does to all its seeds is counted again with each of them. Race on orders that
begin differently, or on one order with several seeds, where the best setting is the best on that order.

With several objectives a setting must be behind one incumbent in every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dgg_ray import plugins
from dgg_ray.contracts import ScoreMatrix
from dgg_ray.preference import completed

if TYPE_CHECKING:
    from dgg_ray.study import Block, Setting


class Race(NamedTuple):
    """What a candidate runs against, all of it known when it is proposed.

    incumbents: the best settings; level: divided by the settings judged already; hopes: task → the best
        score seen on it right after learning it; spread: per objective the standard deviation of a
        paired difference and its
        degrees of freedom.
    """

    incumbents: tuple[Setting, ...]
    level: float
    hopes: Mapping[str, float]
    spread: tuple[tuple[float, int], ...]


def hopeless(
    race: Race,
    objective: Sequence[str],
    blocks: Sequence[Block],
    mine: Sequence[ScoreMatrix],
    theirs: Sequence[Sequence[ScoreMatrix]],
) -> bool:
    """Whether the candidate is given up.

    mine: its matrices on the first blocks, the last one perhaps not finished; theirs: each incumbent's
    matrices on all blocks.
    """
    if len(mine) == len(blocks) and not np.isnan(mine[-1].R.diagonal()).any():
        return False  # it was judged to the end
    hoped = [completed(s, b[0], race.hopes, (), 1.0) for s, b in zip(mine, blocks, strict=False)]
    looks = max(1, len(blocks) - 1)
    return any(
        all(
            behind(name, hoped, rival, race.level / looks, *race.spread[j])
            for j, name in enumerate(objective)
        )
        for rival in theirs
    )


def behind(
    metric: str,
    mine: Sequence[ScoreMatrix],
    theirs: Sequence[ScoreMatrix],
    level: float,
    spread: float,
    freedom: int,
) -> bool:
    """One look at one objective."""
    score = plugins.find("metrics", metric)
    d = np.array([score(a) - score(b) for a, b in zip(mine, theirs, strict=False)])
    return trails(d, level, spread, freedom)


def trails(d: np.ndarray, level: float, spread: float, freedom: int) -> bool:
    """Whether differences on the blocks so far are below 0 beyond chance at this level."""
    if len(d) > 2:
        spread = max(spread, float(d.std(ddof=1)))
    return bool(d.mean() < -critical(level, freedom) * spread / np.sqrt(len(d)))


@lru_cache(maxsize=4096)
def critical(level: float, freedom: int) -> float:
    """t(1 - level, freedom), one-sided."""
    from scipy.special import stdtrit  # not scipy.stats, which takes seconds to import

    return float(stdtrit(freedom, 1 - level))


def paired_spread(table: np.ndarray) -> tuple[float, int]:
    """(standard deviation of the difference of two settings on one block, its degrees of freedom).

    table: (settings, blocks) values. √2 times the residual of settings + blocks; (nan, 0) where there is
    nothing to estimate it from.
    """
    n, blocks = table.shape
    freedom = (n - 1) * (blocks - 1)
    if not freedom:
        return float("nan"), 0
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float(np.sqrt(2 * (rest**2).sum() / freedom)), freedom
