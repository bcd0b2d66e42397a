"""Dynamic Gradient Guidance.

    d = θ - θ*                                     from the old optimum to the present weights
    ĝ = d · min(1, ‖g‖ / ‖d‖)                      capped by the present gradient; 0 where d = 0
    g ← g + ĝ   if u < α,   u = U(seed, task, step)     once per optimizer step

Descent on +ĝ moves the weights back towards θ*. It stands in for the gradient of the old tasks,
whose data are gone. With a replay buffer M, g is the gradient of the loss on the new task's examples T_t and
on M together, L(θ; T_t ∪ M).

    symbol  here        shape            unit
    θ       weights     each tensor's    -
    θ*      anchor      same as θ        -
    g       gradients   same as θ        loss per unit of θ
    α       alpha       scalar           probability per step
    u       -           scalar           uniform in [0, 1)

Source: Li, Gao, Su, Zhang & Wang 2026, on Dynamic Gradient Guidance for multimodal continual
instruction tuning. We implement the published formula and claim no parity with any code. The
publication leaves these points open; our choices are:

- θ* is the start of the stage, which is the optimum after tasks 1..t-1. No averaging over tasks.
- ‖·‖ runs over all trainable tensors as one vector (`norm: global`); `tensor` caps each one separately.
- g in ‖g‖ is the gradient of this step, new task and replay together; isolating the new task's
  part would cost a second backward pass.
- θ are the LoRA factors A and B, not their product.
- ĝ enters after accumulation and reduction, and passes through AdamW's running averages like g.
- u depends on seed, task and step alone, so it is equal on all ranks, the same after a resume, and
  shared by all α: a larger α injects on a superset of the steps.
- The first task of an order has no guidance: there is no old optimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from dgg_ray.core import rng
from dgg_ray.core.interfaces import ShardedTensors
from dgg_ray.core.strategy import Protection, ReplayStrategy

if TYPE_CHECKING:
    from torch import Tensor

Probability = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class DGG(ReplayStrategy):
    """Guide the gradient back towards the old optimum on a share α of the steps.

    alpha: α, the share of the steps on which guidance is added, from 0 to 1: one for all tasks, or one
        per task name (it follows the task, not its place). 0 is replay with the same buffer.
    norm: what the cap compares: all trainable tensors as one vector, or each tensor separately.
    scale: whether guidance is capped by the gradient's norm; if false, ĝ = d.
    gate: on which steps guidance is added: `bernoulli` as published; `periodic` injects evenly, ⌊n·α⌋ times
        in n steps; `always` injects on every step, whatever α.
    """

    known_from = "published formula"

    per_task: ClassVar[Mapping[str, float]] = {"alpha": 0.0}

    alpha: Probability | Mapping[str, Probability] = 0.1
    norm: Literal["global", "tensor"] = "global"
    scale: bool = True
    gate: Literal["bernoulli", "periodic", "always"] = "bernoulli"

    def alpha_for(self, task: str) -> float:
        """Return α for the task; 0 for a task that a per-task mapping leaves out."""
        if self.gate == "always":
            return 1.0
        return self.alpha.get(task, 0.0) if isinstance(self.alpha, Mapping) else self.alpha

    def effect(self, task, earlier):
        alpha = float(self.alpha_for(task))
        effect = self.replay_effect(earlier)
        if earlier and alpha:
            effect["dgg"] = {"alpha": alpha, "scale": self.scale}
            if self.scale:
                effect["dgg"]["norm"] = self.norm
            if alpha < 1:  # at α = 1 every gate is open on every step
                effect["dgg"]["gate"] = self.gate
        return effect

    def begin_task(self, weights, task, earlier, seed):
        if earlier and self.alpha_for(task):
            self.memory.update(task=task, seed=seed)
            self.memory["anchor"] = [theta.detach().clone() for theta in weights]  # θ*

    def edit_gradient(self, weights, gradients, step):
        if "anchor" in self.memory and self.is_open(step):
            add_guidance(weights, self.memory["anchor"], gradients, self.norm, self.scale)

    def is_open(self, step: int) -> bool:
        """Return whether the gate adds guidance in this step of the present task."""
        alpha = self.alpha_for(self.memory["task"])
        if self.gate == "periodic":
            share = Fraction(repr(float(alpha)))  # as written: 100 · 0.29 is 28.999… in binary, a step less
            return floor((step + 1) * share) > floor(step * share)
        return rng.uniform(self.memory["seed"], self.memory["task"], "gate", step) < alpha

    def protection(self, task, earlier):
        return Protection(float(self.alpha_for(task)), self.buffer)


def add_guidance(
    weights: ShardedTensors,
    anchor: Sequence[Tensor],
    gradients: ShardedTensors,
    norm: str = "global",
    scale: bool = True,
) -> None:
    """g ← g + ĝ, in place. All are equally long lists of equally shaped tensors, whole or sharded."""
    import torch  # here, so that planning with a strategy does not load torch

    d = torch._foreach_sub(list(weights), list(anchor))
    if scale:
        squares = torch.stack([*torch._foreach_norm(list(gradients)), *torch._foreach_norm(d)]).square()
        g_squares, d_squares = weights.total(squares).view(2, -1)  # (tensors,) each
        if norm == "global":
            torch._foreach_mul_(d, cap(g_squares.sum(), d_squares.sum()))
        else:
            torch._foreach_mul_(d, list(cap(g_squares, d_squares)))
    torch._foreach_add_(list(gradients), d)


def cap(g_squares: Tensor, d_squares: Tensor) -> Tensor:
    """min(1, ‖g‖/‖d‖) from squared norms; 1 where d = 0, so that 0/0 never arises."""
    import torch

    ratio = (g_squares / d_squares).sqrt()
    return torch.where(d_squares > g_squares, ratio, torch.ones_like(ratio))
