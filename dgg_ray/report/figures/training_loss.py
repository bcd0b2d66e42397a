"""Training loss along every stage of the chosen setting."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import chosen_setting, final_runs, final_split
from dgg_ray.report import figure_style as style

READING = (
    "One panel per task, one line per run: mean loss over the answer tokens of a batch, replayed examples "
    "included. Darker lines: the task comes later in its order. A line that still falls at its end suggests "
    "more epochs. At most six runs are drawn; the CSV file has all."
)
MAX_RUNS = 6  # that are drawn
MAX_COLUMNS = 3  # panels in one row
LOG_SCALE_RATIO = 20.0  # largest loss over smallest: above it, the scale is logarithmic
COLUMNS = ["order", "seed", "position", "task", "step", "loss"]


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw the loss over steps; None where no stage of the final runs has stored its losses."""
    data = loss_curves(results)
    if data.empty:
        return None
    first = data[["order", "seed"]].drop_duplicates().iloc[:MAX_RUNS]
    drawn = data.merge(first, on=["order", "seed"])
    tasks = sorted(drawn["task"].unique())
    columns = min(MAX_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = style.new_figure(
        max(3.6, 0.6 + 2.3 * columns), 0.3 + 2.0 * rows, rows, columns, sharey=True
    )
    last_position = max(int(drawn["position"].max()), 1)
    for number, ax in enumerate(axes.flat):
        if number >= len(tasks):
            ax.set_axis_off()
            continue
        below = number + columns >= len(tasks)
        label = "training loss, nats a token" if number % columns == 0 else ""
        style.style_axes(ax, "optimizer steps" if below else "", label, tasks[number])
        draw_task(ax, drawn[drawn["task"] == tasks[number]], last_position)
    return figure, data


def draw_task(ax: Axes, rows: pd.DataFrame, last_position: int) -> None:
    """Draw one line per run; rows: of one task."""
    for _, line in rows.groupby(["order", "seed"], sort=True):
        opacity = 0.35 + 0.65 * line["position"].iloc[0] / last_position
        ax.plot(line["step"], line["loss"], color=style.BLUE, alpha=opacity, lw=1.3)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    low, high = float(rows["loss"].min()), float(rows["loss"].max())
    if low > 0 and high > LOG_SCALE_RATIO * low:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())


def loss_curves(results: Results) -> pd.DataFrame:
    """List the stored losses: order and seed of the run, the task's position in it, steps done, loss."""
    if results.archive is None:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    for run in final_runs(results, final_split(results)):
        if run.setting != chosen_setting(results):
            continue
        for losses in results.archive.losses((run.setting, run.order, run.seed)):
            steps = np.arange(1, len(losses.curve) + 1) * losses.steps / len(losses.curve)
            position = run.tasks.index(losses.task) if losses.task in run.tasks else 0
            for step, loss in zip(steps, losses.curve, strict=True):
                rows.append([run.order, run.seed, position, losses.task, step, loss])
    return pd.DataFrame(rows, columns=COLUMNS)
