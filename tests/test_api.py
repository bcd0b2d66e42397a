"""The Python interface to results: tables, score matrices, predictions and adapters."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import dgg_ray
from dgg_ray import load_study, run_study
from dgg_ray.analysis.run_table import find_setting, settings_by_label
from dgg_ray.config import registry
from dgg_ray.core.errors import ResultsError
from dgg_ray.report import page

SIZE = {"train": 12, "validation": 10, "test": 10}
STUDY = {
    "name": "toy",
    "model": "embedded",
    "tasks": [{"name": name, "reader": "embedded", **SIZE} for name in ("words", "charts", "digits")],
    "strategy": {"name": "dgg", "alpha": 0.3, "buffer": 4},
    "training": {"batch_size": 8, "learning_rate": 5e-3},
    "orders": [["words", "charts", "digits"], ["digits", "charts", "words"]],
    "seeds": [0, 1],
    "protocol": {"max_new_tokens": 2, "baselines": ["replay", "joint"]},
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dgg_ray.Outcome:
    out = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", list)  # figures take seconds
        return run_study(load_study({**STUDY, "workers": {"engine": "simulated"}}), out, local=True)


def test_scores_are_the_score_matrix_of_a_run_with_task_names(simulated):
    R = simulated.scores(order=1, seed=1)
    assert list(R.index) == list(R.columns) == ["digits", "charts", "words"]
    assert np.isnan(R.loc["digits", "words"])
    table = simulated.table
    cell = table[
        (table["setting"] == R.attrs["setting"])
        & (table["order"] == "digits > charts > words")
        & (table["seed"] == 1)
        & (table["stage"] == 2)
        & (table["eval_task"] == "charts")
        & (table["split"] == "test")
    ]
    assert R.loc["words", "charts"] == cell["score"].item()


def test_an_order_is_selected_by_index_text_or_tasks(simulated):
    every_order = [1, -1, np.int64(1), "digits > charts > words", ["digits", "charts", "words"]]
    for order in every_order:
        assert simulated.scores(order).attrs["order"] == "digits > charts > words"
    assert simulated.scores().attrs == {
        "setting": simulated.results.recommended,
        "order": "words > charts > digits",
        "seed": 0,
        "split": "test",
    }


def test_a_setting_is_selected_by_label_or_id(simulated):
    labels = simulated.settings["labels"]
    assert sorted(labels) == ["chosen", "joint", "replay"]
    replay = labels[labels == "replay"].index[0]
    assert simulated.scores(setting="replay").equals(simulated.scores(setting=replay))
    assert simulated.scores(setting="joint").notna().sum().sum() == 3  # all tasks at once: the last row
    assert list(simulated.runs()["seed"]) == [0, 1, 0, 1]


def test_the_labels_of_the_table_select_settings_in_python_and_on_the_command_line(simulated):
    for label, setting in settings_by_label(simulated.results).items():
        assert f"{label} " in str(simulated)
        assert simulated.scores(setting=label).attrs["setting"] == setting
        assert (
            find_setting(simulated.results, label)
            == find_setting(simulated.results, setting)
            == (label, setting)
        )
    assert (
        find_setting(simulated.results, "chosen")
        == find_setting(simulated.results)
        == ("dgg", simulated.results.recommended)
    )


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.scores(setting="replai"), "no setting is called 'replai'.*Did you mean 'replay'"),
        (lambda r: r.scores(order=2), "there is no order 2; .* has 2, the first is 0"),
        (lambda r: r.scores(seed=7), "no run of seed 7; it has words > charts > digits with seed 0"),
        (lambda r: r.scores(["words", "digits", "charts"]), "no run of words > digits > charts"),
        (lambda r: r.scores(split="tests"), "no split is called 'tests'.*Did you mean 'test'"),
        (lambda r: r.predictions("chart"), "no task is called 'chart'.*Did you mean 'charts'"),
        (lambda r: r.adapter(), "has no adapter"),
    ],
)
def test_an_unknown_name_is_rejected_with_the_existing_ones(simulated, ask, message):
    with pytest.raises(ResultsError, match=message):
        ask(simulated)


def test_an_opened_folder_has_the_same_results(simulated):
    again = dgg_ray.open(str(simulated.out))
    assert again.table.equals(simulated.table)
    assert again.best == simulated.best
    assert again.study.data.tasks == simulated.study.data.tasks
    assert again.scores().equals(simulated.scores())
    assert "s;" not in str(again).splitlines()[-1]  # nothing was run, so no durations are printed


def test_the_store_keeps_the_best_setting_of_the_studys_own_search_whenever_it_was_found(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(page, "figure_names", list)
    baseline = {"name": "l2sp", "search": {"strategy.strength": [0.01, 0.1]}, "trials": 2}
    study = load_study(
        {
            **STUDY,
            "workers": {"engine": "simulated"},
            "search": {"space": {"strategy.alpha": [0.1, 0.5]}, "method": "grid"},
            "protocol": {"max_new_tokens": 2, "baselines": [baseline]},
        }
    )
    found = []
    for _ in range(2):  # the second run finds everything in the store
        run_study(study, tmp_path, local=True, quiet=True)
        live = study.store(tmp_path).get_document(registry.document_name("toy", registry.LIVE))
        found.append(live["content"]["best"])
    assert found[0] == found[1]
    assert "with strategy.alpha=" in found[0]


def test_scores_remain_available_without_the_store(simulated):
    without = replace(simulated, results=replace(simulated.results, archive=None))
    assert without.scores().equals(simulated.scores())
    for ask in (without.predictions, without.adapter):
        with pytest.raises(ResultsError, match="toy: the store cannot be read for more than scores"):
            ask()


def test_repr_is_one_line_and_html_in_a_notebook(simulated):
    assert repr(simulated) == (
        f"<results of 'toy' in {simulated.out}: 21 of 21 stages finished, chosen: dgg>".replace(
            "21 of 21",
            f"{simulated.results.facts['finished stages']} of {simulated.results.facts['distinct stages']}",
        )
    )
    page = simulated._repr_html_()
    assert page.startswith("<p><b>toy</b>")
    assert page.count("<li>") == page.count("</li>") > 0


def test_an_unfinished_study_can_be_opened(tmp_path):
    study = load_study(
        {**STUDY, "workers": {"engine": "simulated"}, "search": {"space": {"strategy.alpha": [0, 1]}}}
    )
    from dgg_ray.config import saved_study

    saved_study.save_study(study, tmp_path)
    found = dgg_ray.open(tmp_path)
    assert "no setting chosen yet" in repr(found)
    assert "Nothing is finished yet" in found._repr_html_()
    assert found.table.empty
    with pytest.raises(ResultsError, match="no setting has been evaluated completely yet"):
        found.scores()


def test_opening_a_folder_without_a_study_is_an_error(tmp_path):
    with pytest.raises(ResultsError, match="holds no study"):
        dgg_ray.open(tmp_path)


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, dgg_ray; print([m for m in ('numpy', 'pandas') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert {"Study", "open", "Outcome", "__version__"} <= set(dir(dgg_ray))
    with pytest.raises(AttributeError, match="no attribute 'opn'"):
        _ = dgg_ray.opn


def test_the_package_is_marked_as_typed():
    assert (Path(dgg_ray.__file__).parent / "py.typed").is_file()
    project = (Path(dgg_ray.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '"py.typed"' in project


@pytest.mark.whole
def test_predictions_and_adapters_of_a_run(tmp_path):
    result = run_study(load_study({**STUDY, "orders": {}, "seeds": [0]}), tmp_path, local=True)
    assert (result.adapter() / "adapter_config.json").is_file()
    with safe_open(result.adapter() / "adapter_model.safetensors", "np") as weights:
        assert list(weights.keys())
    assert result.adapter(setting="replay") != result.adapter()
    found = result.predictions("words", questions=True)
    assert list(found["stage"].unique()) == [0, 1, 2]
    assert len(found) == 30
    assert set(found["question"]) != {""}
    R = result.scores()
    assert found.groupby("trained_task", sort=False)["score"].mean().tolist() == pytest.approx(
        R["words"].tolist()
    )
