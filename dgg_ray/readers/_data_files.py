"""Data files: their text, their JSON records, and all faults found in them, each with its location.

A file is UTF-8 text, also gzipped; other encodings and formats are named in the fault. Its records are a JSON
list or JSON lines. Reading goes on after a fault, so that all faults are raised together.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray.core.errors import Fault, PermanentStoreError, StudyError, nearest_name
from dgg_ray.core.phrases import plural
from dgg_ray.core.text_normalization import visible_text
from dgg_ray.storage import fetching

SHOWN = 20  # faults of one rule in one file that are shown; one more says how many were left out
COMPARED = 2000  # file names; comparing a misspelt one with a folder of 100,000 takes seconds
BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
FORMATS = {  # by their first bytes
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"BZh": "a bzip2 file",
    b"\x80\x04": "a pickle",
    b"SQLite format 3": "an SQLite file",
}
GZIP = b"\x1f\x8b"
SPACE = re.compile(r"[ \t\n\r]*")  # JSON's white space
MOST_DIGITS = 4300  # Python parses no longer text as a number
TOO_DEEP = "must not be nested so deeply"


# -- faults ----------------------------------------------------------------------------------------


class Location(NamedTuple):
    """The place of a value: its path `train[12].image`, the file and the 1-based line (0: unknown)."""

    path: str
    file: str = ""
    line: int = 0

    def key(self, key: str) -> Location:
        """Return the location of the value under a key."""
        return Location(f"{self.path}.{key}", self.file, self.line)  # _replace is slow; this is called a lot

    def item(self, index: int) -> Location:
        """Return the location of a list's item."""
        return Location(f"{self.path}[{index}]", self.file, self.line)

    @property
    def split(self) -> str:
        return self.path.partition("[")[0]


class Faults:
    """Collects the faults of data files: of each rule the first SHOWN per file; the others are counted.

    It collects notes too, about content that is allowed but worth knowing: a line for each kind and split.
    """

    def __init__(self) -> None:
        self.shown: list[Fault] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.first_left_out: dict[tuple[str, str], Location] = {}
        self.note_counts: dict[tuple[str, str], Counter[str]] = {}

    def add(
        self, location: Location, rule: str, found: str = "", suggest: Callable[[], str] | None = None
    ) -> None:
        """Add a fault.

        found: the value as text.
        suggest: returns the nearest legal name; as it may be slow, it is called only for faults shown.
        """
        kind = (rule, location.file)
        location = location._replace(path=printable(location.path))  # it may contain keys of a record
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            near = printable(suggest()) if suggest else ""
            found = shortened(printable(found))
            self.shown.append(Fault(location.path, rule, found, near, location.file, location.line))
        else:
            self.first_left_out.setdefault(kind, location)

    def add_note(self, location: Location, kind: str, subject: str = "") -> None:
        """Count a record of which something is worth knowing; `subject` tells notes of one kind apart."""
        self.note_counts.setdefault((location.split, kind), Counter())[subject] += 1

    def raise_any(self, source: str) -> None:
        """Raise StudyError with all faults, if there are any."""
        more = [
            Fault(
                location.path,
                f"{self.counts[kind] - SHOWN} more from here on: {kind[0]}",
                file=location.file,
                line=location.line,
            )
            for kind, location in self.first_left_out.items()
        ]
        if self.shown:
            raise StudyError([*self.shown, *more], source)

    def notes(self) -> tuple[str, ...]:
        """Return a line for each kind of note and split, with the numbers of records."""
        lines = []
        for (split, kind), counts in self.note_counts.items():
            parts = [
                f"{subject} ({plural(n, 'record')})" if subject else plural(n, "record")
                for subject, n in counts.items()
            ]
            more = f", and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
            lines.append(printable(f"{split}: {kind}: {', '.join(parts[:SHOWN])}{more}"))
        return tuple(lines)


def printable(text: str) -> str:
    """Escape characters that terminals and files may refuse: lone surrogates and control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def nearest_file(path: Path) -> str:
    """Return the file that was probably meant; empty if none is close, or the folder has too many files."""
    try:
        names = [entry.name for _, entry in zip(range(COMPARED + 1), path.parent.iterdir(), strict=False)]
    except OSError:
        return ""
    return nearest_name(path.name, names) if len(names) <= COMPARED else ""


# -- text ------------------------------------------------------------------------------------------


def fetch_to_this_machine(place: Path, setting: str, faults: Faults) -> Path | None:
    """Return the place's path on this machine, fetching a URL; None after a fault."""
    try:
        return fetching.local_path(place)
    except PermanentStoreError as error:
        faults.add(Location(setting), f"must be readable from this machine: {error}")
        return None


def load_text(path: Path, setting: str, faults: Faults) -> str | None:
    """Return the file's text without a byte order mark, its lines ended by \\n; None after a fault."""
    location = Location(setting, str(path))
    if not os.path.exists(path):  # Path.exists raises for names that are too long
        rule = "must be a file that exists"
        faults.add(Location(setting), rule, describe_missing(path), lambda: nearest_file(path))
        return None
    if not path.is_file():
        faults.add(Location(setting), "must be a file", str(path))
        return None
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        faults.add(location, "must be readable", getattr(error, "strerror", None) or str(error))
        return None
    if name := foreign_format(content):
        faults.add(location, "must be UTF-8 text", name)
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        faults.add(location._replace(line=line), "must be UTF-8 text", describe_byte(content[error.start]))
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def foreign_format(content: bytes) -> str:
    """Name the file's format if its first bytes show that it is not UTF-8; else return an empty text."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:4]:  # JSON without a mark: every second byte is 0, or three of four
        two_bytes = content[:4].count(0) == 2 and content[:2].count(0) == 1
        encoding = "UTF-16" if two_bytes else "UTF-32"
    if encoding:
        return f"{encoding}; convert it: iconv -f {encoding} -t UTF-8"
    return next((name for mark, name in FORMATS.items() if content.startswith(mark)), "")


def describe_byte(byte: int) -> str:
    """Describe a byte that is not UTF-8, with its character in the encoding that it is probably from."""
    try:
        character = bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return f"byte {byte:#04x}"
    return f"byte {byte:#04x}, which is {character!r} in Latin-1 and Windows-1252"


def describe_missing(path: Path) -> str:
    """Describe a path at which nothing exists; for a broken link, where it leads."""
    try:
        return f"{path.name}, a broken link to {os.readlink(path)}" if path.is_symlink() else str(path)
    except (OSError, ValueError):
        return str(path)


# -- JSON records ----------------------------------------------------------------------------------


class Record(NamedTuple):
    """A value from a data file; a well-formed one is a dictionary."""

    content: Any
    location: Location


class Decoder:
    """Decodes JSON values; a key that is written twice, so that one value would be lost, is a fault."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.repeated_keys: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._make_object, parse_int=parse_whole_number)

    def decode_at(self, text: str, position: int) -> tuple[Any, int]:
        """Return the value that starts at a position, and the position after it."""
        self.repeated_keys.clear()
        return self.decoder.raw_decode(text, position)

    def decode(self, text: str) -> Any:
        self.repeated_keys.clear()
        return self.decoder.decode(text)

    def _make_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated_keys += [key for key in content if keys.count(key) > 1]
        return content

    def add_faults(self, location: Location) -> None:
        """Add the faults of the value that was decoded last."""
        for key in self.repeated_keys:
            self.faults.add(location, "must contain each key once", f"{key!r} twice")


def parse_whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) < MOST_DIGITS else digits  # numbers are only ever used as texts


def load_json(path: Path, setting: str, faults: Faults) -> Any:
    """Return the file's JSON value; None after a fault."""
    text = load_text(path, setting, faults)
    if text is None:
        return None
    decoder, location = Decoder(faults), Location(setting, str(path))
    try:
        value = decoder.decode(text)
        decoder.add_faults(location)
        return value
    except json.JSONDecodeError as error:
        add_syntax_fault(error, location, faults)
    except RecursionError:
        faults.add(location, TOO_DEEP)
    return None


def load_records(path: Path, split: str, keys: Collection[str], faults: Faults) -> list[Record]:
    """Return all records of a JSON list or of JSON lines, told apart by the first character.

    If a part cannot be parsed, the records before it (JSON list) or all others (JSON lines) are returned, so
    that their faults are found too.

    keys: of records; an object that has none of them, and holds lists, is no record.
    """
    text = load_text(path, split, faults)
    if text is None:
        return []
    location = Location(split, str(path))
    start = text[skip_space(text, 0) :][:1]
    if not start:
        faults.add(location, "must contain at least one record", "an empty file")
        return []
    if start not in "[{":
        faults.add(location, "must be a JSON list or JSON lines", repr(text.lstrip()[:20]))
        return []
    before = len(faults.shown)
    decoder = Decoder(faults)
    if start == "[":
        iterate = list_values
    else:
        iterate = line_values if first_line_is_a_value(text, decoder) else concatenated_values
    records = []
    for index, (content, line) in enumerate(iterate(text, decoder, location, faults)):
        record = Record(content, Location(f"{split}[{index}]", str(path), line))
        decoder.add_faults(record.location)
        records.append(record)
    if start == "{" and len(records) == 1 and (wrapper := describe_wrapper(records[0].content, keys)):
        faults.add(location, "must be a JSON list or JSON lines", wrapper)
        return []
    if not records and len(faults.shown) == before:
        faults.add(location, "must contain at least one record", "an empty list")
    return records


def describe_wrapper(content: Any, keys: Collection[str]) -> str:
    """Describe an object that contains the records; empty if the object is a record itself."""
    if not isinstance(content, dict) or not content:
        return ""
    if any(difflib.get_close_matches(key, keys, n=1, cutoff=0.85) for key in content):
        return ""
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if not lists and not all(isinstance(value, dict) for value in content.values()):
        return ""
    names = ", ".join(list(content)[:5])
    if len(content) > 5:
        names += ", …"
    hint = f"; if the records are under {lists[0]!r}, write that list alone" if lists else ""
    return f"one object with the keys {names}{hint}"


def list_values(text: str, decoder: Decoder, location: Location, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Yield each element of a JSON list with the line on which it starts."""

    def expect(characters: str, position: int) -> int:
        if text[position : position + 1] not in tuple(characters):
            raise json.JSONDecodeError(f"{' or '.join(map(repr, characters))} expected", text, position)
        return position

    line, counted = 1, 0
    try:
        position = skip_space(text, text.index("[") + 1)
        more = text[position : position + 1] != "]"
        while more:
            line, counted = line + text.count("\n", counted, position), position
            content, position = decoder.decode_at(text, position)
            yield content, line
            position = expect(",]", skip_space(text, position))
            more = text[position] == ","
            after = skip_space(text, position + 1) if more else position
            if more and text[after : after + 1] == "]":
                raise json.JSONDecodeError("a comma stands before the closing bracket", text, position)
            position = after
        if (rest := skip_space(text, position + 1)) < len(text):
            raise json.JSONDecodeError("something follows the list", text, rest)
    except json.JSONDecodeError as error:
        add_syntax_fault(error, location, faults)
    except RecursionError:
        faults.add(location._replace(line=line), TOO_DEEP)


def first_line_is_a_value(text: str, decoder: Decoder) -> bool:
    """Tell whether the file has a value on each line; also if the first value never ends."""
    try:
        end = decoder.decode_at(text, skip_space(text, 0))[1]
    except (json.JSONDecodeError, RecursionError):
        return True
    return "\n" not in text[:end].lstrip()


def line_values(text: str, decoder: Decoder, location: Location, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Yield each line's value with the line's number."""
    comma_lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            try:
                yield decoder.decode(line), number
            except json.JSONDecodeError as error:
                if line[error.pos :].strip() != "," or not error.msg.startswith("Extra data"):
                    raise
                comma_lines.append(number)
                yield decoder.decode(line[: error.pos]), number
        except json.JSONDecodeError as error:
            add_syntax_fault(error, location._replace(line=number), faults)
        except RecursionError:
            faults.add(location._replace(line=number), TOO_DEEP)
    add_comma_fault(comma_lines, location, faults)


def concatenated_values(
    text: str, decoder: Decoder, location: Location, faults: Faults
) -> Iterator[tuple[Any, int]]:
    """Yield values that follow one another, each over several lines, with the line on which each starts."""
    comma_lines: list[int] = []
    line, counted, position = 1, 0, skip_space(text, 0)
    try:
        while position < len(text):
            line, counted = line + text.count("\n", counted, position), position
            content, position = decoder.decode_at(text, position)
            yield content, line
            position = skip_space(text, position)
            if text[position : position + 1] == ",":
                comma_lines.append(line + text.count("\n", counted, position))
                position = skip_space(text, position + 1)
    except json.JSONDecodeError as error:
        add_syntax_fault(error, location, faults)
    except RecursionError:
        faults.add(location._replace(line=line), TOO_DEEP)
    add_comma_fault(comma_lines, location, faults)


def add_comma_fault(comma_lines: Sequence[int], location: Location, faults: Faults) -> None:
    if comma_lines:
        rule = "must have no comma after a record of JSON lines: remove it, or put all records in [ ]"
        found = f"{len(comma_lines)} of them, the first on this line" if len(comma_lines) > 1 else "one"
        faults.add(location._replace(line=comma_lines[0]), rule, found)


def add_syntax_fault(error: json.JSONDecodeError, location: Location, faults: Faults) -> None:
    end = " (the file is cut off)" if error.pos >= len(error.doc.rstrip()) else ""
    if error.msg.startswith("Unterminated string"):
        end = " (the file is cut off, or a quotation mark is missing)"
    found = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}{end}"
    faults.add(location._replace(line=location.line or error.lineno), "must be valid JSON", found)


def skip_space(text: str, position: int) -> int:
    return SPACE.match(text, position).end()  # type: ignore[union-attr]


# -- texts of a record -----------------------------------------------------------------------------


def text_of(value: Any, location: Location, faults: Faults) -> str:
    """Return a non-empty text without outer white space, or a whole number as text; "" after a fault."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        faults.add(location, "must be text", repr(value))
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        faults.add(location, "must be text without lone surrogates", ascii(value))
        return ""
    text = value.strip()
    if not visible_text(text).strip():
        faults.add(location, "must not be empty", repr(value) if text else "")
        return ""
    return text


def texts_of(value: Any, location: Location, faults: Faults) -> tuple[str, ...]:
    """Return a list of texts; () for null."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        faults.add(location, "must be a list of texts", repr(value))
        return ()
    return tuple(text_of(text, location.item(i), faults) for i, text in enumerate(value))
