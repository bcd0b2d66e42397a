"""Stored answers are read as they were given."""

from dataclasses import replace

import pandas as pd
import pytest
from study_samples import with_data

from dgg_ray.analysis.predictions import ANSWER_COLUMNS, examples_by_id, predictions_table, stage_answers
from dgg_ray.config.study import Study
from dgg_ray.core.interfaces import Score
from dgg_ray.core.stage import Evaluation, Run, WorkItem, untouched_stage
from dgg_ray.readers.embedded import Embedded
from dgg_ray.storage.store_view import view_of


class SettingStudy:
    """Stand in for a study: its setting, its strategy and the keys of its evaluations."""

    id = "0123abcd"
    evaluate_only = ()

    def __init__(self, world) -> None:
        self.world, self.runs, self.strategy = world, self, world.stages_of("ones")[0].strategy

    def evaluation(self, task: str, split: str) -> Evaluation:
        return self.world.evaluation(task, split)


def train_run(world, *order: str) -> Run:
    stages = world.stages_of(*order)
    for t, stage in enumerate(stages):
        world.runner.run(WorkItem(stage, tuple(world.evaluation(name) for name in order[: t + 1])))
    return Run(SettingStudy.id, order, 3, stages)


def test_each_answer_has_its_run_and_stage(world):
    run = train_run(world, "ones", "fours")  # one step of rate 1 goes to the mean of the answers
    table = predictions_table(world.store, [(SettingStudy(world), run)])
    assert list(table["stage"]) == [0] * 2 + [1] * 5
    assert list(table["trained_task"]) == ["ones"] * 2 + ["fours"] * 5
    assert set(table["order"]) == {"ones > fours"}
    assert set(table["seed"]) == {3}
    after = table[table["stage"] == 1].groupby("task", sort=False)
    assert after["prediction"].unique().map(list).to_dict() == {"fours": ["4"], "ones": ["4"]}
    assert after["score"].mean().to_dict() == {"fours": 1.0, "ones": 0.0}
    assert list(table[table["stage"] == 0]["id"]) == ["ones-test-0", "ones-test-1"]


def test_only_the_requested_tasks_are_read(world):
    run = train_run(world, "ones", "fours", "nines")
    table = predictions_table(world.store, [(SettingStudy(world), run)], tasks=["fours"])
    assert table.groupby("stage").size().to_dict() == {1: 3, 2: 3}
    assert predictions_table(world.store, [(SettingStudy(world), run)], "validation").empty


def test_before_anything_is_trained_there_are_columns_and_no_rows(world):
    run = Run(SettingStudy.id, ("ones",), 0, world.stages_of("ones"))
    table = predictions_table(world.store, [(SettingStudy(world), run)])
    assert table.empty
    assert {"setting", "stage", "prediction"} <= set(table)


def test_the_untouched_models_answers_come_first(world):
    base, run = untouched_stage("model"), train_run(world, "ones")
    world.runner.run(WorkItem(base, (world.evaluation("ones"),)))
    table = predictions_table(world.store, [(SettingStudy(world), run)], base=base)
    assert list(table["stage"]) == [-1, -1, 0, 0]
    assert list(table["prediction"]) == ["0", "0", "1", "1"]


def test_an_evaluation_in_two_records_is_read_once(world):
    """Two drivers may evaluate a stage at the same time, with different splits besides."""
    stage = world.stages_of("ones")[0]
    both = (world.evaluation("ones"), world.evaluation("ones", "validation"))
    world.runner.run(WorkItem(stage, both))
    world.runner.evaluate(stage, both[:1])
    assert len(list(world.store.evaluation_records(stage.key))) == 2
    assert len(stage_answers(world.store, stage, both)) == 4


def test_an_evaluation_of_the_same_split_by_other_rules_is_not_mixed_in(world, monkeypatch):
    stage, lenient = world.stages_of("ones")[0], Evaluation("ones", "test", "e" * 64)
    world.runner.run(WorkItem(stage, (world.evaluation("ones"),)))
    always = lambda predictions_table, examples_by_id: Score(0.5, (0.5,) * len(examples_by_id))  # noqa: E731
    monkeypatch.setattr("dgg_ray.core.plugins.find", lambda kind, name: always)
    world.runner.evaluate(stage, [lenient])
    assert list(stage_answers(world.store, stage, [world.evaluation("ones")])["score"]) == [1.0, 1.0]
    assert list(stage_answers(world.store, stage, [lenient])["score"]) == [0.5, 0.5]


def test_a_damaged_file_of_answers_is_rejected(world):
    stage = world.stages_of("ones")[0]
    world.runner.run(WorkItem(stage, (world.evaluation("ones"),)))
    (file,) = world.store.backend.root.glob("files/*/*/predictions.parquet")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        table = stage_answers(world.store, stage, [world.evaluation("ones")])
    assert table.equals(pd.DataFrame(columns=[*ANSWER_COLUMNS]))


def test_a_read_once_view_of_the_store_reads_the_same_answers(world):
    run = train_run(world, "ones", "fours")
    runs = [(SettingStudy(world), run)]
    assert predictions_table(view_of(world.store), runs).equals(predictions_table(world.store, runs))


def test_examples_are_available_while_the_data_are_unchanged():
    reader = Embedded(train=3, validation=2, test=2)
    task = reader.read("digits")
    study = with_data(replace(EMPTY, readers={"digits": reader}), tasks={"digits": task})
    table = examples_by_id(study, "digits", "test")
    assert [table[e.id].question for e in task.examples["test"]] == [
        e.question for e in task.examples["test"]
    ]
    changed = replace(task, digests={**task.digests, "test": "0" * 64})
    assert examples_by_id(with_data(study, tasks={"digits": changed}), "digits", "test") == {}


EMPTY = Study(name="toy", model=None, readers={}, strategy=None)
