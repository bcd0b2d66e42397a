"""What can go wrong, as a tree.

DggError
├── StudyError      the study file or the files it names are wrong: every fault at once, exit code 2
├── StageError      a stage ended early: kept beside the stage, the rest of the study goes on
│   ├── NotFinite       loss or gradient became NaN or infinite
│   ├── NoParent        the state that the stage starts from is not to be had
│   └── OverBudget      the stage was not started: it might not end within the study's budget
├── StoreError      a stage cannot be written or read
│   ├── OtherVersion    a snapshot was written by a version with another layout
│   ├── InUse           the store holds stages of studies whose needs are not known
│   ├── NoTimes         the store does not say how old what it holds is
│   └── Refused         another try would give the same answer: not allowed, not there, a package is missing
├── PluginError     a plug-in of the user's own raised before any stage began
├── ClusterError    the cluster cannot give what was asked for
└── ResultsError    a folder holds no results that answer the question
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STRICT = {"extra": "forbid", "allow_inf_nan": False}  # read by pydantic: an unknown setting is a fault


class DggError(Exception):
    """Base of all errors that a user can cause; its text says what was wanted, found, and what to do."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a study.

    path: where in the file, dotted: `training.learning_rate`, `tasks.digits.train[12].image`.
    rule: what was wanted, as a clause: `must be at least 1`.
    found: the value, already printed; empty where there is none.
    near: the nearest legal name; empty where there is none.
    file: the file with the fault where it is not the study file itself.
    line: 1-based line in that file; 0 where there is none.
    """

    path: str
    rule: str
    found: str = ""
    near: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}: " if self.file else ""
        line = f"line {self.line}  " if self.line else ""
        found = f", got {self.found}" if self.found else ""
        near = f". Did you mean {self.near!r}?" if self.near else ""
        return f"{place}{line}{self.path}: {self.rule}{found}{near}"


class StudyError(DggError):
    """The study, or a file that it names, breaks a rule; holds every fault found."""

    def __init__(self, faults: Sequence[Fault], source: str = "study") -> None:
        self.faults = tuple(faults)
        self.source = source
        super().__init__(str(self))

    def __str__(self) -> str:
        count = f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)}"
        ordered = sorted(self.faults, key=lambda fault: (fault.file, fault.line, fault.path))
        return "\n".join([f"{self.source}: {count}", *(f"  {fault}" for fault in ordered)])

    def __reduce__(self):  # two arguments: the default would pass only the message
        return (StudyError, (self.faults, self.source))


class StageError(DggError):
    """A stage ended early."""


class NotFinite(StageError):
    """Loss or gradient became NaN or infinite."""


class NoParent(StageError):
    """The state that the stage starts from is not to be had."""


class OverBudget(StageError):
    """The stage was not started: it might not end within the study's budget. Not kept in the store."""


class StoreError(DggError):
    """A stage cannot be written or read."""


class OtherVersion(StoreError):
    """What another version wrote in the middle of a stage cannot be gone on with."""


class InUse(StoreError):
    """What a store holds may be needed by studies of which nothing is known."""


class NoTimes(StoreError):
    """Without times nobody knows what others are writing just now."""


class Refused(StoreError):
    """What was asked for over a network is not to be had from this machine, however often it is tried."""


class PluginError(DggError):
    """A plug-in of the user's own raised; the text says in which line."""


class ClusterError(DggError):
    """The cluster cannot give what was asked for."""


class ResultsError(DggError):
    """A folder holds no results that answer the question."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """The legal name that `name` was probably meant to be; empty where none is close."""
    return next(iter(difflib.get_close_matches(name, list(legal), n=1, cutoff=0.6)), "")


def hint(name: str, legal: Iterable[str]) -> str:
    """The end of a message that refuses `name`: the legal name that was probably meant; "" for none."""
    near = nearest(name, legal)
    return f". Did you mean {near!r}?" if near else ""


def describe(problem: BaseException) -> dict[str, str]:
    """What is kept of an error that ended a stage."""
    return {
        "error": type(problem).__name__,
        "message": str(problem),
        "traceback": "".join(traceback.format_exception(problem)),
    }
