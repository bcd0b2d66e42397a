"""A store as it was at first sight, for who counts what is there and waits for nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from dgg_ray.core.stage import Stage
from dgg_ray.storage.backend import Objects
from dgg_ray.storage.stage_store import StageStore


@dataclass
class Seen(Objects):
    """Objects that are listed once, by their first part, and read once; far ones at once, together."""

    under: Objects
    listed: dict[str, list[str]] = field(default_factory=dict)
    held: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:  # type: ignore[override]
        return self.under.url

    def names(self, prefix: str) -> list[str]:
        kind = prefix.partition("/")[0] + "/"
        if kind not in self.listed:
            self.listed[kind] = self.under.names(kind)
            if not self.under.near:
                self.held.update(self.under.reads(self.listed[kind]))
        names = self.listed[kind]
        return list(takewhile(lambda name: name.startswith(prefix), names[bisect_left(names, prefix) :]))

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        if fresh:
            return self.under.read(name, fresh)
        if name not in self.held and name in self.names(name) and (data := self.under.read(name)) is not None:
            self.held[name] = data
        return self.held.get(name)

    def reads(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        return ((name, data) for name in names if (data := self.read(name)) is not None)

    def sizes(self, prefix: str) -> dict[str, int]:
        return self.under.sizes(prefix)

    def modified(self, name: str) -> float | None:
        return self.under.modified(name)

    def opened(self, place: str, files: Mapping[str, str]) -> Path:
        return self.under.opened(place, files)

    def write(self, name: str, data: bytes) -> None:
        self.under.write(name, data)

    def remove(self, name: str) -> None:
        self.held.pop(name, None)
        self.under.remove(name)


def at_once(store: StageStore) -> StageStore:
    """For one pass over many stages: a glance where every look would be a request, else the store itself."""
    return store if store.objects.near else Glance(store)


class Glance(StageStore):
    """A store whose stages are looked up once, and read once. What is published later is not seen."""

    def __init__(self, store: StageStore) -> None:
        if isinstance(store, Glance):  # what was seen stays what it was
            vars(self).update(vars(store))
            return
        under = copy(store)
        vars(under)["objects"] = objects = Seen(store.objects)
        vars(self).update(folder=store.folder, objects=objects, under=under, records={}, sat={})

    under: StageStore
    records: dict[str, dict[str, Any] | None]
    sat: dict[str, list[dict[str, Any]]]

    def record(self, stage: Stage) -> dict[str, Any] | None:
        if stage.key not in self.records:
            self.records[stage.key] = self.under.record(stage)
        return self.records[stage.key]

    def sittings(self, key: str) -> Iterator[dict[str, Any]]:
        if key not in self.sat:
            self.sat[key] = list(self.under.sittings(key))
        return iter(self.sat[key])

    def finished(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        return self.under.finished()
