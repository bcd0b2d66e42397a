"""Final average accuracy, each task weighted by its number of examples."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def faa(scores: ScoreMatrix) -> MetricValue:
    """Mean final score over the examples of all tasks; in [0, 1].

        FAA = Σ_i n_i R[T-1, i] / Σ_i n_i

    The score that DGG reports. With equal sizes it is `average_accuracy`. Defined for a joint run
    and for a single task; nan where a task was not evaluated after the last stage.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> round(faa(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)  # (60 + 45) / 150
    0.7
    """
    return mean(scores.R[..., -1, :], weights=scores.sizes)
