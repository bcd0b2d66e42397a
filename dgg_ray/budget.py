"""A study's budget: a hard cap, kept by one rule, for fleets and for a single process.

A stage starts if

    spent + set aside + the upper end of what it and the stages in training are predicted to take  ≤  budget

with the 95 % interval of cost.py. Spent is what the store says that this study trained, examined and
probed, and what this run lost to failures and lost machines (an earlier run's losses are not known).
While a search goes on, the final comparison is set aside: what it is predicted to take at most, at the
dearest corner of the search space. So that all this is known, a run with a budget probes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from dgg_ray.cost import PROBE, CostModel, units
from dgg_ray.errors import Fault, OverBudget, StudyError
from dgg_ray.stages import StageStore, Work

if TYPE_CHECKING:
    from dgg_ray.sections import Knob, Value
    from dgg_ray.study import Study

Verdict = Literal["go", "wait", "over"]
UNITS = {"gpu_hours": "GPU-hours", "worker_hours": "worker-hours", "money": "money"}


class Purse:
    """Without a budget: everything may start."""

    def begin(self) -> None:
        """Look into the store anew: a broker that was restarted gets the purse as it once was."""

    def verdict(self, work: Work, running: Iterable[Work] = ()) -> Verdict:
        """Whether work may start beside what is running: `go`, `wait` until that has ended, or `over`."""
        return "go"

    def refusal(self, work: Work) -> OverBudget:
        """Why it was not started."""
        raise NotImplementedError

    def finished(self, work: Work) -> None:
        """Work was done; what it took is in the store."""

    def lose(self, seconds: float) -> None:
        """A fleet worked that long for nothing."""

    def check(self, works: Iterable[Work]) -> None:
        """StudyError where nothing is done yet and these works, one run of the study, would not fit."""


class Capped(Purse):
    """With a budget. final: works of the comparison that the search must leave something for."""

    def __init__(self, study: Study, store: StageStore, final: Sequence[Work]) -> None:
        assert study.budget is not None
        self.model, self.final, self.lost = CostModel(study, store), final, 0.0
        rates = {name: units(study.workers).get(unit, 0.0) for name, unit in UNITS.items()}
        given = {name: cap for name in UNITS if (cap := getattr(study.budget, name))}
        self.name = min(given, key=lambda name: given[name] / rates[name])  # the one that binds first
        self.rate, self.cap = rates[self.name], given[self.name]

    def begin(self) -> None:
        self.model.read()

    @property
    def spent(self) -> float:
        """Seconds of a fleet."""
        return sum(self.model.spent.values()) + self.lost

    @property
    def begun(self) -> bool:
        """Whether anything but probes was done."""
        return bool(self.lost) or any(
            seconds for key, seconds in self.model.spent.items() if not key.startswith(PROBE)
        )

    def upper(self, works: Iterable[Work]) -> float | None:
        """Most seconds that works will take; None where that is not known."""
        cost = self.model.predict(works)
        return cost.seconds.high if cost else None

    def aside(self, work: Work) -> float:
        """Seconds that work must leave: the comparison's, which itself is known by its test exams."""
        return 0.0 if any(exam.split == "test" for exam in work.exams) else self.upper(self.final) or 0.0

    def verdict(self, work: Work, running: Iterable[Work] = ()) -> Verdict:
        running = list(running)
        left = self.cap / self.rate - self.spent
        if work.probe:
            return "go" if left > 0 else "over"
        together = self.upper([*running, work])
        if together is None:  # its probe failed: it is the first measurement, alone
            return "wait" if running else "go"
        left -= self.aside(work)
        if together <= left:
            return "go"
        return "wait" if running and (self.upper([work]) or 0.0) <= left else "over"

    def refusal(self, work: Work) -> OverBudget:
        most, aside = self.upper([work]) or 0.0, self.aside(work)
        kept = f", {self.show(aside)} are set aside for the comparison" if aside else ""
        return OverBudget(
            f"{work} was not started: it may take {self.show(most)}, and of the budget of "
            f"{self.show(self.cap / self.rate)} {self.show(self.spent)} are spent{kept}; "
            f"raise budget.{self.name}"
        )

    def finished(self, work: Work) -> None:
        self.model.finished(work)

    def lose(self, seconds: float) -> None:
        self.lost += seconds

    def check(self, works: Iterable[Work]) -> None:
        once, final = self.upper(works) or 0.0, self.upper(self.final) or 0.0
        needed = self.spent + once + final
        if self.begun or needed * self.rate <= self.cap:
            return
        parts = [f"up to {self.show(once)} for one run", f"{self.show(self.spent)} spent on probes"]
        parts += [f"up to {self.show(final)} for the comparison"] * bool(final)
        rule = f"must be at least {needed * self.rate:.3g} to start with: {', '.join(parts)}"
        raise StudyError([Fault(f"budget.{self.name}", rule, f"{self.cap:g}")], self.model.study)

    def show(self, seconds: float) -> str:
        return f"{seconds * self.rate:.3g} {UNITS[self.name]}"


def purse(study: Study, store: StageStore, final: Callable[[Study], Iterable[Iterable[Work]]]) -> Purse:
    """What the study may spend; `final` gives the chains of works of a winner's comparison."""
    if study.budget is None:
        return Purse()
    return Capped(study, store, [w for chain in final(dearest(study)) for w in chain] if study.search else [])


def dearest(study: Study) -> Study:
    """The study at the corner of its search space where every number is largest."""
    space = study.search.space if study.search else {}
    setting = {
        dotted: most(knob)
        for path, knob in space.items()
        for dotted in ([f"{path}.{name}" for name in study.names] if knob.per_task else [path])
    }
    return study.at(setting)


def most(knob: Knob) -> Value:
    values = [value for value in knob.values or (knob.high,) if value is not None]
    return max(values, key=lambda value: value if isinstance(value, int | float) else 0)
