"""Mean score on the tasks seen so far, averaged over the stages."""

from __future__ import annotations

import numpy as np

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def maa(scores: ScoreMatrix) -> MetricValue:
    """Mean average accuracy: the mean score on the tasks trained so far, averaged over stages; in [0, 1].

        MAA = 1/T · Σ_t ( 1/(t+1) · Σ_{j ≤ t} R[t, j] )

    MCITlib, arXiv:2508.07307. Early tasks weigh more, because they are evaluated more often.
    nan where an entry on or below the diagonal was not evaluated, so for a joint run of two tasks or more.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> round(maa(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)
    0.775
    """
    trained = np.tri(scores.R.shape[-1], dtype=bool)  # (t, i): task i was trained by stage t
    return mean(np.where(trained, scores.R, 0).sum(axis=-1) / trained.sum(axis=-1))
