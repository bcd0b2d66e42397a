"""Score matrices are read from a table in one pass, with the same result as cell by cell."""

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import CELL_COLUMNS, Results
from dgg_ray.analysis.run_table import runs, scored_runs, selection_table


def matrix_cell_by_cell(cells: pd.DataFrame, order: str) -> np.ndarray:
    """Return R of one run."""
    tasks = order.split(" > ")
    R = np.full((len(tasks), len(tasks)), np.nan)
    for _, cell in cells.iterrows():
        if cell["eval_task"] in tasks and cell["stage"] >= 0:
            R[cell["stage"], tasks.index(cell["eval_task"])] = cell["score"]
    return R


def results_of(rows: list[list[object]]) -> Results:
    table = pd.DataFrame(rows, columns=CELL_COLUMNS)
    costs = pd.DataFrame()
    return Results("mixed", "", table, (), ("faa",), None, {}, [], costs)


def mixed_results() -> Results:
    """Return orders of two and three tasks, a joint run, the untouched model, evaluations of other tasks."""
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
    return results_of([rows[i] for i in rng.permutation(len(rows))])


def test_every_run_has_the_scores_of_its_cells():
    results = mixed_results()
    scored = scored_runs(results, "validation")
    assert [(run.setting, run.order) for run in scored] == [
        ("j", "a > b"), ("s1", "b > c > a"), ("s1", "c > a"), ("s2", "a > b > c"),
    ]  # fmt: skip
    table = results.table[results.table["split"] == "validation"]
    for run in scored:
        mine = table[(table["setting"] == run.setting) & (table["order"] == run.order)]
        np.testing.assert_array_equal(run.scores.R, matrix_cell_by_cell(mine, run.order))
        sizes = mine[mine["stage"] >= 0].groupby("eval_task")["n"].last().reindex(list(run.tasks))
        assert np.isnan(run.scores.sizes).tolist() == sizes.isna().tolist()
        np.testing.assert_array_equal(
            run.scores.base, [0.25 if task == "a" else np.nan for task in run.tasks]
        )
    assert [run.together for run in scored] == [True, False, False, False]


def test_a_split_without_cells_has_no_runs():
    assert scored_runs(mixed_results(), "train") == []


def test_tables_are_computed_once_for_each_results():
    results = mixed_results()
    assert runs(results, "validation") is runs(results, "validation")
    assert scored_runs(results, "validation") is not scored_runs(results, "test")
    assert selection_table(results).equals(runs(results, "validation"))
