"""Experience replay: keep a few examples of each finished task and train on the union.

    L(θ) = L(θ; T_t ∪ M),   M = ∪_{i<t} M_i,   |M_i| = buffer

Each M_i is a uniform sample without replacement of task i's training examples, drawn once from
the seed and nested in its size (`strategy.replay_sample`). The union is shuffled as a whole, so
the share of old examples in a batch falls as the new task grows. This is the loss of DGG [1].

DGG with α = 0 and the same buffer is this strategy: the control that any claim for α needs.

[1] Li, Gao, Su, Zhang & Wang 2026, on Dynamic Gradient Guidance. A uniform sample per task is the
    simplest of the ways that Chaudhry et al. 2019 compare, arXiv:1902.10486.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from dgg_ray.core.strategy import ReplayStrategy


@dataclass(frozen=True)
class Replay(ReplayStrategy):
    """Mix `buffer` examples of each finished task into the new one."""

    known_from = "published formula"

    buffer: Annotated[int, Ge(0)] = 100

    def effect(self, task, earlier):
        return self.replay_effect(earlier)
