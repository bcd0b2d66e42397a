"""Final score and forgetting of every task, by method."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.per_task import per_task
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, settings_by_label
from dgg_ray.report import figure_style as style

READING = (
    "Left: the task's score after the whole sequence. Right: its fall from its best score since it was "
    "trained, over orders in which it is not last. Bars are 95 % intervals, where three or more blocks are "
    "independent."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw a row per task with a marker per method; None where no run is finished."""
    data = per_task(results, final_split(results))
    if data.empty:
        return None
    tasks, labels = (
        sorted(data["task"].unique()),
        [x for x in settings_by_label(results) if x in set(data["label"])],
    )
    row_height = 0.18 + 0.115 * len(labels)
    figure, axes = style.new_figure(7.4, 1.2 + row_height * len(tasks), 1, 2, sharey=True)
    left, right = axes[0]
    style.style_axes(left, "final score, %", "")
    style.style_axes(right, "forgotten, points", "")
    right.axvline(0, color=style.INK, lw=1, zorder=1)
    for index, label in enumerate(labels):
        rows = data[data["label"] == label].set_index("task").reindex(tasks)
        y = np.arange(len(tasks)) + 0.7 * ((index + 0.5) / len(labels) - 0.5)
        draw_markers(left, rows, "final", y, label, index)
        draw_markers(right, rows, "forgetting", y, label, index)
    left.set_xlim(0, 1)
    left.set_yticks(range(len(tasks)), tasks)
    left.set_ylim(len(tasks) - 0.5, -0.5)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        for boundary in np.arange(len(tasks) - 1) + 0.5:
            ax.axhline(boundary, color=style.FAINT, lw=0.8)
        style.percent_ticks(ax.xaxis)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, fontsize=9.5, frameon=False)
    return figure, data


def draw_markers(ax: Axes, rows: pd.DataFrame, part: str, y: np.ndarray, label: str, index: int) -> None:
    """Draw a method's markers, task by task, with their intervals."""
    colour, marker = style.colour_and_marker(label, index)
    ax.hlines(y, rows[f"{part}_low"], rows[f"{part}_high"], color=colour, lw=1.6, alpha=0.6, zorder=3)
    size = 110 if marker == "*" else 36
    ax.scatter(rows[part], y, color=colour, marker=marker, s=size, ec="white", lw=0.6, label=label, zorder=4)
