"""A study's parts as plain values, as its file has them: text, numbers, lists, mappings.

plain(DGG(alpha=0.3, buffer=20))      →  {"name": "dgg", "alpha": 0.3, "buffer": 20}
plain(Training(epochs=3))             →  {"epochs": 3}, what differs from the defaults
settings(study)                       →  {"name": …, "model": {…}, "tasks": [{…}, …], …}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.interfaces import Model, Reader, Strategy

if TYPE_CHECKING:
    from dgg_ray.config.study import Study

DEEPEST = 40  # lists in lists, as in a study's file


def plain(value: Any, at: str = "study", depth: int = 0) -> Any:
    """The value as a study's file would have it; what no file can hold stays, for the rules to refuse.

    Plug-ins become `{name: …, setting: …}`, readers `{reader: …, setting: …}`, sections their settings.
    StudyError where it is nested too deeply, or in itself.
    """
    if depth > DEEPEST:
        rule = f"must not be nested deeper than {DEEPEST} lists or mappings"
        raise StudyError([Fault(at, rule)])
    if is_dataclass(value) and not isinstance(value, type):
        key = "reader" if isinstance(value, Reader) else "name"
        named = {key: plugins.name_of(value)} if isinstance(value, Reader | Model | Strategy) else {}
        return named | {name: plain(own, f"{at}.{name}", depth + 1) for name, own in changed(value).items()}
    if isinstance(value, Mapping):
        return {key: plain(inner, f"{at}.{key}", depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{at}[{i}]", depth + 1) for i, inner in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def changed(thing: Any) -> dict[str, Any]:
    """Field → value, of the fields whose value is not the default."""
    found = {}
    for f in fields(thing):
        usual = f.default_factory() if f.default_factory is not MISSING else f.default
        if (value := getattr(thing, f.name)) is usual or (usual is not MISSING and value == usual):
            continue
        found[f.name] = value
    return found


def raw_of(given: Any) -> Any:
    """A study given in Python, in the form of its file: `tasks` may be a mapping, name → reader."""
    raw = plain(given)
    if isinstance(raw, Mapping) and isinstance(tasks := raw.get("tasks"), Mapping):
        listed = [
            {"name": name, **task} if isinstance(task, Mapping) else task for name, task in tasks.items()
        ]
        raw = {**raw, "tasks": listed}
    return raw


def settings(study: Study, keys: Iterable[str]) -> dict[str, Any]:
    """The study as a mapping of settings, without those that are at their default; paths are whole.

    keys: those of a study's file, in its order.
    """
    usual = {f.name: f.default for f in fields(study)}
    found: dict[str, Any] = {}
    for key in keys:
        if key == "tasks":
            found[key] = [{"name": name, **plain(reader)} for name, reader in study.readers.items()]
        elif key == "seeds" and study.own_seeds:
            found[key] = {"per_order": len(study.seeds)}
        elif (value := getattr(study, key)) != usual[key]:
            found[key] = plain(value)
    return found
