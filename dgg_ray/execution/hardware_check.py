"""A finished stage is learned again on every further kind of machine, so that kinds can be compared.

    before a work:  this kind is noted                       →  nothing
                    a first stage is finished on this kind   →  its record is the note: it costs nothing
                    … on another kind                        →  it is learned and examined again, and noted

The stage is the first finished one of the study's first stages, by order and seed; where a search gives
none of these, the one that the work in hand starts from. It is learned into a store of its own that is
thrown away: nothing is published, no budget is charged. Of workers of one kind that begin together one does
so, under a lease, and the others go on without. hardware_drift.py reads what was noted, under
`sentinels/KIND-MODEL` in the store.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dgg_ray.core import event_log
from dgg_ray.core.environment import Kind, kind
from dgg_ray.core.errors import describe
from dgg_ray.core.stage import Evaluation, Stage, WorkItem
from dgg_ray.storage.hardware_notes import lease_of, note, noted
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study
    from dgg_ray.training.loop import Workshop
    from dgg_ray.training.simulated import Simulated

LEASE_S = 3600.0  # not renewed: who dies at it leaves the next try to whoever comes an hour later


@dataclass
class Sentinel:
    """Of one worker.

    caught: errors that end the sentinel and nothing else: with several workers, those that all see.
    settled: the kind of machine is noted, or cannot be; there is nothing more to find out.
    """

    study: Study
    shop: Workshop | Simulated
    caught: type[Exception] | tuple[type[Exception], ...] = Exception
    settled: bool = field(default=False, init=False)
    me: Holder = field(default_factory=Holder.here, init=False)

    def before(self, item: WorkItem) -> None:
        """Learn the sentinel stage again if this is the moment. All that learn together call it together."""
        if self.settled or item.profile:
            return
        try:
            stage, self.settled = self.shop.lead(lambda: self.due(item))
            if stage is not None:
                self.relearn(stage)
        except self.caught as problem:
            self.settled = True
            event_log.trouble("sentinel", describe(problem), item, logging.WARNING)

    @property
    def here(self) -> Kind:
        return kind(self.shop.where())

    def due(self, item: WorkItem) -> tuple[Stage | None, bool]:
        """(The stage to be learned again, whether all is settled then.)"""
        store, model = self.shop.store, self.study.fingerprint
        if noted(store, self.here, model):
            return None, True
        for stage in firsts(self.study, item):
            if record := store.record(stage):
                there = kind(record["environment"])
                if not noted(store, there, model):
                    note(store, there, entry(store, stage, there))
                mine = (
                    there != self.here and store.lease(lease_of(self.here, model), self.me, LEASE_S) is None
                )
                return (stage, True) if mine else (None, True)
        return None, False  # nothing is finished yet that could be compared

    def relearn(self, stage: Stage) -> None:
        shop = self.shop
        cells = shop.lead(lambda: list(shop.store.cells(stage).values()))
        evaluations = tuple(
            Evaluation(c["task"], c["split"], c["evaluation"]) for c in cells if c["task"] in self.study.tasks
        )
        with TemporaryDirectory(prefix="dgg-sentinel-") as folder:
            scratch = StageStore(Path(folder))
            with event_log.about(stage):
                replace(shop, store=scratch).obtain(WorkItem(stage, evaluations))
            shop.lead(lambda: self.keep(stage, scratch))

    def keep(self, stage: Stage, scratch: StageStore) -> None:
        store = self.shop.store
        reference = kind((store.record(stage) or {"environment": {}})["environment"])
        found = entry(scratch, stage, reference) | {"published_weights": weights(store.open(stage))}
        note(store, self.here, found)
        store.release(lease_of(self.here, self.study.fingerprint), self.me)
        event_log.event(
            "sentinel", stage, kind=self.here.name, reference=reference.name, cells=found["cells"]
        )


def firsts(study: Study, item: WorkItem) -> Iterator[Stage]:
    """Stages that can be the sentinel, the best first; none has a parent, so that each is learned alone."""
    for order, seed in study.blocks:
        yield study.run_of(order, seed).stages[0]
    stage = item.stage
    while stage.parent is not None:
        stage = stage.parent
    if stage.trained_tasks:
        yield stage


def entry(store: StageStore, stage: Stage, reference: Kind) -> dict[str, Any]:
    """What is noted of a sentinel that a store holds; reference: the kind that published the stage."""
    record = store.record(stage) or {}
    cells = [
        {k: c[k] for k in ("evaluation", "task", "split", "score", "n")} for c in store.cells(stage).values()
    ]
    return {
        "key": stage.key,
        "meaning": stage.meaning,
        "reference": reference.id,
        "environment": record["environment"],
        "cells": sorted(cells, key=lambda cell: cell["evaluation"]),
        "weights": weights(store.open(stage)),
        "seconds": record["cost"].get("seconds", 0.0),
        "at": time.time(),
    }


def weights(folder: Path | None) -> str:
    """SHA-256 of a stage's adapter; empty where there is none."""
    files = sorted(folder.glob("adapter/*.safetensors")) if folder else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""
