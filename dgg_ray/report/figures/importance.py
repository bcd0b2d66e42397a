"""Which search parameters matter: the share of the variance that each explains, and the effect of α."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.alpha_curves import tradeoffs
from dgg_ray.analysis.comparison_tables import settings_table
from dgg_ray.analysis.importance import parameter_importance
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import headline_metric
from dgg_ray.config.sections import name_of
from dgg_ray.report import figure_style as style
from dgg_ray.search.alpha_curve import SERIES

READING = (
    "Left: functional ANOVA over the evaluated settings: the share of the variance that a parameter "
    "explains alone. With few settings it is only a hint. Right: how far the curves change over the α "
    "tried, in points, with 95 % bands."
)
SERIES_STYLE = {"new": (style.ORANGE, "loss of the new task"), "old": (style.BLUE, "gain of the old tasks")}


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw the importance of every search parameter, and the effect of each task's α.

    Numbers: rows of kind `importance`, a parameter and its share; rows of kind `new` or `old`, a task and its
    change over the α tried. None where too few settings were evaluated and no α has a curve.
    """
    shares, changes = explained_shares(results), alpha_effects(results)
    if shares.empty and changes.empty:
        return None
    height = 1.3 + 0.42 * max(len(shares), len(changes) / 2)
    figure, axes = style.new_figure(9.0, height, columns=2)
    left, right = axes[0]
    draw_shares(left, shares)
    draw_changes(right, changes)
    if not changes.empty:
        figure.legend(loc="outside upper right", ncols=2, fontsize=9.5, frameon=False)
    for ax, rows in ((left, shares), (right, changes)):
        if rows.empty:
            ax.set_axis_off()
    return figure, pd.concat([shares, changes], ignore_index=True)


def explained_shares(results: Results) -> pd.DataFrame:
    """Compute the importance of each search parameter for the headline metric, over evaluated settings."""
    table, metric = settings_table(results), headline_metric(results)
    table = table[table["whole"].astype(bool)]  # settings on few blocks may have seen only easy ones
    table = table[table["setting"].isin(results.evaluated)].dropna(subset=[metric])
    # Where the strategy is searched, a parameter that some strategies lack has no share of the whole.
    parameters = [parameter for parameter in results.parameters if table[parameter].notna().all()]
    shares = parameter_importance(table, table[metric].tolist(), parameters)
    rows = [["importance", name_of(parameter), share, np.nan, np.nan] for parameter, share in shares.items()]
    return pd.DataFrame(rows, columns=["kind", "name", "value", "low", "high"])


def alpha_effects(results: Results) -> pd.DataFrame:
    """Compute, per task, the new task's loss and the old tasks' gain from the lowest α to the highest."""
    rows = []
    for tradeoff in tradeoffs(results):
        for name, (value, low, high) in tradeoff.difference(0, -1).items():
            band = (low, high) if SERIES[name] else (-high, -low)
            rows.append([name, tradeoff.task, abs(value), *band])
    return pd.DataFrame(rows, columns=["kind", "name", "value", "low", "high"])


def draw_shares(ax: Axes, rows: pd.DataFrame) -> None:
    ax.barh(rows["name"], rows["value"], color=style.QUIET, height=0.55)
    style.style_axes(ax, "explained share of the variance, %", "")
    style.percent_ticks(ax.xaxis)
    ax.set_xlim(0, 1)
    ax.invert_yaxis()


def draw_changes(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw two bars per task, with the part of their bands that fits in the panel."""
    tasks = list(dict.fromkeys(rows["name"]))
    for (name, (colour, label)), offset in zip(SERIES_STYLE.items(), (-0.17, 0.17), strict=True):
        series = rows[rows["kind"] == name]
        y = np.arange(len(series)) + offset
        ax.barh(y, series["value"], height=0.3, color=colour, label=label)
        ax.hlines(y, series["low"], series["high"], color=style.INK, lw=1, alpha=0.7)
    left, right = 0.0, 1.0
    if len(rows):
        right = 2 * max(rows["value"].max(), 0.01)
        left = min(0, max(rows["low"].min(), -right / 3))
    ax.set_xlim(left, right)
    ax.set_yticks(range(len(tasks)), tasks)
    style.style_axes(ax, "change over the α tried, points", "")
    style.percent_ticks(ax.xaxis)
    ax.invert_yaxis()
