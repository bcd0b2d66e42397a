"""Task by task, on matrices that can be read off by eye."""

from dataclasses import replace

import pandas as pd
import pytest

from dgg_ray.analysis.per_task import blocks, most_forgotten, per_task
from dgg_ray.analysis.results import CELL, Results
from dgg_ray.report.figures import per_task as figure

R = {  # (setting, order) → rows of R
    ("d1", "a > b > c"): [[0.8], [0.9, 0.6], [0.5, 0.4, 0.7]],
    ("d1", "c > b > a"): [[0.7], [0.6, 0.5], [0.3, 0.5, 0.9]],
    ("jt", "a > b > c"): [[], [], [0.6, 0.7, 0.8]],
    ("jt", "c > b > a"): [[], [], [0.8, 0.7, 0.6]],
}


def study(without: str = "") -> Results:
    rows = [
        [setting, strategy, order, 0, t, learned, evaluation, "test", score, 10, 0.0]
        for (setting, order), matrix in R.items()
        if setting != without
        for strategy in [{"d1": "dgg", "jt": "joint"}[setting]]
        for tasks in [order.split(" > ")]
        for t, scores in enumerate(matrix)
        for learned in ["a + b + c" if setting == "jt" else tasks[t]]
        for evaluation, score in zip(tasks, scores, strict=False)
    ]
    table = pd.DataFrame(rows, columns=CELL)
    return Results("small", "", table, (), ("faa",), "d1", {"joint": "jt"}, [], pd.DataFrame())


def test_a_task_is_followed_from_its_own_stage_to_the_end():
    table = per_task(study(), "test").set_index(["label", "task"])
    a, b, c = (table.loc[("dgg", task)] for task in "abc")
    assert (a["learned"], a["final"]) == pytest.approx(((0.8 + 0.9) / 2, (0.5 + 0.9) / 2))
    assert a["forgotten"] == pytest.approx(0.9 - 0.5)  # from its best; in the other order it is last
    assert b["forgotten"] == pytest.approx(((0.6 - 0.4) + (0.5 - 0.5)) / 2)
    assert c["forgotten"] == pytest.approx(0.7 - 0.3)
    assert (a["forgotten_n"], b["forgotten_n"]) == (1, 2)


def test_joint_training_has_a_final_score_alone():
    joint = per_task(study(), "test").set_index(["label", "task"]).loc["joint"]
    assert joint["final"].to_dict() == pytest.approx({"a": 0.6, "b": 0.7, "c": 0.8})
    assert joint[["learned", "forgotten"]].isna().all(axis=None)


def test_the_most_forgotten_task_is_the_one_that_falls_furthest():
    table = per_task(study(), "test")
    table.loc[(table["label"] == "dgg") & (table["task"] == "c"), "forgotten"] += 0.01
    assert most_forgotten(table, "dgg")["task"] == "c"
    assert most_forgotten(table, "joint") is None


def test_a_run_that_is_not_finished_is_left_out():
    whole = study("jt")
    cut = replace(whole, table=whole.table.iloc[:-1])
    assert set(blocks(cut, "test")["order"]) == {"a > b > c"}


def test_the_figure_shows_the_same_numbers():
    made = figure.draw(study())
    assert made is not None
    pd.testing.assert_frame_equal(made[1], per_task(study(), "test"))
