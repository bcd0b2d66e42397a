"""A stage store in this process's memory, for simulations and tests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgg_ray.core.stage import Stage
from dgg_ray.storage.backend import StorageBackend
from dgg_ray.storage.stage_store import FillFolder, StageStore

Record = dict[str, Any]


@dataclass
class MemoryBackend(StorageBackend):
    """Small objects in a dictionary, each with its time. It keeps no files."""

    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    url = "memory"

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        return self.objects[name][0] if name in self.objects else None

    def write(self, name: str, data: bytes) -> None:
        self.objects[name] = (data, time.time())

    def create(self, name: str, data: bytes, durable: bool = True) -> bool:
        new = (data, time.time())
        return self.objects.setdefault(name, new) is new

    def list_names(self, prefix: str) -> list[str]:
        return sorted(name for name in list(self.objects) if name.startswith(prefix))  # other threads write

    def remove(self, name: str) -> None:
        self.objects.pop(name, None)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {name: len(self.objects[name][0]) for name in self.list_names(prefix)}

    def modified_at(self, name: str) -> float | None:
        return self.objects[name][1] if name in self.objects else None


@dataclass(frozen=True)
class MemoryStore(StageStore):
    """Finished stages as Python objects, as simulated searches read them thousands of times; no files."""

    backend: MemoryBackend = field(default_factory=MemoryBackend)  # type: ignore[assignment]
    records: dict[str, Record] = field(default_factory=dict)
    evaluations: dict[str, list[Record]] = field(default_factory=dict)
    scores: dict[str, dict[str, Record]] = field(default_factory=dict)  # entries by stage and evaluation

    def record(self, stage: Stage) -> Record | None:
        return self.records.get(stage.key)

    def score_entries(self, stage: Stage) -> dict[str, Record]:
        return self.scores.get(stage.key, {})

    def evaluation_records(self, key: str) -> Iterator[Record]:
        return iter(self.evaluations.get(key, ()))

    def open(self, stage: Stage) -> Path | None:
        return Path("memory") / stage.key if stage.key in self.records else None

    def publish(self, stage: Stage, record: Record, fill: FillFolder) -> None:
        self.records.setdefault(stage.key, {"key": stage.key, "bytes": 0} | record)
        self.remove_document(f"failed/{stage.key}")

    def publish_evaluations(
        self,
        stage: Stage,
        entries: list[Record],
        fill: FillFolder,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        record = {"scores": entries, "bytes": 0, **(origin or {})}
        self.evaluations.setdefault(stage.key, []).append(record)
        self.scores.setdefault(stage.key, {}).update((entry["evaluation"], entry) for entry in entries)
        self.remove_document(f"failed/{stage.key}")

    def discard(self, key: str) -> int:
        for entries in (self.records, self.evaluations, self.scores):
            entries.pop(key, None)
        return 0

    def remove_adapter(self, key: str) -> int:
        """Free nothing: there are no files."""
        return 0

    def sweep(self) -> None:
        """Do nothing: writers leave nothing behind in memory."""

    def finished(self) -> Iterator[tuple[Record, list[Record]]]:
        return ((record, self.evaluations.get(key, [])) for key, record in self.records.items())
