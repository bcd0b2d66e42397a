"""Stages: the unit of all work, its key, its tree, and the store that keeps it.

    Run    a setting × an order × a seed          →  a path of stages
    Stage  one task of a run, on its parent's end  →  a node of the tree; equal keys are one node
    Exam   one task's split, sat after a stage     →  a cell of a score matrix

A stage's key is a hash of everything that bears on its outcome and of nothing else, so "is it
there already?" answers resuming, sharing between runs, extending and repeating a study alike.
Workers, engines and micro-batches are not in it: they change who computes, not what. (With LoRA
dropout the masks follow how a batch is cut: there the outcome is equal in distribution only.)

A store, in a folder or on an object store, by name:

    stages/ab/abcdef….json         one stage: what was learned, cost, environment; checksums (manifest.py)
    stages/ab/abcdef….0123….json   one sitting after it, some exams sat together: a score per (task, split)
    files/abcdef…/WRITER/          the stage's files: adapter/, a PEFT checkpoint; strategy.safetensors, what
                                   the strategy hands to the next stage, if anything
    files/abcdef…/0123…-WRITER/    the sitting's: predictions.parquet, every answer
    probes/abcdef…-SETUP.json      what a few steps and answers of the stage took there
    failed/ inflight/ leases/      why it ended early; snapshots (checkpoints.py); who is at it (leases.py)
    damaged/ drafts/ writers/      manifests set aside; what is being written
    shed/abcdef….json              its adapter was removed on purpose
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from dgg_ray.core.errors import StoreError
from dgg_ray.core.hashing import Canonical, canonical, digest
from dgg_ray.core.interfaces import Adapter, Strategy, Training, effect_of
from dgg_ray.core.sources import code_of
from dgg_ray.storage import leases, manifest, older
from dgg_ray.storage.backend import Objects
from dgg_ray.storage.manifest import key_of, name_of
from dgg_ray.storage.notes import Notes

DRAFT_S = 86_400.0
SNAPSHOT_S = 30 * 86_400.0
HOW = ("micro_batch_size", "gradient_checkpointing")  # fields of Training that change no outcome
Fill = Callable[[Path], None] | None
ROUNDS, STEPS, ANSWERS = 3, 2, 128  # of a probe: rounds that count; steps and most answers in each
FORMAT = 2  # raised when the same settings would be learned differently than before


@dataclass(frozen=True)
class Data:
    """A task as a key sees it: its name, and per split the content's digest and size."""

    name: str
    digests: dict[str, str]
    sizes: dict[str, int]
    scorer: str


@dataclass(frozen=True)
class Exam:
    """One task's split. key: of its content, the scorer and the answers' longest length, not a stage."""

    task: str
    split: str
    key: str


@dataclass(frozen=True)
class Stage:
    """One task learned from the state that the parent left.

    model: fingerprint of the base model.
    learns: names of the tasks learned: one; several at once (joint); none, the untouched model.
    data: digests of their training splits, in the same order.
    parent: None where the stage starts from a fresh adapter.
    code: of the strategy's source where that is not as shipped (sources.py); None is what it is here.
    """

    model: str
    adapter: Adapter
    training: Training
    strategy: Strategy
    seed: int
    learns: tuple[str, ...]
    data: tuple[str, ...]
    parent: Stage | None = None
    code: str | None = None

    @cached_property
    def key(self) -> str:
        """64 hex digits."""
        return digest(self.meaning)

    @property
    def meaning(self) -> dict[str, Any]:
        """All that bears on the outcome, as JSON."""
        if not self.learns:
            return {"format": FORMAT, "model": self.model, "learns": []}
        adapter, training = of_learning(self.adapter, self.training)
        return {
            "format": FORMAT,
            "model": self.model,
            "adapter": adapter,
            "training": training,
            "effect": self.effect,
            "seed": self.seed,
            "learns": list(zip(self.learns, self.data, strict=True)),
            "parent": self.parent.key if self.parent else None,
        }

    @cached_property
    def effect(self) -> dict[str, Any]:
        """The strategy's part of the key, beyond plain fine-tuning, as JSON."""
        code = code_of(type(self.strategy)) if self.code is None else self.code
        return effect_of(self.strategy, self.task, self.earlier, code)

    @property
    def buffer(self) -> int:
        """Examples of each earlier task that are replayed, as far as the strategy says so."""
        return replayed(self.effect)

    @property
    def task(self) -> str:
        """What is learned, as one name: draws and the table use it."""
        return " + ".join(self.learns)

    @cached_property
    def earlier(self) -> tuple[str, ...]:
        """Tasks learned before this stage, in their order."""
        return (*self.parent.earlier, *self.parent.learns) if self.parent else ()

    def __str__(self) -> str:
        return f"{self.key[:8]} ({' > '.join((*self.earlier, self.task)) or 'untouched model'})"


def replayed(effect: Mapping[str, Any]) -> int:
    """The size of the buffer in a strategy's part of a key; 0 where there is none."""
    found = effect.get("buffer", 0)
    return found if isinstance(found, int) else 0  # a strategy of one's own may call anything so


@lru_cache(maxsize=256)
def of_learning(adapter: Adapter, training: Training) -> tuple[Canonical, Canonical]:
    """What of these bears on the outcome, as JSON; the same for thousands of stages."""
    full = asdict(replace(adapter, alpha=adapter.alpha or 2.0 * adapter.rank))
    how = {k: v for k, v in asdict(training).items() if k not in HOW and v is not None}
    return Canonical(canonical(full)), Canonical(canonical(how))


@dataclass(frozen=True)
class Work:
    """What can be asked for: a stage, and exams to be sat after it.

    probe: Workers.setup on which a few steps and answers of it are timed instead; nothing is learned.
    """

    stage: Stage
    exams: tuple[Exam, ...] = ()
    probe: str = ""

    @property
    def key(self) -> str:
        """The stage's key, or its probe's."""
        return f"{self.stage.key}-{self.probe}" if self.probe else self.stage.key

    def __str__(self) -> str:
        return f"probe of {self.stage}" if self.probe else str(self.stage)


@dataclass(frozen=True)
class Run:
    """A setting × an order × a seed. `setting` is its id, 8 hex digits."""

    setting: str
    order: tuple[str, ...]
    seed: int
    stages: tuple[Stage, ...]


def untouched(model: str) -> Stage:
    """The base model as it is: nothing learned."""
    return Stage(model, Adapter(), Training(), Strategy(), 0, (), ())


def path(
    model: str,
    adapter: Adapter,
    training: Training,
    strategy: Strategy,
    seed: int,
    order: Sequence[Data],
    known: dict[tuple[str, ...], Stage] | None = None,
    code: str | None = None,
) -> tuple[Stage, ...]:
    """The stages of one run, first to last; one stage of all tasks for a simultaneous strategy.

    known: by the tasks learned so far, stages of other runs of the same setting and seed: they are taken, and
    new ones added, so that a beginning that runs share is made, and its key computed, once.
    """
    known = {} if known is None else known
    if strategy.simultaneous:
        # By name, not by order: every order asks for the same stage.
        tasks = sorted(order, key=lambda data: data.name)
        names, digests = zip(*((d.name, d.digests["train"]) for d in tasks), strict=True)
        if names not in known:
            known[names] = Stage(model, adapter, training, strategy, seed, names, digests, code=code)
        return (known[names],)
    stages: list[Stage] = []
    names: tuple[str, ...] = ()
    for data in order:
        names = (*names, data.name)
        if names not in known:
            parent, train = stages[-1] if stages else None, (data.digests["train"],)
            known[names] = Stage(model, adapter, training, strategy, seed, (data.name,), train, parent, code)
        stages.append(known[names])
    return tuple(stages)


def distinct(stages: Iterable[Stage]) -> dict[str, Stage]:
    """The tree's nodes: one stage per key, in order of first appearance."""
    return {stage.key: stage for stage in stages}


def merged(works: Iterable[Work]) -> list[Work]:
    """One work for each stage, with all the exams that are asked for of it; in order of first appearance."""
    asked: dict[str, list[Work]] = {}
    for work in {id(work): work for work in works}.values():  # runs of many orders hold the very same
        asked.setdefault(work.stage.key, []).append(work)
    return [
        replace(some[0], exams=tuple(dict.fromkeys(exam for work in some for exam in work.exams)))
        if len(some) > 1
        else some[0]
        for some in asked.values()
    ]


# -- the store -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageStore(Notes):
    """Finished stages by key, in a folder; remote.RemoteStore is one on an object store.

    Every method is safe with many processes at work."""

    folder: Path

    @cached_property
    def objects(self) -> Objects:  # type: ignore[override]
        return older.folder(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Where it is, and no connection: a store is sent to many processes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """The stage's record; None where it is not finished."""
        return manifest.read(self.objects, name_of(stage.key))

    def cells(self, stage: Stage) -> dict[str, dict[str, Any]]:
        """What was examined after the stage: exam key → {task, split, score, n, …}."""
        return {cell["exam"]: cell for sitting in self.sittings(stage.key) for cell in sitting["cells"]}

    def sittings(self, key: str) -> Iterator[dict[str, Any]]:
        """Records of the sittings after the stage with that key: {cells, study, workers, …}."""
        stage = name_of(key)
        for name, data in self.objects.reads(n for n in self.objects.names(stage[:-4]) if n != stage):
            if found := manifest.manifest(self.objects, name, data):
                yield found["record"]

    def answered(self, stage: Stage, exams: Collection[str]) -> Iterator[tuple[list[dict[str, Any]], Path]]:
        """Give (cells, local folder with predictions.parquet, verified) of records with these evaluations.

        Each evaluation is in one of them; a record without answers, as simulated ones are, is left out.

        exams: keys of evaluations."""
        own, left = name_of(stage.key), set(exams)
        for name, data in self.objects.reads(n for n in self.objects.names(own[:-4]) if n != own):
            found = manifest.manifest(self.objects, name, data)
            cells = found["record"]["cells"] if found else []
            if not found or not found["files"] or left.isdisjoint(cell["exam"] for cell in cells):
                continue
            if folder := manifest.opened(self.objects, name, f"shed/{stage.key}.json"):
                left -= {cell["exam"] for cell in cells}
                yield cells, folder

    def missing(self, work: Work) -> tuple[Exam, ...] | None:
        """The exams still to be sat; None where the stage itself is still to be learned."""
        if self.record(work.stage) is None:
            return None
        if not work.exams:
            return ()
        sat = self.cells(work.stage)
        return tuple(exam for exam in work.exams if exam.key not in sat)

    def has(self, work: Work) -> bool:
        """Whether nothing is left to do."""
        return self.noted(f"probes/{work.key}") is not None if work.probe else self.missing(work) == ()

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
        sitting = digest(sorted(cell["exam"] for cell in cells))[:16]
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

    def measure(self, work: Work, record: dict[str, Any]) -> None:
        """Keep what a probe took."""
        self.note(f"probes/{work.key}", record)

    def probes(self) -> Iterator[dict[str, Any]]:
        """What all probes took."""
        return (record for _, record in self.notes("probes/"))

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
