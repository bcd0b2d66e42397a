"""Mean final accuracy: the name of average accuracy in MCITlib's tables."""

from __future__ import annotations

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (0.0, 1.0)


def mfn(scores: ScoreMatrix) -> MetricValue:
    """Mean final accuracy: `average_accuracy` under the name of MCITlib's tables; in [0, 1].

        MFN = 1/T · Σ_i R[T-1, i]

    MCITlib, arXiv:2508.07307. The unweighted mean over the tasks of the score after the last stage, as in the
    published UCIT tables, so that a study can be compared with them. nan where a task was not evaluated
    after the last stage.

    >>> import numpy as np
    >>> R = np.array([[0.8, np.nan], [0.5, 0.9]])
    >>> round(mfn(ScoreMatrix(R, sizes=np.array([100, 50]), base=np.array([0.1, 0.2]))), 6)  # (0.5 + 0.9) / 2
    0.7
    """
    return mean(scores.R[..., -1, :])
