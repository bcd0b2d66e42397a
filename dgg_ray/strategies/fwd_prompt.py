"""A method after Fwd-Prompt: a shared prompt that is trained inside a subspace of the input embeddings.

    M_k = XᵀX / n                   second moments of task k's input embeddings; V: the vocabulary's
    Q   = the leading eigenvectors of V, until they hold the share e of its trace
    U   ← U and the leading eigenvectors of (I - UUᵀ) QᵀM_kQ (I - UUᵀ), until U holds the share c of the
          trace of QᵀM_kQ; for each earlier task k in turn
    Π   = Q (I - UUᵀ) Qᵀ            onto the part of the pre-trained space that earlier tasks left free
    g   ← g Π                       before the optimizer's step, and before clipping
    θ   ← θ* + (θ - θ*) Π           after it

    symbol  here            shape       unit
    θ, g    lora_prompt     (rows, H)   -, loss per unit of θ
    θ*      start           (rows, H)   -, θ at the start of the stage
    X       embeddings      (n, H)      -, of all tokens of images and questions, not centred
    Q       pretrained      (H, q)      -, the pre-trained space
    U       earlier         (q, u)      -, the earlier tasks' space, in the coordinates of Q
    e, c    …_energy        scalar      share

One set of vectors (layout `Prompt`) serves all tasks. AdamW scales each coordinate by itself, and its weight
decay pulls towards zero. Both leave the subspace, so the update is projected as well. As θ - θ* was in the
subspace before the step, this changes the step's own update alone. Where U fills Q, the prompt stays as it
is. A trained projector is left alone. Embeddings of images may be far longer than those of words; U then
holds directions of images first.

Source: Fwd-Prompt (Zheng et al.), arXiv:2401.09181, of which we read the abstract alone. It says: the
prompt's gradient is projected onto the residual space of earlier tasks, against forgetting, and onto the
pre-trained subspace, for transfer to later tasks; input embeddings and their singular vectors show how tasks
differ; no old samples are needed. The following is ours: the equations and default values; one set of
vectors, where the paper may choose from a pool; the vocabulary's embeddings as the pre-trained space; U
within Q, so that both projections hold at once; and the projected update. Results of this strategy are not
results of Fwd-Prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from dgg_ray.adapters.prompt import Prompt
from dgg_ray.core import rng
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Fact, Needs, ReplayStrategy

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.core.interfaces import ShardedTensors

ROUNDING = 1e-6  # share of a trace that fp32 cannot tell from nothing


@dataclass(frozen=True)
class EmbeddingMoments(Fact):
    """Second moments of a task's input embeddings, fp32: {moments: (H, H)}.

    samples: number of training examples, drawn without replacement; all where the task has fewer.
    """

    of = "data"

    samples: int

    def compute(self, context, task):
        train = task.examples["train"]
        drawn = rng.permutation(len(train), 0, task.name, "embedding moments")[: self.samples]
        return {"moments": context.embedding_products([train[i] for i in drawn])}


@dataclass(frozen=True)
class FwdPrompt(ReplayStrategy):
    """Train one prompt for all tasks, in directions that earlier tasks do not use and the base model knows.

    prompt_tokens: number of vectors of the prompt.
    task_examples: number of examples behind a task's second moments.
    task_energy: c, the share of an earlier task's embeddings that is protected; 0 protects nothing.
    pretrained_energy: e, the share of the vocabulary's embeddings that the prompt can move in; 1 is all.
    """

    needs = Needs(engines=WHOLE_WEIGHTS)
    known_from = "abstract"

    prompt_tokens: Annotated[int, Ge(1)] = 10
    task_examples: Annotated[int, Ge(1)] = 200
    task_energy: Annotated[float, Ge(0), Le(1)] = 0.9
    pretrained_energy: Annotated[float, Gt(0), Le(1)] = 0.9

    def layout(self):
        return Prompt(self.prompt_tokens, shared=True)

    def effect(self, task, earlier):
        own: dict[str, Any] = {"pretrained_energy": self.pretrained_energy}
        if earlier and self.task_energy:
            own |= {"task_energy": self.task_energy, "examples": self.task_examples}
        return self.replay_effect(earlier) | {"fwd_prompt": own}

    def prepare(self):
        import torch  # here, so that planning with a strategy does not load torch

        context = self.context
        if not context.steps:  # answers need no bases
            return
        vocabulary = context.layout.parts["embedding"].weight.float()
        pretrained = grown(
            vocabulary.new_zeros(vocabulary.shape[1], 0),
            vocabulary.T @ vocabulary / len(vocabulary),
            self.pretrained_energy,
        )
        earlier = pretrained.new_zeros(pretrained.shape[1], 0)
        for task in context.earlier if self.task_energy else ():
            moments = context.fact(EmbeddingMoments(self.task_examples), task)["moments"]
            earlier = grown(earlier, pretrained.T @ moments @ pretrained, self.task_energy)
        numbered = [torch.arange(p.numel(), device=p.device).view(p.shape) for p in context.parameters()]
        own = context.shard(numbered)[self._place()].flatten()  # this process's elements of the prompt
        self.cache.update(pretrained=pretrained, earlier=earlier, own=own)

    def begin_task(self, weights, task, earlier, seed):
        self.memory["start"] = [theta.detach().clone() for theta in weights]  # θ*

    def edit_gradient(self, weights, gradients, step):
        gradient = gradients[self._place()]
        gradient.copy_(self._projected_part(gradient, gradients))

    def after_step(self, weights, step):
        prompt, start = weights[self._place()], self.memory["start"][self._place()]
        prompt.copy_(start + self._projected_part(prompt - start, weights))

    def _place(self) -> int:
        """The prompt's place among the trained weights."""
        return next(i for i, name in enumerate(self.context.names) if name.endswith("lora_prompt"))

    def _projected(self, rows: Tensor) -> Tensor:
        """Rows times Π."""
        pretrained, earlier = self.cache["pretrained"], self.cache["earlier"]
        inside = rows @ pretrained
        return (inside - inside @ earlier @ earlier.T) @ pretrained.T

    def _projected_part(self, part: Tensor, tensors: ShardedTensors) -> Tensor:
        """This process's part of the projected rows; other processes may have the rest of the rows."""
        pretrained = self.cache["pretrained"]
        own = self.cache["own"].to(pretrained.device)
        whole = pretrained.new_zeros(self.prompt_tokens * len(pretrained))
        whole[own] = part.flatten().to(whole.device)
        rows = tensors.total(whole).view(self.prompt_tokens, -1)
        return self._projected(rows).flatten()[own].view_as(part).to(part.device)


def grown(basis: Tensor, moments: Tensor, energy: float) -> Tensor:
    """Add to an orthonormal basis (d, u) the fewest directions with which it holds a share of moments (d, d).

    energy: the share of the trace, in [0, 1]. The new basis begins with the old one, up to signs.
    """
    import torch

    wanted = (energy - ROUNDING) * moments.trace()
    held = (basis.T @ moments @ basis).trace()
    if held >= wanted:
        return basis
    off = torch.eye(len(moments), device=moments.device) - basis @ basis.T
    values, vectors = torch.linalg.eigh(off @ moments @ off)  # in ascending order
    count = int((held + values.flip(0).cumsum(0) < wanted).sum()) + 1
    count = min(count, len(moments) - basis.shape[1])
    return torch.linalg.qr(torch.cat([basis, vectors.flip(1)[:, :count]], dim=1)).Q
