"""Plug-ins of installed packages: found by entry point, refused when ambiguous or broken, keyed by source.

The package under test is the example in the docstring of `dgg_ray.plugin`.
"""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import dgg_ray.plugin
from dgg_ray import load_study
from dgg_ray.core import plugins
from dgg_ray.core.errors import StudyError
from dgg_ray.remote import submission

ENTRY_POINTS = """
[dgg_ray.strategies]
pull = mine:Pull
[dgg_ray.readers]
sums = mine:Sums
[dgg_ray.scorers]
same_length = mine:same_length
[dgg_ray.metrics]
last_task = mine:last_task
"""
STUDY = """
name: outside
model: embedded
tasks:
  - {name: one, reader: sums, size: 12}
  - {name: two, reader: sums, size: 24}
strategy: {name: pull, strength: 0.5}
adapter: {rank: 2}
training: {batch_size: 12}
orders: [[one, two]]
search: {method: grid, space: {strategy.strength: [0.1, 0.5]}, objective: last_task}
protocol: {baselines: [finetune], max_new_tokens: 1}
workers: {engine: simulated}
"""
IMPORT_PATHS = {"pull": "mine:Pull", "sums": "mine:Sums", "last_task": "mine:last_task"}


def documented_package() -> str:
    """The code blocks of the documented example, as one module; the entry points are no Python."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", dgg_ray.plugin.__doc__, re.MULTILINE)
    code = [textwrap.dedent(block) for block in blocks if "project.entry-points" not in block]
    return "\n".join(code)


def install(folder: Path, name: str, entry_points: str, code: str = "", module: str = "") -> None:
    """Lay a package into a folder as an installer does: a module, and its metadata."""
    if code:
        (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


@pytest.fixture()
def site(tmp_path, monkeypatch):
    """A folder of installed packages that Python looks in."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for module in ("mine", "broken_plugin"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    plugins._find.cache_clear()
    monkeypatch.setattr(plugins, "OUTSIDE_NAMES", {})
    yield folder
    plugins._find.cache_clear()


def fault_of(kind: str, name: str) -> str:
    with pytest.raises(StudyError) as error:
        plugins.find(kind, name)
    return str(error.value)


def test_an_entry_point_is_found_by_its_name(site):
    install(site, "toolbox", ENTRY_POINTS, documented_package(), "mine")
    strategy = plugins.find("strategies", "pull")
    assert strategy is plugins.find("strategies", "mine:Pull")
    assert plugins.plugin_name(strategy()) == "pull"
    assert "pull" in plugins.all_names("strategies")
    assert "pull" not in plugins.names("strategies")
    assert plugins.plugin_hash("strategies", "pull") == plugins.plugin_hash("strategies", "mine:Pull") != ""
    assert plugins.plugin_hash("scorers", "same_length") == plugins.plugin_hash("scorers", "mine:same_length")
    assert plugins.plugin_module("metrics", "last_task").RANGE == (0.0, 1.0)


def test_a_name_that_two_packages_offer_is_a_fault_with_both(site):
    install(site, "toolbox", ENTRY_POINTS, documented_package(), "mine")
    install(site, "other", "[dgg_ray.strategies]\npull = elsewhere:Pull\n")
    fault = fault_of("strategies", "pull")
    assert "installed package toolbox 1.0 (mine:Pull)" in fault
    assert "installed package other 1.0 (elsewhere:Pull)" in fault
    assert "uninstall one of them, or write package.module:Class" in fault


def test_a_name_that_this_package_has_too_is_a_fault_with_both(site):
    install(site, "toolbox", "[dgg_ray.strategies]\ndgg = mine:Pull\n", documented_package(), "mine")
    fault = fault_of("strategies", "dgg")
    assert "is offered by dgg_ray/strategies/dgg.py and by installed package toolbox 1.0 (mine:Pull)" in fault


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "ModuleNotFoundError: No module named 'broken_plugin'; its package must be installed"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "broken_plugin.py, line 1"),
    ],
)
def test_an_entry_point_that_cannot_be_imported_is_a_fault_with_the_reason(site, code, reason):
    install(site, "toolbox", "[dgg_ray.strategies]\nbroken = broken_plugin:Pull\n", code, "broken_plugin")
    importlib.invalidate_caches()
    fault = fault_of("strategies", "broken")
    assert "name: of the installed package toolbox 1.0 (broken_plugin:Pull): broken_plugin must be" in fault
    assert reason in fault


def test_a_broken_entry_point_spoils_no_other_name(site):
    install(site, "toolbox", "[dgg_ray.strategies]\nbroken = broken_plugin:Pull\n")
    assert plugins.find("strategies", "dgg").__name__ == "DGG"


def test_an_unknown_name_is_compared_with_those_of_installed_packages(site):
    install(site, "toolbox", ENTRY_POINTS, documented_package(), "mine")
    assert "Did you mean 'same_length'?" in fault_of("scorers", "same_lenght")


def test_a_submission_carries_modules_beside_the_study_and_names_installed_packages(site, tmp_path):
    install(site, "toolbox", ENTRY_POINTS, documented_package(), "mine")
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    assert submission.plugin_files(study) == {}
    assert "strategy `pull`: its package must be installed on every machine of the cluster" in list(
        submission.plugin_notes(study)
    )


@pytest.mark.whole
def test_another_source_of_an_installed_package_gives_another_key(tmp_path):
    """As after an upgrade: in processes of their own."""
    code = "from dgg_ray.core import plugins; print(plugins.plugin_hash('strategies', 'pull'))"
    hashes = []
    for version, factor in enumerate(("self.strength", "2 * self.strength", "self.strength")):
        site = tmp_path / str(version) / "site-packages"
        site.mkdir(parents=True)
        install(site, "toolbox", ENTRY_POINTS, documented_package().replace("self.strength", factor), "mine")
        hashes.append(run([sys.executable, "-c", code], tmp_path, site))
    assert hashes[0] == hashes[2] != hashes[1]


def run(command: list[str], folder: Path, *python_path: Path) -> str:
    path = os.pathsep.join(map(str, (*python_path, Path(dgg_ray.plugin.__file__).parents[1])))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.whole
@pytest.mark.parametrize(("by", "engine"), [("entry point", "auto"), ("import path", "simulated")])
def test_a_whole_study_runs_with_the_plugins_of_an_outside_package(tmp_path, by, engine):
    study, code, outside = (
        STUDY.replace("simulated", engine),
        documented_package(),
        tmp_path / "site-packages",
    )
    outside.mkdir()
    if by == "entry point":
        install(outside, "toolbox", ENTRY_POINTS, code.replace('"mine:same_length"', '"same_length"'), "mine")
    else:
        (tmp_path / "mine.py").write_text(code)  # beside the study
        for name, import_path in IMPORT_PATHS.items():
            study = re.sub(rf"\b{name}\b", f'"{import_path}"', study)
    (tmp_path / "study.yaml").write_text(study)
    command = [sys.executable, "-m", "dgg_ray"]
    run([*command, "run", "study.yaml", "--local", "--out", "out"], tmp_path, outside)
    metric = "last_task" if by == "entry point" else "mine:last_task"
    strategy = "pull" if by == "entry point" else "mine:Pull"
    best = run([*command, "best", "out"], tmp_path, outside)
    assert strategy in best
    settings = (tmp_path / "out" / "settings.csv").read_text()
    assert metric in settings.splitlines()[0]
    assert settings.count(strategy) >= 2
