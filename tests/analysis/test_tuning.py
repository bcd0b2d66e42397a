"""The report of a study says how far each of its methods was tuned."""

import csv
from pathlib import Path

import pytest
from report_samples import small_study

from dgg_ray import load_study, run_study
from dgg_ray.analysis.load import load_results, recommendation
from dgg_ray.analysis.results import Tuning
from dgg_ray.analysis.run_table import searched_settings, settings_by_label
from dgg_ray.analysis.tuning import describe_tuning, settings_tried, tuned_values, tuning_sentences

pytestmark = pytest.mark.whole

STUDY = """\
name: tuned
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 5}
orders: {design: random, count: 2}
seeds: per_order
SEARCH
protocol:
  final_seeds: [0, 1]
  baselines:
    - finetune
    - replay
    - l2sp
    - name: l2sp
      label: tuned L2-SP
      search: {strategy.strength: {low: 0.01, high: 10.0, log: true}}
      trials: 3
simulation: {wait: 0.0}
workers: {engine: simulated}
"""
ALPHA = "search: {space: {strategy.alpha: [0, 0.1, 0.3, 0.5, 1]}, method: grid}"
NAMED = """search:
  space:
    strategy.name: [dgg, l2sp]
    strategy.alpha: [0.1, 1]
    strategy.l2sp.strength: [0.5, 5]
    strategy.buffer: [2, 9]
  method: grid"""


def finished(folder: Path, search: str, changes: tuple[str, str] = ("", "")):
    (folder / "study.yaml").write_text(STUDY.replace("SEARCH", search).replace(*changes))
    run_study(load_study(folder / "study.yaml"), folder / "out", local=True).report()
    return load_results(folder / "out")


def test_each_method_says_on_how_many_settings_it_was_tuned(tmp_path: Path):
    results = finished(tmp_path, ALPHA)
    assert list(settings_by_label(results)) == ["dgg", "finetune", "replay", "l2sp (untuned)", "tuned L2-SP"]
    with (tmp_path / "out" / "comparison.csv").open() as file:
        tuning = {row["label"]: row["tuning"] for row in csv.DictReader(file)}
    assert tuning == {
        "dgg": "tuned on 5 settings",
        "finetune": "",
        "replay": "",
        "l2sp (untuned)": "default setting",
        "tuned L2-SP": "tuned on 3 settings",
    }
    told = (
        "The methods were not tuned alike: dgg on 5 settings, l2sp not at all and tuned L2-SP on 3 settings."
    )
    assert recommendation(results)["tuning"] == [told]
    assert recommendation(results)["settings_tried"] == 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert told in page
    assert tuned_values(results, "tuned L2-SP") in page


def test_settings_that_only_a_baseline_tried_are_not_those_of_the_search(tmp_path: Path):
    results = finished(tmp_path, ALPHA)
    assert len(results.tuning.trials) == 3
    assert set(searched_settings(results)["strategy"]) == {"dgg"}
    with (tmp_path / "out" / "settings.csv").open() as file:
        rows = list(csv.DictReader(file))
    strengths = [row["strategy.strength"] for row in rows if row["strategy"] == "l2sp"]
    assert len(set(strengths)) == 3
    assert all(row["strategy.strength"] == "" for row in rows if row["strategy"] != "l2sp")


def test_a_study_without_a_search_says_that_its_own_setting_was_not_tuned(tmp_path: Path):
    results = finished(tmp_path, "")
    assert tuning_sentences(results) == [
        "The methods were not tuned alike: dgg not at all, tuned L2-SP on 3 settings."
    ]
    assert settings_tried(results, "dgg") == 0


def test_a_searched_strategy_leaves_blank_what_it_does_not_have(tmp_path: Path):
    results = finished(tmp_path, NAMED, ("    - l2sp\n", ""))
    assert results.tuning.chosen == 8
    for row in results.table.drop_duplicates("setting").to_dict("records"):
        own = {"dgg": "strategy.alpha", "l2sp": "strategy.strength"}.get(row["strategy.name"])
        for path in ("strategy.alpha", "strategy.strength"):
            assert (row[path] == row[path]) == (path == own)
    values = recommendation(results)["recommended"]
    assert len(values) == 3
    assert values["strategy.name"] in ("dgg", "l2sp")


def test_equal_budgets_need_no_sentence():
    tuned = Tuning(chosen=4, baselines={"finetune": 4})
    assert tuning_sentences(small_study(tuning=tuned)) == []
    assert tuning_sentences(small_study(tuning=Tuning(4, {"finetune": 1}))) == [
        "The methods were not tuned alike: dgg on 4 settings, finetune on 1 setting."
    ]
    assert [describe_tuning(n) for n in (None, 0, 1)] == ["", "default setting", "tuned on 1 setting"]
    assert describe_tuning(0, own=True) == "the study's own setting"
