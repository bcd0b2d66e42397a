"""L2-SP: a constant pull towards the weights that the stage started from.

    L(θ) = L_t(θ) + λ/2 · ‖θ - θ*‖²         [1, eq. 2 with β = 0]
    g    ← g + λ (θ - θ*)                   its gradient, added once per optimizer step

    symbol  here        shape               unit
    θ       weights     each tensor's       -
    θ*      anchor      same as θ           -
    g       gradients   same as θ           loss per unit of θ
    λ       strength    scalar              loss per squared unit of θ

It is the control for DGG that pulls to the same anchor on every step, with a force that grows with the
distance instead of being capped by ‖g‖. DGG without scaling at α = 1 is this with λ = 1.

[1] Li, Grandvalet & Davoine, ICML 2018, arXiv:1802.01483

Where we differ from [1]: the anchor is the start of each stage, not the pre-trained model; and θ
are the LoRA factors, so the pull acts on A and B, not on BA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from dgg_ray.core.strategy import ReplayStrategy


@dataclass(frozen=True)
class L2SP(ReplayStrategy):
    """Hold the weights near the start of the stage.

    strength: λ, how strong the pull is; 0 is plain fine-tuning, or replay where there is a buffer.
    """

    known_from = "published formula"

    strength: Annotated[float, Ge(0)] = 0.1

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier and self.strength:
            effect["l2sp"] = self.strength
        return effect

    def begin_task(self, weights, task, earlier, seed):
        if earlier and self.strength:
            self.memory["anchor"] = [theta.detach().clone() for theta in weights]  # θ*

    def edit_gradient(self, weights, gradients, step):
        import torch  # here, so that planning with a strategy does not load torch

        if anchor := self.memory.get("anchor"):
            d = torch._foreach_sub(list(weights), anchor)  # θ - θ*
            torch._foreach_add_(list(gradients), d, alpha=self.strength)
