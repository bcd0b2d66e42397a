"""Stability: the mean final score of the earlier tasks."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def stability(scores: ScoreMatrix) -> MetricValue:
    """Mean final score on the tasks trained before the last one; in [0, 1].

        stability = 1/(T-1) · Σ_{i < T-1} R[T-1, i]

    The retention half of the stability-plasticity dilemma (Mermillod, Bugaiska & Bonin, Frontiers in
    Psychology 4:504, 2013), read as DGG reads it: the old tasks' scores against the new task's.
    An absolute score and not the retained share R[T-1, i] / R[i, i]: a task that was never learned
    could retain all of a score near 0, and must not count as stable.
    nan for a single task, for a joint run (no task was trained before another), and where a task was
    not evaluated after the last stage.

    >>> import numpy as np
    >>> R = np.array([[0.7, np.nan, np.nan], [0.8, 0.5, np.nan], [0.6, 0.4, 0.9]])
    >>> matrix = ScoreMatrix(R, sizes=np.array([100, 50, 10]), base=np.zeros(3))
    >>> round(stability(matrix), 6)  # (0.6 + 0.4) / 2
    0.5
    """
    return mean(scores.R[..., -1, :-1], where=~scores.together)
