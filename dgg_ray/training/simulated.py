"""Whole studies in seconds: a learner that follows a known law, behind the same verbs as a real one.

    workers: {engine: simulated}        in a study: its stages are simulated, wherever they would be learned
    rehearse(study)                     in this process, in memory, on a cluster that is simulated too

A simulated study has a model fingerprint of its own, so its stages are never taken for real ones. The
searches are measured with it against an optimum that is known, and the intervals against the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path
from typing import Any

from dgg_ray.config.simulation import GUESS, Law
from dgg_ray.config.study import Study
from dgg_ray.core import draws, event_log
from dgg_ray.core.interfaces import SPLITS, Strategy
from dgg_ray.core.stage import Data, Evaluation, Stage, WorkItem
from dgg_ray.storage.backend import Objects
from dgg_ray.storage.stage_store import Fill, StageStore

Tick = Callable[[Stage, int, int], None]
Record = dict[str, Any]


@dataclass
class Memory(Objects):
    """Small objects in a dictionary."""

    held: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    url = "memory"

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        return self.held[name][0] if name in self.held else None

    def write(self, name: str, data: bytes) -> None:
        self.held[name] = (data, time.time())

    def create(self, name: str, data: bytes, lasting: bool = True) -> bool:
        mine = (data, time.time())
        return self.held.setdefault(name, mine) is mine

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.held if name.startswith(prefix))

    def remove(self, name: str) -> None:
        self.held.pop(name, None)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {name: len(self.held[name][0]) for name in self.names(prefix)}

    def modified(self, name: str) -> float | None:
        return self.held[name][1] if name in self.held else None


@dataclass(frozen=True)
class MemoryStore(StageStore):
    """Finished stages in this process's memory, behind the store's verbs; files are not kept."""

    folder: Path = Path("memory")
    objects: Memory = field(default_factory=Memory)  # type: ignore[assignment]
    records: dict[str, Record] = field(default_factory=dict)
    sat: dict[str, list[Record]] = field(default_factory=dict)
    found: dict[str, dict[str, Record]] = field(default_factory=dict)  # cells, by stage and exam

    def record(self, stage: Stage) -> Record | None:
        return self.records.get(stage.key)

    def cells(self, stage: Stage) -> dict[str, Record]:
        return self.found.get(stage.key, {})

    def sittings(self, key: str) -> Iterator[Record]:
        return iter(self.sat.get(key, ()))

    def open(self, stage: Stage) -> Path | None:
        return self.folder / stage.key if stage.key in self.records else None

    def publish(self, stage: Stage, record: Record, fill: Fill) -> None:
        self.records.setdefault(stage.key, {"key": stage.key, "bytes": 0} | record)
        self.forget(f"failed/{stage.key}")

    def sit(
        self,
        stage: Stage,
        cells: list[Record],
        fill: Fill,
        by: Mapping[str, Any] | None = None,
    ) -> None:
        self.sat.setdefault(stage.key, []).append({"cells": cells, "bytes": 0, **(by or {})})
        self.found.setdefault(stage.key, {}).update((cell["evaluation"], cell) for cell in cells)
        self.forget(f"failed/{stage.key}")

    def discard(self, key: str, part: str = "") -> int:
        for kept in (self.records, self.sat, self.found) if not part else ():
            kept.pop(key, None)
        return 0

    def sweep(self) -> None:
        """Nothing is left by writers here."""

    def finished(self) -> Iterator[tuple[Record, list[Record]]]:
        return ((record, self.sat.get(key, [])) for key, record in self.records.items())


@dataclass
class Simulated:
    """Does what `loop.Workshop` does, by the law: the same work in, the same records and cells out."""

    law: Law
    sizes: Mapping[str, Mapping[str, int]]
    store: StageStore
    by: Mapping[str, Any]
    tick: Tick = lambda stage, done, steps: None
    lead: Callable[[Callable[[], Any]], Any] = lambda compute: compute()
    where: Callable[[], dict[str, str]] = lambda: {"device": "simulated", "host": "simulated"}

    @classmethod
    def of(cls, study: Study, store: StageStore) -> Simulated:
        sizes = {name: data.sizes for name, data in study.tasks.items()}
        by = {"study": study.name, "workers": study.workers.setup}
        return cls(study.simulation, sizes, store, by)

    def obtain(self, item: WorkItem) -> None:
        """Leave the store with the stage and all the exams in it, or with what a profile of it takes."""
        if item.profile:
            return self.profile(item)
        missing = self.store.missing(item)
        if missing is None:
            self.learn(item.stage)
            missing = item.evaluations
        if missing:
            self.examine(item.stage, missing)

    def learn(self, stage: Stage) -> Record:
        count, seconds = self.cost(stage)
        self.wait(seconds)
        steps = ceil(count / stage.training.batch_size)
        self.tick(stage, steps, steps)
        cost = {"steps": steps, "examples": count, "seconds": seconds, "begin_seconds": self.begin}
        record = {
            "trained_task": stage.task,
            "earlier": list(stage.earlier),
            "skills": self.skills(stage),
            "loss": {},
            "cost": cost | {"peak_memory_mb": 0.0},
            "environment": self.where(),
            **self.by,
        }
        event_log.event("trained", stage, steps=steps, seconds=seconds)
        self.store.publish(stage, record, None)
        event_log.event("published", stage)
        return record

    def skills(self, stage: Stage) -> dict[str, float]:
        """True scores after the stage, with the noise of its training."""
        rank = stage.adapter.rank
        if len(stage.trained_tasks) != 1:
            return self.law.together(stage.trained_tasks, rank)
        task, parent = stage.trained_tasks[0], stage.parent
        before: dict[str, float] = {}
        if parent is not None:
            before = (self.store.record(parent) or self.learn(parent))["skills"]
        guidance = stage.effect.get("dgg")
        alpha = guidance["alpha"] if isinstance(guidance, Mapping) and not stage.code else 0.0
        after = self.law.learned(before, task, alpha, stage.buffer, rank)
        if not self.law.noise:
            return {name: max(score, 0.0) for name, score in after.items()}
        place = " > ".join((*stage.earlier, task))
        common = draws.generator(stage.seed, place, "training").standard_normal(len(after))
        own = draws.generator(0, stage.key, "training").standard_normal(len(after))
        noise = sqrt(self.law.shared) * common + sqrt(1 - self.law.shared) * own
        return {
            name: min(max(score + self.law.noise * e, 0.0), 1.0)
            for (name, score), e in zip(after.items(), noise.tolist(), strict=True)
        }

    def examine(self, stage: Stage, evaluations: Sequence[Evaluation]) -> None:
        skills = (self.store.record(stage) or {}).get("skills", {})
        noise = [0.0] * len(evaluations)
        if self.law.evaluation_noise:
            # Each exam's own: which ones are sat together depends on who asked first.
            noise = [
                draws.generator(0, stage.key, evaluation.key).standard_normal() for evaluation in evaluations
            ]
        cells = []
        for evaluation, e in zip(evaluations, noise, strict=True):
            score, n = skills.get(evaluation.task, GUESS), self.sizes[evaluation.task][evaluation.split]
            score = min(max(score + e * sqrt(max(score * (1 - score), 0.0) / n), 0.0), 1.0)
            cells.append(
                {
                    "evaluation": evaluation.key,
                    "task": evaluation.task,
                    "split": evaluation.split,
                    "score": score,
                    "n": n,
                }
                | {"seconds": self.pace(evaluation.task) / 3 * n}
            )
        self.wait(sum(cell["seconds"] for cell in cells))
        self.store.sit(stage, cells, None, self.by)
        event_log.event("evaluated", stage, scores={f"{c['task']} {c['split']}": c["score"] for c in cells})

    def profile(self, item: WorkItem) -> None:
        """What a profile of the stage would measure: the law's own pace."""
        (task,), rank, size = (
            item.stage.trained_tasks,
            item.stage.adapter.rank,
            item.stage.training.batch_size,
        )
        rounds = {
            "begin": {"n": 1, "seconds": self.begin},
            "learn": {"n": size, "seconds": size * self.pace(task) * (1 + rank / 128)},
            "answer": {"n": size, "seconds": size * self.pace(task) / 3},
        }
        record = {
            "meaning": item.stage.meaning,
            **{kind: [timed] * 2 for kind, timed in rounds.items()},
            "bytes": 0,
            "cost": {"seconds": 2 * sum(timed["seconds"] for timed in rounds.values())},
            **self.by,
        }
        self.store.measure(item, record)

    @property
    def begin(self) -> float:
        """Seconds before a stage's first step."""
        return self.law.seconds / 1000

    def pace(self, task: str) -> float:
        """Seconds for one training example, at rank 0."""
        return self.law.seconds / 1000 * self.law.nature(task).pace

    def cost(self, stage: Stage) -> tuple[int, float]:
        """(training examples seen, seconds): linear in both examples and rank, with the law's spread."""
        counts = {name: self.sizes[name]["train"] for name in stage.trained_tasks}
        counts |= {name: min(stage.buffer, self.sizes[name]["train"]) for name in stage.earlier}
        seconds = stage.training.epochs * sum(n * self.pace(name) for name, n in counts.items())
        seconds *= 1 + stage.adapter.rank / 128
        if self.law.spread:
            seconds *= 1 + self.law.spread * draws.generator(0, stage.key, "time").standard_normal()
        return stage.training.epochs * sum(counts.values()), float(max(seconds, 0.0))

    def wait(self, seconds: float) -> None:
        if self.law.wait:
            time.sleep(seconds * self.law.wait)


# -- studies to simulate ---------------------------------------------------------------------------


def imagined(tasks: int | tuple[str, ...], strategy: Strategy, size: int = 500, **sections: Any) -> Study:
    """A study of tasks that are only names and sizes: `size` training examples, as many in each exam."""
    names = tuple(f"task{i}" for i in range(tasks)) if isinstance(tasks, int) else tasks
    sizes: dict[str, int] = dict.fromkeys(SPLITS, size)
    data = {n: Data(n, {split: f"{n} {split}" for split in SPLITS}, sizes, "exact_match") for n in names}
    study = Study("imagined", None, dict.fromkeys(names), strategy, tasks=data, **sections)  # type: ignore[arg-type]
    return study.simulated()
