"""Mean score over the tasks trained so far, along the sequence."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.comparison_tables import interval_over_blocks
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import BLOCK, ScoredRun, final_runs, final_split, settings_by_label
from dgg_ray.report import figure_style as style

READING = (
    "A line that stays level forgets nothing. Bars are 95 % intervals over blocks. The dashed line is a "
    "model trained on all tasks at once."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw the mean score over the tasks trained so far, after each stage, with 95 % t intervals over blocks.

    Shows the chosen setting and its baselines, on the test split where there is one. A joint run has a single
    stage: it is a horizontal line at its mean over all tasks. None where no run has two stages.
    """
    data = mean_scores(results, final_split(results))
    if data.empty or data["stage"].max() < 1:
        return None
    figure, axes = style.new_figure(7.6, 4.4)
    ax = axes[0, 0]
    style.style_axes(ax, "tasks trained", "mean score over the tasks trained so far, %")
    style.percent_ticks(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    line_count = data[~data["together"]]["label"].nunique()
    for index, label in enumerate(settings_by_label(results)):
        rows = data[data["label"] == label]
        if len(rows):
            draw_line(ax, rows, label, index, line_count)
    ax.margins(x=0.06)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, -0.02), min(top, 1.02))  # intervals of few blocks reach beyond any score
    style.legend_outside(ax)
    return figure, data.drop(columns="together")


def mean_scores(results: Results, split: str) -> pd.DataFrame:
    """Compute `means_along` for the methods of the comparison."""
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    found = final_runs(results, split)
    return means_along([(labels[run.setting], run) for run in found if run.setting in labels])


def means_along(runs: Iterable[tuple[str, ScoredRun]]) -> pd.DataFrame:
    """Compute a row per label and stage: mean over blocks of the mean score so far, and its interval.

    runs: each with its label.
    """
    rows = [
        [label, run.together, t, *run[2:4], scores[: t + 1].mean()]
        for label, run in runs
        for t, scores in enumerate(run.scores.R)
    ]
    table = pd.DataFrame(rows, columns=["label", "together", "stage", *BLOCK, "score"]).dropna()
    data = []
    for (label, together, stage), group in table.groupby(["label", "together", "stage"], sort=True):
        data.append([label, together, stage, *interval_over_blocks(group, "score")[:4]])
    return pd.DataFrame(data, columns=["label", "together", "stage", "score", "low", "high", "clusters"])


def draw_line(ax: Axes, rows: pd.DataFrame, label: str, index: int, line_count: int) -> None:
    """Draw a method as a line with bars, shifted so that none covers another; joint training as a level."""
    colour, marker = style.colour_and_marker(label, index)
    y, low, high = (rows[name].to_numpy() for name in ("score", "low", "high"))
    if rows["together"].all():
        ax.axhline(y[-1], color=colour, lw=1.4, ls=(0, (5, 3)), label=f"{label} (all at once)", zorder=2)
        if not np.isnan(low[-1]):
            ax.axhspan(low[-1], high[-1], color=colour, alpha=0.08, lw=0, zorder=0)
        return
    x = rows["stage"].to_numpy() + 1 + 0.04 * (index - (line_count - 1) / 2)
    ax.plot(
        x,
        y,
        color=colour,
        marker=marker,
        ms=11 if marker == "*" else 6,
        mec="white",
        lw=1.8,
        label=label,
        zorder=4,
    )
    ax.vlines(x, low, high, color=colour, lw=1.3, alpha=0.7, zorder=3)
