"""The documents say what is there."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import dgg_ray
from dgg_ray import api, cli, strategies
from dgg_ray.core import plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_broken(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_has_every_command_and_no_other():
    told = set(re.findall(r"^    dgg-ray (\w+)", README, re.MULTILINE))
    usage = cli.parser().format_help()
    assert told == set(re.findall(r"^    (\w+)(?: |$)", usage, re.MULTILINE))


def test_the_readmes_make_targets_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([\w-]+)", README)) - {"and"} <= targets


def test_the_readmes_strategy_is_one_file_that_works(monkeypatch, tmp_path):
    code = re.search(r'```python\n("""Shrink.*?)```', README, re.DOTALL)[1]
    (tmp_path / "shrink.py").write_text(code)
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


def test_scorers_that_the_readme_names_exist():
    assert {"exact_match", "contains_choice", "caption", "caption_light"} <= set(plugins.names("scorers"))


def test_ci_calls_the_readmes_test_command():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def snippet(first: str) -> str:
    """The README's Python code that begins with this line."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if c.startswith(first)]
    return code


def test_the_readmes_study_in_python_is_one():
    names: dict = {}
    exec(snippet("from dgg_ray import load_study, study_to_yaml"), names)
    assert names["study"].strategy.alpha == 0.3
    assert names["study"].names == ("digits", "words")


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
    exec(snippet("import dgg_ray"), names)
    assert (names["result"].adapter() / "adapter_config.json").is_file()
    assert (tmp_path / "out" / "quickstart" / "report.html").is_file()
