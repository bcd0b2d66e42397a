"""The score matrix of a run, or of many runs at once, and the mean that metrics are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """One run's scores on one split, with tasks in the order in which the run trained them.

    R: (T, T), R[t, i] is the score on task i after stage t, in [0, 1]; nan where not evaluated.
    sizes: (T,), number of examples behind column i.
    base: (T,), the untouched model's score on task i; nan where not evaluated.
    outside: (T, K), outside[t, k] is the score after stage t on the study's k-th task that is only evaluated,
        which no order holds; nan where not evaluated. K is 0 in a study without such tasks.
    outside_base: (K,), the untouched model's scores on these tasks.

    Runs with equally many tasks can be stacked along a first axis of all fields. A metric counts its axes
    from the last, so it returns one number for one run, and one number for each run of a stack.
    """

    R: np.ndarray
    sizes: np.ndarray
    base: np.ndarray
    outside: np.ndarray = field(default=None)  # type: ignore[assignment]
    outside_base: np.ndarray = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.outside is None:  # for no such tasks
            object.__setattr__(self, "outside", np.empty((*self.R.shape[:-1], 0)))
            object.__setattr__(self, "outside_base", np.empty((*self.R.shape[:-2], 0)))

    @classmethod
    def stack(cls, matrices: Sequence[ScoreMatrix]) -> ScoreMatrix:
        """Stack runs with equally many tasks."""
        return cls(*(np.array([getattr(matrix, f.name) for matrix in matrices]) for f in fields(cls)))

    def run(self, number: int) -> ScoreMatrix:
        """Return one run of a stack."""
        return ScoreMatrix(*(getattr(self, f.name)[number] for f in fields(self)))

    def first(self, stages: int) -> ScoreMatrix:
        """Return the sequence as it is after so many stages, as if it ended there."""
        t = slice(stages)
        return ScoreMatrix(
            self.R[..., t, t],
            self.sizes[..., t],
            self.base[..., t],
            self.outside[..., t, :],
            self.outside_base,
        )

    def diagonal(self, later: int = 0) -> np.ndarray:
        """Return R[t, t + later]: each task right after its stage, or `later` stages before it."""
        return self.R.diagonal(later, axis1=-2, axis2=-1)

    @property
    def together(self) -> np.ndarray | np.bool_:
        """Return whether only the last row is filled: a joint run, or a single task."""
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


def reads_outside(metric: Callable[[ScoreMatrix], MetricValue]) -> bool:
    """Return whether a metric depends on the tasks that are only evaluated. The metric itself is asked.

    False for a metric that raises; `search_rules.why_unfit` says so where it matters.
    """
    R, ones = np.where(np.tri(3, dtype=bool), 0.5, np.nan), np.ones(3)
    without = ScoreMatrix(R, ones, ones / 4, np.full((3, 1), np.nan), np.full(1, np.nan))
    measured = replace(without, outside=np.full((3, 1), 0.75), outside_base=np.full(1, 0.25))
    try:
        return not np.array_equal(metric(without), metric(measured), equal_nan=True)
    except Exception:  # a user's metric may raise anything
        return False
