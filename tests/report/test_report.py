"""The report of a small study whose numbers can be worked out on paper."""

import dataclasses
import math
import re

import numpy as np
import pytest
from report_samples import ORDERS, small_study

from dgg_ray.analysis.comparison_tables import compare, settings_table
from dgg_ray.analysis.order_sensitivity import task_disparity
from dgg_ray.analysis.results import Results, Spending
from dgg_ray.analysis.run_table import runs
from dgg_ray.core.errors import ResultsError
from dgg_ray.report import appendix, page, summary


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report with two figures; test_page.py has one with all of them, which take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", lambda: ["forest", "alpha_effect"])
        return page.write_report(small_study(), tmp_path_factory.mktemp("report")).parent


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr(page, "figure_names", list)


def summary_text(results: Results) -> str:
    return "\n".join(summary.summary_sentences(results))


def test_a_run_is_scored_over_its_examples_in_its_own_order():
    table = runs(small_study(), "test").set_index(["setting", "order"])
    assert table.loc[("d1", "a > b > c"), "faa"] == pytest.approx((6 + 10 + 27) / 60)
    assert table.loc[("d1", "c > a > b"), "faa"] == pytest.approx((21 + 6 + 10) / 60)
    assert table.loc[("d1", "c > a > b"), "stability"] == pytest.approx((0.7 + 0.6) / 2)
    assert table.loc[("jt", "a > b > c"), "faa"] == pytest.approx((8 + 14 + 27) / 60)
    assert math.isnan(table.loc[("jt", "a > b > c"), "plasticity"])


def test_a_split_that_was_not_evaluated_has_no_runs():
    assert runs(small_study(splits=("validation",)), "test").empty


def test_a_baseline_is_compared_within_blocks():
    row = compare(small_study(), "test").set_index(["label", "metric"]).loc[("finetune", "faa")]
    # finetune: 38/60 and 27/60, so d1 is 5/60 and 10/60 higher; two blocks are too few for an interval
    assert row["score"] == pytest.approx(65 / 120)
    assert row["difference"] == pytest.approx(0.125)
    assert row["difference_values"] == pytest.approx((5 / 60, 10 / 60))
    assert np.isnan([row["difference_low"], row["difference_high"], row["p"]]).all()
    assert row["pairs"] == 2


def test_a_joint_run_counts_once_per_seed_however_many_orders_it_serves():
    row = compare(small_study(), "test").set_index(["label", "metric"]).loc[("joint", "faa")]
    assert row["n"] == 1
    assert math.isnan(row["low"])
    assert row["pairs"] == 1  # its noise is in the differences of both orders
    assert math.isnan(row["difference_low"])


def test_order_disparity_is_the_difference_of_the_extremes():
    spread = task_disparity(small_study(), "test").set_index(["label", "task"])["opd"]
    dgg, finetune = spread["dgg"].to_dict(), spread["finetune"].to_dict()
    assert dgg == pytest.approx({"a": 0.0, "b": 0.0, "c": 0.2, "AOPD": 0.2 / 3, "MOPD": 0.2})
    assert finetune == pytest.approx({"a": 0.0, "b": 0.2, "c": 0.5, "AOPD": 0.7 / 3, "MOPD": 0.5})


def test_settings_are_sorted_by_score():
    best = settings_table(small_study())
    assert best["setting"].tolist() == ["jt", "d1", "ft", "d2"]  # 49, 40, 32.5, 32 sixtieths
    assert best["faa"].tolist() == pytest.approx([98.0 / 120, 80 / 120, 65 / 120, 64 / 120])


def test_the_winner_is_scored_on_the_blocks_on_which_the_other_settings_were_evaluated():
    results = small_study()
    table = results.table
    further = table[(table["setting"] != "d2") | (table["order"] == ORDERS[0])]  # the winner went on alone
    best = settings_table(dataclasses.replace(results, table=further)).set_index("setting")
    assert best.loc["d1", ["faa", "blocks"]].tolist() == pytest.approx([43 / 60, 1])
    assert best.loc["ft", "blocks"] == 2


def test_the_summary_names_the_setting_and_its_score():
    text = summary_text(small_study())
    assert text.startswith(
        "No setting was shown to beat plain fine-tuning: the difference is 12.5 points (2 blocks: 8.3, "
        "16.7), and the simplest setting within noise is finetune."
    )
    assert "The highest score where settings were chosen was that of dgg with α = 0.25, buffer = 50." in text
    assert "On the test split its FAA is 66.7 % (2 blocks: 71.7, 61.7)." in text
    line = "Compared with plain fine-tuning (54.2 %), the difference in FAA is +12.5 points (2 blocks: +8.3, "
    assert f"{line}+16.7)" in text
    assert "6.7 points on average (AOPD) and by 20.0 at most (MOPD, c)" in text


def test_the_summary_says_that_one_block_is_too_few_for_an_interval():
    text = summary_text(small_study(orders=ORDERS[:1]))
    assert (
        "No interval can be given: there is only 1 independent block, and 3 are needed. To add blocks,"
        in text
    )
    assert "its FAA is 71.7 % (1 block)." in text
    assert "is +8.3 points (1 block): no test is possible." in text
    assert "Only one order of the tasks was run" in text


def test_the_summary_says_that_a_score_on_the_split_of_the_choice_is_optimistic():
    assert "so the score is optimistic" in summary_text(small_study(splits=("validation",)))


def test_a_study_without_a_winner_recommends_nothing():
    assert "none is recommended" in summary_text(small_study(recommended=None))


def test_without_a_search_the_only_setting_is_the_chosen_one():
    only = small_study(settings=("d1",), recommended=None, baselines={}, parameters=())
    assert summary_text(only).startswith(
        "No setting was shown to be the one to use: dgg has no simpler baseline in this study."
    )
    assert "this study has no baselines" in summary_text(only)


def test_the_error_for_a_study_without_a_stage_says_what_to_do(tmp_path):
    empty = small_study()
    empty = dataclasses.replace(empty, table=empty.table[:0])
    with pytest.raises(ResultsError, match="run the study first"):
        page.write_report(empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_opens_without_a_network_and_begins_with_the_verdict(written):
    page = (written / "report.html").read_text(encoding="utf-8")
    targets = re.findall(r"src\s*=\s*[\"']?([^\"'\s>]+)|url\(([^)]*)\)|@import\s+(\S+)", page)
    assert all("".join(target).startswith("data:") for target in targets)
    assert "<link" not in page
    assert "<script" not in page
    assert "dgg with α = 0.25, buffer = 50." in page
    assert "+12.5 (2 blocks: +8.3, +16.7)" in page
    assert page.index("No setting was shown to beat") < page.index("<table")


def test_the_page_gives_the_effect_of_alpha(written):
    page = (written / "report.html").read_text(encoding="utf-8")
    # b after a, at α = 0.125 and 0.25: the new task 0.7 and 0.6; a from 0.8 to 0.4 and to 0.7
    assert "Compared with α = 0.125, α = 0.25 costs 10.0 points on the new task and saves 30.0 points" in page
    assert "α = 0 and 1 were not tried, so nothing is known beyond 0.125 and 0.25." in page


def test_failed_stages_are_shown_with_their_error(tmp_path, without_figures):
    failure = {
        "stage": "ab12",
        "trained_task": "b",
        "error": "NonFiniteError",
        "message": "loss <nan>",
        "traceback": "line 7",
    }
    html = page.write_report(small_study(failures=[failure]), tmp_path).read_text(encoding="utf-8")
    assert "1 stage failed (NonFiniteError while training b). Runs that needed it are not counted." in html
    assert all(text in html for text in ["ab12", "loss &lt;nan&gt;", "line 7"])


def test_costs_are_summed_and_shared_stages_are_counted():
    assert appendix.cost_rows(small_study().costs)[-1] == ["all", "8", "2", "6", "7.0", "3.0", "300"]


def test_the_page_compares_spending_with_the_forecast(tmp_path, without_figures):
    runs = [("run 1", "GPU-hours", {"mean": 12.0, "low": 10.0, "high": 14.5}, 11.25)]
    runs += [("run 2", "GPU-hours", None, 1.0)]
    spending = Spending({"GPU-hours": 12.25}, "40 GPU-hours", 0, runs)
    html = page.write_report(small_study(spending=spending), tmp_path).read_text()
    for cell in ("12 (95 %: 10 to 14.5)", "11.2", "no measurements yet", "12.2", "budget 40 GPU-hours"):
        assert f"<td>{cell}</td>" in html


@pytest.mark.parametrize(("refused", "stages"), [(1, "1 stage was"), (3, "3 stages were")])
def test_the_summary_says_that_the_budget_ended_the_study(refused, stages):
    spending = Spending({"GPU-hours": 39.0}, "40 GPU-hours", refused)
    assert f"The budget of 40 GPU-hours would be exceeded, so {stages} not started." in summary_text(
        small_study(spending=spending)
    )
    assert "budget" not in summary_text(small_study())


def test_facts_are_one_line_for_each_task():
    facts = {"seeds": [0, 1], "tasks": {"a": {"train": 3, "test": 2}}, "versions": {"torch": "2.9"}}
    assert appendix.flatten_facts(facts) == [
        ("seeds", "0; 1"),
        ("tasks.a", "train 3, test 2"),
        ("versions", "torch 2.9"),
    ]


def test_the_latex_table_escapes_special_characters():
    table = compare(small_study(baselines={"fine_tune": "ft"}), "test")
    text = page.latex_table(table, "test")
    assert r"fine\_tune & 54.2 (2 blocks: 63.3, 45.0) &" in text
    assert r"$-$" in text
    assert text.count(r"\\") == 3


@pytest.mark.whole
def test_equal_results_give_equal_bytes_whatever_the_row_order_and_the_time(tmp_path):
    results = small_study()
    shuffled = results.table.sample(frac=1, random_state=1).assign(seconds=99.0)
    first, second = tmp_path / "first", tmp_path / "second"
    page.write_report(results, first)
    page.write_report(dataclasses.replace(results, table=shuffled), second)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".html", ".png", ".pdf", ".csv", ".parquet", ".tex"}
    assert not [path for path in files if (first / path).read_bytes() != (second / path).read_bytes()]


def whole(changes):
    return pytest.param(changes, marks=pytest.mark.whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"orders": ORDERS[:1]},
        whole({"splits": ("validation",)}),
        whole({"settings": ("d1",), "baselines": {}}),
        {"settings": ("jt",), "recommended": None},
        {"recommended": None},
        whole({"parameters": ("strategy.buffer",)}),
        whole({"costs": small_study().costs[:0]}),
    ],
    ids=str,
)
def test_a_report_is_written_for_a_study_that_lacks_something(tmp_path, without_figures, changes):
    assert page.write_report(small_study(**changes), tmp_path).exists()
