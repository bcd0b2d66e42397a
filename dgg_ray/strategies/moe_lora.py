"""MoELoRA: token-routed LoRA experts that all tasks train in turn, the method of the CoIN benchmark.

    y = W x + s · Σ_e g_e(x) B_e A_e x̃,    g(x) = softmax(R x)          (adapters/lora_experts)

Nothing else sets it apart from plain fine-tuning: no balance of the load, no protection of old tasks. The
number of experts E is fixed in advance and not bound to tasks. As tokens choose their own mixture, the
adapter cannot be merged into W.

[1] Chen et al., NeurIPS 2024, arXiv:2403.08350. Its scripts set rank 128, alpha 256 and 8 experts, and train
    the projector too (2e-5), on Vicuna with a projector that was trained on captions alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from dgg_ray.adapters.lora_experts import LoraExperts
from dgg_ray.core.strategy import ReplayStrategy


@dataclass(frozen=True)
class MoELoRA(ReplayStrategy):
    """Fine-tune LoRA experts that a router of each layer mixes for every token.

    experts: E, the number of experts, which share the rank of the study equally.
    """

    known_from = "released code"

    experts: Annotated[int, Ge(1)] = 8

    def layout(self):
        return LoraExperts(self.experts)

    def effect(self, task, earlier):
        return self.replay_effect(earlier)
