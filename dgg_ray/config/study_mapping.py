"""A study as a mapping of plain values, as its file has them: text, numbers, lists, mappings.

plain_value(DGG(alpha=0.3, buffer=20))    {"name": "dgg", "alpha": 0.3, "buffer": 20}
plain_value(Training(epochs=3))           {"epochs": 3}, the fields that differ from their defaults
study_mapping(study, keys)                {"name": …, "model": {…}, "tasks": [{…}, …], …}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgg_ray.config.yaml_reader import DEEPEST, TOO_DEEP
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.interfaces import Model, Reader
from dgg_ray.core.strategy import Strategy

if TYPE_CHECKING:
    from dgg_ray.config.study import Study


def plain_value(value: Any, at: str = "study", depth: int = 0) -> Any:
    """Convert a value to what a study's file holds; what no file can hold stays, and a rule refuses it.

    Plug-ins become `{name: …, setting: …}`, readers `{reader: …, setting: …}`, sections mappings of their
    fields. Raises StudyError where the value is nested too deeply, or in itself.
    """
    if depth > DEEPEST:
        raise StudyError([Fault(at, TOO_DEEP)])
    if is_dataclass(value) and not isinstance(value, type):
        key = "reader" if isinstance(value, Reader) else "name"
        name_entry = {key: plugins.plugin_name(value)} if isinstance(value, Reader | Model | Strategy) else {}
        return name_entry | {
            name: plain_value(own, f"{at}.{name}", depth + 1) for name, own in changed_fields(value).items()
        }
    if isinstance(value, Mapping):
        return {key: plain_value(inner, f"{at}.{key}", depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner, f"{at}[{i}]", depth + 1) for i, inner in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def changed_fields(thing: Any) -> dict[str, Any]:
    """Field → value, of the fields whose value is not the default."""
    changed = {}
    for f in fields(thing):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if (value := getattr(thing, f.name)) is default or (default is not MISSING and value == default):
            continue
        changed[f.name] = value
    return changed


def raw_mapping(given: Any) -> Any:
    """Convert a study given in Python to the form of its file; `tasks` may be a mapping, name → reader."""
    raw = plain_value(given)
    if isinstance(raw, Mapping) and isinstance(tasks := raw.get("tasks"), Mapping):
        listed = [
            {"name": name, **task} if isinstance(task, Mapping) else task for name, task in tasks.items()
        ]
        raw = {**raw, "tasks": listed}
    return raw


def study_mapping(study: Study, keys: Iterable[str]) -> dict[str, Any]:
    """Convert a study to a mapping, without defaults and with absolute paths.

    keys: the keys of a study's file, in its order.
    """
    defaults = {f.name: f.default for f in fields(study)}
    content: dict[str, Any] = {}
    for key in keys:
        if key == "tasks":
            content[key] = [
                {"name": name, **plain_value(reader)}
                | ({"evaluate_only": True} if name in study.evaluate_only else {})
                for name, reader in study.readers.items()
            ]
        elif key == "seeds" and study.own_seeds:
            content[key] = {"per_order": len(study.seeds)}
        elif (value := getattr(study, key)) != defaults[key]:
            content[key] = plain_value(value)
    return content
