"""RegLoRA, of SEFE: a new LoRA per task, which leaves the key elements of the earlier tasks alone.

    L(θ)  = CE(θ) + λ · 1/M · Σ_linears R,   R = mean over (i, j) in K of |(B_t A_t)_ij|        [1]
    K     = K_1 … K_{t-1} one after another: an element that two tasks chose counts twice
    K_k   = the ⌊p · numel⌋ elements of this linear with the largest |B_k A_k|

    symbol  here                    shape               unit
    B_t A_t product                 (d_out, d_in)       - (without LoRA's scale s)
    K_k     KeyElements             (⌊p d_out d_in⌋,)   positions in the flattened product
    M       number of linears       scalar              -
    λ       strength                scalar              loss per unit of B A
    p       share                   scalar              -

Its gradient is added once per optimizer step. With N_ij = how often (i, j) is in K, and S = λ / (M |K|) ·
sign(B_t A_t) ⊙ N, it is S A_tᵀ with respect to B_t and B_tᵀ S with respect to A_t.

Earlier LoRAs are merged into W in [1]. Here they are frozen slots of weight 1, which is the same sum without
rounding. As R is a mean, each element is held more weakly the more tasks there are.

[1] Chen et al., SEFE, ICML 2025, arXiv:2505.02486. SEFE's other part, answer style diversification, is about
    data and no part of this strategy: the tasks' setting `answer_styles` rewrites short answers by fixed
    rules, where SEFE takes a language model (readers/_answer_styles.py). For SEFE's own conversion, give the
    converted examples as the task's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Fact, Needs, ReplayStrategy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeyElements(Fact):
    """The largest elements of a finished task's own update: {elements: one tensor of positions per linear}.

    share: of all elements of a linear, rounded down to whole elements.
    """

    share: float = 0.02

    def compute(self, context, task):
        import torch

        from dgg_ray.adapters._lora_layers import factor_indices

        theta, elements = context.parameters(), []
        for a, b in factor_indices(context.names).values():
            size = (theta[b] @ theta[a]).abs().flatten()
            elements.append(size.topk(int(self.share * size.numel())).indices.to(torch.int32))
        return {"elements": elements}


@dataclass(frozen=True)
class RegLoRA(ReplayStrategy):
    """Train a fresh LoRA for each task on the frozen ones, small where earlier tasks changed most.

    strength: λ, the weight of the penalty; 0 leaves the new LoRA free.
    share: the share p of a linear's elements that a task has as key elements.
    count_duplicates: whether an element that several tasks chose counts several times.
    """

    starts_plain = True
    # 2 % of a 4096 x 4096 product are 2.6 positions for each weight of a LoRA of rank 16.
    needs = Needs(earlier_stages=True, engines=WHOLE_WEIGHTS, fact_values=3)
    known_from = "released code"

    strength: Annotated[float, Ge(0)] = 2500.0
    share: Annotated[float, Gt(0), Le(1)] = 0.02
    count_duplicates: bool = True

    def layout(self):
        return LoraSlots()

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier:
            effect["reg_lora"] = {"strength": self.strength}
            if self.strength:
                effect["reg_lora"] |= {"share": self.share, "duplicates": self.count_duplicates}
        return effect

    def prepare(self):
        import torch  # here, so that planning with a strategy does not load torch

        context, self.cache["key"] = self.context, []
        earlier = context.earlier if self.strength else ()
        chosen = [context.fact(KeyElements(self.share), task)["elements"] for task in earlier]
        for of_tasks in zip(*chosen, strict=True):
            elements = torch.cat(of_tasks)
            self.cache["key"].append(elements if self.count_duplicates else elements.unique())

    def edit_gradient(self, weights, gradients, step):
        import torch

        from dgg_ray.adapters._lora_layers import factor_indices

        if not self.cache["key"]:
            return
        theta = self.context.parameters()
        penalty = [torch.zeros_like(p) for p in theta]
        layers = factor_indices(self.context.names)
        for (a, b), elements in zip(layers.values(), self.cache["key"], strict=True):
            slope = key_slope(theta[b] @ theta[a], elements) * (self.strength / len(layers))
            penalty[a], penalty[b] = theta[b].T @ slope, slope @ theta[a].T
        torch._foreach_add_(list(gradients), self.context.shard(penalty))


def key_slope(product: Tensor, elements: Tensor) -> Tensor:
    """Derivative of the mean of |product| over its elements at these positions; repeated ones count so often.

    product: (d_out, d_in). elements: (n,) positions in the flattened product; 0 everywhere for none.
    """
    import torch

    flat, positions = product.flatten(), elements.long()
    slope = torch.zeros_like(flat)
    slope.index_add_(0, positions, flat[positions].sign() / max(1, len(positions)))
    return slope.view_as(product)
