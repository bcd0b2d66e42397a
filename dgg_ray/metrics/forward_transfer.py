"""Effect of earlier tasks on a task before its turn."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (-1.0, 1.0)


def forward_transfer(scores: ScoreMatrix) -> MetricValue:
    """Mean gain over the base model on each task right before it is trained; in [-1, 1].

        FWT = 1/(T-1) · Σ_{i ≥ 1} ( R[i-1, i] - base[i] )

    Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840, eq. 4, with the base model where they
    have a random one. nan for a single task, a joint run, and where tasks were not evaluated before
    their turn or the base model was not evaluated.

    >>> import numpy as np
    >>> R = np.array([[0.8, 0.25], [0.6, 0.9]])
    >>> round(forward_transfer(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)
    0.05
    """
    return mean(scores.diagonal(1) - scores.base[..., 1:])
