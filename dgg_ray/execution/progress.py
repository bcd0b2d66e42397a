"""What a person sees while a study runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dgg_ray.config.registry import LIVE, NOTE_HOLDS_S
from dgg_ray.core.fence import Fence
from dgg_ray.core.terminal import warn
from dgg_ray.cost.model import Outlook, units
from dgg_ray.storage import manifest

PLAIN_EVERY_S, SILENT_S = 10.0, 50.0
LOOK_EVERY_S = 5.0
LOOKING = 0.05  # most of the time that may go into looking
NOTE_EVERY_S = 2.0


class Looked(Protocol):
    """The counts that the display needs; a Plan has them.

    asked: stages asked for, of all that will be; exact: whether that is certain.
    """

    @property
    def outlook(self) -> Outlook: ...
    @property
    def asked(self) -> int: ...
    @property
    def exact(self) -> bool: ...


Seen = TypeVar("Seen", bound=Looked)


@dataclass
class Display:
    """Told of every finished piece of work; shows counts, time left, what was spent, the best so far.

    total: pieces of work asked for so far; foreseen: in all, as a look says; exact: whether that is certain.
    look: predicts the rest from the store; asked now and then.
    told: called after every finished piece.
    note: told now and then what is running, for others to read while it does.
    fence: of what looking, telling and noting may do; none of it ends the work.
    """

    title: str
    total: int = 0
    done: int = 0
    ready: int = 0
    trained: int = 0
    failed: int = 0
    waiting: int = 0
    best: str = ""
    running: list[dict[str, Any]] = field(default_factory=list)
    quiet: bool = False
    look: Callable[[], Looked] | None = None
    note: Callable[[dict[str, Any]], None] | None = None
    told: Callable[[], None] = lambda: None
    fence: Fence = field(default_factory=lambda: Fence(warn))
    outlook: Outlook | None = field(default=None, init=False)
    looked: float = field(default=0.0, init=False)
    foreseen: int = field(default=0, init=False)
    exact: bool = field(default=True, init=False)
    phases: dict[str, float] = field(default_factory=dict, init=False)  # of the start, when each began

    def __enter__(self) -> Self:
        self.console = Console(stderr=True)
        self.began = self.spoke = time.monotonic()
        self.next_look = self.next_note = self.began
        self.live, self.over = None, threading.Event()
        if not self.console.is_terminal and not self.quiet:
            threading.Thread(target=self.beat, name="display", daemon=True).start()
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

    def __exit__(self, *_: object) -> None:
        self.running = []
        self.over.set()
        self.foreseen, self.exact = self.total, True  # more is not to come
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        if not self.quiet:
            self.spoke = time.monotonic()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def beat(self) -> None:
        """Where there is no terminal: a line whenever nothing was said for SILENT_S."""
        while not self.over.wait(max(0.05, self.spoke + SILENT_S - time.monotonic())):
            if time.monotonic() - self.spoke >= SILENT_S:
                with self.fence("the line of progress"):
                    self.say(self.line())

    # -- the start-up ------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        """The start-up comes to this; `begun` ends it. A phase that comes again is the same one."""
        if name and name not in self.phases:
            self.phases[name] = time.monotonic()
            if self.live is None:
                self.say(f"{name} …")

    def begun(self) -> None:
        """The first stage is in training: say what the start-up took."""
        if self.phases:
            text, self.phases = self.start_up(), {}
            self.say(text)

    def start_up(self) -> str:
        """Each phase with its seconds so far."""
        began = list(self.phases.items())
        ends = [*(start for _, start in began[1:]), time.monotonic()]
        took = zip(began, ends, strict=False)  # there may be no phase
        return ", ".join(f"{name} {end - start:.0f} s" for (name, start), end in took)

    # -- the work ----------------------------------------------------------------------------------

    def finished(self, was_there: bool = False) -> None:
        self.done += 1
        self.ready += was_there
        self.told()
        self.predict()
        now = time.monotonic()
        if self.live is None and now - self.spoke > PLAIN_EVERY_S:
            self.say(self.line())

    def judged(self, best: Callable[[], str]) -> None:
        """A setting was judged. best: says which one is the best now."""
        self.best = self.fence.tried("the best setting so far", self.best, best)

    def update(self, status: dict[str, Any]) -> None:
        self.trained = status.get("trained", 0)
        self.failed = status.get("failed", 0)
        self.running = status.get("running", [])
        self.waiting = status.get("waiting", 0)
        self.phase("" if self.running else status.get("phase", ""))
        if self.running:
            self.begun()
        now = time.monotonic()
        if self.note and now >= self.next_note:
            self.next_note = now + NOTE_EVERY_S
            with self.fence("what `dgg-ray status` says of a study that runs"):
                self.note({"at": time.time(), "running": self.running, "queued": self.waiting})
        self.predict()

    def predict(self) -> None:
        """Look at the store again, when the last look was long enough ago for its price."""
        began = time.monotonic()
        if self.look and began >= self.next_look:
            self.next_look = float("inf")  # another thread may come by
            with self.fence("the forecast of the time that is left"):
                self.take(self.look())
            self.looked = time.monotonic()
            self.next_look = self.looked + max(LOOK_EVERY_S, (self.looked - began) / LOOKING)

    def take(self, found: Seen) -> Seen:
        """The counts of the last look."""
        self.outlook, self.foreseen, self.exact = found.outlook, found.asked, found.exact
        return found

    @property
    def count(self) -> str:
        """Pieces of work done, of those in all; "about" while there may be more or fewer of them."""
        total = max(self.total, self.foreseen)
        return f"{self.done}/{'' if self.exact else 'about '}{total}" if total else "0"

    def left(self) -> str:
        """Predicted time to go, with its 95 % interval; empty before anything was measured."""
        if not self.outlook or not self.outlook.rest:
            return ""
        since = time.monotonic() - self.looked
        wall = self.outlook.rest.amounts()["wall hours"].times(3600)
        if wall.high <= since:
            return ""
        unit, size = ("min", 60) if wall.mean - since > 90 else ("s", 1)
        mean, low, high = (f"{max(0.0, x - since) / size:.0f}" for x in wall)
        return f"about {mean} {unit} left (95 %: {low} to {high})"

    def spent(self) -> str:
        """By the study, in the unit that it counts in."""
        if not self.outlook:
            return ""
        unit, rate = list(units(self.outlook.workers).items())[-1]
        return f"{self.outlook.spent * rate:.3g} {unit} spent"

    def line(self) -> str:
        parts = [
            f"{self.count} stages",
            f"{self.trained} trained",
            f"{len(self.running)} running",
        ]
        parts += [f"{self.waiting} queued"] * bool(self.waiting)
        parts += [f"{self.failed} failed"] * bool(self.failed)
        return " · ".join(
            filter(None, [self.title, *parts, self.start_up(), self.left(), self.spent(), self.best])
        )

    def __rich__(self) -> Group:
        total, left = max(self.total, self.foreseen) or None, self.left()
        self.bar.update(self.task, total=total, completed=self.done, count=self.count, left=left)
        lines: Iterable[str] = (f"  {r['stage']}  step {r['steps'][0]}/{r['steps'][1]}" for r in self.running)
        told = [self.start_up()] * bool(self.phases)
        told += [f"best so far: {self.best}"] * bool(self.best)
        told += [f"{self.spent()}, {len(self.running)} running, {self.waiting} queued"] * bool(self.outlook)
        return Group(
            self.bar, *(Text(f"  {line}") for line in told), *(Text(line, style="dim") for line in lines)
        )


def live(out: Path) -> dict[str, Any]:
    """What is running in a folder at this moment: {running, queued}, both empty where nothing is."""
    found = manifest.noted(out / LIVE)
    fresh = found and time.time() - found["at"] < NOTE_HOLDS_S
    return {"running": found["running"], "queued": found["queued"]} if fresh else {"running": [], "queued": 0}
