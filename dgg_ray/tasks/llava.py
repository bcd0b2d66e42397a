"""Instruction data in the files that LLaVA, CoIN and MCITlib use.

Two kinds of record, either of them in any split, in a JSON list or as JSON lines:

    training    {"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                  {"from": "gpt", "value": "a plum"}]}
    question    {"question_id", "image", "text": "What is this?", "answer": "a plum"}

    id, question_id     optional; without it the record's place, `#12`. Once each in validation and test;
                        training records may share one, as UCIT's do
    image               relative to the image folder; absent or null for text only
    references          optional list of all accepted answers
    choices             optional list of the options offered; lettered options in a prompt stay in it

The token `<image>` goes out of the question with its line break, wherever it stands: the model's
own template puts it back. A conversation of several turns gives one example per pair of human and
gpt, `id`, `id#1`, `id#2`, …, each with the picture and its own question only: what was said before
is not shown, so a follow-up like "and its colour?" should be spelt out in the file.

Formats: https://github.com/haotian-liu/LLaVA (docs/Finetune_Custom_Data.md), arXiv:2403.08350 (CoIN).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Lt

from dgg_ray import draws, staging
from dgg_ray.contracts import SPLITS, Example, Reader, Task, digest
from dgg_ray.errors import nearest
from dgg_ray.pictures import inspect
from dgg_ray.records import (
    Faults,
    Place,
    Record,
    captions_by_picture,
    here,
    image_name,
    inside,
    load_records,
    near_file,
    text_of,
    texts_of,
)

TOKEN = "<image>"
KEYS = ("id", "question_id", "image", "conversations", "text", "answer", "references", "choices")


class Item(NamedTuple):
    """An example, where it came from, and its picture as the record names it (else the record's place)."""

    example: Example
    place: Place
    group: str


@dataclass(frozen=True)
class Llava(Reader):
    """A task from files in LLaVA's format. Relative paths start at the study's data folder.

    All paths may be URLs (s3://BUCKET/train.json): each node fetches the files, and the whole folder of
    images where an example has one, once.

    train: file of the training examples, a JSON list or JSON lines.
    test: file of the test examples.
    validation: file of the validation examples; without it a share of `train` is set apart, by picture: all
        examples that name one picture are on one side.
    validation_share: that share of the pictures of `train` (text-only records count as one each).
    split_seed: the seed of that division and of the samples that the limits take.
    images: folder that `image` is relative to; None is the folder of `train`.
    references: file with captions in COCO's form, matched by file name; they become the references of every
        test example of that picture, and of validation examples where there are any.
    limit: largest number of training examples, a sample; the pictures of others are not looked at.
    limit_test: largest number of validation examples, and of test examples, each a sample.
    scorer: how answers are scored, the name of a file in scorers/.
    """

    train: Path
    test: Path
    validation: Path | None = None
    validation_share: Annotated[float, Gt(0), Lt(1)] = 0.1
    split_seed: Annotated[int, Ge(0)] = 0
    images: Path | None = None
    references: Path | None = None
    limit: Annotated[int, Ge(1)] | None = None
    limit_test: Annotated[int, Ge(1)] | None = None
    scorer: str = "exact_match"

    def read(self, name: str) -> Task:
        """The task, its pictures read and decoded once (later calls know them by size and time)."""
        faults = Faults()
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        root = staging.path(self.images or Path(self.train).parent)
        root = root if staging.address(root) else root.absolute()
        items = {
            split: parse(here(path, split, faults), split, root, faults)
            for split, path in files.items()
            if path is not None
        }
        if self.validation is None:
            items |= self.divided(items["train"], name, faults)
        if self.references is not None:
            file = here(self.references, "references", faults)
            captions = captions_by_picture(file, faults) if file else {}
            for split in ("validation", "test"):
                items[split] = with_captions(items[split], captions, split == "test", faults)
        limits = {"train": self.limit, "validation": self.limit_test, "test": self.limit_test}
        items = {split: self.sample(items[split], limits[split], name, split) for split in SPLITS}
        if staging.address(root):
            items, root = with_pictures(items, root, faults)
        hashes = picture_hashes(items, root, faults)
        faults.raise_any(f"task {name}")

        contents = {split: [content(item.example, hashes) for item in items[split]] for split in SPLITS}
        return Task(
            name,
            {split: tuple(item.example for item in items[split]) for split in SPLITS},
            {split: digest(contents[split]) for split in SPLITS},
            self.scorer,
            shared(contents),
        )

    def divided(self, items: Sequence[Item], name: str, faults: Faults) -> dict[str, list[Item]]:
        """train and validation from one list; at least one picture on either side."""
        groups = list(dict.fromkeys(item.group for item in items))
        if items and len(groups) < 2:
            rule = "must hold two pictures at least, one of them for validation; or name a `validation` file"
            faults.add(Place("train", items[0].place.file), rule, "one picture")
        count = min(max(round(self.validation_share * len(groups)), 1), max(len(groups) - 1, 0))
        order = draws.permutation(len(groups), self.split_seed, name, "validation")
        apart = {groups[i] for i in order[:count]}
        return {
            "train": [item for item in items if item.group not in apart],
            "validation": [item for item in items if item.group in apart],
        }

    def sample(self, items: Sequence[Item], limit: int | None, name: str, split: str) -> list[Item]:
        """`limit` of the items in their order, uniform without replacement; limits are nested."""
        if limit is None or limit >= len(items):
            return list(items)
        order = draws.permutation(len(items), self.split_seed, name, f"limit {split}")
        return [items[i] for i in sorted(order[:limit])]


# -- records to examples ---------------------------------------------------------------------------


def parse(file: Path | None, split: str, root: Path, faults: Faults) -> list[Item]:
    """The examples of one file, their pictures not yet looked at."""
    items = [
        item
        for index, record in enumerate(load_records(file, split, faults) if file else ())
        for item in examples_of(record, f"#{index}", root, faults)
    ]
    first: dict[str, Place] = {}
    for n, item in enumerate(items):
        id_, place = item.example.id, item.place
        earlier = first.setdefault(id_, place)
        if earlier is place:
            continue
        if split == "train":  # where benchmarks number pictures, not records; nothing is looked up by it
            items[n] = item._replace(example=replace(item.example, id=f"{id_} ({place.path})"))
        else:
            faults.add(place.at("id"), "must be used once in a split", f"{id_!r}, as in {earlier.path}")
    return items


def examples_of(record: Record, spare_id: str, root: Path, faults: Faults) -> list[Item]:
    """One example per pair of turns; [] after a fault that leaves none."""
    place, fields = record.place, record.content
    if not isinstance(fields, dict):
        faults.add(place, "must be a record, {…}", repr(fields))
        return []
    key = "id" if "id" in fields else "question_id"
    id_ = text_of(fields[key], place.at(key), faults) if key in fields else ""
    id_ = id_ or spare_id
    references = texts_of(fields.get("references"), place.at("references"), faults)
    choices = texts_of(fields.get("choices"), place.at("choices"), faults)
    image = image_name(fields.get("image"), place.at("image"), faults)
    path = inside(image, root, place.at("image"), faults) if image else None
    items = []
    for k, (question, answer) in enumerate(pairs(fields, references, place, faults)):
        if TOKEN in question and "image" not in fields:
            faults.add(place.at("image"), f"is needed where the question holds {TOKEN}")
        if question.count(TOKEN) > 1:
            faults.add(place, f"must hold {TOKEN} once at most", f"{question.count(TOKEN)} times")
        example = Example(
            id_ if k == 0 else f"{id_}#{k}", without_token(question), answer, path, references, choices
        )
        items.append(Item(example, place, str(Path(image)) if image else place.path))
    return items


def pairs(
    fields: Mapping[str, Any], references: Sequence[str], place: Place, faults: Faults
) -> list[tuple[str, str]]:
    """(question, answer), the question still with its token."""
    if "conversations" in fields:
        return conversation(fields["conversations"], place.at("conversations"), faults)
    if "text" not in fields or not ("answer" in fields or references):
        near = next((key for found in fields if (key := nearest(str(found), KEYS)) and key not in fields), "")
        keys = ", ".join(map(str, fields)) or "none"
        faults.add(
            place, "must hold `conversations`, or `text` and `answer`", f"the keys {keys}", lambda: near
        )
        return []
    question = asked(fields["text"], place.at("text"), faults)
    answer = text_of(fields["answer"], place.at("answer"), faults) if "answer" in fields else references[0]
    return [(question, answer)]


def conversation(turns: Any, place: Place, faults: Faults) -> list[tuple[str, str]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        faults.add(place, "must be a list of {from, value}", repr(turns))
        return []
    who = [turn.get("from") for turn in turns]
    if not who or who != ["human", "gpt"] * (len(who) // 2):
        faults.add(place, "must be pairs of human and gpt", ", ".join(map(str, who)) or "no turn")
        return []
    places = [Place(f"{place.path}[{i}].value", place.file, place.line) for i in range(len(turns))]
    return [
        (
            asked(turns[i].get("value"), places[i], faults),
            text_of(turns[i + 1].get("value"), places[i + 1], faults),
        )
        for i in range(0, len(turns), 2)
    ]


def asked(value: Any, place: Place, faults: Faults) -> str:
    question = text_of(value, place, faults)
    if question and not without_token(question):
        faults.add(place, f"must hold a question beside {TOKEN}", repr(value))
    return question


def without_token(question: str) -> str:
    for token in (f"{TOKEN}\n", f"\n{TOKEN}", TOKEN):
        question = question.replace(token, "")
    return question.strip()


# -- pictures --------------------------------------------------------------------------------------


def with_pictures(
    items: Mapping[str, list[Item]], root: Path, faults: Faults
) -> tuple[dict[str, list[Item]], Path]:
    """The items with their pictures on this machine, and the folder of them; none is fetched for text."""
    using = any(item.example.image is not None for split in SPLITS for item in items[split])
    there = here(root, "images", faults) if using else root
    if there is None or not using:  # a fault was noted: nothing more is said of the pictures
        return {split: [] for split in items} if using else dict(items), root

    def moved(item: Item) -> Item:
        if not isinstance(image := item.example.image, Path):
            return item
        return item._replace(example=replace(item.example, image=there / image.relative_to(root)))

    return {split: [moved(item) for item in some] for split, some in items.items()}, there


def picture_hashes(items: Mapping[str, Sequence[Item]], root: Path, faults: Faults) -> dict[Path, str]:
    """The hash of every picture's file; a fault for every example whose picture is missing or broken."""
    using = [
        (item, image)
        for split in SPLITS
        for item in items[split]
        if isinstance(image := item.example.image, Path)
    ]
    if using and not root.is_dir():
        faults.add(Place("images"), "must be a folder that exists", str(root), lambda: near_file(root))
        return {}
    real_root = Path(os.path.realpath(root))
    folders: dict[Path, Path] = {}
    sound: list[tuple[Item, Path]] = []
    for item, path in using:
        place, parent = item.place.at("image"), path.parent
        if parent not in folders:
            folders[parent] = Path(os.path.realpath(parent))
        real = Path(os.path.realpath(path)) if os.path.islink(path) else folders[parent] / path.name
        if not os.path.exists(path):
            found = repr(str(path.relative_to(root)))
            faults.add(place, "must be a file in the image folder", found, lambda path=path: near_file(path))
        elif not real.is_relative_to(real_root):
            faults.add(place, "must be a path inside the image folder", f"a link to {real}")
        else:
            sound.append((item, path))
    pictures = inspect(path for _, path in sound)
    for item, path in sound:
        if problem := pictures[path].problem:
            found = f"{str(path.relative_to(root))!r}: {problem}"
            faults.add(item.place.at("image"), "must be a picture that decodes", found)
    return {path: picture.digest for path, picture in pictures.items()}


# -- references and content ------------------------------------------------------------------------


def with_captions(
    items: Iterable[Item], captions: Mapping[str, tuple[str, ...]], needed: bool, faults: Faults
) -> list[Item]:
    """The items with their picture's captions as references; `needed`: none is a fault."""
    result = []
    for item in items:
        found = captions.get(item.group) or captions.get(Path(item.group).name)
        if needed and not found and captions:
            faults.add(item.place.at("image"), "must have a caption in the `references` file", item.group)
        example = replace(item.example, references=found) if found else item.example
        result.append(item._replace(example=example))
    return result


def content(example: Example, hashes: Mapping[Path, str]) -> list[Any]:
    """What enters the digest: everything about the example but where its picture lies."""
    picture = hashes[example.image] if isinstance(example.image, Path) else ""
    words = [example.id, example.question, example.answer, example.references, example.choices]
    return [*words, picture]


def shared(contents: Mapping[str, Sequence[Sequence[Any]]]) -> tuple[str, ...]:
    """A sentence for each pair of splits in which the same question is asked about the same picture."""
    notes = []
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        known = {(question, picture) for _, question, *_, picture in contents[one]}
        count = sum((question, picture) in known for _, question, *_, picture in contents[other])
        if count:
            text = f"{count} of {len(contents[other])} examples in {other} are in {one} too"
            notes.append(f"{text} (same question, same picture)")
    return tuple(notes)
