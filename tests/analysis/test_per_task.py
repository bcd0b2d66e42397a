"""Scores task by task, on matrices small enough to check by eye."""

from dataclasses import replace

import pandas as pd
import pytest

from dgg_ray.analysis.per_task import block_scores, most_forgotten, per_task
from dgg_ray.analysis.results import CELL_COLUMNS, Results
from dgg_ray.report.figures import per_task as figure

R = {  # (setting, order) → rows of R
    ("d1", "a > b > c"): [[0.8], [0.9, 0.6], [0.5, 0.4, 0.7]],
    ("d1", "c > b > a"): [[0.7], [0.6, 0.5], [0.3, 0.5, 0.9]],
    ("jt", "a > b > c"): [[], [], [0.6, 0.7, 0.8]],
    ("jt", "c > b > a"): [[], [], [0.8, 0.7, 0.6]],
}


def two_order_results(without: str = "") -> Results:
    rows = [
        [setting, strategy, order, 0, t, trained, evaluation, "test", score, 10, 0.0]
        for (setting, order), matrix in R.items()
        if setting != without
        for strategy in [{"d1": "dgg", "jt": "joint"}[setting]]
        for tasks in [order.split(" > ")]
        for t, scores in enumerate(matrix)
        for trained in ["a + b + c" if setting == "jt" else tasks[t]]
        for evaluation, score in zip(tasks, scores, strict=False)
    ]
    table = pd.DataFrame(rows, columns=CELL_COLUMNS)
    return Results("small", "", table, (), ("faa",), "d1", {"joint": "jt"}, [], pd.DataFrame())


def test_a_task_is_followed_from_its_own_stage_to_the_end():
    table = per_task(two_order_results(), "test").set_index(["label", "task"])
    a, b, c = (table.loc[("dgg", task)] for task in "abc")
    assert (a["after_training"], a["final"]) == pytest.approx(((0.8 + 0.9) / 2, (0.5 + 0.9) / 2))
    assert a["forgetting"] == pytest.approx(0.9 - 0.5)  # from its best; in the other order it is last
    assert b["forgetting"] == pytest.approx(((0.6 - 0.4) + (0.5 - 0.5)) / 2)
    assert c["forgetting"] == pytest.approx(0.7 - 0.3)
    assert (a["forgetting_n"], b["forgetting_n"]) == (1, 2)


def test_joint_training_has_a_final_score_alone():
    joint = per_task(two_order_results(), "test").set_index(["label", "task"]).loc["joint"]
    assert joint["final"].to_dict() == pytest.approx({"a": 0.6, "b": 0.7, "c": 0.8})
    assert joint[["after_training", "forgetting"]].isna().all(axis=None)


def test_the_most_forgotten_task_is_the_one_that_falls_furthest():
    table = per_task(two_order_results(), "test")
    table.loc[(table["label"] == "dgg") & (table["task"] == "c"), "forgetting"] += 0.01
    assert most_forgotten(table, "dgg")["task"] == "c"
    assert most_forgotten(table, "joint") is None


def test_an_unfinished_run_is_left_out():
    complete = two_order_results("jt")
    cut = replace(complete, table=complete.table.iloc[:-1])
    assert set(block_scores(cut, "test")["order"]) == {"a > b > c"}


def test_the_figure_shows_the_same_numbers():
    made = figure.draw(two_order_results())
    assert made is not None
    pd.testing.assert_frame_equal(made[1], per_task(two_order_results(), "test"))
