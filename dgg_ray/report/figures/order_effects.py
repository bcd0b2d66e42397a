"""Effects of a task's position, and of the task before it, on its final score."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dgg_ray.analysis.order_effects import effect_table
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, settings_by_label
from dgg_ray.report import figure_style as style

READING = (
    "Right of 0, the effect raises the task's own score. Top row: one position later in the order. Rows "
    "below: coming right after the named task rather than after the average one. Bars are 95 % intervals of "
    "a mixed linear model, over clusters of orders that share a first stage (its task and seed). Effects "
    "without an interval are left out."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw position and carry-over effects with their intervals; None where no effect has one."""
    data = effect_table(results, final_split(results))
    if data["low"].isna().all():
        return None
    drawn = data.assign(estimate=data["estimate"].where(data["low"].notna()))
    names = ["one position later", *(f"right after {task}" for task in dict.fromkeys(data["task"]) if task)]
    labels = [label for label in settings_by_label(results) if label in set(data["label"])]
    figure, axes = style.new_figure(7.6, 1.1 + 0.16 * len(names) * (len(labels) + 1.2))
    ax = axes[0, 0]
    style.style_axes(ax, "change of a task's final score, points", "")
    style.percent_ticks(ax.xaxis)
    ax.axvline(0, color=style.INK, lw=1, zorder=1)
    for index, label in enumerate(labels):
        rows = drawn[drawn["label"] == label]
        y = np.arange(len(names)) + 0.6 * ((index + 0.5) / len(labels) - 0.5)
        colour, marker = style.colour_and_marker(label, index)
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.6, alpha=0.7, zorder=3)
        size = 120 if marker == "*" else 46
        ax.scatter(
            rows["estimate"],
            y,
            color=colour,
            marker=marker,
            s=size,
            ec="white",
            lw=0.6,
            label=label,
            zorder=4,
        )
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.axhline(0.5, color=style.QUIET, lw=0.8)
    ax.grid(axis="y", visible=False)
    style.legend_outside(ax)
    return figure, data
