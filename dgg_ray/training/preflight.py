"""Try a study's examples on the model's own tokenizer and processor, before a GPU is requested.

Four properties are checked. One that would make a stage fail, or every score of a task 0, is a fault.
Otherwise it is a note with the number of examples:

    gold answers that need more tokens than protocol.max_new_tokens
    prompts that, with their answer, are longer than the model's context
    texts that contain special tokens, which the model reads as control marks and not as text
    images that the processor refuses: too long, too narrow, too small

The tokenizer counts all texts, in batches. The processor runs on every image size, with the longest question
of that size; of more than MAX_SIZES sizes it tries the extremes and some between. The result is cached by
content in $XDG_CACHE_HOME/dgg_ray/checks or ~/.cache; deleting it only costs time.
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
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from dgg_ray.config.data_warnings import evaluated_splits
from dgg_ray.config.study import Study
from dgg_ray.core import image_conversion, plugins
from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import Example, Task
from dgg_ray.readers import _images

if TYPE_CHECKING:
    from dgg_ray.training.encoding import Encoder

FORMAT = 2  # raise it when the same examples would give other faults or notes
MAX_SIZES = 64  # of images for which the processor runs
TEXTS_PER_BATCH = 4096
EXIF_KEYS = {"exif", "xmp", "XML:com.adobe.xmp"}  # parts of a header that may ask for a rotation
COUNT_ONLY = {
    "add_special_tokens": False,
    "verbose": False,
    "return_attention_mask": False,  # masks would take half of the time
    "return_token_type_ids": False,
}


class ImageSize(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def aspect_ratio(self) -> float:
        return self.width / max(self.height, 1)


def check(study: Study) -> list[str]:
    """Warnings about the study's examples, a sentence each; StudyError for faults that would end stages."""
    if study.workers.engine == "simulated":
        return ["the tokenizer and the image sizes were not checked, because the study is simulated"]
    if not study.model.has_local_files():
        return [
            "the tokenizer and the image sizes were not checked, because the model is not on this machine"
        ]
    file = cache_path(study)
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    faults, notes = check_examples(study)
    if faults:
        raise StudyError(faults, study.name)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(notes), encoding="utf-8")
    return notes


def cache_path(study: Study) -> Path:
    """The cache file for everything that the result depends on: data, model, settings and packages."""
    tasks = {name: [sorted(data.digests.items()), data.scorer] for name, data in study.data.tasks.items()}
    scorers = [study.source_hash("scorers", data.scorer) for data in study.data.tasks.values()]
    model = study.source_hash("models", plugins.plugin_name(study.model))
    packages = [version(name) for name in ("transformers", "tokenizers", "pillow")]
    settings = [study.protocol.max_new_tokens, evaluated_splits(study)]
    key = digest([FORMAT, study.data.fingerprint, model, tasks, scorers, packages, settings])
    return _images.cache_file().parent / "checks" / f"{key[:32]}.json"


def check_examples(study: Study) -> tuple[list[Fault], list[str]]:
    """(Faults, notes) of all tasks' splits."""
    import torch

    from dgg_ray.training.encoding import CACHE_BYTES, Encoder

    encoder = Encoder(study.model.processor(), torch.device("cpu"))
    encoder.cached_bytes = CACHE_BYTES  # a full cache: no example is encoded twice here
    context_length = study.model.context_length()
    faults: list[Fault] = []
    notes: list[str] = []
    cut_answers: list[CutAnswers] = []
    for i, name in enumerate(study.readers):
        task = study.read_task(name)
        trained = () if name in study.evaluate_only else ("train",)
        for split in (*trained, *evaluated_splits(study)):
            max_new_tokens = 0 if split == "train" else study.protocol.max_new_tokens
            split_check = SplitCheck(
                task, split, encoder, max_new_tokens, context_length, f"tasks[{i}].{split}"
            )
            split_check.run()
            faults += split_check.faults
            notes += [f"{name}: {note}" for note in split_check.notes]
            if split_check.cut_answers:
                cut_answers.append(split_check.cut_answers)
    if cut_answers:
        counts = "; ".join(f"{cut.task}: {cut.count}" for cut in cut_answers)
        enough = max(cut.longest for cut in cut_answers) + 1
        rule = f"{counts}: set {enough}; as it is, no answer can be right"
        faults.append(Fault("protocol.max_new_tokens", rule, str(study.protocol.max_new_tokens)))
    return faults, notes


class CutAnswers(NamedTuple):
    """A task whose every answer is wrong because answers are cut off.

    count: the affected examples, in words. longest: tokens of the longest gold answer.
    """

    task: str
    count: str
    longest: int


@dataclass
class SplitCheck:
    """The check of one split of a task. `run` fills `faults`, `notes` and `cut_answers`.

    max_new_tokens: most tokens of an answer; 0 where no answers are generated.
    context_length: tokens that the model has positions for; 0 if unknown.
    path: of the split in the study file, for its faults.
    cut_answers: set if no answer can be right; all tasks share the fault on protocol.max_new_tokens.
    """

    task: Task
    split: str
    encoder: Encoder
    max_new_tokens: int
    context_length: int
    path: str = ""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cut_answers: CutAnswers | None = None

    def run(self) -> None:
        self.check_special_tokens()
        if self.max_new_tokens:
            self.check_answers()
        self.check_prompts()

    @property
    def examples(self) -> Sequence[Example]:
        return self.task.examples[self.split]

    @cached_property
    def image_sizes(self) -> list[ImageSize | None]:
        return image_sizes(self.examples)

    def add_fault(self, rule: str) -> None:
        self.faults.append(Fault(self.path, rule))

    def count_of(self, count: int, text: str) -> str:
        """A message's beginning: how many of the split's examples, and what about them."""
        return f"{count:,} of {len(self.examples):,} {text}"

    # -- texts -------------------------------------------------------------------------------------

    def count_tokens(self, texts: Iterable[str]) -> dict[str, int]:
        """Number of tokens of each distinct text."""
        remaining, counts = iter(dict.fromkeys(texts)), dict[str, int]()
        while batch := list(islice(remaining, TEXTS_PER_BATCH)):
            ids = self.encoder.tokenizer(batch, **COUNT_ONLY)["input_ids"]
            counts |= zip(batch, map(len, ids), strict=True)
        return counts

    @cached_property
    def answer_tokens(self) -> list[int]:
        """Tokens of each gold answer without the end mark; of several references the shortest."""
        prefix = self.encoder.answer_prefix
        counts = self.count_tokens(
            prefix + text for example in self.examples for text in gold_answers(example)
        )
        return [min(counts[prefix + text] for text in gold_answers(example)) for example in self.examples]

    def check_special_tokens(self) -> None:
        """Note texts that contain special tokens; those that stand for an image would end a stage."""
        processor, tokenizer = self.encoder.processor, self.encoder.tokenizer
        special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        for_images = {str(getattr(processor, name, None) or "") for name in ("image_token", "video_token")}
        tokens = sorted((special | for_images) - {""}, key=len, reverse=True)
        if not tokens:
            return
        pattern = re.compile("|".join(map(re.escape, tokens)))
        example_ids: dict[tuple[str, str], list[str]] = {}
        for example in self.examples:
            for part in ("question", "answer"):
                for token in set(pattern.findall(getattr(example, part))):
                    example_ids.setdefault((token, part), []).append(example.id)
        for (token, part), ids in example_ids.items():
            count = self.count_of(len(ids), f"{part}s in {self.split} contain `{token}` (first: {ids[0]})")
            if token in for_images:
                self.add_fault(f"{count}, which stands for an image in this model: write it differently")
            else:
                self.notes.append(
                    f"{count}, which this model's tokenizer reads as a control mark, not as text"
                )

    def check_answers(self) -> None:
        """Note gold answers that are longer than the model may answer."""
        tokens = np.array(self.answer_tokens)
        too_long = tokens > self.max_new_tokens
        if not too_long.any():
            return
        longest = int(tokens.max())
        count = self.count_of(
            int(too_long.sum()), f"gold answers in {self.split} need up to {longest} tokens"
        )
        if too_long.all() and self.cut_gold_answers_score_zero():
            self.cut_answers = CutAnswers(self.task.name, count, longest)
        else:
            self.notes.append(f"{count}, protocol.max_new_tokens is {self.max_new_tokens}: set {longest + 1}")

    def cut_gold_answers_score_zero(self) -> bool:
        """Return whether even gold answers cut at the limit score 0; only scorers with `remarks` are run."""
        module = plugins.plugin_module("scorers", self.task.scorer)
        if not hasattr(module, "remarks"):
            return False
        tokenizer, cut_answers = self.encoder.tokenizer, []
        for example in self.examples:
            text = self.encoder.answer_prefix + example.answer
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            cut_answers.append(tokenizer.decode(ids[: self.max_new_tokens], skip_special_tokens=True))
        return plugins.find("scorers", self.task.scorer)(cut_answers, self.examples).value == 0

    # -- prompts and images ------------------------------------------------------------------------

    def check_prompts(self) -> None:
        """Run the processor on each image size, then compare prompts with the model's context."""
        question_tokens = self.count_tokens(example.question for example in self.examples)
        longest: dict[ImageSize | None, Example] = {}  # the example with the longest question of each size
        for example, size in zip(self.examples, self.image_sizes, strict=True):
            known = longest.setdefault(size, example)
            if question_tokens[example.question] > question_tokens[known.question]:
                longest[size] = example
        other_tokens: dict[ImageSize | None, int] = {}  # of a prompt, besides its question's
        refused: dict[ImageSize | None, str] = {}
        for size in sample_sizes(list(longest)):
            try:
                prompt = self.encoder(longest[size]).prompt
            except Exception as error:  # processors raise many types
                refused[size] = f"{type(error).__name__}: {error}"
                continue
            other_tokens[size] = len(prompt) - question_tokens[longest[size].question]
        if refused:
            self.add_refused_images(longest, refused)
        elif self.context_length:
            self.check_context(question_tokens, other_tokens)

    def add_refused_images(
        self, longest: Mapping[ImageSize | None, Example], refused: Mapping[ImageSize | None, str]
    ) -> None:
        """Add the fault of examples that the processor refuses, with the first one and its error."""
        size, error = next(iter(refused.items()))
        count = self.count_of(
            sum(other in refused for other in self.image_sizes),
            f"examples cannot be prepared by the model's processor (first: {longest[size].id}",
        )
        pixels = f", {size[0]} × {size[1]} pixels" if size else ""
        self.add_fault(f"{count}{pixels}): {' '.join(error.split())[:200]}")

    def check_context(
        self, question_tokens: Mapping[str, int], other_tokens: Mapping[ImageSize | None, int]
    ) -> None:
        """Compare prompt and answer with the context; sizes that were not tried count as the largest."""
        most = max(other_tokens.values(), default=0)
        if self.max_new_tokens:
            answers = [self.max_new_tokens] * len(self.examples)
            parts = "a prompt and protocol.max_new_tokens"
        else:
            answers = [tokens + 1 for tokens in self.answer_tokens]
            parts = "a prompt and its answer"
        totals = np.array(
            [
                question_tokens[example.question] + other_tokens.get(size, most) + answer
                for example, size, answer in zip(self.examples, self.image_sizes, answers, strict=True)
            ]
        )
        if count := int((totals > self.context_length).sum()):
            text = f"examples in {self.split} have up to {totals.max():,} tokens in {parts}"
            message = f"{self.count_of(count, text)}, and the model has positions for {self.context_length:,}"
            if count == len(totals):
                self.add_fault(message)
            else:
                self.notes.append(message)


def gold_answers(example: Example) -> tuple[str, ...]:
    """All answers that count as right."""
    return example.references or (example.answer,)


def image_sizes(examples: Sequence[Example]) -> list[ImageSize | None]:
    """The size of each example's image as the processor sees it; of a file only the header is read, once."""
    files = list(dict.fromkeys(e.image for e in examples if isinstance(e.image, Path)))
    with ThreadPoolExecutor() as pool:
        sizes = dict(zip(files, pool.map(image_size, files), strict=True))
    return [size_in_memory(e.image) if not isinstance(e.image, Path) else sizes[e.image] for e in examples]


def size_in_memory(image: np.ndarray | None) -> ImageSize | None:
    """The size of an image that is an array; None for text only."""
    if image is None:
        return None
    height, width = image.shape[:2]
    return ImageSize(width, height)


def image_size(file: Path) -> ImageSize:
    """The size of a file's image after its EXIF rotation; (0, 0) if unreadable, which the reader reports."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            is_rotated = (
                image.info.keys() & EXIF_KEYS
                and image_conversion.exif_transform(image) in image_conversion.AXIS_SWAPS
            )
            return ImageSize(height, width) if is_rotated else ImageSize(width, height)
    except (OSError, ValueError):
        return ImageSize(0, 0)


def sample_sizes(sizes: list[ImageSize | None]) -> list[ImageSize | None]:
    """All sizes, or of more than MAX_SIZES the extremes in each measure and some between."""
    if len(sizes) <= MAX_SIZES:
        return sizes
    with_image = [size for size in sizes if size]
    measures = [attrgetter(name) for name in ("width", "height", "aspect_ratio", "area")]
    extremes = [pick(with_image, key=measure) for measure in measures for pick in (min, max)]
    step = max(1, len(with_image) // (MAX_SIZES - len(extremes)))
    between = sorted(with_image, key=attrgetter("area"))[::step]
    return list(dict.fromkeys([*extremes, *between, *(size for size in sizes if not size)]))
