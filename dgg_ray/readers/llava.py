"""Instruction data in the files that LLaVA, CoIN and MCITlib use.

Two kinds of record, either of them in any split, in a JSON list or as JSON lines, UTF-8, also gzipped:

    training    {"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                  {"from": "gpt", "value": "a plum"}]}
    question    {"question_id", "image", "text": "What is this?", "answer": "a plum"}

    id, question_id     optional; without it the record's place, `#12`. Once each in validation and test;
                        training records may share one, as UCIT's do
    image               relative to the image folder, or inside it; links there lead anywhere. Absent, null
                        or [] for text only
    conversations       _turns.py has its other forms, such as `messages`
    references          optional list of all accepted answers
    choices             optional list of the options offered; lettered options in a prompt stay in it

The token `<image>` goes out of the question with its line break, wherever it stands: the model's
own template puts it back. A conversation of several turns gives one example per pair of human and
gpt, `id`, `id#1`, `id#2`, …, each with the picture and its own question only: what was said before
is not shown, so a follow-up like "and its colour?" should be spelt out in the file.

Nothing is dropped without a word: a picture under another key, a token without its picture, and a key
written twice are faults, keys that are not read are told (_unread_keys.py).

Formats: https://github.com/haotian-liu/LLaVA (docs/Finetune_Custom_Data.md), arXiv:2403.08350 (CoIN).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Lt

from dgg_ray.core import draws
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Task, digest
from dgg_ray.core.wording import plural
from dgg_ray.readers import _turns, _unread_keys
from dgg_ray.readers._caption_files import Captions, load_captions, tails
from dgg_ray.readers._data_faults import Faults, Place, near_file
from dgg_ray.readers._data_files import fetch_to_this_machine, gone
from dgg_ray.readers._pictures import Picture, inspect
from dgg_ray.readers._records import Record, load_records, text_of, texts_of
from dgg_ray.storage import fetching


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
        """The task, its pictures read; those whose content was seen before are not decoded again."""
        faults = Faults()
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        root = fetching.path(self.images or Path(self.train).parent)
        root = root if fetching.address(root) else root.absolute()
        items = {
            split: parse(fetch_to_this_machine(path, split, faults), split, root, faults)
            for split, path in files.items()
            if path is not None
        }
        if self.validation is None:
            items |= self.divided(items["train"], name, faults)
        if self.references is not None:
            file = fetch_to_this_machine(self.references, "references", faults)
            captions = load_captions(file, faults) if file else Captions({}, {})
            pictures = tails(dict.fromkeys(item.group for split in SPLITS for item in items[split]))
            for split in ("validation", "test"):
                items[split] = with_captions(items[split], captions, pictures, split == "test", faults)
        limits = {"train": self.limit, "validation": self.limit_test, "test": self.limit_test}
        items = {split: self.sample(items[split], limits[split], name, split) for split in SPLITS}
        if fetching.address(root):
            items, root = with_pictures(items, root, faults)
        pictures = seen(items, root, faults)
        faults.raise_any(f"task {name}")

        contents = {split: [content(item.example, pictures) for item in items[split]] for split in SPLITS}
        return Task(
            name,
            {split: tuple(item.example for item in items[split]) for split in SPLITS},
            {split: digest(contents[split]) for split in SPLITS},
            self.scorer,
            (*faults.notes(), *without_picture(contents), *several_frames(pictures), *shared(contents)),
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
        for index, record in enumerate(load_records(file, split, _turns.KEYS, faults) if file else ())
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
    named = fields.get("image")
    meant = _unread_keys.check(fields, _turns.KEYS, named, place, faults)
    key = next((key for key in ("id", "question_id") if fields.get(key) is not None), "")
    id_ = text_of(fields[key], place.at(key), faults) if key else ""
    id_ = id_ or spare_id
    references, choices = (gold(fields, key, place, faults) for key in ("references", "choices"))
    image = image_name(named, place.at("image"), faults)
    name = inside(image, str(root), place.at("image"), faults) if image else ""
    path = root / name if name else None
    said = _turns.pairs(fields, references, meant, place, faults)
    tokens = sum(question.count(_turns.TOKEN) for question, _ in said)
    if tokens and _unread_keys.empty(named) and "image" not in meant:
        found = json.dumps(named) if "image" in fields else ""
        faults.add(place.at("image"), f"is needed where the question holds {_turns.TOKEN}", found)
    if tokens > 1:
        faults.add(place, f"must hold {_turns.TOKEN} once at most", f"{tokens} times")
    group = name or place.path
    return [
        Item(
            Example(
                id_ if k == 0 else f"{id_}#{k}", _turns.without_token(ask), answer, path, references, choices
            ),
            place,
            group,
        )
        for k, (ask, answer) in enumerate(said)
    ]


def gold(fields: Mapping[str, Any], key: str, place: Place, faults: Faults) -> tuple[str, ...]:
    """The texts of `references` or `choices`."""
    if fields.get(key) is None:
        return ()
    texts = texts_of(fields[key], place.at(key), faults)
    for text in texts:
        _turns.no_token(text, place.at(key), faults)
    return texts


# -- pictures --------------------------------------------------------------------------------------


def image_name(value: Any, place: Place, faults: Faults) -> str:
    """The one picture that a record names, "" for none; some files hold it in a list."""
    if isinstance(value, list):
        if len(value) > 1:
            faults.add(place, "must be one picture", f"{len(value)} pictures")
            return ""
        value = value[0] if value else None
    return "" if value is None else text_of(value, place, faults)


def inside(image: str, root: str, place: Place, faults: Faults) -> str:
    """The picture's name from the image folder on; "" after a fault. Links in the folder lead anywhere."""
    name = os.path.normpath(image)  # `..` goes back by name, whatever a link on the way leads to
    if os.path.isabs(name) and name.startswith(top := os.path.join(os.path.normpath(root), "")):
        name = name[len(top) :]
    if os.path.isabs(name) or name.partition(os.sep)[0] == ".." or "\0" in name:
        faults.add(place, "must be a path inside the image folder", repr(image))
        return ""
    return name


def with_pictures(
    items: Mapping[str, list[Item]], root: Path, faults: Faults
) -> tuple[dict[str, list[Item]], Path]:
    """The items with their pictures on this machine, and the folder of them; none is fetched for text."""
    using = any(item.example.image is not None for split in SPLITS for item in items[split])
    there = fetch_to_this_machine(root, "images", faults) if using else root
    if there is None or not using:  # a fault was noted: nothing more is said of the pictures
        return {split: [] for split in items} if using else dict(items), root

    def moved(item: Item) -> Item:
        if not isinstance(image := item.example.image, Path):
            return item
        return item._replace(example=replace(item.example, image=there / image.relative_to(root)))

    return {split: [moved(item) for item in some] for split, some in items.items()}, there


def seen(items: Mapping[str, Sequence[Item]], root: Path, faults: Faults) -> dict[Path, Picture]:
    """The hash of every picture's file; a fault for every example whose picture is missing or broken."""
    using = [
        (item, image)
        for split in SPLITS
        for item in items[split]
        if isinstance(image := item.example.image, Path)
    ]
    if using and not root.is_dir():
        faults.add(Place("images"), "must be a folder that exists", gone(root), lambda: near_file(root))
        return {}
    there = {path: os.path.exists(path) for path in dict.fromkeys(path for _, path in using)}
    pictures = inspect(path for path, exists in there.items() if exists)
    for item, path in using:
        if not there[path]:
            found = broken_link(path, root) or repr(item.group)
            rule = "must be a file in the image folder"
            faults.add(item.place.at("image"), rule, found, lambda path=path: near_file(path))
        elif problem := pictures[path].problem:
            faults.add(item.place.at("image"), "must be a picture that decodes", f"{item.group!r}: {problem}")
    return pictures


def broken_link(path: Path, root: Path) -> str:
    """The link on the way to a picture that leads nowhere, or in a circle; empty where none does."""
    name = path.relative_to(root)
    for step in (*reversed(name.parents), name):
        try:
            if (root / step).is_symlink() and not os.path.exists(root / step):
                lead = f"the link {str(step)!r} leads to {os.readlink(root / step)}"
                return f"{str(name)!r}, where {lead}: nothing is there"
        except OSError:
            return ""
    return ""


# -- references and content ------------------------------------------------------------------------


def with_captions(
    items: Iterable[Item],
    captions: Captions,
    pictures: Mapping[str, tuple[str, ...]],
    needed: bool,
    faults: Faults,
) -> list[Item]:
    """The items with their picture's captions as references; `needed`: none is a fault.

    pictures: the names of all of the task's pictures by their last part.
    """
    result = []
    for item in items:
        found, doubt = captions.find(item.group, pictures)
        if doubt:
            rule = "must be named whole in the `references` file, where several pictures have this last part"
            faults.add(item.place.at("image"), rule, doubt)
        elif needed and not found and captions.by_name:
            faults.add(item.place.at("image"), "must have a caption in the `references` file", item.group)
        elif found and item.example.references not in ((), found):
            faults.add(
                item.place.at("references"), "must be left out where the `references` file has captions"
            )
        example = replace(item.example, references=found) if found else item.example
        result.append(item._replace(example=example))
    return result


def content(example: Example, pictures: Mapping[Path, Picture]) -> list[Any]:
    """What enters the digest: everything about the example but where its picture lies."""
    picture = pictures[example.image].digest if isinstance(example.image, Path) else ""
    words = [example.id, example.question, example.answer, example.references, example.choices]
    return [*words, picture]


# -- what should be known --------------------------------------------------------------------------

Contents = Mapping[str, Sequence[Sequence[Any]]]  # by split, what enters the digest


def without_picture(contents: Contents) -> tuple[str, ...]:
    """A sentence for each split in which pictures are missing though the task has some."""
    having = {split: sum(bool(picture) for *_, picture in contents[split]) for split in SPLITS}
    most = max(SPLITS, key=lambda split: having[split] / max(len(contents[split]), 1))
    notes = []
    for split in SPLITS:
        whole = len(contents[split])
        if having[most] and having[split] < whole:
            other = f", while {having[most]} of {len(contents[most])} in {most} have one" * (split != most)
            notes.append(f"{whole - having[split]} of {whole} examples in {split} have no picture{other}")
    return tuple(notes)


def several_frames(pictures: Mapping[Path, Picture]) -> tuple[str, ...]:
    count = sum(picture.frames > 1 for picture in pictures.values())
    if not count:
        return ()
    return (f"{plural(count, 'picture')} of several frames or pages: only the first of each is shown",)


def shared(contents: Contents) -> tuple[str, ...]:
    """A sentence for each split that asks the same of a picture twice, or what another split asks."""
    notes = []
    answers: dict[str, dict[tuple[str, str], set[str]]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        said, whole = answers[split], len(contents[split])
        for _, question, answer, *_, picture in contents[split]:
            said.setdefault((question, picture), set()).add(answer)
        if again := whole - len(said):
            odds = sum(len(texts) > 1 for texts in said.values())
            more = f"; answers differ for {plural(odds, 'question')}" if odds else ""
            notes.append(
                f"{again} of {whole} examples in {split} ask what others there ask "
                f"(same question, same picture){more}"
            )
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        known = answers[one]
        both = [c[2] in known[c[1], c[-1]] for c in contents[other] if (c[1], c[-1]) in known]
        if both:
            more = f", {both.count(False)} of them with another answer" if not all(both) else ""
            text = f"{len(both)} of {len(contents[other])} examples in {other} are in {one} too"
            notes.append(f"{text} (same question, same picture){more}")
    return tuple(notes)
