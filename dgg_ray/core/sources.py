"""A plug-in's source as a hash: edited, it is another plug-in.

    code_of(plugin)   "" where its file is as it was shipped; else 16 hex digits over its file and all that it
                      imports of the user's own: modules outside this package, the standard library and
                      what was installed (of its own top-level package those too); and over the plug-ins of
                      this package, and what judges for them, that it builds on

The source is taken without comments, layout and docstrings, so that none of these retrains anything. What is
shipped stands in `shipped.json`, which `python scripts/shipped.py` writes anew. Files that a plug-in opens,
and modules that it imports by a name computed at run time, are not seen.
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
PLUGGED = ("adapters", "metrics", "models", "readers", "scorers", "strategies")  # folders of plug-ins
JUDGES = (
    "core/texts.py",
    "scorers/_choices.py",
    "scorers/_captions.py",
)  # what scorers judge with, beside the folders of plug-ins
INSTALLED = ("site-packages", "dist-packages")
READ: dict[Path, str] = {}  # file → its digest when this process took the code of a plug-in from it
STANDARD = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]


@functools.cache
def code_of(plugin: Any, named: str = "") -> str:
    """See above; of a class, a function or a module. StudyError where there is no source to be read.

    named: the module in which a study looks for it; a function may have come there from another one.
    """
    files, base = modules_of(plugin, named)
    if not files:
        return ""
    digests = {name: digest_of(file) for name, file in sorted((files | base).items())}
    for name, file in files.items():
        READ.setdefault(file, digests[name])
    return digest(digests)[:16]


def edited(plugin: Any, named: str = "") -> list[Path]:
    """Files of the plug-in that are not what they were when this process imported them or took their code."""
    return [
        file
        for name, file in files_of(plugin, named).items()
        if READ.get(file, "") not in ("", digest_of(file)) or is_stale(name)
    ]


def files_of(plugin: Any, named: str = "") -> dict[str, Path]:
    """Dotted name → file of every module of the user's own that bears on what the plug-in does."""
    return modules_of(plugin, named)[0]


def modules_of(plugin: Any, named: str = "") -> tuple[dict[str, Path], dict[str, Path]]:
    """Dotted name → file of the user's own modules, as in `files_of`; and of what they build on in this
    package as it was shipped, which another release may ship otherwise."""
    left = [*homes(plugin), *([named] if named else [])]
    own = {name.partition(".")[0] for name in left} - {PACKAGE, *sys.stdlib_module_names}
    found, base = dict[str, Path](), dict[str, Path]()
    while left:
        name = left.pop()
        if name in found or (file := file_of(name)) is None:
            continue
        if not is_own(name, file, own):
            if file.is_relative_to(ROOT) and is_base(file.relative_to(ROOT)):
                base[name] = file
            continue
        found[name] = file
        left += [".".join(name.split(".")[: i + 1]) for i in range(name.count("."))]  # packages around it run
        left += imports(file, name)
    return dict(sorted(found.items())), base


def is_base(file: Path) -> bool:
    """Whether a file, below this package, bears on what a plug-in does that builds on it."""
    return (is_plugin(file) and file.name != "__init__.py") or file.as_posix() in JUDGES


def homes(plugin: Any) -> list[str]:
    """Names of the modules that a module is, or that a function or a class with its ancestors stands in."""
    if isinstance(plugin, ModuleType):
        return [plugin.__name__]
    parts = inspect.getmro(plugin) if inspect.isclass(plugin) else (plugin,)
    # Ancestors that are plug-ins themselves; any other is found by what the file imports.
    parts = [p for p in parts if p is plugin or any(map(is_of_package, p.__mro__))]
    for part in parts:
        if getattr(sys.modules.get(part.__module__), "__file__", None) is None:
            rule = "must stand in a file, by which it is told from what it was before it was edited"
            raise StudyError(
                [Fault("name", rule, f"{part.__module__}:{getattr(part, '__qualname__', part)}")]
            )
    return [part.__module__ for part in parts]


def is_of_package(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == PACKAGE


def file_of(module: str) -> Path | None:
    """The module's file; None where it has none, or is not to be found. Nothing is imported."""
    if (loaded := sys.modules.get(module)) is not None:
        place = getattr(loaded, "__file__", None)
        return Path(place).resolve() if place else None
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


def is_own(module: str, file: Path, packages: Iterable[str]) -> bool:
    """Whether a module is the user's own. packages: top-level ones that are, wherever they are installed."""
    if file.is_relative_to(ROOT):
        return not as_shipped(file)
    if (top := module.partition(".")[0]) in packages:
        return True
    if top in sys.stdlib_module_names or set(INSTALLED) & set(file.parts):
        return False
    return not any(file.is_relative_to(place) for place in STANDARD)


def is_plugin(file: Path) -> bool:
    """Whether a file, below this package, is a plug-in or a package of them; `_names` are their helpers."""
    return file.parts[0] in PLUGGED and (file.name == "__init__.py" or not file.name.startswith("_"))


def is_plugged(file: str, own: bool = False) -> bool:
    """Whether a line of this file, as tracebacks name it, is a plug-in's; `own`: one that was not shipped."""
    path = Path(file)
    if not path.is_absolute() or not path.exists():
        return file.startswith("<ipython")
    path = path.resolve()
    if path.is_relative_to(ROOT):
        return is_plugin(path.relative_to(ROOT)) and not (own and as_shipped(path))
    return not set(INSTALLED) & set(path.parts) and not any(path.is_relative_to(at) for at in STANDARD)


# -- source ----------------------------------------------------------------------------------------


def digest_of(file: Path) -> str:
    """16 hex digits of what the file does; of one that is not Python, of its bytes."""
    content = file.read_bytes()
    if file.suffix == ".py":
        with contextlib.suppress(SyntaxError):  # what cannot be run is told where it is imported
            content = json.dumps(plain(ast.parse(content))).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def plain(node: Any) -> Any:
    """A syntax tree as JSON, without docstrings, places and fields that are empty.

    Not `ast.dump`, which writes the same tree differently from one version of Python to the next."""
    if isinstance(node, ast.AST):
        given = {name: getattr(node, name, None) for name in node._fields if name not in ("ctx", "kind")}
        return [type(node).__name__, {k: plain(v) for k, v in given.items() if v is not None and v != []}]
    if isinstance(node, list):
        return [plain(part) for part in node if not is_text(part)]
    return f"{type(node).__name__} {node!r}"


def is_text(node: Any) -> bool:
    """A statement that is a string and nothing else: a docstring."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


def imports(file: Path, module: str) -> Iterator[str]:
    """Dotted names that a file may import, inside functions too."""
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from by_name(node, package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            if name:
                yield name
                yield from (f"{name}.{alias.name}" for alias in node.names if alias.name != "*")


def by_name(call: ast.Call, package: str) -> Iterator[str]:
    """The module of `import_module("name")`, also of `(".name", __package__)`."""
    given = [*call.args, *(word.value for word in call.keywords if word.arg in ("name", "package"))]
    name, *rest = [arg.value if isinstance(arg, ast.Constant) else None for arg in given[:2]] or [None]
    if isinstance(name, str):
        with contextlib.suppress(ImportError):
            around = rest[0] if rest and isinstance(rest[0], str) else package
            yield importlib.util.resolve_name(name, around)


# -- what is shipped -------------------------------------------------------------------------------


@functools.cache
def shipped() -> dict[str, str]:
    """File, below this package → its digest; empty for one that is no plug-in."""
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


@functools.cache
def as_shipped(file: Path) -> bool:
    """Whether a file of this package is what it was when it was released."""
    wanted = shipped().get(file.relative_to(ROOT).as_posix())
    return wanted == "" or (wanted is not None and wanted == digest_of(file))


def present() -> dict[str, str]:
    """The content of shipped.json for the package as it is."""
    files = sorted(ROOT.rglob("*.py"), key=lambda file: file.as_posix())
    kept = {file.relative_to(ROOT).as_posix(): file for file in files}
    return {name: digest_of(file) if is_plugin(Path(name)) else "" for name, file in kept.items()}
