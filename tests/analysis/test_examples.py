"""What a model gets wrong, from predictions written by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prediction_samples import study

from dgg_ray.analysis import examples
from dgg_ray.analysis.archive import Archive
from dgg_ray.analysis.examples import answers, as_text, confusions, listing, lost, sample, shown
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.stage import Run, WorkItem


def test_every_question_has_what_was_answered_then_and_at_the_end():
    rows = answers(study(), "test", "d1").set_index(["order", "id"])
    assert len(rows) == 8
    assert rows.loc[("a > b", "a1"), ["before", "after", "fell"]].tolist() == ["red", "two", 1.0]
    assert rows.loc[("a > b", "b1"), ["before", "after", "last"]].tolist() == ["", "one", True]
    assert np.isnan(rows.loc[("a > b", "b1"), "fell"])


def test_lost_is_what_was_right_once_and_is_wrong_at_the_end():
    found = lost(study(), "test", "d1").set_index("id")
    assert sorted(found.index) == ["a1", "b1"]  # not a3, never right; not a2, wrong where it came last
    assert found.loc["a1", ["runs", "of"]].tolist() == [1, 1]
    assert lost(study(), "test", "d1", "b")["id"].tolist() == ["b1"]


def test_nothing_is_said_of_a_split_without_predictions():
    assert answers(study(), "validation", "d1").empty
    assert lost(study(), "validation", "d1").empty


def test_confusions_are_the_wrong_answers_that_repeat():
    found = confusions(study(), "test", "d1")
    # a3 is "two" in place of "blue" in both runs; a2 and a1 once each are "two" in place of "red"
    assert found.to_dict("records") == [
        {"task": "a", "answer": "blue", "after": "two", "times": 2, "of": 2},
        {"task": "a", "answer": "red", "after": "two", "times": 2, "of": 4},
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 20, 100])
def test_a_sample_is_of_each_task_in_proportion_and_always_the_same(count):
    names = [("a", f"a{i}") for i in range(60)] + [("b", f"b{i}") for i in range(17)] + [("c", "c0")]
    rows = pd.DataFrame(names, columns=["task", "id"])
    some = sample(rows, count)
    assert len(some) == min(count, 78)
    assert not some.duplicated().any()
    pd.testing.assert_frame_equal(some, sample(rows.sample(frac=1, random_state=3), count))
    sizes = some.groupby("task").size().to_dict()
    if count == 20:
        assert sizes == {"a": 15, "b": 4, "c": 1}
    if count >= 3:
        assert set(sizes) == {"a", "b", "c"}


def test_a_question_whose_file_is_gone_is_shown_without_it_and_one_line_says_so():
    results = study(pictures={"a": {"a1": Example("a1", "which colour?", "red")}})
    some, note = shown(results, lost(results, "test", "d1"), "test")
    assert {one.row["id"]: one.question for one in some} == {"a1": "which colour?", "b1": ""}
    assert note.startswith("Questions and pictures of b are not shown")
    assert shown(results, lost(results, "test", "d1", "a"), "test")[1] == ""


def test_the_listing_is_the_same_as_text_and_as_json():
    found = listing(study())
    assert (found["method"], found["split"], found["right_then_wrong"], found["questions"]) == (
        "dgg",
        "test",
        2,
        4,
    )
    assert json.loads(json.dumps(found)) == found
    text = as_text(found)
    assert "2 of 4 questions were answered right after their task was learned" in text
    assert "right: red   then: red   now: two" in text
    assert "a: 'two' instead of 'blue', 2 of 2 times" in text
    assert "of b were answered" in as_text(listing(study(), task="b"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "aa"}, "no task 'aa'; it has a, b. Did you mean 'a'"),
        ({"split": "train"}, "nothing was evaluated on 'train', only on test"),
        ({"method": "dg"}, "no setting is called 'dg'; there are dgg, chosen, d1. Did you mean 'dgg'"),
    ],
)
def test_a_name_that_the_study_does_not_have_is_named_with_those_it_has(asked, said):
    with pytest.raises(ResultsError, match=said):
        listing(study(), **asked)


def test_without_predictions_the_command_says_why(monkeypatch):
    monkeypatch.setattr(examples, "answers", lambda *_: pd.DataFrame(columns=examples.COLUMNS))
    with pytest.raises(ResultsError, match="holds no predictions of dgg on the test split"):
        listing(study())


def test_an_archive_knows_the_losses_and_the_adapter_of_a_run(world):
    class Judged:
        id = "0123abcd"

    stages = world.path("ones", "fours")
    for stage in stages:
        world.shop.obtain(WorkItem(stage))
    name = (Judged.id, "ones > fours", 0)
    archive = Archive(None, world.store, {name: (Judged(), Run(Judged.id, ("ones", "fours"), 0, stages))})
    # rate 1: θ goes to the answers in the one step of each stage, so the loss after it is 0
    assert [tuple(of) for of in archive.losses(name)] == [("ones", 1, (0.0,)), ("fours", 1, (0.0,))]
    assert archive.losses(("other", "ones > fours", 0)) == []
    (placed,) = archive.adapters(Judged.id)
    assert (placed.order, placed.seed) == ("ones > fours", 0)
    assert world.store.folder in Path(placed.path).parents
    assert {file.name for file in Path(placed.path).iterdir()} == {"theta.safetensors"}
    world.store.discard(stages[-1].key, "adapter")
    assert [one.path for one in archive.adapters(Judged.id)] == [""]
