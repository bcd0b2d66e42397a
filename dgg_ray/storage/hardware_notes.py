"""Results of hardware checks in a store: one document for each machine type and base model.

    hardware_checks/MACHINE-MODEL    the reference stage's key and meaning; environment and scores of its
                                     training there

execution/hardware_check.py writes them; analysis reads them.
"""

from __future__ import annotations

from typing import Any

from dgg_ray.core.environment import MachineType
from dgg_ray.storage.stage_store import StageStore

PREFIX = "hardware_checks"


def document_name(machine: MachineType, model: str) -> str:
    return f"{PREFIX}/{machine.id}-{model[:8]}"


def check_lease_key(machine: MachineType, model: str) -> str:
    """Return the key of the lease that one worker holds while it runs the check."""
    return f"hardware-check-{machine.id}-{model[:8]}"


def put_check(store: StageStore, machine: MachineType, result: dict[str, Any]) -> None:
    store.put_document(document_name(machine, result["meaning"]["model"]), result)


def get_check(store: StageStore, machine: MachineType, model: str) -> dict[str, Any] | None:
    return store.get_document(document_name(machine, model))


def list_checks(store: StageStore, model: str) -> dict[str, dict[str, Any]]:
    """Map each machine type's id to the result of the base model's check there."""
    results = {name.removeprefix(f"{PREFIX}/"): result for name, result in store.list_documents(f"{PREFIX}/")}
    return {
        name.partition("-")[0]: result for name, result in results.items() if name.endswith(f"-{model[:8]}")
    }
