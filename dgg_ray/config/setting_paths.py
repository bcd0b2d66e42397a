"""Values of a study's settings by their dotted paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from dgg_ray.config.sections import STRATEGY_NAME, Value
from dgg_ray.core import plugins


def with_value(thing: Any, steps: Sequence[str], value: Value, tasks: Sequence[str]) -> Any:
    """Copy a nest of dataclasses with one field changed; KeyError names a step that does not exist.

    A step that is a task's name turns one value for all tasks into a value for each.
    """
    head, *rest = steps
    if isinstance(thing, Mapping):
        if head not in tasks:
            raise KeyError(head)
        return {**thing, head: value}
    if not is_dataclass(thing) or head not in (f.name for f in fields(thing)):
        raise KeyError(head)
    now = getattr(thing, head)
    if rest and rest[0] in tasks and not isinstance(now, Mapping) and not is_dataclass(now):
        now = dict.fromkeys(tasks, now)
    return replace(thing, **{head: with_value(now, rest, value, tasks) if rest else value})  # type: ignore[type-var]


def value_at(study: Any, path: str) -> Any:
    """The value of a setting by its dotted path; None where the strategy has no such setting."""
    if path == STRATEGY_NAME:
        return plugins.plugin_name(study.strategy)
    thing: Any = study
    for step in path.split("."):
        if isinstance(thing, Mapping):
            thing = thing.get(step)
        elif not isinstance(thing, float | int | str):  # one value for all tasks stands for each
            thing = getattr(thing, step, None)
    return thing
