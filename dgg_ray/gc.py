"""What a store holds that none of its studies needs any more; and its removal.

    needed      every stage that a study asked for, with all that it starts from: those of settings given
                up too, since a search is replayed from what it was told
    litter      other stages; damaged copies, drafts, snapshots and notes of failures without a use
    adapters    where that is asked for: weights of needed stages that nothing will start from

Without its adapter a stage keeps its record, scores and predictions, so every table stays whole; where its
weights are asked for after all it is learned again. Kept are the adapters of first stages, of the recommended
setting, of what a missing stage or exam starts from, and while a study is unfinished of all but last stages.

Nothing is touched that changed within the last hour: other drivers may be at work. Each removal begins with
a rename, so that an interruption leaves the store valid.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray import judge, methods, published, studyfile
from dgg_ray.errors import InUse, ResultsError
from dgg_ray.glance import Glance
from dgg_ray.plan import foresee
from dgg_ray.stages import StageStore, Work
from dgg_ray.study import Study

YOUNG_S = 3600.0
STAGES, ADAPTERS = "stages that no study asks for", "adapters that nothing starts from"


class Item(NamedTuple):
    """place: what is removed; key: of its stage, empty for leftovers; seconds: that it took to be learned."""

    what: str
    place: Path
    bytes: int
    key: str = ""
    seconds: float = 0.0


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
        """Remove it, but for what has changed meanwhile; bytes freed."""
        freed = 0
        for item in self.items:
            if young(item.place):
                continue
            if item.key:
                freed += self.store.discard(item.key, "adapter" if item.what == ADAPTERS else "")
            elif item.place.is_dir():
                freed += published.remove(self.store.folder, item.place)
            else:
                item.place.unlink(missing_ok=True)
                freed += item.bytes
        return freed

    def as_json(self) -> dict[str, Any]:
        items = [{"what": i.what, "name": i.key or i.place.name, "bytes": i.bytes} for i in self.items]
        return {"store": str(self.store.folder), "size": self.size, "bytes": self.bytes, "items": items}

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
        return "\n".join([f"{self.store.folder}: {self.size / 1e9:.3g} GB", *lines, *[note] * bool(again)])


def find(
    outs: Sequence[Path],
    place: Path | None = None,
    gone: Collection[str] = (),
    adapters: bool = False,
) -> Litter:
    """The litter in the store that the studies run into these folders share.

    place: of the store, where it is not where the studies had it; gone: names of studies whose results
    folders are no more, so that nothing is kept for them.

    Raises InUse where the store holds stages of other studies, whose needs are not known.
    """
    studies = {out: studyfile.the_kept(out) for out in outs}
    places = {(place or study.store_folder(out)).absolute() for out, study in studies.items()}
    if len(places) > 1:
        raise ResultsError(f"these studies have several stores, name those of one: {named(map(str, places))}")
    store = StageStore(places.pop())
    if not store.folder.is_dir():
        raise ResultsError(f"{store.folder} is no folder; name the store with --store")
    records = {record["key"]: record for record in store}
    sittings = {key: list(store.sittings(key)) for key in records}
    known = {study.name for study in studies.values()} | set(gone)
    others = {r.get("study", "") for r in chain(records.values(), *sittings.values())} - known
    if others:
        raise InUse(
            f"{store.folder} holds stages of {named(others)}, and what these need is not known: name their "
            "results folders too, or, where those are no more, say `--gone NAME` for each"
        )
    needs = [Needs(study, store) for study in studies.values()]
    asked = {key for need in needs for key in need.asked}
    items = [
        Item(STAGES, at, record["bytes"] + sum(s["bytes"] for s in sittings[key]), key)
        for key, record in records.items()
        if key not in asked and not young(at := store.folder / key[:2] / key)
    ]
    items += leftovers(store.folder, asked, records)
    if adapters:
        starts = {key for need in needs for key in need.starts}
        for key in sorted(records.keys() & asked - starts):
            at = store.folder / key[:2] / key
            if not young(at) and (size := published.weight(at / "adapter")):
                cost = records[key]["cost"]
                seconds = cost["seconds"] + cost.get("begin_seconds", 0.0)
                items.append(Item(ADAPTERS, at, size, key, seconds))
    return Litter(store, items, store.size())


class Needs:
    """asked: keys of all stages that a study asks for; starts: of those whose weights it needs."""

    def __init__(self, study: Study, store: StageStore) -> None:
        store = Glance(store.folder)
        search, more = methods.inquiries(study, store)
        walks, final, _, over = foresee(study, store)  # what is left, as far as it can be said
        for method in (search, *more.values()) if search else ():  # and what failures led to
            walks += [walk for probe in method.proposed for walk in judge.asked(study, store, probe)]
        final = methods.contenders(study, search, more) or final
        chains = [walk.works for walk in walks] + judge.final_works(final)
        self.asked = {work.stage.key for works in chains for work in works}
        whole = over and all(store.has(work) for works in chains for work in works)
        best = next(iter(final.values()))
        runs = (*best.runs(), *replace(best, fixed=None).runs())  # of the comparison, and of the search
        self.starts = {stage.key for run in runs for stage in run.stages}
        for works in chains:
            self.starts |= set(weights_of(works, store, whole, len(study.names)))


def weights_of(works: Sequence[Work], store: StageStore, whole: bool, tasks: int) -> Iterator[str]:
    """Keys of the stages of a run whose weights are needed. whole: nothing of the study is missing."""
    for i, work in enumerate(works):
        stage = work.stage
        last = len(stage.earlier) + len(stage.learns) == tasks
        if not stage.earlier or not (whole or last) or not store.has(work):
            yield stage.key
        if not store.has(work) and i:
            yield works[i - 1].stage.key


def leftovers(folder: Path, asked: Collection[str], finished: Collection[str]) -> Iterator[Item]:
    """What lies beside the stages without a use."""
    for kind, name in (
        ("damaged", "damaged copies"),
        ("drafts", "drafts of writers that died"),
        ("inflight", "snapshots without a use"),
        ("failed", "notes of failures without a use"),
    ):
        for at in sorted((folder / kind).glob("*")):
            key = at.name.partition("-")[0].partition(".")[0]
            # A damaged copy of a stage that is learned again gives it its sittings.
            useful = key in asked and (kind == "failed" or key not in finished) and kind != "drafts"
            if not useful and not young(at):
                yield Item(name, at, published.weight(at) if at.is_dir() else at.stat().st_size)


def young(place: Path) -> bool:
    """Whether anything of it changed within the last hour."""
    times = [
        at.stat().st_mtime for at in (place, *place.glob("exams"), *place.glob("exams/*")) if at.exists()
    ]
    return max(times, default=0.0) > time.time() - YOUNG_S


def named(names: Any) -> str:
    return ", ".join(sorted(str(name) or "a study without a name" for name in names))
