"""Records from JSON lists, JSON lines and COCO caption files, each with its place; and their faults."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray import staging
from dgg_ray.errors import Fault, Refused, StudyError, nearest

SHOWN = 20  # faults of one rule in one file; the next one says how many more there are
COMPARED = 2000  # names; comparing a misspelt one with a folder of 100,000 takes seconds
SPACE = re.compile(r"[ \t\n\r]*")  # as JSON has it


class Place(NamedTuple):
    """Where something stands: `train[12]`, the file and the 1-based line (0: not known)."""

    path: str
    file: str = ""
    line: int = 0

    def at(self, key: str) -> Place:
        return Place(f"{self.path}.{key}", self.file, self.line)  # _replace is slow, and this is called a lot


class Record(NamedTuple):
    content: Any
    place: Place


class Faults:
    """Collects faults; of each rule the first SHOWN per file are kept and the others counted."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.count: Counter[tuple[str, str]] = Counter()
        self.first_left_out: dict[tuple[str, str], Place] = {}

    def add(self, place: Place, rule: str, found: str = "", near: Callable[[], str] | None = None) -> None:
        """`near` is called only for a fault that is shown: looking for a name may be slow."""
        kind = (rule, place.file)
        self.count[kind] += 1
        if self.count[kind] <= SHOWN:
            name = near() if near else ""
            self.kept.append(Fault(place.path, rule, shortened(found), name, place.file, place.line))
        else:
            self.first_left_out.setdefault(kind, place)

    def raise_any(self, source: str) -> None:
        """StudyError with everything found, or nothing where nothing was."""
        more = [
            Fault(place.path, f"{self.count[kind] - SHOWN} more from here on: {kind[0]}", "", "", *place[1:])
            for kind, place in self.first_left_out.items()
        ]
        if self.kept:
            raise StudyError([*self.kept, *more], source)


def shortened(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def near_file(path: Path) -> str:
    """The name in that folder that was probably meant; empty where none is close or too many are there."""
    try:
        names = [entry.name for _, entry in zip(range(COMPARED + 1), path.parent.iterdir(), strict=False)]
    except OSError:
        return ""
    return nearest(path.name, names) if len(names) <= COMPARED else ""


def here(place: Path, setting: str, faults: Faults) -> Path | None:
    """The place on this machine; None after a fault."""
    try:
        return staging.staged(place)
    except Refused as error:
        faults.add(Place(setting), f"must be there, and readable from here: {error}")
        return None


def load_text(path: Path, setting: str, faults: Faults) -> str | None:
    """The file's text, UTF-8 with or without a byte order mark; None after a fault."""
    place = Place(setting, str(path))
    if not os.path.exists(path):  # Path.exists raises for names that are too long
        faults.add(Place(setting), "must be a file that exists", str(path), lambda: near_file(path))
        return None
    if not path.is_file():
        faults.add(Place(setting), "must be a file", str(path))
        return None
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        faults.add(place, "must be readable", error.strerror or str(error))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        faults.add(place._replace(line=line), "must be UTF-8 text", f"byte {content[error.start]:#04x}")
    return None


def load_json(path: Path, setting: str, faults: Faults) -> Any:
    """The file's JSON value; None after a fault."""
    text = load_text(path, setting, faults)
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        broken(error, Place(setting, str(path)), faults)
    except RecursionError:
        faults.add(Place(setting, str(path)), "must not be nested that deeply")
    return None


def load_records(path: Path, split: str, faults: Faults) -> list[Record]:
    """All records of a JSON list or of JSON lines, the kind told by the first character.

    Beside an unreadable spot the records before it (JSON list), or all others (JSON lines), are
    given, so that their faults are found in the same go.
    """
    text = load_text(path, split, faults)
    if text is None:
        return []
    whole = Place(split, str(path))
    start = text[SPACE.match(text).end() :][:1] if text else ""  # type: ignore[union-attr]
    if not start:
        faults.add(whole, "must hold at least one record", "an empty file")
        return []
    if start not in "[{":
        faults.add(whole, "must be a JSON list or JSON lines", repr(text.lstrip()[:20]))
        return []
    before = len(faults.kept)
    records = [
        Record(content, Place(f"{split}[{index}]", str(path), line))
        for index, (content, line) in enumerate((listed if start == "[" else lines)(text, whole, faults))
    ]
    if not records and len(faults.kept) == before:
        faults.add(whole, "must hold at least one record", "an empty list")
    return records


def listed(text: str, whole: Place, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Each element of a JSON list with the line on which it starts."""
    decode = json.JSONDecoder().raw_decode

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
            content, at = decode(text, at)
            yield content, line
            at = expect(",]", skip(text, at))
            more = text[at] == ","
            at = skip(text, at + 1) if more else at
        if (rest := skip(text, at + 1)) < len(text):
            raise json.JSONDecodeError("something follows the list", text, rest)
    except json.JSONDecodeError as error:
        broken(error, whole, faults)
    except RecursionError:
        faults.add(whole._replace(line=line), "must not be nested that deeply")


def lines(text: str, whole: Place, faults: Faults) -> Iterator[tuple[Any, int]]:
    """Each line's value with the line; a value spread over lines is a JSON object, so no list."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and "\n" in text.strip():
        keys = ", ".join(map(str, value))
        faults.add(whole, "must be a JSON list or JSON lines", f"one object with the keys {keys}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line), number
            except json.JSONDecodeError as error:
                broken(error, whole._replace(line=number), faults)
            except RecursionError:
                faults.add(whole._replace(line=number), "must not be nested that deeply")


def broken(error: json.JSONDecodeError, place: Place, faults: Faults) -> None:
    end = " (the file is cut off)" if error.pos >= len(error.doc.rstrip()) else ""
    if error.msg.startswith("Unterminated string"):
        end = " (the file is cut off, or a quotation mark is missing)"
    found = f"{error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}{end}"
    faults.add(place._replace(line=place.line or error.lineno), "must be whole JSON", found)


def skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


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
    if not value.strip():
        faults.add(place, "must not be empty")
    return value.strip()


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


def captions_by_picture(file: Path, faults: Faults) -> dict[str, tuple[str, ...]]:
    """Captions by file name, and by its last part where that is unique; {} after a fault.

    The file has COCO's form:

        {"images": [{"id": 1, "file_name": "0007.jpg"}],
         "annotations": [{"image_id": 1, "caption": "a plum on a plate"}, …]}

    Names are what a record is matched by: numbers follow the order of some other file.
    """
    place = Place("references", str(file))
    before = len(faults.kept)
    data = load_json(file, "references", faults)
    if len(faults.kept) > before:
        return {}
    try:
        names = {image["id"]: Path(image["file_name"]) for image in data["images"]}
        captions: dict[Path, list[str]] = {name: [] for name in names.values()}
        for i, note in enumerate(data["annotations"]):
            spot = place.at(f"annotations[{i}].caption")
            captions[names[note["image_id"]]].append(text_of(note["caption"], spot, faults))
    except (KeyError, TypeError) as error:
        rule = "must hold `images` [{id, file_name}] and `annotations` [{image_id, caption}]"
        faults.add(place, rule, f"{type(error).__name__}: {error}")
        return {}
    if not any(captions.values()):
        faults.add(place, "must hold at least one caption")
    uses = Counter(name.name for name in captions)
    found = {name.name: tuple(texts) for name, texts in captions.items() if texts and uses[name.name] == 1}
    return found | {str(name): tuple(texts) for name, texts in captions.items() if texts}


def image_name(value: Any, place: Place, faults: Faults) -> str:
    """The one picture that a record names, "" for none; some files hold it in a list."""
    if isinstance(value, list):
        if len(value) > 1:
            faults.add(place, "must be one picture", f"{len(value)} pictures")
            return ""
        value = value[0] if value else None
    return "" if value is None else text_of(value, place, faults)


def inside(image: str, root: Path, place: Place, faults: Faults) -> Path | None:
    """The picture's path under the image folder; None after a fault. Links are followed later."""
    path = Path(image)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or path.is_absolute() or "\0" in image:
            faults.add(place, "must be a path inside the image folder", repr(image))
            return None
    return root / path
