"""The mounted LoRA layers and the stored files, as all layouts see them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from dgg_ray.core.interfaces import LAYOUT_FILE

ADAPTER = "default"  # PEFT's name of the LoRA that a stage trains


class LoraModule(NamedTuple):
    """A linear layer with its LoRA: y = W x + scale · B (A drop(x)).

    name: as in the model's `named_modules`. A: (r, d_in), B: (d_out, r).
    """

    name: str
    layer: Any

    @property
    def a(self) -> Any:
        return self.layer.lora_A[ADAPTER]

    @property
    def b(self) -> Any:
        return self.layer.lora_B[ADAPTER]

    @property
    def scale(self) -> float:
        return self.layer.scaling[ADAPTER]


def lora_modules(model: nn.Module) -> list[LoraModule]:
    """The model's LoRA layers, in the model's order."""
    return [LoraModule(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def stored_layout(folder: Path | None, ending: str = "") -> Mapping[str, Tensor]:
    """Tensors that the layout of a finished stage stored, by name; those whose names have this ending."""
    file = folder and folder / "adapter" / LAYOUT_FILE
    if not file or not file.exists():
        return {}
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if name.endswith(ending)}  # noqa: SIM118


def factor_indices(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Positions (of A, of B) of each linear layer in a list of parameter names, by the layer's name.

    >>> factor_indices(["q.lora_A.default.weight", "q.lora_B.default.weight", "projector.weight"])
    {'q': (0, 1)}
    """
    a, b = (f".lora_{factor}.{ADAPTER}.weight" for factor in "AB")
    position = {name: i for i, name in enumerate(names)}
    layers = [name.removesuffix(a) for name in names if name.endswith(a)]
    return {layer: (position[layer + a], position[layer + b]) for layer in layers}


def decoder_layer_of(name: str) -> int:
    """Number of the decoder layer that a module belongs to, from 0; StopIteration for none.

    >>> decoder_layer_of("base_model.model.model.language_model.layers.11.mlp.up_proj")
    11
    """
    parts = name.split(".")
    return next(int(after) for before, after in itertools.pairwise(parts) if before == "layers")
