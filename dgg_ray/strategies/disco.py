"""DISCO: one LoRA per task, mixed for each question by the task that it sounds like.

    training    y = W x + s · B_t A_t x̃                          the new task's slot alone
    evaluation  y = W x + s · Σ_{k≤t} w_k B_k A_k x               in every layer
                w = softmax_k(cos(question, v_k) / τ)             [1, subspace selective activation]

    symbol      here                    shape
    w           route                   (N, K), one row per example
    v_k         Prototypes              (G,), mean question features of task k
    τ           temperature             scalar
    A_k, B_k    adapters/lora_slots     (r, d_in), (d_out, r)

[1] Guo et al., ICCV 2025, arXiv:2503.12897

[1] is a federated method: its server finds out which clients work on one task. This is its centralised form,
in which the tasks come one after another, and each has its own slot.

Where we differ from released codes of that form: v_k is an exact mean in fp32. Only tasks that were trained
have a weight, and each example has its own, whatever the batch. [1] adapts the feed-forward layers alone;
`adapter.targets` says here which. Without a folder of a CLIP model, the base model itself gives the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.strategies._prototypes import PrototypeStrategy


@dataclass(frozen=True)
class DISCO(PrototypeStrategy):
    """Train a LoRA for each task, and mix all by the similarity of questions.

    temperature: τ, by which similarities are divided before the softmax over tasks.
    """

    starts_plain = True
    known_from = "released code"

    temperature: Annotated[float, Gt(0)] = 0.05

    def layout(self):
        return LoraSlots(in_training="current")

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier:
            effect["disco"] = {**self.prototype_effect(), "temperature": self.temperature}
        return effect

    def route(self, examples):
        return (self.question_cosines(examples) / self.temperature).softmax(1)
