"""Stored answers are read back as they were given."""

from dataclasses import replace

import pandas as pd
import pytest

from dgg_ray.analysis.predictions import ANSWER, answers, examples, predictions
from dgg_ray.config.study import Study
from dgg_ray.core.interfaces import Score
from dgg_ray.core.stage import Evaluation, Run, WorkItem, untouched
from dgg_ray.readers.embedded import Embedded
from dgg_ray.storage.store_view import Glance


class Judged:
    """Stands for a study: its setting, its strategy and the keys of its evaluations."""

    id = "0123abcd"

    def __init__(self, world) -> None:
        self.world, self.strategy = world, world.path("ones")[0].strategy

    def evaluation(self, task: str, split: str) -> Evaluation:
        return self.world.evaluation(task, split)


def trained(world, *order: str) -> Run:
    stages = world.path(*order)
    for t, stage in enumerate(stages):
        world.shop.obtain(WorkItem(stage, tuple(world.evaluation(name) for name in order[: t + 1])))
    return Run(Judged.id, order, 3, stages)


def test_each_answer_is_told_with_its_run_and_stage(world):
    run = trained(world, "ones", "fours")  # one step of rate 1 goes to the mean of the answers
    found = predictions(world.store, [(Judged(world), run)])
    assert list(found["stage"]) == [0] * 2 + [1] * 5
    assert list(found["trained_task"]) == ["ones"] * 2 + ["fours"] * 5
    assert set(found["order"]) == {"ones > fours"}
    assert set(found["seed"]) == {3}
    after = found[found["stage"] == 1].groupby("task", sort=False)
    assert after["prediction"].unique().map(list).to_dict() == {"fours": ["4"], "ones": ["4"]}
    assert after["score"].mean().to_dict() == {"fours": 1.0, "ones": 0.0}
    assert list(found[found["stage"] == 0]["id"]) == ["ones-test-0", "ones-test-1"]


def test_only_the_tasks_asked_for_are_read(world):
    run = trained(world, "ones", "fours", "nines")
    found = predictions(world.store, [(Judged(world), run)], tasks=["fours"])
    assert found.groupby("stage").size().to_dict() == {1: 3, 2: 3}
    assert predictions(world.store, [(Judged(world), run)], "validation").empty


def test_before_anything_is_trained_there_are_columns_and_no_rows(world):
    run = Run(Judged.id, ("ones",), 0, world.path("ones"))
    found = predictions(world.store, [(Judged(world), run)])
    assert found.empty
    assert {"setting", "stage", "prediction"} <= set(found)


def test_the_untouched_models_answers_come_first(world):
    base, run = untouched("model"), trained(world, "ones")
    world.shop.obtain(WorkItem(base, (world.evaluation("ones"),)))
    found = predictions(world.store, [(Judged(world), run)], base=base)
    assert list(found["stage"]) == [-1, -1, 0, 0]
    assert list(found["prediction"]) == ["0", "0", "1", "1"]


def test_an_evaluation_that_two_sittings_hold_is_read_once(world):
    """Two drivers may evaluate a stage at the same time, with different splits besides."""
    stage = world.path("ones")[0]
    both = (world.evaluation("ones"), world.evaluation("ones", "validation"))
    world.shop.obtain(WorkItem(stage, both))
    world.shop.examine(stage, both[:1])
    assert len(list(world.store.sittings(stage.key))) == 2
    assert len(answers(world.store, stage, both)) == 4


def test_an_evaluation_of_the_same_split_by_other_rules_is_not_mixed_in(world, monkeypatch):
    stage, lenient = world.path("ones")[0], Evaluation("ones", "test", "e" * 64)
    world.shop.obtain(WorkItem(stage, (world.evaluation("ones"),)))
    always = lambda predictions, examples: Score(0.5, (0.5,) * len(examples))  # noqa: E731
    monkeypatch.setattr("dgg_ray.core.plugins.find", lambda kind, name: always)
    world.shop.examine(stage, [lenient])
    assert list(answers(world.store, stage, [world.evaluation("ones")])["score"]) == [1.0, 1.0]
    assert list(answers(world.store, stage, [lenient])["score"]) == [0.5, 0.5]


def test_a_damaged_file_of_answers_is_not_believed(world):
    stage = world.path("ones")[0]
    world.shop.obtain(WorkItem(stage, (world.evaluation("ones"),)))
    (file,) = world.store.folder.glob("files/*/*/predictions.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        found = answers(world.store, stage, [world.evaluation("ones")])
    assert found.equals(pd.DataFrame(columns=[*ANSWER]))


def test_a_glance_at_a_store_reads_the_same_answers(world):
    run = trained(world, "ones", "fours")
    runs = [(Judged(world), run)]
    assert predictions(Glance(world.store), runs).equals(predictions(world.store, runs))


def test_examples_are_had_while_the_data_are_what_was_judged():
    reader = Embedded(train=3, validation=2, test=2)
    task = reader.read("digits")
    study = replace(EMPTY, readers={"digits": reader}, tasks={"digits": task})
    found = examples(study, "digits", "test")
    assert [found[e.id].question for e in task.examples["test"]] == [
        e.question for e in task.examples["test"]
    ]
    changed = replace(task, digests={**task.digests, "test": "0" * 64})
    assert examples(replace(study, tasks={"digits": changed}), "digits", "test") == {}


EMPTY = Study(name="toy", model=None, readers={}, strategy=None)
