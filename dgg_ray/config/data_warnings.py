"""Warnings before a study runs: small data, examples that its scorers cannot use, settings without effect.

Each is a sentence with its numbers; none is a fault. Checks that need the model's processor are in
preflight.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from math import ceil
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dgg_ray.config.parsing import BROKEN, check_type
from dgg_ray.config.search_rules import stages_of_a_setting
from dgg_ray.config.search_space import LINE
from dgg_ray.config.sections import SearchParameter, name_of
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.interfaces import Task
from dgg_ray.core.phrases import join_names, plural
from dgg_ray.core.stage import TaskData
from dgg_ray.core.strategy import ReplayStrategy, Strategy, effect_of, task_mappings

FEW_STEPS = 10
LISTED = 5  # names in a sentence


def evaluated_splits(study: Study) -> list[str]:
    """The splits that the model will answer."""
    if study.chooses and study.protocol.selection_split == "validation":
        return ["validation", "test"]
    return ["test"]


def task_warnings(study: Study, task: Task) -> Iterator[str]:
    """Warn of what the task's scorer remarks on the examples that it will score."""
    remarks = getattr(plugins.plugin_module("scorers", task.scorer), "remarks", None)
    for split in evaluated_splits(study) if remarks else ():
        examples = task.examples[split]
        for count, remark in remarks(examples):  # type: ignore[misc]
            if count:
                yield f"{task.name}: {count:,} of {len(examples):,} questions in {split} {remark}"


def study_warnings(study: Study, tasks: Mapping[str, TaskData]) -> Iterator[str]:
    """Warn of splits too small to compare settings on, and of values that do nothing."""
    for split in evaluated_splits(study):
        few = {name: n for name, data in tasks.items() if (n := data.sizes[split]) < 100}
        sizes = [f"{n} in `{name}` ({100 / n:.1f} points)" for name, n in few.items()]
        if few:
            yield f"one answer in {split} is worth more than a point: {join_names(sizes, LISTED)}"
    tasks = {name: tasks[name] for name in study.task_names}
    yield from buffer_warnings(study, tasks)
    yield from batch_warnings(study, tasks)
    yield from effect_warnings(study)
    yield from first_settings_warnings(study)
    for setting, values in task_mappings(study.strategy).items():
        path, left_out = f"strategy.{setting}", [f"`{name}`" for name in tasks if name not in values]
        if left_out and path not in (study.search.space if study.search else ()):
            default = f"{name_of(path)} = {study.strategy.per_task[setting]:g}"
            which = join_names(left_out, LISTED)
            yield f"{path} names no value for {which}, which will be trained with {default}"


def effect_warnings(study: Study) -> Iterator[str]:
    """Warn of settings that the `effect` of a strategy of the user's own leaves out.

    Some other values of each setting are tried: the searched ones, and some near its own.
    """
    strategy, name = study.strategy, plugins.plugin_name(study.strategy)
    if "effect" not in vars(type(strategy)) or not plugins.plugin_hash("strategies", name):
        return
    own, kinds = effects(strategy, study), get_type_hints(type(strategy), include_extras=True)
    for setting in (f.name for f in fields(strategy)):
        value, kind = getattr(strategy, setting), kinds[setting]
        choices = get_args(kind) if get_origin(kind) is Literal else near_values(value)
        tried = [*tried_values(study, f"strategy.{setting}"), *choices]
        legal = [v for v in tried if v != value and check_type(kind, v, "", []) is not BROKEN]
        found = []
        for other in legal:
            with contextlib.suppress(Exception):  # a plug-in may raise anything, and more so for this value
                found.append(effects(replace(strategy, **{setting: other}), study))
        if found and all(effect == own for effect in found):
            yield (
                f"strategy.{setting} is in no effect of `{name}`, so a stage that was trained with another "
                f"value of it is not trained again; add it to `effect`, or leave `effect` out"
            )


def first_settings_warnings(study: Study) -> Iterator[str]:
    """Warn of a search by `stage_model` that ends before it has tried the settings that it begins with."""
    search = study.search
    if search is None or search.method != "stage_model":
        return
    whole = stages_of_a_setting(study)
    later = whole * (1 - 1 / len(study.task_names))  # first stages have no guidance
    costs = [whole]
    for parameter in search.space.values():
        costs += [later if parameter.per_task else whole] * (line_length(parameter) - 1)
    least, limit = (sum(costs), search.stages) if search.stages else (len(costs), search.trials)
    if limit < least:
        name = "stages" if search.stages else "trials"
        enough = sum(total <= limit for total in accumulate(costs)) if search.stages else limit
        equal = ", which have the same values for all tasks" if later < whole else ""
        yield (
            f"search.{name} = {limit} is enough for about {enough} of the {len(costs)} settings that "
            f"`stage_model` begins with{equal}, and it will choose among these; it goes on to settings that "
            f"it predicts with more than about {least:.0f}"
        )


def line_length(parameter: SearchParameter) -> int:
    """Number of values with which `stage_model` begins."""
    if parameter.values is not None:
        return len(set(parameter.values))
    assert parameter.low is not None
    assert parameter.high is not None
    whole = isinstance(parameter.low, int) and isinstance(parameter.high, int)
    return min(LINE, int(parameter.high - parameter.low) + 1) if whole else LINE


def effects(strategy: Strategy, study: Study) -> list[dict[str, Any]]:
    """The strategy's part of each stage key of a run in the file's order."""
    tasks = study.task_names
    return [effect_of(strategy, task, tasks[:i], "own") for i, task in enumerate(tasks)]


def near_values(value: Any) -> list[Any]:
    """Some other values of a setting; not all need be legal.

    >>> near_values(True), near_values(4), near_values("sum")
    ([False], [5, 8, 2.0, 0, 0.5], [])
    """
    if isinstance(value, bool):
        return [not value]
    return [value + 1, 2 * value, value / 2, 0, 0.5] if isinstance(value, int | float) else []


def buffer_warnings(study: Study, tasks: Mapping[str, TaskData]) -> Iterator[str]:
    """Warn of buffers that hold all of a task: their size makes no difference."""
    if not isinstance(study.strategy, ReplayStrategy):
        return
    sizes = {int(size) for size in tried_values(study, "strategy.buffer") if isinstance(size, int)}
    larger: dict[str, list[int]] = {}
    for name, data in tasks.items():
        if above := sorted(size for size in sizes if size > data.sizes["train"]):
            larger[name] = above
    for above in sorted({tuple(some) for some in larger.values()}):
        said = [f"`{n}` ({tasks[n].sizes['train']})" for n, some in larger.items() if tuple(some) == above]
        which = f"strategy.buffer {join_names([str(size) for size in above], LISTED)}"
        same = ", so that these values do the same" if len(above) > 1 else ""
        yield f"{which}: more than the training examples of {join_names(said, LISTED)}; all are kept{same}"


def batch_warnings(study: Study, tasks: Mapping[str, TaskData]) -> Iterator[str]:
    batch, epochs = study.training.batch_size, study.training.epochs
    steps = {name: epochs * ceil(data.sizes["train"] / batch) for name, data in tasks.items()}
    few = [f"`{name}` ({count})" for name, count in steps.items() if count < FEW_STEPS]
    if few:
        said = f"{join_names(few, LISTED)}, with training.batch_size {batch} and {plural(epochs, 'epoch')}"
        yield f"so few optimizer steps hardly train a task: {said}"


def tried_values(study: Study, path: str) -> Sequence[Any]:
    """Every value that a setting may take: the searched ones, or its own."""
    parameter = study.search.space.get(path) if study.search else None
    if parameter is not None:
        return [value for value in (*(parameter.values or ()), parameter.high) if value is not None]
    section, _, name = path.partition(".")
    return [getattr(getattr(study, section), name, None)]
