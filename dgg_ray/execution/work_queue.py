"""The work queue: which work items are requested, which worker group has which, and which were lost.

    request(item)           → "stored": the store has it;  "joined": it is queued already;  "queued";  …
    dequeue(group)          → the work item that has waited longest, assigned to the group
    finish(group, result)   → the entry is closed

This is bookkeeping alone: no Ray, no threads, no waiting. The queue can be lost at any time, because the
store is the truth and everyone who still needs a work item requests it again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from dgg_ray.core.errors import error_record
from dgg_ray.core.stage import Evaluation, WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.storage.stage_store import StageStore

MAX_OUTAGES = 5  # in a row, nothing finished between them: they will not pass
OUTAGE_S = 60.0  # failures closer together than this belong to one outage
PROGRESS_SHARE = 0.05  # of a stage's steps: a loss after so much new progress is not the stage's fault

ItemState = Literal["stored", "failed", "queued", "joined", "over budget"]


class ItemResult(NamedTuple):
    """The end of a work item in a worker group.

    key: the item's. trained: whether its stage was trained, not only evaluated or profiled.
    seconds: spent on it by the group; None counts from the assignment.
    """

    key: str
    trained: bool
    error: dict[str, str] | None = None
    seconds: float | None = None


@dataclass
class QueueEntry:
    """A requested work item, from the first request until it is stored or has failed.

    requested: the item of the first request; evaluations: those of all requests.
    awaits_budget: it may start once running stages have ended and their actual cost is known.
    leased_by: the other driver that has it; empty for none.
    losses: worker groups that died while they had it.
    furthest_step: the latest step that any of these groups reached.
    steps: (done, total) in the group that has it now.
    abandoned: nobody requests it any more; it is finished by the group that has it, and by no other.
    """

    requested: WorkItem
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    awaits_budget: bool = False
    leased_by: str = ""
    group: str | None = None
    losses: int = 0
    furthest_step: int = 0
    started: float = 0.0
    steps: tuple[int, int] = (0, 0)
    abandoned: bool = False

    @property
    def item(self) -> WorkItem:
        return replace(self.requested, evaluations=tuple(self.evaluations.values()))

    @property
    def available(self) -> bool:
        return self.group is None and not self.leased_by

    def group_lost(self, blamed: bool = True) -> None:
        """Record that the group died; a stage that gets further with each group is not the cause."""
        done, total = self.steps
        if blamed and done <= self.furthest_step + PROGRESS_SHARE * total:
            self.losses += 1
        self.group, self.furthest_step, self.steps = None, max(self.furthest_step, done), (0, 0)


class OutageCounter:
    """Counts outages in a row, such as a full disk: failures that are no stage's fault."""

    def __init__(self) -> None:
        self.count, self.last_counted = 0, -OUTAGE_S

    def record_failure(self) -> None:
        """Count an outage, unless the failure belongs to the one that was counted last."""
        now = time.monotonic()
        if now - self.last_counted >= OUTAGE_S:
            self.count, self.last_counted = self.count + 1, now

    def reset(self) -> None:
        """A work item was finished: the next outage is the first again."""
        self.count = 0

    @property
    def should_give_up(self) -> bool:
        return self.count >= MAX_OUTAGES


class WorkQueue:
    """Requested work items in the order of their first requests.

    may_read: whether the budget may read the store here; otherwise the caller measures beforehand.
    """

    def __init__(
        self,
        store: StageStore,
        max_retries: int = 2,
        budget: BudgetTracker | None = None,
        may_read: bool = True,
    ) -> None:
        self.store, self.max_retries, self.may_read = store, max_retries, may_read
        self.budget = budget or BudgetTracker()
        self.budget.reload()
        self.entries: dict[str, QueueEntry] = {}  # by item key; dicts keep the order of requests
        self.assigned: dict[str, QueueEntry] = {}  # the subset that worker groups have
        self.late_evaluations: dict[
            str, dict[str, Evaluation]
        ] = {}  # requested while their stage was assigned
        self.failed: dict[str, dict[str, str]] = {}  # not tried twice in one run
        self.refused: dict[str, dict[str, str]] = {}  # by `dequeue`, until the broker answers them
        self.any_awaits_budget = False
        self.counts: Counter[str] = Counter()
        self.on_time_spent: Callable[[WorkItem, float], None] = lambda item, seconds: None

    def request(self, item: WorkItem) -> ItemState:
        """Queue a work item unless it is stored, queued already, failed or over the budget."""
        return self.known_state(item) or self.enqueue(item, self.store.has(item))

    def known_state(self, item: WorkItem) -> ItemState | None:
        """`failed` or `joined`; None where the store has to be asked."""
        if item.key in self.failed:
            return "failed"
        if (entry := self.entries.get(item.key)) is None:
            return None
        requested = {evaluation.key: evaluation for evaluation in item.evaluations}
        entry.abandoned = False
        if entry.group is None:
            entry.evaluations |= requested
        elif not requested.keys() <= entry.evaluations.keys():
            self.late_evaluations.setdefault(item.key, {}).update(requested)
        return "joined"

    def enqueue(self, item: WorkItem, stored: bool) -> ItemState:
        """Queue a work item unless the store has it, or another request came while the store was read."""
        if stored:
            return "stored"
        if state := self.known_state(item):
            return state
        if self.budget.decide(item, self.running, self.may_read) == "reject":
            return "over budget"
        evaluations = {evaluation.key: evaluation for evaluation in item.evaluations}
        self.entries[item.key] = QueueEntry(item, evaluations)
        return "queued"

    def dequeue(self, group: str) -> WorkItem | None:
        """Assign the item that has waited longest; None where none is available or the budget makes it wait.

        Items that no longer fit the budget are moved to `refused`.
        """
        while (entry := self.next_entry) is not None:
            key, decision = entry.requested.key, self.budget.decide(entry.item, self.running, self.may_read)
            if decision == "admit":
                self.assign(key, group)
                return entry.item
            if decision == "wait":
                entry.awaits_budget = self.any_awaits_budget = True
                return None
            self.refused[key] = error_record(self.budget.refusal(entry.item))
            del self.entries[key]
        return None

    @property
    def next_entry(self) -> QueueEntry | None:
        """The entry that the next group gets if the budget allows it."""
        return next((entry for entry in self.entries.values() if entry.available), None)

    def assign(self, key: str, group: str) -> None:
        entry = self.assigned[key] = self.entries[key]
        entry.group, entry.leased_by, entry.started, entry.steps = group, "", time.time(), (0, 0)

    def heartbeat(self, group: str, key: str, steps: tuple[int, int]) -> None:
        """Record a group's progress; after a restart of the broker this tells which item it has."""
        if (entry := self.entries.get(key)) is None:
            return
        if entry.group is None:
            self.assign(key, group)
        if entry.group == group:
            entry.steps = steps

    def keys_of(self, group: str) -> list[str]:
        """Keys of the items that the group has: one, or a second after a delayed heartbeat."""
        return [key for key, entry in self.assigned.items() if entry.group == group]

    def requeue(self, key: str, leased_by: str = "") -> None:
        """Return an item that was not started; leased_by: the other driver that has it."""
        self.assigned.pop(key, None)
        if entry := self.entries.get(key):
            entry.group, entry.leased_by = None, leased_by
            if entry.abandoned:
                del self.entries[key]

    def drop_requests(self) -> list[str]:
        """Forget all requests; return the keys of the items that leave the queue: all that no group has."""
        dropped = [key for key, entry in self.entries.items() if entry.group is None]
        for key in dropped:
            del self.entries[key]
        for entry in self.entries.values():
            entry.abandoned = True
        self.late_evaluations.clear()
        return dropped

    def remove_stored(self, key: str) -> None:
        """Close an entry that another driver has finished."""
        self.late_evaluations.pop(key, None)
        del self.entries[key]

    def finish(
        self,
        group: str,
        result: ItemResult,
        readings: Sequence[Any] | None = None,
        unreadable: bool = False,
    ) -> bool:
        """Close the entry; False where evaluations requested meanwhile put the item back into the queue.

        readings: what the budget read of the item in the store, if it was read beforehand.
        unreadable: the store could not be read, so that the time counts as lost.
        """
        entry = self.assigned.get(result.key)
        if entry is None or entry.group != group:
            return True  # the group was believed lost; the store has the result all the same
        del self.entries[result.key], self.assigned[result.key]
        seconds = time.time() - entry.started if result.seconds is None else result.seconds
        self._charge(entry, seconds, result.error is not None or unreadable, readings)
        self.counts["trained"] += result.trained
        late = self.late_evaluations.pop(result.key, None)
        if result.error:
            self.fail(result.key, result.error)
        elif late:
            self.entries[result.key] = QueueEntry(entry.requested, late)
            return False
        return True

    def fail(self, key: str, error: dict[str, str]) -> None:
        self.failed[key] = error
        self.counts["failed"] += 1

    def group_lost(self, group: str, blamed: bool = True) -> list[WorkItem]:
        """Requeue the group's items; return those that are given up because too many groups died with them.

        blamed: whether the item may be the cause.
        """
        given_up: list[WorkItem] = []
        keys = self.keys_of(group)
        for key in keys:
            entry = self.assigned.pop(key)
            self._charge(entry, time.time() - entry.started, in_vain=True)
            entry.group_lost(blamed and len(keys) == 1)
            self.counts["lost"] += 1
            if entry.losses > self.max_retries:
                given_up.append(entry.item)
            if entry.losses > self.max_retries or entry.abandoned:
                del self.entries[key]
        return given_up

    def _charge(
        self, entry: QueueEntry, seconds: float, in_vain: bool, readings: Sequence[Any] | None = None
    ) -> None:
        """Tell the budget how long an item took; items that wait for the budget may then start."""
        self.on_time_spent(entry.requested, seconds)
        if in_vain:
            self.budget.record_loss(seconds)
        else:
            self.budget.record_finished(entry.item, readings)
        if self.any_awaits_budget:
            for other in self.entries.values():
                other.awaits_budget = False
            self.any_awaits_budget = False

    @property
    def waiting(self) -> int:
        """Number of items that a group could start now."""
        return sum(entry.available and not entry.awaits_budget for entry in self.entries.values())

    @property
    def leased_elsewhere(self) -> list[WorkItem]:
        """Items that other drivers have."""
        return [entry.item for entry in self.entries.values() if entry.leased_by]

    @property
    def running(self) -> Iterator[WorkItem]:
        """Items that worker groups have; lazy, because most budgets do not ask."""
        return (entry.item for entry in self.assigned.values())

    def status(self) -> dict[str, Any]:
        """Counts, and the stages in training: `{stage, group, steps}` each."""
        running = [
            {"stage": str(entry.requested), "group": entry.group, "steps": entry.steps}
            for entry in self.assigned.values()
        ]
        return {
            **self.counts,
            "waiting": self.waiting,
            "running": running,
        }
