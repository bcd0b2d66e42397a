"""Hashes of plug-in sources: an edited plug-in is another plug-in.

    source_digest(plugin)   "" where the plug-in's file is as it was shipped; else 16 hex digits over

        its file, and all modules of the user's own that it imports, directly or not
        the shipped plug-ins and scoring helpers that these build on

A module is the user's own if it lies outside this package, the standard library and installed packages. A
plug-in from an installed package makes that package's modules count as well.

Comments, layout and docstrings are left out, so changing them retrains nothing. `shipped.json` declares what
is shipped; `python scripts/shipped.py` rewrites it. Files that a plug-in opens, and modules that it imports
by a name computed at run time, are not seen.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.hashing import digest
from dgg_ray.core.stale_code import is_stale

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT.name
SHIPPED = ROOT / "shipped.json"
PLUGIN_FOLDERS = ("adapters", "metrics", "models", "readers", "scorers", "strategies")
SCORING_HELPERS = ("core/text_normalization.py", "scorers/_choices.py", "scorers/_captions.py")
INSTALL_FOLDERS = ("site-packages", "dist-packages")
STANDARD_LIBRARY = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
OUTSIDE_PLACES: set[Path] = set()  # packages and files outside this package that plug-ins were found in
DIGEST_WHEN_READ: dict[Path, str] = {}  # file → its digest when this process first hashed a plug-in of it


# -- the modules behind a plug-in ------------------------------------------------------------------


@functools.cache
def source_digest(plugin: Any, named_module: str = "") -> str:
    """Hash the source of a class, function or module; StudyError where it stands in no file.

    named_module: the module under which a study asks for a function, which may be defined in another one.
    """
    own, shipped = source_files(plugin, named_module)
    if not own:
        return ""
    digests = {name: file_digest(file) for name, file in sorted((own | shipped).items())}
    for name, file in own.items():
        DIGEST_WHEN_READ.setdefault(file, digests[name])
    return digest(digests)[:16]


def edited_files(plugin: Any, named_module: str = "") -> list[Path]:
    """List the plug-in's files that changed since this process imported or first hashed them."""
    return [
        file
        for name, file in own_files(plugin, named_module).items()
        if DIGEST_WHEN_READ.get(file, "") not in ("", file_digest(file)) or is_stale(name)
    ]


def own_files(plugin: Any, named_module: str = "") -> dict[str, Path]:
    """Return dotted name → file of the user's own modules that bear on a plug-in."""
    return source_files(plugin, named_module)[0]


def source_files(plugin: Any, named_module: str = "") -> tuple[dict[str, Path], dict[str, Path]]:
    """Return dotted name → file of the user's own modules behind a plug-in, and of shipped ones.

    The shipped ones are those that the own modules build on: another release may ship them changed.
    """
    to_visit = defining_modules(plugin)
    if named_module:
        to_visit.append(named_module)
    own_packages = {name.partition(".")[0] for name in to_visit} - {PACKAGE, *sys.stdlib_module_names}
    own: dict[str, Path] = {}
    shipped: dict[str, Path] = {}
    while to_visit:
        name = behind_plugin_name(to_visit.pop())
        if name in own or (file := module_file(name)) is None:
            continue
        if not is_own(name, file, own_packages):
            if file.is_relative_to(ROOT) and is_hashed_when_shipped(file.relative_to(ROOT)):
                shipped[name] = file
            continue
        own[name] = file
        to_visit += parent_packages(name)  # Python runs them when it imports the module
        to_visit += imported_names(file, name)
    return dict(sorted(own.items())), shipped


def behind_plugin_name(name: str) -> str:
    """Return the module that defines what `dgg_ray.plugin` offers under a name; other names stay.

    Through that module, a plug-in builds on a shipped layout as if it had imported the layout's own module.
    """
    module, _, attribute = name.rpartition(".")
    offered = getattr(sys.modules.get(module), attribute, None) if module == f"{PACKAGE}.plugin" else None
    return name if offered is None else getattr(offered, "__module__", name)


def parent_packages(module: str) -> list[str]:
    """List the packages around a module, outermost first: a, a.b for a.b.c."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def defining_modules(plugin: Any) -> list[str]:
    """List the modules that define a function, or a class and its plug-in ancestors; a module is its own."""
    if isinstance(plugin, ModuleType):
        return [plugin.__name__]
    definitions: list[Any] = [plugin]
    if inspect.isclass(plugin):
        # Ancestors that are plug-ins themselves; other ancestors are found among the file's imports.
        definitions = [c for c in inspect.getmro(plugin) if c is plugin or any(map(is_of_package, c.__mro__))]
    for definition in definitions:
        if getattr(sys.modules.get(definition.__module__), "__file__", None) is None:
            rule = "must stand in a file: its source is part of the stage keys"
            found = f"{definition.__module__}:{getattr(definition, '__qualname__', definition)}"
            raise StudyError([Fault("name", rule, found)])
    return [definition.__module__ for definition in definitions]


def is_of_package(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == PACKAGE


def module_file(module: str) -> Path | None:
    """Return a module's file; None where it has none or is not found. Nothing is imported."""
    if (loaded := sys.modules.get(module)) is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file).resolve() if file else None
    top, *rest = module.split(".")
    try:
        spec, name = importlib.util.find_spec(top), top
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec and spec.has_location and spec.origin else None


def is_own(module: str, file: Path, own_packages: Iterable[str]) -> bool:
    """Return whether a module is the user's. own_packages: top-level packages that are, even if installed."""
    if file.is_relative_to(ROOT):
        return not is_as_shipped(file)
    if (top := module.partition(".")[0]) in own_packages:
        return True
    return top not in sys.stdlib_module_names and not is_installed(file) and not is_standard_library(file)


def is_installed(file: Path) -> bool:
    """Return whether a file lies in a folder of installed packages."""
    return not set(INSTALL_FOLDERS).isdisjoint(file.parts)


def is_standard_library(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in STANDARD_LIBRARY)


def is_plugin_file(file: Path) -> bool:
    """Return whether a file of this package is a plug-in or `__init__.py`; `_name.py` is a helper."""
    return file.parts[0] in PLUGIN_FOLDERS and (file.name == "__init__.py" or not file.name.startswith("_"))


def is_hashed_when_shipped(file: Path) -> bool:
    """Return whether a file of this package affects what a plug-in that imports it does."""
    return (is_plugin_file(file) and file.name != "__init__.py") or file.as_posix() in SCORING_HELPERS


def is_plugin_line(file: str, own: bool = False) -> bool:
    """Return whether a traceback's file holds plug-in code. own: count only code that was not shipped."""
    path = Path(file)
    if not path.is_absolute() or not path.exists():
        return file.startswith("<ipython")
    path = path.resolve()
    if path.is_relative_to(ROOT):
        return is_plugin_file(path.relative_to(ROOT)) and not (own and is_as_shipped(path))
    if any(path.is_relative_to(place) for place in OUTSIDE_PLACES):
        return True
    return not is_installed(path) and not is_standard_library(path)


# -- what a file does ------------------------------------------------------------------------------


def file_digest(file: Path) -> str:
    """Return 16 hex digits of a Python file's syntax tree, or of another file's bytes."""
    return content_digest(file.read_bytes(), file.suffix == ".py")


@functools.lru_cache(maxsize=64)
def content_digest(content: bytes, is_python: bool) -> str:
    if is_python:
        with contextlib.suppress(SyntaxError):  # the import reports a file that cannot be parsed
            content = json.dumps(syntax_as_json(ast.parse(content))).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def syntax_as_json(node: Any) -> Any:
    """Convert a syntax tree to JSON without docstrings, line numbers and empty fields.

    `ast.dump` is not used: it writes the same tree differently from one version of Python to the next.
    """
    if isinstance(node, ast.AST):
        values = {name: getattr(node, name, None) for name in node._fields if name not in ("ctx", "kind")}
        content = {k: syntax_as_json(v) for k, v in values.items() if v is not None and v != []}
        return [type(node).__name__, content]
    if isinstance(node, list):
        return [syntax_as_json(part) for part in node if not is_docstring(part)]
    return f"{type(node).__name__} {node!r}"


def is_docstring(node: Any) -> bool:
    """Return whether a statement is a string and nothing else."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


def imported_names(file: Path, module: str) -> Iterator[str]:
    """Yield the dotted names that a file may import, inside functions too."""
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from dynamic_import(node, package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from names_of_import_from(node, package)


def names_of_import_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    """Yield the module of `from module import a, b`, and module.a, module.b: each may be a module."""
    parts: list[str] = []
    if node.level:
        above = package.split(".")
        parts += above[: len(above) - node.level + 1]
    if node.module:
        parts.append(node.module)
    if module := ".".join(parts):
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names if alias.name != "*")


def dynamic_import(call: ast.Call, package: str) -> Iterator[str]:
    """Yield the module of `import_module("name")`, also of `(".name", __package__)`; else nothing."""
    if not ast.unparse(call.func).endswith(("import_module", "__import__")):
        return
    arguments = [*call.args, *(word.value for word in call.keywords if word.arg in ("name", "package"))]
    constants = [a.value if isinstance(a, ast.Constant) else None for a in arguments[:2]]
    if not constants or not isinstance(name := constants[0], str):
        return
    around = constants[1] if len(constants) > 1 and isinstance(constants[1], str) else package
    with contextlib.suppress(ImportError):
        yield importlib.util.resolve_name(name, around)


# -- what is shipped -------------------------------------------------------------------------------


@functools.cache
def shipped_digests() -> dict[str, str]:
    """Return the shipped files, relative to this package, by digest; "" for a file that is no plug-in."""
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


@functools.cache
def is_as_shipped(file: Path) -> bool:
    """Return whether a file of this package is what it was when it was shipped."""
    wanted = shipped_digests().get(file.relative_to(ROOT).as_posix())
    return wanted == "" or (wanted is not None and wanted == file_digest(file))


def current_digests() -> dict[str, str]:
    """Return the content of shipped.json for the package as it is now."""
    files = sorted(ROOT.rglob("*.py"), key=lambda file: file.as_posix())
    relative = {file.relative_to(ROOT): file for file in files}
    return {
        name.as_posix(): file_digest(file) if is_plugin_file(name) else "" for name, file in relative.items()
    }
