"""The views of a finished study hold the numbers and sentences of its report."""

import html
import json

import numpy as np
import pandas as pd
import pytest
from service_samples import parsed, run, sample, seen

from dgg_ray.analysis import run_table
from dgg_ray.core.errors import ResultsError
from dgg_ray.report.figure_files import draw_figure
from dgg_ray.service import views
from dgg_ray.service.views.as_json import plain, to_bytes

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Three orders that begin with other tasks, so that there are intervals; two seeds; three baselines."""
    orders = [["words", "charts", "digits"], ["digits", "charts", "words"], ["charts", "words", "digits"]]
    protocol = {"max_new_tokens": 2, "baselines": ["replay", "finetune", "joint"]}
    return run(sample(orders=orders, protocol=protocol), tmp_path_factory.mktemp("toy"))


def of_csv(outcome, name: str) -> pd.DataFrame:
    return pd.read_csv(outcome.out / f"{name}.csv", keep_default_na=True)


def test_the_comparison_is_that_of_the_report(toy):
    found, table = seen(toy, "comparison"), of_csv(toy, "comparison")
    assert [row["label"] for row in found["rows"]] == list(dict.fromkeys(table["label"]))
    for row in found["rows"]:
        for metric, cell in row["metrics"].items():
            line = table[(table["label"] == row["label"]) & (table["metric"] == metric)].iloc[0]
            assert cell["score"] == (None if np.isnan(line["score"]) else pytest.approx(line["score"]))
            if row["chosen"]:
                assert cell["difference"] is None
                assert cell["difference_text"] == ""
            elif not np.isnan(line["difference"]):
                bounds = "simultaneous" if metric == "faa" else "difference"
                assert cell["difference"] == pytest.approx(line["difference"])
                assert cell["difference_low"] == pytest.approx(line[f"{bounds}_low"])
                assert cell["difference_high"] == pytest.approx(line[f"{bounds}_high"])
                assert cell["pairs"] == line["pairs"]
    single = table.set_index(["label", "metric"])["difference_low"]
    assert found["rows"][1]["metrics"]["faa"]["difference_low"] < single["replay", "faa"]  # for two at once
    assert [row["chosen"] for row in found["rows"]] == [True, False, False, False]
    dgg, replay, _, joint = found["rows"]
    assert (dgg["strategy"], replay["strategy"], joint["strategy"]) == ("dgg", "replay", "joint")
    assert dgg["tuned"] == "tuned on 3 settings"
    assert dgg["known_from"] == "published formula"


def test_what_a_method_needs_is_that_of_the_table_of_methods(toy):
    table = of_csv(toy, "methods").set_index("label")
    for row in seen(toy, "comparison")["rows"]:
        assert row["seconds"] == pytest.approx(table["train_seconds"][row["label"]])
        assert row["strategy"] == table["strategy"][row["label"]]
        assert row["trainable"] is None  # a simulated stage has no adapter
        assert row["known_from"] == table["known_from"].fillna("")[row["label"]]


def test_texts_of_the_comparison_are_those_of_the_page(toy):
    page = html.unescape((toy.out / "report.html").read_text(encoding="utf-8"))
    for row in seen(toy, "comparison")["rows"]:
        for cell in row["metrics"].values():
            assert cell["text"] in page
            assert cell["difference_text"] in page


def test_the_summary_has_the_sentences_of_the_page(toy):
    page = html.unescape((toy.out / "report.html").read_text(encoding="utf-8"))
    found = seen(toy, "summary")
    said = [*found["answer"], *found["notices"], *found["details"]]
    said += [step["text"] for step in found["next_steps"]]
    assert len(said) > 5
    assert [sentence for sentence in said if sentence not in page] == []
    assert found["status_label"] in page
    assert found["begun"] is True
    assert found["missing"] == []


def test_the_best_setting_has_the_score_of_the_chosen_one(toy):
    best = seen(toy, "summary")["best"]
    assert best["setting"] == toy.results.recommended
    finals = [toy.scores(order, seed).iloc[-1].mean() for order in (0, 1, 2) for seed in (0, 1)]
    assert best["score"] == pytest.approx(sum(finals) / 6)
    assert [value["value"] for value in best["values"]] == [toy.best["recommended"]["strategy.alpha"]]


def test_settings_are_those_of_the_report_in_its_order(toy):
    found, table = seen(toy, "settings"), of_csv(toy, "settings")
    assert [row["setting"] for row in found["rows"]] == list(table["setting"])
    assert [row["faa"] for row in found["rows"]] == pytest.approx(list(table["faa"]))
    keys = {column["key"] for column in found["columns"]}
    assert all(keys <= row.keys() for row in found["rows"])
    kinds = {column["key"]: column["kind"] for column in found["columns"]}
    assert (kinds["strategy"], kinds["strategy.alpha"], kinds["faa"]) == ("text", "number", "score")
    assert next(row["labels"] for row in found["rows"] if row["chosen"]).startswith("chosen")


def test_matrices_are_those_of_the_runs_and_their_means(toy):
    found = seen(toy, "matrices")
    own = [m for m in found["matrices"] if m["setting"] == toy.results.recommended]
    assert len(own) == len(found["blocks"]) == 6
    for matrix in own:
        R = toy.scores(matrix["order"], matrix["seed"])
        assert matrix["tasks"] == list(R.columns)
        assert np.array(matrix["R"], dtype=float) == pytest.approx(R.to_numpy(), nan_ok=True)
    order = own[0]["order"]
    mean = next(m for m in found["means"] if m["setting"] == own[0]["setting"] and m["order"] == order)
    seeds = [np.array(m["R"], dtype=float) for m in own if m["order"] == order]
    assert mean["seeds"] == 2
    assert np.array(mean["R"], dtype=float) == pytest.approx((seeds[0] + seeds[1]) / 2, nan_ok=True)


def test_matrices_of_any_setting_can_be_asked_for(toy):
    other = next(s for s in toy.results.evaluated if s != toy.results.recommended)
    found = seen(toy, "matrices", setting=other, split="validation")
    assert {m["setting"] for m in found["matrices"]} == {other}
    assert len(found["matrices"]) == 6


def test_the_points_and_curves_are_the_numbers_of_the_figures(toy):
    found = seen(toy, "curves")
    scored = run_table.selection_table(toy.results).groupby("setting")[["stability", "plasticity"]].mean()
    for point in found["stability_plasticity"]["points"]:
        if point["kind"] == "setting":
            expected = scored.loc[point["setting"]]
            assert (point["x"], point["y"]) == pytest.approx((expected["stability"], expected["plasticity"]))
    assert [p["chosen"] for p in found["stability_plasticity"]["points"]].count(True) == 1
    curve = found["stability_plasticity"]["curves"][0]
    assert [point["alpha"] for point in curve["points"]] == [0, 0.5, 1]
    assert {effect["task"] for effect in found["alpha"]} == {"words", "charts", "digits"}
    for effect in found["alpha"]:
        assert max(point["mean"] for point in effect["points"]) == 0
    last = {line["label"]: line["points"][-1]["score"] for line in found["learning"]}
    faa = {row["label"]: row["metrics"]["faa"]["score"] for row in seen(toy, "comparison")["rows"]}
    sizes_are_equal = last  # of all tasks, so the mean over tasks is the score over all questions
    assert sizes_are_equal == pytest.approx(faa)


def test_the_search_lists_every_candidate_in_the_order_proposed(toy):
    found = seen(toy, "search")
    assert [row["setting"] for row in found["history"]] == [c.setting for c in toy.results.search.candidates]
    assert {row["values"]["strategy.alpha"] for row in found["history"]} == {0, 0.5, 1}
    by_alpha = {row["values"]["strategy.alpha"]: row["objective"][0] for row in found["history"]}
    chosen = next(row for row in found["history"] if row["chosen"])
    assert by_alpha[chosen["values"]["strategy.alpha"]] == max(by_alpha.values())
    assert found["sentences"][0].startswith("The search (grid) proposed 3 settings and evaluated 3 of them")
    assert sum(row["share"] for row in found["importance"]) == pytest.approx(1)


def test_the_tables_about_orders_are_the_files_of_the_report(toy):
    found = seen(toy, "orders")
    for name, table in found["tables"].items():
        file = of_csv(toy, name)
        assert table["columns"] == list(file.columns)
        assert len(table["rows"]) == len(file)
        for column in file.select_dtypes("number"):
            own = [np.nan if row[column] is None else row[column] for row in table["rows"]]
            assert own == pytest.approx(list(file[column]), nan_ok=True)


def test_costs_add_up_to_those_of_all_stages(toy):
    found, table = seen(toy, "costs"), of_csv(toy, "costs")
    total = found["by_part"][-1]
    assert (total["task"], total["trained"]) == ("all", len(table))
    assert total["train_seconds"] == pytest.approx(table["train_seconds"].sum())
    assert found["spent"].keys() == {"worker_hours"}
    assert found["forecast"]["worker_hours"] == [0, 0, 0]  # nothing is left
    plan = seen(toy, "progress")
    assert plan["distinct"] == plan["stored"] == toy.results.facts["distinct stages"]


def test_files_are_the_bytes_of_the_report(toy, tmp_path):
    for name in ("table", "settings", "comparison", "per_task", "costs", "robustness_ranks"):
        file = views.write_file(toy, tmp_path, "table", {"name": name})
        assert file.read_bytes() == (toy.out / f"{name}.csv").read_bytes()
    file = views.write_file(toy, tmp_path, "table", {"format": "parquet"})
    assert file.read_bytes() == (toy.out / "table.parquet").read_bytes()
    draw_figure("forest", toy.results, tmp_path)
    for suffix in ("csv", "png", "pdf"):
        params = {"name": "forest", "format": suffix}
        assert (
            views.write_file(toy, tmp_path / "made", "figure", params).read_bytes()
            == (tmp_path / f"forest.{suffix}").read_bytes()
        )
    svg = views.write_file(toy, tmp_path, "figure", {"name": "forest"})
    assert svg.read_bytes().startswith(b"<?xml")
    again = views.write_file(toy, tmp_path / "again", "figure", {"name": "forest"})
    assert again.read_bytes() == svg.read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".draft")]


def test_a_file_that_cannot_be_made_leaves_nothing(toy, tmp_path):
    with pytest.raises(ResultsError, match="has no adapter: its study was simulated"):
        views.write_file(toy, tmp_path, "adapter", {})
    with pytest.raises(ResultsError, match="no data for the figure retention"):
        views.write_file(toy, tmp_path, "figure", {"name": "retention"})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda o, _: views.view(o, "sumary", {}), "no view is called 'sumary'.*Did you mean 'summary'"),
        (lambda o, _: views.view(o, "matrices", {"splt": "test"}), "no parameter .*Did you mean 'split'"),
        (lambda o, _: views.view(o, "matrices", {"setting": "replai"}), "Did you mean 'replay'"),
        (lambda o, _: views.view(o, "examples", {"page": "two"}), "page must be a whole number, got 'two'"),
        (lambda o, _: views.view(o, "examples", {"filter": "lost"}), "no filter is called 'lost'"),
        (lambda o, f: views.write_file(o, f, "figure", {"name": "../x"}), "no figure is called"),
        (lambda o, f: views.write_file(o, f, "figure", {}), "needs the parameter 'name'"),
        (lambda o, f: views.write_file(o, f, "table", {"name": "../../x"}), "no table is called"),
        (lambda o, _: views.picture(o, {"task": "../words", "id": "1"}), "no task is called"),
        (lambda o, _: views.picture(o, {"task": "words", "id": "../../etc/passwd"}), "has no example"),
    ],
)
def test_an_unknown_name_is_rejected_with_the_known_ones(toy, tmp_path, ask, message):
    with pytest.raises(ResultsError, match=message):
        ask(toy, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_equal_results_give_equal_bytes(toy):
    for name in ("summary", "comparison", "tree"):
        assert views.view(toy, name, {}) == views.view(toy, name, {})


def test_values_of_numpy_and_pandas_become_plain_json():
    found = {
        "a": np.float64("nan"),
        "b": np.array([[1.5, np.inf]]),
        "c": np.int64(3),
        "d": pd.DataFrame({"x": [1, 2], "y": ["u", None]}),
        "e": (np.bool_(True), pd.NA, 0.25),
        7: {"z"},
    }
    assert plain(found) == {
        "a": None,
        "b": [[1.5, None]],
        "c": 3,
        "d": [{"x": 1, "y": "u"}, {"x": 2, "y": None}],
        "e": [True, None, 0.25],
        "7": ["z"],
    }
    assert parsed(to_bytes(found)) == json.loads(to_bytes(found))
