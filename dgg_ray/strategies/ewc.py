"""Elastic weight consolidation: hold each weight to its old value as firmly as the old task needs it.

    L(θ) = L_t(θ) + λ/2 · Σ_k Σ_j F_kj (θ_j - θ*_kj)²       [1, eq. 3], one term per finished task k
    g    ← g + λ · Σ_k F_k ⊙ (θ - θ*_k)                     its gradient, added once per optimizer step
    F_k  = mean over N examples of (∂ℓ_n/∂θ)² at θ*_k       diagonal of the empirical Fisher information
    ℓ_n  = mean negative log-likelihood per answer token of example n

    online [2]:  F = Σ_k γ^(t-1-k) F_k, and θ* = θ*_{t-1} alone

    symbol  here            shape            unit
    θ       weights         each tensor's    -
    θ*_k    weights_after   same as θ        -
    F_k     Fisher          same as θ        squared loss per squared unit of θ
    g       gradients       same as θ        loss per unit of θ
    λ       strength        scalar           1 / loss
    γ       decay           scalar           -

[1] Kirkpatrick et al., PNAS 2017, arXiv:1612.00796
[2] Schwarz et al., ICML 2018, arXiv:1805.06370

Our choices, where codes differ by factors:
- λ/2 stands in the penalty. Codes with λ instead of λ/2 exert the same force at half our λ.
- Each example's gradient is squared by itself. Codes that square the gradient of a mean over n examples find
  an F that is smaller by about n, and need a λ that is larger by as much.
- ℓ_n is a mean over the example's answer tokens, without dropout. θ are the LoRA factors, not their product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Fact, Needs, ReplayStrategy


@dataclass(frozen=True)
class Fisher(Fact):
    """Diagonal of the empirical Fisher information of a finished stage: {fisher: one tensor per weight}.

    samples: number of training examples, drawn without replacement; all where the task has fewer.
    """

    samples: int = 200

    def compute(self, context, task):
        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "fisher")[: self.samples]
        return {"fisher": context.mean_squared_gradient([train[i] for i in drawn])}


@dataclass(frozen=True)
class EWC(ReplayStrategy):
    """Pull each weight towards its old values in proportion to its Fisher information.

    strength: λ; 0 is plain fine-tuning, or replay where there is a buffer.
    fisher_samples: number of examples that a task's Fisher information is estimated from.
    mode: one term per finished task, or one decaying sum (`online`) whose cost does not grow.
    decay: γ of the online sum, per task.
    """

    starts_plain = True
    needs = Needs(earlier_stages=True, engines=WHOLE_WEIGHTS, fact_values=1)
    known_from = "released code"

    strength: Annotated[float, Ge(0)] = 5000.0
    fisher_samples: Annotated[int, Ge(1)] = 200
    mode: Literal["per_task", "online"] = "per_task"
    decay: Annotated[float, Ge(0), Le(1)] = 1.0

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier and self.strength:
            effect["ewc"] = {"strength": self.strength, "samples": self.fisher_samples, "mode": self.mode}
            if self.mode == "online":
                effect["ewc"]["decay"] = self.decay
        return effect

    def prepare(self):
        import torch  # here, so that planning with a strategy does not load torch

        context, terms = self.context, []
        for task in context.earlier if self.strength else ():
            fisher = context.shard(context.fact(Fisher(self.fisher_samples), task)["fisher"])
            if self.mode == "online" and terms:
                fisher = torch._foreach_add(fisher, terms.pop()[0], alpha=self.decay)
            terms.append((fisher, context.shard(context.weights_after(task))))
        self.cache["terms"] = terms  # (F_k, θ*_k) of each term

    def edit_gradient(self, weights, gradients, step):
        import torch

        for fisher, anchor in self.cache["terms"]:
            d = torch._foreach_sub(list(weights), anchor)  # θ - θ*_k
            torch._foreach_mul_(d, fisher)
            torch._foreach_add_(list(gradients), d, alpha=self.strength)
