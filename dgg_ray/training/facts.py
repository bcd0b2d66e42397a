"""Facts in the store: what methods know of finished tasks, computed once and shared.

A fact is one object, `facts/OWNER/HASH.safetensors`. OWNER is the key of the stage that it is about, or
`data-` and a hash of the task's data, the model and the precision. HASH covers the fact's class, source
and settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dgg_ray.core.hashing import digest
from dgg_ray.core.sources import source_digest
from dgg_ray.core.stage import Stage
from dgg_ray.core.strategy import Fact, Values, setting_for_key
from dgg_ray.storage.backend import temporary_draft
from dgg_ray.storage.stage_store import StageStore

FORMAT = 1  # raise when facts are stored in another form


def object_name(fact: Fact, stage: Stage) -> str:
    """The name in the store of a fact about the task that a stage trained."""
    cls = type(fact)
    settings = [FORMAT, f"{cls.__module__}:{cls.__qualname__}", cls.version, source_digest(cls)]
    owner = stage.key if fact.of == "stage" else owner_of_data(stage)
    return f"facts/{owner}/{digest([*settings, setting_for_key(fact)])[:32]}.safetensors"


def owner_of_data(stage: Stage) -> str:
    """The owner of the facts about the data of the task that a stage trained.

    The precision counts: the base model's features and gradients are computed in it.
    """
    return f"data-{digest([stage.model, stage.training.precision, *stage.data])[:32]}"


def read(store: StageStore, name: str) -> Values | None:
    """A stored fact; None if there is none or it is damaged."""
    if (file := store.backend.download(name)) is None:
        return None
    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            about = json.loads(opened.metadata()["about"])
            return unflattened(tensors) if about["sha256"] == checksum(tensors) else None
    except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    finally:
        store.backend.release(file)


def publish(store: StageStore, name: str, values: Values) -> None:
    """Store a fact. Of two equal publications, either stays."""
    tensors = flattened(values)
    about = json.dumps({"sha256": checksum(tensors)})
    with temporary_draft(store.backend) as folder:
        draft = folder / "fact"
        save_file(tensors, draft, {"about": about})
        store.backend.upload(draft, name)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def flattened(values: Values) -> dict[str, Tensor]:
    """Tensors by name; a list's under NAME.0, NAME.1, …

    >>> list(flattened({"a": torch.zeros(1), "b": [torch.zeros(1), torch.ones(1)]}))
    ['a', 'b.0', 'b.1']
    """
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
        else:
            tensors |= {f"{name}.{i}": t.detach().cpu().contiguous().clone() for i, t in enumerate(value)}
    return tensors


def unflattened(tensors: Mapping[str, Tensor]) -> Values:
    """The inverse of `flattened`."""
    values: dict[str, Tensor | list[Tensor]] = {}
    for key in sorted(tensors, key=lambda key: (key.partition(".")[0], int(key.partition(".")[2] or 0))):
        name, _, index = key.partition(".")
        if not index:
            values[name] = tensors[key]
        elif isinstance(found := values.setdefault(name, []), list):
            found.append(tensors[key])
    return values
