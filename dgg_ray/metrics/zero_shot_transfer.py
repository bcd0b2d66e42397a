"""Effect of earlier tasks on all tasks that are still to come."""

from __future__ import annotations

import numpy as np

from dgg_ray.core.scores import MetricValue, ScoreMatrix, mean

RANGE = (-1.0, 1.0)


def zero_shot_transfer(scores: ScoreMatrix) -> MetricValue:
    """Mean gain over the base model on tasks that are not trained yet, after every stage; in [-1, 1].

        ZST = 2/(T(T-1)) · Σ_{t < i} ( R[t, i] - base[i] )

    `forward_transfer` takes the score right before a task's own stage alone, t = i - 1; this metric takes
    all stages before it. These are the entries of Transfer in Zheng et al., ICCV 2023, arXiv:2303.06628,
    from which nothing is subtracted there. It needs `protocol.evaluate: all`; with two tasks, `next` is
    enough. nan for a single task, a joint run, and where an entry it needs was not evaluated.

    >>> import numpy as np
    >>> R = np.array([[0.7, 0.3, 0.1], [0.8, 0.5, 0.4], [0.6, 0.6, 0.9]])
    >>> matrix = ScoreMatrix(R, sizes=np.ones(3), base=np.array([0.0, 0.1, 0.2]))
    >>> round(zero_shot_transfer(matrix), 6)  # ((0.3 - 0.1) + (0.1 - 0.2) + (0.4 - 0.2)) / 3
    0.1
    """
    t, i = np.triu_indices(scores.R.shape[-1], k=1)  # i > t: task i is still to come at stage t
    return mean(scores.R[..., t, i] - scores.base[..., i])
