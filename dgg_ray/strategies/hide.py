"""HiDe-LLaVA: one LoRA per task, chosen by similarity in the top layer and merged below it.

    training    y = W x + s · B_t A_t x̃                               the new task's slot alone
    evaluation  y = W x + s · Σ_{k≤t} w_k B_k A_k x                   in the last decoder layer
                y = W x + s · (Σ_{k≤t} B_k A_k) x                     in all others, `exact`
                y = W x + s · (Σ_{k≤t} B_k) (Σ_{k≤t} A_k) x           in all others, `factorwise`
                w = softmax_k((cos(image, u_k) + cos(question, v_k)) / 2τ)

    symbol      here                    shape
    w           route                   (N, K), one row per example; one-hot for `argmax`
    u_k, v_k    Prototypes              (F,), (G,), mean features of task k
    τ           temperature             scalar
    A_k, B_k    adapters/lora_slots     (r, d_in), (d_out, r)

[1] Guo et al., ACL 2025, arXiv:2503.12941

[1] gives the merged slots weights, which its code sets to 1. The code merges factor by factor, and counts the
last layer of a 7B model for the last one of any; another code takes the nearest task alone (`argmax`).

Where we differ: u_k and v_k are exact means in fp32. The last layers are counted from the end of the model.
Each example has its own weights, whatever the batch, and only tasks that were trained have one. With a CLIP
encoder the question's features are projected, as the image's are; in [1]'s code they are not. Without one,
the base model itself gives the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.strategies._prototypes import PrototypeStrategy


@dataclass(frozen=True)
class HiDe(PrototypeStrategy):
    """Train a LoRA for each task; weigh them in the last layers and merge them below.

    temperature: τ, by which similarities are divided before the softmax over tasks.
    routed_layers: number of the last decoder layers that weigh the slots for each example.
    merge: how the slots of the other layers act together: the sum of the products, or the product of the
        sums, with its cross terms.
    top: whether the last layers mix the slots, or take the nearest task's alone; τ then plays no part.
    """

    starts_plain = True
    known_from = "released code"

    temperature: Annotated[float, Gt(0)] = 0.1
    routed_layers: Annotated[int, Ge(1)] = 1
    merge: Literal["exact", "factorwise"] = "exact"
    top: Literal["softmax", "argmax"] = "softmax"

    def layout(self):
        return LoraSlots("current", self.routed_layers, self.merge)

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier:
            temperature = {"temperature": self.temperature} if self.top == "softmax" else {}
            effect["hide"] = {**self.prototype_effect(), "top": self.top, **temperature}
        return effect

    def route(self, examples):
        scores = (self.image_cosines(examples) + self.question_cosines(examples)) / 2
        if self.top == "softmax":
            return (scores / self.temperature).softmax(1)
        from torch.nn.functional import one_hot

        return one_hot(scores.argmax(1), scores.shape[1]).to(scores)
