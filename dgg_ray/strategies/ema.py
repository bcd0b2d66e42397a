"""A moving average of the weights: the cheapest control against forgetting.

    θ̄ ← β θ̄ + (1 - β) θ      after every optimizer step; θ̄ begins where the stage begins
    θ ← θ̄                     at the end of the stage

    symbol  here                    shape            unit
    θ       weights                 each tensor's    -
    θ̄       memory["average"]       same as θ        -
    β       decay                   scalar           per step

A stage then ends between where it began and where fine-tuning would end. The next stage starts from θ̄. The
first task of an order is plain fine-tuning, as there is nothing to keep yet. β = 0 is fine-tuning.

Averages of iterates: Polyak & Juditsky 1992, doi:10.1137/0330046; with a decay, as in Tarvainen & Valpola,
NeurIPS 2017, arXiv:1703.01780. Its use between the tasks of a sequence is our reading of it as a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from dgg_ray.core.strategy import ReplayStrategy


@dataclass(frozen=True)
class EMA(ReplayStrategy):
    """End each stage at the moving average of its weights.

    decay: β, the share of the average that each step keeps; 0 is plain fine-tuning.
    """

    starts_plain = True
    known_from = "published formula"

    decay: Annotated[float, Ge(0), Lt(1)] = 0.99

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier and self.decay:
            effect["ema"] = self.decay
        return effect

    def begin_task(self, weights, task, earlier, seed):
        if self.decay:
            self.memory["average"] = [theta.detach().clone() for theta in weights]  # θ̄

    def after_step(self, weights, step):
        import torch  # here, so that planning with a strategy does not load torch

        if average := self.memory.get("average"):
            torch._foreach_lerp_(average, list(weights), 1 - self.decay)

    def end_task(self, weights):
        for theta, mean in zip(weights, self.memory.get("average", ()), strict=False):
            theta.copy_(mean)
