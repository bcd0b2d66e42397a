"""The tasks that are only evaluated, on the page: what the model keeps of its other abilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dgg_ray.analysis.outside_scores import changes_outside
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import settings_by_label
from dgg_ray.core.phrases import join_names
from dgg_ray.report.page_elements import Table, TableRow
from dgg_ray.stats.formats import (
    UNLABELLED,
    UNLABELLED_SIGNED,
    EstimateStyle,
    format_estimate,
    format_percent,
    format_signed,
)
from dgg_ray.stats.intervals import Interval


def outside_sentences(results: Results, split: str) -> list[str]:
    """Say how far the chosen setting ends from the untouched model on each task that is only evaluated."""
    changes = changes_outside(results, split)
    if changes.empty:
        return []
    label = next(iter(settings_by_label(results)))
    style = EstimateStyle(format_signed, unit=" points")
    named = [
        f"{row['task']} {format_estimate(change_interval(row), style)}"
        for row in changes[changes["label"] == label].dropna(subset="change").to_dict("records")
    ]
    if not named:
        return []
    start = f"Change of {label} from the untouched model on tasks that are never trained"
    return [f"{start}: {join_names(named)}."]


def outside_table(results: Results, split: str) -> Table | None:
    """Show a row per method: the final score on each task that is only evaluated, and its change."""
    changes = changes_outside(results, split)
    if changes.empty:
        return None
    tasks = list(dict.fromkeys(changes["task"]))
    by_method = {(row["label"], row["task"]): row for row in changes.to_dict("records")}
    untouched = [format_percent(changes.loc[changes["task"] == task, "untouched"].iloc[0]) for task in tasks]
    rows = [TableRow(["untouched model", *untouched])]
    for label in dict.fromkeys(changes["label"]):
        cells = []
        for task in tasks:
            row = by_method[label, task]
            final = Interval(row["final"], row["final_low"], row["final_high"], row["n"], row["final_values"])
            change = format_estimate(change_interval(row), UNLABELLED_SIGNED)
            cells.append((format_estimate(final, UNLABELLED), "" if np.isnan(row["change"]) else change))
        rows.append(TableRow([str(label), *cells]))
    caption = (
        f"{split.capitalize()} split, in percent: score after the last stage (95 % CI) on the tasks that are "
        "only evaluated. The second line of a cell is the change from the untouched model, in points. "
        "Retention is the mean of these changes."
    )
    return Table(caption, ["method", *tasks], rows, "evaluate_only.csv")


def change_interval(row: Mapping[Any, Any]) -> Interval:
    """Return the change in a row of `changes_outside` with its interval."""
    return Interval(row["change"], row["change_low"], row["change_high"], row["n"], row["change_values"])
