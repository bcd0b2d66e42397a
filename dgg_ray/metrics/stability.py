"""What is left at the end of the tasks learned earlier."""

from __future__ import annotations

from dgg_ray.core.interfaces import ScoreMatrix, Value, mean

RANGE = (0.0, 1.0)


def stability(scores: ScoreMatrix) -> Value:
    """Mean final score on the tasks learned before the last one; in [0, 1].

        stability = 1/(T-1) · Σ_{i < T-1} R[T-1, i]

    The keeping half of the stability-plasticity dilemma (Mermillod, Bugaiska & Bonin, Frontiers in
    Psychology 4:504, 2013), read as DGG reads it: the old tasks' scores against the new task's.
    An absolute score and not the share R[T-1, i] / R[i, i] that was kept: a task that was never
    learned keeps all of nothing, and must not count as stable.
    nan for a single task, for a joint run (nothing was learned before anything else), and where a
    task was not examined after the last stage.

    >>> import numpy as np
    >>> R = np.array([[0.7, np.nan, np.nan], [0.8, 0.5, np.nan], [0.6, 0.4, 0.9]])
    >>> matrix = ScoreMatrix(R, sizes=np.array([100, 50, 10]), base=np.zeros(3))
    >>> round(stability(matrix), 6)  # (0.6 + 0.4) / 2
    0.5
    """
    return mean(scores.R[..., -1, :-1], where=~scores.together)
