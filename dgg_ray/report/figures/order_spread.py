"""Variation of the final scores with the order of the tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.order_sensitivity import task_disparity
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, final_table, settings_by_label
from dgg_ray.report import figure_style as style

READING = (
    "Left: each row is an order, the best one for the first method on top. Methods whose distance is the "
    "same in every row depend on the order alike. Right: difference between a task's best and worst order "
    "(OPD), and the OPD expected of as many further orders (tick) with its 95 % interval (bar)."
)
MAX_NAMED_ORDERS = 40  # with more, their names would overlap


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw FAA by order and method, and the disparity (OPD) of each task with its interval.

    None for fewer than 3 orders.
    """
    split = final_split(results)
    faa, opd = by_order(results, split), task_disparity(results, split)
    if faa["order"].nunique() < 3 or opd.empty:
        return None
    orders, tasks = list(dict.fromkeys(faa["order"])), list(dict.fromkeys(opd["task"]))
    height = max(2.6, 1.2 + max(0.27 * min(len(orders), MAX_NAMED_ORDERS), 0.55 * len(tasks)))
    figure, axes = style.new_figure(9.4, height, 1, 2, gridspec_kw={"width_ratios": [1.25, 1]})
    labels = [label for label in settings_by_label(results) if label in set(faa["label"])]
    draw_orders(axes[0, 0], faa, orders, labels)
    draw_disparity(axes[0, 1], opd, tasks, labels)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=5, fontsize=9.5, frameon=False)
    return figure, pd.concat([faa.assign(kind="faa"), opd.assign(kind="opd")], ignore_index=True)


def by_order(results: Results, split: str) -> pd.DataFrame:
    """Compute FAA, mean over seeds: a row per order and label, the best order of the first label first."""
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    table = final_table(results, split).dropna(subset="faa")
    table = table[table["setting"].isin(list(labels)) & ~table["together"].astype(bool)]
    faa = table.assign(label=table["setting"].map(labels)).groupby(["order", "label"])["faa"].mean().unstack()
    faa = faa[[label for label in labels.values() if label in faa]]
    if faa.shape[1]:
        faa = faa.sort_values(faa.columns[0], ascending=False, kind="stable")
    return faa.rename_axis(columns="label").stack().rename("faa").reset_index()


def draw_orders(ax: Axes, faa: pd.DataFrame, orders: list[str], labels: list[str]) -> None:
    """Draw a row per order with a marker per method, joined by a line."""
    style.style_axes(ax, "final score over all tasks (FAA), %", "")
    style.percent_ticks(ax.xaxis)
    wide = faa.pivot(index="order", columns="label", values="faa").loc[orders]
    y = np.arange(len(orders))
    ax.hlines(y, wide.min(axis=1), wide.max(axis=1), color=style.QUIET, lw=0.9, alpha=0.5, zorder=2)
    for index, label in enumerate(labels):
        colour, marker = style.colour_and_marker(label, index)
        size = 110 if marker == "*" else 42
        ax.scatter(
            wide[label], y, color=colour, marker=marker, s=size, ec="white", lw=0.6, label=label, zorder=4
        )
    ax.set_yticks(
        y if len(orders) <= MAX_NAMED_ORDERS else [], orders if len(orders) <= MAX_NAMED_ORDERS else []
    )
    ax.tick_params(axis="y", labelsize=8.5, length=0)
    ax.set_ylim(len(orders) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def draw_disparity(ax: Axes, opd: pd.DataFrame, tasks: list[str], labels: list[str]) -> None:
    """Draw a row per task, and for their mean and maximum; methods one below the other."""
    style.style_axes(ax, "best minus worst order, points", "")
    style.percent_ticks(ax.xaxis)
    for index, label in enumerate(labels):
        rows = opd[opd["label"] == label].set_index("task").reindex(tasks)
        y = np.arange(len(tasks)) + 0.6 * ((index + 0.5) / len(labels) - 0.5)
        colour, marker = style.colour_and_marker(label, index)
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.4, alpha=0.7, zorder=2)
        ax.scatter(rows["expected"], y, color=colour, marker="|", s=60, lw=1.6, zorder=3)
        size = 110 if marker == "*" else 42
        ax.scatter(rows["opd"], y, color=colour, marker=marker, s=size, ec="white", lw=0.6, zorder=4)
    ax.set_yticks(range(len(tasks)), tasks)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.axhline(len(tasks) - 2.5, color=style.QUIET, lw=0.8)
    ax.grid(axis="y", visible=False)
