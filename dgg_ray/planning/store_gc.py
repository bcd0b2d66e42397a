"""Garbage collection: find what none of a store's studies needs any more, and remove it.

    needed      every stage that a study requests, with all that it starts from; pruned settings included,
                because a search is replayed from its results
    garbage     all other stages, and quarantined copies, drafts, mid-stage checkpoints and failure records
                without a use
    adapters    on request: the weights of needed stages from which nothing will start

A stage without its adapter keeps its record, scores and answers, so every table stays complete. Where its
weights are needed after all, it is trained again. These stages keep their adapters: first stages, those of
the recommended setting, those from which a missing stage or evaluation starts, and, while a study is
unfinished, all but last stages.

Nothing is touched that changed within the last hour or that a driver has leased, because others may be at
work. Garbage is leased while it is removed. A stage's own record goes first, and a removed adapter is
marked before it goes, so that an interruption leaves the store valid.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray.config import registry, saved_study
from dgg_ray.config.study import Study
from dgg_ray.core.errors import MissingTimestampsError, ResultsError, StoreInUseError
from dgg_ray.core.stage import WorkItem
from dgg_ray.planning.plan import dry_run_search
from dgg_ray.planning.text_table import format_table
from dgg_ray.search.comparison import Comparison, final_chains
from dgg_ray.search.evidence import EvidenceReader, RunRequest
from dgg_ray.storage import leases, manifest
from dgg_ray.storage.backend import StorageBackend
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.manifest import manifest_name, stage_key_of
from dgg_ray.storage.stage_store import DRAFT_S, StageStore, open_store
from dgg_ray.storage.store_view import view_of

RECENT_S = 3600.0
THREADS = 16
STAGES, ADAPTERS = "stages that no study requests", "adapters from which nothing starts"
KINDS = {  # folder of the store → the kind of garbage in it
    "quarantined": "quarantined copies",
    "drafts": "drafts of writers that died",
    "checks": "objects of store checks",
    "unfinished": "drafts of writers that died",
    "files": "files of no stage",
    "facts": "facts about no stage",
    "checkpoints": "mid-stage checkpoints without a use",
    "failed": "failure records without a use",
    "leases": "leases that ended",
}


class GarbageItem(NamedTuple):
    """The objects of a store whose names begin with `prefix`.

    kind: STAGES, ADAPTERS or one of KINDS. key: of its stage; empty without one.
    seconds: that the stage took to be trained.
    """

    kind: str
    prefix: str
    bytes: int
    key: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.key if self.kind in (STAGES, ADAPTERS) else self.prefix


@dataclass(frozen=True)
class Garbage:
    """The parts that can be removed from a store that holds `size` bytes."""

    store: StageStore
    items: Sequence[GarbageItem]
    size: int

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def delete(self) -> int:
        """Remove it, except what has changed or is in use by now; return the bytes freed."""
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(self._delete_item, self.items))

    def _delete_item(self, item: GarbageItem) -> int:
        store, backend = self.store, self.store.backend
        if in_use(backend, item):
            return 0
        if item.kind not in (STAGES, ADAPTERS):
            return remove_prefix(backend, item.prefix)
        if store.acquire_lease(item.key, LeaseOwner.this_process()) is not None:
            return 0
        freed = store.remove_adapter(item.key) if item.kind == ADAPTERS else store.discard(item.key)
        leases.remove(backend, item.key)
        return freed

    def as_json(self) -> dict[str, Any]:
        items = [{"kind": item.kind, "name": item.name, "bytes": item.bytes} for item in self.items]
        return {"store": self.store.url, "size": self.size, "bytes": self.bytes, "items": items}

    def __str__(self) -> str:
        by_kind: dict[str, list[GarbageItem]] = defaultdict(list)
        for item in self.items:
            by_kind[item.kind].append(item)
        by_kind["in all"] = list(self.items)
        rows = [
            (kind, f"{len(items):,}", f"{sum(item.bytes for item in items) / 1e9:.3g} GB")
            for kind, items in by_kind.items()
        ]
        lines = [f"{self.store.url}: {self.size / 1e9:.3g} GB", *format_table(rows)]
        if again := by_kind.get(ADAPTERS):
            hours = sum(item.seconds for item in again) / 3600
            lines.append(
                f"  starting from these would train up to {len(again)} stages again, which takes a worker "
                f"group {hours:.3g} hours"
            )
        return "\n".join(lines)


def find_garbage(
    outs: Sequence[Path],
    location: str | None = None,
    deleted: Collection[str] = (),
    adapters: bool = False,
) -> Garbage:
    """Find the garbage in a store, by the needs of all studies that were run with it.

    outs: results folders of studies in it. The store has its own copy of each study (registry.py), which may
        be newer than the folder's or of another study of that name: what either needs is kept.
    location: folder or URL of the store, where no results are given or the store has moved.
    deleted: names of studies for which nothing is kept.
    adapters: whether to include unused adapters of needed stages.

    Raise StoreInUseError where the needs of some stages' studies are unknown, and MissingTimestampsError
    where the store does not tell when an object changed.
    """
    named = [(saved_study.require_saved_study(out), out) for out in outs]
    store = the_store([open_store(location)] if location else [study.store(out) for study, out in named])
    contents = StoreContents(store)
    if not contents.sizes:
        raise ResultsError(f"{store.url} holds nothing; name the store with --store")
    studies = [study for study, _ in named]
    studies += registry.stored_studies(store, deleted, known={study.name for study in studies})
    if unknown := contents.studies - {study.name for study in studies} - set(deleted):
        raise StoreInUseError(
            f"{store.url} holds stages of {join_sorted(unknown)}, and their needs are unknown: name the "
            "results folders of these studies too, or give --deleted-study NAME for each that is deleted"
        )
    needs = [StudyNeeds(study, contents.store) for study in studies]
    requested = {key for need in needs for key in need.requested}
    items = [*contents.unrequested_stages(requested), *contents.leftovers(requested)]
    if adapters:
        items += contents.adapters(requested - {key for need in needs for key in need.adapters})
    with ThreadPoolExecutor(THREADS) as pool:
        used = list(pool.map(lambda item: in_use(store.backend, item), items))
    unused = [item for item, is_used in zip(items, used, strict=True) if not is_used]
    return Garbage(store, unused, contents.size)


def the_store(stores: Sequence[StageStore]) -> StageStore:
    """Return the one store that several studies have."""
    by_url = {store.url: store for store in stores}
    if len(by_url) > 1:
        raise ResultsError(
            f"the studies are in several stores, {join_sorted(by_url)}: name studies of one store"
        )
    if not by_url:
        raise ResultsError("name a study's results folder, or the store with --store")
    return next(iter(by_url.values()))


class StoreContents:
    """The contents of a store, read once.

    sizes: bytes by object name.
    manifests: by stage key, those of the stage and of its evaluations, by object name.
    adapter_bytes: by the folder that the adapter is in.
    """

    def __init__(self, store: StageStore) -> None:
        self.sizes = store.backend.sizes("")
        self.size = sum(self.sizes.values())
        self.store = view_of(store)
        backend = self.store.backend
        self.manifests: dict[str, dict[str, dict[str, Any]]] = {}
        for name, data in backend.read_many(backend.list_names("stages/")):
            if content := manifest.parse_manifest(backend, name, data):
                self.manifests.setdefault(stage_key_of(name), {})[name] = content
        self.adapter_bytes: dict[str, int] = defaultdict(int)
        for name, size in self.sizes.items():
            folder, in_adapter, _ = name.partition("/adapter/")
            if in_adapter:
                self.adapter_bytes[folder] += size

    @property
    def all_manifests(self) -> Iterable[dict[str, Any]]:
        return chain.from_iterable(of_stage.values() for of_stage in self.manifests.values())

    @property
    def studies(self) -> set[str]:
        """Names of the studies that trained or evaluated something."""
        return {content["record"].get("study", "") for content in self.all_manifests}

    def unrequested_stages(self, requested: Collection[str]) -> Iterator[GarbageItem]:
        """Yield the stages that are not requested, and evaluations whose stage is gone."""
        for key, of_stage in self.manifests.items():
            if key not in requested:
                size = sum(content["record"]["bytes"] for content in of_stage.values())
                yield GarbageItem(STAGES, manifest_prefix(key), size, key)

    def adapters(self, keys: Collection[str]) -> Iterator[GarbageItem]:
        """Yield the adapters of the finished stages among these."""
        for key in sorted(self.manifests.keys() & keys):
            content = self.manifests[key].get(manifest_name(key))
            size = self.adapter_bytes.get(content["folder"], 0) if content else 0
            if content and size:
                cost = content["record"]["cost"]
                seconds = cost["seconds"] + cost.get("begin_seconds", 0.0)
                yield GarbageItem(ADAPTERS, manifest_prefix(key), size, key, seconds)

    def leftovers(self, requested: Collection[str]) -> Iterator[GarbageItem]:
        """Yield the objects other than stages that have no use."""
        bytes_at: dict[str, int] = defaultdict(int)
        for name, size in self.sizes.items():
            folder, *parts = name.split("/")
            if folder in KINDS:
                depth = 2 if folder == "files" else 1  # files/KEY/WRITER
                bytes_at["/".join([folder, *parts[:depth]])] += size
        marks = dict(self.store.list_documents("unfinished/"))
        written = {name for name, mark in marks.items() if mark.get("at", 0.0) > time.time() - DRAFT_S}
        live = {content["folder"] for content in self.all_manifests}
        live |= {marks[name].get("folder") for name in written}
        for prefix, size in bytes_at.items():
            folder, name = prefix.split("/")[:2]
            key = name.removesuffix(".json").removesuffix(".safetensors")
            if not self._is_useful(folder, key, prefix, requested, written, live):
                stage_key = key if folder in ("files", "checkpoints", "leases") else ""
                yield GarbageItem(KINDS[folder], prefix, size, stage_key)

    def _is_useful(
        self,
        folder: str,
        key: str,
        prefix: str,
        requested: Collection[str],
        written: Collection[str],
        live: Collection[str],
    ) -> bool:
        """Return whether an object other than a stage has a use.

        written: marks of files that are being written. live: folders of files that a manifest or a mark
        names.
        """
        match folder:
            case "failed":
                return key in requested
            case "checkpoints":
                return key in requested and manifest_name(key) not in self.manifests.get(key, ())
            case "facts":
                return key in self.manifests or key.startswith("data-")
            case "files":
                # The files of an unrequested stage are removed with the stage.
                return prefix in live or (key in self.manifests and key not in requested)
            case "unfinished":
                return f"unfinished/{key}" in written
        return False


class StudyNeeds:
    """The stages and adapters that a study needs of its store.

    requested: keys of all stages that it requests. adapters: keys of those whose weights it needs.
    """

    def __init__(self, study: Study, store: StageStore) -> None:
        study = registry.with_decisions(study, store)
        reader = EvidenceReader(study, store)
        dry_run = dry_run_search(reader)  # what is left, as far as it can be predicted
        requests = [request for query in dry_run.requests for request in query.runs]
        compared = Comparison.from_study(study, reader.fast_forward_past_failures)
        stopped: list[RunRequest] = []  # by hand: what they have is kept
        for search in compared.searches:  # and what was proposed after failures
            for number, query in enumerate(search.proposed):
                (stopped if number in search.stopped else requests).extend(reader.requested(query))
        settings = compared.settings or dry_run.settings
        chains = [request.items for request in requests] + final_chains(settings)
        kept = chains + [request.items for request in stopped] + final_chains(settings, stopped_too=True)
        self.requested = {item.stage.key for items in kept for item in items}
        complete = dry_run.exact and all(store.has(item) for items in chains for item in items)
        best = next(iter(settings.values()))
        runs = (*best, *best.study.runs)  # of the comparison, and of the search
        self.adapters = {stage.key for run in runs for stage in run.stages}
        for items in chains:
            self.adapters |= set(needed_adapters(items, store, complete, len(study.task_names)))


def needed_adapters(
    items: Sequence[WorkItem], store: StageStore, complete: bool, tasks: int
) -> Iterator[str]:
    """Yield the keys of a run's stages whose weights are needed.

    complete: whether nothing of the study is missing. tasks: how many the study has.
    """
    for i, item in enumerate(items):
        stage, stored = item.stage, store.has(item)
        is_last = len(stage.earlier) + len(stage.trained_tasks) == tasks
        if not stage.earlier or not (complete or is_last) or not stored:
            yield stage.key
        if not stored and i:
            yield items[i - 1].stage.key


def in_use(backend: StorageBackend, item: GarbageItem) -> bool:
    """Return whether anything of the item changed within the last hour, or a driver has leased it."""
    if changed_recently(backend, item.prefix):
        return True
    return bool(item.key and leases.owner_of(backend, item.key))


def changed_recently(backend: StorageBackend, prefix: str) -> bool:
    since = time.time() - RECENT_S
    for name in backend.list_names(prefix):
        modified_at = backend.modified_at(name)
        if modified_at is None and name in backend.sizes(name):
            raise MissingTimestampsError(
                f"{backend.url} does not tell when {name} was written, and another process may be writing it "
                "now; remove what is not needed with the provider's own tools while no study runs"
            )
        if modified_at is not None and modified_at > since:
            return True
    return False


def remove_prefix(backend: StorageBackend, prefix: str) -> int:
    """Remove an object, or everything below a prefix; return the bytes freed."""
    size = backend.sizes(prefix).get(prefix)
    if size is not None:
        backend.remove(prefix)
    return (size or 0) + backend.remove_folder(prefix)


def manifest_prefix(key: str) -> str:
    """Return the prefix of the names of the manifests of a stage and its evaluations."""
    return manifest_name(key).removesuffix(".json")


def join_sorted(names: Iterable[str]) -> str:
    return ", ".join(sorted(name or "a study without a name" for name in names))
