"""Scores on the tasks that are only evaluated, after each stage of the sequence."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.outside_scores import scores_along
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, settings_by_label
from dgg_ray.report import figure_style as style

COLUMNS = 3  # panels in a row
READING = (
    "These tasks are never trained. A line that leaves the dotted line of the untouched model shows what the "
    "sequence did to the model's other abilities; it starts there, before the first stage. Bars are 95 % "
    "intervals over blocks. Joint training has one stage, which is drawn at the end."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw a panel per evaluate-only task: the chosen setting and its baselines after each stage.

    On the test split where there is one, with 95 % t intervals over blocks. None without such a task, or
    before one was evaluated.
    """
    data = scores_along(results, final_split(results))
    if data.empty:
        return None
    tasks = [task for task in results.evaluate_only if task in set(data["task"])]
    labels = [label for label in settings_by_label(results) if label in set(data["label"])]
    columns = min(len(tasks), COLUMNS)
    rows = -(-len(tasks) // columns)
    width = 3.0 + (4.6 if columns == 1 else 3.4 * columns)
    figure, axes = style.new_figure(width, 0.9 + 3.1 * rows, rows, columns, sharex=True)
    for ax, task in zip(axes.flat, tasks, strict=False):
        draw_task(ax, data[data["task"] == task], task, labels)
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=9.5, frameon=False)
    return figure, data


def draw_task(ax: Axes, data: pd.DataFrame, task: str, labels: list[str]) -> None:
    """Draw the methods' lines on one task, shifted so that none covers another."""
    style.style_axes(ax, "tasks trained", "score, %", task)
    style.percent_ticks(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    untouched = float(data["untouched"].iloc[0])
    ax.axhline(untouched, color=style.INK, lw=1.2, ls=":", label="untouched model", zorder=2)
    for index, label in enumerate(labels):
        rows = data[data["label"] == label]
        if rows.empty:
            continue
        colour, marker = style.colour_and_marker(label, index)
        x = rows["stage"].to_numpy() + 1 + 0.05 * (index - (len(labels) - 1) / 2)
        y, low, high = (rows[name].to_numpy() for name in ("score", "low", "high"))
        ax.vlines(x, low, high, color=colour, lw=1.3, alpha=0.7, zorder=3)
        if not rows["together"].all():  # a joint run has no stages in between
            x, y = np.insert(x, 0, 0.0), np.insert(y, 0, untouched)
        size = 11 if marker == "*" else 6
        ax.plot(
            x,
            y,
            color=colour,
            marker=marker,
            ms=size,
            mec="white",
            lw=1.8,
            label=label,
            zorder=4,
            markevery=slice(0 if rows["together"].all() else 1, None),
        )
