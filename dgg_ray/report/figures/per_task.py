"""Every task's score at the end, and how much of it was forgotten, by method."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.per_task import per_task
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import compared, final_split
from dgg_ray.report import figures

READING = (
    "Left: the task's score after the whole sequence. Right: the fall from its best score since it was "
    "learned; a task that is last in an order has none there. Bars are 95 % intervals, where three or more "
    "blocks are independent."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """A row per task with a marker per method; None where no run is finished."""
    data = per_task(results, final_split(results))
    if data.empty:
        return None
    tasks, labels = sorted(data["task"].unique()), [x for x in compared(results) if x in set(data["label"])]
    row = 0.18 + 0.115 * len(labels)
    figure, axes = figures.sheet(7.4, 1.2 + row * len(tasks), 1, 2, sharey=True)
    left, right = axes[0]
    figures.quiet(left, "final score, %", "")
    figures.quiet(right, "forgotten, points", "")
    right.axvline(0, color=figures.INK, lw=1, zorder=1)
    for place, label in enumerate(labels):
        rows = data[data["label"] == label].set_index("task").reindex(tasks)
        y = np.arange(len(tasks)) + 0.7 * ((place + 0.5) / len(labels) - 0.5)
        marks(left, rows, "final", y, label, place)
        marks(right, rows, "forgotten", y, label, place)
    left.set_xlim(0, 1)
    left.set_yticks(range(len(tasks)), tasks)
    left.set_ylim(len(tasks) - 0.5, -0.5)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        for between in np.arange(len(tasks) - 1) + 0.5:
            ax.axhline(between, color=figures.FAINT, lw=0.8)
        figures.percent(ax.xaxis)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, fontsize=9.5, frameon=False)
    return figure, data


def marks(ax: Axes, rows: pd.DataFrame, part: str, y: np.ndarray, label: str, place: int) -> None:
    """One method's markers, task by task, with their intervals."""
    colour, marker = figures.look(label, place)
    ax.hlines(y, rows[f"{part}_low"], rows[f"{part}_high"], color=colour, lw=1.6, alpha=0.6, zorder=3)
    size = 110 if marker == "*" else 36
    ax.scatter(rows[part], y, color=colour, marker=marker, s=size, ec="white", lw=0.6, label=label, zorder=4)
