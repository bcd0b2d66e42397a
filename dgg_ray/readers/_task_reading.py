"""Reading a task, so that its digests identify its content.

Readers of this package hash what they read. A user's own reader need not: whatever it returns, its examples
and their images are hashed here, so that no stage is stored under the key of other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dgg_ray.core import error_records, sources
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Task
from dgg_ray.readers._answer_styles import with_answer_styles
from dgg_ray.readers._images import inspect_images

SHOWN = 5  # faults of one split that are shown one by one


def read_task(reader: Reader, name: str, evaluate_only: bool = False) -> Task:
    """Return the task called `name`; raise StudyError with all faults, also if the reader raises.

    The training examples are in the styles that the reader's `answer_styles` asks for.

    evaluate_only: leave out the training examples, of which a reader of one's own need return none.
    """
    if not evaluate_only:
        task = read_whole_task(reader, name, SPLITS)
        return with_answer_styles(task, reader.answer_styles) if reader.answer_styles else task
    task = read_whole_task(reader, name, SPLITS[1:])
    return replace(
        task, examples={**task.examples, "train": ()}, digests={**task.digests, "train": digest([])}
    )


def read_whole_task(reader: Reader, name: str, splits: Sequence[str]) -> Task:
    """Return the task with all examples. splits: those that a reader of one's own must return."""
    if not sources.source_digest(type(reader)):
        return reader.read(name)
    try:
        task = reader.read(name)
    except (DggError, OSError):
        raise
    except Exception as problem:
        rule = f"the reader must return a task, but raised {type(problem).__name__}: {problem}"
        raise StudyError([Fault("reader", rule, error_records.plugin_location(problem))], name) from problem
    if faults := list(task_faults(task, splits)):
        raise StudyError(faults, name)
    digests = {split: digest_examples(task.examples[split]) for split in splits}
    return replace(task, name=name, digests=digests)


def task_faults(task: Any, splits: Sequence[str] = SPLITS) -> Iterator[Fault]:
    """Yield the faults of a task that has no complete digest. splits: those that it must have."""
    if not isinstance(task, Task):
        yield Fault("reader", "must return a Task", type(task).__name__)
        return
    for split in splits:
        if split not in task.examples:
            yield Fault("reader", f"must return examples for {split}", ", ".join(task.examples) or "none")
            continue
        examples = task.examples[split]
        faulty = [(i, rule) for i, example in enumerate(examples) if (rule := example_fault(example))]
        for i, rule in faulty[:SHOWN]:
            yield Fault(f"{split}[{i}]", rule)
        if len(faulty) > SHOWN:
            yield Fault(split, f"{len(faulty) - SHOWN} more of its {len(examples)} examples have such faults")


def example_fault(example: Any) -> str:
    """Say what is wrong with an example; empty if nothing is."""
    if not isinstance(example, Example):
        return f"must be an Example, is {type(example).__name__}"
    for field in ("id", "question", "answer"):
        if not isinstance(value := getattr(example, field), str):
            return f"{field} must be text, is {type(value).__name__}"
    for field in ("references", "choices"):
        if not all(isinstance(text, str) for text in getattr(example, field)):
            return f"{field} must be texts"
    if not isinstance(image := example.image, Path | np.ndarray | None):
        return f"image must be a Path, pixels or None, is {type(image).__name__}"
    return ""


def digest_examples(examples: Sequence[Example]) -> str:
    """Return 64 hex digits over the examples' content, in order; raise StudyError if an image is broken."""
    images = inspect_images(e.image for e in examples if isinstance(e.image, Path))
    if broken := {path: info.problem for path, info in images.items() if info.problem}:
        rule = "must be an image that can be decoded"
        raise StudyError([Fault("image", rule, f"{path}: {why}") for path, why in broken.items()], "images")

    def image_digest(image: Path | np.ndarray | None) -> Any:
        if isinstance(image, np.ndarray):
            return [str(image.dtype), image.shape, hashlib.sha256(image.tobytes()).hexdigest()]
        return images[image].digest if image is not None else None

    return digest(
        [[e.id, e.question, e.answer, [*e.references], [*e.choices], image_digest(e.image)] for e in examples]
    )
