"""Records from JSON lists and JSON lines, each with its place, and the texts in them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray.core.texts import visible
from dgg_ray.readers._data_faults import Faults, Place
from dgg_ray.readers._data_files import load_text

SPACE = re.compile(r"[ \t\n\r]*")  # as JSON has it
DIGITS = 4300  # Python takes no longer text for a number


class Record(NamedTuple):
    content: Any
    place: Place


class Decoder:
    """JSON values; a key written twice, of which only one value would be kept, is a fault."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.twice: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self.object, parse_int=whole_number)

    def raw(self, text: str, at: int) -> tuple[Any, int]:
        """The value that starts there, and where it ends."""
        self.twice.clear()
        return self.decoder.raw_decode(text, at)

    def whole(self, text: str) -> Any:
        self.twice.clear()
        return self.decoder.decode(text)

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.twice += [key for key in found if keys.count(key) > 1]
        return found

    def told(self, place: Place) -> None:
        """Faults of what was decoded last."""
        for key in self.twice:
            self.faults.add(place, "must hold each key once", f"{key!r} twice")


def whole_number(digits: str) -> int | str:
    return int(digits) if len(digits) < DIGITS else digits  # a number is only ever read as its text


def load_json(path: Path, setting: str, faults: Faults) -> Any:
    """The file's JSON value; None after a fault."""
    text = load_text(path, setting, faults)
    if text is None:
        return None
    decoder, place = Decoder(faults), Place(setting, str(path))
    try:
        value = decoder.whole(text)
        decoder.told(place)
        return value
    except json.JSONDecodeError as error:
        broken(error, place, faults)
    except RecursionError:
        faults.add(place, "must not be nested that deeply")
    return None


def load_records(path: Path, split: str, keys: Collection[str], faults: Faults) -> list[Record]:
    """All records of a JSON list or of JSON lines, the kind told by the first character.

    Beside an unreadable spot the records before it (JSON list), or all others (JSON lines), are
    given, so that their faults are found in the same go.

    keys: of records; an object with none of them that holds lists is no record.
    """
    text = load_text(path, split, faults)
    if text is None:
        return []
    whole = Place(split, str(path))
    start = text[skip(text, 0) :][:1]
    if not start:
        faults.add(whole, "must hold at least one record", "an empty file")
        return []
    if start not in "[{":
        faults.add(whole, "must be a JSON list or JSON lines", repr(text.lstrip()[:20]))
        return []
    before = len(faults.kept)
    decoder = Decoder(faults)
    read = listed if start == "[" else lines if begins_with_lines(text, decoder) else spread
    records = []
    for index, (content, line) in enumerate(read(text, decoder, whole, faults)):
        place = Place(f"{split}[{index}]", str(path), line)
        decoder.told(place)
        records.append(Record(content, place))
    if start == "{" and len(records) == 1 and (inner := wrapped(records[0].content, keys)):
        faults.add(whole, "must be a JSON list or JSON lines", inner)
        return []
    if not records and len(faults.kept) == before:
        faults.add(whole, "must hold at least one record", "an empty list")
    return records


def wrapped(content: Any, keys: Collection[str]) -> str:
    """A description of an object that wraps the records; empty for a record."""
    if not isinstance(content, dict) or not content:
        return ""
    if any(difflib.get_close_matches(key, keys, n=1, cutoff=0.85) for key in content):
        return ""
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if not lists and not all(isinstance(value, dict) for value in content.values()):
        return ""
    names = ", ".join(list(content)[:5]) + ", …" * (len(content) > 5)
    hint = f"; if the records are under {lists[0]!r}, write that list alone" if lists else ""
    return f"one object with the keys {names}{hint}"


def listed(text: str, decoder: Decoder, whole: Place, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Each element of a JSON list with the line on which it starts."""

    def expect(characters: str, at: int) -> int:
        if text[at : at + 1] not in tuple(characters):
            raise json.JSONDecodeError(f"{' or '.join(map(repr, characters))} expected", text, at)
        return at

    line, counted = 1, 0
    try:
        at = skip(text, text.index("[") + 1)
        more = text[at : at + 1] != "]"
        while more:
            line, counted = line + text.count("\n", counted, at), at
            content, at = decoder.raw(text, at)
            yield content, line
            at = expect(",]", skip(text, at))
            more = text[at] == ","
            after = skip(text, at + 1) if more else at
            if more and text[after : after + 1] == "]":
                raise json.JSONDecodeError("a comma stands before the closing bracket", text, at)
            at = after
        if (rest := skip(text, at + 1)) < len(text):
            raise json.JSONDecodeError("something follows the list", text, rest)
    except json.JSONDecodeError as error:
        broken(error, whole, faults)
    except RecursionError:
        faults.add(whole._replace(line=line), "must not be nested that deeply")


def begins_with_lines(text: str, decoder: Decoder) -> bool:
    """Whether the first line is a value of its own; so it is, too, where what it begins is never whole."""
    try:
        end = decoder.raw(text, skip(text, 0))[1]
    except (json.JSONDecodeError, RecursionError):
        return True
    return "\n" not in text[:end].lstrip()


def lines(text: str, decoder: Decoder, whole: Place, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Each line's value with the line."""
    commas: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            try:
                yield decoder.whole(line), number
            except json.JSONDecodeError as error:
                if line[error.pos :].strip() != "," or not error.msg.startswith("Extra data"):
                    raise
                commas.append(number)
                yield decoder.whole(line[: error.pos]), number
        except json.JSONDecodeError as error:
            broken(error, whole._replace(line=number), faults)
        except RecursionError:
            faults.add(whole._replace(line=number), "must not be nested that deeply")
    told_commas(commas, whole, faults)


def spread(text: str, decoder: Decoder, whole: Place, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Values one after the other, each over several lines, with the line on which it starts."""
    commas: list[int] = []
    line, counted, at = 1, 0, skip(text, 0)
    try:
        while at < len(text):
            line, counted = line + text.count("\n", counted, at), at
            content, at = decoder.raw(text, at)
            yield content, line
            at = skip(text, at)
            if text[at : at + 1] == ",":
                commas.append(line + text.count("\n", counted, at))
                at = skip(text, at + 1)
    except json.JSONDecodeError as error:
        broken(error, whole, faults)
    except RecursionError:
        faults.add(whole._replace(line=line), "must not be nested that deeply")
    told_commas(commas, whole, faults)


def told_commas(commas: Sequence[int], whole: Place, faults: Faults) -> None:
    if commas:
        rule = "must have no comma after a record of JSON lines: leave it out, or put all records in [ ]"
        found = f"{len(commas)} of them, the first here" if len(commas) > 1 else "one"
        faults.add(whole._replace(line=commas[0]), rule, found)


def broken(error: json.JSONDecodeError, place: Place, faults: Faults) -> None:
    end = " (the file is cut off)" if error.pos >= len(error.doc.rstrip()) else ""
    if error.msg.startswith("Unterminated string"):
        end = " (the file is cut off, or a quotation mark is missing)"
    found = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}{end}"
    faults.add(place._replace(line=place.line or error.lineno), "must be whole JSON", found)


def skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


# -- texts -----------------------------------------------------------------------------------------


def text_of(value: Any, place: Place, faults: Faults) -> str:
    """A text that is not empty, outer white space removed; "" after a fault. Whole numbers are taken."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        faults.add(place, "must be text", repr(value))
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        faults.add(place, "must be text without lone surrogates", ascii(value))
        return ""
    text = value.strip()
    if not visible(text).strip():
        faults.add(place, "must not be empty", repr(value) if text else "")
        return ""
    return text


def texts_of(value: Any, place: Place, faults: Faults) -> tuple[str, ...]:
    """A list of texts, () where there is none."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        faults.add(place, "must be a list of texts", repr(value))
        return ()
    return tuple(
        text_of(item, place._replace(path=f"{place.path}[{i}]"), faults) for i, item in enumerate(value)
    )
