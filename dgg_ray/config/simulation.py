"""The response model of the simulated learner: which scores a stage yields, and what it costs.

After training task t with guidance on a share α of the steps, a buffer of m examples a task and rank r:

    s_t ← top_t · c(r) · (1 − rigid_t α²) · (1 − transfer · lost) − place · (tasks before)    the new task
    s_i ← s_i · (1 − frail_t · (s_i/top_i)^bend · (1 − h p(α)) / (1 + m/m₀))      each earlier i
    p(α) = 1 − (1−α)²        or, with a width `peak`,  exp(−ln²((α + 0.05) / (a_t + 0.05)) / 2 peak²)
    c(r) = 1 − 0.3 · 2^(−r/8)        h = 0.85        m₀ = 50        lost: mean of 1 − s_i/top_i

A larger α keeps more of the old scores and takes from the new one, so each task has an optimum inside (0, 1).
top, rigid, frail and a_t are drawn by each task's name. With `change`, the new task's score is multiplied by
1 − change · |α − α of the stage before| from the third task on. The form is ours: it has the directions that
DGG reports, not its measured sizes. A joint stage gives s_i = top_i · c(r).

A task k that is only evaluated begins at s_k = 0.7 top_k on the untouched model. Each trained task takes half
of the share that it would take of an earlier task, with m = 0 because nothing of k is replayed; a joint stage
does so for each of its tasks, without guidance. Training adds no noise to these scores.

With bend and transfer at 0, the effect of a task's α depends on no other task's α, because scores keep their
proportion whatever comes later. The search task by task and the curves of one task's α assume this; bend and
transfer show how they do where it does not hold. With bend below 0 a half-forgotten score is lost faster, so
guidance pays later than at its own stage, and with `change` a task's α bears on the next task. A search task
by task does not see that when it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from dgg_ray.core.errors import STRICT
from dgg_ray.core.rng import make_rng

HOLD, BUFFER = 0.85, 50.0  # h, m₀
UNTOUCHED, OUTSIDE = 0.7, 0.5  # of a task that is only evaluated: its first score, its part in forgetting
PEAKS = 0.1, 7.0  # the lowest place of a peak, and how many times that the highest is
NEAR_ZERO = 0.05  # added to α in the logarithm
LATER = ("bend", "transfer", "change", "peak", "tails")  # constants that were added later
GUESS = 0.1  # score on a task that was never trained


class TaskConstants(NamedTuple):
    """A task's constants: its best score, the score lost at α = 1, the share of old scores that it costs."""

    top: float
    rigid: float
    frail: float
    pace: float  # seconds that an example takes, relative to the other tasks
    peak: float  # a_t, the α that protects earlier tasks best where `peak` is set, from 0.1 to 0.7


@dataclass(frozen=True)
class ResponseModel:
    """The constants of the response model, and of the noise on top of it.

    seed: the seed by which the tasks' constants are drawn.
    noise: scale of what training adds to each task's true score at each stage: its standard deviation where
        `tails` is 0.
    shared: the part of that variance that all settings share on one order and seed, as with common random
        numbers.
    evaluation_noise: whether an evaluation of n examples adds binomial noise, √(s(1−s)/n).
    place: the score that a new task loses for each task before it.
    bend: how much more of a high score is forgotten than of a low one; 0 is the same share, below 0 less.
    transfer: the share of a new task's score that is missing where all old scores are forgotten.
    change: the share of a new task's score that a change of α by 1 from the stage before costs.
    peak: width of the peak of protection over the logarithm of α; 0 for protection that grows with α.
    tails: degrees of freedom of Student's t, from which both parts of the noise are drawn; 0 for normal ones.
    seconds: simulated seconds of training a thousand examples; evaluating one costs a third.
    spread: relative standard deviation of a stage's time.
    wait: real seconds that a worker waits for each simulated second; 0 does not wait.
    """

    __pydantic_config__ = STRICT

    seed: int = 0
    noise: Annotated[float, Ge(0)] = 0.01
    shared: Annotated[float, Ge(0), Le(1)] = 0.5
    evaluation_noise: bool = True
    place: float = 0.0
    bend: Annotated[float, Ge(-3), Le(10)] = 0.0
    transfer: Annotated[float, Ge(0), Le(1)] = 0.0
    change: Annotated[float, Ge(0), Le(1)] = 0.0
    peak: Annotated[float, Ge(0), Le(10)] = 0.0
    tails: Annotated[float, Ge(0), Le(100)] = 0.0
    seconds: Annotated[float, Ge(0)] = 60.0
    spread: Annotated[float, Ge(0)] = 0.05
    wait: Annotated[float, Ge(0)] = 0.0

    @property
    def meaning(self) -> dict[str, Any]:
        """The constants that decide scores and costs, as they are hashed into keys.

        Constants that were added later are hashed only where they are used, so that older keys stay.
        """
        later = {name: value for name in LATER if (value := getattr(self, name))}
        first = ("seed", "noise", "shared", "evaluation_noise", "place", "seconds", "spread")
        hashed = {"evaluation_noise": "exam_noise"}  # the name in older keys
        return {hashed.get(name, name): getattr(self, name) for name in first} | {"wait": 0.0} | later

    def task_constants(self, task: str) -> TaskConstants:
        return task_constants(self.seed, task)

    def trained(
        self,
        skills: Mapping[str, float],
        task: str,
        alpha: float,
        buffer: float,
        rank: float,
        alpha_before: float = 0.0,
    ) -> dict[str, float]:
        """True scores after training one more task, without noise; the first task has no guidance.

        alpha_before: α of the stage before.
        """
        top, rigid, frail, _, _ = self.task_constants(task)
        alpha = alpha if skills else 0.0
        left = {name: score / self.task_constants(name).top for name, score in skills.items()}
        forgotten = 1 - sum(left.values()) / len(left) if left else 0.0
        own = top * rank_capacity(rank) * (1 - rigid * alpha**2) * (1 - self.transfer * forgotten)
        if self.change and len(skills) > 1:
            own = own * (1 - self.change * abs(alpha - alpha_before))
        share = frail * (1 - HOLD * self.protection(alpha, task)) / (1 + buffer / BUFFER)
        kept = {name: score * (1 - self.lost(share, left[name])) for name, score in skills.items()}
        return {**kept, task: own - self.place * len(skills)}

    def protection(self, alpha: float, task: str) -> float:
        """p(α): the share of what guidance can keep of the old scores that it keeps."""
        if not self.peak:
            return 1 - (1 - alpha) ** 2
        place = self.task_constants(task).peak
        return np.exp(-0.5 * (np.log((alpha + NEAR_ZERO) / (place + NEAR_ZERO)) / self.peak) ** 2)

    def lost(self, share: float, left: float) -> float:
        """The share of a score that is forgotten; left: the share of the best score that it still has."""
        if self.bend >= 0:
            return share * left**self.bend
        return np.minimum(share * np.maximum(left, 0.01) ** self.bend, 1.0)  # arrays too, as in benchmarks

    def untouched_score(self, name: str) -> float:
        """The untouched model's true score on a task that is only evaluated."""
        return UNTOUCHED * self.task_constants(name).top

    def outside(self, score: float, name: str, task: str, alpha: float) -> float:
        """The true score on `name`, which is only evaluated, after `task` is trained; `score` before it."""
        share = OUTSIDE * self.task_constants(task).frail * (1 - HOLD * self.protection(alpha, task))
        return score * (1 - self.lost(share, score / self.task_constants(name).top))

    def trained_jointly(self, tasks: tuple[str, ...], rank: float) -> dict[str, float]:
        """True scores after training all tasks at once."""
        return {name: self.task_constants(name).top * rank_capacity(rank) for name in tasks}


def rank_capacity(rank: float) -> float:
    """c(r): the share of a task's best score that adapters of this rank can reach."""
    return 1 - 0.3 * 2 ** (-rank / 8)


@lru_cache(maxsize=4096)
def task_constants(seed: int, task: str) -> TaskConstants:
    u = make_rng(seed, task, "nature").random(5)
    peak = PEAKS[0] * PEAKS[1] ** u[4]
    return TaskConstants(0.6 + 0.35 * u[0], 0.1 + 0.5 * u[1], 0.15 + 0.45 * u[2], 0.7 + 0.6 * u[3], peak)
