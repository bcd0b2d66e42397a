"""Averaged gradient episodic memory: never step against the gradient of remembered examples.

    g_r = gradient of the mean loss on examples drawn from the memories of all earlier tasks
    g   ← g - (⟨g, g_r⟩ / ⟨g_r, g_r⟩) g_r   if ⟨g, g_r⟩ < 0,   else g                 [1, eq. 11]

    symbol  here        shape               unit
    g       gradients   each tensor's       loss per unit of θ
    g_r     reference   same as g           loss per unit of θ

The memory is `buffer` examples of each finished task, the sample that replay would mix in. Here they are not
trained on: they only bound the direction. The minibatch of a step depends on seed, task and step alone.

[1] Chaudhry et al., ICLR 2019, arXiv:1812.00420. The reference gradient is taken without dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, Strategy, remembered

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.core.interfaces import ShardedTensors


@dataclass(frozen=True)
class AGEM(Strategy):
    """Project the gradient so that the loss on remembered examples does not rise.

    buffer: number of examples remembered of each finished task; 0 is plain fine-tuning.
    reference_examples: number of remembered examples behind each step's reference gradient.
    """

    starts_plain = True
    needs = Needs(old_data=True, engines=WHOLE_WEIGHTS, step_cost=2.0)  # with as many examples as a batch has
    known_from = "released code"

    buffer: Annotated[int, Ge(0)] = 100
    reference_examples: Annotated[int, Ge(1)] = 32

    def effect(self, task, earlier):
        settings = {"buffer": self.buffer, "reference_examples": self.reference_examples}
        return {"a_gem": settings} if earlier and self.buffer else {}

    def prepare(self):
        context = self.context
        self.cache["memory"] = [
            example for task in context.earlier for example in remembered(context, task, self.buffer)
        ]

    def edit_gradient(self, weights, gradients, step):
        memory = self.cache["memory"]
        if not memory:
            return
        context = self.context
        drawn = rng.permutation(len(memory), context.seed, context.task, "a-gem", step)
        examples = [memory[i] for i in drawn[: self.reference_examples]]
        project(weights, gradients, context.shard(context.gradient(examples)))


def project(weights: ShardedTensors, gradients: ShardedTensors, reference: Sequence[Tensor]) -> None:
    """Take from the gradients, in place, their part against the reference; nothing where they agree."""
    import torch  # here, so that planning with a strategy does not load torch

    against = weights.inner(gradients, reference)
    if against < 0:
        share = (against / weights.inner(reference, reference)).item()
        torch._foreach_add_(list(gradients), list(reference), alpha=-share)
