"""Gradient episodic memory: the nearest gradient that no earlier task's memory objects to.

    g_k  = gradient of the mean loss on the memory of task k < t,   G = rows g_k
    g    ← g + Gᵀv,   v = argmin ½ vᵀ(GGᵀ + εI)v + (Gg)ᵀv   with v ≥ m       [1, eq. 11]
    g      where every ⟨g, g_k⟩ ≥ 0

    symbol  here        shape               unit
    g       gradients   each tensor's       loss per unit of θ
    g_k     references  same as g           loss per unit of θ
    v       dual        (t-1,)              -
    m       margin      scalar              -
    ε       RIDGE       scalar              squared unit of g

With one earlier task and m = 0 this is A-GEM on the same examples, but for ε. It takes one more backward pass
per earlier task and step.

[1] Lopez-Paz & Ranzato, NeurIPS 2017, arXiv:1706.08840. The released code has ε = 10⁻³ and m = 0.5 in its
    experiments. Here ε is relative to the largest squared norm ‖g_k‖², as gradients of a LoRA are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge

from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, Strategy, remembered

if TYPE_CHECKING:
    from numpy.typing import NDArray

RIDGE = 1e-3
MOST_SWEEPS, TOLERANCE = 1000, 1e-12  # of the minimisation


@dataclass(frozen=True)
class GEM(Strategy):
    """Change the gradient as little as possible so that no remembered task's loss rises.

    buffer: number of examples remembered of each finished task; 0 is plain fine-tuning.
    reference_examples: number of remembered examples of each task behind a step's reference gradients.
    margin: m; above 0, every conflict also adds a multiple of the remembered tasks' gradients.
    """

    starts_plain = True
    needs = Needs(old_data=True, engines=WHOLE_WEIGHTS, step_cost=3.0)  # two earlier tasks, in the middle
    known_from = "released code"

    buffer: Annotated[int, Ge(0)] = 100
    reference_examples: Annotated[int, Ge(1)] = 32
    margin: Annotated[float, Ge(0)] = 0.0

    def effect(self, task, earlier):
        settings = {
            "buffer": self.buffer,
            "reference_examples": self.reference_examples,
            "margin": self.margin,
        }
        return {"gem": settings} if earlier and self.buffer else {}

    def prepare(self):
        context = self.context
        memories = [remembered(context, task, self.buffer) for task in context.earlier]
        self.cache["memories"] = dict(zip(context.earlier, memories, strict=True)) if self.buffer else {}

    def edit_gradient(self, weights, gradients, step):
        import torch  # here, so that planning with a strategy does not load torch

        context, references = self.context, []
        for task, memory in self.cache["memories"].items():
            drawn = rng.permutation(len(memory), context.seed, context.task, f"gem {task}", step)
            examples = [memory[i] for i in drawn[: self.reference_examples]]
            references.append(context.shard(context.gradient(examples)))
        if not references:
            return
        along = np.array([float(weights.inner(gradients, g)) for g in references])
        if (along >= 0).all():
            return
        gram = np.array([[float(weights.inner(a, b)) for b in references] for a in references])
        for v, reference in zip(dual(gram, along, self.margin), references, strict=True):
            torch._foreach_add_(list(gradients), reference, alpha=float(v))


def dual(gram: NDArray, along: NDArray, margin: float, ridge: float = RIDGE) -> NDArray:
    """Return v (k,) that minimises ½ vᵀPv + alongᵀv with v ≥ margin, for P = gram + ridge · max diagonal · I.

    gram: (k, k), inner products of the references. along: (k,), theirs with the gradient.
    """
    P = gram + ridge * gram.diagonal().max() * np.eye(len(gram))
    v = np.full(len(gram), margin)
    for _ in range(MOST_SWEEPS):  # exact minimisation of one coordinate after another; P is positive definite
        before = v.copy()
        for i in range(len(v)):
            v[i] = max(margin, v[i] - (P[i] @ v + along[i]) / P[i, i])
        if np.abs(v - before).max() <= TOLERANCE * np.abs(v).max():
            break
    return v
