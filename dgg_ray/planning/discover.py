"""Tasks in a folder of data: which files belong together, where their pictures lie, how answers are judged.

Files are told by their names: `train`, `test` and `val`, `valid`, `validation` or `dev` as a word of the
file's name or as the folder that it lies in, ending in .json or .jsonl, gzipped or not.

    charts/train.json  charts/test.json            the task `charts`
    charts_train.json  charts_test.json            the same
    train/charts.json  test/charts.json            the same

A task needs a train and a test file in LLaVA's format, with pictures that are there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgg_ray.core.interfaces import Example
from dgg_ray.readers._data_faults import Faults
from dgg_ray.readers.llava import Item, parse
from dgg_ray.scorers.contains_choice import options

SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
DEEPEST, MOST_FILES = 5, 100_000  # folders below the data folder; files looked at
SAMPLE = 200  # pictures of a task that are looked for
LONG_ANSWER = 6  # words; captions are longer, and none is given twice the same

Key = tuple[Path, str]  # the folder, without that of a split; what is left of the file's name


@dataclass(frozen=True)
class Found:
    """A task that was found.

    files: split → file, `train` and `test` at least.
    images: the folder that its pictures' names start from; None where it has none.
    examples: split → number of examples.
    longest: its longest answer; answers: how it is judged, in words.
    """

    name: str
    files: Mapping[str, Path]
    images: Path | None
    examples: Mapping[str, int]
    scorer: str
    longest: str
    answers: str


def tasks(root: Path) -> tuple[list[Found], list[str]]:
    """(The tasks below a folder, in the order of their paths; what was left out, and why, a line each)."""
    found, left = list[Found](), list[str]()
    groups = grouped(root)
    names = named(root, list(groups))
    for key, files in sorted(groups.items(), key=lambda group: str(group[0])):
        lacking = [split for split in ("train", "test") if split not in files]
        if lacking:
            some = ", ".join(str(file.relative_to(root)) for file in files.values())
            left.append(f"{some}: no {' and no '.join(lacking)} file of the same name beside it")
            continue
        task = looked_at(names[key], files, root)
        (found if isinstance(task, Found) else left).append(task)  # type: ignore[arg-type]
    return found, left


# -- which files belong together -------------------------------------------------------------------


def grouped(root: Path) -> dict[Key, dict[str, Path]]:
    """The files of each task by their split."""
    groups: dict[Key, dict[str, Path]] = {}
    for file in data_files(root):
        if place := place_of(file, root):
            key, split = place
            groups.setdefault(key, {}).setdefault(split, file)
    return groups


def data_files(root: Path) -> Iterator[Path]:
    """Files that may hold records, folders before those inside; hidden ones are left out."""
    count, seen = 0, set[str]()
    for above, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(above)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        deep = len(Path(above).relative_to(root).parts) >= DEEPEST
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(above, name)
            for name in sorted(files)
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        )
        count += len(files)
        if count > MOST_FILES:
            return


def place_of(file: Path, root: Path) -> tuple[Key, str] | None:
    """(The task's key, the split) that a file's name and folder tell; None where they tell no split."""
    stem = re.sub(r"\.jsonl?(\.gz)?$", "", file.name, flags=re.IGNORECASE)
    words = re.split(r"([_.\- ]+)", stem)
    marks = [i for i, word in enumerate(words) if word.lower() in SPLIT_OF]
    if marks:
        at = marks[-1]  # `test_bench_train` is a train file
        rest = "".join(words[:at]).rstrip("_.- ") + ("".join(words[at + 1 :]) if at else "")
        return (file.parent, (rest or "".join(words[1:])).strip("_.- ")), SPLIT_OF[words[at].lower()]
    split = SPLIT_OF.get(file.parent.name.lower())
    if split and file.parent != root:
        return (file.parent.parent, stem), split
    return None


def named(root: Path, keys: Sequence[Key]) -> dict[Key, str]:
    """A name for each that no other has: the file's or the folder's, with folders before it if it must."""
    parts = {key: [*key[0].relative_to(root).parts, *([key[1]] if key[1] else [])] for key in keys}
    names: dict[Key, str] = {}
    for key, whole in parts.items():
        whole = whole or [root.name]
        count = 0
        for count in range(1, len(whole) + 1):
            alike = [k for k, other in parts.items() if (other or [root.name])[-count:] == whole[-count:]]
            if len(alike) == 1:
                break
        name = re.sub(r"[^\w-]+", "_", "_".join(whole[-count:])).strip("_") or "task"
        name = f"task_{name}" if name.replace("_", "").isdigit() else name  # in YAML it would be a number
        while name in names.values():
            name += "_2"
        names[key] = name
    return names


# -- what they hold --------------------------------------------------------------------------------


def looked_at(name: str, files: Mapping[str, Path], root: Path) -> Found | str:
    """The task, or why it cannot be used."""
    faults = Faults()
    items = {split: parse(file, split, root, faults) for split, file in files.items()}
    if faults.kept:
        more = f", and {len(faults.kept) - 1} more faults" if len(faults.kept) > 1 else ""
        return f"{name}: {faults.kept[0]}{more}"
    if empty := [split for split, some in items.items() if not some]:
        return f"{name}: {files[empty[0]].relative_to(root)} holds no example"
    pictures = sample(items.values(), root)
    images = folder_of(pictures, files["train"].parent, root)
    if pictures and images is None:
        return (
            f"{name}: its pictures, such as {pictures[0]!r}, are in no folder that was looked in below {root}"
        )
    examples = [item.example for some in items.values() for item in some]
    scorer, words = judged(examples)
    longest = max((e.answer for e in examples), key=len)
    sizes = {split: len(some) for split, some in items.items()}
    return Found(name, files, images, sizes, scorer, longest, words)


def sample(items: Iterable[Sequence[Item]], root: Path) -> list[str]:
    """Names of pictures as the records have them, spread over each split."""
    names: dict[str, None] = {}
    for some in items:
        own = [
            str(item.example.image.relative_to(root)) for item in some if isinstance(item.example.image, Path)
        ]
        names |= dict.fromkeys(own[:: max(1, len(own) // SAMPLE)])
    return list(names)


def folder_of(pictures: Sequence[str], beside: Path, root: Path) -> Path | None:
    """The folder in which all of these pictures are, the nearest to the task first; None for no such."""
    above = [beside, *(p for p in beside.parents if p.is_relative_to(root))]
    places = [place for up in above for place in (up, *folders(up))]
    places += [inner for up in folders(root) for inner in folders(up)]
    for place in dict.fromkeys(places):
        if pictures and all((place / name).is_file() for name in pictures):
            return place
    return None


def folders(place: Path) -> list[Path]:
    """Folders inside, those that are called after pictures first."""
    likely = ("images", "image", "imgs", "img", "pictures", "photos")
    inside = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(inside[:MOST_FILES], key=lambda p: p.name.lower() not in likely)


def judged(examples: Sequence[Example]) -> tuple[str, str]:
    """(The scorer that suits the answers, how one can tell)."""
    some = examples[:: max(1, len(examples) // 1000)]
    offers = [options(example) for example in some]
    if sum(bool(offer.texts) for offer in offers) * 2 > len(some):
        return "contains_choice", "its questions offer options"
    if any(len(example.references) > 1 for example in some):
        return "caption_light", "it has several right answers for one question"
    words = sum(len(example.answer.split()) for example in some) / len(some)
    if words > LONG_ANSWER:
        return "caption_light", f"its answers have {words:.0f} words on average"
    return "exact_match", "its answers are short"
