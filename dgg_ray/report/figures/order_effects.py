"""What a task's place, and the task before it, do to its final score."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dgg_ray.analysis.order_effects import effects
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import compared, final_split
from dgg_ray.report import figures

READING = (
    "Right of 0 helps the task itself. On top, each place later in the order; below, coming right after the "
    "named task rather than after the average one. Bars are 95 % intervals of a mixed linear model, over "
    "clusters of orders that share a first stage (its task and seed); effects without an interval are left "
    "out."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Position and carry-over effects with their intervals; None where no effect has one."""
    data = effects(results, final_split(results))
    if data["low"].isna().all():
        return None
    drawn = data.assign(estimate=data["estimate"].where(data["low"].notna()))
    names = ["one place later", *(f"right after {task}" for task in dict.fromkeys(data["task"]) if task)]
    labels = [label for label in compared(results) if label in set(data["label"])]
    figure, axes = figures.sheet(7.6, 1.1 + 0.16 * len(names) * (len(labels) + 1.2))
    ax = axes[0, 0]
    figures.quiet(ax, "change of a task's final score, points", "")
    figures.percent(ax.xaxis)
    ax.axvline(0, color=figures.INK, lw=1, zorder=1)
    for place, label in enumerate(labels):
        rows = drawn[drawn["label"] == label]
        y = np.arange(len(names)) + 0.6 * ((place + 0.5) / len(labels) - 0.5)
        colour, marker = figures.look(label, place)
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
    ax.axhline(0.5, color=figures.QUIET, lw=0.8)
    ax.grid(axis="y", visible=False)
    ax.legend(
        fontsize=9.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=figures.INK
    )
    return figure, data
