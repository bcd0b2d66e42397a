"""The documents agree with the code."""

import importlib
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import typer

import dgg_ray
from dgg_ray import api, cli, plugin, strategies
from dgg_ray.core import plugins
from dgg_ray.core.strategy_checks import HOOKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_broken(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_documents_name_exactly_the_existing_commands():
    documented = {name for page in PAGES for name in re.findall(r"dgg-ray ([a-z]+)\b", page.read_text())}
    assert documented == set(typer.main.get_command(cli.app).commands)


def test_the_readmes_make_targets_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([\w-]+)", README)) - {"and"} <= targets


def test_the_documented_strategy_works_as_one_file(monkeypatch, tmp_path):
    (tmp_path / "shrink.py").write_text(snippet(ROOT / "docs" / "extending.md", '"""Shrink'))
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    plugins.names.cache_clear()
    try:
        shrink = plugins.find("strategies", "shrink")(factor=0.25)
    finally:
        plugins.names.cache_clear()
    shrink.begin_task([], "words", ("digits",), 0)
    gradients = [torch.tensor([2.0])]
    shrink.edit_gradient([], gradients, 0)
    assert gradients[0].item() == 0.5
    assert shrink.effect("words", ("digits",)) == {"factor": 0.25}


def test_the_documented_study_of_a_strategy_can_be_run(tmp_path, load):
    page = ROOT / "docs" / "extending.md"
    (tmp_path / "shrink.py").write_text(snippet(page, '"""Shrink'))
    (text,) = re.findall(r"```yaml\n(name: .*?)```", page.read_text(), re.DOTALL)
    study = load(text)
    assert (type(study.strategy).__name__, study.strategy.factor) == ("Shrink", 0.25)
    assert study.protocol.baselines == ("finetune", "replay")


def members_in_the_reference() -> dict[str, list[str]]:
    """Module → the names that the page of the Python reference asks it for."""
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(
        r"^::: (\S+)\n    options:\n      members: \[(.*?)\]$", page, re.MULTILINE | re.DOTALL
    )
    single = re.findall(r"^::: (\S+)\.(\w+)\n(?! )", page + "\n", re.MULTILINE)
    members = {module: re.split(r",\s*", names) for module, names in listed}
    for module, name in single:
        members.setdefault(module, []).append(name)
    return members


def test_the_reference_asks_each_module_for_what_it_defines():
    # mkdocstrings leaves out, without a word, what a module only imports.
    for module, names in members_in_the_reference().items():
        for name in names:
            assert getattr(importlib.import_module(module), name).__module__ == module, name


def test_everything_that_plugins_import_is_in_the_reference():
    listed = {name for names in members_in_the_reference().values() for name in names}
    documented = {name for name in plugin.__all__ if hasattr(getattr(plugin, name), "__module__")}
    assert documented - {"MetricValue"} <= listed  # an alias, which signatures show


def test_the_page_on_plugins_names_every_hook_with_its_arguments():
    page = (ROOT / "docs" / "extending.md").read_text()
    others = {
        "effect",
        "faults",
        "protection",
        "replayed_examples",
    }  # asked for plans and keys, not by a stage
    calls = {f"`{name}({', '.join(arguments)})`" for name, arguments in HOOKS.items() if name not in others}
    assert {call for call in calls if call not in page} == set()


def test_the_documented_scorers_exist():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
    assert set(rows) == {"exact_match", "contains_choice", "caption", "caption_light"}
    assert set(rows) <= set(plugins.names("scorers"))


def test_ci_runs_the_readmes_test_command():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def snippet(page: Path, start: str) -> str:
    """Return the page's Python code that starts so."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if block.startswith(start)]
    return code


@pytest.mark.whole
def test_the_readmes_python_runs(monkeypatch, tmp_path):
    size = {"train": 12, "validation": 10, "test": 10}
    study = dgg_ray.load_study(
        {
            "name": "quickstart",
            "model": "embedded",
            "tasks": [{"name": name, "reader": "embedded", **size} for name in ("words", "charts")],
            "strategy": "dgg",
            "training": {"batch_size": 8},
            "protocol": {"max_new_tokens": 2, "baselines": ["replay"]},
        }
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "quickstart.yaml").write_text(dgg_ray.study_to_yaml(study), encoding="utf-8")
    monkeypatch.setattr(api, "run_study", partial(api.run_study, local=True))
    names: dict = {}
    exec(snippet(ROOT / "README.md", "import dgg_ray"), names)
    assert (names["result"].adapter() / "adapter_config.json").is_file()
    assert (tmp_path / "out" / "quickstart" / "report.html").is_file()
