"""Effect of later tasks on earlier ones, against the score right after training."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (-1.0, 1.0)


def backward_transfer(scores: ScoreMatrix) -> MetricValue:
    """Mean change of the earlier tasks' scores since each was trained; in [-1, 1], negative is forgetting.

        BWT = 1/(T-1) · Σ_{i < T-1} ( R[T-1, i] - R[i, i] )

    Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840, eq. 3. It is measured from the diagonal,
    `forgetting` from the best earlier score: the two differ where a task gained before it lost.
    nan for a single task, a joint run, and where an entry it needs was not evaluated.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> round(backward_transfer(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)
    -0.2
    """
    return mean(scores.R[..., -1, :-1] - scores.diagonal()[..., :-1])
