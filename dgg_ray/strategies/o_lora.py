"""O-LoRA: a new LoRA per task, whose directions are orthogonal to those of the earlier tasks.

    y    = W x + s · Σ_{k<t} B_k A_k x̃ + s · B_t A_t x̃       layout `LoraSlots`
    L(θ) = CE(θ) + λ₁ · Σ_linears Σ_ij |O_ij| + λ₂ · Σ_linears (‖A_t‖ + ‖B_t‖)          [1]
    O    = A_<t A_tᵀ,   A_<t = the rows of A_1 … A_{t-1}

    symbol  here                shape            unit
    A_t     weights             (r, d_in)        -
    A_<t    layout.frozen       (K·r, d_in)      -
    O       overlap             (K·r, r)         -
    λ₁      orthogonality       scalar           loss per unit of O
    λ₂      norm                scalar           loss per unit of θ
    ‖·‖     Frobenius norm, not squared

The penalties' gradients are added once per optimizer step: with respect to A_t it is λ₁ · sign(O)ᵀ A_<t.
Earlier slots are frozen, and the slots act as their sum in evaluation.

[1] Wang et al., Findings of EMNLP 2023, arXiv:2310.14152. Its released code sums absolute values, as `abs`
    does; notes on the paper give squares (`square`).

Where ports of it differ: some train the new slot without the earlier ones, though all act in evaluation
(`forward: current_only`), and let the penalty move the earlier A as well, which is not offered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, ReplayStrategy


@dataclass(frozen=True)
class OLoRA(ReplayStrategy):
    """Train a fresh LoRA for each task on the frozen ones, and keep its A orthogonal to theirs.

    orthogonality: λ₁, the weight of the overlap of the new A with the earlier ones; 0 leaves it free.
    norm: λ₂, the weight of the norms of the new A and B.
    penalty: whether an overlap's absolute value is penalised or its square.
    forward: whether the earlier slots take part in training (`cumulative`) or in evaluation alone.
    """

    starts_plain = True
    needs = Needs(engines=WHOLE_WEIGHTS)
    known_from = "released code"

    orthogonality: Annotated[float, Ge(0)] = 0.5
    norm: Annotated[float, Ge(0)] = 0.0
    penalty: Literal["abs", "square"] = "abs"
    forward: Literal["cumulative", "current_only"] = "cumulative"

    def layout(self):
        return LoraSlots(in_training="sum" if self.forward == "cumulative" else "current")

    def effect(self, task, earlier):
        effect = self.replay_effect(earlier)
        if earlier:
            own: dict[str, Any] = {"norm": self.norm, "orthogonality": self.orthogonality}
            if self.orthogonality:
                own["penalty"] = self.penalty
            effect["o_lora"] = own
        return effect

    def edit_gradient(self, weights, gradients, step):
        import torch  # here, so that planning with a strategy does not load torch

        from dgg_ray.adapters._lora_layers import factor_indices

        theta, layout = self.context.parameters(), cast(LoraSlots, self.context.layout)
        penalty = [torch.zeros_like(p) for p in theta]
        for layer, (a, b) in factor_indices(self.context.names).items():
            old, _ = layout.frozen(layer)  # A_<t
            overlap = old @ theta[a].T  # O
            slope = overlap.sign() if self.penalty == "abs" else 2 * overlap
            penalty[a] = self.orthogonality * slope.T @ old
            for i in (a, b) if self.norm else ():
                if length := theta[i].norm():  # a new B is 0
                    penalty[i] += self.norm / length * theta[i]
        torch._foreach_add_(list(gradients), self.context.shard(penalty))
