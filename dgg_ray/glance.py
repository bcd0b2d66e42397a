"""A store as it was at first sight, for who counts what is there and waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from dgg_ray.stages import Stage, StageStore


class Glance(StageStore):
    """A folder's store whose stages are looked up once, and read once.

    What is published later is not seen.
    """

    @cached_property
    def records(self) -> dict[str, dict[str, Any] | None]:
        return {}

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(place.name for place in self.folder.glob("[0-9a-f][0-9a-f]/*"))

    def record(self, stage: Stage) -> dict[str, Any] | None:
        if stage.key in self.keys and stage.key not in self.records:
            self.records[stage.key] = super().record(stage)
        return self.records.get(stage.key)

    def sittings(self, key: str) -> Iterator[dict[str, Any]]:
        return super().sittings(key) if key in self.keys else iter(())
