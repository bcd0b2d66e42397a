"""The parts of a page: sections, and in them tables, figures, pictures and what is folded away.

`report.html.j2` knows how each `kind` looks. Text is plain; the template escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

Cell = str | tuple[str, str]  # a text, or one with a second, smaller line


@dataclass(frozen=True)
class Row:
    """cells: the first one heads the row. mark: `best`, `sum`, or nothing."""

    cells: Sequence[Cell]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """caption: what it shows, of what and in which unit; file: where the report keeps all its numbers.

    words: the places of columns that hold words rather than numbers.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Row]
    file: str = ""
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Drawn:
    """A figure. name: file in plots/; caption: its docstring's first line; reading: how to read it.

    width: natural, in CSS pixels; png: as base64; alt: what it shows, for who does not see it.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    reading: str
    width: int
    png: str
    alt: str = ""

    @property
    def file(self) -> str:
        return f"figures/{self.name}.csv"


@dataclass(frozen=True)
class Wrong:
    """A question that was answered right once. picture: a data URI, empty for none; side: its width."""

    task: str
    question: str
    answer: str
    before: str
    after: str
    often: str
    picture: str = ""
    side: int = 0


@dataclass(frozen=True)
class Gallery:
    """Questions with their pictures."""

    kind: ClassVar[str] = "gallery"
    items: Sequence[Wrong]


@dataclass(frozen=True)
class Text:
    """Paragraphs; marked: as a list; code: as it stands, in a fixed font."""

    kind: ClassVar[str] = "text"
    lines: Sequence[str]
    marked: bool = False
    code: bool = False


@dataclass(frozen=True)
class Fold:
    """Content that is folded away below its title. name: where links lead, if there are any."""

    kind: ClassVar[str] = "fold"
    title: str
    parts: Sequence[Part]
    name: str = ""


Part = Table | Drawn | Gallery | Text | Fold


@dataclass(frozen=True)
class Section:
    """A question, an answer of at most three sentences, and what it rests on. name: where links lead."""

    name: str
    title: str
    short: str
    sentences: Sequence[str] = ()
    parts: Sequence[Part] = ()

    def __bool__(self) -> bool:
        """Whether it has something to say."""
        return bool(self.sentences or self.parts)


def fold(title: str, *parts: Part | None, name: str = "") -> list[Part]:
    """A fold with those parts that there are, or nothing."""
    there = [part for part in parts if part is not None]
    return [Fold(title, there, name)] if there else []


def text(lines: Sequence[str], marked: bool = False, code: bool = False) -> Text | None:
    return Text(lines, marked, code) if lines else None
