"""A study's budget: hard limits, enforced by one rule on worker groups and on a single process alike.

A work item is admitted if, for every limit,

    spent + reserved + the most that it and the running items are predicted to take  ≤  limit

Hours and money. Spent is what the store records of the study's own training, evaluations and profiles, plus
what this run lost to failures and lost machines. The most is the upper end of model.py's 95 % interval. Not
counted are the losses of earlier runs and what worker groups do besides: start, load the model, wait for
work.

Disk. Spent is everything in the store, and the most is disk.py's bound. Of several drivers on one store, each
knows of the others' work only what is on the disk already.

While a search goes on, the most that the final comparison can take, at the most expensive corner of the
search space, is kept back for it.

A run with a budget profiles first, so that all of this is known. A profile must fit as any item must, but
nothing is reserved beside it, because it is what tells the comparison's cost. Where nothing was measured,
the first profile starts alone while anything is left (or the first stage, if the profiles failed). That one
item may exceed the limit, and nothing starts after it.

Methods that read the store change nothing (`read_item`, `measure_usage`); methods that take readings in read
nothing (`record_finished`, `set_usage`). So a process that must not wait for the store reads in a thread.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dgg_ray.core.errors import Fault, OverBudgetError, StudyError
from dgg_ray.core.phrases import join_names
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.disk import DiskModel
from dgg_ray.cost.model import PROFILE, CostModel, unit_rates
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study

Decision = Literal["admit", "wait", "reject"]
STRICTEST_FIRST: tuple[Decision, ...] = ("reject", "wait", "admit")
UNITS = {"gpu_hours": "GPU-hours", "worker_hours": "worker-hours", "money": "money"}
MEASURE_S = 60.0  # at least so many seconds between two measurements of the store's size
MEASURE_SHARE = 0.05  # at most this share of the time goes into them


class BudgetTracker:
    """The limits of a study; without limits every work item is admitted."""

    def __init__(self, limits: Sequence[Limit] = (), study: str = "") -> None:
        self.limits, self.study = limits, study

    def reload(self) -> None:
        """Read the store anew: a restarted broker gets the tracker as it once was."""
        for limit in self.limits:
            limit.reload()

    def decide(self, item: WorkItem, running: Iterable[WorkItem] = (), may_read: bool = True) -> Decision:
        """Admit the item beside the running ones, let it wait until one of them has ended, or reject it.

        may_read: whether the store may be read, where what is known of it is outdated.
        """
        if not self.limits:  # then nobody computes what is running
            return "admit"
        running = list(running)
        decisions: list[Decision] = [limit.decide(item, running, may_read) for limit in self.limits]
        return min(decisions, key=STRICTEST_FIRST.index)

    def outdated_limits(self, item: WorkItem, running: Iterable[WorkItem] = ()) -> list[DiskLimit]:
        """Return the limits whose usage should be measured before they decide."""
        if not self.limits:
            return []
        running = list(running)
        disk = [limit for limit in self.limits if isinstance(limit, DiskLimit)]
        return [limit for limit in disk if limit.is_outdated(item, running)]

    def refusal(self, item: WorkItem) -> OverBudgetError:
        """Explain why the item was not started, by the first limit that rejects it."""
        rejecting = (limit for limit in self.limits if limit.decide(item, may_read=False) == "reject")
        return next(rejecting, self.limits[0]).refusal(item)

    def read_item(self, item: WorkItem) -> list[Any]:
        """Read for each limit what the store records of an item that was just done."""
        return [limit.read_item(item) for limit in self.limits]

    def record_finished(self, item: WorkItem, readings: Sequence[Any] | None = None) -> None:
        """Count an item as done; its readings are taken from the store unless they are given."""
        readings = self.read_item(item) if readings is None else readings
        for limit, reading in zip(self.limits, readings, strict=True):
            limit.record_finished(item, reading)

    def record_loss(self, seconds: float) -> None:
        """Count seconds that a worker group worked for nothing."""
        for limit in self.limits:
            limit.record_loss(seconds)

    def take_losses(self, other: BudgetTracker) -> None:
        """Count what another tracker of the same run counted as lost, too."""
        for limit in self.limits:
            if isinstance(limit, HoursLimit):
                limit.lost += sum(before.lost for before in other.limits if isinstance(before, HoursLimit))

    def check(self, first_run: Iterable[WorkItem]) -> None:
        """Raise StudyError where nothing was done yet and the work items of one run would not fit."""
        first_run = list(first_run)
        if faults := [fault for limit in self.limits if (fault := limit.fault(first_run))]:
            raise StudyError(faults, self.study)


class Limit(ABC):
    """One limit of a budget, and the rule by which it admits work items.

    name: of the setting in the study's `budget`.
    amount: the limit; this and all other amounts are in a base unit of the subclass (seconds, bytes).
    unit, rate: the unit that a person reads, and how much of it one base unit is.
    comparison: the work items of the final comparison, for which a search must leave something.
    """

    name: str
    amount: float
    unit: str
    rate: float
    comparison: Sequence[WorkItem]

    @abstractmethod
    def reload(self) -> None:
        """Read the store anew."""

    @property
    @abstractmethod
    def spent(self) -> float: ...

    @property
    @abstractmethod
    def started(self) -> bool:
        """Return whether any work other than profiles was done."""

    @abstractmethod
    def concurrent_bound(self, work_items: Iterable[WorkItem]) -> float | None:
        """Return the most that items take if they run at the same time; None where that is unknown."""

    @abstractmethod
    def sequential_bound(self, work_items: Iterable[WorkItem]) -> float | None:
        """Return the most that items take if they run one after another; None where that is unknown."""

    @abstractmethod
    def decide_unmeasured(self, running: Sequence[WorkItem]) -> Decision:
        """Decide about an item whose amount is unknown, while something is left."""

    @abstractmethod
    def decide(self, item: WorkItem, running: Sequence[WorkItem] = (), may_read: bool = True) -> Decision:
        """Decide about an item beside the running ones. may_read: whether the store may be read."""

    @abstractmethod
    def read_item(self, item: WorkItem) -> list[Any]:
        """Read what the store records of an item that was just done."""

    @abstractmethod
    def record_finished(self, item: WorkItem, reading: Sequence[Any]) -> None: ...

    @abstractmethod
    def record_loss(self, seconds: float) -> None: ...

    # -- the rule ----------------------------------------------------------------------------------

    def apply_rule(self, item: WorkItem, running: Sequence[WorkItem]) -> Decision:
        """Decide by what is known now."""
        left = self.amount - self.spent
        bound = self.concurrent_bound([*running, item])
        if bound is None:
            return self.decide_unmeasured(running) if left > 0 else "reject"
        left -= self.reserved(item)
        if bound <= left:
            return "admit"
        fits_alone = (self.concurrent_bound([item]) or 0.0) <= left
        return "wait" if running and fits_alone else "reject"

    def reserved(self, item: WorkItem) -> float:
        """Return what the item must leave for the comparison; items of the comparison evaluate on test."""
        if item.profile or any(evaluation.split == "test" for evaluation in item.evaluations):
            return 0.0
        return self.sequential_bound(self.comparison) or 0.0

    # -- messages ----------------------------------------------------------------------------------

    spent_on = "spent on profiles"
    advice = ""  # what else frees some of the budget

    @property
    def overspent(self) -> str:
        """Why more than the limit was spent, in parentheses; empty where it was not."""
        return ""

    def unmeasured(self, work_items: Sequence[WorkItem]) -> str:
        """Advice that would make the items' bounds tighter, in parentheses; empty for none."""
        return ""

    def format(self, amount: float) -> str:
        return f"{amount * self.rate:.3g} {self.unit}"

    def refusal(self, item: WorkItem) -> OverBudgetError:
        bound, reserved = self.concurrent_bound([item]), self.reserved(item)
        needs = "its cost is unknown" if bound is None else f"it may take up to {self.format(bound)}"
        used = f"{self.format(self.spent)} are spent{self.overspent}"
        if reserved:
            used += f" and {self.format(reserved)} are reserved for the comparison"
        return OverBudgetError(
            f"{item} was not started: {needs}. Of the budget of {self.format(self.amount)}, {used}. "
            f"Raise budget.{self.name}{self.advice}"
        )

    def fault(self, first_run: Sequence[WorkItem]) -> Fault | None:
        """Return the fault of a limit below one run; None where one run may fit, or where work has begun."""
        bounds = {"one run": self.sequential_bound(first_run)}
        if self.comparison:
            bounds["the comparison"] = self.sequential_bound(self.comparison)
        needed = self.spent + sum(bound for bound in bounds.values() if bound is not None)
        if self.started or needed <= self.amount:
            return None
        parts = [
            f"an unknown amount for {what}" if bound is None else f"up to {self.format(bound)} for {what}"
            for what, bound in bounds.items()
        ]
        parts.insert(1, f"{self.format(self.spent)} {self.spent_on}{self.overspent}")
        least = "more than" if None in bounds.values() else "at least"
        detail = f"{', '.join(parts)}{self.unmeasured(first_run)}"
        rule = f"must be {least} {needed * self.rate:.3g} to start with: {detail}"
        return Fault(f"budget.{self.name}", rule, f"{self.amount * self.rate:g}")


class HoursLimit(Limit):
    """The limit of hours or money, whichever binds first; in seconds of a worker group."""

    def __init__(self, study: Study, store: StageStore, comparison: Sequence[WorkItem]) -> None:
        assert study.budget is not None
        self.model, self.comparison, self.lost = CostModel(study, store), comparison, 0.0
        rates = {name: unit_rates(study.workers).get(unit, 0.0) for name, unit in UNITS.items()}
        amounts = {name: amount for name in UNITS if (amount := getattr(study.budget, name))}
        self.name = min(amounts, key=lambda name: amounts[name] / rates[name])
        self.unit, self.rate = UNITS[self.name], rates[self.name]
        self.amount = amounts[self.name] / self.rate

    def reload(self) -> None:
        self.model.read()

    @property
    def spent(self) -> float:
        return sum(self.model.spent.values()) + self.lost

    @property
    def started(self) -> bool:
        stages = (seconds for key, seconds in self.model.spent.items() if not key.startswith(PROFILE))
        return bool(self.lost) or any(stages)

    def concurrent_bound(self, work_items: Iterable[WorkItem]) -> float | None:
        work_items = list(work_items)
        stages = self.model.seconds(item for item in work_items if not item.profile)
        bounds = [self.model.profile_seconds(item) for item in work_items if item.profile]
        bounds.append(None if stages is None else stages.high)
        known = [bound for bound in bounds if bound is not None]
        return sum(known) if len(known) == len(bounds) else None

    def sequential_bound(self, work_items: Iterable[WorkItem]) -> float | None:
        return self.concurrent_bound(work_items)  # worker groups cost the same side by side

    def decide_unmeasured(self, running: Sequence[WorkItem]) -> Decision:
        return "wait" if running else "admit"  # alone, as the first measurement

    def decide(self, item: WorkItem, running: Sequence[WorkItem] = (), may_read: bool = True) -> Decision:
        return self.apply_rule(item, running)

    def read_item(self, item: WorkItem) -> list[Any]:
        return self.model.read_item(item)

    def record_finished(self, item: WorkItem, reading: Sequence[Any]) -> None:
        self.model.add(reading)

    def record_loss(self, seconds: float) -> None:
        self.lost += seconds

    @property
    def overspent(self) -> str:
        if self.spent <= self.amount:
            return ""
        return " (more than the limit: the cost of the first measurement was unknown)"

    def unmeasured(self, work_items: Sequence[WorkItem]) -> str:
        items = (*work_items, *self.comparison)
        tasks = dict.fromkeys(name for item in items for name in item.stage.trained_tasks)
        untimed = [name for name in tasks if name not in self.model.timed_tasks]
        if not untimed:
            return ""
        return f" ({join_names(untimed)} not timed yet: run `dgg-ray profile STUDY`, which has no budget)"


class StoreSize(NamedTuple):
    """One measurement of a store's size.

    bytes: the size. included: how many of the items finished since the last measurement are in it for sure.
    seconds: what the measurement took.
    """

    bytes: int
    included: int
    seconds: float


class DiskLimit(Limit):
    """The limit of the store's size, whatever filled it; in bytes.

    measured: the store's size at the last measurement. added: a bound for each item finished since then.
    """

    name, unit, rate = "disk_gb", "GB on disk", 1e-9
    advice, spent_on = " or run `dgg-ray gc OUT`", "in the store"

    def __init__(self, study: Study, store: StageStore, comparison: Sequence[WorkItem]) -> None:
        assert study.budget is not None
        assert study.budget.disk_gb is not None
        self.model, self.comparison = DiskModel(study, store), comparison
        self.amount = study.budget.disk_gb * 1e9
        self.added: list[float] = []
        self.set_usage(self.measure_usage())

    def reload(self) -> None:
        self.model.read()
        self.set_usage(self.measure_usage())

    def measure_usage(self) -> StoreSize:
        """Measure the store; changes nothing, so any thread may call it."""
        began, included = time.monotonic(), len(self.added)
        size = self.model.store.size()
        return StoreSize(size, included, time.monotonic() - began)

    def set_usage(self, size: StoreSize) -> None:
        """Take in a measurement, and set the time of the next one."""
        self.measured = size.bytes
        del self.added[: size.included]
        self.next_measurement = time.monotonic() + max(MEASURE_S, size.seconds / MEASURE_SHARE)

    def is_outdated(self, item: WorkItem, running: Sequence[WorkItem] = ()) -> bool:
        """Return whether measuring may change the decision: others fill the store, and `added` is a bound."""
        if time.monotonic() >= self.next_measurement:
            return True
        return bool(self.added) and self.apply_rule(item, running) != "admit"

    @property
    def spent(self) -> float:
        return self.measured + sum(self.added)

    @property
    def started(self) -> bool:
        return self.model.started

    def concurrent_bound(self, work_items: Iterable[WorkItem]) -> float | None:
        return self.model.concurrent_bytes(work_items)

    def sequential_bound(self, work_items: Iterable[WorkItem]) -> float | None:
        return self.model.sequential_bytes(work_items)

    def decide_unmeasured(self, running: Sequence[WorkItem]) -> Decision:
        return "reject"  # a first measurement might fill the disk

    def decide(self, item: WorkItem, running: Sequence[WorkItem] = (), may_read: bool = True) -> Decision:
        if may_read and self.is_outdated(item, running):
            self.set_usage(self.measure_usage())
        decision = self.apply_rule(item, running)
        # Checkpoints and drafts of running items are on the disk; they are gone when these have ended.
        return "wait" if decision == "reject" and running else decision

    def read_item(self, item: WorkItem) -> list[Any]:
        return self.model.read_profiles() if item.profile else []

    def record_finished(self, item: WorkItem, reading: Sequence[Any]) -> None:
        self.model.add(reading)
        self.model.mark_finished(item)
        size = self.model.item_bytes(item)
        self.added.append(float("inf") if size is None else size)  # a measurement will tell

    def record_loss(self, seconds: float) -> None:
        self.next_measurement = 0.0  # what the lost item left on the disk is still there


def make_tracker(
    study: Study, store: StageStore, comparison: Callable[[Study], Iterable[Iterable[WorkItem]]]
) -> BudgetTracker:
    """Return the tracker of the study's budget.

    comparison: a setting → the chains of work items that comparing it in the end may need.
    """
    if study.budget is None:
        return BudgetTracker()
    reserved: list[WorkItem] = []
    if study.chooses:
        reserved = [item for chain in comparison(study.most_expensive) for item in chain]
    limits: list[Limit] = []
    if any(getattr(study.budget, name) for name in UNITS):
        limits.append(HoursLimit(study, store, reserved))
    if study.budget.disk_gb:
        limits.append(DiskLimit(study, store, reserved))
    return BudgetTracker(limits, study.name)
