"""Runs are read off a table in one pass, and as one would read them row by row."""

import numpy as np
import pandas as pd

from dgg_ray.analysis.matrices import walk
from dgg_ray.analysis.results import CELL, Results
from dgg_ray.analysis.run_table import runs, selected


def by_hand(cells: pd.DataFrame, order: str) -> np.ndarray:
    """R of one run, cell by cell."""
    tasks = order.split(" > ")
    R = np.full((len(tasks), len(tasks)), np.nan)
    for _, cell in cells.iterrows():
        if cell["eval_task"] in tasks and cell["stage"] >= 0:
            R[cell["stage"], tasks.index(cell["eval_task"])] = cell["score"]
    return R


def of(rows: list[list[object]]) -> Results:
    table = pd.DataFrame(rows, columns=CELL)
    costs = pd.DataFrame()
    return Results("mixed", "", table, (), ("faa",), None, {}, [], costs)


def mixed() -> Results:
    """Orders of two and of three tasks, a joint run, the untouched model, exams of other tasks."""
    rng, rows = np.random.default_rng(0), []
    for setting, order, seed in [("s2", "a > b > c", 1), ("s1", "c > a", 0), ("s1", "b > c > a", 0)]:
        tasks = order.split(" > ")
        for t, task in enumerate(tasks):
            for evaluation in ["a", "b", "c"][: rng.integers(1, 4)]:
                place = [setting, "dgg", order, seed, t, task, evaluation]
                rows.append([*place, "validation", rng.random(), 10 + t, 1.0])
    rows += [["j", "joint", "a > b", 0, 1, "a + b", e, "validation", rng.random(), 5, 1.0] for e in "ab"]
    rows += [["s1", "dgg", "c > a", 0, -1, "", "a", "validation", 0.25, 5, 0.0]]
    rows += [["s1", "dgg", "c > a", 0, 0, "c", "c", "test", 0.5, 5, 0.0]]
    return of([rows[i] for i in rng.permutation(len(rows))])


def test_every_run_is_what_its_cells_say():
    results = mixed()
    found = walk(results, "validation")
    assert [(run.setting, run.order) for run in found] == [
        ("j", "a > b"), ("s1", "b > c > a"), ("s1", "c > a"), ("s2", "a > b > c"),
    ]  # fmt: skip
    table = results.table[results.table["split"] == "validation"]
    for run in found:
        mine = table[(table["setting"] == run.setting) & (table["order"] == run.order)]
        np.testing.assert_array_equal(run.scores.R, by_hand(mine, run.order))
        sizes = mine[mine["stage"] >= 0].groupby("eval_task")["n"].last().reindex(list(run.tasks))
        assert np.isnan(run.scores.sizes).tolist() == sizes.isna().tolist()
        np.testing.assert_array_equal(
            run.scores.base, [0.25 if task == "a" else np.nan for task in run.tasks]
        )
    assert [run.together for run in found] == [True, False, False, False]


def test_a_split_without_cells_has_no_runs():
    assert walk(mixed(), "train") == []


def test_what_is_read_off_a_table_is_computed_once():
    results = mixed()
    assert runs(results, "validation") is runs(results, "validation")
    assert walk(results, "validation") is not walk(results, "test")
    assert selected(results).equals(runs(results, "validation"))
