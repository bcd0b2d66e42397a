"""Whole studies in seconds: a learner that follows a known law, behind the same verbs as a real one.

    workers: {engine: simulated}        in a study: its stages are simulated, wherever they would be learned
    rehearse(study)                     in this process, in memory, on a cluster that is simulated too

A simulated study has a model fingerprint of its own, so its stages are never taken for real ones. The
searches are measured with it against an optimum that is known, and the intervals against the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from dgg_ray import draws
from dgg_ray.contracts import SPLITS, Strategy
from dgg_ray.law import GUESS, Law
from dgg_ray.stages import Data, Stage, StageStore, Work
from dgg_ray.study import Study

Tick = Callable[[Stage, int, int], None]


@dataclass(frozen=True)
class MemoryStore(StageStore):
    """Finished stages in this process's memory, behind the store's verbs."""

    folder: Path = Path("memory")
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    sat: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)

    def record(self, stage: Stage) -> dict[str, Any] | None:
        return self.records.get(stage.key)

    def cells(self, stage: Stage) -> dict[str, dict[str, Any]]:
        return self.sat.get(stage.key, {})

    def open(self, stage: Stage) -> Path | None:
        return self.place(stage) if stage.key in self.records else None

    def publish(self, stage: Stage, record: dict[str, Any], fill: Callable[[Path], None]) -> None:
        self.records.setdefault(stage.key, {"key": stage.key} | record)
        self.failures.pop(stage.key, None)

    def sit(self, stage: Stage, cells: list[dict[str, Any]], fill: Callable[[Path], None]) -> None:
        self.sat.setdefault(stage.key, {}).update((cell["exam"], cell) for cell in cells)

    def fail(self, stage: Stage, error: dict[str, str]) -> None:
        self.failures[stage.key] = error

    def failure(self, stage: Stage) -> dict[str, str] | None:
        return self.failures.get(stage.key)

    def sweep(self) -> None:
        """Nothing is left by writers here."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records.values())


@dataclass
class Simulated:
    """Does what `loop.Workshop` does, by the law: the same work in, the same records and cells out."""

    law: Law
    sizes: dict[str, Mapping[str, int]]
    store: StageStore
    tick: Tick = lambda stage, done, steps: None
    lead: Callable[[Callable[[], Any]], Any] = lambda compute: compute()

    @classmethod
    def of(cls, study: Study, store: StageStore) -> Simulated:
        return cls(study.simulation, {name: data.sizes for name, data in study.tasks.items()}, store)

    def obtain(self, work: Work) -> None:
        """Leave the store with the stage and all the exams in it."""
        missing = self.store.missing(work)
        if missing is None:
            self.learn(work.stage)
            missing = work.exams
        if missing:
            self.examine(work.stage, missing)

    def learn(self, stage: Stage) -> dict[str, Any]:
        skills = self.skills(stage)
        count, seconds = self.cost(stage)
        if self.law.wait:
            time.sleep(seconds * self.law.wait)
        steps = ceil(count / stage.training.batch_size)
        self.tick(stage, steps, steps)
        record = {
            "learned": stage.task,
            "earlier": list(stage.earlier),
            "skills": skills,
            "loss": {},
            "cost": {"steps": steps, "examples": count, "seconds": seconds, "peak_memory_mb": 0.0},
            "environment": {"device": "simulated", "host": "simulated"},
        }
        self.store.publish(stage, record, lambda folder: None)
        return record

    def skills(self, stage: Stage) -> dict[str, float]:
        """True scores after the stage, with the noise of its training."""
        rank = stage.adapter.rank
        if len(stage.learns) != 1:
            return self.law.together(stage.learns, rank)
        task, parent = stage.learns[0], stage.parent
        before: dict[str, float] = {}
        if parent is not None:
            before = (self.store.record(parent) or self.learn(parent))["skills"]
        effect = stage.strategy.effect(task, stage.earlier)
        alpha, buffer = effect.get("dgg", {}).get("alpha", 0.0), effect.get("buffer", 0)
        after = self.law.learned(before, task, alpha, buffer, rank)
        if self.law.noise:
            place = " > ".join((*stage.earlier, task))
            common = draws.generator(stage.seed, place, "training").standard_normal(len(after))
            own = draws.generator(0, stage.key, "training").standard_normal(len(after))
            noise = sqrt(self.law.shared) * common + sqrt(1 - self.law.shared) * own
            after = {
                name: min(max(score + self.law.noise * e, 0.0), 1.0)
                for (name, score), e in zip(after.items(), noise.tolist(), strict=True)
            }
        return after

    def examine(self, stage: Stage, exams: Any) -> None:
        skills = self.store.record(stage)["skills"] if stage.learns else {}  # type: ignore[index]
        noise = [0.0] * len(exams)
        if self.law.exam_noise:
            splits = "+".join(exam.key[:8] for exam in exams)
            noise = draws.generator(0, stage.key, splits).standard_normal(len(exams)).tolist()
        cells = []
        for exam, e in zip(exams, noise, strict=True):
            score, n = skills.get(exam.task, GUESS), self.sizes[exam.task][exam.split]
            score = min(max(score + e * sqrt(max(score * (1 - score), 0.0) / n), 0.0), 1.0)
            seconds = n * self.law.seconds / 3000 * self.law.nature(exam.task).pace
            cells.append(
                {"exam": exam.key, "task": exam.task, "split": exam.split, "score": score, "n": n}
                | {"seconds": seconds}
            )
        self.store.sit(stage, cells, lambda folder: None)

    def cost(self, stage: Stage) -> tuple[int, float]:
        """(training examples seen, seconds): linear in both examples and rank, with the law's spread."""
        buffer = stage.strategy.effect(stage.task, stage.earlier).get("buffer", 0)
        fresh = sum(self.sizes[name]["train"] for name in stage.learns)
        kept = sum(min(buffer, self.sizes[name]["train"]) for name in stage.earlier)
        count = stage.training.epochs * (fresh + kept)
        pace = np.mean([self.law.nature(name).pace for name in stage.learns]) if stage.learns else 0.0
        seconds = count * self.law.seconds / 1000 * pace * (1 + stage.adapter.rank / 128)
        if self.law.spread:
            seconds *= 1 + self.law.spread * draws.generator(0, stage.key, "time").standard_normal()
        return count, float(max(seconds, 0.0))


# -- studies to simulate ---------------------------------------------------------------------------


def imagined(tasks: int | tuple[str, ...], strategy: Strategy, size: int = 500, **sections: Any) -> Study:
    """A study of tasks that are only names and sizes: `size` training examples, as many in each exam."""
    names = tuple(f"task{i}" for i in range(tasks)) if isinstance(tasks, int) else tasks
    sizes: dict[str, int] = dict.fromkeys(SPLITS, size)
    data = {n: Data(n, {split: f"{n} {split}" for split in SPLITS}, sizes, "exact_match") for n in names}
    study = Study("imagined", None, dict.fromkeys(names), strategy, tasks=data, **sections)  # type: ignore[arg-type]
    return study.simulated()
