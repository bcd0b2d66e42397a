"""Upper bounds on the bytes that work adds to a store, derived from the adapters that it holds.

    kept bytes         LoRA · copies(strategy)     +  ROW per answer  +  METADATA
    temporary bytes    2 · (4 · adapter + LOSS per step + METADATA)   a mid-stage checkpoint and its successor

These are bounds, not estimates. A LoRA adapter takes c + m·rank bytes on the same layers, so an adapter of
rank r₀ with b₀ bytes bounds every other: b(r) ≤ b₀ · max(1, r/r₀). One of rank r itself, as a profile
leaves it, gives the exact size. A mid-stage checkpoint (checkpoints.py) holds four values for each weight:
the weight, AdamW's two running averages, and a strategy's anchor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dgg_ray.core.stage import Evaluation, Stage, WorkItem, hashed_settings, merged_items
from dgg_ray.core.strategy import Strategy
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study

CHECKPOINT = 4  # values for each weight in a mid-stage checkpoint
LOSS = 24  # bytes of a number in a checkpoint's header
STATE = 2  # values for each weight that a strategy may hand on: an anchor and its importance, say
ROW, TOKEN = 1024, 8  # bytes of an answer: its reference and name; each token that it may have
METADATA = 65_536  # bytes of a stage or an evaluation: record, checksums, adapter's description, a failure
Layers: TypeAlias = tuple[str, str, bool]  # the model, the adapter's layers, whether the projector is trained


class DiskUsage(NamedTuple):
    """The bytes in a store; limit: the study's, in bytes, None without one."""

    bytes: int
    limit: float | None

    def __str__(self) -> str:
        return f"{self.bytes / 1e9:.3g} GB" + (f" of {self.limit / 1e9:g} GB" if self.limit else "")


def disk_usage(study: Study, store: StageStore) -> DiskUsage:
    """Return what the store holds, with what other studies put there, and the study's limit."""
    gigabytes = study.budget.disk_gb if study.budget else None
    return DiskUsage(store.size(), gigabytes and gigabytes * 1e9)


class DiskModel:
    """Bounds on the bytes of work items, from the adapters that the store held when it was read.

    evaluated: keys of the stored evaluations, by stage key.
    started: whether the store holds a stage of the study.
    without_adapter: keys of stages whose adapters were removed; they are trained again when a stage starts
        from them.
    """

    def __init__(self, study: Study, store: StageStore) -> None:
        self.study, self.store = study.name, store
        self.row_bytes = ROW + TOKEN * study.protocol.max_new_tokens
        self.sizes = {name: data.sizes for name, data in study.data.tasks.items()}
        self.read()

    def read(self) -> None:
        """Read the store anew."""
        self.adapters: dict[Layers, dict[int, int]] = {}  # bytes by rank
        self.evaluated: dict[str, set[str]] = {}
        self.without_adapter = self.store.stages_without_adapter()
        self.started = False
        self.add(self.read_profiles())
        for record, evaluations in self.store.finished():
            entries = (entry for evaluation in evaluations for entry in evaluation["scores"])
            self.evaluated[record["key"]] = {entry["evaluation"] for entry in entries}
            self.started |= record.get("study") == self.study
            self.add([(record["meaning"], record["bytes"])])

    def read_profiles(self) -> list[tuple[Mapping[str, Any], int]]:
        """Return the meanings and bytes of profiled adapters; changes nothing, so any thread may call it."""
        return [(record["meaning"], record["bytes"]) for record in self.store.profiles()]

    def add(self, adapters: Iterable[tuple[Mapping[str, Any], int]]) -> None:
        """Take in stages' meanings with the bytes of their adapters."""
        for meaning, size in adapters:
            # Layouts other than plain LoRA store several LoRAs, of which each counts for itself.
            if meaning["learns"] and "adapter" not in meaning["effect"]:
                by_rank, rank = self.adapters.setdefault(layers_of(meaning), {}), meaning["adapter"]["rank"]
                by_rank[rank] = max(by_rank.get(rank, 0), size)

    def mark_finished(self, item: WorkItem) -> None:
        """Count an item as stored."""
        if not item.profile:
            evaluations = self.evaluated.setdefault(item.stage.key, set())
            evaluations.update(evaluation.key for evaluation in item.evaluations)

    # -- one item ----------------------------------------------------------------------------------

    def adapter_bytes(self, stage: Stage) -> float | None:
        """Bound the bytes of the stage's adapter; None where no adapter on the same layers is known."""
        if not stage.trained_tasks:
            return 0.0
        adapter, training = hashed_settings(stage.adapter, stage.training)
        layers = layers_of({"model": stage.model, "adapter": adapter, "training": training})
        known, rank = self.adapters.get(layers, {}), stage.adapter.rank
        return min((size * max(1.0, rank / other) for other, size in known.items()), default=None)

    def missing_evaluations(self, item: WorkItem) -> list[Evaluation]:
        stored = self.evaluated.get(item.stage.key, ())
        return [evaluation for evaluation in item.evaluations if evaluation.key not in stored]

    def trains(self, item: WorkItem) -> bool:
        """Return whether the item's stage must be trained."""
        key = item.stage.key
        if key not in self.evaluated:
            return True
        return key in self.without_adapter and bool(self.missing_evaluations(item))

    def added_bytes(self, item: WorkItem) -> float | None:
        """Bound the bytes that the item adds to the store; None where they are unknown."""
        if item.profile or self.trains(item):
            return self.item_bytes(item)
        return self.evaluation_bytes(self.missing_evaluations(item))

    def item_bytes(self, item: WorkItem) -> float | None:
        """Bound the bytes of the whole item and of the stages trained again for it; None where unknown."""
        if item.profile:
            return METADATA
        stage = item.stage
        adapter, again = self.adapter_bytes(stage), 0.0
        if stage.parent and stage.parent.key in self.without_adapter:
            again = self.item_bytes(WorkItem(stage.parent))
        if adapter is None or again is None:
            return None
        has_state = type(stage.strategy).state is not Strategy.state
        layout = stage.strategy.layout()
        copies = layout.stored_copies(len(stage.earlier)) if layout else 1
        copies += stage.strategy.needs.fact_values + (STATE if has_state else 0)
        return adapter * copies + METADATA + self.evaluation_bytes(item.evaluations) + again

    def evaluation_bytes(self, evaluations: Sequence[Evaluation]) -> float:
        answers = sum(self.sizes[evaluation.task][evaluation.split] for evaluation in evaluations)
        return answers * self.row_bytes + (METADATA if evaluations else 0)

    def temporary_bytes(self, item: WorkItem) -> float:
        """Bound the bytes that the item needs only while it is being trained."""
        if item.profile or not self.trains(item):
            return 0.0
        stage = item.stage
        examples = sum(self.sizes[name]["train"] for name in (*stage.trained_tasks, *stage.earlier))
        steps = stage.training.epochs * examples / stage.training.batch_size
        return 2 * (CHECKPOINT * (self.adapter_bytes(stage) or 0.0) + LOSS * steps + METADATA)

    # -- several items -----------------------------------------------------------------------------

    def concurrent_bytes(self, work_items: Iterable[WorkItem]) -> float | None:
        """Bound the bytes of items that are done at the same time; None where they are unknown."""
        work_items = merged_items(work_items)
        temporary = sum(self.temporary_bytes(item) for item in work_items)
        return self._added_with(work_items, temporary)

    def sequential_bytes(self, work_items: Iterable[WorkItem]) -> float | None:
        """Bound the bytes of items that are done one after another; None where they are unknown."""
        work_items = merged_items(work_items)
        temporary = max((self.temporary_bytes(item) for item in work_items), default=0.0)
        return self._added_with(work_items, temporary)

    def _added_with(self, work_items: Sequence[WorkItem], temporary: float) -> float | None:
        added = [self.added_bytes(item) for item in work_items]
        known = [size for size in added if size is not None]
        return sum(known) + temporary if len(known) == len(added) else None


def layers_of(meaning: Mapping[str, Any]) -> Layers:
    """Return what, beside the rank, an adapter's size depends on."""
    targets = json.dumps(meaning["adapter"]["targets"])
    return meaning["model"], targets, "projector_learning_rate" in meaning["training"]
