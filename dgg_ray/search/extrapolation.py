"""What can be hoped of a run that is not finished: its objective, completed by what is known so far.

Each later stage leaves the lower quartile of what stages of good states left so far, by a task's age, and
tasks not yet learned reach the lowest score seen on them. A curve through all values tried, not single
points, says which is best.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from dgg_ray.config.study import Setting
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.search.objective import (
    Constraint,
    Evidence,
    Values,
    by_block,
    completed,
    followed,
    kept_shares,
    own_scores,
    smoothed,
    summary,
)
from dgg_ray.search.space import Space

PESSIMISTIC = 0.25  # quantile of what is known


class State(NamedTuple):
    """A setting for the tasks placed so far, and what it came to. depth: tasks of each order."""

    setting: Setting
    depth: int
    evidence: Evidence


class Hopes:
    """Judges states by all that were ever judged.

    orders: of the tasks, block by block; objective, constraints: what is asked for.
    """

    def __init__(
        self,
        orders: Sequence[Sequence[str]],
        objective: Sequence[str],
        constraints: Sequence[Constraint],
    ) -> None:
        self.orders, self.objective, self.constraints = orders, objective, constraints
        self.states: list[State] = []  # all that were ever judged
        self.asked: tuple[int, int] = (0, 0)  # of `known`, which is asked for many states in turn
        self.answer: tuple[dict[str, float], list[float]] = ({}, [])

    def take(self, setting: Setting, depth: int, evidence: Evidence | None) -> State | None:
        """A state of what was just judged; None where it failed."""
        if evidence is None or any(np.isnan(s.R[depth - 1, :depth]).any() for s in evidence.scores):
            return None
        self.states.append(State(setting, depth, evidence))
        return self.states[-1]

    def values_of(self, table: np.ndarray) -> Values:
        return summary(np.atleast_2d(table), len(self.objective))

    def of(self, states: Sequence[State]) -> list[Values]:
        """Values of the states' runs, completed pessimistically."""
        return [self.values_of(self.table(state)) for state in states]

    def read(self, states: Sequence[State], parents: Sequence[int], parameters: Space) -> list[Values]:
        """The same, read off a curve through all of them."""
        if not states:
            return []
        tables = np.array([self.table(state).mean(axis=0) for state in states])
        return [
            self.values_of(row) for row in smoothed(tables, parents, [s.setting for s in states], parameters)
        ]

    def table(self, state: State) -> np.ndarray:
        """`by_block` of the state's runs, completed by what all states judged so far make of it."""
        lowest, kept = self.known(state.depth)

        def end(scores: Sequence[ScoreMatrix]) -> list[ScoreMatrix]:
            return [completed(m, o, lowest, kept, 0.0) for m, o in zip(scores, self.orders, strict=True)]

        beside = {name: end(scores) for name, scores in state.evidence.beside.items()}
        return by_block(Evidence(end(state.evidence.scores), beside), self.objective, self.constraints)

    def known(self, depth: int) -> tuple[dict[str, float], list[float]]:
        """(Lowest own score of each task, share kept at each age by the better half at this depth)."""
        if (depth, len(self.states)) != self.asked:
            runs = [pair for s in self.states for pair in zip(self.orders, s.evidence.scores, strict=True)]
            lowest = {task: min(scores) for task, scores in own_scores(runs).items()}
            here = [s for s in self.states if s.depth == depth]
            here.sort(key=lambda s: -float(np.mean([m.R[depth - 1, :depth] for m in s.evidence.scores])))
            good = [m for s in here[: ceil(len(here) / 2)] for m in s.evidence.scores]
            self.asked, self.answer = (depth, len(self.states)), (lowest, kept_shares(good, PESSIMISTIC))
        return self.answer

    def gone_on(self, evidence: Evidence, winner: Evidence, block: int) -> np.ndarray:
        """One block's row of `by_block`, carried on as the winner's run on that block went on."""
        ended = Evidence(
            [followed(evidence.scores[0], winner.scores[block])],
            {name: [followed(m[0], winner.beside[name][block])] for name, m in evidence.beside.items()},
        )
        return by_block(ended, self.objective, self.constraints)[0]
