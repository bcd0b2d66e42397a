"""The nouns of training: run, stage, evaluation and work item, and the stage key.

    Run         a setting × an order × a seed: a path of stages
    Stage       one task of a run, trained from its parent stage's end state: a node of the stage tree
    Evaluation  one task's split, answered and scored after a stage: an entry of a score matrix
    WorkItem    a stage and the evaluations requested after it

A stage's key is a hash of everything that bears on its outcome and of nothing else. Stages with equal keys
are one node. So one question, "is the stage stored already?", covers resuming, sharing between runs,
extending and repeating a study. Workers, engines and micro-batches are not in the key: they change where the
stage is computed, not the outcome. (With LoRA dropout, the masks depend on how a batch is split; then the
outcome is equal only in distribution.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from dgg_ray.core.hashing import Canonical, canonical, digest
from dgg_ray.core.interfaces import Adapter, Training
from dgg_ray.core.sources import source_digest
from dgg_ray.core.strategy import Strategy, effect_of, plain_first

NO_EFFECT = (
    "micro_batch_size",
    "gradient_checkpointing",
)  # fields of Training that do not change the outcome
PROFILE_ROUNDS = 3  # measured rounds of a profile
PROFILE_STEPS, PROFILE_ANSWERS = 2, 128  # training steps, and the most answers, in each round
FORMAT = 2  # raise when the same settings would train another state than before


@dataclass(frozen=True)
class TaskData:
    """A task's data as a stage key sees it: the name, and each split's content digest and size."""

    name: str
    digests: dict[str, str]
    sizes: dict[str, int]
    scorer: str


@dataclass(frozen=True)
class Evaluation:
    """One task's split to be scored.

    key: of the split's content, the scorer and the answers' longest length; the stage is not in it.
    """

    task: str
    split: str
    key: str


@dataclass(frozen=True)
class Stage:
    """One task, trained from the state that the parent stage left.

    model: fingerprint of the base model.
    trained_tasks: names of the trained tasks: one; several at once (joint); none for the untouched model.
    data: digests of their training splits, in the same order.
    parent: None where the stage starts from a fresh adapter.
    code: digest of the strategy's source if it differs from the shipped one (sources.py). None stands for the
        digest in this process.
    """

    model: str
    adapter: Adapter
    training: Training
    strategy: Strategy
    seed: int
    trained_tasks: tuple[str, ...]
    data: tuple[str, ...]
    parent: Stage | None = None
    code: str | None = None

    @cached_property
    def key(self) -> str:
        """The stage key, 64 hex digits."""
        return digest(self.meaning)

    @property
    def meaning(self) -> dict[str, Any]:
        """Everything that bears on the outcome, as JSON. Its words are part of the key."""
        if not self.trained_tasks:
            return {"format": FORMAT, "model": self.model, "learns": []}
        adapter, training = hashed_settings(self.adapter, self.training)
        return {
            "format": FORMAT,
            "model": self.model,
            "adapter": adapter,
            "training": training,
            "effect": self.effect,
            "seed": self.seed,
            "learns": list(zip(self.trained_tasks, self.data, strict=True)),
            "parent": self.parent.key if self.parent else None,
        }

    @cached_property
    def effect(self) -> dict[str, Any]:
        """The strategy's part of the key, as JSON: what it adds to plain fine-tuning."""
        code = source_digest(type(self.strategy)) if self.code is None else self.code
        return effect_of(self.strategy, self.task, self.earlier, code)

    def replayed_examples(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Count the examples of earlier tasks that the stage trains on, by task.

        sizes: number of training examples of each task of the study.
        """
        return self.strategy.replayed_examples({name: sizes[name] for name in self.earlier})

    @property
    def step_cost(self) -> float:
        """Time of a training step in units of plain fine-tuning's, as the strategy declares it."""
        return 1.0 if plain_first(self.strategy, self.earlier) else self.strategy.needs.step_cost

    @property
    def task(self) -> str:
        """The trained tasks as one name, for random draws and the run table."""
        return " + ".join(self.trained_tasks)

    @cached_property
    def earlier(self) -> tuple[str, ...]:
        """Tasks trained before this stage, in their order."""
        return (*self.parent.earlier, *self.parent.trained_tasks) if self.parent else ()

    def __str__(self) -> str:
        return f"{self.key[:8]} ({' > '.join((*self.earlier, self.task)) or 'untouched model'})"


@lru_cache(maxsize=256)
def hashed_settings(adapter: Adapter, training: Training) -> tuple[Canonical, Canonical]:
    """Return the settings of adapter and training that bear on the outcome, as canonical JSON.

    The cache serves thousands of stages with the same settings.
    """
    adapter_settings = asdict(replace(adapter, alpha=adapter.alpha or 2.0 * adapter.rank))
    del adapter_settings["budget"]  # it is in the rank
    training_settings = {k: v for k, v in asdict(training).items() if k not in NO_EFFECT and v is not None}
    return Canonical(canonical(adapter_settings)), Canonical(canonical(training_settings))


@dataclass(frozen=True)
class WorkItem:
    """A unit of requested work: a stage to train, and the evaluations after it.

    profile: if set, a few steps and answers are timed instead, and nothing is trained. It names the workers'
        setup (`Workers.setup`) that is measured.
    """

    stage: Stage
    evaluations: tuple[Evaluation, ...] = ()
    profile: str = ""

    @property
    def key(self) -> str:
        """The stage's key, or its profile's."""
        return f"{self.stage.key}-{self.profile}" if self.profile else self.stage.key

    def __str__(self) -> str:
        return f"profile of {self.stage}" if self.profile else str(self.stage)


@dataclass(frozen=True)
class Run:
    """A setting × an order × a seed. setting: its id, 8 hex digits."""

    setting: str
    order: tuple[str, ...]
    seed: int
    stages: tuple[Stage, ...]


def untouched_stage(model: str) -> Stage:
    """Return the stage that stands for the base model, before any training."""
    return Stage(model, Adapter(), Training(), Strategy(), 0, (), ())


@dataclass(frozen=True)
class StageSettings:
    """The settings that all stages of a run share; see `Stage`."""

    model: str
    adapter: Adapter
    training: Training
    strategy: Strategy
    seed: int
    code: str | None = None

    def stage(self, tasks: Sequence[TaskData], parent: Stage | None = None) -> Stage:
        """Return the stage that trains these tasks from the parent's end state."""
        names, digests = tuple(task.name for task in tasks), tuple(task.digests["train"] for task in tasks)
        shared = (self.model, self.adapter, self.training, self.strategy, self.seed)
        return Stage(*shared, names, digests, parent, self.code)


def stages_of_run(
    settings: StageSettings, order: Sequence[TaskData], known: dict[tuple[str, ...], Stage] | None = None
) -> tuple[Stage, ...]:
    """Return the stages of one run, first to last; a simultaneous strategy has one stage of all tasks.

    known: stages of other runs with the same settings, by the tasks trained so far. They are reused, and new
        stages are added. So a beginning that runs share is built, and its key computed, once.
    """
    known = {} if known is None else known
    if settings.strategy.simultaneous:
        tasks = sorted(order, key=lambda task: task.name)  # by name, so that all orders share the stage
        names = tuple(task.name for task in tasks)
        if names not in known:
            known[names] = settings.stage(tasks)
        return (known[names],)
    stages: list[Stage] = []
    names = ()
    for task in order:
        names = (*names, task.name)
        if names not in known:
            known[names] = settings.stage([task], stages[-1] if stages else None)
        stages.append(known[names])
    return tuple(stages)


def distinct_stages(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Return the nodes of the stage tree: one stage for each key, in order of first appearance."""
    return {stage.key: stage for stage in stages}


def merged_items(work_items: Iterable[WorkItem]) -> list[WorkItem]:
    """Return one work item for each stage, with all evaluations after it, in order of first appearance."""
    by_stage: dict[str, list[WorkItem]] = {}
    for item in {id(item): item for item in work_items}.values():  # runs of many orders hold the same objects
        by_stage.setdefault(item.stage.key, []).append(item)
    return [items[0] if len(items) == 1 else _merge(items) for items in by_stage.values()]


def _merge(items: Sequence[WorkItem]) -> WorkItem:
    evaluations = dict.fromkeys(evaluation for item in items for evaluation in item.evaluations)
    return replace(items[0], evaluations=tuple(evaluations))
