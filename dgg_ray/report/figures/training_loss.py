"""The training loss along every stage of the chosen setting."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import chosen, final_runs, final_split
from dgg_ray.report import figures

READING = (
    "A panel per task, a line per run: the mean loss over the batch's answer tokens, of the new task and "
    "what is replayed. The darker the line, the later the task stands in its order. A line that ends while "
    "it still falls asks for more epochs. Six runs are drawn at most; the CSV file has all."
)
RUNS = 6  # that are drawn
ABREAST = 3
WIDE = 20.0  # largest loss over the smallest, above which the scale is logarithmic
COLUMNS = ["order", "seed", "place", "task", "step", "loss"]


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Loss over steps; None where no stage of the final runs has kept its losses."""
    data = curves(results)
    if data.empty:
        return None
    first = data[["order", "seed"]].drop_duplicates().iloc[:RUNS]
    drawn = data.merge(first, on=["order", "seed"])
    tasks = sorted(drawn["task"].unique())
    abreast = min(ABREAST, len(tasks))
    rows = -(-len(tasks) // abreast)
    figure, axes = figures.sheet(max(3.6, 0.6 + 2.3 * abreast), 0.3 + 2.0 * rows, rows, abreast, sharey=True)
    last = max(int(drawn["place"].max()), 1)
    for number, ax in enumerate(axes.flat):
        if number >= len(tasks):
            ax.set_axis_off()
            continue
        below = number + abreast >= len(tasks)
        label = "training loss, nats a token" if number % abreast == 0 else ""
        figures.quiet(ax, "optimizer steps" if below else "", label, tasks[number])
        draw_task(ax, drawn[drawn["task"] == tasks[number]], last)
    return figure, data


def draw_task(ax: Axes, rows: pd.DataFrame, last: int) -> None:
    for _, line in rows.groupby(["order", "seed"], sort=True):
        shade = 0.35 + 0.65 * line["place"].iloc[0] / last
        ax.plot(line["step"], line["loss"], color=figures.BLUE, alpha=shade, lw=1.3)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    low, high = float(rows["loss"].min()), float(rows["loss"].max())
    if low > 0 and high > WIDE * low:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())


def curves(results: Results) -> pd.DataFrame:
    """A row for each kept point: the order and seed of the run, the task's place there, steps done, loss."""
    archive, rows = results.archive, []
    runs = [run for run in final_runs(results, final_split(results)) if run.setting == chosen(results)]
    for run in runs if archive else []:
        for losses in archive.losses((run.setting, run.order, run.seed)) if archive else []:
            steps = np.arange(1, len(losses.curve) + 1) * losses.steps / len(losses.curve)
            place = run.tasks.index(losses.task) if losses.task in run.tasks else 0
            about = [run.order, run.seed, place, losses.task]
            rows += [[*about, step, loss] for step, loss in zip(steps, losses.curve, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)
