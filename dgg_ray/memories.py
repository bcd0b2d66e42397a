"""Checks that a strategy remembers in `memory` alone, which a snapshot keeps.

Else a stage that is stopped in its middle, or trained by another process, would end otherwise without a word.

    settings            stay what they are: they are in the stage's key
    memory              JSON values, tensors, lists of tensors
    other attributes    may be set before `begin_task`, which a stage that goes on does not call
"""

from __future__ import annotations

import json
from collections.abc import Set
from copy import deepcopy
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

from dgg_ray import snapshots
from dgg_ray.contracts import Strategy
from dgg_ray.digests import digest
from dgg_ray.errors import StageError

WHERE = "what is remembered within a stage goes into self.memory, what the next stage needs into state()"


def fresh(strategy: Strategy) -> Strategy:
    """An own instance, so that what it remembers ends with the stage; containers among its settings too."""
    return deepcopy(replace(strategy))


def attributes(strategy: Strategy) -> frozenset[str]:
    """Names of what it holds beside its memory, but for values that are computed where they are asked for."""
    computed = {name for name in vars(strategy) if is_computed(strategy, name)}
    return frozenset(vars(strategy)) - computed


def is_computed(strategy: Strategy, name: str) -> bool:
    return isinstance(getattr(type(strategy), name, None), cached_property)


def check(strategy: Strategy, asked: Strategy, before: Set[str] | None = None) -> None:
    """StageError where something was remembered elsewhere.

    asked: the strategy as it was asked for. before: its attributes before `begin_task`.
    """
    who = type(strategy).__name__
    if changed := [f.name for f in fields(strategy) if not same(strategy, asked, f.name)]:
        raise StageError(f"strategy {who} changed its settings ({', '.join(changed)}) as it learned; {WHERE}")
    if before is not None and (new := sorted(attributes(strategy) - before)):
        raise StageError(f"strategy {who} set {', '.join(new)} in begin_task; {WHERE}")
    for name, value in snapshots.plain(strategy.memory).items():
        if not survives(value):
            rule = "must be a JSON value, a tensor or a list of tensors, to be the same after a snapshot"
            raise StageError(f"strategy {who}: memory[{name!r}] {rule}; found {type(value).__name__}")


def same(strategy: Strategy, asked: Strategy, name: str) -> bool:
    """Whether a setting says what it said; by its content, as its class need not know what is equal."""
    now, then = getattr(strategy, name), getattr(asked, name)
    try:
        return digest(now) == digest(then)
    except (TypeError, ValueError):
        return repr(now) == repr(then)


def survives(value: Any) -> bool:
    try:
        again, meant = json.loads(json.dumps(value)), listed(value)
        return again == meant or repr(again) == repr(meant)  # NaN is not equal to itself
    except (TypeError, ValueError):
        return False


def listed(value: Any) -> Any:
    """With lists in place of tuples, which JSON does not know."""
    if isinstance(value, dict):
        return {key: listed(inner) for key, inner in value.items()}
    return [listed(inner) for inner in value] if isinstance(value, list | tuple) else value
