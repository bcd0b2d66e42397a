"""Train and evaluate stages by a response model instead of a GPU: whole studies in seconds.

    workers: {engine: simulated}    in a study: its stages are simulated wherever they would be trained
    simulate_study(study)           in this process, in memory, on a simulated cluster

A simulated study has a model fingerprint of its own, so its stages are never mistaken for real ones. The
response model's optimum and noise are known. Searches are measured against the one, intervals against the
other.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np

from dgg_ray.config.simulation import GUESS, ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.core import event_log
from dgg_ray.core.rng import make_rng
from dgg_ray.core.stage import Evaluation, Stage, WorkItem
from dgg_ray.storage.stage_store import StageStore

Record = dict[str, Any]


@dataclass
class SimulatedRunner:
    """A `StageRunner` that computes scores and times from a response model instead of training.

    sizes: number of examples per task and split.
    evaluate_only: tasks that are never trained; the model begins with a score on them, and forgets.
    origin, on_step, on_rank0, describe_environment: as `loop.StageRunner` has them.
    """

    response: ResponseModel
    sizes: Mapping[str, Mapping[str, int]]
    store: StageStore
    origin: Mapping[str, Any]
    on_step: Callable[[Stage, int, int], None] = lambda stage, done, steps: None
    on_rank0: Callable[..., Any] = operator.call
    describe_environment: Callable[[], dict[str, str]] = lambda: {"device": "simulated", "host": "simulated"}
    evaluate_only: Collection[str] = ()

    @classmethod
    def of(cls, study: Study, store: StageStore) -> SimulatedRunner:
        """The runner for a study's stages."""
        sizes = {name: data.sizes for name, data in study.data.tasks.items()}
        origin = {"study": study.name, "workers": study.workers.setup}
        return cls(study.simulation, sizes, store, origin, evaluate_only=study.evaluate_only)

    def run(self, item: WorkItem) -> None:
        """Ensure that the store holds the stage and every requested evaluation, or the profile."""
        if item.profile:
            return self.profile(item)
        missing = self.store.missing(item)
        if missing is None:
            self.train(item.stage)
            missing = item.evaluations
        if missing:
            self.evaluate(item.stage, missing)

    def train(self, stage: Stage) -> Record:
        """Publish the simulated stage and return its record."""
        examples, seconds = self.training_cost(stage)
        self.wait(seconds)
        steps = ceil(examples / stage.training.batch_size)
        self.on_step(stage, steps, steps)
        record = {
            "trained_task": stage.task,
            "earlier": list(stage.earlier),
            "replayed": self.replayed_examples(stage),
            "skills": self.true_scores(stage),
            "loss": {},
            "cost": {
                "steps": steps,
                "examples": examples,
                "seconds": seconds,
                "begin_seconds": self.setup_seconds,
                "peak_memory_mb": 0.0,
            },
            "environment": self.describe_environment(),
            **self.origin,
        }
        event_log.log_event("trained", stage, steps=steps, seconds=seconds)
        self.store.publish(stage, record, None)
        event_log.log_event("published", stage)
        return record

    def true_scores(self, stage: Stage) -> dict[str, float]:
        """The score of each trained task after the stage, with the noise of training."""
        rank = stage.adapter.rank
        if len(stage.trained_tasks) != 1:
            return self.response.trained_jointly(stage.trained_tasks, rank)
        task, parent = stage.trained_tasks[0], stage.parent
        before: dict[str, float] = {}
        if parent is not None:
            before = (self.store.record(parent) or self.train(parent))["skills"]
        pull, buffer = stage.strategy.protection(task, stage.earlier)
        after = self.response.trained(before, task, pull, buffer, rank, pull_of(parent))
        if not self.response.noise:
            return {name: max(score, 0.0) for name, score in after.items()}
        path = " > ".join((*stage.earlier, task))
        common = self.draw(make_rng(stage.seed, path, "training"), len(after))
        own = self.draw(make_rng(0, stage.key, "training"), len(after))
        noise = sqrt(self.response.shared) * common + sqrt(1 - self.response.shared) * own
        return {
            name: min(max(score + self.response.noise * e, 0.0), 1.0)
            for (name, score), e in zip(after.items(), noise.tolist(), strict=True)
        }

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Draw the noise of training, in units of its scale."""
        tails = self.response.tails
        return random.standard_t(tails, count) if tails else random.standard_normal(count)

    def outside_score(self, name: str, stage: Stage | None) -> float:
        """The true score after the stage on a task that is never trained; None is the untouched model."""
        if stage is None or not stage.trained_tasks:
            return self.response.untouched_score(name)
        score = self.outside_score(name, stage.parent)
        for task in stage.trained_tasks:
            score = self.response.outside(score, name, task, pull_of(stage))
        return score

    def evaluate(self, stage: Stage, evaluations: Sequence[Evaluation]) -> None:
        """Publish simulated scores for the evaluations, each with its own sampling noise."""
        true_scores = (self.store.record(stage) or {}).get("skills", {})
        noise = [0.0] * len(evaluations)
        if self.response.evaluation_noise:
            # Drawn per evaluation: which ones are published together depends on who asked first.
            noise = [make_rng(0, stage.key, evaluation.key).standard_normal() for evaluation in evaluations]
        scores: list[dict[str, Any]] = []
        for evaluation, e in zip(evaluations, noise, strict=True):
            n = self.sizes[evaluation.task][evaluation.split]
            p = true_scores.get(evaluation.task, GUESS)
            if evaluation.task in self.evaluate_only:
                p = self.outside_score(evaluation.task, stage)
            scores.append(
                {
                    "evaluation": evaluation.key,
                    "task": evaluation.task,
                    "split": evaluation.split,
                    "score": min(max(p + e * sqrt(max(p * (1 - p), 0.0) / n), 0.0), 1.0),
                    "n": n,
                    "seconds": self.evaluation_seconds(evaluation),
                }
            )
        self.wait(sum(score["seconds"] for score in scores))
        self.store.publish_evaluations(stage, scores, None, self.origin)
        event_log.log_event(
            "evaluated", stage, scores={f"{s['task']} {s['split']}": s["score"] for s in scores}
        )

    def profile(self, item: WorkItem) -> None:
        """Publish what a profiling run of the stage would measure, without noise."""
        (task,), rank = item.stage.trained_tasks, item.stage.adapter.rank
        size = item.stage.training.batch_size
        timings = {
            "setup": {"n": 1, "seconds": self.setup_seconds},
            "train": {"n": size, "seconds": size * self.example_seconds(task) * (1 + rank / 128)},
            "answer": {"n": size, "seconds": size * self.example_seconds(task) / 3},
        }
        record = {
            "meaning": item.stage.meaning,
            **{part: [timing] * 2 for part, timing in timings.items()},
            "bytes": 0,
            "cost": {"seconds": 2 * sum(timing["seconds"] for timing in timings.values())},
            **self.origin,
        }
        self.store.record_profile(item, record)

    @property
    def setup_seconds(self) -> float:
        """Seconds before a stage's first step."""
        return self.response.seconds / 1000

    def example_seconds(self, task: str) -> float:
        """Seconds per training example at rank 0."""
        return self.response.seconds / 1000 * self.response.task_constants(task).pace

    def evaluation_seconds(self, evaluation: Evaluation) -> float:
        """Seconds for all answers: a third of a training example's time each."""
        n = self.sizes[evaluation.task][evaluation.split]
        return self.example_seconds(evaluation.task) / 3 * n

    def training_cost(self, stage: Stage) -> tuple[int, float]:
        """(training examples, seconds); the seconds are linear in examples and rank, and vary by `spread`."""
        counts = {name: self.sizes[name]["train"] for name in stage.trained_tasks}
        counts |= self.replayed_examples(stage)
        seconds = stage.training.epochs * sum(n * self.example_seconds(name) for name, n in counts.items())
        seconds *= 1 + stage.adapter.rank / 128
        if self.response.spread:
            seconds *= 1 + self.response.spread * make_rng(0, stage.key, "time").standard_normal()
        return stage.training.epochs * sum(counts.values()), float(max(seconds, 0.0))

    def replayed_examples(self, stage: Stage) -> Mapping[str, int]:
        """Number of replayed examples per earlier task."""
        return stage.replayed_examples({name: sizes["train"] for name, sizes in self.sizes.items()})

    def wait(self, seconds: float) -> None:
        """Sleep for the real time that the simulation asks for, `wait` seconds per simulated second."""
        if self.response.wait:
            time.sleep(seconds * self.response.wait)


def pull_of(stage: Stage | None) -> float:
    """The α of a stage, or what stands for it in its strategy; 0 for one that nothing was trained before."""
    if stage is None or stage.parent is None or len(stage.trained_tasks) != 1:
        return 0.0
    return stage.strategy.protection(stage.trained_tasks[0], stage.earlier).pull
