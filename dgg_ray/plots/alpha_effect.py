"""What a task's α does: the new task's score against the old tasks' right after that stage."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray import plots
from dgg_ray.intervals import bootstrap_band
from dgg_ray.outcomes import Results, alphas, searched, selection

EXACT = 8  # more values of α than this are averaged …
BINS = 6  # … in as many neighbouring groups of equal size
TICKS = [0, 0.02, 0.1, 0.25, 0.5, 1]
READING = (
    "Where the blue line rises, α keeps the old tasks; where the orange line falls, it costs the new one. "
    "Bands are 95 % bootstrap bands over blocks, faint dots are single settings."
)
SERIES = {"new": (plots.ORANGE, "o", "the new task"), "old": (plots.BLUE, "s", "the old tasks, mean")}


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """One panel per task with a searched α; points are settings, lines means with 95 % bootstrap bands.

    On the validation split. Where other values were searched as well, the line averages over them.
    None where no α was searched, or none was tried with two values after another task.
    """
    stages = observed(results)
    curves = pd.concat(
        [curve(task, group) for task, group in stages.groupby("task", sort=False)] or [pd.DataFrame()]
    )
    if curves.empty:
        return None
    tasks = list(dict.fromkeys(curves["task"]))
    columns = 2 if len(tasks) in (2, 4) else min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plots.sheet(max(5.6, 3.7 * columns), 3.4 * rows + 0.4, rows, columns, sharey=True)
    for ax, task in zip(axes.flat, tasks, strict=False):
        draw_panel(ax, stages[stages["task"] == task], curves[curves["task"] == task])
        plots.quiet(ax, "α of this task", "score after its stage, %" if ax in axes[:, 0] else "", str(task))
        plots.percent(ax.yaxis)
    for ax in list(axes.flat)[len(tasks) :]:
        ax.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=10, frameon=False)
    points = stages.groupby(["task", "setting", "alpha"], sort=False)[list(SERIES)].mean().reset_index()
    return figure, pd.concat([points.assign(kind="setting"), curves.assign(kind="curve")], ignore_index=True)


def observed(results: Results) -> pd.DataFrame:
    """One row per setting, block and task that came after another: its α, and both scores after its stage."""
    known, columns = searched(results), alphas(results)
    rows = []
    for run in selection(results):
        if run.setting in known.index and not run.together:
            for t, task in enumerate(run.tasks):
                if t and task in columns:
                    new, old = run.scores.R[t, t], run.scores.R[t, :t].mean()
                    rows.append(
                        [
                            task,
                            run.setting,
                            (run.order, run.seed),
                            known.loc[run.setting, columns[task]],
                            new,
                            old,
                        ]
                    )
    table = pd.DataFrame(rows, columns=["task", "setting", "block", "alpha", "new", "old"])
    return table.astype({"alpha": float}).dropna().sort_values(["task", "alpha", "setting"], kind="stable")


def curve(task: object, stages: pd.DataFrame) -> pd.DataFrame:
    """Means over blocks along α with their bands; empty for a single value of α."""
    values = np.sort(stages["alpha"].unique())
    if len(values) < 2:
        return pd.DataFrame()
    groups = np.array_split(values, len(values) if len(values) <= EXACT else BINS)
    bins = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    place = stages["alpha"].map(dict(zip(values, bins, strict=True)))
    rows = pd.DataFrame({"task": task, "alpha": [float(group.mean()) for group in groups]})
    for name in SERIES:
        blocks = stages.groupby(["block", place])[name].mean().unstack()  # blocks × points of the curve
        rows[name] = blocks.mean().to_numpy()
        rows[f"{name}_low"], rows[f"{name}_high"] = bootstrap_band(blocks.to_numpy())
    return rows


def draw_panel(ax: Axes, stages: pd.DataFrame, line: pd.DataFrame) -> None:
    """Both series of one task."""
    points = stages.groupby(["setting", "alpha"])[list(SERIES)].mean().reset_index()
    for name, (colour, marker, label) in SERIES.items():
        ax.scatter(points["alpha"], points[name], s=16, color=colour, alpha=0.35, lw=0, zorder=2)
        ax.plot(
            line["alpha"],
            line[name],
            color=colour,
            marker=marker,
            ms=5.5,
            mec="white",
            lw=1.8,
            label=label,
            zorder=4,
        )
        ax.fill_between(
            line["alpha"], line[f"{name}_low"], line[f"{name}_high"], color=colour, alpha=0.15, lw=0
        )
    ax.set_xscale("function", functions=(signed_root, signed_square))
    ticks = [tick for tick in TICKS if tick <= points["alpha"].max() * 1.1]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def signed_root(x: np.ndarray) -> np.ndarray:
    """√x, odd: room for small α, which matter most, with 0 still on the axis."""
    return np.sign(x) * np.sqrt(np.abs(x))


def signed_square(x: np.ndarray) -> np.ndarray:
    """The inverse of signed_root."""
    return np.sign(x) * np.square(x)
