"""Which searched settings matter: the share of the result that each explains, and what α moves."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.alpha_curves import tradeoffs
from dgg_ray.analysis.importance import importance
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import headline
from dgg_ray.analysis.standings import judged
from dgg_ray.config.sections import name_of
from dgg_ray.report import figures
from dgg_ray.search.alpha_curve import SERIES

READING = (
    "Left: functional ANOVA of the settings judged, the share of the variance that a setting explains by "
    "itself; from few settings a hint. Right: how far the curves move over the α tried, in points, with "
    "95 % bands."
)
LOOKS = {"new": (figures.ORANGE, "new task loses"), "old": (figures.BLUE, "old tasks keep")}


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Importance of every searched setting, and beside it the sensitivity to each task's α.

    Numbers: kind `importance`, name and share; kind `new` or `old`, a task and its change over the α tried.
    None where fewer settings were judged than are needed, and no α has a curve.
    """
    shares, moves = explained(results), sensitivity(results)
    if shares.empty and moves.empty:
        return None
    height = 1.3 + 0.42 * max(len(shares), len(moves) / 2)
    figure, axes = figures.sheet(9.0, height, columns=2)
    left, right = axes[0]
    draw_shares(left, shares)
    draw_moves(right, moves)
    if not moves.empty:
        figure.legend(loc="outside upper right", ncols=2, fontsize=9.5, frameon=False)
    for ax, rows in ((left, shares), (right, moves)):
        if rows.empty:
            ax.set_axis_off()
    return figure, pd.concat([shares, moves], ignore_index=True)


def explained(results: Results) -> pd.DataFrame:
    """Importance of each searched setting for the headline metric, over what the search judged."""
    table, metric = judged(results), headline(results)
    table = table[table["whole"].astype(bool)]  # few blocks may be easy ones
    table = table[table["setting"].isin(results.tried)].dropna(subset=[metric, *results.parameters])
    found = importance(table, table[metric].tolist(), results.parameters)
    rows = [["importance", name_of(parameter), share, np.nan, np.nan] for parameter, share in found.items()]
    return pd.DataFrame(rows, columns=["kind", "name", "value", "low", "high"])


def sensitivity(results: Results) -> pd.DataFrame:
    """Per task: the new task's loss and the old tasks' gain from the lowest α tried to the highest."""
    rows = []
    for found in tradeoffs(results):
        for name, (value, low, high) in found.difference(0, -1).items():
            band = (low, high) if SERIES[name] else (-high, -low)
            rows.append([name, found.task, abs(value), *band])
    return pd.DataFrame(rows, columns=["kind", "name", "value", "low", "high"])


def draw_shares(ax: Axes, rows: pd.DataFrame) -> None:
    ax.barh(rows["name"], rows["value"], color=figures.QUIET, height=0.55)
    figures.quiet(ax, "explained share of the variance, %", "")
    figures.percent(ax.xaxis)
    ax.set_xlim(0, 1)
    ax.invert_yaxis()


def draw_moves(ax: Axes, rows: pd.DataFrame) -> None:
    """Two bars a task, with their bands as far as they stay in the panel."""
    tasks = list(dict.fromkeys(rows["name"]))
    for (name, (colour, label)), aside in zip(LOOKS.items(), (-0.17, 0.17), strict=True):
        mine = rows[rows["kind"] == name]
        y = np.arange(len(mine)) + aside
        ax.barh(y, mine["value"], height=0.3, color=colour, label=label)
        ax.hlines(y, mine["low"], mine["high"], color=figures.INK, lw=1, alpha=0.7)
    reach = 2 * max(rows["value"].max(), 0.01) if len(rows) else 1
    ax.set_xlim(min(0, max(rows["low"].min(), -reach / 3)) if len(rows) else 0, reach)
    ax.set_yticks(range(len(tasks)), tasks)
    figures.quiet(ax, "change over the α tried, points", "")
    figures.percent(ax.xaxis)
    ax.invert_yaxis()
