"""Score of every method, and difference between the chosen setting and that method."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.comparison_tables import compare
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import chosen_label, final_split, headline_metric
from dgg_ray.report import figure_style as style

READING = (
    "Left: mean score over blocks. Right: the method in the first line minus this method, on the same "
    "blocks; right of 0 the first line is better. Bars are 95 % intervals. Those on the right hold for all "
    "methods at once, except joint training, the reference. A method without a bar has fewer than three "
    "independent blocks."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw scores and paired differences in the headline metric; None where nothing was compared."""
    split, metric = final_split(results), headline_metric(results)
    table = compare(results, split)
    data = table[(table["metric"] == metric) & table["score"].notna()].reset_index(drop=True)
    if len(data) < 2:
        return None
    figure, axes = style.new_figure(7.4, 1.0 + 0.36 * len(data), 1, 2, sharey=True)
    left, right = axes[0]
    name = metric.upper() if metric == "faa" else metric.replace("_", " ")
    style.style_axes(left, f"{name} on the {split} split, %", "")
    style.style_axes(right, f"{chosen_label(results)} minus this method, points", "")
    draw_bars(left, data, "score", "low", "high")
    right.axvline(0, color=style.INK, lw=1, zorder=1)
    draw_bars(right, data, "difference", "simultaneous_low", "simultaneous_high")
    left.set_yticks(range(len(data)), list(data["label"]))
    left.set_ylim(len(data) - 0.5, -0.5)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        style.percent_ticks(ax.xaxis)
    return figure, data


def draw_bars(ax: Axes, data: pd.DataFrame, value: str, low: str, high: str) -> None:
    """Draw a marker per method, with its interval where there is one."""
    for index, row in enumerate(data.to_dict("records")):
        if np.isnan(row[value]):
            continue
        colour, marker = style.colour_and_marker(row["label"], index)
        if not np.isnan(row[low]):
            ax.hlines(index, row[low], row[high], color=colour, lw=2.4, alpha=0.75, zorder=3)
        size = 190 if marker == "*" else 56
        ax.scatter(row[value], index, color=colour, marker=marker, s=size, ec="white", lw=0.8, zorder=4)
