"""name → plug-in. No registry: a file in the folder of its kind *is* the plug-in, as is what a study names.

find("strategies", "dgg")             the Strategy defined in dgg_ray/strategies/dgg.py
find("strategies", "mine.ewc:EWC")    the one in a module of the user's own
names("strategies")                   ("dgg", "finetune", …), read off the folder
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from dgg_ray.core import blame, hooks, interfaces, sources
from dgg_ray.core.errors import Fault, StudyError, nearest

# kind → the base class that the file subclasses, or the name of the function that it defines
# ("" : the function is named as the file).
KINDS: dict[str, type | str] = {
    "readers": interfaces.Reader,
    "models": interfaces.Model,
    "strategies": interfaces.Strategy,
    "scorers": "score",
    "metrics": "",
    "figures": "draw",
}
WORDS = {"readers": "reader", "models": "model", "strategies": "strategy", "scorers": "scorer"}
WORDS |= {"metrics": "metric", "figures": "figure"}  # what one of them is called
OUTSIDE: dict[str, list[str]] = {}  # what was found that is no file of this package, by kind
LOOKED: list[str] = []  # folders that `reach` added
REACHED: list[str] = []  # folders that plug-ins of the user's own came from, where Python alone does not look


def package_of(kind: str) -> str:
    """The package whose files are the plug-ins of a kind; those that begin with `_` are their helpers."""
    return f"dgg_ray.{'report.' * (kind == 'figures')}{kind}"


@cache
def names(kind: str) -> tuple[str, ...]:
    """All plug-ins of a kind that this package has, in alphabetical order."""
    package = importlib.import_module(package_of(kind))
    found = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return tuple(sorted(name for name in found if not name.startswith("_")))


def absent(kind: str, name: str) -> Sequence[Fault]:
    """List why there is no plug-in of that name; nothing where there is one."""
    try:
        find(kind, name)
    except StudyError as error:
        return error.faults
    return ()


def is_outside(name: str) -> bool:
    """Whether it names something of the user's own, `package.module:Class` or `package.module`."""
    return isinstance(name, str) and (":" in name or "." in name)


@cache
def find(kind: str, name: str) -> Any:
    """The plug-in called `name`; StudyError, with the nearest name, where there is none or it is broken."""
    found = found_in(kind, name)
    if is_outside(name):
        OUTSIDE.setdefault(kind, []).append(name)
    return found


def found_in(kind: str, name: str) -> Any:
    file, wanted = module(kind, name), KINDS[kind]
    asked = name.partition(":")[2]
    if asked and not hasattr(file, asked):
        public = [word for word in vars(file) if not word.startswith("_")]
        raise fault(f"{file.__name__} has no {asked}", name, nearest(asked, public))
    if isinstance(wanted, str):
        found = getattr(file, asked or wanted or file.__name__.rpartition(".")[2], None)
        if not callable(found):
            what = asked or wanted or file.__name__.rpartition(".")[2]
            raise fault(f"{place(file)} must define the function {what}", name)
        return found
    cls = getattr(file, asked) if asked else the_class(file, wanted, name)
    if not (inspect.isclass(cls) and issubclass(cls, wanted)):
        raise fault(f"must name a subclass of {wanted.__name__}", name)
    if inspect.isabstract(cls):
        missing = ", ".join(
            sorted(n for n in dir(cls) if getattr(getattr(cls, n), "__isabstractmethod__", False))
        )
        raise fault(f"{place(file)} must define {missing}", cls.__name__)
    if not stands(cls):
        rule = "must stand at the top of its module under its own name, where every worker finds it"
        raise fault(rule, f"{cls.__module__}:{cls.__qualname__}")
    if apart := inspect.signature(cls).parameters.keys() - {f.name for f in fields(cls)}:  # type: ignore[arg-type]
        rule = "must be a field: a setting that is none would be in no stage's key"
        raise fault(f"{' and '.join(sorted(apart))} {rule}", cls.__name__)
    if issubclass(cls, interfaces.Strategy) and (faults := list(hooks.faults(cls))):
        raise StudyError([Fault("name", rule, found, near) for rule, found, near in faults], kind)
    return cls


def stands(cls: type) -> bool:
    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls


def the_class(file: ModuleType, wanted: type, name: str) -> type:
    """The one plug-in of a file; of several, one inherits from all others, or is the only public one."""
    own = [c for c in vars(file).values() if inspect.isclass(c) and c.__module__ == file.__name__]
    own = [c for c in own if issubclass(c, wanted)]
    last = [c for c in own if not any(c in other.__mro__[1:] for other in own)]
    last = [c for c in last if not c.__name__.startswith("_")] or last
    if len(last) != 1:
        found = ", ".join(c.__name__ for c in last) or "none"
        rule = f"{place(file)} must define one {wanted.__name__}; `package.module:Class` names one of several"
        raise fault(rule, found)
    return last[0]


def module(kind: str, name: str) -> ModuleType:
    """The file of the plug-in."""
    if is_outside(name):
        reach(os.getcwd())
        return imported(name.partition(":")[0], name)
    if name not in names(kind):
        rule = f"must be one of {', '.join(names(kind))}, or of your own: package.module:Class"
        raise fault(rule, name, nearest(str(name), names(kind)))
    return imported(f"{package_of(kind)}.{name}", name)


def imported(dotted: str, name: str) -> ModuleType:
    try:
        found = importlib.import_module(dotted)
    except Exception as problem:  # whatever a file of the user's says while it is read
        where = blame.place(problem)
        if isinstance(problem, SyntaxError):
            where = f"{problem.filename}, line {problem.lineno}"
        rule = f"{dotted} must be importable: {type(problem).__name__}: {problem}"
        raise fault(f"{rule} ({where})" if where else rule, name) from problem
    if is_outside(name) and (file := getattr(found, "__file__", None)):
        root = Path(file).absolute().parents[dotted.count(".") + (Path(file).name == "__init__.py")]
        if str(root) in LOOKED and str(root) not in REACHED:
            REACHED.append(str(root))
    return found


def fault(rule: str, found: str, near: str = "") -> StudyError:
    return StudyError([Fault("name", rule, repr(found), near)])


def place(file: ModuleType) -> str:
    return str(getattr(file, "__file__", file.__name__))


def name_of(plugin: object) -> str:
    """The name by which a study asks for this plug-in."""
    cls = type(plugin)
    inside, _, name = cls.__module__.rpartition(".")
    if inside in map(package_of, KINDS) and name in names(inside.rpartition(".")[2]):
        return name
    return f"{cls.__module__}:{cls.__qualname__}"


def reach(*folders: str | Path) -> None:
    """Look for plug-ins there too, after all places where Python looks."""
    for folder in map(str, folders):
        if folder and folder not in sys.path:
            sys.path.append(folder)
            LOOKED.append(folder)


def code(kind: str, name: str) -> str:
    """The key of the plug-in's source: "" as it was shipped, else a digest of its source.

    A shipped scorer has a VERSION from the second one on: what it made of answers before is not taken."""
    plugin = find(kind, name)
    version = getattr(sys.modules.get(plugin.__module__), "VERSION", 1) if kind == "scorers" else 1
    return sources.code_of(plugin, home(name, plugin)) or ("" if version == 1 else f"version {version}")


def home(name: str, plugin: Any) -> str:
    """The module that a study names for a function; a class is named by where it stands."""
    return name.partition(":")[0] if is_outside(name) and not inspect.isclass(plugin) else ""


def edited(named: Iterable[tuple[str, str]]) -> list[Fault]:
    """A fault for each file that was edited after this process read it."""
    found = [(kind, name, find(kind, name)) for kind, name in named]
    files = {file for _, name, plugin in found for file in sources.edited(plugin, home(name, plugin))}
    rule = "was edited after this process read it; start Python anew, so that what runs is what is written"
    return [Fault(str(file), rule) for file in sorted(files)]


def codes(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """`kind/name` → code."""
    return {f"{kind}/{name}": code(kind, name) for kind, name in named}


def named(plugin: str) -> str:
    """`kind/name`, for people."""
    kind, _, name = plugin.partition("/")
    return f"{WORDS[kind]} `{name}`"
