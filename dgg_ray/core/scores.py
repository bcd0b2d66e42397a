"""The score matrix of a run, or of many runs at once, and the mean that metrics are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """One run's scores on one split, with tasks in the order in which the run trained them.

    R: (T, T), R[t, i] is the score on task i after stage t, in [0, 1]; nan where not evaluated.
    sizes: (T,), number of examples behind column i.
    base: (T,), the untouched model's score on task i; nan where not evaluated.

    Runs with equally many tasks can be stacked along a first axis of all three. A metric counts its axes from
    the last, so it returns one number for one run, and one number for each run of a stack.
    """

    R: np.ndarray
    sizes: np.ndarray
    base: np.ndarray

    def diagonal(self, later: int = 0) -> np.ndarray:
        """Return R[t, t + later]: each task right after its stage, or `later` stages before it."""
        return self.R.diagonal(later, axis1=-2, axis2=-1)

    @property
    def together(self) -> np.ndarray | np.bool_:
        """Whether only the last row is filled: a joint run, or a single task."""
        return np.isnan(self.R[..., :-1, :]).all(axis=(-2, -1))


MetricValue: TypeAlias = float | np.ndarray  # of one run, or of each run of a stack


def mean(
    scores: np.ndarray, weights: np.ndarray | None = None, where: bool | np.bool_ | np.ndarray = True
) -> MetricValue:
    """Return the mean over the last axis; nan without scores, and where `where` is false."""
    if not scores.shape[-1]:
        means = np.full(scores.shape[:-1], np.nan)
    elif weights is None:
        means = scores.mean(axis=-1)
    else:  # one product for each run, so that a run gives the same bits alone and in a stack
        means = (weights[..., None, :] @ scores[..., None])[..., 0, 0] / weights.sum(axis=-1)
    means = np.where(where, means, np.nan)
    return means if means.ndim else means.item()
