"""A task as its reader gives it, known by what it holds.

Readers in this package hash what they read. One of the user's own need not: whatever it says, its examples
and their pictures are hashed here, so that no stage is kept under the name of other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dgg_ray.core import blame, sources
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Task, digest
from dgg_ray.readers._pictures import inspect

LISTED = 5  # faults of one split that are told one by one


def read(reader: Reader, name: str) -> Task:
    """The task called `name`; StudyError with every fault found, also for a reader that raises."""
    if not sources.code_of(type(reader)):
        return reader.read(name)
    try:
        task = reader.read(name)
    except (DggError, OSError):
        raise
    except Exception as problem:
        rule = f"the reader must give a task, and raised {type(problem).__name__}: {problem}"
        raise StudyError([Fault("reader", rule, blame.place(problem))], name) from problem
    if faults := list(unfit(task)):
        raise StudyError(faults, name)
    return replace(task, name=name, digests={split: content(task.examples[split]) for split in SPLITS})


def unfit(task: Any) -> Iterator[Fault]:
    """Faults of a task that no key can be made of."""
    if not isinstance(task, Task):
        yield Fault("reader", "must give a Task", type(task).__name__)
        return
    for split in SPLITS:
        if split not in task.examples:
            yield Fault("reader", f"must give examples for {split}", ", ".join(task.examples) or "none")
            continue
        wrong = [(i, why) for i, e in enumerate(task.examples[split]) if (why := unlike(e))]
        for i, why in wrong[:LISTED]:
            yield Fault(f"{split}[{i}]", why)
        if len(wrong) > LISTED:
            yield Fault(split, f"{len(wrong) - LISTED} more of its {len(task.examples[split])} are like that")


def unlike(example: Any) -> str:
    """Why it is no example; empty where it is one."""
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


def content(examples: Sequence[Example]) -> str:
    """64 hex digits over all that the examples hold, in their order; StudyError where a picture is none."""
    pictures = inspect(e.image for e in examples if isinstance(e.image, Path))
    if broken := {path: p.problem for path, p in pictures.items() if p.problem}:
        faults = [
            Fault("image", "must be a picture that decodes", f"{p}: {why}") for p, why in broken.items()
        ]
        raise StudyError(faults, "pictures")

    def seen(image: Path | np.ndarray | None) -> Any:
        if isinstance(image, np.ndarray):
            return [str(image.dtype), image.shape, hashlib.sha256(image.tobytes()).hexdigest()]
        return pictures[image].digest if image is not None else None

    return digest(
        [[e.id, e.question, e.answer, [*e.references], [*e.choices], seen(e.image)] for e in examples]
    )
