"""One LoRA per task: earlier ones are frozen, and each may have a weight for each example.

    y = W x + s · Σ_{k<t} w_k B_k A_k x̃ + s · w_t B_t A_t x̃,        x̃ = dropout(x), one mask for all slots

    symbol  here            shape               unit
    A_k     rows of A       (r, d_in)           -
    B_k     columns of B    (d_out, r)          -
    w_k     route           one per example     -
    s       scale           scalar              -

Slot t is the LoRA that the stage trains; the slots before it were trained on the earlier tasks of the order.
With all weights 1 this is exactly "merge the last LoRA into W and start a fresh one": the frozen slots, put
together along the rank, are the sum of the products. A stage stores its own LoRA as plain LoRA does, and the
frozen ones beside it; so a first stage is a stage of plain fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from dgg_ray.core import rng
from dgg_ray.core.interfaces import AdapterLayout

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.adapters._lora_layers import LoraModule


@dataclass(frozen=True)
class LoraSlots(AdapterLayout):
    """LoRA slots, one for each task.

    in_training: whether the frozen slots take part in training (`sum`), or the new slot alone (`current`), or
        each slot with its example's weight (`routed`).
    routed_layers: how many of the last decoder layers use an example's weights; all others use weight 1.
        0 is all of them.
    merge: how the slots of a layer that is not routed act together in evaluation: `exact`, Σ B_k A_k, or
        `factorwise`, (Σ B_k)(Σ A_k), with its cross terms.
    """

    in_training: Literal["sum", "current", "routed"] = "sum"
    routed_layers: int = 0
    merge: Literal["exact", "factorwise"] = "exact"

    def rank_for(self, rank, tasks, budget):
        return rank if budget == "trainable" else rank // tasks

    def stored_copies(self, earlier):
        return earlier + 1

    def attach(self, model, setup):
        import torch

        from dgg_ray.adapters._lora_layers import decoder_layer_of, lora_modules, stored_layout

        modules = lora_modules(model)
        stored = stored_layout(setup.parent)
        depth = 1 + max(decoder_layer_of(module.name) for module in modules)
        frozen: dict[str, Tensor] = {}
        for module in modules:
            a, b = module.a.weight, module.b.weight
            for factor, own, axis in (("A", a, 0), ("B", b, 1)):
                name = f"{module.name}.frozen_{factor}"
                slots = [stored[name].to(own.device)] if name in stored else []
                # In training the parent's own LoRA becomes the last frozen slot.
                slots += [own.detach().clone()] if setup.parent and setup.steps else []
                frozen[name] = torch.cat(slots, axis) if slots else own.detach().narrow(axis, 0, 0).clone()
            if setup.parent and setup.steps:
                draw_slot(module, rng.integer(setup.seed, module.name, f"slot of {setup.task}"))
        self.parts.update(frozen=frozen, columns=None)
        self.parts["linears"] = {module.name: module for module in modules}
        for module in modules:
            routed = decoder_layer_of(module.name) >= depth - (self.routed_layers or depth)
            # PEFT calls a variant in place of its own product of B, A and x. No hook is as cheap.
            module.layer.lora_variant["default"] = SimpleNamespace(forward=self._forward_of(module, routed))

    def _forward_of(self, module: LoraModule, routed: bool) -> Callable[..., Tensor]:
        """The function that adds the slots of a layer to what its own weights make of x."""

        def forward(layer: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
            import torch

            from dgg_ray.adapters._slot_sum import Frozen, SlotSum

            x = layer.lora_dropout[active_adapter](x)
            a, b = self.frozen(module.name)
            acting = len(a) and not (layer.training and self.in_training == "current")
            columns = self._columns(x.dim()) if self._is_routed(routed, layer.training) else None
            if acting and self.merge == "factorwise" and not routed and not layer.training:
                return result + self._factorwise(module, x)
            if acting and torch.is_grad_enabled():
                frozen = Frozen(a, b, columns, module.scale)
                return SlotSum.apply(x, result, module.a.weight, module.b.weight, frozen)  # type: ignore[return-value]
            # Through PEFT's own modules, which a sharded engine watches.
            hidden = module.a(x)
            if columns is not None:
                hidden = hidden * columns[..., -hidden.shape[-1] :].to(hidden.dtype)
            result = result + module.b(hidden) * module.scale
            return result + frozen_product(x, a, b, columns) * module.scale if acting else result

        return forward

    def _factorwise(self, module: LoraModule, x: Tensor) -> Tensor:
        """s · (Σ B_k) (Σ A_k) x."""
        from torch.nn.functional import linear

        (a, b), own_a, own_b = self.frozen(module.name), module.a.weight, module.b.weight
        rank = len(own_a)
        a_sum = a.view(-1, rank, a.shape[1]).sum(0) + own_a
        b_sum = b.view(b.shape[0], -1, rank).sum(1) + own_b
        return linear(linear(x, a_sum), b_sum) * module.scale

    def _is_routed(self, routed: bool, training: bool) -> bool:
        """Return whether the examples' weights count; else all slots have weight 1."""
        return routed and (not training or self.in_training == "routed")

    def _columns(self, dim: int) -> Tensor | None:
        """The weight of each row of the slots' A for each example, (N, 1, …, (K + 1) r); None is 1."""
        columns = self.parts["columns"]
        return columns if columns is None else columns.view(len(columns), *[1] * (dim - 2), -1)

    def detach(self):
        for module in self.parts.pop("linears", {}).values():
            module.layer.lora_variant.pop("default", None)
        self.parts.clear()

    def set_route(self, weights):
        if weights is not None:
            rank = next(iter(self.parts["linears"].values())).layer.r["default"]
            weights = weights.repeat_interleave(rank, dim=1)
        self.parts["columns"] = weights

    def frozen(self, layer: str) -> tuple[Tensor, Tensor]:
        """The frozen slots of a linear layer along the rank: A (K·r, d_in) and B (d_out, K·r)."""
        return self.parts["frozen"][f"{layer}.frozen_A"], self.parts["frozen"][f"{layer}.frozen_B"]

    def linear(self, layer: str) -> LoraModule:
        """A linear layer with the LoRA that the stage trains."""
        return self.parts["linears"][layer]

    @contextmanager
    def first_slots(self, count: int) -> Iterator[None]:
        """In the block, only so many of the frozen slots act, the oldest, beside the new one."""
        whole, first = self.parts["frozen"], {}
        for layer in self.parts["linears"]:
            (a, b), width = self.frozen(layer), count * self.linear(layer).a.weight.shape[0]
            first |= {f"{layer}.frozen_A": a[:width], f"{layer}.frozen_B": b[:, :width]}
        self.parts["frozen"] = first
        try:
            yield
        finally:
            self.parts["frozen"] = whole

    def frozen_tensors(self):
        return {name: tensor for name, tensor in self.parts["frozen"].items() if tensor.numel()}


def frozen_product(x: Tensor, a: Tensor, b: Tensor, columns: Tensor | None) -> Tensor:
    """Σ w_k B_k A_k x of the frozen slots along the rank, A (K·r, d_in) and B (d_out, K·r)."""
    from torch.nn.functional import linear

    hidden = linear(x, a)
    if columns is not None:
        hidden = hidden * columns[..., : len(a)].to(hidden.dtype)
    return linear(hidden, b)


def draw_slot(module: LoraModule, seed: int) -> None:
    """Draw A Kaiming-uniform from the seed and set B to zero, as for a first LoRA."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.layer.reset_lora_parameters("default", init_lora_weights=True)
