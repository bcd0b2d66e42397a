"""What the objectives trade: the Pareto set of the settings judged, and how it grew."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.front import front, volumes
from dgg_ray.analysis.results import Results, Searched
from dgg_ray.report import figures

READING = (
    "Left: settings judged, in the first two objectives; filled ones are dominated by none, the star is the "
    "one chosen, by the mean of the objectives, and crosses break a constraint. Right: the part of the unit "
    "square (or cube) that the "
    "settings judged so far dominate, from the origin (hypervolume). A curve that has been level for long "
    "says that more settings are unlikely to move the front."
)


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """The front and its hypervolume over the stages asked for; None for one objective or nothing judged.

    Numbers: kind `setting`, a row per setting judged; kind `volume`, a row per setting in the order judged.
    """
    search = results.search
    if search is None or len(search.objective) < 2 or not search.of("judged"):
        return None
    data = points(search)
    data["chosen"] = data["setting"] == results.recommended
    grown = pd.DataFrame(volumes(search), columns=["judged", "stages", "volume"])
    figure, axes = figures.sheet(9.6, 4.0, 1, 2)
    draw_front(axes[0, 0], data, search.objective)
    draw_growth(axes[0, 1], grown)
    return figure, pd.concat([data.assign(kind="setting"), grown.assign(kind="volume")], ignore_index=True)


def points(search: Searched) -> pd.DataFrame:
    """One row per setting judged: its objectives, whether it keeps the constraints and is on the front."""
    best, feasible = ({c.setting for c in found} for found in (front(search), search.feasible()))
    rows = [[c.setting, *c.objective, c.setting in feasible, c.setting in best] for c in search.of("judged")]
    return pd.DataFrame(rows, columns=["setting", *search.objective, "feasible", "front"])


def draw_front(ax: Axes, data: pd.DataFrame, objective: tuple[str, ...]) -> None:
    x, y = objective[:2]
    figures.quiet(ax, f"{x.replace('_', ' ')}, %", f"{y.replace('_', ' ')}, %", "the Pareto set")
    figures.percent(ax.xaxis, ax.yaxis)
    best = data[data["front"]].sort_values(x)
    if len(objective) == 2:
        ax.step(best[x], best[y], where="pre", color=figures.PALE, lw=4, solid_joinstyle="round", zorder=1)
    looks = (
        (~data["feasible"], {"marker": "x", "color": figures.QUIET, "label": "breaks a constraint"}),
        (data["feasible"] & ~data["front"], {"fc": "white", "ec": figures.BLUE, "label": "dominated"}),
        (data["front"] & ~data["chosen"], {"fc": figures.BLUE, "ec": "white", "label": "Pareto set"}),
        (data["chosen"], {"marker": "*", "fc": figures.BLUE, "ec": "white", "label": "chosen"}),
    )
    for these, look in looks:
        rows = data[np.asarray(these, dtype=bool)]
        if len(rows):
            size = 190 if look.get("marker") == "*" else 48
            ax.scatter(rows[x], rows[y], s=size, zorder=3, **look)
    ax.legend(fontsize=9, frameon=False, labelcolor=figures.INK)


def draw_growth(ax: Axes, grown: pd.DataFrame) -> None:
    figures.quiet(ax, "distinct stages asked for by the search", "hypervolume", "how it grew")
    ax.step(grown["stages"], grown["volume"], where="post", color=figures.BLUE, lw=1.8, zorder=2)
    ax.scatter(grown["stages"], grown["volume"], s=22, color=figures.BLUE, zorder=3)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
