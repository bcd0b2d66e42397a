"""Harmonious Parameter Adaptation: after each task, parts of the update that harm safety are taken back.

    D     = s B A, the task's update of a linear;  V = its weight before the task        layout `ScaledSlots`
    e_j   = mean over i of D_ij² / [H_s⁻¹]_jj      importance of column j for safety
    z_j   = mean over i of D_ij² / [H_t⁻¹]_jj      importance of column j for the task
    H     = 2 XᵀX / n + δ · (mean of its diagonal) · I     of the linear's inputs X (n, d_in)
    top   = the 2 p d_in columns with the largest e, and those with the largest z
    kept  = columns among the largest e alone; and of those among both, the ones with the largest
            φ = e - a z,   a = 0.6 + 0.2 · tanh(mean of log(e / z)), until p d_in columns are kept
    D_⊥   = D - c V,   c = ⟨D, V⟩ / ‖V‖²
    V'    = V in kept columns, V + D_⊥ in the others

    symbol  here            shape           unit
    D, V    update, before  (d_out, d_in)   -
    e, z    importance      (d_in,)         squared output
    kept    protected       (d_in,) bool
    p       share           scalar, from `first_share` at the first decoder layer to `last_share` at the last
    δ       damping         scalar          -

The training itself is plain, with a fresh LoRA for each task on the frozen ones. V' is stored exactly: the
kept columns of A are set to 0, and the other columns of V are scaled by 1 - c.

Without a safety set no column is kept, and only the part of the update along V is taken out.

Source: Harmonious Parameter Adaptation, CVPR 2026, arXiv:2511.20158, of which we read the abstract and two
agreeing notes by others, not the paper or a code. From these we have H, e, z, the top 2 p shares, φ with a
from 0.4 to 0.8, p from 15 % to 5 %, the projection, and 8 safety questions and 128 examples of the task. The
following is ours: H as a mean over tokens, so that e and z compare; δ; the form of a; inputs taken at the end
of the task; and how many of the columns in both sets are kept. We claim no parity with published results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from annotated_types import Ge, Gt, Le

from dgg_ray.adapters.scaled_slots import ScaledSlots
from dgg_ray.core import rng
from dgg_ray.core.errors import PermanentStoreError, StageError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.strategy import WHOLE_WEIGHTS, Needs, ReplayStrategy, setting_for_key
from dgg_ray.storage import fetching

if TYPE_CHECKING:
    from torch import Tensor

PASS_BYTES = 4 << 30  # of H, for as many linears as one pass over the examples serves
LINE = 'must be a JSON object with two texts, {"question": …, "answer": …}'


@dataclass(frozen=True)
class HPA(ReplayStrategy):
    """Take back the columns of an update that matter for safety, and its part along the earlier weights.

    safety: a file of JSON lines, {"question": …, "answer": …}: harmful questions, and the refusals of the
        model before any task. Without it no columns are kept.
    task_examples: number of the task's training examples behind H_t; all where it has fewer.
    first_share: the share p of columns that is kept at the first decoder layer.
    last_share: the share p at the last decoder layer; in between it changes evenly.
    damping: what is added to the diagonal of H, as a share δ of its mean.
    """

    needs = Needs(engines=WHOLE_WEIGHTS)
    known_from = "abstract"

    safety: Path | None = None
    task_examples: Annotated[int, Ge(1)] = 128
    first_share: Annotated[float, Ge(0), Le(0.5)] = 0.15
    last_share: Annotated[float, Ge(0), Le(0.5)] = 0.05
    damping: Annotated[float, Gt(0)] = 0.01

    def layout(self):
        return ScaledSlots()

    def faults(self):
        if self.safety is None:
            return []
        try:
            _, faults = read_safety(fetching.local_path(self.safety))
        except (PermanentStoreError, OSError, UnicodeDecodeError) as error:
            return [("safety", f"must be a readable text file: {error}", repr(str(self.safety)))]
        return [("safety", rule, value) for rule, value in faults]

    def effect(self, task, earlier):
        own: dict[str, Any] = {}
        if self.safety is not None:
            own = {"safety": setting_for_key(self.safety), "examples": self.task_examples}
            own |= {"shares": [self.first_share, self.last_share], "damping": self.damping}
        return self.replay_effect(earlier) | {"hpa": own}

    def prepare(self):
        if self.safety is not None and self.context.steps:
            self.cache["safety"], faults = read_safety(fetching.local_path(self.safety))
            if faults:
                raise StageError("strategy.safety: {} {}".format(*faults[0]))

    def end_task(self, weights):
        import torch  # here, so that planning with a strategy does not load torch

        from dgg_ray.adapters._lora_layers import factor_indices

        layout, theta = cast(ScaledSlots, self.context.layout), self.context.parameters()
        protected = dict(self._protected())
        for layer, (a, b) in factor_indices(self.context.names).items():
            update = layout.linear(layer).scale * (theta[b] @ theta[a])
            before = layout.earlier_weight(layer)
            along = (update * before).sum() / before.square().sum()  # c
            kept = protected.get(layer, torch.zeros_like(theta[a][0], dtype=torch.bool))
            layout.scale_earlier(layer, torch.where(kept, 1.0, 1 - along))
            theta[a] = theta[a].masked_fill(kept, 0.0)
        for now, shard in zip(weights, self.context.shard(theta), strict=True):
            now.copy_(shard)

    def _protected(self) -> Iterator[tuple[str, Tensor]]:
        """The mask (d_in,) of the kept columns of each linear, with its name; none without a safety set."""
        from dgg_ray.adapters._lora_layers import decoder_layer_of, factor_indices

        if "safety" not in self.cache:
            return
        context, layout = self.context, cast(ScaledSlots, self.context.layout)
        theta = context.parameters()
        train = context.examples(context.task)
        drawn = rng.permutation(len(train), context.seed, context.task, "hpa")[: self.task_examples]
        task, pairs = [train[i] for i in drawn], factor_indices(context.names)
        last = max(map(decoder_layer_of, pairs))
        widths = {layer: theta[a].shape[1] for layer, (a, _) in pairs.items()}
        for layers in passes(widths):
            of_both = zip(
                context.input_products(self.cache["safety"], layers),
                context.input_products(task, layers),
                strict=True,
            )
            for layer, products in zip(layers, of_both, strict=True):
                a, b = pairs[layer]
                columns = (layout.linear(layer).scale * (theta[b] @ theta[a])).square().mean(0)
                e, z = (columns / inverse_diagonal(2 * product, self.damping) for product in products)
                depth = decoder_layer_of(layer) / max(1, last)
                share = self.first_share + (self.last_share - self.first_share) * depth
                yield layer, protected_columns(e, z, share)


def passes(widths: dict[str, int]) -> Iterator[list[str]]:
    """The linears in groups whose H together take no more than PASS_BYTES, or one alone."""
    group: list[str] = []
    for layer in widths:
        if group and sum(4 * widths[name] ** 2 for name in [*group, layer]) > PASS_BYTES:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def inverse_diagonal(H: Tensor, damping: float) -> Tensor:
    """Diagonal (d,) of the inverse of H (d, d), whose own diagonal gets this share of its mean first."""
    import torch

    H = H.double()
    mean = H.diagonal().mean()
    H.diagonal().add_(damping * (mean if mean > 0 else 1.0))
    return torch.cholesky_inverse(torch.linalg.cholesky(H)).diagonal().float()


def protected_columns(e: Tensor, z: Tensor, share: float) -> Tensor:
    """The mask (d,) of the columns to keep, by their importance for safety e (d,) and for the task z (d,)."""
    import torch

    d = len(e)
    in_e, in_z = (torch.zeros_like(e, dtype=torch.bool) for _ in range(2))
    in_e[e.topk(int(2 * share * d)).indices] = True
    in_z[z.topk(int(2 * share * d)).indices] = True
    kept, both = in_e & ~in_z, in_e & in_z
    positive = both & (e > 0) & (z > 0)
    balance = (e[positive] / z[positive]).log().mean() if positive.any() else e.new_zeros(())
    phi = (e - (0.6 + 0.2 * balance.tanh()) * z).masked_fill(~both, -torch.inf)
    more = min(int(both.sum()), max(0, int(share * d) - int(kept.sum())))
    kept[phi.topk(more).indices] = True
    return kept


def read_safety(file: Path) -> tuple[list[Example], list[tuple[str, str]]]:
    """The examples of a file of JSON lines, and its faults as (rule, value found)."""
    examples: list[Example] = []
    faults: list[tuple[str, str]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
            question, answer = entry["question"].strip(), entry["answer"].strip()
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ):  # no JSON, no object, a key or a text missing
            question = answer = ""
        if question and answer:
            examples.append(Example(f"safety-{number}", question, answer))
        else:
            faults.append((f"line {number} of {file.name} {LINE}", line[:60]))
    if not examples and not faults:
        faults.append((f"{file.name} must hold at least one line; each {LINE}", "an empty file"))
    return examples, faults
