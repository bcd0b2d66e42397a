"""The effect of a task's α: score of the new task and change of the old tasks, right after that stage."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.alpha_curves import tradeoffs
from dgg_ray.analysis.results import Results
from dgg_ray.report import figure_style as style
from dgg_ray.search.alpha_curve import SERIES, Tradeoff

MAX_COLUMNS = 4  # tasks in one row of panels
MIN_TICK_GAP = 0.1  # of the width: closer tick labels would touch
RASTERIZE_ABOVE = 1000  # stages: with more, the PDF holds their dots as an image
READING = (
    "Top: what α costs the new task. Bottom: what it saves of the old tasks. Lines are monotone fits within "
    "blocks. Bands are 95 % bands of their shape, where three independent blocks have an α. Faint dots are "
    "single stages, shifted by how far their block (order so far and seed) lies above or below the average "
    "block. Dotted line: the α with the highest mean final score. Grey bar: the α that do not differ "
    "significantly from it, where others do. Filled markers: α = 0 and 1."
)
SERIES_STYLE = {  # series → colour, marker, label of the axis
    "new": (style.ORANGE, "o", "the new task's score, %"),
    "old": (style.BLUE, "s", "change of the old tasks, points"),
}


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw two panels per task with a searched α, one below the other, on the split of the choice.

    Numbers: rows of kind `curve`, one per α tried, with bands and gains; rows of kind `stage`, one per
    distinct stage. None where no task was trained with two α after another task.
    """
    curves = tradeoffs(results)
    if not curves:
        return None
    columns = min(MAX_COLUMNS, len(curves))
    rows = 2 * -(-len(curves) // columns)
    width, height = max(4.2, 1.2 + 2.6 * columns), 0.3 + 2.3 * rows
    figure, axes = style.new_figure(width, height, rows, columns, sharex=True)
    for number, tradeoff in enumerate(curves):
        row, column = 2 * (number // columns), number % columns
        for ax, name in zip(axes[row : row + 2, column], SERIES, strict=True):
            draw_panel(ax, tradeoff, name)
            is_top = name == "new"
            y_label = SERIES_STYLE[name][2] if column == 0 else ""
            style.style_axes(ax, "" if is_top else "α of this task", y_label, tradeoff.task if is_top else "")
            style.percent_ticks(ax.yaxis)
            ax.tick_params(labelbottom=not is_top)
    for ax in axes.flat:
        if not ax.lines:
            ax.set_axis_off()
    data = [tradeoff.points().assign(kind="curve") for tradeoff in curves]
    data += [tradeoff.stages.assign(kind="stage") for tradeoff in curves]
    return figure, pd.concat(data, ignore_index=True)


def draw_panel(ax: Axes, tradeoff: Tradeoff, name: str) -> None:
    """Draw one curve of one task: stages, line, band, the best α and those not significantly worse."""
    colour, marker, _ = SERIES_STYLE[name]
    rows = tradeoff.points()
    alpha, value, low, high = (rows[c].to_numpy() for c in ("alpha", name, f"{name}_low", f"{name}_high"))
    stages = tradeoff.stages[name] - tradeoff.stages[f"{name}_level"]
    # `plot` renders its marker once and repeats it; `scatter` would render thousands one by one.
    dots = {"ms": 3.7, "mew": 0, "color": colour, "alpha": 0.35, "rasterized": len(stages) > RASTERIZE_ABOVE}
    ax.plot(tradeoff.stages["alpha"], stages, "o", zorder=2, **dots)
    ax.fill_between(alpha, low, high, color=colour, alpha=0.15, lw=0, zorder=1)
    ax.plot(alpha, value, color=colour, lw=1.8, zorder=4)
    at_end = np.isin(alpha, (0, 1))
    ax.scatter(alpha[at_end], value[at_end], marker=marker, s=34, color=colour, zorder=5)
    hollow = {"s": 30, "facecolor": "white", "edgecolor": colour}
    ax.scatter(alpha[~at_end], value[~at_end], marker=marker, zorder=5, **hollow)
    # Bands of few blocks are many times as high as the curve: the panel cuts them off.
    shown = np.array([*stages, *value])
    margin = 0.6 * max(np.ptp(shown), 0.02)
    ax.set_ylim(shown.min() - margin, min(shown.max() + margin, 1.02))
    ax.axvline(float(rows["alpha"][rows["best"]].iloc[0]), color=style.INK, lw=1.2, ls=":", zorder=3)
    ax.set_xscale("function", functions=(signed_root, signed_square))
    draw_undecided(ax, alpha, rows["open"].to_numpy())
    ticks = tick_values(alpha)
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])


def draw_undecided(ax: Axes, alpha: np.ndarray, undecided: np.ndarray) -> None:
    """Mark the α that do not differ significantly from the best one, or say that none does."""
    if undecided.all():
        text = "no significant difference between α"
        position = {"transform": ax.transAxes, "ha": "center", "va": "bottom"}
        ax.text(0.5, 0.02, text, fontsize=8.5, color=style.QUIET, **position)
        return
    for first, last in unbroken_ranges(undecided):
        bar = {"color": style.PALE, "lw": 5, "marker": "o", "ms": 5, "mew": 0}
        ax.plot(
            [alpha[first], alpha[last]], [0.03, 0.03], transform=ax.get_xaxis_transform(), zorder=3, **bar
        )


def tick_values(alpha: np.ndarray) -> list[float]:
    """Select the α tried whose labels fit on the axis; the lowest and the highest always."""
    positions = signed_root(alpha)
    min_gap, selected = MIN_TICK_GAP * float(np.ptp(positions)), [0]
    for i in range(1, len(alpha) - 1):
        if min(positions[i] - positions[selected[-1]], positions[-1] - positions[i]) >= min_gap:
            selected.append(i)
    if len(alpha) > 1:
        selected.append(len(alpha) - 1)
    return alpha[selected].tolist()


def unbroken_ranges(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last index of each unbroken run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(start), int(end) - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def signed_root(x: np.ndarray) -> np.ndarray:
    """Return sign(x)·√|x|, a scale that gives small α more room and still contains 0."""
    return np.sign(x) * np.sqrt(np.abs(x))


def signed_square(x: np.ndarray) -> np.ndarray:
    """Return the inverse of `signed_root`."""
    return np.sign(x) * np.square(x)
