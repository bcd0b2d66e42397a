"""Octopus: two phases per task; the second makes the update orthogonal to gradients at old weights.

    task i, data D_i split into D_i1 and D_i2; θ_i = s B A is the update of all linears, as one vector
    phase 1   θ_i1 starts fresh, or from θ_(i-1)1 (`start: previous`), and descends on CE over D_i1
    phase 2   θ_i2 starts from θ_i1 and descends on CE over D_i2 + λ₁ L_orth + λ₂ L_norm
    L_orth  = Σ_j ⟨G_j, θ_i⟩²,   G_j = ∂L(D_i)/∂W at θ'_j = W + Σ_(k≤j) θ_k2,   j < i
    L_norm  = ½ ‖θ_i‖²
    model   = W + Σ_i θ_i2                                    layout `LoraSlots`

    symbol      here                shape               unit
    θ_i1        state["first"]      as the factors      -
    G_j A_iᵀ    gradient at B = 0   (d_out, r), s times it
    B_iᵀ G_j    gradient at A = 0   (r, d_in), s times it
    ⟨G_j, θ_i⟩  along               scalar              loss: its first-order change at θ'_j along θ_i
    λ₁          orthogonality       scalar              1 / loss
    λ₂          norm                scalar              loss per squared unit of θ

G_j, a gradient of whole weights, is never formed. At A_i and B = 0 the model is θ'_j, and LoRA's own gradient
of B is s G_j A_iᵀ; likewise for A at B_i and A = 0. Both are what the gradient of L_orth is made of.

Source: Octopus, CVPR 2026, arXiv:2605.14938, of which we read the abstract and notes by others, not the paper
or a code. From these we have the two phases, the inner product with gradients of the new data at old weights,
the form that uses θ'_(i-1) alone (`points: last`), and the sum at the end. The following is ours: the square
of the product, taken over all linears at once; L_norm as half a squared norm; λ₁, λ₂ and the split;
gradients on a few examples of D_i in each step; and that the earlier updates take part in training. Notes say
that phase 1 starts from θ_(i-1)1. Where the earlier updates take part, that counts the last of them twice: on
the embedded tasks no later task was then learnt, whatever λ₁ and λ₂. So the default starts fresh; and λ₁ = 1
kept new tasks from being learnt there, where 1e-3 did not. We claim no parity with the published results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from annotated_types import Ge, Lt

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, ReplayStrategy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Octopus(ReplayStrategy):
    """Train each task's LoRA freely first, and then with its update orthogonal to gradients at old weights.

    first_share: the share of the stage's examples that phase 1 trains on.
    orthogonality: λ₁, the weight of the squared inner products.
    norm: λ₂, the weight of half the update's squared norm.
    points: whether gradients are taken at the end of the last task alone, or of all earlier tasks.
    gradient_examples: number of the task's examples behind a step's gradient at old weights.
    start: whether phase 1 starts from a new LoRA, or from the end of the last task's phase 1.
    """

    needs = Needs(engines=WHOLE_WEIGHTS, step_cost=2.0)
    known_from = "abstract"

    first_share: Annotated[float, Ge(0), Lt(1)] = 0.5
    orthogonality: Annotated[float, Ge(0)] = 1e-3
    norm: Annotated[float, Ge(0)] = 0.01
    points: Literal["last", "all"] = "last"
    gradient_examples: Annotated[int, Ge(1)] = 8
    start: Literal["fresh", "previous"] = "fresh"

    def layout(self):
        return LoraSlots()

    def effect(self, task, earlier):
        own: dict[str, Any] = {"first_share": self.first_share, "norm": self.norm}
        if self.start == "previous":
            own["start"] = "previous"  # also of the first task, which hands on where its phase 1 ended
        if earlier and self.orthogonality:
            own |= {"orthogonality": self.orthogonality, "examples": self.gradient_examples}
            if len(earlier) > 1:
                own["points"] = self.points
        return self.replay_effect(earlier) | {"octopus": own}

    def phases(self, examples, seed):
        order = rng.permutation(len(examples), seed, "", "octopus phases")
        first = int(self.first_share * len(examples))
        return [[examples[i] for i in part] for part in (order[:first], order[first:])]

    def load_state(self, state):
        if self.start == "previous":
            self.cache["start"] = state["first"]  # θ_(i-1)1, whole

    def begin_task(self, weights, task, earlier, seed):
        import torch  # here, so that planning with a strategy does not load torch

        if start := self.cache.get("start"):
            with torch.no_grad():  # ZeRO keeps whole weights for the forward pass, and shards to update
                copy_all(start, self.context.parameters())
                copy_all(self.context.shard(start), weights)

    def begin_phase(self, phase, weights):
        self.memory["first"] = [theta.detach().clone() for theta in weights]  # θ_i1

    def state(self):
        return {"first": self.memory["first"]} if self.start == "previous" else {}

    def edit_gradient(self, weights, gradients, step):
        import torch

        if "first" not in self.memory:
            return
        theta = self.context.parameters()
        penalty = self._norm_gradient(theta)
        if self.context.earlier and self.orthogonality:
            new = self.context.examples(self.context.task)
            drawn = rng.permutation(len(new), self.context.seed, self.context.task, "octopus", step)
            examples, last = [new[i] for i in drawn[: self.gradient_examples]], len(self.context.earlier)
            for slots in range(1, last + 1) if self.points == "all" else [last]:
                along, slope = self._along(theta, examples, slots)
                torch._foreach_add_(penalty, slope, alpha=2 * self.orthogonality * along)
        torch._foreach_add_(list(gradients), self.context.shard(penalty))

    def _norm_gradient(self, theta: list[Tensor]) -> list[Tensor]:
        """Gradient of λ₂ L_norm: λ₂ s² B A Aᵀ and λ₂ s² BᵀB A."""
        import torch

        from dgg_ray.adapters._lora_layers import factor_indices

        found, layout = [torch.zeros_like(p) for p in theta], cast(LoraSlots, self.context.layout)
        for layer, (a, b) in factor_indices(self.context.names).items():
            weight = self.norm * layout.linear(layer).scale ** 2
            found[a] += weight * (theta[b].T @ theta[b]) @ theta[a]
            found[b] += weight * theta[b] @ (theta[a] @ theta[a].T)
        return found

    def _along(self, theta: list[Tensor], examples, slots: int) -> tuple[float, list[Tensor]]:
        """⟨G_j, θ_i⟩ and its gradient, with G_j taken on top of the first so many slots."""
        import torch

        from dgg_ray.adapters._lora_layers import factor_indices

        pairs = list(factor_indices(self.context.names).values())
        slope, layout = [torch.zeros_like(p) for p in theta], cast(LoraSlots, self.context.layout)
        with layout.first_slots(slots):
            for side in (0, 1):  # the gradient of A where A is 0, and of B where B is 0
                zeroed = {pair[side] for pair in pairs}
                point = [torch.zeros_like(p) if i in zeroed else p for i, p in enumerate(theta)]
                found = self.context.gradient(examples, point)
                for i in zeroed:
                    slope[i] = found[i]
        return sum(float((slope[b] * theta[b]).sum()) for _, b in pairs), slope


def copy_all(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy each tensor into its target."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
