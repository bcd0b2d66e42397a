"""The format marker of a store: a small object that says which layout its records have.

    store.json      {"format": 1}

The first process that writes to a store creates it. A place that holds records without this marker, or with
another number, was written by another version, whose records this one cannot read.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from dgg_ray.core.errors import StoreError
from dgg_ray.storage.backend import StorageBackend

FORMAT = 1  # raise it when names or contents of stored records change
MARKER = "store.json"
RECORDS = ("stages/", "studies/")  # names of records that only a marked store may hold
HALF_WRITTEN_S = 0.05  # a file system without hard links may show the marker before its content


@dataclass
class FormatCheck:
    """Checks a store's format once, and marks a new store once. verified, marked: whether that is done."""

    verified: bool = False
    marked: bool = False

    def verify(self, backend: StorageBackend) -> None:
        """Raise StoreError if the place holds a store of another format. An empty place passes."""
        if not self.verified:
            self.marked = _read_marker(backend)
            self.verified = self.marked  # an empty place may become any store

    def mark(self, backend: StorageBackend) -> None:
        """Create the marker if it is missing; raise StoreError if the store has another format."""
        self.verify(backend)
        if not self.marked:
            backend.create(MARKER, json.dumps({"format": FORMAT}).encode())
            self.verify(backend)


def _read_marker(backend: StorageBackend) -> bool:
    """Return whether the store is marked; raise StoreError if its format is another one."""
    found = _format_of(backend)
    if found is None:
        if not any(backend.list_names(prefix) for prefix in RECORDS):
            return False
        # Another process may have marked the store and written to it since the first look.
        found = _format_of(backend)
    if found != FORMAT:
        described = "of a version that marked no format" if found is None else f"of format {found}"
        raise StoreError(
            f"{backend.url} holds a store {described}, but this version of dgg_ray reads and writes format "
            f"{FORMAT}: name an empty place as output.store, or use the version that wrote this store"
        )
    return True


def _format_of(backend: StorageBackend) -> object:
    """Return the number in the marker; None if there is no marker, "unknown" if it cannot be parsed."""
    for _ in range(3):
        if (data := backend.read(MARKER)) is None:
            return None
        try:
            return json.loads(data)["format"]
        except (ValueError, KeyError, TypeError):
            time.sleep(HALF_WRITTEN_S)
    return "unknown"
