"""Trade-off between the objectives: the Pareto set of the evaluated settings, and how it grew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.results import Results, SearchSummary
from dgg_ray.analysis.search_summary import hypervolumes, pareto_front
from dgg_ray.report import figure_style as style

READING = (
    "Left: evaluated settings, in the first two objectives. No other setting dominates a filled one. The "
    "star is the setting chosen, by the mean of the objectives. Crosses break a constraint. Right: "
    "hypervolume, the part of the unit square (or cube) that the settings evaluated so far dominate, from "
    "the origin. If the curve has been level for long, more settings are unlikely to move the front."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw the front, and its hypervolume over the stages asked for; None for a single objective.

    Numbers: rows of kind `setting`, one per evaluated setting; rows of kind `hypervolume`, one per setting in
    the order evaluated.
    """
    search = results.search
    if search is None or len(search.objective) < 2 or not search.in_state("evaluated"):
        return None
    data = objective_points(search)
    data["chosen"] = data["setting"] == results.recommended
    growth = pd.DataFrame(hypervolumes(search), columns=["evaluated", "stages", "hypervolume"])
    figure, axes = style.new_figure(9.6, 4.0, 1, 2)
    draw_objectives(axes[0, 0], data, search.objective)
    draw_growth(axes[0, 1], growth)
    frames = [data.assign(kind="setting"), growth.assign(kind="hypervolume")]
    return figure, pd.concat(frames, ignore_index=True)


def objective_points(search: SearchSummary) -> pd.DataFrame:
    """List the objectives of each evaluated setting, its feasibility, and whether it is on the front."""
    on_front = {candidate.setting for candidate in pareto_front(search)}
    feasible = {candidate.setting for candidate in search.feasible()}
    rows = [
        [c.setting, *c.mean_objectives, c.setting in feasible, c.setting in on_front]
        for c in search.in_state("evaluated")
    ]
    return pd.DataFrame(rows, columns=["setting", *search.objective, "feasible", "front"])


def draw_objectives(ax: Axes, data: pd.DataFrame, objective: tuple[str, ...]) -> None:
    """Draw the settings in the first two objectives, and the front where there are only these."""
    x, y = objective[:2]
    style.style_axes(ax, f"{x.replace('_', ' ')}, %", f"{y.replace('_', ' ')}, %", "the Pareto set")
    style.percent_ticks(ax.xaxis, ax.yaxis)
    front = data[data["front"]].sort_values(x)
    if len(objective) == 2:
        edge = {"color": style.PALE, "lw": 4, "solid_joinstyle": "round"}
        ax.step(front[x], front[y], where="pre", zorder=1, **edge)
    groups: tuple[tuple[Any, dict[str, Any]], ...] = (
        (~data["feasible"], {"marker": "x", "color": style.QUIET, "label": "breaks a constraint"}),
        (data["feasible"] & ~data["front"], {"fc": "white", "ec": style.BLUE, "label": "dominated"}),
        (data["front"] & ~data["chosen"], {"fc": style.BLUE, "ec": "white", "label": "Pareto set"}),
        (data["chosen"], {"marker": "*", "fc": style.BLUE, "ec": "white", "label": "chosen"}),
    )
    for members, marks in groups:
        rows = data[np.asarray(members, dtype=bool)]
        if len(rows):
            size = 190 if marks.get("marker") == "*" else 48
            ax.scatter(rows[x], rows[y], s=size, zorder=3, **marks)
    ax.legend(fontsize=9, frameon=False, labelcolor=style.INK)


def draw_growth(ax: Axes, growth: pd.DataFrame) -> None:
    """Draw the hypervolume over the distinct stages that the search had asked for."""
    style.style_axes(ax, "distinct stages asked for by the search", "hypervolume", "growth of the Pareto set")
    stages, hypervolume = growth["stages"], growth["hypervolume"]
    ax.step(stages, hypervolume, where="post", color=style.BLUE, lw=1.8, zorder=2)
    ax.scatter(stages, hypervolume, s=22, color=style.BLUE, zorder=3)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
