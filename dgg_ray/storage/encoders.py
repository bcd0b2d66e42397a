"""Frozen CLIP encoders that strategies name: where they are, what is wrong with them, their part of a key.

model               the untouched base model of the study; there are no files
/shared/clip        a folder that every worker reaches
NAME@COMMIT         a hub name with the commit, 40 hex digits, that stands for the weights
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgg_ray.core.file_hashes import COMMIT
from dgg_ray.storage import fetching

BASE_MODEL = "model"
REQUIRED_FILES = ("config.json", "tokenizer_config.json", "*.safetensors", "*processor_config.json")


def absolute(encoder: str) -> str:
    """Return the encoder with a folder's absolute path: a worker may run in another working folder."""
    folder = fetching.as_path(encoder)
    return str(folder.absolute()) if encoder != BASE_MODEL and folder.is_dir() else encoder


def as_setting(encoder: str) -> str | Path:
    """Return a folder as a path, so that it counts by its content in keys; others as they are."""
    return Path(encoder) if Path(encoder).is_absolute() else encoder


def source(encoder: str) -> tuple[str, dict[str, Any]]:
    """Return (folder or hub name, options) for `from_pretrained`."""
    if Path(encoder).is_absolute():
        return encoder, {"local_files_only": True}
    name, _, commit = encoder.rpartition("@")
    return name, {"revision": commit}


def faults(encoder: str) -> list[tuple[str, str]]:
    """List what is wrong with an encoder as (rule, value found); nothing is loaded."""
    if encoder == BASE_MODEL:
        return []
    if Path(encoder).is_absolute():
        return list(folder_faults(Path(encoder)))
    name, _, commit = encoder.rpartition("@")
    if name and COMMIT.fullmatch(commit):
        return []
    rule = "must be `model`, a folder with a CLIP model, or a hub name with its commit, NAME@COMMIT"
    return [(f"{rule}; there is no such folder", repr(encoder))]


def feature_size(encoder: str) -> int | None:
    """Return the length of the features of a folder's CLIP model; 0 for the base model, None for unknown."""
    if encoder == BASE_MODEL:
        return 0
    try:
        config = json.loads(Path(encoder, "config.json").read_text(encoding="utf-8"))
        return int(config["projection_dim"])
    except (OSError, ValueError, KeyError):
        return None


def folder_faults(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the folder of a CLIP model."""
    if not folder.is_dir():
        yield "no such folder", repr(str(folder))
        return
    missing = [name for name in REQUIRED_FILES if not any(folder.glob(name))]
    for name in missing:
        yield f"must hold a CLIP model: {name} is missing", repr(str(folder))
    if "config.json" in missing:
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        yield "must hold a CLIP model: its config.json must be JSON", repr(str(folder))
        return
    if (kind := config.get("model_type")) != "clip":
        yield "must hold a CLIP model: its config.json must have model_type clip", repr(kind)
