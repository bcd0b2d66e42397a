"""Checks that a strategy remembers only in `memory`, which mid-stage checkpoints contain.

A strategy that remembers elsewhere would give another result, silently, whenever its stage is interrupted
and resumed. The rules:

    settings             never change: the stage key is computed from them
    memory               holds JSON values, tensors and lists of tensors
    cached properties    have the value that a new computation would give
    cache                holds what `load_state` and `prepare` load again after a resume; see hook_checks.py
    other attributes     are set before `begin_task`, which a resumed stage does not call, and never change
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, replace
from functools import cached_property
from types import FunctionType
from typing import Any

import torch

from dgg_ray.core.errors import StageError
from dgg_ray.core.hashing import digest
from dgg_ray.core.strategy import MEMORY_ADVICE, Strategy
from dgg_ray.training import checkpoints


class MemoryCheck:
    """Compares a strategy in use with its configuration and with its attributes before `begin_task`.

    strategy: the instance that trains the stage. configured: the strategy as the study configures it.
    """

    def __init__(self, strategy: Strategy, configured: Strategy) -> None:
        self.strategy, self.configured = strategy, configured
        self.name = type(strategy).__name__
        self.before = {name: copy_if_possible(value) for name, value in attributes(strategy).items()}

    def check(self, when: str) -> None:
        """Raise StageError if the strategy breaks a rule; `when` says for the message when it did."""
        if changed := self.changed_settings():
            raise StageError(
                f"strategy {self.name} changed its settings ({', '.join(changed)}) {when}; {MEMORY_ADVICE}"
            )
        if changed := sorted(self.changed_attributes()):
            raise StageError(f"strategy {self.name} set {', '.join(changed)} {when}; {MEMORY_ADVICE}")
        checkpoints.plain_values(self.strategy.memory)

    def changed_settings(self) -> list[str]:
        """Names of the settings whose content differs from the configured one."""
        return [
            setting.name
            for setting in fields(self.strategy)
            if not same_content(getattr(self.strategy, setting.name), getattr(self.configured, setting.name))
        ]

    def changed_attributes(self) -> Iterator[str]:
        """Names of the attributes that a resumed stage would lack or have with another value."""
        now = attributes(self.strategy)
        resumed = self.as_resumed()
        for name in self.before.keys() | now.keys():
            if name in self.before and name in now and equal(self.before[name], now[name]):
                continue
            if is_cached_property(self.strategy, name) and (
                name not in now or recomputes_to(resumed, name, now[name])
            ):
                continue
            yield name

    def as_resumed(self) -> Strategy:
        """The strategy as a resumed stage would have it: no cached values, the same memory."""
        resumed = fresh_copy(self.configured)
        for name, value in {**self.before, "memory": self.strategy.memory}.items():
            if name == "memory" or not is_cached_property(self.strategy, name):
                object.__setattr__(resumed, name, value)  # strategies are frozen dataclasses
        return resumed


def fresh_copy(strategy: Strategy) -> Strategy:
    """A new instance with the same settings and an empty memory; containers among the settings are copied."""
    return deepcopy(replace(strategy))


def attributes(strategy: Strategy) -> dict[str, Any]:
    """The instance's attributes by name, without settings, memory, cache and context."""
    other = {"memory", "cache", "context", *(setting.name for setting in fields(strategy))}
    return {name: value for name, value in vars(strategy).items() if name not in other}


def copy_if_possible(value: Any) -> Any:
    """A deep copy, or the value itself where it cannot be copied."""
    try:
        return deepcopy(value)
    except Exception:  # a lock or a tensor on its graph; a class may raise anything here
        return value


def is_cached_property(strategy: Strategy, name: str) -> bool:
    """Return whether the strategy's class computes this attribute on first use."""
    return isinstance(getattr(type(strategy), name, None), cached_property)


def recomputes_to(strategy: Strategy, name: str, value: Any) -> bool:
    """Return whether a new computation of the cached property gives this value."""
    try:
        return equal(getattr(strategy, name), value)
    except Exception:  # the property of a user's class may raise anything
        return False


def equal(a: Any, b: Any, parents: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Return whether two values have the same content: tensors on any device, containers, picklable objects.

    parents: the pairs that contain these two; a value may contain itself.
    """
    if a is b or (id(a), id(b)) in parents:
        return True
    if type(a) is not type(b):
        return False
    parents |= {(id(a), id(b))}
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and same_numbers(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(value, b[key], parents) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y, parents) for x, y in zip(a, b, strict=True))
    if isinstance(a, str | bytes | int | float | complex | set | frozenset):
        return a == b or repr(a) == repr(b)  # NaN does not equal itself
    if isinstance(a, FunctionType):
        return a.__code__ == b.__code__ and equal(enclosed_values(a), enclosed_values(b), parents)
    try:
        return equal(list(a.__reduce_ex__(4)), list(b.__reduce_ex__(4)), parents)
    except TypeError:  # not picklable
        return bool(a == b)


def enclosed_values(function: FunctionType) -> list[Any]:
    """A function's defaults and the values of its closure."""
    return [function.__defaults__, *(cell.cell_contents for cell in function.__closure__ or ())]


def same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of one type hold the same numbers; NaN equals NaN here."""
    a, b = a.detach().cpu(), b.detach().cpu()
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def same_content(a: Any, b: Any) -> bool:
    """Return whether two settings have the same content, even if their class defines no equality."""
    try:
        return digest(a) == digest(b)
    except (TypeError, ValueError):
        return repr(a) == repr(b)
