"""Effect of the sequence on capabilities that are not in it."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (-1.0, 1.0)


def retention(scores: ScoreMatrix) -> MetricValue:
    """Mean change of the evaluate-only tasks' scores from the untouched model to the end; in [-1, 1].

        RET = 1/K · Σ_k ( outside[T-1, k] - outside_base[k] )

    K is the number of tasks with `evaluate_only: true`, which are never trained. 0 keeps what the base model
    can do; -0.02 is a loss of 2 points, and a positive value a gain. All of these tasks have equal weight,
    whatever their sizes. Defined for a joint run and for a single task; nan without such a task, and where
    one was not evaluated after the last stage or on the untouched model.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> outside = np.array([[0.7, 0.4], [0.5, 0.45]])  # two tasks, after each of two stages
    >>> run = ScoreMatrix(R, np.ones(2), np.ones(2), outside, outside_base=np.array([0.75, 0.4]))
    >>> round(retention(run), 6)  # ((0.5 - 0.75) + (0.45 - 0.4)) / 2
    -0.1
    """
    return mean(scores.outside[..., -1, :] - scores.outside_base)
