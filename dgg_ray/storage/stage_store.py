"""The stage store: finished stages by key, in a folder or on an object store.

A store holds these objects, by name:

    stages/ab/abcdef….json         one stage: what was learned, cost, environment; checksums (manifest.py)
    stages/ab/abcdef….0123….json   one sitting after it, some exams sat together: a score per (task, split)
    files/abcdef…/WRITER/          the stage's files: adapter/, a PEFT checkpoint; strategy.safetensors, what
                                   the strategy hands to the next stage, if anything
    files/abcdef…/0123…-WRITER/    the sitting's: predictions.parquet, every answer
    profiles/abcdef…-SETUP.json      what a few steps and answers of the stage took there
    failed/ inflight/ leases/      why it ended early; snapshots (checkpoints.py); who is at it (leases.py)
    damaged/ drafts/ writers/      manifests set aside; what is being written
    shed/abcdef….json              its adapter was removed on purpose
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dgg_ray.core.errors import StoreError
from dgg_ray.core.hashing import digest
from dgg_ray.core.stage import Evaluation, Stage, WorkItem
from dgg_ray.storage import leases, manifest
from dgg_ray.storage.backend import Folder, Objects
from dgg_ray.storage.leases import LEASE_S, SLACK, Holder
from dgg_ray.storage.manifest import key_of, name_of

DRAFT_S = 86_400.0
SNAPSHOT_S = 30 * 86_400.0
Fill = Callable[[Path], None] | None


@dataclass(frozen=True)
class StageStore:
    """Finished stages by key, in a folder; remote.RemoteStore is one on an object store.

    Every method is safe with many processes at work."""

    folder: Path

    @cached_property
    def objects(self) -> Objects:
        return Folder(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Where it is, and no connection: a store is sent to many processes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """The stage's record; None where it is not finished."""
        return manifest.read(self.objects, name_of(stage.key))

    def cells(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """What was examined after the stage: exam key → {task, split, score, n, …}."""
        return {cell["evaluation"]: cell for sitting in self.sittings(stage.key) for cell in sitting["cells"]}

    def sittings(self, key: str) -> Iterator[dict[str, Any]]:
        """Records of the sittings after the stage with that key: {cells, study, workers, …}."""
        stage = name_of(key)
        for name, data in self.objects.reads(n for n in self.objects.names(stage[:-4]) if n != stage):
            if found := manifest.manifest(self.objects, name, data):
                yield found["record"]

    def answered(
        self, stage: Stage, evaluations: Collection[str]
    ) -> Iterator[tuple[list[dict[str, Any]], Path]]:
        """Give (cells, local folder with predictions.parquet, verified) of records with these evaluations.

        Each evaluation is in one of them; a record without answers, as simulated ones are, is left out.

        exams: keys of evaluations."""
        own, left = name_of(stage.key), set(evaluations)
        for name, data in self.objects.reads(n for n in self.objects.names(own[:-4]) if n != own):
            found = manifest.manifest(self.objects, name, data)
            cells = found["record"]["cells"] if found else []
            if not found or not found["files"] or left.isdisjoint(cell["evaluation"] for cell in cells):
                continue
            if folder := manifest.opened(self.objects, name, f"shed/{stage.key}.json"):
                left -= {cell["evaluation"] for cell in cells}
                yield cells, folder

    def missing(self, item: WorkItem) -> tuple[Evaluation, ...] | None:
        """The exams still to be sat; None where the stage itself is still to be learned."""
        if self.record(item.stage) is None:
            return None
        if not item.evaluations:
            return ()
        sat = self.cells(item.stage)
        return tuple(evaluation for evaluation in item.evaluations if evaluation.key not in sat)

    def has(self, item: WorkItem) -> bool:
        """Whether nothing is left to do."""
        return self.noted(f"profiles/{item.key}") is not None if item.profile else self.missing(item) == ()

    def open(self, stage: Stage) -> Path | None:
        """A local folder with the stage's files, each verified; None where it is not there (any more)."""
        return manifest.opened(self.objects, name_of(stage.key), f"shed/{stage.key}.json")

    def adapter(self, stage: Stage) -> str:
        """Find the PEFT folder of a finished stage; empty where there is none (any more)."""
        found = manifest.manifest(self.objects, name := name_of(stage.key), self.objects.read(name))
        place = f"{found['place']}/adapter" if found else ""
        return f"{self.url}/{place}" if place and self.objects.sizes(f"{place}/") else ""

    def publish(self, stage: Stage, record: dict[str, Any], fill: Fill) -> None:
        """Write a finished stage; `fill` writes its files into the folder it is given; None: it has none."""
        content = {"key": stage.key, "meaning": stage.meaning} | record
        manifest.write(self.objects, name_of(stage.key), f"files/{stage.key}/", content, fill)
        self.forget(f"failed/{stage.key}")

    def sit(
        self, stage: Stage, cells: list[dict[str, Any]], fill: Fill, by: Mapping[str, Any] | None = None
    ) -> None:
        """Write a sitting of a finished stage; each cell needs exam, task, split, score, n.

        by: who sat it, as the stage's own record says it: {study, workers}."""
        sitting = digest(sorted(cell["evaluation"] for cell in cells))[:16]
        name, kept = name_of(stage.key, sitting), f"files/{stage.key}/{sitting}-"
        manifest.write(self.objects, name, kept, {"cells": cells, **(by or {})}, fill)
        self.forget(f"failed/{stage.key}")

    def fail(self, stage: Stage, error: dict[str, str]) -> None:
        """Keep why a stage or its exams ended early, until it is published. Never raises.

        error: {error, message, traceback}."""
        with contextlib.suppress(OSError, StoreError):
            self.note(f"failed/{stage.key}", {"meaning": stage.meaning} | error)

    def failure(self, stage: Stage) -> dict[str, str] | None:
        """What `fail` kept; None where the stage did not fail, or was done since."""
        return self.noted(f"failed/{stage.key}")

    def measure(self, item: WorkItem, record: dict[str, Any]) -> None:
        """Keep what a profile took."""
        self.note(f"profiles/{item.key}", record)

    def profiles(self) -> Iterator[dict[str, Any]]:
        """What all profiles took."""
        return (record for _, record in self.notes("profiles/"))

    def discard(self, key: str, part: str = "") -> int:
        """Remove a finished stage with its sittings and files, as if it had never been; bytes freed.

        part: no more than this folder of its files; where they are wanted it is learned again."""
        if part:
            return manifest.shed(self.objects, name_of(key), part, f"shed/{key}.json")
        for note in (f"inflight/{key}.safetensors", f"failed/{key}.json", f"shed/{key}.json"):
            self.objects.remove(note)
        freed = manifest.remove(self.objects, name_of(key), f"files/{key}")
        leases.remove(self.objects, key)
        return freed

    def sweep(self) -> None:
        """Remove what was left: drafts and leases that ended a day ago; snapshots that are not needed (any
        more), or to which nobody came back for thirty days."""
        now = time.time()
        for snapshot in self.objects.names("inflight/"):
            done = self.objects.read(name_of(key_of(snapshot))) is not None
            if done or (self.objects.modified(snapshot) or now) < now - SNAPSHOT_S:
                self.objects.remove(snapshot)
        manifest.sweep(self.objects, now - DRAFT_S)
        leases.sweep(self.objects, now - DRAFT_S)

    def finished(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """(Record, records of the sittings) of all finished stages, by key; by one listing."""
        every = self.objects.reads(self.objects.names("stages/"))
        for key, some in groupby(every, key=lambda named: key_of(named[0])):
            read = ((name, manifest.manifest(self.objects, name, data)) for name, data in some)
            found = {name: whole["record"] for name, whole in read if whole}
            if record := found.pop(name_of(key), None):
                yield record, [*found.values()]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Records of all finished stages, by key."""
        return (record for record, _ in self.finished())

    # -- documents, leases and the place itself ----------------------------------------------------

    @property
    def url(self) -> str:
        """How another machine names the place."""
        return self.objects.url

    def size(self) -> int:
        """Bytes of all that is there."""
        return sum(self.objects.sizes("").values())

    def note(self, name: str, content: dict[str, Any]) -> None:
        """Keep a small document, in place of an earlier one of that name."""
        self.objects.write(of_note(name), json.dumps(content, indent=1, sort_keys=True).encode())

    def noted(self, name: str) -> dict[str, Any] | None:
        """None where there is nothing that can be read."""
        return content_of(self.objects.read(of_note(name)))

    def notes(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, content) of all notes whose names begin so, in order."""
        for name in self.objects.names(quote(prefix)):
            if (content := content_of(self.objects.read(name))) is not None:
                yield unquote(name.removesuffix(".json")), content

    def forget(self, name: str) -> None:
        self.objects.remove(of_note(name))

    def lease(self, key: str, holder: Holder, seconds: float = LEASE_S) -> Holder | None:
        """Take or renew the right to work on a key; None where it is `holder`'s now, else who has it."""
        return leases.take(self.objects, key, holder, seconds)

    def release(self, key: str, holder: Holder) -> None:
        """Give it back; nothing happens where another has it."""
        leases.release(self.objects, key, holder)

    def check(self) -> None:
        """Raises StoreError, in seconds, where the place cannot hold a store: it cannot be written or read
        back, it creates what is there already, or its clock is not ours."""
        objects, name, mine = self.objects, f"checks/{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            before = time.time()
            created, again = objects.create(name, mine), objects.create(name, b"again")
            at, after = objects.modified(name), time.time()
            found = objects.read(name)
            listed = objects.names(name) == [name]
            objects.remove(name)
        except OSError as error:
            raise StoreError(
                f"{self.url} cannot be written: {error}. Name a place that can be, as output.store"
            ) from error
        if not created or again or not listed or found != mine:
            raise StoreError(
                f"{self.url} does not keep things as a store needs it (created {created}, created again "
                f"{again}, listed {listed}, read back {found == mine}); use another place as output.store"
            )
        apart = (
            0.0 if at is None else max(before - at - 1, at - after, 0.0)
        )  # some cut their clock to seconds
        if apart > LEASE_S * SLACK:
            raise StoreError(
                f"the clocks of this machine and of {self.url} are {apart:.0f} s apart, more than "
                f"{LEASE_S * SLACK:.0f}: set this machine's clock (NTP), as leases end by it"
            )


def of_note(name: str) -> str:
    return f"{quote(name)}.json"


def content_of(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        return None
