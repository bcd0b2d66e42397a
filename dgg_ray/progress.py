"""What a person sees while a study runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

PLAIN_EVERY_S = 10.0


@dataclass
class Display:
    """Told of every finished piece of work; shows counts, time left and the best so far.

    total: pieces of work in all, as far as known; it grows when the search proposes more.
    """

    title: str
    total: int = 0
    done: int = 0
    ready: int = 0
    trained: int = 0
    failed: int = 0
    best: str = ""
    running: list[dict[str, Any]] = field(default_factory=list)
    quiet: bool = False

    def __enter__(self) -> Self:
        self.console = Console(stderr=True)
        self.began = self.spoke = time.monotonic()
        self.live = None
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
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False)

    def finished(self, was_there: bool = False) -> None:
        self.done += 1
        self.ready += was_there
        now = time.monotonic()
        if self.live is None and not self.quiet and now - self.spoke > PLAIN_EVERY_S:
            self.spoke = now
            print(self.line(), file=sys.stderr, flush=True)

    def update(self, status: dict[str, Any]) -> None:
        self.trained = status.get("trained", 0)
        self.failed = status.get("failed", 0)
        self.running = status.get("running", [])

    def left(self) -> str:
        """Time to go, at the pace of the pieces that were not there already."""
        worked = self.done - self.ready
        if worked < 3 or self.total <= self.done:
            return ""
        seconds = (time.monotonic() - self.began) / worked * (self.total - self.done)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def line(self) -> str:
        parts = [
            f"{self.done}/{self.total} stages",
            f"{self.trained} trained",
            f"{len(self.running)} running",
        ]
        parts += [f"{self.failed} failed"] * bool(self.failed)
        return " · ".join(
            [self.title, *parts, *([self.left()] if self.left() else []), *([self.best] if self.best else [])]
        )

    def __rich__(self) -> Group:
        count = f"{self.done}/{self.total}" if self.total else "0"
        total, left = self.total or None, self.left()
        self.bar.update(self.task, total=total, completed=self.done, count=count, left=left)
        lines: Iterable[str] = (f"  {r['stage']}  step {r['steps'][0]}/{r['steps'][1]}" for r in self.running)
        best = [Text(f"  best so far: {self.best}")] if self.best else []
        return Group(self.bar, *best, *(Text(line, style="dim") for line in lines))
