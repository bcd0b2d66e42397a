"""The rules of the house, each failing when it is broken."""

import ast
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from dgg_ray.core import plugins, sources
from dgg_ray.core.errors import StudyError

ROOT = Path(__file__).parent.parent / "dgg_ray"
FILES = sorted(ROOT.rglob("*.py"))
# File formats are not vendors: safetensors and Parquet are what a stage is made of.
CORE = {"torch", "numpy", "annotated_types", "safetensors", "pyarrow", "dgg_ray", *sys.stdlib_module_names}
CORE_FILES = ("loop", "interfaces", "draws", "stages", "orders", "errors")
CORE_FOLDERS = ("strategies", "metrics")


@cache
def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def nodes_of(file: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file."""
    return tuple(ast.walk(ast.parse(text_of(file))))


@cache
def imports(file: Path, late: bool = True) -> frozenset[str]:
    """Dotted names that a file imports; without `late`, only those at the top and outside TYPE_CHECKING."""
    module, *_ = nodes_of(file)
    assert isinstance(module, ast.Module)
    nodes = nodes_of(file) if late else module.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def roots(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)}


def own(file: Path) -> set[Path]:
    """Files of this package that a file imports at its top."""
    found = set()
    for name in imports(file, late=False):
        if name.startswith("dgg_ray."):
            place = ROOT.parent / Path(*name.split("."))
            found |= {p for p in (place.with_suffix(".py"),) if p.exists()}
    return found


def test_the_core_knows_no_vendor():
    core = [f for f in FILES if f.stem in CORE_FILES or f.parent.name in CORE_FOLDERS]
    assert len(core) > 15
    assert {f.stem: alien for f in core if (alien := roots(f) - CORE)} == {}


def test_plugins_import_no_other_plugin():
    folders = [ROOT.parent / Path(*plugins.package_of(kind).split(".")) for kind in plugins.KINDS]
    for file in FILES:
        if file.parent in folders:
            others = {f for f in own(file) if f.parent in folders and not f.stem.startswith("_")}
            assert others == set(), f"{file.stem} imports {others}"


def test_files_and_functions_stay_small():
    long_files = {f.stem: n for f in FILES if (n := len(text_of(f).splitlines())) > 500}
    assert long_files == {}
    for file in FILES:
        for node in nodes_of(file):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno <= 55, f"{file.stem}.{node.name}"


def test_every_plugin_is_found_by_its_file_name():
    for kind in plugins.KINDS:
        found = [plugins.find(kind, name) for name in plugins.names(kind)]
        assert found
        assert all(callable(plugin) for plugin in found)


def test_a_misspelt_plugin_names_the_nearest():
    with pytest.raises(StudyError, match="Did you mean 'dgg'"):
        plugins.find("strategies", "dggg")


def test_what_is_shipped_is_declared():
    """Else its stages are taken for a plug-in's of the user; see scripts/shipped.py before running it."""
    declared = {name: digest for name, digest in sources.shipped_digests().items() if digest}
    present = {name: digest for name, digest in sources.current_digests().items() if digest}
    assert declared == present, "run python scripts/shipped.py, after reading what it says"


def test_no_pickle_is_read():
    for file in FILES:
        text = text_of(file)
        assert "pickle.load" not in text, file
        assert "torch.load" not in text, file


@pytest.mark.whole
def test_who_only_waits_imports_nothing_heavy():
    # Drivers, brokers, controllers and trials are a dozen processes that start at the same moment.
    heavy = "torch transformers peft matplotlib scipy sklearn"
    code = f"import sys, dgg_ray.execution.driver; print([m for m in {heavy.split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "file", sorted((ROOT.parent / "benchmarks").glob("*.py")), ids=lambda file: file.stem
)
def test_what_a_benchmark_takes_from_the_package_is_there(file):
    """They are run by hand, and seldom."""
    for node in nodes_of(file):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dgg_ray"):
            module = importlib.import_module(node.module)
            missing = [a.name for a in node.names if not hasattr(module, a.name)]
            modules = [name for name in missing if importlib.util.find_spec(f"{node.module}.{name}")]
            assert missing == modules


def test_no_text_is_read_or_written_in_the_encoding_of_the_machine():
    for file in FILES:
        for node in nodes_of(file):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = {keyword.arg for keyword in node.keywords}
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            text_file = name == "open" and any(
                mode in ("r", "w", "a", "x", "rt", "wt", "at") for mode in modes
            )
            if name in ("read_text", "write_text") or text_file:
                assert "encoding" in given, f"{file.stem}:{node.lineno}"
