"""The package's errors as a tree, and the record of an error that is stored beside a stage.

DggError
├── StudyError      the study file, or a file that it names, breaks a rule: every fault at once, exit code 2
├── StageError      a stage ended early: the error is stored beside the stage, and the study continues
│   ├── NonFiniteError       the loss or the gradient became NaN or infinite
│   ├── MissingParentError   the parent stage's state is missing
│   └── OverBudgetError      the stage was not started, because it might not end within the study's budget
├── StoreError      a stage cannot be written or read
│   ├── IncompatibleCheckpointError  another version wrote the mid-stage checkpoint, in another layout
│   ├── StoreInUseError              the store holds stages of studies whose needs are unknown
│   ├── MissingTimestampsError       the store does not say how old its objects are
│   └── PermanentStoreError          a retry would fail too: no permission, no such object, a missing package
├── PluginError     a user's plug-in raised before any stage began
├── ClusterError    the cluster cannot provide what the study asks for
└── ResultsError    a folder holds no results that answer the question
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STRICT = {"extra": "forbid", "allow_inf_nan": False}  # pydantic's configuration: an unknown key is a fault


class DggError(Exception):
    """Base class of all errors that a user can cause.

    The text says what was wanted, what was found and what to do.
    """


@dataclass(frozen=True)
class Fault:
    """One broken rule in a study.

    path: where in the file, dotted: `training.learning_rate`, `tasks.digits.train[12].image`.
    rule: what was wanted, as a clause: `must be at least 1`.
    found: the value as text; empty where there is none.
    near: the nearest legal name; empty where there is none.
    file: the file with the fault, if it is not the study file itself.
    line: 1-based line in that file; 0 where there is none.
    """

    path: str
    rule: str
    found: str = ""
    near: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        file = f"{self.file}: " if self.file else ""
        line = f"line {self.line}  " if self.line else ""
        found = f", got {self.found}" if self.found else ""
        near = f". Did you mean {self.near!r}?" if self.near else ""
        return f"{file}{line}{self.path}: {self.rule}{found}{near}"


class StudyError(DggError):
    """The study, or a file that it names, breaks rules; `faults` holds all of them."""

    def __init__(self, faults: Sequence[Fault], source: str = "study") -> None:
        self.faults = tuple(faults)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        count = f"{len(self.faults)} fault{'' if len(self.faults) == 1 else 's'}"
        ordered = sorted(self.faults, key=lambda fault: (fault.file, fault.line, fault.path))
        return "\n".join([f"{self.source}: {count}", *(f"  {fault}" for fault in ordered)])

    def __reduce__(self):  # the constructor takes two arguments; the default would pass only the message
        return (StudyError, (self.faults, self.source))


class StageError(DggError):
    """A stage ended early."""


class NonFiniteError(StageError):
    """The loss or the gradient became NaN or infinite."""


class MissingParentError(StageError):
    """The parent stage's state is missing."""


class OverBudgetError(StageError):
    """The stage was not started, because it might not end within the study's budget. It is not stored."""


class StoreError(DggError):
    """A stage cannot be written or read."""


class IncompatibleCheckpointError(StoreError):
    """Another version wrote this mid-stage checkpoint, and it cannot be resumed."""


class StoreInUseError(StoreError):
    """Studies whose needs are unknown may need what the store holds."""


class MissingTimestampsError(StoreError):
    """The store does not say how old its objects are, so it may hold files that are still being written."""


class PermanentStoreError(StoreError):
    """A remote object cannot be read or written from this machine, however often it is tried."""


class PluginError(DggError):
    """A user's plug-in raised; the text names the line."""


class ClusterError(DggError):
    """The cluster cannot provide what the study asks for."""


class ResultsError(DggError):
    """A folder holds no results that answer the question."""


def nearest_name(name: str, legal: Iterable[str]) -> str:
    """Return the legal name that `name` probably means; empty where none is close.

    >>> nearest_name("Ewc", ["EWC", "EMA"]), nearest_name("strenght", ["strength"]), nearest_name("x", ["y"])
    ('EWC', 'strength', '')
    """
    names = list(legal)
    same_letters = [other for other in names if other.casefold() == name.casefold()]
    return next(iter(same_letters or difflib.get_close_matches(name, names, n=1, cutoff=0.6)), "")


def did_you_mean(name: str, legal: Iterable[str]) -> str:
    """Return the end of a message that rejects `name`: the name that was probably meant, or ""."""
    near = nearest_name(name, legal)
    return f". Did you mean {near!r}?" if near else ""


def error_record(problem: BaseException) -> dict[str, str]:
    """Return the record of an error, as it is logged and stored."""
    return {
        "error": type(problem).__name__,
        "message": str(problem),
        "traceback": "".join(traceback.format_exception(problem)),
    }
