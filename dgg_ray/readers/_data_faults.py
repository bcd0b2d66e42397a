"""Faults and notes of data files, each with its place: all faults are collected, and raised at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dgg_ray.core.errors import Fault, StudyError, nearest
from dgg_ray.core.wording import plural

SHOWN = 20  # faults of one rule in one file; the next one says how many more there are
COMPARED = 2000  # names; comparing a misspelt one with a folder of 100,000 takes seconds


class Place(NamedTuple):
    """Where something stands: `train[12]`, the file and the 1-based line (0: not known)."""

    path: str
    file: str = ""
    line: int = 0

    def at(self, key: str) -> Place:
        return Place(f"{self.path}.{key}", self.file, self.line)  # _replace is slow, and this is called a lot

    @property
    def split(self) -> str:
        return self.path.partition("[")[0]


class Faults:
    """Collects faults; of each rule the first SHOWN per file are kept and the others counted.

    Collects notes too, what is allowed and yet should be known: one line for each kind and split.
    """

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.count: Counter[tuple[str, str]] = Counter()
        self.first_left_out: dict[tuple[str, str], Place] = {}
        self.noted: dict[tuple[str, str], Counter[str]] = {}

    def add(self, place: Place, rule: str, found: str = "", near: Callable[[], str] | None = None) -> None:
        """`near` is called only for a fault that is shown: looking for a name may be slow."""
        kind = (rule, place.file)
        place = place._replace(path=printable(place.path))  # keys of a record are in it
        self.count[kind] += 1
        if self.count[kind] <= SHOWN:
            name = printable(near()) if near else ""
            found = shortened(printable(found))
            self.kept.append(Fault(place.path, rule, found, name, place.file, place.line))
        else:
            self.first_left_out.setdefault(kind, place)

    def note(self, place: Place, kind: str, what: str = "") -> None:
        """`what`: which of several things of this kind."""
        self.noted.setdefault((place.split, kind), Counter())[what] += 1

    def raise_any(self, source: str) -> None:
        """StudyError with everything found, or nothing where nothing was."""
        more = [
            Fault(place.path, f"{self.count[kind] - SHOWN} more from here on: {kind[0]}", "", "", *place[1:])
            for kind, place in self.first_left_out.items()
        ]
        if self.kept:
            raise StudyError([*self.kept, *more], source)

    def notes(self) -> tuple[str, ...]:
        """A line for each kind of note and split, with the number of records."""
        lines = []
        for (split, kind), counts in self.noted.items():
            told = [
                f"{what} ({plural(n, 'record')})" if what else plural(n, "record")
                for what, n in counts.items()
            ]
            more = f", and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
            lines.append(printable(f"{split}: {kind}: {', '.join(told[:SHOWN])}{more}"))
        return tuple(lines)


def printable(text: str) -> str:
    """Text that every terminal and file takes: JSON may hold lone surrogates and control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def near_file(path: Path) -> str:
    """The name in that folder that was probably meant; empty where none is close or too many are there."""
    try:
        names = [entry.name for _, entry in zip(range(COMPARED + 1), path.parent.iterdir(), strict=False)]
    except OSError:
        return ""
    return nearest(path.name, names) if len(names) <= COMPARED else ""
