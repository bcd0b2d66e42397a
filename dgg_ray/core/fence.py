"""An accessory that fails is named in one line, and what exists without it is shown.

    fence = Fence()
    with fence("figure importance"):           # an error inside ends the block, and nothing else
        draw("importance")
    rows = fence.tried("costs", [], cost_rows, results.costs)   # [] where `cost_rows` fails
    fence.lines     # ["figure importance is missing: ZeroDivisionError: division by zero"]

Accessories are figures, tables, sections of the page, trackers, the display, copies for other programs. Each
has a fence of its own, so that one does not take the next along. Stages, scores, keys and the choice of a
setting are no accessories: an error in them must be seen, and is never fenced.

How a section of the report uses it: one `fence.tried(name, default, make, …)` for each section, whose name
is what a reader knows it by; the page lists `fence.lines` at its end, and whoever owns the fence shows them
on the terminal. The traceback goes to the study's logs (event_log.py) where they are being written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from dgg_ray.core import event_log
from dgg_ray.core.errors import describe

LONGEST = 300  # characters of an error's message
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class Fence:
    """Collects what failed, each name once.

    tell: called with each line as it comes, for what goes on long after; it must not raise.
    lost: name → its line.
    """

    tell: Callable[[str], None] = lambda line: None
    lost: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def lines(self) -> list[str]:
        """A line on each that failed, in the order in which they did."""
        return list(self.lost.values())

    @contextmanager
    def __call__(self, name: str, becomes: str = "is missing") -> Iterator[None]:
        """Names an error of the block in one line; Ctrl-C and the like pass.

        name: what the block makes, as a reader knows it; becomes: what comes of it then.
        """
        try:
            yield
        except Exception as problem:
            self.note(name, problem, becomes)

    def tried(self, name: str, default: T, make: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """The result of `make`, or the default where it fails."""
        with self(name):
            return make(*args, **more)
        return default

    def note(self, name: str, problem: Exception, becomes: str = "is missing") -> None:
        """Name an error that was caught elsewhere."""
        if name in self.lost:
            return  # what fails every few seconds is said once
        text = " ".join(str(problem).split())[:LONGEST]
        self.lost[name] = f"{name} {becomes}: {type(problem).__name__}{text and f': {text}'}"
        event_log.trouble("not made", describe(problem), level=logging.WARNING, of_what=name)
        self.tell(self.lost[name])
