"""Where the parts of a vision-language model are: its language model's layers, its projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dgg_ray.core.errors import StageError

# The names that LLaVA, Qwen-VL and Idefics3, and models like them, give their parts.
SEEING = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder", "embed_vision")
PROJECTORS = ("multi_modal_projector", "mm_projector", "connector", "merger")


def checkpoint_activations(model: Any, on: bool) -> None:
    # transformers 5 calls it by a new name, and warns at the old one.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def projector_of(model: nn.Module) -> str:
    """Full name of the module between vision tower and language model."""
    for name, _ in model.named_modules():
        if name.rpartition(".")[2] in PROJECTORS:
            return name
    raise StageError("training.projector_learning_rate: no projector found in the model; leave it out")


def language_linears(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the language model's linear layers called by one of `targets`, or of all of them.

    Full names, because `q_proj` alone would match the vision tower's layers too.
    """
    legal = linear_names(model)
    if unknown := [] if targets == "all" else sorted(set(targets) - set(legal)):
        raise StageError(
            f"adapter.targets: {', '.join(unknown)} not found in the language model, "
            f"which has {', '.join(legal)}"
        )
    return [name for name in linears(model) if targets == "all" or name.rpartition(".")[2] in targets]


def linear_names(model: nn.Module) -> list[str]:
    """What `adapter.targets` may name: the last parts of the linear layers' names, sorted."""
    return sorted({name.rpartition(".")[2] for name in linears(model)})


def linears(model: nn.Module) -> list[str]:
    """Full names of the linear layers that neither see nor project nor are the output head."""
    others = {*SEEING, *PROJECTORS, "lm_head"}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not others & set(name.split("."))
    ]
