"""Task by task: the score right after learning it, the score at the end, and what was forgotten between."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import compared, final_runs, once, over_blocks

RANGES = {"learned": (0.0, 1.0), "final": (0.0, 1.0), "forgotten": (-1.0, 1.0)}  # a task may end higher
PARTS = (*RANGES,)


@once
def blocks(results: Results, split: str) -> pd.DataFrame:
    """A row for each compared method, finished block and task: label, order, seed, together, task, PARTS.

    learned: R[i, i], the learning accuracy; final: R[T-1, i]; forgotten: the best score from there to the
    last stage but one, minus the final one, as in metrics/forgetting. A joint run has a final score alone,
    and the task that is last has no time to be forgotten: nan.
    """
    labels = {setting: label for label, setting in compared(results).items()}
    rows = []
    for run in final_runs(results, split):
        R = run.scores.R
        if run.setting not in labels or np.isnan(R[-1]).any():
            continue
        for i, task in enumerate(run.tasks):
            before = R[i:-1, i]
            best = before.max() if len(before) and not run.together else np.nan
            learned = np.nan if run.together else R[i, i]
            about = [labels[run.setting], run.order, run.seed, run.together, task]
            rows.append([*about, learned, R[-1, i], best - R[-1, i]])
    return pd.DataFrame(rows, columns=["label", "order", "seed", "together", "task", *PARTS])


@once
def per_task(results: Results, split: str) -> pd.DataFrame:
    """A row for each method, in the order compared, and task, by name: PARTS, each with its interval.

    Intervals as in the comparison (`over_blocks`); NAME_n, NAME_values: independent blocks behind it, and
    their means.
    """
    rows = []
    table = blocks(results, split)
    for label in compared(results):
        for task, group in table[table["label"] == label].groupby("task", sort=True):
            row = {"label": label, "task": task}
            for part in PARTS:
                found = over_blocks(group, part, RANGES[part])
                row |= {part: found.mean, f"{part}_low": found.low, f"{part}_high": found.high}
                row |= {f"{part}_n": found.n, f"{part}_values": found.values}
            rows.append(row)
    columns = [f"{part}{end}" for part in PARTS for end in ("", "_low", "_high", "_n", "_values")]
    return pd.DataFrame(rows, columns=["label", "task", *columns])


def most_forgotten(table: pd.DataFrame, label: str) -> pd.Series | None:
    """The row of the task that this method forgets most; None where nothing can be forgotten."""
    mine = table[table["label"] == label].dropna(subset="forgotten")
    return None if mine.empty else mine.loc[mine["forgotten"].idxmax()]
