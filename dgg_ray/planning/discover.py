"""Discover the tasks in a data folder: their files, the folder of their images, and a suitable scorer.

File names tell the splits: `train`, `test` and `val`, `valid`, `validation` or `dev` as a word of the
file's name, or as the name of its folder. The files end in .json or .jsonl, gzipped or not.

    charts/train.json  charts/test.json            the task `charts`
    charts_train.json  charts_test.json            the same
    train/charts.json  test/charts.json            the same

A task needs a train and a test file in LLaVA's format, and all its images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dgg_ray.core.interfaces import Example
from dgg_ray.readers._data_files import Faults
from dgg_ray.readers.llava import LocatedExample, parse_examples
from dgg_ray.scorers.contains_choice import options_of_example

SPLIT_OF_WORD = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_OF_WORD |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
MAX_DEPTH = 5  # folders below the data folder
MAX_FILES = 100_000  # that are looked at
SAMPLE = 200  # images of a task that are looked for
LONG_ANSWER = 6  # words; longer answers are captions, of which no two are equal
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos")


class TaskKey(NamedTuple):
    """The common part of a task's files: a folder (above those of the splits) and the rest of their names."""

    folder: Path
    name: str


@dataclass(frozen=True)
class DiscoveredTask:
    """A task in a data folder.

    files: split → file, `train` and `test` at least.
    images: the folder from which the names of its images start; None where it has no images.
    examples: split → number of examples.
    scorer: the scorer that suits its answers. reason: why it does, in words.
    longest_answer: of all splits.
    """

    name: str
    files: Mapping[str, Path]
    images: Path | None
    examples: Mapping[str, int]
    scorer: str
    reason: str
    longest_answer: str


def discover_tasks(root: Path) -> tuple[list[DiscoveredTask], list[str]]:
    """Return the tasks below a folder in the order of their paths, and a line on each that was left out."""
    tasks: list[DiscoveredTask] = []
    left_out: list[str] = []
    groups = group_files(root)
    names = unique_names(root, list(groups))
    for key, files in sorted(groups.items(), key=lambda group: str(tuple(group[0]))):
        missing = [split for split in ("train", "test") if split not in files]
        if missing:
            paths = ", ".join(str(file.relative_to(root)) for file in files.values())
            left_out.append(f"{paths}: no {' and no '.join(missing)} file of the same name beside it")
            continue
        task = inspect_task(names[key], files, root)
        if isinstance(task, DiscoveredTask):
            tasks.append(task)
        else:
            left_out.append(task)
    return tasks, left_out


# -- files that belong together --------------------------------------------------------------------


def group_files(root: Path) -> dict[TaskKey, dict[str, Path]]:
    """Return the files of each task by their split."""
    groups: dict[TaskKey, dict[str, Path]] = {}
    for file in data_files(root):
        if key_and_split := task_and_split(file, root):
            key, split = key_and_split
            groups.setdefault(key, {}).setdefault(split, file)
    return groups


def data_files(root: Path) -> Iterator[Path]:
    """Yield files that may hold records, folders before those inside them; hidden ones are left out."""
    count, visited = 0, set[str]()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        if len(Path(folder).relative_to(root).parts) >= MAX_DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield Path(folder, name)
        count += len(files)
        if count > MAX_FILES:
            return


def task_and_split(file: Path, root: Path) -> tuple[TaskKey, str] | None:
    """Return the task and the split that a file's name and folder tell; None where they tell no split."""
    stem = re.sub(r"\.jsonl?(\.gz)?$", "", file.name, flags=re.IGNORECASE)
    words = re.split(r"([_.\- ]+)", stem)
    split_words = [i for i, word in enumerate(words) if word.lower() in SPLIT_OF_WORD]
    if split_words:
        i = split_words[-1]  # `test_bench_train` is a train file
        rest = "".join(words[:i]).rstrip("_.- ") + ("".join(words[i + 1 :]) if i else "")
        name = (rest or "".join(words[1:])).strip("_.- ")
        return TaskKey(file.parent, name), SPLIT_OF_WORD[words[i].lower()]
    split = SPLIT_OF_WORD.get(file.parent.name.lower())
    if split and file.parent != root:
        return TaskKey(file.parent.parent, stem), split
    return None


def unique_names(root: Path, keys: Sequence[TaskKey]) -> dict[TaskKey, str]:
    """Name each task after its file or folder, with as many folders before it as make the name unique."""
    parts = {}
    for key in keys:
        path = [*key.folder.relative_to(root).parts, *([key.name] if key.name else [])]
        parts[key] = path or [root.name]
    names: dict[TaskKey, str] = {}
    for key, path in parts.items():
        count = 1
        while count < len(path) and sum(other[-count:] == path[-count:] for other in parts.values()) > 1:
            count += 1
        name = re.sub(r"[^\w-]+", "_", "_".join(path[-count:])).strip("_") or "task"
        if name.replace("_", "").isdigit():  # in YAML it would be a number
            name = f"task_{name}"
        while name in names.values():
            name += "_2"
        names[key] = name
    return names


# -- the content of a task -------------------------------------------------------------------------


def inspect_task(name: str, files: Mapping[str, Path], root: Path) -> DiscoveredTask | str:
    """Return the task, or the reason for which it cannot be used."""
    faults = Faults()
    located = {split: parse_examples(file, split, root, faults) for split, file in files.items()}
    if faults.shown:
        more = f", and {len(faults.shown) - 1} more faults" if len(faults.shown) > 1 else ""
        return f"{name}: {faults.shown[0]}{more}"
    if empty := [split for split, examples in located.items() if not examples]:
        return f"{name}: {files[empty[0]].relative_to(root)} holds no example"
    image_names = sample_image_names(located.values(), root)
    images = find_image_folder(image_names, files["train"].parent, root)
    if image_names and images is None:
        return (
            f"{name}: its images, such as {image_names[0]!r}, are in no folder below {root} that was searched"
        )
    examples = [located_example.example for split in located.values() for located_example in split]
    scorer, reason = suggest_scorer(examples)
    return DiscoveredTask(
        name=name,
        files=files,
        images=images,
        examples={split: len(split_examples) for split, split_examples in located.items()},
        scorer=scorer,
        reason=reason,
        longest_answer=max((example.answer for example in examples), key=len),
    )


def sample_image_names(splits: Iterable[Sequence[LocatedExample]], root: Path) -> list[str]:
    """Return names of images as the records have them, spread over each split."""
    names: dict[str, None] = {}
    for located in splits:
        images = [item.example.image for item in located if isinstance(item.example.image, Path)]
        in_split = [str(image.relative_to(root)) for image in images]
        names |= dict.fromkeys(in_split[:: max(1, len(in_split) // SAMPLE)])
    return list(names)


def find_image_folder(names: Sequence[str], task_folder: Path, root: Path) -> Path | None:
    """Return the folder that holds all these images, preferably near the task; None where there is none."""
    above = [task_folder, *(p for p in task_folder.parents if p.is_relative_to(root))]
    candidates = [folder for parent in above for folder in (parent, *subfolders(parent))]
    candidates += [inner for folder in subfolders(root) for inner in subfolders(folder)]
    for folder in dict.fromkeys(candidates):
        if names and all((folder / name).is_file() for name in names):
            return folder
    return None


def subfolders(folder: Path) -> list[Path]:
    """Return the folders inside, those that are named after images first."""
    inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(inside[:MAX_FILES], key=lambda p: p.name.lower() not in IMAGE_FOLDERS)


def suggest_scorer(examples: Sequence[Example]) -> tuple[str, str]:
    """Return the scorer that suits the answers, and the reason."""
    sample = examples[:: max(1, len(examples) // 1000)]
    with_options = sum(bool(options_of_example(example).texts) for example in sample)
    if with_options * 2 > len(sample):
        return "contains_choice", "its questions offer options"
    if any(len(example.references) > 1 for example in sample):
        return "caption_light", "it has several right answers to one question"
    words = sum(len(example.answer.split()) for example in sample) / len(sample)
    if words > LONG_ANSWER:
        return "caption_light", f"its answers have {words:.0f} words on average"
    return "exact_match", "its answers are short"
