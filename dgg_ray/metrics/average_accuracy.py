"""Mean final score, with equal weight for all tasks."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def average_accuracy(scores: ScoreMatrix) -> MetricValue:
    """Mean over the tasks of the score after the last stage, unweighted; in [0, 1].

        ACC = 1/T · Σ_i R[T-1, i]

    Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840, eq. 2. MCITlib calls it MFN, CL-MoE AP, HiDe-LLaVA
    the mean of Last. Defined for a joint run and for a single task; nan where a task was not
    evaluated after the last stage.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> round(average_accuracy(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)
    0.75
    """
    return mean(scores.R[..., -1, :])
