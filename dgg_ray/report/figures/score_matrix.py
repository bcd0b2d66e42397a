"""Score matrix R: score of every task after every stage."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import ScoredRun, final_runs, final_split, settings_by_label
from dgg_ray.report import figure_style as style

READING = (
    "A column follows one task: it is trained on the diagonal, and the last row is its final score. Cells "
    "above the diagonal were evaluated before the task was trained. If an order has several seeds, the "
    "lowest and the highest score are below the mean."
)
MAX_PANELS, MAX_ORDERS, MAX_COLUMNS = 12, 6, 3  # that are drawn; the CSV file has all


class Panel(NamedTuple):
    """The scores of a method on one order. R, lowest, highest: mean and extremes over seeds, by `tasks`."""

    label: str
    order: str
    tasks: tuple[str, ...]
    R: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    seeds: int


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw heat maps of R, one for each order: of every method, or of the chosen setting alone.

    The scores are on the test split where there is one. Cells that were not evaluated stay white. The numbers
    are of all methods on all orders. None where nothing was evaluated.
    """
    panels = build_panels(results)
    if not panels:
        return None
    shown, orders = select_panels(results, panels)
    columns = len(orders) if len(shown) > len(orders) > 1 else min(2, len(shown))
    rows = -(-len(shown) // columns)
    side = max(2.7, 0.62 * max(len(panel.tasks) for panel in shown) + 0.6)
    figure, axes = style.new_figure(side * columns + 1.2, (side * 0.86 + 0.5) * rows, rows, columns)
    low = min(float(np.nanmin(panel.R)) for panel in shown)
    high = max(float(np.nanmax(panel.R)) for panel in shown)
    for ax in axes.flat:
        ax.set_axis_off()
    image = None
    for ax, panel in zip(axes.flat, shown, strict=False):
        title = panel.label if len(orders) == 1 else f"{panel.label}, order {orders.index(panel.order) + 1}"
        image = draw_matrix(ax, panel, low, max(high, low + 1e-9), title)
    assert image is not None  # there is a panel
    bar = figure.colorbar(image, ax=axes, shrink=min(0.8, 1.7 / rows), aspect=22, pad=0.02)
    bar.set_label("score, %", fontsize=10, color=style.INK)
    style.percent_ticks(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=9, colors=style.QUIET, labelcolor=style.INK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure, pd.DataFrame([row for panel in panels for row in panel_rows(panel)])


def select_panels(results: Results, panels: list[Panel]) -> tuple[list[Panel], list[str]]:
    """Return the panels to draw, order by order for each method, and their orders.

    If there are too many, only the chosen setting is drawn, on the first orders.
    """
    labels = [label for label in settings_by_label(results) if any(panel.label == label for panel in panels)]
    orders = list(dict.fromkeys(panel.order for panel in panels))
    if len(labels) * len(orders) > MAX_PANELS or len(orders) > MAX_COLUMNS:
        labels, orders = labels[:1], orders[:MAX_ORDERS]
    return [panel for panel in panels if panel.label in labels and panel.order in orders], orders


def build_panels(results: Results) -> list[Panel]:
    """Build a panel for every method on every order, method by method."""
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    groups: dict[tuple[str, str], list[ScoredRun]] = {}
    for run in final_runs(results, final_split(results)):
        if run.setting in labels and not np.isnan(run.scores.R).all():
            groups.setdefault((run.setting, run.order), []).append(run)
    return [
        Panel(labels[setting], order, members[0].tasks, *over_seeds(members), len(members))
        for setting in labels
        for (group_setting, order), members in sorted(groups.items())
        if group_setting == setting
    ]


def over_seeds(runs: list[ScoredRun]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean, lowest and highest R, each (T, T); nan where no run was evaluated."""
    stack = np.array([run.scores.R for run in runs])
    evaluated = ~np.isnan(stack)
    missing = ~evaluated.any(axis=0)
    mean = np.where(evaluated, stack, 0).sum(axis=0) / np.where(missing, np.nan, evaluated.sum(axis=0))
    lowest = np.where(evaluated, stack, np.inf).min(axis=0)
    highest = np.where(evaluated, stack, -np.inf).max(axis=0)
    return mean, np.where(missing, np.nan, lowest), np.where(missing, np.nan, highest)


def panel_rows(panel: Panel) -> list[dict[str, object]]:
    """List the numbers of a panel, a row per evaluated cell; stages count from 0."""
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
    """Draw a heat map with its values in the cells, in black or white, whichever has more contrast."""
    ax.set_axis_on()
    image = ax.imshow(panel.R, cmap="cividis", vmin=low, vmax=high, aspect="auto")
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
    is_joint = T > 1 and np.isnan(panel.R[:-1]).all()
    stages = ["all at once"] if is_joint else [f"after {name}" for name in names]
    ax.set_yticks([T - 1] if is_joint else range(T), stages)
    ax.tick_params(labelsize=8.5, length=0, labelcolor=style.INK)
    ax.set_title(title, fontsize=11, color=style.INK, loc="left", fontweight="bold")
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(T + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(T + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=2)
    ax.tick_params(which="minor", length=0)
    for t, i in zip(*np.nonzero(~np.isnan(panel.R)), strict=True):
        write_cell(ax, panel, int(t), int(i), float((panel.R[t, i] - low) / (high - low)))
    return image


def write_cell(ax: Axes, panel: Panel, t: int, i: int, level: float) -> None:
    """Write the mean, and below it the lowest and highest over seeds; level: of the colour, in [0, 1]."""
    has_seeds = panel.seeds > 1
    size = 7.5 if len(panel.tasks) > 7 else 9
    text: dict[str, Any] = {"ha": "center", "color": style.text_colour(colormaps["cividis"](level))}
    vertical = "bottom" if has_seeds else "center"
    ax.text(i, t, f"{100 * panel.R[t, i]:.1f}", va=vertical, fontsize=size, **text)
    if has_seeds:
        extremes = f"{100 * panel.lowest[t, i]:.0f}–{100 * panel.highest[t, i]:.0f}"
        ax.text(i, t + 0.06, extremes, va="top", fontsize=size - 1.5, **text)
