"""One LoRA per task, where a later task may also scale what the model was before it.

    y = W (c ⊙ x) + s · Σ_{k<t} B_k A_k x̃ + s · B_t A_t x̃,       x̃ = dropout(x)

    symbol  here        shape       unit
    c       scales      (d_in,)     -, 1 until `scale_earlier` changes it

All else is as in `LoraSlots`. To scale the columns of W + s Σ_{k<t} B_k A_k, c and the columns of every A_k
are scaled; W itself is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgg_ray.adapters.lora_slots import LoraSlots

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ScaledSlots(LoraSlots):
    """LoRA slots on base weights whose columns have factors."""

    def attach(self, model, setup):
        import torch

        from dgg_ray.adapters._lora_layers import stored_layout

        super().attach(model, setup)
        stored = stored_layout(setup.parent, ".input_scale")
        scales = self.parts["scales"] = {}
        self.parts.update(on=True, hooks=[])
        for name, module in self.parts["linears"].items():
            width, device = module.a.weight.shape[1], module.a.weight.device
            scales[name] = stored.get(f"{name}.input_scale", torch.ones(width)).to(device)
            base = module.layer.get_base_layer()
            self.parts["hooks"].append(base.register_forward_pre_hook(self._scaling(name)))

    def detach(self):
        for hook in self.parts.get("hooks", ()):
            hook.remove()
        super().detach()

    def switch(self, on):
        self.parts["on"] = on

    def _scaling(self, layer: str):
        """A hook that scales the inputs of a linear's own weights."""

        def scale_input(base, inputs):
            if not self.parts["on"]:
                return None
            x = inputs[0]  # scaled in fp32: bf16 would round a factor near 1 to 1
            return ((x * self.parts["scales"][layer]).to(x.dtype), *inputs[1:])

        return scale_input

    def earlier_weight(self, layer: str) -> Tensor:
        """W ⊙ c + s Σ_{k<t} B_k A_k of a linear layer (d_out, d_in), fp32."""
        from peft.utils.integrations import dequantize_module_weight

        linear, (a, b) = self.linear(layer), self.frozen(layer)
        whole = dequantize_module_weight(linear.layer.get_base_layer()).detach().float()
        return whole * self.parts["scales"][layer] + linear.scale * (b @ a)

    def scale_earlier(self, layer: str, factors: Tensor) -> None:
        """Multiply the columns of `earlier_weight` by these factors (d_in,)."""
        self.parts["scales"][layer] *= factors
        self.frozen(layer)[0].mul_(factors)

    def frozen_tensors(self):
        scales = {f"{name}.input_scale": scale for name, scale in self.parts["scales"].items()}
        return super().frozen_tensors() | scales
