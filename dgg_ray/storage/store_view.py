"""A view of a store that reads every record once, for code that counts records and waits for none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from dgg_ray.core.stage import Stage
from dgg_ray.storage.backend import StorageBackend
from dgg_ray.storage.stage_store import StageStore


@dataclass
class ReadOnceBackend(StorageBackend):
    """Objects of another backend, each listed once (by the first part of its name) and read once.

    Objects of a remote backend are read together with their listing, in parallel.
    """

    source: StorageBackend
    listings: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:  # type: ignore[override]
        return self.source.url

    def list_names(self, prefix: str) -> list[str]:
        top = prefix.partition("/")[0] + "/"
        if top not in self.listings:
            self.listings[top] = self.source.list_names(top)
            if not self.source.is_local:
                self.contents.update(self.source.read_many(self.listings[top]))
        names = self.listings[top]
        return list(takewhile(lambda name: name.startswith(prefix), names[bisect_left(names, prefix) :]))

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        if fresh or "/" not in name:  # what is in no folder is in no listing
            return self.source.read(name, fresh)
        unread = name not in self.contents and name in self.list_names(name)
        if unread and (data := self.source.read(name)) is not None:
            self.contents[name] = data
        return self.contents.get(name)

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        return ((name, data) for name in names if (data := self.read(name)) is not None)

    def sizes(self, prefix: str) -> dict[str, int]:
        return self.source.sizes(prefix)

    def modified_at(self, name: str) -> float | None:
        return self.source.modified_at(name)

    def open_folder(self, folder: str, checksums: Mapping[str, str]) -> Path:
        return self.source.open_folder(folder, checksums)

    def create(self, name: str, data: bytes, durable: bool = True) -> bool:
        return self.source.create(name, data, durable)

    def write(self, name: str, data: bytes) -> None:
        self.source.write(name, data)

    def remove(self, name: str) -> None:
        self.contents.pop(name, None)
        self.source.remove(name)


@dataclass(frozen=True)
class StoreView(StageStore):
    """A store as it was when each stage was first looked up. Later publications are not seen.

    source: the store, on a backend that reads once.
    records, evaluations: what was read of it, by stage key.
    """

    source: StageStore
    records: dict[str, dict[str, Any] | None] = field(default_factory=dict, repr=False)
    evaluations: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    def record(self, stage: Stage) -> dict[str, Any] | None:
        if stage.key not in self.records:
            self.records[stage.key] = self.source.record(stage)
        return self.records[stage.key]

    def evaluation_records(self, key: str) -> Iterator[dict[str, Any]]:
        if key not in self.evaluations:
            self.evaluations[key] = list(self.source.evaluation_records(key))
        return iter(self.evaluations[key])

    def finished(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        return self.source.finished()


def view_of(store: StageStore) -> StoreView:
    """Return a view of the store, or the store itself if it is a view.

    Raise StoreError if the place holds a store of another format.
    """
    if isinstance(store, StoreView):
        return store
    store.verify_format()
    backend = ReadOnceBackend(store.backend)
    return StoreView(backend, replace(store, backend=backend))


def view_if_remote(store: StageStore) -> StageStore:
    """Return a view of a remote store, where every look would be a request, and a local store itself.

    Use it for one pass over many stages.
    """
    return store if store.backend.is_local else view_of(store)
