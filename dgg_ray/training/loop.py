"""Learn a stage, sit the exams: the algorithm on one page.

    obtain(work)     the store has it, or: obtain the parent → learn → publish → examine → publish

It knows a learner, tasks and a store, and neither Ray nor a cluster: a worker of a fleet calls it,
and so does a single process.
"""

from __future__ import annotations

import math
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file

from dgg_ray.core import draws, event_log, plugins
from dgg_ray.core.environment import environment
from dgg_ray.core.errors import NoParent, NotFinite, StoreError
from dgg_ray.core.interfaces import Example, Learner, Score, Strategy, Task, plain_first
from dgg_ray.core.stage import ANSWERS, ROUNDS, STEPS, Evaluation, Stage, WorkItem
from dgg_ray.storage.backend import weight
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training import checkpoints, memory_check
from dgg_ray.training.checkpoints import Rhythm, Snapshot

Tick = Callable[[Stage, int, int], None]  # (stage, steps done, steps in all): progress, once a step
POINTS = 200  # of a stage's loss curve; its record stays small, and a search reads thousands of these


@dataclass
class Workshop:
    """All that work needs: who learns, from what, and where it is kept.

    lead: computes something in the process that leads and gives the result, or the error, to all
        that learn together; where one process learns it just calls.
    tick: called after every step.
    rhythm: when a stage in its middle is kept.
    by: who does it: {study, workers}, kept with all that is published and measured.
    where: on what, kept with every stage.
    codes: of the study's plug-ins, by `kind/name`; what of them ran is kept with stages and sittings, so that
        it can be said when one was changed.
    """

    learner: Learner
    tasks: Mapping[str, Task]
    store: StageStore
    max_new_tokens: int
    lead: Callable[[Callable[[], Any]], Any] = lambda compute: compute()
    tick: Tick = lambda stage, done, steps: None
    rhythm: Rhythm = field(default_factory=Rhythm)
    by: Mapping[str, Any] = field(default_factory=dict)
    where: Callable[[], dict[str, str]] = environment
    codes: Mapping[str, str] = field(default_factory=dict)

    def obtain(self, item: WorkItem) -> None:
        """Leave the store with the stage and all the exams in it."""
        if item.profile:
            return self.profile(item)
        missing = self.lead(lambda: self.store.missing(item))
        if missing is None:
            self.learn(item.stage)
            missing = item.evaluations
        elif missing:
            self.take_up(item.stage)
        if missing:
            self.examine(item.stage, missing)

    def learn(self, stage: Stage) -> None:
        """Train the stage from its parent's end and publish it."""
        if not stage.trained_tasks:
            self.take_up(stage)
            return self.publish(stage, stage.strategy, {}, {"steps": 0, "examples": 0})
        parent = self.parent(stage)
        asked = Strategy() if plain_first(stage.strategy, stage.earlier) else stage.strategy
        strategy = memory_check.fresh(asked)
        if parent and (state := parent / "strategy.safetensors").exists():
            strategy.load_state(load_file(state))

        fresh = [example for name in stage.trained_tasks for example in self.tasks[name].examples["train"]]
        earlier = [self.tasks[name] for name in stage.earlier]
        examples = strategy.examples(fresh, earlier, stage.seed)
        batches = list(shuffled(examples, stage))

        beside = memory_check.copied(strategy)
        learner, taken, came = self.learner, self.taken(stage), time.perf_counter()
        begun = (stage.adapter, stage.training, len(batches), stage.seed, stage.task, parent)
        if taken:
            losses, before = list(taken.losses), taken.seconds
            strategy.memory.update(taken.memory | learner.begin(*begun, len(losses), taken.tensors))
            event_log.event("gone on", stage, step=len(losses))
        else:
            losses, before = [], 0.0
            learner.begin(*begun)
            strategy.begin_task(learner.weights(), stage.task, stage.earlier, stage.seed)
            memory_check.check_memory(strategy, asked, beside, "in begin_task")
        start = time.perf_counter()
        self.rhythm.begin(len(losses))
        for step in range(len(losses), len(batches)):
            losses.append(learner.step(batches[step], step, strategy.edit_gradient))
            if not math.isfinite(losses[-1]):
                raise self.broke(
                    stage,
                    f"the loss is {losses[-1]} at step {step + 1} of {len(batches)} while learning "
                    f"{stage.task}; lower training.learning_rate or raise training.warmup",
                )
            self.keep(stage, strategy, losses, before + time.perf_counter() - start)
            self.tick(stage, step + 1, len(batches))
        memory_check.check_memory(strategy, asked, beside, "as it learned")
        weights = learner.weights()
        if weights.total(torch.stack([(~theta.isfinite()).sum() for theta in weights]).sum()):
            raise self.broke(
                stage, f"weights became infinite in the last step of {stage.task}; lower the rate"
            )
        seconds = before + time.perf_counter() - start
        loss: dict[str, Any] = {"first": losses[0], "last": sum(losses[-10:]) / len(losses[-10:])}
        loss["curve"] = thinned(losses)
        cost = {"steps": len(batches), "examples": len(examples), "seconds": seconds}
        cost["begin_seconds"] = start - came
        event_log.event("trained", stage, loss=loss["last"], steps=len(batches), seconds=seconds)
        self.publish(stage, strategy, loss, cost)

    def broke(self, stage: Stage, why: str) -> NotFinite:
        """The error; a snapshot on the way to it would lead there again."""
        self.lead(lambda: checkpoints.remove(self.store, stage))
        return NotFinite(why)

    def taken(self, stage: Stage) -> Snapshot | None:
        """The stage's snapshot; the same for all that learn together."""
        mine = checkpoints.read(self.store, stage)
        losses = mine.losses if mine else []
        if (leads := self.lead(lambda: losses)) != losses:
            # No StageError: the group ends, is started anew and looks again.
            raise RuntimeError(f"{stage}: a snapshot of {len(losses)} steps here, {len(leads)} at the lead")
        return mine

    def keep(self, stage: Stage, strategy: Strategy, losses: list[float], seconds: float) -> None:
        """A snapshot of the stage in its middle, when one is due."""
        rhythm, done = self.rhythm, len(losses)
        if not (rhythm.steps or rhythm.minutes or rhythm.notice):
            return
        verdict = self.lead(lambda: rhythm.verdict(done))
        if verdict == "due" or (verdict == "ask" and rhythm.notice and rhythm.notice()):
            tensors = self.learner.snapshot(strategy.memory)
            taken = Snapshot(losses, seconds, checkpoints.plain(strategy.memory), tensors)
            self.lead(lambda: self.written(stage, taken))
            rhythm.kept(done)
            event_log.event("snapshot", stage, step=done)

    def written(self, stage: Stage, taken: Snapshot) -> None:
        try:
            checkpoints.write(self.store, stage, taken)
        except StoreError as problem:  # the stage can end well without it
            warnings.warn(f"{stage} goes on without a snapshot: {problem}", stacklevel=2)

    def examine(self, stage: Stage, evaluations: Sequence[Evaluation]) -> None:
        """Answer and score the exams' examples with the learner as it is; publish one sitting."""
        cells, rows = [], []
        for evaluation in evaluations:
            start = time.perf_counter()
            task = self.tasks[evaluation.task]
            examples = task.examples[evaluation.split]
            answers = self.learner.answer(examples, self.max_new_tokens)
            found = plugins.find("scorers", task.scorer)(answers, examples)
            score = Score(*found).checked(task.scorer, len(examples))
            cells.append({"evaluation": evaluation.key, "task": evaluation.task, "split": evaluation.split})
            cells[-1] |= {"score": score.value, "n": len(examples)}
            cells[-1]["seconds"] = time.perf_counter() - start
            rows += [
                {
                    "task": evaluation.task,
                    "split": evaluation.split,
                    "id": e.id,
                    "answer": e.answer,
                    "prediction": p,
                    "score": s,
                }
                for e, p, s in zip(examples, answers, score.each, strict=True)
            ]
        table = pyarrow.Table.from_pylist(rows)
        write = lambda folder: pyarrow.parquet.write_table(table, folder / "predictions.parquet")  # noqa: E731
        code = self.ran({f"scorers/{self.tasks[evaluation.task].scorer}" for evaluation in evaluations})
        self.lead(lambda: self.store.sit(stage, cells, write, {**self.by, **code}))
        event_log.event("evaluated", stage, scores={f"{c['task']} {c['split']}": c["score"] for c in cells})

    def ran(self, named: set[str]) -> dict[str, Any]:
        """The source digests of the plug-ins that made a record, kept with it."""
        codes = {name: self.codes[name] for name in sorted(named & self.codes.keys())}
        return {"code": codes} if codes else {}

    def profile(self, item: WorkItem) -> None:
        """Time a few steps and answers of the stage from a fresh adapter, and weigh that; keep no more."""
        stage, learner, came = item.stage, self.learner, time.perf_counter()
        size = stage.training.batch_size
        examples = cycle(e for name in stage.trained_tasks for e in self.tasks[name].examples["train"])
        asked = [
            e
            for evaluation in item.evaluations
            for e in self.tasks[evaluation.task].examples[evaluation.split]
        ][:ANSWERS]

        def begin() -> None:
            learner.begin(stage.adapter, stage.training, STEPS, stage.seed, stage.task, None)

        def steps() -> None:
            for step in range(STEPS):
                learner.step(list(islice(examples, size)), step, Strategy().edit_gradient)
                self.tick(stage, step + 1, STEPS)

        def answers() -> None:
            learner.answer(asked, self.max_new_tokens)

        # The first round is not kept: kernels are chosen in it, memory is got.
        rounds = [[timed(part) for part in (begin, steps, answers)] for _ in range(1 + ROUNDS)][1:]
        learner.gather()
        record = {
            "meaning": stage.meaning,
            "begin": [{"n": 1, "seconds": begun} for begun, _, _ in rounds],
            "learn": [{"n": STEPS * size, "seconds": learned} for _, learned, _ in rounds],
            "answer": [{"n": len(asked), "seconds": answered} for _, _, answered in rounds],
            "bytes": self.lead(self.saved),
            "cost": {"seconds": time.perf_counter() - came},
            **self.by,
        }
        self.lead(lambda: self.store.measure(item, record))

    def saved(self) -> int:
        """Bytes of the adapter, as a stage keeps it."""
        with TemporaryDirectory() as folder:
            self.learner.save(Path(folder) / "adapter")
            return weight(Path(folder))

    def parent(self, stage: Stage) -> Path | None:
        """The verified folder of the stage's parent, learned first where it is not there."""
        if stage.parent is None:
            return None
        parent = stage.parent
        folder = self.opened(parent)
        if folder is None:  # never learned, or damaged and set aside
            self.learn(parent)
            folder = self.opened(parent)
        if folder is None:
            raise NoParent(f"{stage} starts from {parent}, which was learned and is not in the store")
        return folder

    def opened(self, stage: Stage) -> Path | None:
        """The verified folder of a finished stage, for each on its own machine; None for all, or for none."""
        leads: list[Path | None] = []

        def look() -> bool:
            leads.append(self.store.open(stage))
            return leads[0] is not None

        if not self.lead(look):
            return None
        folder = leads[0] if leads else self.store.open(stage)
        if folder is None:  # no StageError: the group ends, is started anew and looks again
            raise RuntimeError(f"{stage}: its files are at hand for the lead, and not here")
        return folder

    def take_up(self, stage: Stage) -> None:
        """Put the learner where a finished stage left it."""
        folder = self.opened(stage) if stage.trained_tasks else None
        if stage.trained_tasks and folder is None:
            return self.learn(stage)
        self.learner.begin(stage.adapter, stage.training, 0, stage.seed, stage.task, folder)

    def publish(self, stage: Stage, strategy: Any, loss: dict[str, Any], cost: dict[str, Any]) -> None:
        def fill(folder: Path) -> None:
            if stage.trained_tasks:
                self.learner.save(folder / "adapter")
            if state := strategy.state():
                save_file(state, folder / "strategy.safetensors")

        record = {
            "trained_task": stage.task,
            "earlier": list(stage.earlier),
            "loss": loss,
            "cost": cost | {"peak_memory_mb": peak_memory_mb()},
            "environment": self.where(),
            **self.by,
        }
        if stage.trained_tasks:
            record |= self.ran(
                {f"strategies/{plugins.name_of(stage.strategy)}", *of_kind(self.codes, "models")}
            )
            self.learner.gather()
        self.lead(lambda: self.store.publish(stage, record, fill))
        event_log.event("published", stage)
        self.lead(lambda: checkpoints.remove(self.store, stage))


def of_kind(codes: Mapping[str, str], kind: str) -> set[str]:
    return {name for name in codes if name.startswith(f"{kind}/")}


def shuffled(examples: Sequence[Example], stage: Stage) -> Iterator[list[Example]]:
    """The stage's batches, one per optimizer step; each epoch a permutation of its own."""
    size = stage.training.batch_size
    for epoch in range(stage.training.epochs):
        order = draws.permutation(len(examples), stage.seed, stage.task, "shuffle", epoch)
        for first in range(0, len(examples), size):
            yield [examples[i] for i in order[first : first + size]]


def thinned(losses: Sequence[float], points: int = POINTS) -> list[float]:
    """The loss along a stage: means over at most `points` equal spans of its steps, to four digits.

    >>> thinned([4.0, 2.0, 1.0, 1.0], points=2)
    [3.0, 1.0]
    """
    count = min(points, len(losses))
    edges = [span * len(losses) // count for span in range(count + 1)] if count else [0]
    spans = [losses[start:end] for start, end in pairwise(edges)]
    return [float(f"{sum(span) / len(span):.4g}") for span in spans]


def timed(do: Callable[[], None]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def peak_memory_mb() -> float:
    """Of the accelerator where there is one, else of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
