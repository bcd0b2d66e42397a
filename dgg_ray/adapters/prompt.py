"""Prompt tuning: vectors in front of the input, one set for each task or a single one for all.

    input    [BOS] P_a P_b … P_z  image and question           the nearest set stands nearest to the input
    p_k      = mean over rows of W₂ silu(W₁ P_k + b₁) + b₂     the set's prototype, where sets have one

    symbol  here                shape
    P_k     lora_prompt         (rows, H), in the space of the input embeddings
    W₁, W₂  lora_prompt_head    (H, H), (F, H)
    p_k     prototypes          (F,)

The LoRA is frozen at zero: the set of the stage and its head are all that is trained. The sets of earlier
tasks, and their prototypes, are frozen, and each stage stores them beside its own. A new set is drawn from
the rows of the embedding matrix. A shared set is drawn for the first task, and later ones train it further.

Every prompt gets as many placeholder tokens as rows are inserted. A hook on the embedding layer puts the rows
in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgg_ray.core import rng
from dgg_ray.core.interfaces import AdapterLayout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dgg_ray.adapters._lora_layers import LoraModule


@dataclass(frozen=True)
class Prompt(AdapterLayout):
    """Sets of prompt vectors.

    rows: number of vectors of a set.
    sets: how many sets are inserted at most: those with the largest weights, the largest last. Without
        weights, they are the newest.
    prototype_size: length F of a set's prototype; 0 is the embedding's own H, None is no prototype.
    shared: whether there is a single set, which each task trains further.
    """

    rows: int = 10
    sets: int = 1
    prototype_size: int | None = None
    shared: bool = False

    def rank_for(self, rank, tasks, budget):
        return 1  # of the LoRA at zero

    def stored_copies(self, earlier):
        # In LoRAs of rank 1 on all layers: the head is below 10 in models of 1 to 70 billion weights, and the
        # vectors of a task are below 1.
        return 16 + earlier

    def attach(self, model, setup):
        import torch
        from torch import nn

        from dgg_ray.adapters._lora_layers import lora_modules, stored_layout

        modules = lora_modules(model)
        for module in modules:
            module.b.weight.data.zero_()
        set_trainable(modules, False)
        embedding: Any = model.get_base_model().get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embedding)
        stored = stored_layout(setup.parent)
        device, size = embedding.weight.device, embedding.weight.shape[1]
        frozen = {
            kind: stored[f"{name}.frozen_{kind}"].to(device)
            for kind in ("prompts", "prototypes")
            if f"{name}.frozen_{kind}" in stored
        }
        seed = rng.integer(setup.seed, name, f"prompt of {setup.task}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = torch.randint(len(embedding.weight), (self.rows,)).to(device)
            head = make_head(size, self.prototype_size or size).to(device)
        rows = embedding.weight.detach()[drawn].float().clone()
        if stored:
            own, own_head = (
                stored[f"{name}.lora_prompt"].to(device),
                part(stored, f"{name}.lora_prompt_head."),
            )
            if setup.steps and not self.shared:
                append(frozen, "prompts", own)
                if own_head:
                    old = make_head(size, self.prototype_size or size)
                    old.load_state_dict(own_head)
                    append(frozen, "prototypes", old.to(device)(own).mean(0).detach())
            else:
                rows = own
                if own_head:
                    head.load_state_dict(own_head)
        embedding.register_parameter("lora_prompt", nn.Parameter(rows))
        if self.prototype_size is not None:
            embedding.add_module("lora_prompt_head", head)
        hook = embedding.register_forward_hook(self._insert)
        self.parts.update(
            modules=modules, embedding=embedding, name=name, frozen=frozen, hook=hook, on=True, route=None
        )

    def detach(self):
        if not self.parts:
            return
        self.parts["hook"].remove()
        del self.parts["embedding"].lora_prompt
        if self.prototype_size is not None:
            del self.parts["embedding"].lora_prompt_head
        set_trainable(self.parts["modules"], True)
        self.parts.clear()

    def switch(self, on):
        self.parts["on"] = on
        set_trainable(
            self.parts["modules"], False
        )  # PEFT, which switches its LoRA on again, made it trainable

    def set_route(self, weights):
        self.parts["route"] = weights

    @property
    def extra_prompt_tokens(self):
        return self.rows * min(self.sets, len(self.prompts()))

    def before_forward(self, inputs, prompts):
        self.parts["starts"] = [first for first, _ in prompts]
        self.parts["width"] = inputs["input_ids"].shape[1]

    def frozen_tensors(self):
        return {f"{self.parts['name']}.frozen_{kind}": t for kind, t in self.parts["frozen"].items()}

    def prompts(self) -> Tensor:
        """All sets (K, rows, H), the newest last; only it has a gradient."""
        return self._with_frozen("prompts", self.parts["embedding"].lora_prompt)

    def prototypes(self) -> Tensor:
        """The sets' prototypes (K, F), the newest last; only it has a gradient."""
        embedding = self.parts["embedding"]
        return self._with_frozen("prototypes", embedding.lora_prompt_head(embedding.lora_prompt).mean(0))

    def _with_frozen(self, kind: str, own: Tensor) -> Tensor:
        import torch

        frozen = self.parts["frozen"].get(kind)
        return own[None] if frozen is None else torch.cat([frozen, own[None]])

    def _insert(self, embedding: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Put each example's sets in the places of its placeholders."""
        import torch

        starts = self.parts.get("starts", ())
        # Later tokens of an answer come one by one, and no prompt is as short.
        if not self.parts["on"] or output.shape[:2] != (len(starts), self.parts["width"]):
            return output
        prompts = self.prompts()
        weights = self.parts["route"]
        if weights is None:
            weights = torch.arange(len(prompts)).expand(len(starts), -1)
        count = min(self.sets, len(prompts))
        chosen = weights.to(output.device).topk(count, dim=1).indices.flip(1)  # (B, count), the largest last
        rows = prompts[chosen].flatten(1, 2).to(output.dtype)  # (B, count · rows, H)
        first = torch.tensor(starts, device=output.device)
        columns = first[:, None] + torch.arange(rows.shape[1], device=output.device)
        return output.scatter(1, columns[:, :, None].expand_as(rows), rows)


def set_trainable(modules: Sequence[LoraModule], on: bool) -> None:
    """Say whether the LoRA gets gradients."""
    for module in modules:
        module.a.weight.requires_grad_(on)
        module.b.weight.requires_grad_(on)


def make_head(size: int, features: int) -> nn.Sequential:
    """The head that maps a row to its part in the prototype."""
    from torch import nn

    return nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, features))


def part(tensors: Any, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def append(frozen: dict[str, Tensor], kind: str, own: Tensor) -> None:
    """Add a tensor as the last one of its kind."""
    import torch

    frozen[kind] = torch.cat([frozen[kind], own[None]]) if kind in frozen else own[None]
