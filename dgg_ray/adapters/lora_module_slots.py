"""LoRA slots that have an expert on some of the adapted layers alone.

It is `lora_slots`; the strategy says which layers of the new slot learn. B stays 0 on the others, and there
the slot adds nothing. A share ρ of the layers learns, so at an equal budget of parameters the rank is 1/ρ
times the study's. For the choice of layers this layout gives the gradients of the frozen weights W.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le

from dgg_ray.adapters.lora_slots import LoraSlots

if TYPE_CHECKING:
    from torch import Tensor

    from dgg_ray.adapters._lora_layers import LoraModule


@dataclass(frozen=True)
class LoraModuleSlots(LoraSlots):
    """LoRA slots, one for each task, each with experts on a share of the layers.

    share: ρ, the share of the adapted layers on which a slot learns.
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.5

    def rank_for(self, rank, tasks, budget):
        return int(super().rank_for(rank, tasks, budget) / self.share)

    def attach(self, model, setup):
        from dgg_ray.adapters._lora_layers import lora_modules

        super().attach(model, setup)
        self.parts["modules"] = lora_modules(model)

    @property
    def module_names(self) -> list[str]:
        """The adapted layers, in the model's order."""
        return [module.name for module in self.parts["modules"]]

    def experts(self) -> int:
        """Return the number of layers on which a slot learns, rounded, at least 1."""
        return max(1, int(self.share * len(self.parts["modules"]) + 0.5))

    @contextmanager
    def weight_gradients(self) -> Iterator[list[Tensor]]:
        """In the block, sum the gradient of each adapted layer's W (d_out, d_in) over backward passes, fp32.

        The sums take as much memory as these weights in fp32.
        """
        import torch

        modules = self.parts["modules"]
        sums = [
            torch.zeros(m.b.weight.shape[0], m.a.weight.shape[1], device=m.a.weight.device) for m in modules
        ]
        hooks = [watch(module, total) for module, total in zip(modules, sums, strict=True)]
        try:
            yield sums
        finally:
            for hook in hooks:
                hook.remove()


def watch(module: LoraModule, total: Tensor):
    """Add δ xᵀ to `total` at every backward pass through a layer; δ is its output's gradient, x its input."""

    def on_output(layer, inputs, output):
        x = inputs[0].detach().flatten(0, -2).float()

        def add(gradient):
            total.add_(gradient.flatten(0, -2).float().T @ x)

        # In a frozen model the first layer's output needs no gradient of itself.
        (output if output.requires_grad else output.requires_grad_()).register_hook(add)

    return module.layer.register_forward_hook(on_output)
