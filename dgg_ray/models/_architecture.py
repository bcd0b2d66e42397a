"""Find the parts of a vision-language model: the language model's linear layers, the projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dgg_ray.core.errors import StageError

# Names of these parts in LLaVA, Qwen-VL, Idefics3 and similar models.
VISION_TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder", "embed_vision")
PROJECTORS = ("multi_modal_projector", "mm_projector", "connector", "merger")


def checkpoint_activations(model: Any, on: bool) -> None:
    """Switch activation checkpointing on or off."""
    # transformers 5 has a new name for it, and warns about the old one.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
        if hasattr(model, "disable_input_require_grads"):  # transformers leaves the hooks that it set for it
            model.disable_input_require_grads()


def projector_of(model: nn.Module) -> str:
    """Return the full name of the module between vision tower and language model."""
    for name, _ in model.named_modules():
        if name.rpartition(".")[2] in PROJECTORS:
            return name
    raise StageError("training.projector_learning_rate: no projector found in the model; leave it out")


def language_linears(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the full names of the language model's linear layers that `targets` names, or of all.

    Full names are needed because `q_proj` alone would match the vision tower's layers too.
    """
    legal = linear_names(model)
    if unknown := [] if targets == "all" else sorted(set(targets) - set(legal)):
        raise StageError(
            f"adapter.targets: {', '.join(unknown)} not found in the language model, "
            f"which has {', '.join(legal)}"
        )
    return [name for name in linears(model) if targets == "all" or name.rpartition(".")[2] in targets]


def linear_names(model: nn.Module) -> list[str]:
    """List the names that `adapter.targets` may hold: last parts of the linear layers' names, sorted."""
    return sorted({name.rpartition(".")[2] for name in linears(model)})


def linears(model: nn.Module) -> list[str]:
    """List the full names of the linear layers outside vision tower, projector and output head."""
    others = {*VISION_TOWERS, *PROJECTORS, "lm_head"}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not others & set(name.split("."))
    ]
