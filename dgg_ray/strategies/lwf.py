"""Learning without forgetting: keep answering the new examples as the old model would.

    L(θ) = CE(θ) + λ · τ² · mean over answer tokens of KL(softmax(z*/τ) ‖ softmax(z/τ))        [1]

    symbol  here                shape     unit
    z       outputs.logits      (n, V)    nats
    z*      outputs.logits_at   (n, V)    nats; of the weights that the stage started from, without dropout
    λ       strength            scalar    -
    τ       temperature         scalar    -

The logits are those before each answer token, for the new task's examples and for replayed ones.

[1] Li & Hoiem, ECCV 2016, arXiv:1606.09282; for answer tokens instead of classes

Released codes weigh the terms as (1-a)·CE + a·τ²·KL with a = 0.5 and τ = 2, or as CE + 0.5·KL. Up to a
common factor, which AdamW takes out, these are λ = 1 and λ = 0.125 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, ReplayStrategy


@dataclass(frozen=True)
class LwF(ReplayStrategy):
    """Distil the model as it was at the start of the stage, on the stage's own examples.

    strength: λ, the weight of the distillation; 0 is plain fine-tuning, or replay where there is a buffer.
    temperature: τ, by which both models' logits are divided.
    """

    starts_plain = True
    needs = Needs(earlier_stages=True, engines=WHOLE_WEIGHTS, step_cost=4 / 3)  # a forward pass is a third
    known_from = "released code"

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier and self.strength:
            effect["lwf"] = {"strength": self.strength, "temperature": self.temperature}
        return effect

    def prepare(self):
        if self.context.earlier and self.strength:
            self.cache["teacher"] = self.context.weights_after(self.context.earlier[-1])

    def edit_loss(self, loss, outputs):
        if "teacher" not in self.cache:
            return loss
        from torch.nn.functional import kl_div, log_softmax  # here: planning does not load torch

        old = log_softmax(outputs.logits_at(self.cache["teacher"]).float() / self.temperature, -1)
        new = log_softmax(outputs.logits.float() / self.temperature, -1)
        divergence = kl_div(new, old, reduction="sum", log_target=True)
        return loss + self.strength * self.temperature**2 * divergence
