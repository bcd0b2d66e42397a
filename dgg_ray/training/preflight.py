"""A study's examples tried on the model's own tokenizer and processor, before a GPU is asked for.

A fault, where a stage would fail or every score of a task would be 0; else a note with its count:

    gold answers that need more tokens than protocol.max_new_tokens
    prompts that are longer, with their answer, than what the model has positions for
    texts that hold special tokens, which become marks of control and not text
    pictures that the processor refuses: too long, too narrow, too small

All texts are counted by the tokenizer, in batches. The processor is run on every size of picture, with
the longest question of that size; of more than SHAPES sizes on the extremes and on some between.
What was found is kept by content under $XDG_CACHE_HOME/dgg_ray/checks, or ~/.cache; losing it costs time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dgg_ray.config.cautions import scored
from dgg_ray.config.study import Study
from dgg_ray.core import pixels, plugins
from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.interfaces import Example, Task, digest
from dgg_ray.readers import _pictures
from dgg_ray.readers._reading import read

if TYPE_CHECKING:
    from dgg_ray.training.encoding import Encoder

FORMAT = 2  # raised when the same examples would be judged otherwise than before
SHAPES = 64  # sizes of pictures for which the processor is run
BATCH = 4096  # texts
EXIF = {"exif", "xmp", "XML:com.adobe.xmp"}  # where a header asks for a turn
ALONE = {"add_special_tokens": False, "verbose": False}  # and no masks, which take half of the time
ALONE |= {"return_attention_mask": False, "return_token_type_ids": False}
Size = tuple[int, int] | None  # width, height in pixels; None without a picture


def check(study: Study) -> list[str]:
    """Warnings, a sentence each. Raises StudyError with the faults that would end stages."""
    if study.workers.engine == "simulated":
        return ["the tokenizer and the pictures' sizes were not checked: the study is simulated"]
    if not study.model.at_hand():
        return ["the tokenizer and the pictures' sizes were not checked: the model is not on this machine"]
    place = remembered(study)
    with suppress(OSError, ValueError):
        return json.loads(place.read_text(encoding="utf-8"))
    faults, notes = looked_at(study)
    if faults:
        raise StudyError(faults, study.name)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(notes), encoding="utf-8")
    return notes


def remembered(study: Study) -> Path:
    """The file for all that bears on the answer: contents, model, settings and packages."""
    of = {name: [sorted(data.digests.items()), data.scorer] for name, data in study.tasks.items()}
    scorers = [study.code("scorers", data.scorer) for data in study.tasks.values()]
    model = study.code("models", plugins.name_of(study.model))
    packages = [version(name) for name in ("transformers", "tokenizers", "pillow")]
    settings = [study.protocol.max_new_tokens, scored(study)]
    key = digest([FORMAT, study.fingerprint, model, of, scorers, packages, settings])
    return _pictures.cache_file().parent / "checks" / f"{key[:32]}.json"


def looked_at(study: Study) -> tuple[list[Fault], list[str]]:
    import torch

    from dgg_ray.training.encoding import KEPT_BYTES, Encoder

    encoder = Encoder(study.model.processor(), torch.device("cpu"))
    encoder.kept_bytes = KEPT_BYTES  # it is asked once for each example, and need not remember
    context = study.model.context()
    faults, notes, unwritten = list[Fault](), list[str](), list[tuple[int, str]]()
    for i, (name, reader) in enumerate(study.readers.items()):
        task = read(reader, name)
        for split in ("train", *scored(study)):
            most = 0 if split == "train" else study.protocol.max_new_tokens
            look = Look(task, split, encoder, most, context, f"tasks[{i}].{split}")
            look.at_all()
            faults += look.faults
            notes += [f"{name}: {note}" for note in look.notes]
            unwritten += [(look.longest, f"{name}: {look.unwritten}")] if look.unwritten else []
    if unwritten:
        each = "; ".join(text for _, text in unwritten)
        rule = f"{each}: set {max(longest for longest, _ in unwritten) + 1}; as it is, no answer can be right"
        faults.append(Fault("protocol.max_new_tokens", rule, str(study.protocol.max_new_tokens)))
    return faults, notes


@dataclass
class Look:
    """One split of a task, under one encoder.

    most: tokens that an answer may have; 0 where none is written. context: positions of the model; 0 unknown.
    path: of the split, for its faults. unwritten: what makes every answer wrong, for all tasks' fault on
    protocol.max_new_tokens; longest: tokens of the longest gold answer.
    """

    task: Task
    split: str
    encoder: Encoder
    most: int
    context: int
    path: str = ""
    sizes: list[Size] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unwritten: str = ""
    longest: int = 0

    @property
    def examples(self) -> Sequence[Example]:
        return self.task.examples[self.split]

    def at_all(self) -> None:
        """Fill `faults`, `notes` and `unwritten`."""
        self.specials()
        if self.most:
            self.answers()
        self.prompts()

    def fault(self, rule: str) -> None:
        self.faults.append(Fault(self.path, rule))

    def said(self, count: int, text: str) -> str:
        return f"{count:,} of {len(self.examples):,} {text}"

    # -- texts -------------------------------------------------------------------------------------

    def lengths(self, texts: Iterable[str]) -> dict[str, int]:
        """Tokens of each different text."""
        rest, counts = iter(dict.fromkeys(texts)), dict[str, int]()
        while batch := list(islice(rest, BATCH)):
            ids = self.encoder.tokenizer(batch, **ALONE)["input_ids"]
            counts |= zip(batch, map(len, ids), strict=True)
        return counts

    @cached_property
    def answer_lengths(self) -> list[int]:
        """Tokens of each gold answer, without the end mark; of several references the shortest."""
        lead = self.encoder.lead
        counts = self.lengths(lead + text for example in self.examples for text in golds(example))
        return [min(counts[lead + text] for text in golds(example)) for example in self.examples]

    def specials(self) -> None:
        """Texts that hold special tokens; those that stand for a picture make a stage fail."""
        processor, tokenizer = self.encoder.processor, self.encoder.tokenizer
        known = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        known |= set(tokenizer.all_special_tokens)
        pictured = {str(getattr(processor, name, None) or "") for name in ("image_token", "video_token")}
        words = sorted((known | pictured) - {""}, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, words)))
        hits: dict[tuple[str, str], list[str]] = {}
        for example in self.examples if pattern.pattern else ():
            for part in ("question", "answer"):
                for token in set(pattern.findall(getattr(example, part))):
                    hits.setdefault((token, part), []).append(example.id)
        for (token, part), ids in hits.items():
            text = self.said(len(ids), f"{part}s in {self.split} hold `{token}` (first: {ids[0]})")
            if token in pictured:
                self.fault(f"{text}, which stands for a picture in this model: write it otherwise")
            else:
                self.notes.append(f"{text}, a mark of control of this model's tokenizer and no text to it")

    def answers(self) -> None:
        """Gold answers that cannot be written to their end."""
        needs = np.array(self.answer_lengths)
        long = needs > self.most
        if not long.any():
            return
        self.longest = int(needs.max())
        text = self.said(int(long.sum()), f"gold answers in {self.split} need up to {self.longest} tokens")
        if long.all() and self.hopeless():
            self.unwritten = text
        else:
            at = f"protocol.max_new_tokens is {self.most}: set {self.longest + 1}"
            self.notes.append(f"{text}, {at}")

    def hopeless(self) -> bool:
        """Whether even the gold answers, cut at their longest, score 0; asked of scorers of texts alone."""
        module = plugins.module("scorers", self.task.scorer)
        if not hasattr(module, "remarks"):
            return False
        tokenizer, cut = self.encoder.tokenizer, []
        for example in self.examples:
            ids = tokenizer(self.encoder.lead + example.answer, add_special_tokens=False)["input_ids"]
            cut.append(tokenizer.decode(ids[: self.most], skip_special_tokens=True))
        return plugins.find("scorers", self.task.scorer)(cut, self.examples).value == 0

    # -- prompts and pictures ----------------------------------------------------------------------

    def prompts(self) -> None:
        questions = self.lengths(example.question for example in self.examples)
        longest: dict[Size, Example] = {}
        self.sizes = sizes_of(self.examples)
        for example, size in zip(self.examples, self.sizes, strict=True):
            known = longest.setdefault(size, example)
            if questions[example.question] > questions[known.question]:
                longest[size] = example
        beside: dict[Size, int] = {}  # tokens of a prompt that are not its question's
        refused: dict[Size, str] = {}
        for size in chosen(list(longest)):
            try:
                ids = self.encoder(longest[size]).prompt
            except Exception as error:  # processors raise what they like
                refused[size] = f"{type(error).__name__}: {error}"
                continue
            beside[size] = len(ids) - questions[longest[size].question]
        if refused:
            self.refusal(longest, refused)
        elif self.context:
            self.too_long(questions, beside)

    def refusal(self, longest: Mapping[Size, Example], refused: Mapping[Size, str]) -> None:
        size, why = next(iter(refused.items()))
        count = sum(other in refused for other in self.sizes)
        pixels = f", {size[0]} × {size[1]} pixels" if size else ""
        text = self.said(
            count, f"examples cannot be prepared by the model's processor (first: {longest[size].id}"
        )
        self.fault(f"{text}{pixels}): {' '.join(why.split())[:200]}")

    def too_long(self, questions: Mapping[str, int], beside: Mapping[Size, int]) -> None:
        """Prompts that leave no positions for answers; sizes that were not tried count as the largest."""
        widest = max(beside.values(), default=0)
        answers = [self.most] * len(self.examples) if self.most else [n + 1 for n in self.answer_lengths]
        whole = np.array(
            [
                questions[example.question] + beside.get(size, widest) + answer
                for example, size, answer in zip(self.examples, self.sizes, answers, strict=True)
            ]
        )
        if count := int((whole > self.context).sum()):
            what = "a prompt and its answer" if not self.most else "a prompt and protocol.max_new_tokens"
            text = f"examples in {self.split} have up to {whole.max():,} tokens in {what}"
            text = f"{self.said(count, text)}, and the model has positions for {self.context:,}"
            if count == len(whole):
                self.fault(text)
            else:
                self.notes.append(text)


def golds(example: Example) -> tuple[str, ...]:
    return example.references or (example.answer,)


def sizes_of(examples: Sequence[Example]) -> list[Size]:
    """Measure each example's picture as the processor sees it; of a file the header is read, once."""
    files = list(dict.fromkeys(e.image for e in examples if isinstance(e.image, Path)))
    with ThreadPoolExecutor() as pool:
        known = dict(zip(files, pool.map(size_of, files), strict=True))
    return [
        known[e.image] if isinstance(e.image, Path) else None if e.image is None else e.image.shape[1::-1]
        for e in examples
    ]


def size_of(file: Path) -> Size:
    try:
        with Image.open(file) as image:
            turned = image.info.keys() & EXIF and pixels.turn_of(image) in pixels.SIDEWAYS
            width, height = image.size
            return (height, width) if turned else (width, height)
    except (OSError, ValueError):  # said by the reader, which looks at every picture
        return 0, 0


def chosen(sizes: list[Size]) -> list[Size]:
    """All, or the extremes in every direction and some between."""
    if len(sizes) <= SHAPES:
        return sizes
    some = [size for size in sizes if size]
    by: list[Any] = [lambda s: s[0], lambda s: s[1], lambda s: s[0] / max(s[1], 1), lambda s: s[0] * s[1]]
    extremes = [pick(some, key=key) for key in by for pick in (min, max)]
    between = sorted(some, key=by[-1])[:: max(1, len(some) // (SHAPES - len(extremes)))]
    return list(dict.fromkeys([*extremes, *between, *(size for size in sizes if not size)]))
