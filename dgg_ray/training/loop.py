"""Train a stage and evaluate it: the algorithm on one page.

    run(item)       the stage is stored   → load it
                    it is not             → train it and publish it
                    then answer and score the evaluations that the store lacks, and publish the scores

    train(stage)    load the parent's adapter, or draw a fresh one; strategy.prepare, begin_task
                    for each batch: loss → strategy.edit_loss → gradient → strategy.edit_gradient
                    → optimizer step → strategy.after_step
                    strategy.end_task; publish the adapter, the strategy's state and a record

This module knows a learner, tasks and a store. It knows neither Ray nor a cluster: the workers of a
group call it, and so does a single process.
"""

from __future__ import annotations

import math
import operator
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
from safetensors.torch import save_file

from dgg_ray.core import event_log, plugins
from dgg_ray.core.environment import process_environment
from dgg_ray.core.errors import MissingParentError, NonFiniteError, StoreError
from dgg_ray.core.interfaces import Example, Learner, Score, StageSetup, Task
from dgg_ray.core.stage import PROFILE_ANSWERS, PROFILE_ROUNDS, PROFILE_STEPS, Evaluation, Stage, WorkItem
from dgg_ray.core.strategy import StageContext, Strategy, bind_context, uses
from dgg_ray.storage.backend import folder_size
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training import checkpoints, facts, hook_checks
from dgg_ray.training.batches import StageBatches, stage_batches
from dgg_ray.training.checkpoints import CheckpointPolicy, StageCheckpoint
from dgg_ray.training.memory_check import MemoryCheck, fresh_copy
from dgg_ray.training.strategy_instance import load_state, step_hooks, strategy_of

StepCallback = Callable[[Stage, int, int], None]  # (stage, steps done, steps in total)
MakeContext = Callable[..., StageContext]  # with the arguments of stage_context.LearnerContext
CURVE_POINTS = 200  # of a stored loss curve: a search reads thousands of stage records


@dataclass
class StageRunner:
    """Runs work items with a learner and a store, alone or as one of a group's workers.

    on_rank0: `on_rank0(function, *arguments)` calls the function on rank 0 and returns its result, or
        raises its error, on every rank of the group. A process that trains alone calls it directly.
    on_step: called after every optimizer step.
    checkpoint_policy: when to write a mid-stage checkpoint.
    origin: {study, workers}, stored with every record.
    make_context: makes the context of a strategy's hooks; None for strategies that ask for none.
    describe_environment: hardware and versions, stored with every stage.
    source_hashes: of the study's plug-ins, by `kind/name`. A record stores those of the plug-ins that made
        it, so that an edited plug-in can be noticed.
    """

    learner: Learner
    tasks: Mapping[str, Task]
    store: StageStore
    max_new_tokens: int
    on_rank0: Callable[..., Any] = operator.call
    on_step: StepCallback = lambda stage, done, steps: None
    checkpoint_policy: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    origin: Mapping[str, Any] = field(default_factory=dict)
    describe_environment: Callable[[], dict[str, str]] = process_environment
    make_context: MakeContext | None = None
    source_hashes: Mapping[str, str] = field(default_factory=dict)

    def run(self, item: WorkItem) -> None:
        """Ensure that the store holds the trained stage and every requested evaluation."""
        if item.profile:
            return self.profile(item)
        missing = self.on_rank0(self.store.missing, item)
        if missing is None:
            self.train(item.stage)
            missing = item.evaluations
            if missing and uses(strategy_of(item.stage), "end_task"):
                self.load_finished(item.stage)  # a ZeRO engine has the edited weights in its shards alone
        elif missing:
            self.load_finished(item.stage)
        if missing:
            self.evaluate(item.stage, missing)

    # -- training ----------------------------------------------------------------------------------

    def train(self, stage: Stage) -> None:
        """Train the stage from its parent's end state and publish it."""
        if not stage.trained_tasks:  # the base model as it is
            self.load_finished(stage)
            return self.publish(stage, stage.strategy, {}, {"steps": 0, "examples": 0})
        parent = self.parent_folder(stage)
        configured = strategy_of(stage)
        strategy = fresh_copy(configured)
        load_state(strategy, parent)

        batches = stage_batches(strategy, stage, self.tasks)
        memory_check = MemoryCheck(strategy, configured)
        checkpoint = self.read_checkpoint(stage)
        setup_start = time.perf_counter()
        setup = self.setup_of(stage, batches.steps, parent)
        losses, earlier_seconds = self.start_or_resume(stage, setup, strategy, checkpoint)
        if checkpoint is None:
            memory_check.check("in begin_task")
        start = time.perf_counter()
        self.checkpoint_policy.begin(len(losses))
        self.take_steps(stage, strategy, batches, losses, earlier_seconds)
        memory_check.check("during training")
        with torch.no_grad():
            hook_checks.in_place(strategy, "end_task")(self.learner.weights())
        self.check_weights(stage, strategy)
        seconds = earlier_seconds + time.perf_counter() - start
        loss = {
            "first": losses[0],
            "last": sum(losses[-10:]) / len(losses[-10:]),
            "curve": loss_curve(losses),
        }
        cost = {
            "steps": batches.steps,
            "examples": batches.examples,
            "seconds": seconds,
            "begin_seconds": start - setup_start,
        }
        event_log.log_event("trained", stage, loss=loss["last"], steps=batches.steps, seconds=seconds)
        self.publish(stage, strategy, loss, cost)

    def take_steps(
        self,
        stage: Stage,
        strategy: Strategy,
        batches: StageBatches,
        losses: list[float],
        earlier_seconds: float,
    ) -> None:
        """Take the steps that are left, and append their losses.

        earlier_seconds: spent on the steps before a resume.
        """
        hooks, start = step_hooks(strategy, stage), time.perf_counter()
        edit_gradient = hook_checks.in_place(strategy, "edit_gradient")
        for step in range(len(losses), batches.steps):
            if phase := batches.first_steps.get(step):
                with torch.no_grad():
                    strategy.begin_phase(phase, self.learner.weights())
            losses.append(self.learner.step(batches.of_step[step], step, edit_gradient, hooks))
            if not math.isfinite(losses[-1]):
                raise self.divergence_error(
                    stage,
                    f"the loss is {losses[-1]} at step {step + 1} of {batches.steps} while training "
                    f"{stage.task}; lower training.learning_rate or raise training.warmup"
                    f"{hook_checks.other_cause(strategy)}",
                )
            self.write_checkpoint_if_due(
                stage, strategy, losses, earlier_seconds + time.perf_counter() - start
            )
            self.on_step(stage, step + 1, batches.steps)

    def start_or_resume(
        self, stage: Stage, setup: StageSetup, strategy: Strategy, checkpoint: StageCheckpoint | None
    ) -> tuple[list[float], float]:
        """Bring learner and strategy to the stage's start or to its checkpoint.

        Returns (losses of the steps so far, seconds spent on them).
        """
        if checkpoint is None:
            self.learner.start(setup)
            self.prepare(strategy, stage, setup.steps)
            hook_checks.begin_task(strategy, self.learner.weights(), stage)
            return [], 0.0
        losses = list(checkpoint.losses)
        tensors = self.learner.resume(setup, len(losses), checkpoint.tensors)
        self.prepare(strategy, stage, setup.steps)
        strategy.memory.update(checkpoint.memory | tensors)
        event_log.log_event("resumed", stage, step=len(losses))
        return losses, checkpoint.seconds

    def setup_of(self, stage: Stage, steps: int, folder: Path | None) -> StageSetup:
        """The learner's setup: to train from the parent's folder or, with 0 steps, to answer from its own."""
        layout = strategy_of(stage).layout()
        return StageSetup(stage.adapter, stage.training, steps, stage.seed, stage.task, folder, layout)

    def prepare(self, strategy: Strategy, stage: Stage, steps: int, own: Path | None = None) -> None:
        """Give the strategy its context and let it load what it needs.

        own: the folder of the finished stage, at its evaluation.
        """
        if self.make_context:
            folders = self.earlier_folders(stage) if strategy.needs.earlier_stages else {}
            folders |= {stage.task: own} if own else {}
            place = (self.learner, stage, self.tasks, self.store)
            bind_context(strategy, self.make_context(*place, self.on_rank0, folders, steps))
        with torch.no_grad():
            strategy.prepare()

    def earlier_folders(self, stage: Stage) -> dict[str, Path]:
        """The verified folders of the stages before this one, by their task."""
        folders: dict[str, Path] = {}
        parent = stage.parent
        while parent is not None:
            folder = self.open_stage(parent)
            if folder is None:
                raise MissingParentError(
                    f"{stage} reads {parent}, whose files are gone; run the study again to train it anew"
                )
            folders[parent.task] = folder
            parent = parent.parent
        return folders

    def check_weights(self, stage: Stage, strategy: Strategy) -> None:
        """Raise NonFiniteError if the last step, whose loss nobody computes, broke the weights."""
        weights = self.learner.weights()
        if weights.total(torch.stack([(~theta.isfinite()).sum() for theta in weights]).sum()):
            raise self.divergence_error(
                stage,
                f"weights became NaN or infinite in the last step of {stage.task}; "
                f"lower training.learning_rate{hook_checks.other_cause(strategy)}",
            )

    def divergence_error(self, stage: Stage, message: str) -> NonFiniteError:
        """Remove the stage's checkpoint, which would lead to the same error, and make that error."""
        self.on_rank0(checkpoints.remove, self.store, stage)
        return NonFiniteError(message)

    def load_finished(self, stage: Stage) -> None:
        """Load a finished stage into the learner; train it again if its files are gone or damaged."""
        folder = self.open_stage(stage) if stage.trained_tasks else None
        if stage.trained_tasks and folder is None:
            return self.train(stage)
        self.learner.start(self.setup_of(stage, 0, folder))

    def parent_folder(self, stage: Stage) -> Path | None:
        """The verified folder of the parent stage, trained first if it is missing; None without a parent.

        For a strategy that reads earlier stages, all of them are trained first if they are missing.
        """
        if stage.parent is None:
            return None
        parent = later = stage.parent
        while later.parent and strategy_of(stage).needs.earlier_stages:
            self.parent_folder(later)
            later = later.parent
        folder = self.open_stage(parent)
        if folder is None:  # never trained, or damaged and quarantined
            self.train(parent)
            folder = self.open_stage(parent)
        if folder is None:
            raise MissingParentError(
                f"{stage} starts from {parent}, which was just trained, and the store does not return it; "
                f"check that {self.store.url} keeps what is written to it"
            )
        return folder

    def open_stage(self, stage: Stage) -> Path | None:
        """A finished stage's verified folder on each worker's own machine; None on all workers or on none."""
        opened: list[Path | None] = []

        def open_on_rank0() -> bool:
            opened.append(self.store.open(stage))
            return opened[0] is not None

        if not self.on_rank0(open_on_rank0):
            return None
        folder = opened[0] if opened else self.store.open(stage)
        if folder is None:
            # No StageError: the group must end, so that a new one looks at the store again.
            raise RuntimeError(f"{stage}: rank 0 can read the stage's files, this worker cannot")
        return folder

    def publish(self, stage: Stage, strategy: Strategy, loss: dict[str, Any], cost: dict[str, Any]) -> None:
        """Write the trained stage to the store: adapter, strategy state, record."""
        state = facts.flattened(
            {
                name: self.learner.gather_list(value) if isinstance(value, list) else value
                for name, value in hook_checks.state_of(strategy, self.learner.weights()).items()
            }
        )

        def write_files(folder: Path) -> None:
            if stage.trained_tasks:
                self.learner.save(folder / "adapter")
            if state:
                save_file(state, folder / "strategy.safetensors")

        train_sizes = {name: len(self.tasks[name].examples["train"]) for name in stage.earlier}
        record = {
            "trained_task": stage.task,
            "earlier": list(stage.earlier),
            "replayed": stage.replayed_examples(train_sizes),
            "step_cost": stage.step_cost,
            "loss": loss,
            "cost": cost | {"peak_memory_mb": peak_memory_mb()},
            "environment": self.describe_environment(),
            **self.origin,
        }
        if stage.trained_tasks:
            models = {name for name in self.source_hashes if name.startswith("models/")}
            record |= self.hashes_of({f"strategies/{plugins.plugin_name(stage.strategy)}", *models})
            self.learner.gather()
            record["parameters"] = self.learner.parameter_counts()
        self.on_rank0(self.store.publish, stage, record, write_files)
        event_log.log_event("published", stage)
        self.on_rank0(checkpoints.remove, self.store, stage)

    def hashes_of(self, names: set[str]) -> dict[str, Any]:
        """The entry of a record for the plug-ins that made it: their names and source hashes."""
        hashes = {name: self.source_hashes[name] for name in sorted(names & self.source_hashes.keys())}
        return {"code": hashes} if hashes else {}

    # -- mid-stage checkpoints ---------------------------------------------------------------------

    def read_checkpoint(self, stage: Stage) -> StageCheckpoint | None:
        """The stage's mid-stage checkpoint, the same on all ranks; None if there is none."""
        checkpoint = checkpoints.read(self.store, stage)
        losses = checkpoint.losses if checkpoint else []
        losses_on_rank0 = self.on_rank0(list, losses)
        if losses_on_rank0 != losses:
            # No StageError: the group must end, so that a new one looks at the store again.
            raise RuntimeError(
                f"{stage}: this worker sees a checkpoint of {len(losses)} steps, "
                f"rank 0 one of {len(losses_on_rank0)}"
            )
        return checkpoint

    def write_checkpoint_if_due(
        self, stage: Stage, strategy: Strategy, losses: list[float], seconds: float
    ) -> None:
        """Write a mid-stage checkpoint if the policy asks for one now."""
        policy, done = self.checkpoint_policy, len(losses)
        if not policy.enabled:
            return
        decision = self.on_rank0(policy.decide, done)
        if decision == "write" or (decision == "ask" and policy.notice and policy.notice()):
            tensors = self.learner.checkpoint_tensors(strategy.memory)
            memory = checkpoints.plain_values(strategy.memory)
            self.on_rank0(self.try_to_write, stage, StageCheckpoint(losses, seconds, memory, tensors))
            policy.written(done)
            event_log.log_event("checkpoint", stage, step=done)

    def try_to_write(self, stage: Stage, checkpoint: StageCheckpoint) -> None:
        """Write the checkpoint, or warn: the stage can end well without it."""
        try:
            checkpoints.write(self.store, stage, checkpoint)
        except StoreError as error:
            warnings.warn(f"{stage} continues without a checkpoint: {error}", stacklevel=2)

    # -- evaluation --------------------------------------------------------------------------------

    def evaluate(self, stage: Stage, evaluations: Sequence[Evaluation]) -> None:
        """Answer and score the evaluations' examples with the loaded learner; publish the scores together."""
        scores: list[dict[str, Any]] = []
        predictions: list[dict[str, Any]] = []
        route = self.router(stage)
        for evaluation in evaluations:
            start = time.perf_counter()
            task = self.tasks[evaluation.task]
            examples = task.examples[evaluation.split]
            weights = route(examples)
            answers = self.learner.answer(examples, self.max_new_tokens, weights)
            slots = [None] * len(examples) if weights is None else chosen_slots(weights)
            scored = plugins.find("scorers", task.scorer)(answers, examples)
            score = Score(*scored).checked(task.scorer, len(examples))
            scores.append(
                {
                    "evaluation": evaluation.key,
                    "task": evaluation.task,
                    "split": evaluation.split,
                    "score": score.value,
                    "n": len(examples),
                    "seconds": time.perf_counter() - start,
                }
            )
            predictions += [
                {
                    "task": evaluation.task,
                    "split": evaluation.split,
                    "id": example.id,
                    "answer": example.answer,
                    "prediction": answer,
                    "score": value,
                }
                | ({} if slot is None else {"slot": slot})
                for example, answer, value, slot in zip(examples, answers, score.each, slots, strict=True)
            ]

        def write_predictions(folder: Path) -> None:
            table = pyarrow.Table.from_pylist(predictions)
            pyarrow.parquet.write_table(table, folder / "predictions.parquet")

        scorers = {f"scorers/{self.tasks[evaluation.task].scorer}" for evaluation in evaluations}
        origin = {**self.origin, **self.hashes_of(scorers)}
        self.on_rank0(self.store.publish_evaluations, stage, scores, write_predictions, origin)
        event_log.log_event(
            "evaluated", stage, scores={f"{s['task']} {s['split']}": s["score"] for s in scores}
        )

    def router(self, stage: Stage) -> Callable[[Sequence[Example]], torch.Tensor | None]:
        """The route of the stage's strategy; for most it gives None."""
        configured = strategy_of(stage)
        if not uses(configured, "route") or not stage.trained_tasks:
            return lambda examples: None
        strategy, own = fresh_copy(configured), self.open_stage(stage)
        load_state(strategy, own)
        self.prepare(strategy, stage, 0, own)
        return hook_checks.route_hook(strategy, "route", len(stage.earlier) + 1)

    # -- profiling ---------------------------------------------------------------------------------

    def profile(self, item: WorkItem) -> None:
        """Measure set-up, a few steps, a few answers and the adapter's size; publish no stage."""
        stage, start = item.stage, time.perf_counter()
        train = cycle(e for name in stage.trained_tasks for e in self.tasks[name].examples["train"])
        questions = [
            example
            for evaluation in item.evaluations
            for example in self.tasks[evaluation.task].examples[evaluation.split]
        ][:PROFILE_ANSWERS]
        self.profile_round(stage, train, questions)  # discarded: kernels are chosen, memory is allocated
        rounds = [self.profile_round(stage, train, questions) for _ in range(PROFILE_ROUNDS)]
        self.learner.gather()
        steps = PROFILE_STEPS * stage.training.batch_size
        record = {
            "meaning": stage.meaning,
            "setup": [{"n": 1, "seconds": setup} for setup, _, _ in rounds],
            "train": [{"n": steps, "seconds": training} for _, training, _ in rounds],
            "answer": [{"n": len(questions), "seconds": answering} for _, _, answering in rounds],
            "bytes": self.on_rank0(self.adapter_bytes),
            "cost": {"seconds": time.perf_counter() - start},
            **self.origin,
        }
        self.on_rank0(self.store.record_profile, item, record)

    def profile_round(
        self, stage: Stage, train: Iterator[Example], questions: Sequence[Example]
    ) -> tuple[float, float, float]:
        """Seconds for (set-up, PROFILE_STEPS steps of plain fine-tuning, all answers)."""
        times = [time.perf_counter()]
        self.learner.start(StageSetup(stage.adapter, stage.training, PROFILE_STEPS, stage.seed, stage.task))
        times.append(time.perf_counter())
        for step in range(PROFILE_STEPS):
            batch = list(islice(train, stage.training.batch_size))
            self.learner.step(batch, step, Strategy().edit_gradient)
            self.on_step(stage, step + 1, PROFILE_STEPS)
        times.append(time.perf_counter())
        self.learner.answer(questions, self.max_new_tokens)
        times.append(time.perf_counter())
        setup, training, answering = (end - start for start, end in pairwise(times))
        return setup, training, answering

    def adapter_bytes(self) -> int:
        """Size of the adapter as a stage stores it."""
        with TemporaryDirectory() as folder:
            self.learner.save(Path(folder) / "adapter")
            return folder_size(Path(folder))


def chosen_slots(weights: torch.Tensor) -> list[int]:
    """The slot with the largest weight of each example; -1 where all weights are 0: the base model alone.

    >>> chosen_slots(torch.tensor([[0.2, 0.8], [0.0, 0.0]]))
    [1, -1]
    """
    return weights.argmax(1).masked_fill(~weights.any(1), -1).tolist()


def loss_curve(losses: Sequence[float], points: int = CURVE_POINTS) -> list[float]:
    """Mean losses over at most `points` equal spans of a stage's steps, to four digits.

    >>> loss_curve([4.0, 2.0, 1.0, 1.0], points=2)
    [3.0, 1.0]
    """
    count = min(points, len(losses))
    edges = [span * len(losses) // count for span in range(count + 1)] if count else [0]
    spans = [losses[start:end] for start, end in pairwise(edges)]
    return [float(f"{sum(span) / len(span):.4g}") for span in spans]


def peak_memory_mb() -> float:
    """Peak memory of the accelerator since the stage's start, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
