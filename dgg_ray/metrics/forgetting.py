"""Loss since each task's best score."""

from __future__ import annotations

import numpy as np

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (-1.0, 1.0)


def forgetting(scores: ScoreMatrix) -> MetricValue:
    """Mean fall from each earlier task's best earlier score; in [-1, 1], negative for a gain.

        F = 1/(T-1) · Σ_{i < T-1} ( max_{i ≤ t < T-1} R[t, i] - R[T-1, i] )

    Chaudhry et al., ECCV 2018, arXiv:1801.10112, eq. 3; VQACL and CL-MoE report it as AF.
    Not clipped at 0: a task that ends above its best earlier score counts as a gain. The maximum
    starts where the task was trained, so the number does not depend on whether tasks were evaluated
    before their turn.
    nan for a single task, a joint run, and where an entry it needs was not evaluated.

    >>> import numpy as np
    >>> R = np.array([[0.7, np.nan, np.nan], [0.8, 0.5, np.nan], [0.6, 0.6, 0.9]])
    >>> matrix = ScoreMatrix(R, sizes=np.array([100, 50, 10]), base=np.zeros(3))
    >>> round(forgetting(matrix), 6)  # ((0.8 - 0.6) + (0.5 - 0.6)) / 2
    0.05
    """
    end, earlier = scores.R[..., -1, :-1], scores.R[..., :-1, :-1]
    trained = np.tri(earlier.shape[-1], dtype=bool)  # (t, i): task i was trained by stage t
    return mean(np.where(trained, earlier, -np.inf).max(axis=-2, initial=-np.inf) - end)
