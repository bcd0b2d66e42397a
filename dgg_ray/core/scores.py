"""A run's score matrix, or that of many runs at once, and the mean that metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """One run's scores on one split, tasks in the order in which the run learned them.

    R: (T, T), R[t, i] is the score on task i after stage t, in [0, 1], nan where not examined.
    sizes: (T,), examples behind column i.
    base: (T,), the untouched model's score on task i, nan where not examined.

    Or those of many runs of as many tasks at once, stacked along a first axis of all three. A metric counts
    its axes from the last, so it gives one number for one run, and one for each of a stack.
    """

    R: np.ndarray
    sizes: np.ndarray
    base: np.ndarray

    def diagonal(self, later: int = 0) -> np.ndarray:
        """R[t, t + later]: each task right after its stage, or so many stages before it."""
        return self.R.diagonal(later, axis1=-2, axis2=-1)

    @property
    def together(self) -> np.ndarray | np.bool_:
        """Whether only the last row is filled: a joint run, or a single task."""
        return np.isnan(self.R[..., :-1, :]).all(axis=(-2, -1))


Value: TypeAlias = float | np.ndarray  # of a metric: of one run, or of each run of a stack


def mean(
    scores: np.ndarray, weights: np.ndarray | None = None, where: bool | np.bool_ | np.ndarray = True
) -> Value:
    """Over the last axis; nan for no scores, and where the mean has no meaning."""
    if not scores.shape[-1]:
        found = np.full(scores.shape[:-1], np.nan)
    elif weights is None:
        found = scores.mean(axis=-1)
    else:  # the product of each run by itself: to the bit what the run gives alone
        found = (weights[..., None, :] @ scores[..., None])[..., 0, 0] / weights.sum(axis=-1)
    found = np.where(where, found, np.nan)
    return found if found.ndim else found.item()
