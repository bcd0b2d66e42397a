"""Find plug-ins by name: in this package's folders, in installed packages, and by import path.

    find("strategies", "dgg")             the Strategy defined in dgg_ray/strategies/dgg.py
    find("strategies", "ewc")             the entry point `ewc` of an installed package
    find("strategies", "mine.ewc:EWC")    the class EWC of the module mine.ewc
    names("strategies")                   ("dgg", "finetune", …), read off this package's folder

There is no registry. A package offers plug-ins under the entry point groups `dgg_ray.strategies`,
`dgg_ray.readers`, `dgg_ray.scorers`, `dgg_ray.models` and `dgg_ray.metrics`; an entry point's name is the
plug-in's name. A name that two places offer is a fault. An import path is looked up in the folder of the
study file, in the working folder, and wherever Python looks.

Inside `installed_only` an import path is a fault: who may name a module may run it.

Every machine that trains imports the plug-ins itself. Modules in the study's folder travel with a submitted
study; an installed package must be installed on all machines.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from dgg_ray.core import error_records, interfaces, sources, strategy_checks
from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.core.strategy import Strategy

# kind → the base class that the plug-in subclasses, or the name of the function that its file defines;
# "" stands for a function that is named as the file.
KINDS: dict[str, type | str] = {
    "readers": interfaces.Reader,
    "models": interfaces.Model,
    "strategies": Strategy,
    "scorers": "score",
    "metrics": "",
    "figures": "draw",
}
ENTRY_POINT_KINDS = [kind for kind in KINDS if kind != "figures"]
SINGULAR = {
    "readers": "reader",
    "models": "model",
    "strategies": "strategy",
    "scorers": "scorer",
    "metrics": "metric",
    "figures": "figure",
}
OUTSIDE_NAMES: dict[str, list[str]] = {}  # kind → names of the plug-ins that were found outside this package
SEARCH_FOLDERS: list[str] = []  # folders that `add_search_folders` added to Python's path
OUTSIDE_FOLDERS: list[str] = []  # those of them that plug-ins were imported from; workers need them too

INSTALLED_ONLY: ContextVar[bool] = ContextVar("INSTALLED_ONLY", default=False)

DECORATE = "write `@dataclass(frozen=True)` above the class"


@dataclass(frozen=True)
class PluginLocation:
    """The place where a plug-in is defined.

    module: dotted name; attribute: class or function in it, empty for the one that its kind prescribes.
    provider: the place as messages name it; outside: whether it lies outside this package.
    """

    module: str
    attribute: str
    provider: str
    outside: bool = True


# -- names and places ------------------------------------------------------------------------------


def package_of(kind: str) -> str:
    """Return the package whose files are the plug-ins of a kind; files that begin with `_` are helpers."""
    return "dgg_ray.report.figures" if kind == "figures" else f"dgg_ray.{kind}"


@cache
def names(kind: str) -> tuple[str, ...]:
    """List this package's own plug-ins of a kind, in alphabetical order."""
    package = importlib.import_module(package_of(kind))
    files = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    return tuple(sorted(name for name in files if not name.startswith("_")))


def all_names(kind: str) -> tuple[str, ...]:
    """List the plug-ins of a kind in this package and in installed packages, in alphabetical order."""
    return tuple(sorted({*names(kind), *installed(kind)}))


def installed(kind: str) -> Mapping[str, tuple[PluginLocation, ...]]:
    """Return the plug-ins of a kind that installed packages offer, by name; nothing is imported."""
    by_name: dict[str, tuple[PluginLocation, ...]] = {}
    packages = set[str]()
    for folder in sys.path:
        for package, points in _entry_points(folder or ".", _modified_ns(folder or ".")).items():
            if package in packages:  # an earlier folder of the path hides it
                continue
            packages.add(package)
            for group, name, location in points:
                if group == f"dgg_ray.{kind}":
                    by_name[name] = (*by_name.get(name, ()), location)
    return by_name


def _modified_ns(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=256)
def _entry_points(folder: str, modified_ns: int) -> dict[str, list[tuple[str, str, PluginLocation]]]:
    """Read the entry points in one folder of Python's path: package → (group, name, location) of each.

    Reading all packages takes a tenth of a second, so a folder is read again only if it was modified.
    """
    groups = {f"dgg_ray.{kind}" for kind in ENTRY_POINT_KINDS}
    by_package: dict[str, list[tuple[str, str, PluginLocation]]] = {}
    for distribution in importlib.metadata.distributions(path=[folder]):
        points = [point for point in distribution.entry_points if point.group in groups]
        if not points:
            continue
        metadata = distribution.metadata
        name = metadata["Name"] or ""
        for point in points if name not in by_package else ():
            provider = f"installed package {name} {metadata['Version']} ({point.value})"
            location = PluginLocation(point.module, point.attr, provider)
            by_package.setdefault(name, []).append((point.group, point.name, location))
    return by_package


def is_import_path(name: str) -> bool:
    """Return whether a name is `package.module:Class`, `package.module:function` or `package.module`."""
    return isinstance(name, str) and (":" in name or "." in name)


def is_outside(kind: str, name: str) -> bool:
    """Return whether a name stands for a plug-in outside this package."""
    return is_import_path(name) or name in installed(kind)


@contextmanager
def installed_only() -> Iterator[None]:
    """In the block, take plug-ins of this package and of installed ones alone, and no folders to search."""
    token = INSTALLED_ONLY.set(True)
    try:
        yield
    finally:
        INSTALLED_ONLY.reset(token)


def locate(kind: str, name: str) -> PluginLocation:
    """Find the place of a plug-in; StudyError where none or several places offer the name."""
    if is_import_path(name):
        if INSTALLED_ONLY.get():
            raise name_error("must be the name of an installed plug-in: no import path is taken here", name)
        module, _, attribute = name.partition(":")
        return PluginLocation(module, attribute, name)
    locations = list(installed(kind).get(name, ()))
    if name in names(kind):
        package = package_of(kind)
        file = f"{package.replace('.', '/')}/{name}.py"
        locations.insert(0, PluginLocation(f"{package}.{name}", "", file, outside=False))
    if not locations:
        rule = f"must be one of {', '.join(all_names(kind))}, or of your own: package.module:Class"
        rule += " or the entry point of a package that is installed on this machine"
        raise name_error(rule, name, nearest_name(str(name), all_names(kind)))
    if len(locations) > 1:
        places = " and by ".join(location.provider for location in locations)
        rule = f"is offered by {places}; uninstall one of them, or write package.module:Class"
        raise name_error(rule, name)
    return locations[0]


def add_search_folders(*folders: str | Path) -> None:
    """Look for plug-ins in these folders too, after all places where Python looks."""
    for folder in map(str, folders if not INSTALLED_ONLY.get() else ()):
        if folder and folder not in sys.path:
            sys.path.append(folder)
            SEARCH_FOLDERS.append(folder)


# -- loading ---------------------------------------------------------------------------------------


def lookup_faults(kind: str, name: str) -> Sequence[Fault]:
    """List why a plug-in cannot be used; empty where it can."""
    try:
        find(kind, name)
    except StudyError as error:
        return error.faults
    return ()


def find(kind: str, name: str) -> Any:
    """Return a plug-in by name; StudyError, with the nearest name, where there is none or it is broken."""
    return _find(kind, name, INSTALLED_ONLY.get())


@cache
def _find(kind: str, name: str, installed_only: bool) -> Any:
    """Return the plug-in. installed_only: what was found outside such a block does not count inside it."""
    location = locate(kind, name)
    module = import_plugin_module(location, name)
    wanted = KINDS[kind]
    if location.attribute and not hasattr(module, location.attribute):
        public = [word for word in vars(module) if not word.startswith("_")]
        near = nearest_name(location.attribute, public)
        raise name_error(f"{module.__name__} has no {location.attribute}", name, near)
    if isinstance(wanted, str):
        plugin = load_function(
            module, location.attribute or wanted or location.module.rpartition(".")[2], name
        )
    else:
        plugin = load_class(module, location.attribute, wanted, name)
    if location.outside:
        OUTSIDE_NAMES.setdefault(kind, []).append(name)
    return plugin


def plugin_module(kind: str, name: str) -> ModuleType:
    """Return the module of a plug-in."""
    return import_plugin_module(locate(kind, name), name)


def import_plugin_module(location: PluginLocation, name: str) -> ModuleType:
    """Import the module of a plug-in; StudyError with the reason where that fails."""
    if location.outside:
        add_search_folders(os.getcwd())
    try:
        module = importlib.import_module(location.module)
    except Exception as problem:  # code of the user's own may raise anything
        raise name_error(import_rule(location, name, problem), name, nearest_module(problem)) from problem
    if location.outside and (file := getattr(module, "__file__", None)):
        register_outside_module(location.module, Path(file).absolute())
    return module


def import_rule(location: PluginLocation, name: str, problem: Exception) -> str:
    """Say that a module must be importable, and why it is not."""
    rule = f"{location.module} must be importable: {type(problem).__name__}: {problem}"
    if location.provider != name and location.outside:
        rule = f"of the {location.provider}: {rule}"
    line = error_records.plugin_location(problem)
    if isinstance(problem, SyntaxError):
        line = f"{problem.filename}, line {problem.lineno}"
    if line:
        rule += f" ({line})"
    if isinstance(problem, ModuleNotFoundError):
        rule += "; its package must be installed on this machine, or its file lie beside the study file"
    if isinstance(problem, TypeError) and "non-frozen dataclass" in str(problem):
        rule += f"; {DECORATE}"
    return rule


def nearest_module(problem: Exception) -> str:
    """Return the file beside the study, without .py, that a name probably means which Python did not find."""
    if not isinstance(problem, ModuleNotFoundError):
        return ""
    files = [file.stem for folder in SEARCH_FOLDERS for file in Path(folder).glob("*.py")]
    return nearest_name(str(problem.name), files)


def register_outside_module(dotted: str, file: Path) -> None:
    """Note where a module outside this package was imported from, for workers and for error messages."""
    root = file.parents[dotted.count(".") + (file.name == "__init__.py")]
    top = root / dotted.partition(".")[0]
    sources.OUTSIDE_PLACES.add((top if top.is_dir() else file).resolve())
    if str(root) in SEARCH_FOLDERS and str(root) not in OUTSIDE_FOLDERS:
        OUTSIDE_FOLDERS.append(str(root))


def load_function(module: ModuleType, function: str, name: str) -> Any:
    """Return a module's function; StudyError where there is none."""
    plugin = getattr(module, function, None)
    if not callable(plugin):
        raise name_error(f"{file_name(module)} must define the function {function}", name)
    return plugin


def load_class(module: ModuleType, attribute: str, base: type, name: str) -> type:
    """Return a module's class, the one of that name or the only one; StudyError where it cannot be used."""
    cls = getattr(module, attribute) if attribute else only_class(module, base)
    if fault := next(class_faults(cls, base, module, name), None):
        raise StudyError([fault])
    if issubclass(cls, Strategy) and (faults := list(strategy_checks.hook_faults(cls))):
        raise StudyError([Fault("name", *fault) for fault in faults], "strategies")
    return cls


def class_faults(cls: Any, base: type, module: ModuleType, name: str) -> Iterator[Fault]:
    """Yield why a class cannot be a plug-in, the most basic reason first."""
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        yield Fault("name", f"must name a subclass of {base.__name__}", repr(name))
        return
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        yield Fault("name", f"{file_name(module)} must define {missing}", repr(cls.__name__))
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        rule = "must stand at the top of its module under its own name, where every worker finds it"
        yield Fault("name", rule, repr(f"{cls.__module__}:{cls.__qualname__}"))
    if bare := sorted(undeclared_settings(cls)):
        yield Fault("name", f"{' and '.join(bare)} must be settings: {DECORATE}", repr(cls.__name__))
    parameters = inspect.signature(cls).parameters.keys()
    if others := parameters - {f.name for f in fields(cls)}:  # type: ignore[arg-type]
        rule = f"{' and '.join(sorted(others))} must be a field: no other setting is part of a stage key"
        yield Fault("name", rule, repr(cls.__name__))


def undeclared_settings(cls: type) -> set[str]:
    """Return the names that a class annotates as settings and that are none, as it is no dataclass itself."""
    annotated = {name for name, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)}
    return set() if "__dataclass_fields__" in vars(cls) else annotated


def only_class(module: ModuleType, base: type) -> type:
    """Return the one plug-in class of a module: the most derived class, or the only public one."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    classes = [c for c in classes if issubclass(c, base)]
    derived = [c for c in classes if not any(c in other.__mro__[1:] for other in classes)]
    candidates = [c for c in derived if not c.__name__.startswith("_")] or derived
    if len(candidates) != 1:
        rule = f"must define one {base.__name__}; `package.module:Class` names one of several"
        found = ", ".join(c.__name__ for c in candidates) or "none"
        raise name_error(f"{file_name(module)} {rule}", found)
    return candidates[0]


def name_error(rule: str, found: str, near: str = "") -> StudyError:
    return StudyError([Fault("name", rule, repr(found), near)])


def file_name(module: ModuleType) -> str:
    return str(getattr(module, "__file__", module.__name__))


# -- names and hashes of loaded plug-ins -----------------------------------------------------------


def plugin_name(plugin: object) -> str:
    """Return the name by which a study asks for a plug-in: file name, entry point or import path."""
    cls = type(plugin)
    package, _, name = cls.__module__.rpartition(".")
    for kind, base in KINDS.items():
        if package == package_of(kind) and name in names(kind):
            return name
        if isinstance(base, type) and issubclass(cls, base):
            for entry_point, locations in installed(kind).items():
                if len(locations) == 1 and is_at(cls, locations[0]) and entry_point not in names(kind):
                    return entry_point
    return f"{cls.__module__}:{cls.__qualname__}"


def is_at(cls: type, location: PluginLocation) -> bool:
    """Return whether a location that was imported holds this class."""
    if not location.attribute:
        return cls.__module__ == location.module
    return getattr(sys.modules.get(location.module), location.attribute, None) is cls


def plugin_hash(kind: str, name: str) -> str:
    """Hash a plug-in's source for keys; "" for one as shipped.

    A shipped scorer with VERSION 2 or more has "version N" instead, so that older scores are not reused.
    """
    plugin = find(kind, name)
    version = getattr(sys.modules.get(plugin.__module__), "VERSION", 1) if kind == "scorers" else 1
    digest = sources.source_digest(plugin, named_module(kind, name, plugin))
    return digest or ("" if version == 1 else f"version {version}")


def plugin_hashes(plugins: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the hashes of (kind, name) pairs by `kind/name`."""
    return {f"{kind}/{name}": plugin_hash(kind, name) for kind, name in plugins}


def named_module(kind: str, name: str, plugin: Any) -> str:
    """Return the module that a name points to, for a function outside this package; else "".

    A function may have been defined elsewhere and imported there. A class is identified by its own module.
    """
    location = locate(kind, name)
    return location.module if location.outside and not inspect.isclass(plugin) else ""


def edited_file_faults(plugins: Iterable[tuple[str, str]]) -> list[Fault]:
    """List a fault for each file that was edited after this process read it, of (kind, name) pairs."""
    files: set[Path] = set()
    for kind, name in plugins:
        plugin = find(kind, name)
        files.update(sources.edited_files(plugin, named_module(kind, name, plugin)))
    rule = "was edited after this process read it; start Python anew, so that what runs is what is written"
    return [Fault(str(file), rule) for file in sorted(files)]


def describe_plugin(plugin: str) -> str:
    """Format `kind/name` for people: strategy `dgg`."""
    kind, _, name = plugin.partition("/")
    return f"{SINGULAR[kind]} `{name}`"
