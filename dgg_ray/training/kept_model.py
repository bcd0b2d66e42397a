"""The base model in a process's memory, handed from one study's learner to the next.

A stage puts an adapter on the base model, and hooks, and may switch modes. `PeftLearner.release` takes all of
it off. The model is then compared with what was loaded: structure, hooks, modes, and the bits of every
tensor. It is kept only if nothing differs, so a study cannot reach the one after it through the model.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgg_ray.core import event_log
from dgg_ray.core.interfaces import Model

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes
RECORDERS = (
    "transformers.utils.output_capturing"  # hooks of this module do nothing unless outputs are asked for
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A frozen base model on its device, in evaluation mode, with its processor.

    state: what `describe` says of it, if it may be kept.
    """

    base: Any
    processor: Any
    state: tuple[Any, ...] = ()

    @classmethod
    def load(cls, model: Model, device: torch.device) -> LoadedModel:
        base, processor = model.load()
        quantized = getattr(base, "is_loaded_in_4bit", False)  # placed by its loader, cannot be moved
        base = base if quantized else base.to(device)
        return cls(base.requires_grad_(False).eval(), processor)


class KeptModel:
    """The base model that this process keeps between two studies; at most one."""

    def __init__(self) -> None:
        self.fingerprint = ""
        self.loaded: LoadedModel | None = None

    def take(self, model: Model, fingerprint: str, device: torch.device) -> LoadedModel:
        """The kept model if it is the one of that fingerprint; else the model, newly loaded."""
        loaded = self.loaded if self.fingerprint == fingerprint else None
        self.loaded = None  # what a failed study leaves behind is not used again
        free_memory()  # there is room for one model
        if loaded is None:
            new = LoadedModel.load(model, device)
            loaded = LoadedModel(new.base, new.processor, tuple(describe(new.base)))
        self.fingerprint = fingerprint
        return loaded

    def put_back(self, loaded: LoadedModel) -> None:
        """Keep the model that `take` gave, if it is as it was loaded."""
        if tuple(describe(loaded.base)) == loaded.state:
            self.loaded = loaded
        else:
            event_log.log_event("base model not kept", level=logging.WARNING)


def describe(base: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Describe all that a study could have changed on the model: two descriptions differ if it did."""
    for name, module in base.named_modules():
        hooks = [hook for kind in HOOKS for hook in getattr(module, kind).values()]
        own = [hook for hook in hooks if getattr(hook, "__module__", "") != RECORDERS]
        yield name, type(module), len(own), module.training, getattr(module, "gradient_checkpointing", None)
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        yield name, tensor.shape, tensor.dtype, str(tensor.device), tensor.requires_grad, bit_sum(tensor)
    for name in ("config", "generation_config"):
        yield name, str(getattr(base, name, None))


def bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's elements, their bits read as integers."""
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))


def free_memory() -> None:
    """Give back the memory of objects that are no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
