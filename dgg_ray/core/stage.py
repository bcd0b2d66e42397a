"""Stages: the unit of all work, its key, its tree, and the store that keeps it.

    Run    a setting × an order × a seed          →  a path of stages
    Stage  one task of a run, on its parent's end  →  a node of the tree; equal keys are one node
    Exam   one task's split, sat after a stage     →  a cell of a score matrix

A stage's key is a hash of everything that bears on its outcome and of nothing else, so "is it
there already?" answers resuming, sharing between runs, extending and repeating a study alike.
Workers, engines and micro-batches are not in it: they change who computes, not what. (With LoRA
dropout the masks follow how a batch is cut: there the outcome is equal in distribution only.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from dgg_ray.core.hashing import Canonical, canonical, digest
from dgg_ray.core.interfaces import Adapter, Strategy, Training, effect_of
from dgg_ray.core.sources import code_of

HOW = ("micro_batch_size", "gradient_checkpointing")  # fields of Training that change no outcome
ROUNDS, STEPS, ANSWERS = 3, 2, 128  # of a profile: rounds that count; steps and most answers in each
FORMAT = 2  # raised when the same settings would be learned differently than before


@dataclass(frozen=True)
class Data:
    """A task as a key sees it: its name, and per split the content's digest and size."""

    name: str
    digests: dict[str, str]
    sizes: dict[str, int]
    scorer: str


@dataclass(frozen=True)
class Evaluation:
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
    trained_tasks: tuple[str, ...]
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
        if not self.trained_tasks:
            return {"format": FORMAT, "model": self.model, "learns": []}
        adapter, training = of_learning(self.adapter, self.training)
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
        return " + ".join(self.trained_tasks)

    @cached_property
    def earlier(self) -> tuple[str, ...]:
        """Tasks learned before this stage, in their order."""
        return (*self.parent.earlier, *self.parent.trained_tasks) if self.parent else ()

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
class WorkItem:
    """What can be asked for: a stage, and exams to be sat after it.

    profile: Workers.setup on which a few steps and answers of it are timed instead; nothing is learned.
    """

    stage: Stage
    evaluations: tuple[Evaluation, ...] = ()
    profile: str = ""

    @property
    def key(self) -> str:
        """The stage's key, or its profile's."""
        return f"{self.stage.key}-{self.profile}" if self.profile else self.stage.key

    def __str__(self) -> str:
        return f"probe of {self.stage}" if self.profile else str(self.stage)


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


def merged_items(work_items: Iterable[WorkItem]) -> list[WorkItem]:
    """One work for each stage, with all the exams that are asked for of it; in order of first appearance."""
    asked: dict[str, list[WorkItem]] = {}
    for item in {id(item): item for item in work_items}.values():  # runs of many orders hold the very same
        asked.setdefault(item.stage.key, []).append(item)
    return [
        replace(
            some[0],
            evaluations=tuple(dict.fromkeys(evaluation for item in some for evaluation in item.evaluations)),
        )
        if len(some) > 1
        else some[0]
        for some in asked.values()
    ]
