"""The most that work will add to a store, in bytes, from what is in it: no estimate but a bound.

    left behind     adapter · copies(strategy)  +  ROW each answer  +  PAPERS
    in its middle   2 · 4 · adapter + 2 · LOSS each step       a snapshot, and the next one beside it

A LoRA adapter's bytes are c + m·rank on the same layers, so one of rank r₀ and b₀ bytes bounds every other:
b(r) ≤ b₀ · max(1, r/r₀); with one of rank r itself, as a profile leaves, it is known exactly. A snapshot
(checkpoints.py) holds four values for each weight: itself, AdamW's two moments, and a strategy's anchor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dgg_ray.core.interfaces import Strategy
from dgg_ray.core.stage import Evaluation, Stage, WorkItem, merged_items, of_learning
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study

SNAPSHOT = 4  # values for each weight
LOSS = 24  # bytes of a number in a snapshot's header
STATE = 2  # values for each weight that a strategy may hand on: an anchor and its importance, say
ROW, TOKEN = 1024, 8  # bytes of an answer: its reference and name; each token that it may have
PAPERS = 65_536  # of a stage or a sitting: record, checksums, adapter's description, a failure
Kind: TypeAlias = tuple[str, str, bool]  # what a rank means: the model, the layers, whether the projector too


class Held(NamedTuple):
    """cap: in bytes; None without one."""

    bytes: int
    cap: float | None

    def __str__(self) -> str:
        return f"{self.bytes / 1e9:.3g} GB" + (f" of {self.cap / 1e9:g} GB" if self.cap else "")


def held(study: Study, store: StageStore) -> Held:
    """What the store holds, beside what it may."""
    cap = study.budget.disk_gb if study.budget else None
    return Held(store.size(), cap and cap * 1e9)


class Sizes:
    """Sizes of adapters by rank, as far as a store knew them when it was read; it is not asked again.

    sat: keys of the exams that were sat, by the key of their stage; begun: whether one is of the study.
    shed: keys of stages without their adapters, which are learned again when they are started from.
    """

    def __init__(self, study: Study, store: StageStore) -> None:
        self.name, self.store = study.name, store
        self.row = ROW + TOKEN * study.protocol.max_new_tokens
        self.sizes = {name: data.sizes for name, data in study.tasks.items()}
        self.read()

    def read(self) -> None:
        self.known: dict[Kind, dict[int, int]] = {}
        self.sat: dict[str, set[str]] = {}
        self.shed = {name.rpartition("/")[2] for name, _ in self.store.notes("shed/")}
        self.begun = False
        self.learn(self.probed())
        for record, sittings in self.store.finished():
            self.sat[record["key"]] = {
                cell["evaluation"] for sitting in sittings for cell in sitting["cells"]
            }
            self.begun |= record.get("study") == self.name
            self.add(record["meaning"], record["bytes"])

    def probed(self) -> list[tuple[Mapping[str, Any], int]]:
        """What profiles tell of adapters; changes nothing here, so that any thread may ask."""
        return [(record["meaning"], record["bytes"]) for record in self.store.profiles()]

    def learn(self, adapters: Iterable[tuple[Mapping[str, Any], int]]) -> None:
        for meaning, size in adapters:
            self.add(meaning, size)

    def add(self, meaning: Mapping[str, Any], size: int) -> None:
        if meaning["learns"]:
            of, rank = self.known.setdefault(kind(meaning), {}), meaning["adapter"]["rank"]
            of[rank] = max(of.get(rank, 0), size)

    def adapter(self, stage: Stage) -> float | None:
        """Most bytes of the stage's adapter; None where none on the same layers is known."""
        if not stage.trained_tasks:
            return 0.0
        adapter, training = of_learning(stage.adapter, stage.training)
        known = self.known.get(kind({"model": stage.model, "adapter": adapter, "training": training}), {})
        rank = stage.adapter.rank
        return min((size * max(1.0, rank / other) for other, size in known.items()), default=None)

    def left(self, item: WorkItem) -> float | None:
        """Most bytes that the work leaves behind, of what the store does not hold yet; None: not known."""
        return (
            self.whole(item) if item.profile or self.trained_tasks(item) else self.sitting(self.missing(item))
        )

    def missing(self, item: WorkItem) -> list[Evaluation]:
        return [
            evaluation
            for evaluation in item.evaluations
            if evaluation.key not in self.sat.get(item.stage.key, ())
        ]

    def trained_tasks(self, item: WorkItem) -> bool:
        """Whether the stage itself is learned for it."""
        key = item.stage.key
        return key not in self.sat or (key in self.shed and bool(self.missing(item)))

    def finished(self, item: WorkItem) -> None:
        """It is in the store now."""
        if not item.profile:
            self.sat.setdefault(item.stage.key, set()).update(
                evaluation.key for evaluation in item.evaluations
            )

    def whole(self, item: WorkItem) -> float | None:
        """Most bytes of all of it, and of what is learned again before; None: not known."""
        if item.profile:
            return PAPERS
        stage = item.stage
        adapter, hands_on = self.adapter(stage), type(stage.strategy).state is not Strategy.state
        again = self.whole(WorkItem(stage.parent)) if stage.parent and stage.parent.key in self.shed else 0.0
        if adapter is None or again is None:
            return None
        return adapter * (1 + STATE * hands_on) + PAPERS + self.sitting(item.evaluations) + again

    def sitting(self, evaluations: Sequence[Evaluation]) -> float:
        answers = sum(self.sizes[evaluation.task][evaluation.split] for evaluation in evaluations)
        return answers * self.row + PAPERS * bool(evaluations)

    def inside(self, item: WorkItem) -> float:
        """Most bytes that it needs beside these while it is being learned."""
        if item.profile or not self.trained_tasks(item):
            return 0.0
        stage = item.stage
        count = sum(self.sizes[name]["train"] for name in (*stage.trained_tasks, *stage.earlier))
        steps = stage.training.epochs * count / stage.training.batch_size
        return 2 * (SNAPSHOT * (self.adapter(stage) or 0.0) + LOSS * steps + PAPERS)

    def together(self, work_items: Iterable[WorkItem]) -> float | None:
        """All of them at the same time; None where that is not known."""
        work_items = merged_items(work_items)
        left = [self.left(item) for item in work_items]
        return None if None in left else sum(filter(None, left)) + sum(map(self.inside, work_items))

    def in_turn(self, work_items: Iterable[WorkItem]) -> float | None:
        """One after another."""
        work_items = merged_items(work_items)
        left = [self.left(item) for item in work_items]
        most = max(map(self.inside, work_items), default=0.0)
        return None if None in left else sum(filter(None, left)) + most


def kind(meaning: Mapping[str, Any]) -> Kind:
    layers = json.dumps(meaning["adapter"]["targets"])
    return meaning["model"], layers, "projector_learning_rate" in meaning["training"]
