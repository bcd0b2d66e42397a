"""Checks that a strategy remembers in `memory` alone, which a snapshot keeps.

Else a stage that is stopped in its middle, or trained by another process, would end otherwise without a word.

    settings             stay what they are: they are in the stage's key
    memory               JSON values, tensors, lists of tensors
    cached properties    are what they would be if they were asked for anew
    other attributes     are set before `begin_task`, which a stage that goes on does not call, and stay so
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from functools import cached_property
from types import FunctionType
from typing import Any

import torch

from dgg_ray.core.errors import StageError
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import Strategy
from dgg_ray.training import checkpoints

WHERE = "what is remembered within a stage goes into self.memory, what the next stage needs into state()"


def fresh(strategy: Strategy) -> Strategy:
    """An own instance, so that what it remembers ends with the stage; containers among its settings too."""
    return deepcopy(replace(strategy))


def attributes(strategy: Strategy) -> dict[str, Any]:
    """What it holds beside its settings and its memory, by name."""
    apart = {"memory", *(f.name for f in fields(strategy))}
    return {name: value for name, value in vars(strategy).items() if name not in apart}


def copied(strategy: Strategy) -> dict[str, Any]:
    """Its attributes as they are now; what cannot be copied is the thing itself."""

    def copy(value: Any) -> Any:
        try:
            return deepcopy(value)
        except Exception:  # whatever a class says that is not made for it: a lock, a tensor on its graph
            return value

    return {name: copy(value) for name, value in attributes(strategy).items()}


def check_memory(strategy: Strategy, asked: Strategy, before: Mapping[str, Any], when: str) -> None:
    """StageError where something was remembered elsewhere.

    asked: the strategy as it was asked for. before: its attributes (`copied`) before `begin_task`.
    when: what it did since then, for the message.
    """
    who = type(strategy).__name__
    if changed := [f.name for f in fields(strategy) if not same(strategy, asked, f.name)]:
        raise StageError(f"strategy {who} changed its settings ({', '.join(changed)}) as it learned; {WHERE}")
    if found := sorted(elsewhere(strategy, asked, before)):
        raise StageError(f"strategy {who} set {', '.join(found)} {when}; {WHERE}")
    for name, value in checkpoints.plain(strategy.memory).items():
        if not survives(value):
            rule = "must be a JSON value, a tensor or a list of tensors, to be the same after a snapshot"
            raise StageError(f"strategy {who}: memory[{name!r}] {rule}; found {type(value).__name__}")


def elsewhere(strategy: Strategy, asked: Strategy, before: Mapping[str, Any]) -> Iterator[str]:
    """Names of attributes that a stage which goes on from a snapshot would not have, or have otherwise."""
    now = attributes(strategy)
    anew = fresh(asked)
    vars(anew).update({name: value for name, value in before.items() if not is_computed(strategy, name)})
    vars(anew)["memory"] = strategy.memory
    for name in before.keys() | now.keys():
        if name in before and name in now and alike(before[name], now[name]):
            continue
        if not is_computed(strategy, name):
            yield name
        elif name in now:
            try:
                asked_anew = getattr(anew, name)
            except Exception:  # whatever the property says
                yield name
            else:
                if not alike(asked_anew, now[name]):
                    yield name


def is_computed(strategy: Strategy, name: str) -> bool:
    return isinstance(getattr(type(strategy), name, None), cached_property)


def alike(one: Any, other: Any, met: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Whether two values hold the same: tensors on any device, containers, objects by what pickles them.

    met: pairs of which these are parts; a value may hold itself."""
    if one is other or (id(one), id(other)) in met:
        return True
    if type(one) is not type(other):
        return False
    met |= {(id(one), id(other))}
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and same_numbers(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key], met) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(*pair, met) for pair in zip(one, other, strict=True))
    if isinstance(one, str | bytes | int | float | complex | set | frozenset):
        return one == other or repr(one) == repr(other)  # NaN is not equal to itself
    if isinstance(one, FunctionType):
        return one.__code__ == other.__code__ and alike(enclosed(one), enclosed(other), met)
    try:
        return alike(list(one.__reduce_ex__(4)), list(other.__reduce_ex__(4)), met)
    except TypeError:  # it cannot be taken apart
        return bool(one == other)


def enclosed(function: FunctionType) -> list[Any]:
    """What a function brings along from where it was made."""
    return [function.__defaults__, *(cell.cell_contents for cell in function.__closure__ or ())]


def same_numbers(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of a kind hold the same numbers; NaN is NaN here."""
    one, other = one.detach().cpu(), other.detach().cpu()
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


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
