"""A study's budget: hard caps, kept by one rule, for fleets and for a single process.

A stage starts if, for every cap,

    spent + set aside + the most that it and the stages in training are predicted to take  ≤  cap

Of hours and money, spent is what the store says that this study trained, examined and probed, and what
this run lost to failures and lost machines; the most is the upper end of model.py's 95 % interval. Not
counted
are what earlier runs lost, and what fleets do besides: start, load the model, wait for work. Of the disk,
spent is all that the store holds, and the most is disk.py's bound; of several drivers on one store, each
knows of the others' work what is on the disk already. While a search goes on, the final comparison is set
aside: what it will take at most, at the dearest corner of the search space.

So that all this is known, a run with a budget profiles first. A profile must fit as all else does, but not beside
the comparison, of which it is to tell something. Where nothing was measured, the first profile (or a stage, if
the profiles failed) starts while anything is left, alone: that one may exceed the cap, and none after it.

What reads the store changes nothing, and what takes it up reads nothing (`measured` and `finished`, `size`
and `saw`): who must not wait for the store reads in a thread.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dgg_ray.core.errors import Fault, OverBudget, StudyError
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.disk import Sizes
from dgg_ray.cost.model import PROBE, CostModel, units
from dgg_ray.storage.stage_store import StageStore

if TYPE_CHECKING:
    from dgg_ray.config.study import Study

Verdict = Literal["go", "wait", "over"]
WORST: tuple[Verdict, ...] = ("over", "wait", "go")
UNITS = {"gpu_hours": "GPU-hours", "worker_hours": "worker-hours", "money": "money"}
LOOK_S, LOOKING = 60.0, 0.05  # between looks at the disk; most of the time that may go into them


class Purse:
    """All caps of a study together; without any, everything may start."""

    def __init__(self, caps: Sequence[Cap] = (), name: str = "") -> None:
        self.caps, self.study = caps, name

    def begin(self) -> None:
        """Look into the store anew: a broker that was restarted gets the purse as it once was."""
        for cap in self.caps:
            cap.begin()

    def verdict(self, item: WorkItem, running: Iterable[WorkItem] = (), look: bool = True) -> Verdict:
        """Whether work may start beside what is running: `go`, `wait` until that has ended, or `over`.

        look: into the store, where what was seen of it is too old to tell.
        """
        if not self.caps:  # and nobody is asked what is running
            return "go"
        running = list(running)
        found: list[Verdict] = [cap.verdict(item, running, look) for cap in self.caps]
        return min(found, key=WORST.index)

    def unsure(self, item: WorkItem, running: Iterable[WorkItem] = ()) -> list[Disk]:
        """The caps that had better look before they give a verdict."""
        if not self.caps:
            return []
        running = list(running)
        return [found for cap in self.caps for found in cap.unsure(item, running)]

    def refusal(self, item: WorkItem) -> OverBudget:
        """Why it was not started: by the first cap that has nothing for it."""
        over = (cap for cap in self.caps if cap.verdict(item, look=False) == "over")
        return next(over, self.caps[0]).refusal(item)

    def measured(self, item: WorkItem) -> list[Any]:
        """What the store tells each cap of work that was done."""
        return [cap.measured(item) for cap in self.caps]

    def finished(self, item: WorkItem, measured: Sequence[Any] | None = None) -> None:
        """Work was done; what it took is in the store, and is looked up there unless it is given."""
        for cap, told in zip(self.caps, self.measured(item) if measured is None else measured, strict=True):
            cap.finished(item, told)

    def lose(self, seconds: float) -> None:
        """A fleet worked that long for nothing."""
        for cap in self.caps:
            cap.lose(seconds)

    def check(self, work_items: Iterable[WorkItem]) -> None:
        """StudyError where nothing is done yet and these works, one run of the study, would not fit."""
        work_items = list(work_items)
        if faults := [fault for cap in self.caps if (fault := cap.fault(work_items))]:
            raise StudyError(faults, self.study)


class Cap(Purse):
    """One cap, and the rule. final: works of the comparison that the search must leave something for.

    cap, and what the methods give, are in a unit of the cap's own; rate: what one of it is in `unit`.
    """

    name: str
    unit: str
    rate: float
    cap: float
    final: Sequence[WorkItem]
    advice = beyond = ""
    where = "spent on probes"

    @property
    @abstractmethod
    def spent(self) -> float: ...

    @abstractmethod
    def measured(self, item: WorkItem) -> list[Any]: ...

    @abstractmethod
    def take_up(self, item: WorkItem, measured: Sequence[Any]) -> None: ...

    def finished(self, item: WorkItem, measured: Sequence[Any] | None = None) -> None:
        self.take_up(item, self.measured(item) if measured is None else measured)

    def unsure(self, item: WorkItem, running: Iterable[WorkItem] = ()) -> list[Disk]:
        return []

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether anything but profiles was done."""

    @abstractmethod
    def upper(self, work_items: Iterable[WorkItem]) -> float | None:
        """Most that works take side by side; None where that is not known."""

    def in_turn(self, work_items: Iterable[WorkItem]) -> float | None:
        """Most that works take one after another; None where that is not known."""
        return self.upper(work_items)

    def aside(self, item: WorkItem) -> float:
        """What work must leave: the comparison's, which itself is known by its test exams."""
        free = item.profile or any(evaluation.split == "test" for evaluation in item.evaluations)
        return 0.0 if free else self.in_turn(self.final) or 0.0

    def verdict(self, item: WorkItem, running: Iterable[WorkItem] = (), look: bool = True) -> Verdict:
        running = list(running)
        left = self.cap - self.spent
        together = self.upper([*running, item])
        if together is None:
            return self.unknown(running) if left > 0 else "over"
        left -= self.aside(item)
        if together <= left:
            return "go"
        return "wait" if running and (self.upper([item]) or 0.0) <= left else "over"

    def unknown(self, running: Sequence[WorkItem]) -> Verdict:
        """It is the first measurement, alone."""
        return "wait" if running else "go"

    def refusal(self, item: WorkItem) -> OverBudget:
        most, aside = self.upper([item]), self.aside(item)
        kept = f", {self.show(aside)} are set aside for the comparison" if aside else ""
        takes = "what it takes is not known" if most is None else f"it may take {self.show(most)}"
        return OverBudget(
            f"{item} was not started: {takes}, and of the budget of {self.show(self.cap)} "
            f"{self.show(self.spent)} are spent{self.beyond}{kept}; raise budget.{self.name}{self.advice}"
        )

    def fault(self, work_items: Sequence[WorkItem]) -> Fault | None:
        """That one run, these works, would not fit where nothing is done yet, as far as that is known."""
        amounts = {"one run": self.in_turn(work_items)}
        amounts |= {"the comparison": self.in_turn(self.final)} if self.final else {}
        needed = self.spent + sum(filter(None, amounts.values()))
        if self.begun or needed <= self.cap:
            return None
        parts = [
            f"what {what} takes is not known" if most is None else f"up to {self.show(most)} for {what}"
            for what, most in amounts.items()
        ]
        parts.insert(1, f"{self.show(self.spent)} {self.where}{self.beyond}")
        least = "more than" if None in amounts.values() else "at least"
        rule = f"must be {least} {needed * self.rate:.3g} to start with: {', '.join(parts)}{self.guessed(work_items)}"
        return Fault(f"budget.{self.name}", rule, f"{self.cap * self.rate:g}")

    def guessed(self, work_items: Sequence[WorkItem]) -> str:
        """What the bounds are wide for."""
        return ""

    def check(self, work_items: Iterable[WorkItem]) -> None:
        Purse([self], self.study).check(work_items)

    def show(self, amount: float) -> str:
        return f"{amount * self.rate:.3g} {self.unit}"


class Hours(Cap):
    """Of hours or money, whichever binds first; counted in seconds of a fleet."""

    def __init__(self, study: Study, store: StageStore, final: Sequence[WorkItem]) -> None:
        assert study.budget is not None
        self.model, self.final, self.lost, self.study = CostModel(study, store), final, 0.0, study.name
        rates = {name: units(study.workers).get(unit, 0.0) for name, unit in UNITS.items()}
        given = {name: cap for name in UNITS if (cap := getattr(study.budget, name))}
        self.name = min(given, key=lambda name: given[name] / rates[name])
        self.unit, self.rate = UNITS[self.name], rates[self.name]
        self.cap = given[self.name] / self.rate

    def begin(self) -> None:
        self.model.read()

    @property
    def spent(self) -> float:
        return sum(self.model.spent.values()) + self.lost

    @property
    def beyond(self) -> str:  # type: ignore[override]
        """Why more than the cap may be spent."""
        why = "nothing was known of what the first measurement would take"
        return f" (more than the cap: {why})" if self.spent > self.cap else ""

    def guessed(self, work_items: Sequence[WorkItem]) -> str:
        tasks = dict.fromkeys(
            name for item in (*work_items, *self.final) for name in item.stage.trained_tasks
        )
        names = " and ".join(name for name in tasks if name not in self.model.timed)
        return f" ({names} not timed yet: `dgg-ray profile STUDY` does it, on no budget)" if names else ""

    @property
    def begun(self) -> bool:
        return bool(self.lost) or any(
            seconds for key, seconds in self.model.spent.items() if not key.startswith(PROBE)
        )

    def upper(self, work_items: Iterable[WorkItem]) -> float | None:
        work_items = list(work_items)
        rest = self.model.seconds(item for item in work_items if not item.profile)
        most = [rest and rest.high, *(self.model.probing(item) for item in work_items if item.profile)]
        return None if None in most else sum(filter(None, most))

    def measured(self, item: WorkItem) -> list[Any]:
        return self.model.measured(item)

    def take_up(self, item: WorkItem, measured: Sequence[Any]) -> None:
        self.model.learn(measured)

    def lose(self, seconds: float) -> None:
        self.lost += seconds


class Disk(Cap):
    """Of the store's size, whoever filled it; counted in bytes.

    seen: at the last look; added: the most that each of what was finished after it has added.
    """

    name, unit, rate = "disk_gb", "GB on disk", 1e-9
    advice, where = " or run `dgg-ray gc OUT`", "in the store"

    def __init__(self, study: Study, store: StageStore, final: Sequence[WorkItem]) -> None:
        assert study.budget is not None
        assert study.budget.disk_gb is not None
        self.sizes, self.final, self.study = Sizes(study, store), final, study.name
        self.cap = study.budget.disk_gb * 1e9
        self.added: list[float] = []
        self.look()

    def begin(self) -> None:
        self.sizes.read()
        self.look()

    def look(self) -> None:
        self.saw(*self.size())

    def size(self) -> tuple[int, int, float]:
        """(The store's size, how many of `added` are in it for sure, seconds that this look took)."""
        began, count = time.monotonic(), len(self.added)
        return self.sizes.store.size(), count, time.monotonic() - began

    def saw(self, size: int, count: int, took: float) -> None:
        self.seen = size
        del self.added[:count]
        self.next_look = time.monotonic() + max(LOOK_S, took / LOOKING)

    def unsure(self, item: WorkItem, running: Iterable[WorkItem] = ()) -> list[Disk]:
        """Itself, where a look may change the verdict: others fill the same store, `added` are bounds."""
        if time.monotonic() >= self.next_look or (self.added and super().verdict(item, running) != "go"):
            return [self]
        return []

    @property
    def spent(self) -> float:
        return self.seen + sum(self.added)

    @property
    def begun(self) -> bool:
        return self.sizes.begun

    def upper(self, work_items: Iterable[WorkItem]) -> float | None:
        return self.sizes.together(work_items)

    def in_turn(self, work_items: Iterable[WorkItem]) -> float | None:
        return self.sizes.in_turn(work_items)

    def unknown(self, running: Sequence[WorkItem]) -> Verdict:
        return "over"  # no first measurement: it might fill the disk

    def verdict(self, item: WorkItem, running: Iterable[WorkItem] = (), look: bool = True) -> Verdict:
        running = list(running)
        if look and self.unsure(item, running):
            self.look()
        found = super().verdict(item, running)
        # What runs has snapshots and drafts on the disk, which are gone when it has ended.
        return "wait" if found == "over" and running else found

    def measured(self, item: WorkItem) -> list[Any]:
        return self.sizes.probed() if item.profile else []

    def take_up(self, item: WorkItem, measured: Sequence[Any]) -> None:
        self.sizes.learn(measured)
        self.sizes.finished(item)
        whole = self.sizes.whole(item)
        self.added.append(float("inf") if whole is None else whole)  # a look will tell

    def lose(self, seconds: float) -> None:
        self.next_look = 0.0  # what it left in its middle is there still


def purse(study: Study, store: StageStore, final: Callable[[Study], Iterable[Iterable[WorkItem]]]) -> Purse:
    """What the study may spend; `final` gives the chains of works of a winner's comparison."""
    if study.budget is None:
        return Purse()
    work_items = [w for chain in final(study.dearest) for w in chain] if study.search else []
    kinds = [Hours] * any(getattr(study.budget, name) for name in UNITS)
    kinds += [Disk] * bool(study.budget.disk_gb)
    return Purse([kind(study, store, work_items) for kind in kinds], study.name)
