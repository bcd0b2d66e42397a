"""Hardware check: a finished stage is trained again on every other machine type, to compare the types.

    before an item:  this machine type has a result already           → nothing
                     a reference stage was finished on this type      → its record is the result, at no cost
                     a reference stage was finished on another type   → it is trained and evaluated here, too

The reference stage is the first finished one among the first stages of the study's runs. Where a search
leaves none of these, it is the stage from which the present item starts. It is trained into a store of its
own, which is thrown away: nothing is published, and no budget is charged. Of several workers of one type, one
runs the check, under a lease, and the others go on without it.

storage/hardware_notes.py keeps the results, and analysis/hardware_drift.py reads them.
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
from dgg_ray.core.environment import MachineType, machine_type
from dgg_ray.core.errors import error_record
from dgg_ray.core.stage import Evaluation, Stage, WorkItem
from dgg_ray.storage.hardware_notes import check_lease_key, get_check, put_check
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.stage_store import StageStore, open_store

if TYPE_CHECKING:
    from dgg_ray.config.study import Study
    from dgg_ray.training.loop import StageRunner
    from dgg_ray.training.simulated_runner import SimulatedRunner

LEASE_S = 3600.0  # not renewed: if its owner is killed, another worker may try an hour later


@dataclass
class HardwareCheck:
    """The hardware check of one worker.

    caught: errors that end the check and nothing else; in a group of several workers, those that all raise.
    settled: this machine type has a result, or cannot have one; nothing is left to do.
    """

    study: Study
    runner: StageRunner | SimulatedRunner
    caught: type[Exception] | tuple[type[Exception], ...] = Exception
    settled: bool = field(default=False, init=False)
    leased: bool = field(default=False, init=False)  # on rank 0 alone
    lease_owner: LeaseOwner = field(default_factory=LeaseOwner.this_process, init=False)

    def run_if_due(self, item: WorkItem) -> None:
        """Run the check before an item if this machine type has no result. All workers of a group call it."""
        if self.settled or item.profile:
            return
        try:
            stage, self.settled = self.runner.on_rank0(self.due_stage, item)
            try:
                if stage is not None:
                    self.run(stage)
            finally:
                self.release_lease()
        except self.caught as problem:
            self.settled = True
            event_log.log_error("hardware check", error_record(problem), item, logging.WARNING)

    @property
    def machine(self) -> MachineType:
        return machine_type(self.runner.describe_environment())

    def due_stage(self, item: WorkItem) -> tuple[Stage | None, bool]:
        """(The reference stage, if this worker has to train it; whether the check is settled then.)"""
        store, model = self.runner.store, self.study.data.fingerprint
        if get_check(store, self.machine, model):
            return None, True
        for stage in reference_stages(self.study, item):
            if record := store.record(stage):
                reference = machine_type(record["environment"])
                if not get_check(store, reference, model):
                    put_check(store, reference, check_result(store, stage, reference))
                return (stage if self._is_ours(reference) else None), True
        return None, False  # no stage is finished yet that could be compared

    def _is_ours(self, reference: MachineType) -> bool:
        """Return whether this machine is of another type, and no other worker of its type runs the check."""
        if reference == self.machine:
            return False
        key = check_lease_key(self.machine, self.study.data.fingerprint)
        self.leased = self.runner.store.acquire_lease(key, self.lease_owner, LEASE_S) is None
        return self.leased

    def release_lease(self) -> None:
        """Let another worker run the check, if this one had the lease."""
        if self.leased:
            self.leased = False
            key = check_lease_key(self.machine, self.study.data.fingerprint)
            self.runner.store.release_lease(key, self.lease_owner)

    def run(self, stage: Stage) -> None:
        """Train and evaluate the reference stage into a store of its own, and keep the result."""
        entries = self.runner.on_rank0(self._score_entries, stage)
        evaluations = tuple(
            Evaluation(entry["task"], entry["split"], entry["evaluation"])
            for entry in entries
            if entry["task"] in self.study.data.tasks
        )
        with TemporaryDirectory(prefix="dgg-hardware-") as folder:
            scratch = open_store(Path(folder))
            with event_log.stage_context(stage):
                replace(self.runner, store=scratch).run(WorkItem(stage, evaluations))
            self.runner.on_rank0(self._keep_result, stage, scratch)

    def _score_entries(self, stage: Stage) -> list[dict[str, Any]]:
        return list(self.runner.store.score_entries(stage).values())

    def _keep_result(self, stage: Stage, scratch: StageStore) -> None:
        store = self.runner.store
        reference = machine_type((store.record(stage) or {"environment": {}})["environment"])
        result = check_result(scratch, stage, reference)
        result["published_weights"] = weights_digest(store.open(stage))
        put_check(store, self.machine, result)
        event_log.log_event(
            "hardware check",
            stage,
            machine_type=self.machine.name,
            reference=reference.name,
            scores=result["scores"],
        )


def reference_stages(study: Study, item: WorkItem) -> Iterator[Stage]:
    """Candidates for the reference stage, the best first. None has a parent, so each is trained alone."""
    for order, seed in study.blocks:
        yield study.runs.run(order, seed).stages[0]
    stage = item.stage
    while stage.parent is not None:
        stage = stage.parent
    if stage.trained_tasks:
        yield stage


def check_result(store: StageStore, stage: Stage, reference: MachineType) -> dict[str, Any]:
    """The result of a check whose stage a store holds; reference: the machine type that published it."""
    record = store.record(stage) or {}
    scores = [
        {name: entry[name] for name in ("evaluation", "task", "split", "score", "n")}
        for entry in store.score_entries(stage).values()
    ]
    return {
        "key": stage.key,
        "meaning": stage.meaning,
        "reference": reference.id,
        "environment": record["environment"],
        "scores": sorted(scores, key=lambda entry: entry["evaluation"]),
        "weights": weights_digest(store.open(stage)),
        "seconds": record["cost"].get("seconds", 0.0),
        "at": time.time(),
    }


def weights_digest(folder: Path | None) -> str:
    """SHA-256 of a stage's adapter; empty where there is none."""
    files = sorted(folder.glob("adapter/*.safetensors")) if folder else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""
