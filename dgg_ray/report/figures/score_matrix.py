"""The score matrix R: every task's score after every stage."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import Run, compared, final_runs, final_split
from dgg_ray.report import figures

READING = (
    "Read down a column to see what becomes of one task: it is learned on the diagonal, the last row is "
    "the end, and what is above the diagonal was evaluated before its turn. Where an order has several "
    "seeds, the lowest and the highest stand below the mean."
)
PANELS, ORDERS, ABREAST = 12, 6, 3  # most that are drawn; the CSV has all


class Panel(NamedTuple):
    """A method on one order. R, lowest, highest: over its seeds, in the order of `tasks`."""

    label: str
    order: str
    tasks: tuple[str, ...]
    R: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    seeds: int


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Heat maps of R, one for each order: of every method, or of the chosen setting alone.

    On the test split where there is one. Cells that were not evaluated are left white; the numbers are of
    all methods on all orders. None where nothing was evaluated.
    """
    every = panels(results)
    if not every:
        return None
    labels = [label for label in compared(results) if any(panel.label == label for panel in every)]
    orders = list(dict.fromkeys(panel.order for panel in every))
    if len(labels) * len(orders) > PANELS or len(orders) > ABREAST:
        labels, orders = labels[:1], orders[:ORDERS]
    drawn = [panel for panel in every if panel.label in labels and panel.order in orders]  # rows of orders
    columns = len(orders) if len(drawn) > len(orders) > 1 else min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    side = max(2.7, 0.62 * max(len(panel.tasks) for panel in drawn) + 0.6)
    figure, axes = figures.sheet(side * columns + 1.2, (side * 0.86 + 0.5) * rows, rows, columns)
    low = min(float(np.nanmin(panel.R)) for panel in drawn)
    high = max(float(np.nanmax(panel.R)) for panel in drawn)
    for ax in axes.flat:
        ax.set_axis_off()
    shade = None
    for place, panel in enumerate(drawn):
        title = panel.label if len(orders) == 1 else f"{panel.label}, order {orders.index(panel.order) + 1}"
        shade = draw_matrix(axes.flat[place], panel, low, max(high, low + 1e-9), title)
    assert shade is not None  # there is a panel
    bar = figure.colorbar(shade, ax=axes, shrink=min(0.8, 1.7 / rows), aspect=22, pad=0.02)
    bar.set_label("score, %", fontsize=10, color=figures.INK)
    figures.percent(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=9, colors=figures.QUIET, labelcolor=figures.INK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure, pd.DataFrame([row for panel in every for row in cells(panel)])


def panels(results: Results) -> list[Panel]:
    """Every method on every order, method by method."""
    labels = {setting: label for label, setting in compared(results).items()}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in final_runs(results, final_split(results)):
        if run.setting in labels and not np.isnan(run.scores.R).all():
            groups.setdefault((run.setting, run.order), []).append(run)
    return [
        Panel(labels[setting], order, members[0].tasks, *over_seeds(members), len(members))
        for setting in labels
        for (own, order), members in sorted(groups.items())
        if own == setting
    ]


def over_seeds(runs: list[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, lowest, highest) of R, each (T, T); nan where no run was evaluated."""
    stack = np.array([run.scores.R for run in runs])
    seen = ~np.isnan(stack)
    none = ~seen.any(axis=0)
    mean = np.where(seen, stack, 0).sum(axis=0) / np.where(none, np.nan, seen.sum(axis=0))
    lowest, highest = np.where(seen, stack, np.inf).min(axis=0), np.where(seen, stack, -np.inf).max(axis=0)
    return mean, np.where(none, np.nan, lowest), np.where(none, np.nan, highest)


def cells(panel: Panel) -> list[dict[str, object]]:
    """The panel's numbers, one row per evaluated cell; stages count from 0."""
    T = len(panel.tasks)
    return [
        {
            "label": panel.label,
            "order": panel.order,
            "stage": t,
            "eval_task": panel.tasks[i],
            "score": panel.R[t, i],
            "lowest": panel.lowest[t, i],
            "highest": panel.highest[t, i],
            "seeds": panel.seeds,
        }
        for t in range(T)
        for i in range(T)
        if not np.isnan(panel.R[t, i])
    ]


def draw_matrix(ax: Axes, panel: Panel, low: float, high: float, title: str):
    """One heat map with its values printed in the cells, black or white by what stands out."""
    ax.set_axis_on()
    shade = ax.imshow(panel.R, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    T = len(panel.tasks)
    names = [task if len(task) <= 12 else f"{task[:11]}…" for task in panel.tasks]
    long = sum(map(len, names)) > 24
    ax.set_xticks(
        range(T),
        names,
        rotation=35 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor" if long else "default",
    )
    together = T > 1 and np.isnan(panel.R[:-1]).all()
    stages = ["all at once"] if together else [f"after {name}" for name in names]
    ax.set_yticks([T - 1] if together else range(T), stages)
    ax.tick_params(labelsize=8.5, length=0, labelcolor=figures.INK)
    ax.set_title(title, fontsize=11, color=figures.INK, loc="left", fontweight="bold")
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(T + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(T + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=2)
    ax.tick_params(which="minor", length=0)
    for t, i in zip(*np.nonzero(~np.isnan(panel.R)), strict=True):
        write_cell(ax, panel, int(t), int(i), (panel.R[t, i] - low) / (high - low))
    return shade


def write_cell(ax: Axes, panel: Panel, t: int, i: int, level: float) -> None:
    """The mean, and below it the lowest and the highest seed; level: of the colour, in [0, 1]."""
    colour, small = figures.readable(colormaps["cividis"](level)), len(panel.tasks) > 7
    spread = panel.seeds > 1
    look = {"ha": "center", "color": colour}
    size = 7.5 if small else 9
    ax.text(i, t, f"{100 * panel.R[t, i]:.1f}", va="bottom" if spread else "center", fontsize=size, **look)
    if spread:
        between = f"{100 * panel.lowest[t, i]:.0f}–{100 * panel.highest[t, i]:.0f}"
        ax.text(i, t + 0.06, between, va="top", fontsize=size - 1.5, **look)
