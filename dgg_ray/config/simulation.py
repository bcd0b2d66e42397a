"""A stability–plasticity law that is known: what a simulated learner scores, and what it costs.

After learning task t with guidance on a share α of the steps, a buffer of m examples a task and rank r:

    s_t ← top_t · c(r) · (1 − rigid_t α²) · (1 − transfer · lost) − place · (tasks before)    the new task
    s_i ← s_i · (1 − frail_t · (s_i/top_i)^bend · (1 − h (1 − (1−α)²)) / (1 + m/m₀))      each earlier i
    c(r) = 1 − 0.3 · 2^(−r/8)        h = 0.85        m₀ = 50        lost: mean of 1 − s_i/top_i

More guidance keeps more of the old and takes from the new, with an optimum of its own inside (0, 1)
for every task. top, rigid and frail are drawn for each task's name. The form is ours: it has the
directions that DGG reports, and no measured size. A joint stage gives s_i = top_i · c(r).

With bend and transfer at 0 what a task's α does hangs on no other task's: scores keep their proportion
whatever comes later. Searching task by task, and curves of one task's α, take that for granted; the two
say how they fare where it is not so. With bend below 0 what is half forgotten is lost faster, so that
guidance pays later than at its own stage, which a search task by task does not see when it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from dgg_ray.core import draws
from dgg_ray.core.errors import STRICT

HOLD, BUFFER = 0.85, 50.0  # h, m₀
GUESS = 0.1  # score on a task that was never learned


class Nature(NamedTuple):
    """A task's constants: best score, score lost at α = 1, share of old scores that learning it costs."""

    top: float
    rigid: float
    frail: float
    pace: float  # seconds an example costs, against the others


@dataclass(frozen=True)
class Law:
    """Constants of the law, and of what hides it.

    seed: the seed by which the tasks' natures are drawn.
    noise: standard deviation of what training adds to each task's true score at each stage.
    shared: the part of that variance that all settings have in common on one order and seed, as with
        common random numbers.
    evaluation_noise: whether an evaluation of n examples adds binomial noise, √(s(1−s)/n).
    place: score that a new task loses for each task before it.
    bend: how much more of a high score is forgotten than of a low one; at 0 the same share, below 0 less.
    transfer: share of a new task's score that is missing where all of the old ones is forgotten.
    seconds: simulated seconds of training a thousand examples; evaluating one costs a third.
    spread: relative standard deviation of a stage's time.
    wait: real seconds that a worker waits for each simulated second; 0 is at once.
    """

    __pydantic_config__ = STRICT

    seed: int = 0
    noise: Annotated[float, Ge(0)] = 0.01
    shared: Annotated[float, Ge(0), Le(1)] = 0.5
    evaluation_noise: bool = True
    place: float = 0.0
    bend: Annotated[float, Ge(-3), Le(10)] = 0.0
    transfer: Annotated[float, Ge(0), Le(1)] = 0.0
    seconds: Annotated[float, Ge(0)] = 60.0
    spread: Annotated[float, Ge(0)] = 0.05
    wait: Annotated[float, Ge(0)] = 0.0

    @property
    def meaning(self) -> dict[str, Any]:
        """What decides scores and costs, for keys. What the law was given later counts where it is used:
        stages of before keep their keys, and their noise with them."""
        later = {name: value for name in ("bend", "transfer") if (value := getattr(self, name))}
        first = ("seed", "noise", "shared", "evaluation_noise", "place", "seconds", "spread")
        hashed = {"evaluation_noise": "exam_noise"}  # the name in keys that were made before
        return {hashed.get(name, name): getattr(self, name) for name in first} | {"wait": 0.0} | later

    def nature(self, task: str) -> Nature:
        return nature(self.seed, task)

    def learned(
        self, skills: Mapping[str, float], task: str, alpha: float, buffer: float, rank: float
    ) -> dict[str, float]:
        """True scores after learning one more task, without noise; the first task has no guidance."""
        top, rigid, frail, _ = self.nature(task)
        alpha = alpha if skills else 0.0
        left = {name: score / self.nature(name).top for name, score in skills.items()}
        gone = 1 - sum(left.values()) / len(left) if left else 0.0
        own = top * capacity(rank) * (1 - rigid * alpha**2) * (1 - self.transfer * gone)
        share = frail * (1 - HOLD * (1 - (1 - alpha) ** 2)) / (1 + buffer / BUFFER)
        kept = {name: score * (1 - self.lost(share, left[name])) for name, score in skills.items()}
        return {**kept, task: own - self.place * len(skills)}

    def lost(self, share: float, left: float) -> float:
        """The share of a score that is forgotten where this share of the best is left; at most all of it."""
        if self.bend >= 0:
            return share * left**self.bend
        return np.minimum(share * np.maximum(left, 0.01) ** self.bend, 1.0)  # arrays too, as in benchmarks

    def together(self, tasks: tuple[str, ...], rank: float) -> dict[str, float]:
        """True scores after learning all at once."""
        return {name: self.nature(name).top * capacity(rank) for name in tasks}


def capacity(rank: float) -> float:
    """c(r): the share of a task's best score that adapters of this rank can reach."""
    return 1 - 0.3 * 2 ** (-rank / 8)


@lru_cache(maxsize=4096)
def nature(seed: int, task: str) -> Nature:
    u = draws.generator(seed, task, "nature").random(4)
    return Nature(0.6 + 0.35 * u[0], 0.1 + 0.5 * u[1], 0.15 + 0.45 * u[2], 0.7 + 0.6 * u[3])
