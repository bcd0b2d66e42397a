"""Optional outputs: if one fails, a message names it, and everything else continues.

    optional = OptionalOutputs()
    with optional.attempt("figure importance"):           # an error ends the block and nothing else
        draw("importance")
    rows = optional.value_or("costs", [], cost_rows, results.costs)   # [] if `cost_rows` fails
    optional.messages     # ["figure importance is missing: ZeroDivisionError: division by zero"]

Optional outputs are figures, tables, sections of the report, trackers, the progress display and copies for
other programs. Each is attempted alone, so that one failure does not take the next output along. Stages,
scores, keys and the choice of a setting are not optional: their errors must stop the study.

A section of the report calls `optional.value_or(name, default, make, …)`, where a reader knows the section by
that name. The report lists `optional.messages` at its end; the caller that created the object prints them on
the terminal. The traceback goes to the event log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from dgg_ray.core import event_log
from dgg_ray.core.errors import error_record

MAX_MESSAGE = 300  # characters of an error's message that are shown
P = ParamSpec("P")
T = TypeVar("T")


def ignore(message: str) -> None:
    """Do nothing with a message."""


@dataclass(eq=False)
class OptionalOutputs:
    """Attempts optional outputs and collects those that failed, each name once.

    on_failure: called with each message at once, for processes that run long; it must not raise.
    failures: name → message.
    """

    on_failure: Callable[[str], None] = ignore
    failures: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def messages(self) -> list[str]:
        """One message for each failed output, in the order of failure."""
        return list(self.failures.values())

    @contextmanager
    def attempt(self, name: str, consequence: str = "is missing") -> Iterator[None]:
        """Record an error of the block instead of raising it; Ctrl-C and the like pass through.

        name: the output, as a reader knows it; consequence: what happens to it after an error.
        """
        try:
            yield
        except Exception as problem:
            self.record_failure(name, problem, consequence)

    def value_or(self, name: str, default: T, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `make`, or the default if it fails."""
        with self.attempt(name):
            return make(*args, **kwargs)
        return default

    def record_failure(self, name: str, problem: Exception, consequence: str = "is missing") -> None:
        """Record an error that the caller caught."""
        if name in self.failures:
            return  # an output that fails every few seconds is reported once
        text = " ".join(str(problem).split())[:MAX_MESSAGE]
        details = f": {text}" if text else ""
        self.failures[name] = f"{name} {consequence}: {type(problem).__name__}{details}"
        event_log.log_error("output failed", error_record(problem), level=logging.WARNING, output=name)
        self.on_failure(self.failures[name])
