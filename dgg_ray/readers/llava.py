"""Instruction data in the files that LLaVA, CoIN and MCITlib use.

Any split may hold two kinds of record, in a JSON list or as JSON lines, UTF-8, also gzipped:

    training    {"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                  {"from": "gpt", "value": "a plum"}]}
    question    {"question_id", "image", "text": "What is this?", "answer": "a plum"}

    id, question_id     optional; by default the record's position, `#12`. Unique in validation and test;
                        training records may share one, as UCIT's do
    image               relative to the image folder, or an absolute path inside it; links there may lead
                        anywhere. Absent, null or [] for a record of text only
    conversations       _conversations.py has its other forms, such as `messages`
    references          optional list of all accepted answers
    choices             optional list of the options offered; lettered options in a prompt stay in it

The token `<image>` is removed from the question with its line break, wherever it stands: the model's own
template inserts it again. A conversation of several turns gives one example for each pair of human and gpt
turns, `id`, `id#1`, `id#2`, …, each with the image and its own question only. The model is not shown the
earlier turns, so a follow-up like "and its colour?" should be spelt out in the file.

Nothing is dropped silently: an image under another key, a token without its image, and a key that is written
twice are faults; other keys that are not read are noted (_unread_keys.py).

Formats: https://github.com/haotian-liu/LLaVA (docs/Finetune_Custom_Data.md), arXiv:2403.08350 (CoIN).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Lt

from dgg_ray.core import rng
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Task
from dgg_ray.core.phrases import plural
from dgg_ray.readers import _conversations
from dgg_ray.readers._caption_files import CaptionFile, group_by_file_name, load_captions
from dgg_ray.readers._data_files import (
    Faults,
    Location,
    Record,
    describe_missing,
    fetch_to_this_machine,
    load_records,
    nearest_file,
    text_of,
    texts_of,
)
from dgg_ray.readers._images import ImageInfo, inspect_images
from dgg_ray.readers._unread_keys import check_unread_keys, is_empty
from dgg_ray.storage import fetching


class LocatedExample(NamedTuple):
    """An example, and the record that it came from.

    image_name: the image's path in the image folder; for a record of text only the record's path.
    """

    example: Example
    location: Location
    image_name: str


@dataclass(frozen=True)
class Llava(Reader):
    """A task from files in LLaVA's format. Relative paths start at the study's data folder.

    All paths may be URLs (s3://BUCKET/train.json): each node fetches the files once, and the whole folder of
    images once if an example has one.

    train: file of the training examples, a JSON list or JSON lines; a task with `evaluate_only: true` does
        without.
    test: file of the test examples.
    validation: file of the validation examples; without it a share of `train` is reserved, by image: all
        examples of one image are on the same side.
    validation_share: that share of the images of `train` (records of text only count as one each).
    split_seed: seed of that division, and of the samples that the limits take.
    images: folder that `image` is relative to; None is the folder of `train`, or without it that of `test`.
    references: file with captions in COCO's form, matched by file name; they become the references of every
        test example of that image, and of validation examples if the file has captions for them.
    limit: largest number of training examples, a sample; the images of the others are not read.
    limit_test: largest number of validation examples, and of test examples, each a sample.
    scorer: how answers are scored, the name of a file in scorers/.
    """

    train: Path | None = None
    test: Path = field(kw_only=True)
    validation: Path | None = None
    validation_share: Annotated[float, Gt(0), Lt(1)] = 0.1
    split_seed: Annotated[int, Ge(0)] = 0
    images: Path | None = None
    references: Path | None = None
    limit: Annotated[int, Ge(1)] | None = None
    limit_test: Annotated[int, Ge(1)] | None = None
    scorer: str = "exact_match"

    def read(self, name: str) -> Task:
        """Return the task after reading all its images; images of known content are not decoded again."""
        faults = Faults()
        examples, root = self._read_examples(name, faults)
        limits = {"train": self.limit, "validation": self.limit_test, "test": self.limit_test}
        examples = {split: self._sample(examples[split], limits[split], name, split) for split in SPLITS}
        if fetching.url_of(root):
            examples, root = with_local_images(examples, root, faults)
        images = check_images(examples, root, faults)
        faults.raise_any(f"task {name}")

        contents = {
            split: [content_of(located.example, images) for located in examples[split]] for split in SPLITS
        }
        notes = (
            *faults.notes(),
            *missing_image_notes(contents),
            *frame_notes(images),
            *repetition_notes(contents),
        )
        return Task(
            name,
            {split: tuple(located.example for located in examples[split]) for split in SPLITS},
            {split: digest(contents[split]) for split in SPLITS},
            self.scorer,
            notes,
        )

    def _read_examples(self, name: str, faults: Faults) -> tuple[dict[str, list[LocatedExample]], Path]:
        """Return the examples of all splits with their captions, and the image folder."""
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        root = fetching.as_path(self.images or Path(self.train or self.test).parent)
        root = root if fetching.url_of(root) else root.absolute()
        examples: dict[str, list[LocatedExample]] = {split: [] for split in files}
        examples |= {
            split: parse_examples(fetch_to_this_machine(path, split, faults), split, root, faults)
            for split, path in files.items()
            if path is not None
        }
        if self.validation is None and self.train is None:
            faults.add(Location("validation"), "is required without `train`, of which it would be a share")
        elif self.validation is None:
            examples |= self._divide(examples["train"], name, faults)
        if self.references is not None:
            file = fetch_to_this_machine(self.references, "references", faults)
            captions = load_captions(file, faults) if file else CaptionFile({}, {})
            images = group_by_file_name(
                dict.fromkeys(located.image_name for split in SPLITS for located in examples[split])
            )
            for split in ("validation", "test"):
                examples[split] = with_captions(examples[split], captions, images, split == "test", faults)
        return examples, root

    def _divide(
        self, examples: Sequence[LocatedExample], name: str, faults: Faults
    ) -> dict[str, list[LocatedExample]]:
        """Divide one list into train and validation, by image; each gets at least one."""
        images = list(dict.fromkeys(located.image_name for located in examples))
        if examples and len(images) < 2:
            rule = "must contain at least two images, one of them for validation; or name a `validation` file"
            faults.add(Location("train", examples[0].location.file), rule, "one image")
        count = min(max(round(self.validation_share * len(images)), 1), max(len(images) - 1, 0))
        order = rng.permutation(len(images), self.split_seed, name, "validation")
        reserved = {images[i] for i in order[:count]}
        return {
            "train": [located for located in examples if located.image_name not in reserved],
            "validation": [located for located in examples if located.image_name in reserved],
        }

    def _sample(
        self, examples: Sequence[LocatedExample], limit: int | None, name: str, split: str
    ) -> list[LocatedExample]:
        """Sample `limit` examples uniformly without replacement, in their order; the samples are nested."""
        if limit is None or limit >= len(examples):
            return list(examples)
        order = rng.permutation(len(examples), self.split_seed, name, f"limit {split}")
        return [examples[i] for i in sorted(order[:limit])]


# -- records to examples ---------------------------------------------------------------------------


def parse_examples(file: Path | None, split: str, root: Path, faults: Faults) -> list[LocatedExample]:
    """Return the examples of one file; their images are not read yet."""
    records = load_records(file, split, _conversations.RECORD_KEYS, faults) if file else ()
    examples = [
        located
        for index, record in enumerate(records)
        for located in examples_of(record, f"#{index}", root, faults)
    ]
    first: dict[str, Location] = {}
    for n, located in enumerate(examples):
        id_, location = located.example.id, located.location
        earlier = first.setdefault(id_, location)
        if earlier is location:
            continue
        if split == "train":  # some benchmarks number images, not records; nothing is looked up by this id
            example = replace(located.example, id=f"{id_} ({location.path})")
            examples[n] = located._replace(example=example)
        else:
            faults.add(location.key("id"), "must be unique in its split", f"{id_!r}, as in {earlier.path}")
    return examples


def examples_of(record: Record, default_id: str, root: Path, faults: Faults) -> list[LocatedExample]:
    """Return one example for each pair of turns; [] after a fault that leaves none."""
    location, fields = record.location, record.content
    if not isinstance(fields, dict):
        faults.add(location, "must be a record, {…}", repr(fields))
        return []
    image_field = fields.get("image")
    faulty_keys = check_unread_keys(fields, _conversations.RECORD_KEYS, image_field, location, faults)
    id_ = record_id(fields, location, faults) or default_id
    references, choices = (answer_list(fields, key, location, faults) for key in ("references", "choices"))
    image = named_image(image_field, location.key("image"), faults)
    name = path_in_folder(image, str(root), location.key("image"), faults) if image else ""
    path = root / name if name else None
    pairs = _conversations.question_answer_pairs(fields, references, faulty_keys, location, faults)
    tokens = sum(question.count(_conversations.IMAGE_TOKEN) for question, _ in pairs)
    if tokens and is_empty(image_field) and "image" not in faulty_keys:
        found = json.dumps(image_field) if "image" in fields else ""
        rule = f"is required, as the question contains {_conversations.IMAGE_TOKEN}"
        faults.add(location.key("image"), rule, found)
    if tokens > 1:
        rule = f"must contain {_conversations.IMAGE_TOKEN} at most once"
        faults.add(location, rule, f"{tokens} times")
    examples = []
    for k, (question, answer) in enumerate(pairs):
        example_id = id_ if k == 0 else f"{id_}#{k}"
        text = _conversations.without_token(question)
        example = Example(example_id, text, answer, path, references, choices)
        examples.append(LocatedExample(example, location, name or location.path))
    return examples


def record_id(fields: Mapping[str, Any], location: Location, faults: Faults) -> str:
    """Return the record's own id; empty if it has none."""
    key = next((key for key in ("id", "question_id") if fields.get(key) is not None), "")
    return text_of(fields[key], location.key(key), faults) if key else ""


def answer_list(fields: Mapping[str, Any], key: str, location: Location, faults: Faults) -> tuple[str, ...]:
    """Return the texts of `references` or `choices`."""
    if fields.get(key) is None:
        return ()
    texts = texts_of(fields[key], location.key(key), faults)
    for text in texts:
        _conversations.refuse_media_tokens(text, location.key(key), faults)
    return texts


# -- images ----------------------------------------------------------------------------------------


def named_image(value: Any, location: Location, faults: Faults) -> str:
    """Return the one image that a record names, which some files write as a list; "" if there is none."""
    if isinstance(value, list):
        if len(value) > 1:
            faults.add(location, "must be one image", f"{len(value)} images")
            return ""
        value = value[0] if value else None
    return "" if value is None else text_of(value, location, faults)


def path_in_folder(image: str, root: str, location: Location, faults: Faults) -> str:
    """Return the image's path relative to the image folder; "" after a fault.

    `..` removes the part before it, whatever a link there leads to.
    """
    path = os.path.normpath(image)
    if os.path.isabs(path) and path.startswith(top := os.path.join(os.path.normpath(root), "")):
        path = path[len(top) :]
    if os.path.isabs(path) or path.partition(os.sep)[0] == ".." or "\0" in path:
        faults.add(location, "must be a path inside the image folder", repr(image))
        return ""
    return path


def with_local_images(
    examples: Mapping[str, list[LocatedExample]], root: Path, faults: Faults
) -> tuple[dict[str, list[LocatedExample]], Path]:
    """Fetch the image folder; return the examples with images on this machine, and the local folder.

    Nothing is fetched if all examples are text. After a fault no examples are returned, so that nothing more
    is said about their images.
    """
    if all(located.example.image is None for split in SPLITS for located in examples[split]):
        return dict(examples), root
    local_root = fetch_to_this_machine(root, "images", faults)
    if local_root is None:
        return {split: [] for split in examples}, root

    def with_local_image(located: LocatedExample) -> LocatedExample:
        if not isinstance(image := located.example.image, Path):
            return located
        local_image = local_root / image.relative_to(root)
        return located._replace(example=replace(located.example, image=local_image))

    local = {split: [with_local_image(located) for located in some] for split, some in examples.items()}
    return local, local_root


def check_images(
    examples: Mapping[str, Sequence[LocatedExample]], root: Path, faults: Faults
) -> dict[Path, ImageInfo]:
    """Inspect every image file; add a fault for every example whose image is missing or broken."""
    used = [
        (located, image)
        for split in SPLITS
        for located in examples[split]
        if isinstance(image := located.example.image, Path)
    ]
    if used and not root.is_dir():
        rule = "must be a folder that exists"
        faults.add(Location("images"), rule, describe_missing(root), lambda: nearest_file(root))
        return {}
    exists = {path: os.path.exists(path) for path in dict.fromkeys(path for _, path in used)}
    images = inspect_images(path for path, there in exists.items() if there)
    for located, path in used:
        location = located.location.key("image")
        if not exists[path]:
            found = describe_broken_link(path, root) or repr(located.image_name)
            rule = "must be a file in the image folder"
            faults.add(location, rule, found, lambda path=path: nearest_file(path))
        elif problem := images[path].problem:
            rule = "must be an image that can be decoded"
            faults.add(location, rule, f"{located.image_name!r}: {problem}")
    return images


def describe_broken_link(path: Path, root: Path) -> str:
    """Describe the link on the way to an image that leads nowhere or in a circle; empty if there is none."""
    name = path.relative_to(root)
    for step in (*reversed(name.parents), name):
        try:
            if (root / step).is_symlink() and not os.path.exists(root / step):
                link = f"the link {str(step)!r} leads to {os.readlink(root / step)}"
                return f"{str(name)!r}, where {link}, which does not exist"
        except OSError:
            return ""
    return ""


# -- references and content ------------------------------------------------------------------------


def with_captions(
    examples: Iterable[LocatedExample],
    captions: CaptionFile,
    task_images: Mapping[str, tuple[str, ...]],
    required: bool,
    faults: Faults,
) -> list[LocatedExample]:
    """Return the examples with their image's captions as references.

    task_images: the paths of all of the task's images, by file name.
    required: an image without a caption is a fault.
    """
    result = []
    for located in examples:
        texts, ambiguity = captions.find(located.image_name, task_images)
        location = located.location.key("image")
        if ambiguity:
            rule = "must be listed by its full path in the `references` file, as its file name is not unique"
            faults.add(location, rule, ambiguity)
        elif required and not texts and captions.by_path:
            faults.add(location, "must have a caption in the `references` file", located.image_name)
        elif texts and located.example.references not in ((), texts):
            rule = "must be left out, as the `references` file has captions of the image"
            faults.add(located.location.key("references"), rule)
        example = replace(located.example, references=texts) if texts else located.example
        result.append(located._replace(example=example))
    return result


def content_of(example: Example, images: Mapping[Path, ImageInfo]) -> list[Any]:
    """Return what enters the digest: everything about the example except its image's path."""
    image = images[example.image].digest if isinstance(example.image, Path) else ""
    words = [example.id, example.question, example.answer, example.references, example.choices]
    return [*words, image]


# -- notes -----------------------------------------------------------------------------------------

Contents = Mapping[str, Sequence[Sequence[Any]]]  # by split, what enters the digest


def missing_image_notes(contents: Contents) -> tuple[str, ...]:
    """Return a sentence for each split that lacks images, if the task has some."""
    counts = {split: sum(bool(image) for *_, image in contents[split]) for split in SPLITS}
    fullest = max(SPLITS, key=lambda split: counts[split] / max(len(contents[split]), 1))
    notes = []
    for split in SPLITS:
        total = len(contents[split])
        if counts[fullest] and counts[split] < total:
            note = f"{total - counts[split]} of {total} examples in {split} have no image"
            if split != fullest:
                note += f", while {counts[fullest]} of {len(contents[fullest])} in {fullest} have one"
            notes.append(note)
    return tuple(notes)


def frame_notes(images: Mapping[Path, ImageInfo]) -> tuple[str, ...]:
    count = sum(info.frames > 1 for info in images.values())
    if not count:
        return ()
    return (f"{plural(count, 'image')} with several frames or pages: only the first of each is shown",)


def repetition_notes(contents: Contents) -> tuple[str, ...]:
    """Return a sentence for each split that repeats questions, of its own or of another split."""
    notes = []
    answers: dict[str, dict[tuple[str, str], set[str]]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        known, total = answers[split], len(contents[split])
        for _, question, answer, *_, image in contents[split]:
            known.setdefault((question, image), set()).add(answer)
        if repeated := total - len(known):
            note = f"{repeated} of {total} examples in {split} repeat another one (same question, same image)"
            if contradicted := sum(len(texts) > 1 for texts in known.values()):
                note += f"; answers differ for {plural(contradicted, 'question')}"
            notes.append(note)
    for split, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        known = answers[split]
        agrees = [c[2] in known[c[1], c[-1]] for c in contents[other] if (c[1], c[-1]) in known]
        if agrees:
            note = f"{len(agrees)} of {len(contents[other])} examples in {other} are also in {split} "
            note += "(same question, same image)"
            if not all(agrees):
                note += f", {agrees.count(False)} of them with another answer"
            notes.append(note)
    return tuple(notes)
