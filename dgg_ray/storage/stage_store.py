"""The stage store: finished stages by key, in a folder or on an object store.

A store holds these objects, by name:

    store.json                       the format of the store (store_format.py)
    stages/ab/abcdef….json           a stage's record: what was trained, cost, environment (manifest.py)
    stages/ab/abcdef….0123….json     an evaluation record: scores of evaluations made together after the stage
    files/abcdef…/WRITER/            the stage's files: adapter/, a PEFT checkpoint; strategy.safetensors,
                                     what the strategy passes to the next stage, if anything
    files/abcdef…/0123…-WRITER/      an evaluation record's: predictions.parquet, every answer
    facts/abcdef…/0123….safetensors  what a method must know of the stage, or of a task's data (facts.py)
    profiles/abcdef…-SETUP.json      the measured seconds of a few steps and answers of the stage
    failed/abcdef….json              the error that ended the stage
    checkpoints/ leases/             mid-stage checkpoints (checkpoints.py); who works on a key (leases.py)
    drafts/ unfinished/              files that are being written, and by whom
    quarantined/                     damaged manifests
    removed_adapters/abcdef….json    the stage's adapter was removed on purpose
    studies/ hardware_checks/        documents: the study registry; results on other machines
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dgg_ray.core.errors import StoreError
from dgg_ray.core.hashing import digest
from dgg_ray.core.stage import Evaluation, Stage, WorkItem
from dgg_ray.storage import leases, manifest
from dgg_ray.storage.backend import LocalBackend, StorageBackend
from dgg_ray.storage.leases import LEASE_S, SLACK, LeaseOwner
from dgg_ray.storage.manifest import manifest_name, stage_key_of
from dgg_ray.storage.node_cache import CACHE_GB, NodeCache
from dgg_ray.storage.store_format import FormatCheck

DRAFT_S = 86_400.0
CHECKPOINT_S = 30 * 86_400.0
CHECK_S = 8.0  # limit for the requests of a check, which must answer within seconds
FillFolder = Callable[[Path], None] | None


@dataclass(frozen=True)
class StageStore:
    """Finished stages by key, on a storage backend.

    All methods are safe while other threads and processes use the store.
    """

    backend: StorageBackend
    format: FormatCheck = field(default_factory=FormatCheck, init=False, repr=False, compare=False)

    # -- stages and evaluations --------------------------------------------------------------------

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """Return the stage's record; None if the stage is not finished."""
        return manifest.read_record(self.backend, manifest_name(stage.key))

    def score_entries(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """Map the key of every evaluation made after the stage to its entry {task, split, score, n, …}."""
        return entries_by_evaluation(self.evaluation_records(stage.key))

    def evaluation_records(self, key: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the evaluations after the stage with that key: {scores, study, workers, …}."""
        for _, found in self._evaluation_manifests(key):
            yield found["record"]

    def _evaluation_manifests(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        stage_manifest = manifest_name(key)
        names = self.backend.list_names(stage_manifest.removesuffix("json"))
        for name, data in self.backend.read_many(name for name in names if name != stage_manifest):
            if found := manifest.parse_manifest(self.backend, name, data):
                yield name, found

    def stored_answers(
        self, stage: Stage, evaluations: Collection[str]
    ) -> Iterator[tuple[list[dict[str, Any]], Path]]:
        """Yield (score entries, folder with predictions.parquet) until every evaluation was in one of them.

        The folder is local and its files are verified. Records without answers, as simulations write them,
        are left out.

        evaluations: their keys.
        """
        remaining = set(evaluations)
        for name, found in self._evaluation_manifests(stage.key):
            entries = found["record"]["scores"]
            keys = {entry["evaluation"] for entry in entries}
            if not found["files"] or remaining.isdisjoint(keys):
                continue
            if folder := manifest.open_files(self.backend, name, _removed_mark(stage.key)):
                remaining -= keys
                yield entries, folder

    def missing(self, item: WorkItem) -> tuple[Evaluation, ...] | None:
        """Return the item's evaluations that are not stored; None if the stage itself is not finished."""
        remembered = self.backend.remembered_manifests(item.stage.key)
        if (stage_manifest := manifest_name(item.stage.key)) in remembered:
            records = [
                manifest.unseal(data)["record"] for name, data in remembered.items() if name != stage_manifest
            ]
            if not _without(item.evaluations, entries_by_evaluation(records)):
                return ()
        if self.record(item.stage) is None:
            return None
        return _without(item.evaluations, self.score_entries(item.stage)) if item.evaluations else ()

    def has(self, item: WorkItem) -> bool:
        """Tell whether everything that the work item asks for is stored."""
        if item.profile:
            return self.get_document(f"profiles/{item.key}") is not None
        return self.missing(item) == ()

    def open(self, stage: Stage) -> Path | None:
        """Return a local folder with the stage's files, verified; None if they are missing or removed."""
        return manifest.open_files(self.backend, manifest_name(stage.key), _removed_mark(stage.key))

    def adapter_url(self, stage: Stage) -> str:
        """Return the place of a finished stage's PEFT folder; empty if it is missing or removed."""
        name = manifest_name(stage.key)
        found = manifest.parse_manifest(self.backend, name, self.backend.read(name))
        folder = f"{found['folder']}/adapter" if found else ""
        return f"{self.url}/{folder}" if folder and self.backend.sizes(f"{folder}/") else ""

    def publish(self, stage: Stage, record: dict[str, Any], fill: FillFolder) -> None:
        """Store a finished stage. `fill` writes its files into a folder; None if it has no files."""
        self.format.mark(self.backend)
        content = {"key": stage.key, "meaning": stage.meaning} | record
        name = manifest_name(stage.key)
        manifest.publish(self.backend, name, f"files/{stage.key}/", content, fill)
        self.remove_document(f"failed/{stage.key}")

    def publish_evaluations(
        self,
        stage: Stage,
        entries: list[dict[str, Any]],
        fill: FillFolder,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Store evaluations that were made together after a finished stage.

        entries: for each evaluation {evaluation, task, split, score, n, …}; `evaluation` is its key.
        origin: who made them, as in the stage's own record: {study, workers}.
        """
        self.format.mark(self.backend)
        evaluation_id = digest(sorted(entry["evaluation"] for entry in entries))[:16]
        name = manifest_name(stage.key, evaluation_id)
        content = {"scores": entries, **(origin or {})}
        manifest.publish(self.backend, name, f"files/{stage.key}/{evaluation_id}-", content, fill)
        self.remove_document(f"failed/{stage.key}")

    def record_failure(self, stage: Stage, error: dict[str, str]) -> None:
        """Store the error that ended a stage or its evaluations, until these are published. Never raises.

        error: {error, message, traceback}.
        """
        with contextlib.suppress(OSError, StoreError):
            self.put_document(f"failed/{stage.key}", {"meaning": stage.meaning} | error)

    def failure(self, stage: Stage) -> dict[str, str] | None:
        """Return the stored error; None if the stage did not fail, or was finished since."""
        return self.get_document(f"failed/{stage.key}")

    def record_profile(self, item: WorkItem, record: dict[str, Any]) -> None:
        """Store what a profiling run measured."""
        self.put_document(f"profiles/{item.key}", record)

    def profiles(self) -> Iterator[dict[str, Any]]:
        """Yield the records of all profiling runs."""
        return (record for _, record in self.list_documents("profiles/"))

    def finished(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield (record, evaluation records) of every finished stage, by key; with a single listing."""
        manifests = self.backend.read_many(self.backend.list_names("stages/"))
        for key, group in groupby(manifests, key=lambda named: stage_key_of(named[0])):
            parsed = ((name, manifest.parse_manifest(self.backend, name, data)) for name, data in group)
            records = {name: found["record"] for name, found in parsed if found}
            if record := records.pop(manifest_name(key), None):
                yield record, [*records.values()]

    def finished_keys(self) -> set[str]:
        """Return the keys of all finished stages, from their listing alone."""
        names = self.backend.list_names("stages/")
        return {key for name in names if name == manifest_name(key := stage_key_of(name))}

    def failed_keys(self) -> set[str]:
        """Return the keys of all stages with a stored error, from their listing alone."""
        return {stage_key_of(name) for name in self.backend.list_names("failed/")}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records of all finished stages, by key."""
        return (record for record, _ in self.finished())

    # -- removal -----------------------------------------------------------------------------------

    def discard(self, key: str) -> int:
        """Remove a finished stage with its evaluations, files and facts; return the bytes freed."""
        facts = self.backend.sizes(f"facts/{key}/")
        for name in (*facts, f"checkpoints/{key}.safetensors", f"failed/{key}.json", _removed_mark(key)):
            self.backend.remove(name)
        freed = manifest.remove_manifests(self.backend, manifest_name(key), f"files/{key}")
        leases.remove(self.backend, key)
        return freed + sum(facts.values())

    def remove_adapter(self, key: str) -> int:
        """Remove the adapter of a finished stage; return the bytes freed.

        Record, scores and answers stay. When its weights are needed the stage is trained again.
        """
        return manifest.remove_part(self.backend, manifest_name(key), "adapter", _removed_mark(key))

    def stages_without_adapter(self) -> set[str]:
        """Return the keys of the stages whose adapters were removed on purpose."""
        return {name.rpartition("/")[2] for name, _ in self.list_documents("removed_adapters/")}

    def sweep(self) -> None:
        """Remove leftovers: drafts and leases a day old; checkpoints of finished stages or 30 days old."""
        now = time.time()
        for checkpoint in self.backend.list_names("checkpoints/"):
            finished = self.backend.read(manifest_name(stage_key_of(checkpoint))) is not None
            if finished or (self.backend.modified_at(checkpoint) or now) < now - CHECKPOINT_S:
                self.backend.remove(checkpoint)
        manifest.sweep(self.backend, now - DRAFT_S)
        leases.sweep(self.backend, now - DRAFT_S)

    # -- documents, leases, and the place itself ---------------------------------------------------

    @property
    def url(self) -> str:
        """The address by which other machines reach the store."""
        return self.backend.url

    def size(self) -> int:
        """Return the bytes of everything in the store."""
        return sum(self.backend.sizes("").values())

    def put_document(self, name: str, content: dict[str, Any]) -> None:
        """Store a small JSON document, replacing an earlier one of that name."""
        self.format.mark(self.backend)
        self.backend.write(_document_name(name), json.dumps(content, indent=1).encode())

    def create_document(self, name: str, content: dict[str, Any]) -> bool:
        """Store a small JSON document; return False if there is one of that name already."""
        self.format.mark(self.backend)
        return self.backend.create(_document_name(name), json.dumps(content, indent=1).encode())

    def get_document(self, name: str) -> dict[str, Any] | None:
        """Return the document's content; None if it is missing or cannot be parsed."""
        return _parse_document(self.backend.read(_document_name(name)))

    def list_documents(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (name, content) of all documents whose names begin with the prefix, in order."""
        for name in self.backend.list_names(quote(prefix)):
            if (content := _parse_document(self.backend.read(name))) is not None:
                yield unquote(name.removesuffix(".json")), content

    def remove_document(self, name: str) -> None:
        """Remove the document, if it exists."""
        self.backend.remove(_document_name(name))

    def acquire_lease(self, key: str, owner: LeaseOwner, seconds: float = LEASE_S) -> LeaseOwner | None:
        """Acquire or renew the right to work on a key; return None, or the other owner who has it."""
        return leases.acquire(self.backend, key, owner, seconds)

    def release_lease(self, key: str, owner: LeaseOwner) -> None:
        """Give up a lease; nothing happens if another owner has it."""
        leases.release(self.backend, key, owner)

    def verify_format(self) -> None:
        """Raise StoreError if the place holds a store of another format. An empty place passes."""
        self.format.verify(self.backend)

    def check(self) -> None:
        """Raise StoreError, within seconds, if the place cannot hold a store.

        That is so if it holds a store of another format, cannot be written or read back, lets an existing
        object be overwritten, or has a clock that differs from this machine's.
        """
        backend = self.backend.with_timeout(CHECK_S)
        name, content = f"checks/{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            self.format.verify(backend)
            began = time.time()
            created = backend.create(name, content)
            created_again = backend.create(name, b"again")
            modified_at, ended = backend.modified_at(name), time.time()
            read_back = backend.read(name) == content
            listed = backend.list_names(name) == [name]
            backend.remove(name)
        except OSError as error:
            raise StoreError(
                f"{self.url} cannot be written: {error}. Name another place as output.store"
            ) from error
        if not created or created_again or not listed or not read_back:
            raise StoreError(
                f"{self.url} cannot hold a store, as it does not keep objects reliably (created {created}, "
                f"created again {created_again}, listed {listed}, read back {read_back}); name another place "
                f"as output.store"
            )
        # Some storages cut their clock to whole seconds.
        apart = 0.0 if modified_at is None else max(began - modified_at - 1, modified_at - ended, 0.0)
        if apart > LEASE_S * SLACK:
            raise StoreError(
                f"the clocks of this machine and of {self.url} are {apart:.0f} s apart, more than the "
                f"{LEASE_S * SLACK:.0f} s that leases allow: set this machine's clock (NTP)"
            )


def open_store(place: str | Path, cache_gb: float = CACHE_GB) -> StageStore:
    """Return the store in a folder or at a URL.

    cache_gb: gigabytes of this node's disk for files that are fetched from a URL.
    """
    if "://" not in str(place):
        return StageStore(LocalBackend(Path(place).expanduser().absolute()))
    from dgg_ray.storage.fsspec_backend import FsspecBackend  # stores in folders do not wait for fsspec

    return StageStore(FsspecBackend(str(place).rstrip("/"), NodeCache(gigabytes=cache_gb)))


def entries_by_evaluation(records: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> dict[str, Any]:
    """Map evaluation keys to the score entries in evaluation records."""
    return {entry["evaluation"]: entry for record in records for entry in record["scores"]}


def _without(evaluations: Collection[Evaluation], known: Collection[str]) -> tuple[Evaluation, ...]:
    return tuple(evaluation for evaluation in evaluations if evaluation.key not in known)


def _removed_mark(key: str) -> str:
    return f"removed_adapters/{key}.json"


def _document_name(name: str) -> str:
    return f"{quote(name)}.json"


def _parse_document(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        return None
