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

from dgg_ray import plots
from dgg_ray.outcomes import Results, Run, compared, final_runs, final_split

READING = (
    "Row by row the sequence goes on; read down a column to see what becomes of one task. The diagonal is a "
    "task just learned, the last row is the end; what is right of the diagonal was examined before its turn."
)
ORDERS_APART = 3  # more orders than this are averaged by place in the order


class Panel(NamedTuple):
    """R: mean over `blocks` runs; tasks: the names of its columns, or their places."""

    label: str
    order: str
    tasks: tuple[str, ...]
    R: np.ndarray
    blocks: int


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Heat maps of R, the recommended setting and its rivals side by side, averaged over blocks.

    One group for each order; with many orders one by place in the order. On the test split where
    there is one. Cells that were not examined are left white. None where nothing was examined.
    """
    panels = averaged(results)
    if not panels:
        return None
    orders = list(dict.fromkeys(panel.order for panel in panels))
    labels = [label for label in compared(results) if any(panel.label == label for panel in panels)]
    size = len(panels[0].tasks)
    columns = min(2, len(labels))
    each = columns * -(-len(labels) // columns)  # places for one order: whole rows
    rows = len(orders) * each // columns
    side = max(2.6, 0.62 * size + 0.6)
    figure, axes = plots.sheet(side * columns + 1.2, (side * 0.86 + 0.5) * rows, rows, columns)
    low = min(float(np.nanmin(panel.R)) for panel in panels)
    high = max(float(np.nanmax(panel.R)) for panel in panels)
    for ax in axes.flat:
        ax.set_axis_off()
    shade = None
    for panel in panels:
        title = panel.label if len(orders) == 1 else f"{panel.label}, order {orders.index(panel.order) + 1}"
        place = orders.index(panel.order) * each + labels.index(panel.label)
        shade = draw_matrix(axes.flat[place], panel, low, max(high, low + 1e-9), title, place % columns == 0)
    assert shade is not None  # there is a panel
    bar = figure.colorbar(shade, ax=axes, shrink=min(0.8, 1.7 / rows), aspect=22, pad=0.02)
    bar.set_label("score, %", fontsize=10, color=plots.INK)
    plots.percent(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=9, colors=plots.QUIET, labelcolor=plots.INK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure, pd.DataFrame([row for panel in panels for row in cells(panel)])


def averaged(results: Results) -> list[Panel]:
    """The panels, in the order in which they are drawn."""
    labels = {setting: label for label, setting in compared(results).items()}
    found = [run for run in final_runs(results, final_split(results)) if run.setting in labels]
    found = [run for run in found if not np.isnan(run.scores.R).all()]
    apart = len({run.order for run in found}) <= ORDERS_APART
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(found, key=lambda run: list(labels).index(run.setting)):
        groups.setdefault((run.order if apart else "", labels[run.setting]), []).append(run)
    panels = []
    for (order, label), members in sorted(groups.items(), key=lambda group: group[0][0]):
        stack = np.array([run.scores.R for run in members])
        seen = ~np.isnan(stack)
        R = np.where(seen, stack, 0).sum(axis=0) / np.where(seen.any(axis=0), seen.sum(axis=0), np.nan)
        tasks = members[0].tasks if apart else tuple(f"task {i + 1}" for i in range(len(R)))
        panels.append(Panel(label, order, tasks, R, len(members)))
    return panels


def cells(panel: Panel) -> list[dict[str, object]]:
    """The panel's numbers, one row per examined cell; stages count from 0."""
    T = len(panel.tasks)
    return [
        {
            "label": panel.label,
            "order": panel.order,
            "stage": t,
            "exam": panel.tasks[i],
            "score": panel.R[t, i],
            "blocks": panel.blocks,
        }
        for t in range(T)
        for i in range(T)
        if not np.isnan(panel.R[t, i])
    ]


def draw_matrix(ax: Axes, panel: Panel, low: float, high: float, title: str, first: bool):
    """One heat map with its values printed in the cells, dark or white by the cell's luminance.

    first: it opens a row and names the stages for all panels of that row.
    """
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
    ax.set_yticks([T - 1] if together else range(T), stages if first or together else [""] * T)
    ax.tick_params(labelsize=8.5, length=0, labelcolor=plots.INK)
    ax.set_title(title, fontsize=11, color=plots.INK, loc="left", fontweight="bold")
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(T + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(T + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=2)
    ax.tick_params(which="minor", length=0)
    for (t, i), score in np.ndenumerate(panel.R):
        if not np.isnan(score):
            red, green, blue, _ = colormaps["cividis"]((score - low) / (high - low))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45  # Rec. 709
            text = f"{100 * score:.1f}"
            ax.text(
                i,
                t,
                text,
                ha="center",
                va="center",
                fontsize=9 if T <= 7 else 7.5,
                color="white" if dark else plots.INK,
            )
    return shade
