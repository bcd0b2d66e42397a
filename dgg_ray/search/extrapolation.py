"""Extrapolation of runs that are not finished, from what the search has seen so far.

The guess is pessimistic. Each later stage leaves the lower quartile of what stages of good states left, by a
task's age, and tasks that are not trained yet reach the lowest score seen on them. The best state is read off
a curve through all values tried, not off single points.
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
    continue_like,
    extrapolate_run,
    first_scores,
    fit_response,
    kept_shares,
    mean_values,
    values_by_block,
)
from dgg_ray.search.space import Space

PESSIMISTIC = 0.25  # quantile of what is known


class PartialSetting(NamedTuple):
    """A setting of the first `depth` tasks of each order, with its evidence."""

    setting: Setting
    depth: int
    evidence: Evidence


class Extrapolator:
    """Extrapolates partial settings from everything that the search has seen.

    orders: the order of the tasks on each block.
    """

    def __init__(
        self,
        orders: Sequence[Sequence[str]],
        objective: Sequence[str],
        constraints: Sequence[Constraint],
    ) -> None:
        self.orders, self.objective, self.constraints = orders, objective, constraints
        self.states: list[PartialSetting] = []  # all that were ever evaluated
        self.asked: tuple[int, int] = (0, 0)  # the last call of `known`, which many states make in turn
        self.answer: tuple[dict[str, float], list[float]] = ({}, [])

    def add(self, setting: Setting, depth: int, evidence: Evidence | None) -> PartialSetting | None:
        """Add a setting that was just evaluated; None where it failed."""
        if evidence is None or any(np.isnan(s.R[depth - 1, :depth]).any() for s in evidence.scores):
            return None
        self.states.append(PartialSetting(setting, depth, evidence))
        return self.states[-1]

    def values_of(self, table: np.ndarray) -> Values:
        return mean_values(np.atleast_2d(table), len(self.objective))

    def extrapolate(self, states: Sequence[PartialSetting]) -> list[Values]:
        """Values of the states' runs, extrapolated to their ends."""
        return [self.values_of(self.table(state)) for state in states]

    def read_off_curve(
        self, states: Sequence[PartialSetting], parents: Sequence[int], parameters: Space
    ) -> list[Values]:
        """Values of the states, read off a curve through all of them."""
        if not states:
            return []
        tables = np.array([self.table(state).mean(axis=0) for state in states])
        return [
            self.values_of(row)
            for row in fit_response(tables, parents, [s.setting for s in states], parameters)
        ]

    def table(self, state: PartialSetting) -> np.ndarray:
        """`values_by_block` of the state's runs, extrapolated from all states so far."""
        lowest, kept = self.known(state.depth)

        def end(scores: Sequence[ScoreMatrix]) -> list[ScoreMatrix]:
            return [
                extrapolate_run(m, o, lowest, kept, 0.0) for m, o in zip(scores, self.orders, strict=True)
            ]

        baselines = {name: end(scores) for name, scores in state.evidence.baselines.items()}
        return values_by_block(
            Evidence(end(state.evidence.scores), baselines), self.objective, self.constraints
        )

    def known(self, depth: int) -> tuple[dict[str, float], list[float]]:
        """(Lowest first score of each task, kept shares at each age by the better half at this depth)."""
        if (depth, len(self.states)) != self.asked:
            runs = [pair for s in self.states for pair in zip(self.orders, s.evidence.scores, strict=True)]
            lowest = {task: min(scores) for task, scores in first_scores(runs).items()}
            here = [s for s in self.states if s.depth == depth]
            here.sort(key=lambda s: -float(np.mean([m.R[depth - 1, :depth] for m in s.evidence.scores])))
            good = [m for s in here[: ceil(len(here) / 2)] for m in s.evidence.scores]
            self.asked, self.answer = (depth, len(self.states)), (lowest, kept_shares(good, PESSIMISTIC))
        return self.answer

    def continue_to_end(self, evidence: Evidence, winner: Evidence, block: int) -> np.ndarray:
        """Return one block's row of `values_by_block`, continued as the winner's run on that block was."""
        ended = Evidence(
            [continue_like(evidence.scores[0], winner.scores[block])],
            {
                name: [continue_like(m[0], winner.baselines[name][block])]
                for name, m in evidence.baselines.items()
            },
        )
        return values_by_block(ended, self.objective, self.constraints)[0]
