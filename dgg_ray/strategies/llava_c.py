"""A method after LLaVA-c: consistency on text questions, and a spectral consolidation after each task.

    L(θ)  = CE(θ) + μ · mean over examples of U,   U = mean over tokens of KL(softmax(z*) ‖ softmax(z))
    B A   = Σ_i σ_i u_i v_iᵀ   ←   ρ · Σ_(i ≤ k) σ_i u_i v_iᵀ                 at the end of each task
    k     = the smallest one with Σ_(i ≤ k) σ_i² ≥ e · Σ_i σ_i²

    symbol  here                shape           unit
    z       question_logits     (n, V)          nats; of the question alone, without its image and answer
    z*      the same at B = 0   (n, V)          nats; of the model that the stage started from
    B A     update of a linear  (d_out, d_in)   -
    σ       singular values     (r,)            -
    μ       consistency         scalar          -
    e       energy              scalar          share
    ρ       scale               scalar          share

Each task trains a fresh LoRA on the frozen ones (layout `LoraSlots`), and their sum is the model.

Source: LLaVA-c, arXiv:2506.08666, of which we read the abstract alone. It names two parts: a spectral-aware
consolidation, for balance between tasks, and an unsupervised inquiry regularization, against degradation of
the base model. All formulas and numbers here are our own reading of these two names; so is the use of the
new task's questions as the text. Results of this strategy are not results of LLaVA-c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, ReplayStrategy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LlavaC(ReplayStrategy):
    """Keep the model's view of plain questions, and keep a task's strongest singular directions.

    consistency: the weight μ of the divergence on questions without their images; 0 leaves it out.
    energy: the share e of an update's squared singular values that is kept.
    scale: the factor ρ of what is kept.
    """

    needs = Needs(engines=WHOLE_WEIGHTS, step_cost=1.2)  # questions are short beside their images
    known_from = "abstract"

    consistency: Annotated[float, Ge(0)] = 1.0
    energy: Annotated[float, Gt(0), Le(1)] = 0.9
    scale: Annotated[float, Gt(0), Le(1)] = 1.0

    def layout(self):
        return LoraSlots()

    def effect(self, task, earlier):
        own = {"consistency": self.consistency, "energy": self.energy, "scale": self.scale}
        return self.replay_effect(earlier) | {"llava_c": own}

    def prepare(self):
        import torch  # here, so that planning with a strategy does not load torch

        if self.context.steps and self.consistency:  # a slot of zeros is where the stage began
            self.cache["start"] = [torch.zeros_like(p) for p in self.context.parameters()]

    def edit_loss(self, loss, outputs):
        if "start" not in self.cache:
            return loss
        from torch.nn.functional import kl_div, log_softmax

        old, rows = self.context.question_logits(outputs.examples, self.cache["start"])
        new, _ = self.context.question_logits(outputs.examples)
        old, new = log_softmax(old.float(), -1), log_softmax(new.float(), -1)
        of_tokens = kl_div(new, old, reduction="none", log_target=True).sum(-1)  # (n,)
        of_examples = (of_tokens / rows.bincount()[rows]).sum()
        return loss + self.consistency * outputs.tokens_per_example * of_examples

    def end_task(self, weights):
        from dgg_ray.adapters._lora_layers import factor_indices

        theta = self.context.parameters()
        for a, b in factor_indices(self.context.names).values():
            theta[a], theta[b] = consolidated(theta[a], theta[b], self.energy, self.scale)
        for theta_now, shard in zip(weights, self.context.shard(theta), strict=True):
            theta_now.copy_(shard)


def consolidated(A: Tensor, B: Tensor, energy: float, scale: float) -> tuple[Tensor, Tensor]:
    """Factors of `scale` times the leading singular directions of B A that hold this share of its energy.

    A: (r, d_in). B: (d_out, r). Energy is the sum of squared singular values. Directions that are left out
    are rows of A and columns of B that are 0.
    """
    import torch

    Q_b, R_b = torch.linalg.qr(B.double())
    Q_a, R_a = torch.linalg.qr(A.double().T)
    U, sigma, Vt = torch.linalg.svd(R_b @ R_a.T, full_matrices=False)
    energies = sigma.square().cumsum(0)
    kept = int((energies < energy * energies[-1]).sum()) + 1
    root = (scale * sigma[:kept]).sqrt()
    new_A, new_B = torch.zeros_like(A), torch.zeros_like(B)
    new_A[:kept] = root[:, None] * (Vt[:kept] @ Q_a.T)
    new_B[:, :kept] = Q_b @ U[:, :kept] * root
    return new_A, new_B
