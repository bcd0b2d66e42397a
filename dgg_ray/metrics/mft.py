"""Mean score on each task right after its training."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def mft(scores: ScoreMatrix) -> MetricValue:
    """Mean fine-tuning accuracy: mean score of each task right after its training; in [0, 1].

        MFT = 1/T · Σ_t R[t, t]

    MCITlib, arXiv:2508.07307. The first task counts here and not in `plasticity`. nan where a task was not
    evaluated right after its stage, so for a joint run of two tasks or more.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> round(mft(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)  # (0.8 + 0.9) / 2
    0.85
    """
    return mean(scores.diagonal())
