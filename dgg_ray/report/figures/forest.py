"""Every method's score, and its difference to the chosen setting."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import compare, final_split, headline, own_label
from dgg_ray.report import figures

READING = (
    "Left: the mean score over blocks. Right: the setting in the first line minus this method on the "
    "same blocks; right of 0 the first is better. Bars are 95 % intervals, on the right for all methods at "
    "once (joint, the reference, apart); a method without a bar has fewer than three independent blocks."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Scores and paired differences in the headline metric; None where nothing was compared."""
    split, metric = final_split(results), headline(results)
    table = compare(results, split)
    data = table[(table["metric"] == metric) & table["score"].notna()].reset_index(drop=True)
    if len(data) < 2:
        return None
    figure, axes = figures.sheet(7.4, 1.0 + 0.36 * len(data), 1, 2, sharey=True)
    left, right = axes[0]
    name = metric.upper() if metric == "faa" else metric.replace("_", " ")
    figures.quiet(left, f"{name} on the {split} split, %", "")
    figures.quiet(right, f"{own_label(results)} minus this method, points", "")
    bars(left, data, "score", "low", "high")
    right.axvline(0, color=figures.INK, lw=1, zorder=1)
    bars(right, data, "difference", "at_once_low", "at_once_high")
    left.set_yticks(range(len(data)), list(data["label"]))
    left.set_ylim(len(data) - 0.5, -0.5)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        figures.percent(ax.xaxis)
    return figure, data


def bars(ax: Axes, data: pd.DataFrame, value: str, low: str, high: str) -> None:
    """A marker a method, with its interval where there is one."""
    for place, row in enumerate(data.to_dict("records")):
        if np.isnan(row[value]):
            continue
        colour, marker = figures.look(row["label"], place)
        if not np.isnan(row[low]):
            ax.hlines(place, row[low], row[high], color=colour, lw=2.4, alpha=0.75, zorder=3)
        size = 190 if marker == "*" else 56
        ax.scatter(row[value], place, color=colour, marker=marker, s=size, ec="white", lw=0.8, zorder=4)
