"""Scores on the tasks that are only evaluated: after each stage, and against the untouched model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray.analysis.comparison_tables import interval_over_blocks
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import BLOCK, cached, final_runs, settings_by_label

GROUP = ["label", "together", "task", "stage"]
ESTIMATES = ("", "_low", "_high")


@cached
def scores_outside(results: Results, split: str) -> pd.DataFrame:
    """Return a row for each method, finished stage of a final run and evaluate-only task.

    label, together, order, seed, task: of the run and the task.
    stage: 0-based; a joint run has its last alone. last: whether it is the run's last.
    score, untouched: after the stage, and of the base model, nan where that was not evaluated.
    """
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    rows = []
    for run in final_runs(results, split):
        if run.setting not in labels:
            continue
        for t, k in np.argwhere(~np.isnan(run.scores.outside)).tolist():
            of_run = [labels[run.setting], run.together, run.order, run.seed]
            scores = [run.scores.outside[t, k], run.scores.outside_base[k]]
            rows.append([*of_run, results.evaluate_only[k], t, t == len(run.tasks) - 1, *scores])
    names = ["label", "together", *BLOCK, "task", "stage", "last", "score", "untouched"]
    return pd.DataFrame(rows, columns=names)


@cached
def scores_along(results: Results, split: str) -> pd.DataFrame:
    """Return a row for each method, task and stage: mean over blocks of the score, with its interval."""
    rows = [
        [*key, group["untouched"].iloc[0], *interval_over_blocks(group, "score")[:4]]
        for key, group in scores_outside(results, split).groupby(GROUP, sort=True)
    ]
    return pd.DataFrame(rows, columns=[*GROUP, "untouched", "score", "low", "high", "clusters"])


@cached
def changes_outside(results: Results, split: str) -> pd.DataFrame:
    """Return a row for each method, in the order compared, and evaluate-only task, in the study's order.

    untouched: the base model's score, which is that of every block.
    final, change: score after the last stage, and its change from the untouched model: means over blocks with
        95 % intervals (`interval_over_blocks`). The mean of the changes over the tasks is `retention`.
    n, final_values, change_values: independent clusters of blocks behind both, and their means.

    Empty, without columns, in a study without such tasks.
    """
    if not results.evaluate_only:
        return pd.DataFrame()
    table = scores_outside(results, split)
    table = table[table["last"]].rename(columns={"score": "final"})
    table["change"] = table["final"] - table["untouched"]
    rows = []
    for label in settings_by_label(results):
        for task in results.evaluate_only:
            group = table[(table["label"] == label) & (table["task"] == task)]
            if group.empty:
                continue
            final = interval_over_blocks(group, "final")
            change = interval_over_blocks(group, "change", (-1.0, 1.0))
            row = [label, task, group["untouched"].iloc[0], *final[:3], *change[:3]]
            rows.append([*row, final.n, final.values, change.values])
    estimates = [f"{name}{suffix}" for name in ("final", "change") for suffix in ESTIMATES]
    columns = ["label", "task", "untouched", *estimates, "n", "final_values", "change_values"]
    return pd.DataFrame(rows, columns=columns)
