"""The progress display of a running study: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dgg_ray.config.registry import FRESH_S, LIVE
from dgg_ray.core.json_files import read_json
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.terminal import warn
from dgg_ray.cost.model import CostForecast, unit_rates

LINE_EVERY_S = 10.0  # between two plain lines, at least
MAX_SILENCE_S = 50.0  # without a plain line, even where nothing was finished
PLAN_EVERY_S = 5.0  # between two plans, at least
PLAN_SHARE = 0.05  # of the time, at most, goes into plans
LIVE_EVERY_S = 2.0  # between two updates of the file that `dgg-ray status` reads
PROGRESS = ("done", "total", "exact", "trained", "failed", "left_s")
PROGRESS += ("spent", "spent_unit", "forecast", "worker_hours", "best", "phase")


class ProgressPlan(Protocol):
    """The counts that the display takes from a `Plan`.

    requested: stages of the whole study; exact: whether this number is certain.
    """

    @property
    def cost_forecast(self) -> CostForecast: ...
    @property
    def requested(self) -> int: ...
    @property
    def exact(self) -> bool: ...


AnyPlan = TypeVar("AnyPlan", bound=ProgressPlan)


@dataclass
class Display:
    """Shows counts, the time left, what was spent and the best setting so far.

    total: items requested so far. planned: items of the whole study, by the last plan; exact: whether that is
        certain. done: items that ended well, or were stored already.
    make_plan: makes a plan from the store; called now and then.
    on_item_finished: called after every item.
    write_live: called now and then with what is running, for other processes to read.
    optional: guards these calls, none of which may end the study.
    phases: of the start-up, each with the time at which it began.
    """

    title: str
    total: int = 0
    done: int = 0
    trained: int = 0
    failed: int = 0
    waiting: int = 0
    best: str = ""
    running: list[dict[str, Any]] = field(default_factory=list)
    quiet: bool = False
    make_plan: Callable[[], ProgressPlan] | None = None
    write_live: Callable[[dict[str, Any]], None] | None = None
    on_item_finished: Callable[[], None] = lambda: None
    optional: OptionalOutputs = field(default_factory=lambda: OptionalOutputs(warn))
    cost_forecast: CostForecast | None = field(default=None, init=False)
    planned_at: float = field(default=0.0, init=False)
    planned: int = field(default=0, init=False)
    exact: bool = field(default=True, init=False)
    phases: dict[str, float] = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        self.console = Console(stderr=True)
        self.last_line_at = time.monotonic()
        self.next_plan = self.next_live = self.last_line_at
        self.live, self.ended = None, threading.Event()
        if not self.console.is_terminal and not self.quiet:
            threading.Thread(target=self._break_silence, name="display", daemon=True).start()
        if self.console.is_terminal and not self.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(None),
                TextColumn("{task.fields[count]} stages"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Progress(*columns, expand=True)
            self.task = self.bar.add_task(self.title, total=None, count="0", left="")
            self.live = Live(self, console=self.console, refresh_per_second=4, transient=False)
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.running = []
        self.ended.set()
        if kind is None:
            self.planned, self.exact = self.total, True  # nothing more is requested
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line, unless the display is quiet."""
        if not self.quiet:
            self.last_line_at = time.monotonic()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _break_silence(self) -> None:
        """Without a terminal: print a line whenever none was printed for MAX_SILENCE_S."""
        while not self.ended.wait(max(0.05, self.last_line_at + MAX_SILENCE_S - time.monotonic())):
            if time.monotonic() - self.last_line_at >= MAX_SILENCE_S:
                with self.optional.attempt("the progress line"):
                    self.say(self.line())

    # -- the start-up ------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        """Show that the start-up has come to this phase; a phase that is named again goes on."""
        if name and name not in self.phases:
            self.phases[name] = time.monotonic()
            if self.live is None:
                self.say(f"{name} …")

    def first_stage_started(self) -> None:
        """End the start-up and print what it took; nothing where it has ended before."""
        if self.phases:
            text, self.phases = self.start_up_times(), {}
            self.say(text)

    def start_up_times(self) -> str:
        """Each phase with its seconds so far."""
        starts = list(self.phases.values())
        ends = [*starts[1:], time.monotonic()]
        return ", ".join(
            f"{name} {end - start:.0f} s"
            for (name, start), end in zip(self.phases.items(), ends, strict=False)
        )

    # -- the work ----------------------------------------------------------------------------------

    def item_finished(self) -> None:
        """Count an item that ended well or was stored already."""
        self.done += 1
        self.on_item_finished()
        self.update_plan()
        if self.live is None and time.monotonic() - self.last_line_at > LINE_EVERY_S:
            self.say(self.line())

    def setting_evaluated(self, best: Callable[[], str]) -> None:
        """Update the best setting so far; best: describes it."""
        self.best = self.optional.value_or("the best setting so far", self.best, best)

    def update(self, status: dict[str, Any]) -> None:
        """Show a status of the broker, or the same of a single process."""
        self.trained = status.get("trained", 0)
        self.failed = status.get("failed", 0)
        self.running = status.get("running", [])
        self.waiting = status.get("waiting", 0)
        if self.running:
            self.first_stage_started()
        else:
            self.phase(status.get("phase", ""))
        now = time.monotonic()
        if self.write_live and now >= self.next_live:
            self.next_live = now + LIVE_EVERY_S
            with self.optional.attempt("the live part of `dgg-ray status`"):
                live = {"at": time.time(), "running": self.running, "queued": self.waiting}
                self.write_live(live | self.progress())
        self.update_plan()

    def update_plan(self) -> None:
        """Plan again, if the last plan is old enough for what it cost."""
        start = time.monotonic()
        if self.make_plan and start >= self.next_plan:
            self.next_plan = float("inf")  # another thread may call meanwhile
            with self.optional.attempt("the forecast of the time left"):
                self.set_plan(self.make_plan())
            self.planned_at = time.monotonic()
            self.next_plan = self.planned_at + max(PLAN_EVERY_S, (self.planned_at - start) / PLAN_SHARE)

    def set_plan(self, plan: AnyPlan) -> AnyPlan:
        """Take the counts and the forecast of a plan; return the plan."""
        self.cost_forecast, self.planned, self.exact = plan.cost_forecast, plan.requested, plan.exact
        return plan

    # -- what is shown -----------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """Everything but the running stages, as JSON.

        done, total: items, `total` as far as it is known now; exact: whether that is certain.
        trained, failed: stages of this run.
        left_s: seconds left, [mean, low, high]; None before anything was measured.
        spent, spent_unit: by the study at its last plan, in the unit of its budget; None before the first.
        forecast: what the study will have spent at its end, [mean, low, high] in the same unit; None before
            anything was measured. worker_hours: what it has spent, in worker-hours.
        best: the best setting so far, in words; empty before one was evaluated.
        phase: of the start-up; empty after it.
        """
        spent, unit = self.spent_amount() or (None, None)
        cost, left = self.cost_forecast, self.seconds_left()
        total = cost.total(unit) if cost and unit else None
        return {
            "done": self.done,
            "total": max(self.total, self.planned),
            "exact": self.exact,
            "trained": self.trained,
            "failed": self.failed,
            "left_s": list(left) if left else None,
            "spent": spent,
            "spent_unit": unit,
            "forecast": list(total) if total else None,
            "worker_hours": cost.spent * unit_rates(cost.workers)["worker-hours"] if cost else None,
            "best": self.best,
            "phase": next(reversed(self.phases), ""),
        }

    @property
    def count(self) -> str:
        """Items done, of the items in all: "3/9", or "3/about 9" while that number may change."""
        total = max(self.total, self.planned)
        return f"{self.done}/{'' if self.exact else 'about '}{total}" if total else "0"

    def seconds_left(self) -> tuple[float, float, float] | None:
        """The predicted time left: mean, and the ends of its 95 % interval.

        None before anything was measured, and where more time has passed than was predicted.
        """
        if not self.cost_forecast or not self.cost_forecast.remaining:
            return None
        passed = time.monotonic() - self.planned_at
        wall = self.cost_forecast.remaining.amounts()["wall hours"].scaled(3600)
        if wall.high <= passed:
            return None
        return max(0.0, wall.mean - passed), max(0.0, wall.low - passed), wall.high - passed

    def time_left(self) -> str:
        """The time left in words, with its 95 % interval; empty where it is unknown."""
        left = self.seconds_left()
        if left is None:
            return ""
        unit, size = ("min", 60) if left[0] > 90 else ("s", 1)
        mean, low, high = (f"{seconds / size:.0f}" for seconds in left)
        return f"about {mean} {unit} left (95 %: {low} to {high})"

    def spent_amount(self) -> tuple[float, str] | None:
        """The study's spending, with the unit of its budget; None before the first plan."""
        if not self.cost_forecast:
            return None
        unit = self.cost_forecast.unit
        return self.cost_forecast.spent * unit_rates(self.cost_forecast.workers)[unit], unit

    def spent(self) -> str:
        """The study's spending, in words."""
        spent = self.spent_amount()
        return f"{spent[0]:.3g} {spent[1]} spent" if spent else ""

    def best_so_far(self) -> str:
        return f"best so far: {self.best}" if self.best else ""

    def line(self) -> str:
        """The plain line: "study · 3/9 stages · 1 trained · 1 running · about 30 s left (95 %: 20 to 60)"."""
        parts = [
            self.title,
            f"{self.count} stages",
            f"{self.trained} trained",
            f"{len(self.running)} running",
        ]
        if self.waiting:
            parts.append(f"{self.waiting} queued")
        if self.failed:
            parts.append(f"{self.failed} failed")
        parts += [self.start_up_times(), self.time_left(), self.spent(), self.best_so_far()]
        return " · ".join(filter(None, parts))

    def __rich__(self) -> Group:
        """The live display: a bar, and below it the start-up, the best setting, the costs and the stages."""
        total = max(self.total, self.planned) or None
        self.bar.update(self.task, total=total, completed=self.done, count=self.count, left=self.time_left())
        lines: list[Text] = []
        if self.phases:
            lines.append(Text(f"  {self.start_up_times()}"))
        if self.best:
            lines.append(Text(f"  {self.best_so_far()}"))
        if self.cost_forecast:
            lines.append(Text(f"  {self.spent()}, {len(self.running)} running, {self.waiting} queued"))
        for stage in self.running:
            done, steps = stage["steps"]
            lines.append(Text(f"    {stage['stage']}  step {done}/{steps}", style="dim"))
        return Group(self.bar, *lines)


def read_live(out: Path) -> dict[str, Any]:
    """The stages that run into a folder now: {running, queued, progress}; empty, and None, where none do.

    progress: of `Display.progress`.
    """
    live = read_json(out / LIVE)
    if not live or time.time() - live["at"] >= FRESH_S:
        return {"running": [], "queued": 0, "progress": None}
    progress = {name: live[name] for name in PROGRESS if name in live}
    return {"running": live["running"], "queued": live["queued"], "progress": progress}
