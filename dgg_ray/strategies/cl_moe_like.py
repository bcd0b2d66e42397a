"""CL-MoE as its paper describes it: experts are merged after each task, and tasks have gates of their own.

    y = W x + s · Σ_e [β g_e(x) + (1-β) G_k,e] B_e A_e x       at evaluation; g alone in training
    θ_e ← λ_e θ'_e + (1 - λ_e) θ_e                             for every layer's expert e, after a task

    symbol  here                            shape       unit
    θ_e     A_e, B_e after the task         as A, B     -
    θ'_e    weights_after the task before   as A, B     -
    g       adapters/lora_experts           (N, S, E)   one per token
    G_k     counts of task k, normalised    (L, E)      adds up to 1 in each of the L layers
    k       _nearest_task                   (N, K)      the task with the nearest mean features, one-hot
    β       token_share                     scalar      -
    λ_e     old_share_specific              scalar      for experts that the new task alone uses
            old_share                       scalar      for all others

The counts of a task say for each layer how often each expert is among a token's `top_experts` largest gates,
over the tokens of `counted_examples` training examples, at the end of training and before the merge. A task
uses an expert if that is among the `top_experts` with the largest counts of its layer. Routers are not
merged, nor is a trained projector.

[1] Huai et al., CVPR 2025, arXiv:2503.00413

What is published: the two formulas and a figure were read, not the full text. [1]'s released code cannot show
the rest: its merge changes no tensor, its mixing is commented out, and it has no clustering of tasks. So this
is a reconstruction. Ours are: that counts are taken in evaluation mode, that A and B are merged and not their
product, and that a cluster is one mean of features for each task. The shares 0.7, 0.3, 0.5 and the two
largest gates are constants of that code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from dgg_ray.adapters.lora_experts import LoraExperts
from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs
from dgg_ray.strategies._prototypes import PrototypeStrategy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CLMoELike(PrototypeStrategy):
    """Train MoELoRA; merge its experts with the old ones after a task, and mix in the task's own gates.

    experts: E, the number of experts, which share the rank of the study equally.
    token_share: β, the share of a token's own gates at evaluation; 1 is MoELoRA's.
    top_experts: number of largest gates of a token that are counted, and of experts that a task uses.
    old_share: λ, how much of an expert's old weights a merge keeps; 1 restores them.
    old_share_specific: λ of the experts that the new task alone uses.
    counted_examples: number of training examples over whose tokens a task's experts are counted.
    """

    needs = Needs(earlier_stages=True, engines=WHOLE_WEIGHTS)
    unit_features = True
    known_from = "published formula"

    experts: Annotated[int, Ge(1)] = 8
    token_share: Annotated[float, Ge(0), Le(1)] = 0.5
    top_experts: Annotated[int, Ge(1)] = 2
    old_share: Annotated[float, Ge(0), Le(1)] = 0.7
    old_share_specific: Annotated[float, Ge(0), Le(1)] = 0.3
    counted_examples: Annotated[int, Ge(1)] = 200

    def layout(self):
        return LoraExperts(self.experts, self.token_share)

    def effect(self, task, earlier):
        settings = {"top": self.top_experts, "counted": self.counted_examples, **self.prototype_effect()}
        if earlier:
            settings |= {"old_share": self.old_share, "old_share_specific": self.old_share_specific}
        return {**self.replay_effect(earlier), "cl_moe_like": settings}

    @property
    def attached(self) -> LoraExperts:
        """The layout as it is on the model."""
        layout = self.context.layout
        assert isinstance(layout, LoraExperts)
        return layout

    def prepare(self):
        if not self.context.steps:  # an evaluation
            counts = self.memory["counts"].float().to(self.context.parameters()[0].device)
            gates = counts / counts.sum(-1, keepdim=True)  # (K, L, E)
            self.attached.set_task_gates(list(gates.transpose(0, 1)))

    def end_task(self, weights):
        import torch  # here, so that planning with a strategy does not load torch

        counts = self.count_experts()[None]  # (1, L, E)
        if earlier := self.context.earlier:
            before, own = self.memory["counts"].to(counts.device), self.context.parameters()
            old = self.context.weights_after(earlier[-1])
            merged = self.merged(old, own, self.old_shares(before, counts[0]))
            for theta, mean in zip(weights, self.context.shard(merged), strict=True):
                theta.copy_(mean)
            counts = torch.cat([before, counts])
        self.memory["counts"] = counts

    def count_experts(self) -> Tensor:
        """Return how often each expert of each layer is among a token's largest gates now, (L, E)."""
        import torch

        context = self.context
        train = context.examples(context.task)
        drawn = rng.permutation(len(train), context.seed, context.task, "experts")[: self.counted_examples]
        with torch.no_grad(), self.attached.counting(self.top_experts) as counts:
            context.losses([train[i] for i in drawn])
        return torch.stack(list(counts.values()))

    def old_shares(self, before: Tensor, counts: Tensor) -> Tensor:
        """Return λ of each expert of each layer, (L, E).

        before: counts of the earlier tasks, (K, L, E). counts: of the new one, (L, E).
        """
        import torch

        used_before = used(before, self.top_experts).any(0)
        specific = used(counts, self.top_experts) & ~used_before
        return torch.where(specific, self.old_share_specific, self.old_share)

    def merged(self, old: list[Tensor], new: list[Tensor], shares: Tensor) -> list[Tensor]:
        """Return the weights after the merge; all but A and B are the new ones.

        shares: λ of each expert of each layer, (L, E).
        """
        import torch

        names = self.attached.module_names
        share_of = {f"{name}.lora_{side}.default.weight": i for i, name in enumerate(names) for side in "AB"}
        merged = []
        for name, before, after in zip(self.context.names, old, new, strict=True):
            if name not in share_of:
                merged.append(after)
                continue
            is_a = ".lora_A." in name
            share = shares[share_of[name]].to(after)
            share = share.repeat_interleave(after.shape[0 if is_a else 1] // self.experts)
            merged.append(torch.lerp(after, before, share[:, None] if is_a else share[None]))
        return merged

    def route(self, examples):
        return None if self.token_share == 1 else self._nearest_task(examples)

    def state(self):
        return {"counts": self.memory["counts"]}

    def load_state(self, state):
        self.memory["counts"] = state["counts"]


def used(counts: Tensor, top: int) -> Tensor:
    """Mask of the `top` experts with the largest counts of their layer; (…, E), bool.

    Of equal counts, the first experts come first.
    """
    import torch

    order = torch.argsort(counts, dim=-1, descending=True, stable=True)[..., :top]
    return torch.zeros_like(counts, dtype=torch.bool).scatter(-1, order, True)
