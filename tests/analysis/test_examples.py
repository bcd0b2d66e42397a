"""Forgotten answers, from predictions written by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prediction_samples import results_with_predictions

from dgg_ray.analysis import examples
from dgg_ray.analysis.archive import Archive
from dgg_ray.analysis.examples import (
    answer_history,
    confusions,
    examples_report,
    forgotten_answers,
    format_examples,
    sample_in_proportion,
    with_examples,
)
from dgg_ray.analysis.results import ComparisonSetup
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.stage import Run, WorkItem


def test_every_question_has_its_answers_after_training_and_at_the_end():
    rows = answer_history(results_with_predictions(), "test", "d1").set_index(["order", "id"])
    assert len(rows) == 8
    assert rows.loc[
        ("a > b", "a1"), ["prediction_after_training", "prediction_at_end", "score_drop"]
    ].tolist() == ["red", "two", 1.0]
    assert rows.loc[
        ("a > b", "b1"), ["prediction_after_training", "prediction_at_end", "is_last_task"]
    ].tolist() == ["", "one", True]
    assert np.isnan(rows.loc[("a > b", "b1"), "score_drop"])


def test_an_answer_is_forgotten_if_it_was_right_after_training_and_is_wrong_at_the_end():
    rows = forgotten_answers(results_with_predictions(), "test", "d1").set_index("id")
    assert sorted(rows.index) == ["a1", "b1"]  # not a3, never right; not a2, wrong where it came last
    assert rows.loc["a1", ["runs_forgotten", "runs_followed"]].tolist() == [1, 1]
    assert forgotten_answers(results_with_predictions(), "test", "d1", "b")["id"].tolist() == ["b1"]


def test_a_split_without_predictions_has_no_rows():
    assert answer_history(results_with_predictions(), "validation", "d1").empty
    assert forgotten_answers(results_with_predictions(), "validation", "d1").empty


def test_a_setting_outside_the_final_comparison_is_read_in_the_runs_that_it_has():
    known = results_with_predictions()
    final = known.table[known.table["order"] == "a > b"].assign(setting="d2", order="b > a")
    blocks = ComparisonSetup(final_blocks=(("b > a", 0),))
    own = known.table[known.table["order"] == "a > b"]
    results = replace(known, table=pd.concat([own, final]), recommended="d2", setup=blocks)
    assert set(answer_history(results, "test", "d1")["order"]) == {"a > b"}
    assert set(answer_history(results, "test", "d2")["order"]) == {"b > a"}


def test_confusions_are_the_wrong_answers_that_repeat():
    rows = confusions(results_with_predictions(), "test", "d1")
    # a3 is "two" in place of "blue" in both runs; a2 and a1 once each are "two" in place of "red"
    assert rows.to_dict("records") == [
        {"task": "a", "answer": "blue", "prediction": "two", "count": 2, "total": 2},
        {"task": "a", "answer": "red", "prediction": "two", "count": 2, "total": 4},
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 20, 100])
def test_a_sample_takes_each_task_in_proportion_and_is_always_the_same(count):
    names = [("a", f"a{i}") for i in range(60)] + [("b", f"b{i}") for i in range(17)] + [("c", "c0")]
    rows = pd.DataFrame(names, columns=["task", "id"])
    drawn = sample_in_proportion(rows, count)
    assert len(drawn) == min(count, 78)
    assert not drawn.duplicated().any()
    pd.testing.assert_frame_equal(drawn, sample_in_proportion(rows.sample(frac=1, random_state=3), count))
    sizes = drawn.groupby("task").size().to_dict()
    if count == 20:
        assert sizes == {"a": 15, "b": 4, "c": 1}
    if count >= 3:
        assert set(sizes) == {"a", "b", "c"}


def test_an_example_whose_file_is_missing_has_no_question_and_a_note_says_so():
    results = results_with_predictions(pictures={"a": {"a1": Example("a1", "which colour?", "red")}})
    forgotten, note = with_examples(results, forgotten_answers(results, "test", "d1"), "test")
    assert {item.row["id"]: item.question for item in forgotten} == {"a1": "which colour?", "b1": ""}
    assert note.startswith("Questions and images of b are not shown")
    assert with_examples(results, forgotten_answers(results, "test", "d1", "a"), "test")[1] == ""


def test_the_report_is_the_same_as_text_and_as_json():
    report = examples_report(results_with_predictions())
    assert (report["method"], report["split"], report["forgotten"], report["questions"]) == (
        "dgg",
        "test",
        2,
        4,
    )
    assert json.loads(json.dumps(report)) == report
    text = format_examples(report)
    assert "2 of 4 questions were answered correctly right after their task was trained" in text
    assert "correct: red   after training: red   at the end: two" in text
    assert "a: 'two' instead of 'blue', 2 of 2 times" in text
    assert "of b were answered" in format_examples(examples_report(results_with_predictions(), task="b"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "aa"}, "no task 'aa'; it has a, b. Did you mean 'a'"),
        ({"split": "train"}, "nothing was evaluated on 'train', only on test"),
        ({"method": "dg"}, "no setting is called 'dg'; there are dgg, chosen, d1. Did you mean 'dgg'"),
    ],
)
def test_an_unknown_name_is_reported_with_the_known_ones(arguments, message):
    with pytest.raises(ResultsError, match=message):
        examples_report(results_with_predictions(), **arguments)


def test_without_predictions_the_command_says_why(monkeypatch):
    monkeypatch.setattr(examples, "answer_history", lambda *_: pd.DataFrame(columns=examples.HISTORY_COLUMNS))
    with pytest.raises(ResultsError, match="holds no predictions of dgg on the test split"):
        examples_report(results_with_predictions())


def test_an_archive_gives_the_losses_and_the_adapter_of_a_run(world):
    class SettingStudy:
        id = "0123abcd"

    stages = world.stages_of("ones", "fours")
    for stage in stages:
        world.runner.run(WorkItem(stage))
    name = (SettingStudy.id, "ones > fours", 0)
    archive = Archive(
        None, world.store, {name: (SettingStudy(), Run(SettingStudy.id, ("ones", "fours"), 0, stages))}
    )
    # rate 1: θ goes to the answers in the one step of each stage, so the loss after it is 0
    assert [tuple(losses) for losses in archive.losses(name)] == [("ones", 1, (0.0,)), ("fours", 1, (0.0,))]
    assert archive.losses(("other", "ones > fours", 0)) == []
    (adapter,) = archive.adapters(SettingStudy.id)
    assert (adapter.order, adapter.seed) == ("ones > fours", 0)
    assert world.store.backend.root in Path(adapter.path).parents
    assert {file.name for file in Path(adapter.path).iterdir()} == {"theta.safetensors"}
    world.store.remove_adapter(stages[-1].key)
    assert [adapter.path for adapter in archive.adapters(SettingStudy.id)] == [""]
