"""How far the final scores move with the order of the tasks."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.disparity import disparity
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import compared, final_split, final_table
from dgg_ray.report import figures

READING = (
    "Left, one row is one order, the best for the first strategy on top: strategies that keep their distance "
    "row by row depend on the order alike. Right, how far apart a task's best and worst order are (OPD), "
    "beside the OPD to be expected of as many further orders (tick) with its 95 % interval (bar)."
)
NAMED = 40  # orders, above which their names would cover each other


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """FAA of each order and strategy, paired; and the disparity (OPD) of each task with its interval.

    None for fewer than 3 orders.
    """
    split = final_split(results)
    faa, opd = by_order(results, split), disparity(results, split)
    if faa["order"].nunique() < 3 or opd.empty:
        return None
    orders, tasks = list(dict.fromkeys(faa["order"])), list(dict.fromkeys(opd["task"]))
    height = max(2.6, 1.2 + max(0.27 * min(len(orders), NAMED), 0.55 * len(tasks)))
    figure, axes = figures.sheet(9.4, height, 1, 2, gridspec_kw={"width_ratios": [1.25, 1]})
    labels = [label for label in compared(results) if label in set(faa["label"])]
    draw_orders(axes[0, 0], faa, orders, labels)
    draw_disparity(axes[0, 1], opd, tasks, labels)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=5, fontsize=9.5, frameon=False)
    return figure, pd.concat([faa.assign(kind="faa"), opd.assign(kind="opd")], ignore_index=True)


def by_order(results: Results, split: str) -> pd.DataFrame:
    """FAA, mean over seeds: one row per order and label, the best order of the first label first."""
    labels = {setting: label for label, setting in compared(results).items()}
    table = final_table(results, split).dropna(subset="faa")
    table = table[table["setting"].isin(list(labels)) & ~table["together"].astype(bool)]
    faa = table.assign(label=table["setting"].map(labels)).groupby(["order", "label"])["faa"].mean().unstack()
    faa = faa[[label for label in labels.values() if label in faa]]
    if faa.shape[1]:
        faa = faa.sort_values(faa.columns[0], ascending=False, kind="stable")
    return faa.rename_axis(columns="label").stack().rename("faa").reset_index()


def draw_orders(ax: Axes, faa: pd.DataFrame, orders: list[str], labels: list[str]) -> None:
    """A row per order with a marker per strategy, joined by a line."""
    figures.quiet(ax, "final score over all tasks (FAA), %", "")
    figures.percent(ax.xaxis)
    wide = faa.pivot(index="order", columns="label", values="faa").loc[orders]
    y = np.arange(len(orders))
    ax.hlines(y, wide.min(axis=1), wide.max(axis=1), color=figures.QUIET, lw=0.9, alpha=0.5, zorder=2)
    for place, label in enumerate(labels):
        colour, marker = figures.look(label, place)
        size = 110 if marker == "*" else 42
        ax.scatter(
            wide[label], y, color=colour, marker=marker, s=size, ec="white", lw=0.6, label=label, zorder=4
        )
    ax.set_yticks(y if len(orders) <= NAMED else [], orders if len(orders) <= NAMED else [])
    ax.tick_params(axis="y", labelsize=8.5, length=0)
    ax.set_ylim(len(orders) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def draw_disparity(ax: Axes, opd: pd.DataFrame, tasks: list[str], labels: list[str]) -> None:
    """A row per task, and for their mean and maximum; strategies one below the other."""
    figures.quiet(ax, "best minus worst order, points", "")
    figures.percent(ax.xaxis)
    for place, label in enumerate(labels):
        rows = opd[opd["label"] == label].set_index("task").reindex(tasks)
        y = np.arange(len(tasks)) + 0.6 * ((place + 0.5) / len(labels) - 0.5)
        colour, marker = figures.look(label, place)
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.4, alpha=0.7, zorder=2)
        ax.scatter(rows["expected"], y, color=colour, marker="|", s=60, lw=1.6, zorder=3)
        size = 110 if marker == "*" else 42
        ax.scatter(rows["opd"], y, color=colour, marker=marker, s=size, ec="white", lw=0.6, zorder=4)
    ax.set_yticks(range(len(tasks)), tasks)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.axhline(len(tasks) - 2.5, color=figures.QUIET, lw=0.8)
    ax.grid(axis="y", visible=False)
