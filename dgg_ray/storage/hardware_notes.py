"""Notes on hardware checks (hardware_check.py) in a store: one for each kind of machine and base model.

sentinels/KIND-MODEL    the stage's key and meaning, where it was learned again, and what it scored there
"""

from __future__ import annotations

from typing import Any

from dgg_ray.core.environment import Kind
from dgg_ray.storage.stage_store import StageStore

SENTINELS = "sentinels"


def name_of(of: Kind, model: str) -> str:
    return f"{SENTINELS}/{of.id}-{model[:8]}"


def lease_of(of: Kind, model: str) -> str:
    return f"sentinel-{of.id}-{model[:8]}"


def note(store: StageStore, of: Kind, content: dict[str, Any]) -> None:
    store.note(name_of(of, content["meaning"]["model"]), content)


def noted(store: StageStore, of: Kind, model: str) -> dict[str, Any] | None:
    return store.noted(name_of(of, model))


def notes(store: StageStore, model: str) -> dict[str, dict[str, Any]]:
    """Kind's id → what was noted of that base model's sentinel there."""
    found = {name.removeprefix(f"{SENTINELS}/"): content for name, content in store.notes(f"{SENTINELS}/")}
    return {name.partition("-")[0]: c for name, c in found.items() if name.endswith(f"-{model[:8]}")}
