"""What a store holds that none of its studies needs any more; and its removal.

    needed      every stage that a study asked for, with all that it starts from: those of settings given
                up too, since a search is replayed from what it was told
    litter      other stages; damaged copies, drafts, snapshots and notes of failures without a use
    adapters    where that is asked for: weights of needed stages that nothing will start from

Without its adapter a stage keeps its record, scores and predictions, so every table stays whole; where its
weights are asked for after all it is learned again. Kept are the adapters of first stages, of the recommended
setting, of what a missing stage or exam starts from, and while a study is unfinished of all but last stages.

Nothing is touched that changed within the last hour, or that a driver has a lease of: others may be at work.
What goes is leased meanwhile. A stage's own record goes first, and that an adapter goes is noted before, so
that an interruption leaves the store valid.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray.config import loader, registry
from dgg_ray.config.study import Study, store_at
from dgg_ray.core.errors import InUse, NoTimes, ResultsError
from dgg_ray.core.stage import WorkItem
from dgg_ray.planning.plan import foresee
from dgg_ray.search import comparison, evidence
from dgg_ray.storage import leases, manifest
from dgg_ray.storage.backend import Objects
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.manifest import key_of, name_of
from dgg_ray.storage.stage_store import DRAFT_S, StageStore
from dgg_ray.storage.store_view import Glance

YOUNG_S = 3600.0
AT_ONCE = 16
STAGES, ADAPTERS = "stages that no study asks for", "adapters that nothing starts from"
KINDS = {
    "damaged": "what was set aside",
    "drafts": "drafts of writers that died",
    "checks": "drafts of writers that died",
    "writers": "drafts of writers that died",
    "files": "files of no stage",
    "inflight": "snapshots without a use",
    "failed": "notes of failures without a use",
    "leases": "leases that ended",
}


class Item(NamedTuple):
    """Of the store's objects, those whose names begin with `place`. key: of its stage, if it has one.

    seconds: that the stage took to be learned."""

    what: str
    place: str
    bytes: int
    key: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.key if self.what in (STAGES, ADAPTERS) else self.place


@dataclass(frozen=True)
class Litter:
    """What can be removed from a store that holds `size` bytes."""

    store: StageStore
    items: Sequence[Item]
    size: int

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    def delete(self) -> int:
        """Remove it, but for what has changed or is in use meanwhile; bytes freed."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return sum(pool.map(self.remove, self.items))

    def remove(self, item: Item) -> int:
        store, objects = self.store, self.store.objects
        if used(objects, item):
            return 0
        if item.what not in (STAGES, ADAPTERS):
            return cleared(objects, item.place)
        if store.lease(item.key, Holder.here()) is not None:
            return 0
        freed = store.discard(item.key, "adapter" if item.what == ADAPTERS else "")
        leases.remove(objects, item.key)
        return freed

    def as_json(self) -> dict[str, Any]:
        items = [{"what": i.what, "name": i.name, "bytes": i.bytes} for i in self.items]
        return {"store": self.store.url, "size": self.size, "bytes": self.bytes, "items": items}

    def __str__(self) -> str:
        kinds = {item.what: [i for i in self.items if i.what == item.what] for item in self.items}
        width = max(map(len, (*kinds, "in all")))
        rows = [(what, len(items), sum(i.bytes for i in items)) for what, items in kinds.items()]
        rows.append(("in all", len(self.items), self.bytes))
        lines = [f"  {what:<{width}}  {count:>6,}  {size / 1e9:>9.3g} GB" for what, count, size in rows]
        again = kinds.get(ADAPTERS, [])
        hours = sum(item.seconds for item in again) / 3600
        note = (
            f"  going on from these would learn up to {len(again)} stages again, {hours:.3g} hours of a fleet"
        )
        return "\n".join([f"{self.store.url}: {self.size / 1e9:.3g} GB", *lines, *[note] * bool(again)])


def find(
    outs: Sequence[Path],
    place: str | None = None,
    gone: Collection[str] = (),
    adapters: bool = False,
) -> Litter:
    """The litter in a store, by what all studies that were run with it need.

    outs: results folders of studies in it. It knows itself how each study was checked last (registry.py),
    which
    may be later than what a folder says, or of another study of that name: what either needs is kept.
    place: of the store, where no folder is named or the studies had it elsewhere; gone: names of studies that
    nothing is kept for.

    Raises InUse where the store holds stages of studies whose needs are not known, and NoTimes.
    """
    named = [(loader.the_kept(out), out) for out in outs]
    each = [store_at(place)] if place else [study.store(out) for study, out in named]
    stores = {store.url: store for store in each}
    if len(stores) > 1:
        raise ResultsError(f"these studies have several stores, name those of one: {listed(stores)}")
    if not stores:
        raise ResultsError("name a study's results folder, or the store with --store")
    (store,) = stores.values()
    held = Held(store)
    if not held.sizes:
        raise ResultsError(f"{store.url} holds nothing; name the store with --store")
    studies = [study for study, _ in named]
    studies += registry.kept(store, gone, known={study.name for study in studies})
    if others := held.studies - {study.name for study in studies} - set(gone):
        raise InUse(
            f"{store.url} holds stages of {listed(others)}, and what these need is not known: name their "
            "results folders too, or, where those are no more, say `--gone NAME` for each"
        )
    needs = [Needs(study, held.store) for study in studies]
    asked = {key for need in needs for key in need.asked}
    items = [*held.unasked(asked), *held.leftovers(asked)]
    if adapters:
        items += held.adapters(asked - {key for need in needs for key in need.starts})
    with ThreadPoolExecutor(AT_ONCE) as pool:
        stay = list(pool.map(lambda item: used(store.objects, item), items))
    return Litter(store, [item for item, stays in zip(items, stay, strict=True) if not stays], held.size)


class Held:
    """What a store holds, at one look. stages: by key, manifests by name, of the stage and its sittings."""

    def __init__(self, store: StageStore) -> None:
        self.sizes = store.objects.sizes("")
        self.size = sum(self.sizes.values())
        self.store = Glance(store)
        objects = self.store.objects
        self.stages: dict[str, dict[str, dict[str, Any]]] = {}
        for name, data in objects.reads(objects.names("stages/")):
            if found := manifest.manifest(objects, name, data):
                self.stages.setdefault(key_of(name), {})[name] = found
        self.weights: dict[str, int] = defaultdict(int)  # of the adapter at a place
        for name, size in self.sizes.items():
            at, adapter, _ = name.partition("/adapter/")
            self.weights[at] += size * bool(adapter)

    @property
    def studies(self) -> set[str]:
        every = chain.from_iterable(some.values() for some in self.stages.values())
        return {found["record"].get("study", "") for found in every}

    def unasked(self, asked: Collection[str]) -> Iterator[Item]:
        """Stages, and sittings of stages that are no more."""
        for key, some in self.stages.items():
            if key not in asked:
                size = sum(found["record"]["bytes"] for found in some.values())
                yield Item(STAGES, place_of(key), size, key)

    def adapters(self, keys: Collection[str]) -> Iterator[Item]:
        """Of the finished stages among these."""
        for key in sorted(self.stages.keys() & keys):
            if (found := self.stages[key].get(name_of(key))) and (size := self.weights[found["place"]]):
                cost = found["record"]["cost"]
                seconds = cost["seconds"] + cost.get("begin_seconds", 0.0)
                yield Item(ADAPTERS, place_of(key), size, key, seconds)

    def leftovers(self, asked: Collection[str]) -> Iterator[Item]:
        """What lies beside the stages without a use."""
        places: dict[str, int] = defaultdict(int)
        for name, size in self.sizes.items():
            kind, *parts = name.split("/")
            if kind in KINDS or len(kind) == 2:  # as older versions kept a stage
                places["/".join([kind, *parts[: 1 + (kind == "files")]])] += size
        marks = dict(self.store.notes("writers/"))
        writing = {name for name, mark in marks.items() if mark.get("at", 0.0) > time.time() - DRAFT_S}
        live = {found["place"] for some in self.stages.values() for found in some.values()}
        live |= {marks[name].get("place") for name in writing}
        for place, size in places.items():
            kind, name = place.split("/")[:2]
            key = name.removesuffix(".json").removesuffix(".safetensors")
            useful = {
                "failed": key in asked,
                "inflight": key in asked and name_of(key) not in self.stages.get(key, ()),
                # Of a stage that goes, all goes with it.
                "files": place in live or (key in self.stages and key not in asked),
                "writers": f"writers/{key}" in writing,
            }
            if not useful.get(kind, len(kind) == 2 and key in self.stages):
                stage = kind in ("files", "inflight", "leases")
                yield Item(KINDS.get(kind, KINDS["files"]), place, size, key if stage else "")


class Needs:
    """asked: keys of all stages that a study asks for; starts: of those whose weights it needs."""

    def __init__(self, study: Study, store: StageStore) -> None:
        search, more = comparison.replay_searches(study, store)
        asked, final, _, over = foresee(study, store)  # what is left, as far as it can be said
        walks = [walk for one in asked for walk in one.walks]
        for method in (search, *more.values()) if search else ():  # and what failures led to
            walks += [walk for query in method.proposed for walk in evidence.asked(study, store, query)]
        final = comparison.compared_settings(study, search, more) or final
        chains = [walk.work_items for walk in walks] + evidence.final_works(final)
        self.asked = {item.stage.key for work_items in chains for item in work_items}
        whole = over and all(store.has(item) for work_items in chains for item in work_items)
        best = next(iter(final.values()))
        runs = (*best.runs(), *replace(best, fixed=None).runs())  # of the comparison, and of the search
        self.starts = {stage.key for run in runs for stage in run.stages}
        for work_items in chains:
            self.starts |= set(weights_of(work_items, store, whole, len(study.names)))


def weights_of(work_items: Sequence[WorkItem], store: StageStore, whole: bool, tasks: int) -> Iterator[str]:
    """Keys of the stages of a run whose weights are needed. whole: nothing of the study is missing."""
    for i, item in enumerate(work_items):
        stage = item.stage
        last = len(stage.earlier) + len(stage.trained_tasks) == tasks
        if not stage.earlier or not (whole or last) or not store.has(item):
            yield stage.key
        if not store.has(item) and i:
            yield work_items[i - 1].stage.key


def used(objects: Objects, item: Item) -> bool:
    """Whether anything of it changed within the last hour, or a driver has it."""
    return young(objects, item.place) or bool(item.key and leases.holder_of(objects, item.key))


def young(objects: Objects, place: str) -> bool:
    since = time.time() - YOUNG_S
    for name in objects.names(place):
        if (at := objects.modified(name)) is None and name in objects.sizes(name):
            raise NoTimes(
                f"{objects.url} does not say when {name} was written, and others may be writing it now; "
                "remove what is not needed with the provider's own tools while no study runs"
            )
        if at is not None and at > since:
            return True
    return False


def cleared(objects: Objects, place: str) -> int:
    """Remove an object, or all below a place; bytes freed."""
    if (size := objects.sizes(place).get(place)) is not None:
        objects.remove(place)
    return (size or 0) + objects.clear(place)


def place_of(key: str) -> str:
    """Where the names of the manifests of a stage and its sittings begin."""
    return name_of(key).removesuffix(".json")


def listed(names: Any) -> str:
    return ", ".join(sorted(str(name) or "a study without a name" for name in names))
