"""Mean score on the tasks seen so far, averaged over the stages."""

from __future__ import annotations

import numpy as np

from dgg_ray.core.interfaces import ScoreMatrix, Value, mean

RANGE = (0.0, 1.0)


def maa(scores: ScoreMatrix) -> Value:
    """Mean average accuracy: over the stages, of the mean score on the tasks learned by then; in [0, 1].

        MAA = 1/T · Σ_t ( 1/(t+1) · Σ_{j ≤ t} R[t, j] )

    MCITlib, arXiv:2508.07307. Early tasks weigh more, because they are examined more often.
    nan where a cell on or below the diagonal was not examined, so for a joint run of two tasks or more.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.6, 0.9]])
    >>> round(maa(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)
    0.775
    """
    learned = np.tri(scores.R.shape[-1], dtype=bool)  # (t, i): stage t had learned task i
    return mean(np.where(learned, scores.R, 0).sum(axis=-1) / learned.sum(axis=-1))
