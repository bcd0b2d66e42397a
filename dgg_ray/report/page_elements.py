"""The elements of the page: sections and the tables, figures, galleries and paragraphs in them.

`report.html.j2` has a macro for each `kind`. All text is plain; the template escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

CellText = str | tuple[str, str]  # the text, or the text and a second, smaller line


@dataclass(frozen=True)
class TableRow:
    """A row of a table. cells: the first one is the row's header; mark: `best`, `sum`, or empty."""

    cells: Sequence[CellText]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its caption.

    caption: what the numbers are, over which blocks, and their unit; file: the CSV file with all of them,
    relative to the page; text_columns: indices of the columns that hold text rather than numbers.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[TableRow]
    file: str = ""
    text_columns: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class FigureImage:
    """A figure as drawn.

    name: its module in figures/; caption: the first line of that module's docstring; reading: how to read it;
    width: natural width in CSS pixels; png: the image in base64.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    reading: str
    width: int
    png: str

    @property
    def file(self) -> str:
        return f"figures/{self.name}.csv"


@dataclass(frozen=True)
class ExampleCard:
    """A question that was answered correctly after its task was trained, and wrongly at the end.

    before, after: the two answers; frequency: in how many runs that happened, in words; picture: a data URI
    or empty; picture_width: in CSS pixels.
    """

    task: str
    question: str
    answer: str
    before: str
    after: str
    frequency: str
    picture: str = ""
    picture_width: int = 0


@dataclass(frozen=True)
class Gallery:
    """Forgotten examples, each with its picture."""

    kind: ClassVar[str] = "gallery"
    examples: Sequence[ExampleCard]


@dataclass(frozen=True)
class Paragraphs:
    """Lines of text. numbered: as a numbered list; preformatted: unchanged, in a fixed-width font."""

    kind: ClassVar[str] = "paragraphs"
    lines: Sequence[str]
    numbered: bool = False
    preformatted: bool = False


@dataclass(frozen=True)
class Collapsible:
    """Elements that are hidden until the reader opens their title. anchor: the target of links, or empty."""

    kind: ClassVar[str] = "collapsible"
    title: str
    elements: Sequence[PageElement]
    anchor: str = ""


PageElement = Table | FigureImage | Gallery | Paragraphs | Collapsible


@dataclass(frozen=True)
class SectionContent:
    """The sentences of a section, and the elements that support them; empty for a section without content."""

    sentences: Sequence[str] = ()
    elements: Sequence[PageElement] = ()

    def __bool__(self) -> bool:
        return bool(self.sentences or self.elements)


@dataclass(frozen=True)
class Section:
    """A question, its answer in a few sentences, and the elements that support it.

    anchor: the target of links; title: the question; short_title: its entry in the table of contents.
    """

    anchor: str
    title: str
    short_title: str
    sentences: Sequence[str] = ()
    elements: Sequence[PageElement] = ()


def collapsible(title: str, *elements: PageElement | None, anchor: str = "") -> list[PageElement]:
    """List one collapsible element with those contents that are not None; nothing where all are."""
    present = [element for element in elements if element is not None]
    return [Collapsible(title, present, anchor)] if present else []


def paragraphs(lines: Sequence[str], numbered: bool = False, preformatted: bool = False) -> Paragraphs | None:
    """Return the lines as paragraphs, or None where there is no line."""
    return Paragraphs(lines, numbered, preformatted) if lines else None


def section_content(
    sentences: Sequence[str], *elements: PageElement | Sequence[PageElement] | None
) -> SectionContent:
    """Collect the content of a section; elements that are None are left out."""
    flat: list[PageElement] = []
    for element in elements:
        if isinstance(element, PageElement):
            flat.append(element)
        elif element is not None:
            flat += element
    return SectionContent(sentences, flat)
