"""Plasticity: the mean score of a new task right after its stage."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def plasticity(scores: ScoreMatrix) -> MetricValue:
    """Mean score on each task right after its training, except for the first task; in [0, 1].

        plasticity = 1/(T-1) · Σ_{t ≥ 1} R[t, t]

    The learning half of the stability-plasticity dilemma (Mermillod, Bugaiska & Bonin, Frontiers in
    Psychology 4:504, 2013), read as DGG reads it: the new task's score against the old tasks'.
    The first task is left out because no strategy holds it back. An absolute score, as `stability`
    is: in a ratio to R[i, i] this one would always be 1.
    nan for a single task, for a joint run (no task came after another), and where a task was not
    evaluated right after its stage.

    >>> import numpy as np
    >>> R = np.array([[0.7, np.nan, np.nan], [0.8, 0.5, np.nan], [0.6, 0.4, 0.9]])
    >>> matrix = ScoreMatrix(R, sizes=np.array([100, 50, 10]), base=np.zeros(3))
    >>> round(plasticity(matrix), 6)  # (0.5 + 0.9) / 2
    0.7
    """
    return mean(scores.diagonal()[..., 1:], where=~scores.together)
