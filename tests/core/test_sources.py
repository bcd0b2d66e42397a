"""What a plug-in's source is told apart by, and what of it makes no difference."""

import importlib
import sys
import textwrap
from itertools import count
from pathlib import Path

import pytest

from dgg_ray.core import plugins, sources
from dgg_ray.core.errors import StudyError

EWC = '''
"""Elastic weight consolidation."""
from dataclasses import dataclass
from dgg_ray.core.strategy import Strategy
import json, numpy
from {helper} import pull


@dataclass(frozen=True)
class EWC(Strategy):
    """strength: of the pull."""

    strength: float = 1.0  # as published

    def edit_gradient(self, weights, gradients, step):
        """In place."""
        for g in gradients:
            g += pull(self.strength)
'''
HELPER = "from {deeper} import FACTOR\n\n\ndef pull(strength):\n    return FACTOR * strength\n"
NUMBER = count()


class Project:
    """A folder with a strategy `ewc`, a helper of it and a helper of that; imported anew each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {"ewc": EWC, "helper": HELPER, "deeper": "FACTOR = 2\n", "other": "FACTOR = 3\n"}

    def code(self, **changed: str) -> str:
        return sources.source_digest(self.loaded("ewc", **changed).EWC)

    def loaded(self, name: str, **changed: str):
        for module in self.files:
            sys.modules.pop(module, None)
        for file, text in (self.files | changed).items():
            (self.folder / f"{file}.py").write_text(text.format(helper="helper", deeper="deeper"))
        importlib.invalidate_caches()
        for cached in self.folder.rglob("*.pyc"):
            cached.unlink()
        return importlib.import_module(name)


@pytest.fixture()
def project(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    project = Project(tmp_path)
    yield project
    for module in project.files:
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # as published", ""),
        ('"""Elastic weight consolidation."""', ""),
        ('    """strength: of the pull."""\n', '    """strength: how hard."""\n'),
        ('        """In place."""\n', ""),
        ("g += pull(self.strength)", "g += pull(\n                self.strength\n            )"),
        ("\n\n@dataclass", "\n# a comment\n\n\n\n@dataclass"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(project, old, new):
    assert old in EWC
    assert project.code() == project.code(ewc=EWC.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("g += pull", "g -= pull"),
        ("strength: float = 1.0", "strength: float = 2.0"),
        ("strength: float = 1.0", "strength: int = 1.0"),
        ("strength: float = 1.0", "strength: float = 1"),
        ("for g in gradients", "for g in gradients[1:]"),
        ("class EWC(Strategy):", "class EWC(Strategy):\n    limit = 3\n"),
        ("class EWC(Strategy):", "class EWC(Strategy):\n    simultaneous = True\n"),
        ("@dataclass(frozen=True)\nclass", "class _Nested:\n    at = 1\n\n\n@dataclass(frozen=True)\nclass"),
    ],
)
def test_every_other_edit_makes_another_plugin(project, old, new):
    assert old in EWC
    assert project.code() != project.code(ewc=EWC.replace(old, new))


def test_imported_modules_count_at_any_distance(project):
    before = project.code()
    assert project.code(helper=HELPER.replace("FACTOR *", "FACTOR +")) != before
    assert project.code(deeper="FACTOR = 4\n") != before
    assert project.code(other="FACTOR = 5\n") == before  # nobody imports it


@pytest.mark.parametrize(
    "text",
    [
        "def late():\n    import other\n",
        "def late():\n    from other import FACTOR\n",
        "import importlib\n\nO = importlib.import_module('other')\n",
        "import importlib\n\nO = importlib.import_module(name='other')\n",
        "try:\n    import other as o\nexcept ImportError:\n    o = None\n",
    ],
)
def test_imports_inside_functions_count(project, text):
    project.files["helper"] = HELPER + "\n\n" + text
    assert project.code() != project.code(other="FACTOR = 6\n")


def test_modules_of_a_package_count_with_its_init_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"mine_{next(NUMBER)}"
    inner = tmp_path / name / "methods"
    inner.mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("A = 1\n")
    (inner / "__init__.py").write_text("")
    (inner / "parts.py").write_text("from .. import A\n")
    (inner / "late.py").write_text("B = 1\n")
    text = "from dgg_ray.strategies.replay import Replay\nfrom . import parts\n"
    text += "import importlib\n\nL = importlib.import_module('.late', __package__)\n"
    (inner / "ewc.py").write_text(f"{text}\n\nclass EWC(Replay):\n    pass\n")
    cls = plugins.find("strategies", f"{name}.methods.ewc:EWC")
    found = [f"{name}", f"{name}.methods", f"{name}.methods.ewc", f"{name}.methods.late"]
    found.append(f"{name}.methods.parts")
    assert list(sources.own_files(cls)) == found
    assert plugins.find("strategies", f"{name}.methods.ewc") is cls
    assert plugins.plugin_name(cls()) == f"{name}.methods.ewc:EWC"


def test_installed_and_shipped_modules_are_not_hashed(project):
    project.code()
    assert set(sources.own_files(sys.modules["ewc"].EWC)) == {"ewc", "helper", "deeper"}


@pytest.mark.parametrize(
    ("text", "name", "file"),
    [
        (
            "from dgg_ray.strategies.dgg import DGG\n\n\nclass Mine(DGG):\n    pass\n",
            "Mine",
            "strategies/dgg.py",
        ),
        (
            "from dgg_ray.plugin import LoraSlots, Strategy\n\n\nclass Mine(Strategy):\n"
            "    def layout(self):\n        return LoraSlots()\n",
            "Mine",
            "adapters/lora_slots.py",
        ),
        (
            "from dgg_ray.scorers import exact_match\n\nscore = exact_match.score\n\n\ndef mark(p, e):\n    "
            "return score(p, e)\n",
            "mark",
            "scorers/exact_match.py",
        ),
        (
            "from dgg_ray.core.text_normalization import normalize_text\n\n\n"
            "def mark(p, e):\n    return normalize_text(p)\n",
            "mark",
            "core/text_normalization.py",
        ),
    ],
    ids=["a strategy", "a layout", "a scorer", "what judges"],
)
def test_a_plugin_built_on_a_shipped_one_changes_when_that_is_shipped_changed(
    tmp_path, monkeypatch, text, name, file
):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"mine_{next(NUMBER)}"
    (tmp_path / f"{module}.py").write_text(text)
    plugin = getattr(importlib.import_module(module), name)
    source_digest, digest_of = sources.source_digest.__wrapped__, sources.file_digest
    before = source_digest(plugin)
    assert source_digest(plugin) == before
    assert list(sources.own_files(plugin)) == [module]
    other = lambda path: "0" * 16 if path == sources.ROOT / file else digest_of(path)  # noqa: E731
    monkeypatch.setattr(sources, "file_digest", other)
    assert source_digest(plugin) != before


def test_a_class_without_a_file_is_refused():
    space = {"__name__": "nowhere"}
    exec("from dgg_ray.core.strategy import Strategy\nclass Lost(Strategy): pass", space)
    with pytest.raises(StudyError, match="must stand in a file"):
        sources.source_digest(space["Lost"])


# -- files in this package's own folders -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in plugins.ENTRY_POINT_KINDS for n in plugins.names(k)]
)
def test_a_shipped_plugin_has_no_source_digest(kind, name):
    assert sources.source_digest(plugins.find(kind, name)) == ""


def copied(tmp_path, monkeypatch, name: str, text: str):
    """The package with one strategy's file written anew."""
    root = tmp_path / "dgg_ray"
    (root / "strategies").mkdir(parents=True)
    (root / "strategies" / f"{name}.py").write_text(text)
    monkeypatch.setattr(sources, "ROOT", root)
    return root / "strategies" / f"{name}.py"


def test_an_edited_built_in_strategy_is_another_one(tmp_path, monkeypatch):
    text = (sources.ROOT / "strategies" / "replay.py").read_text()
    wanted = sources.shipped_digests()["strategies/replay.py"]
    file = copied(tmp_path, monkeypatch, "replay", text + "\n# a note\n")
    assert sources.file_digest(file) == wanted
    assert sources.is_as_shipped(file)
    edited = copied(tmp_path / "b", monkeypatch, "replay", text.replace("= 100", "= 200"))
    assert not sources.is_as_shipped(edited)


def test_a_copy_of_a_built_in_strategy_under_another_name_is_the_users(tmp_path, monkeypatch):
    text = (sources.ROOT / "strategies" / "replay.py").read_text()
    assert not sources.is_as_shipped(copied(tmp_path, monkeypatch, "ewc", text))


def test_a_traceback_line_belongs_to_a_plugin_or_not(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("")
    dgg = str(sources.ROOT / "strategies" / "dgg.py")
    assert sources.is_plugin_line(str(mine))
    assert sources.is_plugin_line(str(mine), own=True)
    assert sources.is_plugin_line(dgg)
    assert not sources.is_plugin_line(dgg, own=True)
    for other in (sources.__file__, importlib.__file__, textwrap.__file__, pytest.__file__, "<string>"):
        assert not sources.is_plugin_line(other)
