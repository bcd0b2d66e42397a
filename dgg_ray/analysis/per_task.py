"""Scores task by task: right after training, at the end, and what was forgotten in between."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd

from dgg_ray.analysis.comparison_tables import interval_over_blocks
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import cached, final_runs, settings_by_label

MEASURES = {  # column → range of its values; a task may end higher than it was, so forgetting can be negative
    "after_training": (0.0, 1.0),
    "final": (0.0, 1.0),
    "forgetting": (-1.0, 1.0),
}


@cached
def block_scores(results: Results, split: str) -> pd.DataFrame:
    """Return a row for each method, finished block and task: label, order, seed, together, task, MEASURES.

    after_training: R[i, i], the learning accuracy.
    final: R[T-1, i].
    forgetting: the best score from stage i to the last stage but one, minus the final one
        (metrics/forgetting). It is nan for the task that is last in the order.

    A joint run has a final score alone; the others are nan.
    """
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    rows = []
    for run in final_runs(results, split):
        R = run.scores.R
        if run.setting not in labels or np.isnan(R[-1]).any():
            continue
        for i, task in enumerate(run.tasks):
            earlier = R[i:-1, i]
            best = np.nan if run.together or not len(earlier) else earlier.max()
            after_training = np.nan if run.together else R[i, i]
            block = [labels[run.setting], run.order, run.seed, run.together, task]
            rows.append([*block, after_training, R[-1, i], best - R[-1, i]])
    return pd.DataFrame(rows, columns=["label", "order", "seed", "together", "task", *MEASURES])


@cached
def per_task(results: Results, split: str) -> pd.DataFrame:
    """Return a row for each method, in the order compared, and task, sorted by name: MEASURES with intervals.

    MEASURE, MEASURE_low, MEASURE_high: mean over blocks, with the 95 % interval of the comparison
        (`interval_over_blocks`).
    MEASURE_n, MEASURE_values: independent clusters of blocks behind it, and their means.
    """
    rows = []
    table = block_scores(results, split)
    for label in settings_by_label(results):
        for task, group in table[table["label"] == label].groupby("task", sort=True):
            row = {"label": label, "task": task}
            for measure, bounds in MEASURES.items():
                interval = interval_over_blocks(group, measure, bounds)
                row |= {
                    measure: interval.mean,
                    f"{measure}_low": interval.low,
                    f"{measure}_high": interval.high,
                    f"{measure}_n": interval.n,
                    f"{measure}_values": interval.values,
                }
            rows.append(row)
    suffixes = ("", "_low", "_high", "_n", "_values")
    columns = [f"{measure}{suffix}" for measure in MEASURES for suffix in suffixes]
    return pd.DataFrame(rows, columns=["label", "task", *columns])


def most_forgotten(table: pd.DataFrame, label: str) -> pd.Series | None:
    """Return the row of the task that a method forgets most; None where nothing can be forgotten."""
    own_rows = table[table["label"] == label].dropna(subset="forgetting")
    return None if own_rows.empty else own_rows.loc[cast(Any, own_rows["forgetting"].idxmax())]
