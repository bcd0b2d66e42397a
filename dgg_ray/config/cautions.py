"""Warnings before a study runs: small data, and examples that its scorers cannot use.

Each is a sentence with its numbers; nothing here is a fault. What needs the model's processor stands in
preflight.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.interfaces import Task
from dgg_ray.core.stage import Data
from dgg_ray.core.wording import listing, plural

FEW_STEPS = 10
LISTED = 5  # names in a sentence


def scored(study: Study) -> list[str]:
    """The splits whose answers the model will write."""
    return ["validation"] * bool(study.search and study.protocol.selection_split == "validation") + ["test"]


def of_task(study: Study, task: Task) -> Iterator[str]:
    """Remarks of the task's scorer on the examples that it will score."""
    remarks = getattr(plugins.module("scorers", task.scorer), "remarks", None)
    for split in scored(study) if remarks else ():
        examples = task.examples[split]
        for count, remark in remarks(examples):  # type: ignore[misc]
            if count:
                yield f"{task.name}: {count:,} of {len(examples):,} questions in {split} {remark}"


def of_study(study: Study, tasks: Mapping[str, Data]) -> Iterator[str]:
    """Warn about sizes too small to tell settings apart, and about values that do nothing."""
    for split in scored(study):
        few = {name: n for name, data in tasks.items() if (n := data.sizes[split]) < 100}
        said = [f"{n} in `{name}` ({100 / n:.1f} points)" for name, n in few.items()]
        if few:
            yield f"{split} is so small that one answer is worth more than a point: {listing(said, LISTED)}"
    yield from buffers(study, tasks)
    yield from batches(study, tasks)
    alpha = getattr(study.strategy, "alpha", None)
    if isinstance(alpha, Mapping) and "strategy.alpha" not in (study.search.space if study.search else ()):
        left_out = [f"`{name}`" for name in tasks if name not in alpha]
        if left_out:
            said = listing(left_out, LISTED)
            yield f"strategy.alpha names no value for {said}, which will be learned with α = 0"


def buffers(study: Study, tasks: Mapping[str, Data]) -> Iterator[str]:
    """Buffers that hold all of a task are one setting, whatever their size."""
    sizes = {int(size) for size in values(study, "strategy.buffer") if isinstance(size, int)}
    larger: dict[str, list[int]] = {}
    for name, data in tasks.items():
        if above := sorted(size for size in sizes if size > data.sizes["train"]):
            larger[name] = above
    for above in sorted({tuple(some) for some in larger.values()}):
        said = [f"`{n}` ({tasks[n].sizes['train']})" for n, some in larger.items() if tuple(some) == above]
        which = f"strategy.buffer {listing([str(size) for size in above], LISTED)}"
        same = ", so that these values do the same" if len(above) > 1 else ""
        yield f"{which}: more than the training examples of {listing(said, LISTED)}; all are kept{same}"


def batches(study: Study, tasks: Mapping[str, Data]) -> Iterator[str]:
    batch, epochs = study.training.batch_size, study.training.epochs
    steps = {name: epochs * ceil(data.sizes["train"] / batch) for name, data in tasks.items()}
    few = [f"`{name}` ({count})" for name, count in steps.items() if count < FEW_STEPS]
    if few:
        said = f"{listing(few, LISTED)}, with training.batch_size {batch} and {plural(epochs, 'epoch')}"
        yield f"so few optimizer steps hardly learn a task: {said}"


def values(study: Study, path: str) -> Sequence[Any]:
    """Every value that a setting may take: the searched ones, or its own."""
    parameter = study.search.space.get(path) if study.search else None
    if parameter is not None:
        return [value for value in (*(parameter.values or ()), parameter.high) if value is not None]
    section, _, name = path.partition(".")
    return [getattr(getattr(study, section), name, None)]
