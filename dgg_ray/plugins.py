"""name → file → object. No registry: a file in the folder of its kind *is* the plug-in.

find("strategies", "dgg")     the Strategy defined in dgg_ray/strategies/dgg.py
names("strategies")           ("dgg", "finetune", …), read off the folder
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from dgg_ray import contracts
from dgg_ray.errors import Fault, StudyError, nearest

# kind → the base class that the file subclasses, or the name of the function that it defines
# ("" : the function is named as the file).
KINDS: dict[str, type | str] = {
    "tasks": contracts.Reader,
    "models": contracts.Model,
    "strategies": contracts.Strategy,
    "scorers": "score",
    "metrics": "",
    "plots": "draw",
}


@cache
def names(kind: str) -> tuple[str, ...]:
    """All plug-ins of a kind, in alphabetical order."""
    package = importlib.import_module(f"dgg_ray.{kind}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg))


@cache
def find(kind: str, name: str) -> Any:
    """The plug-in called `name`; StudyError with the nearest legal name when there is none."""
    file, wanted = module(kind, name), KINDS[kind]
    if isinstance(wanted, str):
        return getattr(file, wanted or name)
    own = [c for c in vars(file).values() if inspect.isclass(c) and c.__module__ == file.__name__]
    subclasses = [c for c in own if issubclass(c, wanted)]
    if len(subclasses) != 1:
        raise TypeError(f"{file.__name__} must define one {wanted.__name__}, defines {len(subclasses)}")
    return subclasses[0]


def module(kind: str, name: str) -> ModuleType:
    """The file of the plug-in."""
    if name not in names(kind):
        rule = f"must be one of {', '.join(names(kind))}"
        raise StudyError([Fault("name", rule, repr(name), nearest(str(name), names(kind)))], kind)
    return importlib.import_module(f"dgg_ray.{kind}.{name}")


def name_of(plugin: object) -> str:
    """The name by which a study asks for this plug-in: that of its file."""
    return type(plugin).__module__.rpartition(".")[2]
