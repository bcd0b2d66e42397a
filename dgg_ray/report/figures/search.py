"""How the search went: what was tried, what was kept or pruned, and whether that was right."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.results import Results, Searched
from dgg_ray.report import figures

READING = (
    "Of a search task by task, each mark is a state tried at that place of the orders. Its height is a low "
    "guess of the objective at the end of its runs: later tasks are taken to cost as much as in the worse "
    "cases so far. Filled ones were kept. A line leads from a dropped state to what it became when the "
    "audit finished it, in orange where that is above the best that was kept (dotted). Of a search of whole "
    "settings, each is shown in the order proposed, the line is the best so far, crosses were pruned or "
    "broke a constraint."
)
COLUMNS = ["kind", "place", "setting", "value", "kept", "before"]


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """States by place for stagewise search, settings by number for the others; None for nothing judged.

    Numbers: kind `tried` (place: of the orders), `end` (a setting run to the end, place: of its proposal)
    or `audited` (place: where it was dropped, value: its end, kept: whether it ended above). before: what was
    expected of an audited state.
    """
    search = results.search
    if search is None:
        return None
    data = table(search)
    if data.empty:
        return None
    figure, axes = figures.sheet(7.6, 4.2)
    ax = axes[0, 0]
    (draw_levels if search.levels else draw_settings)(ax, data, search)
    figures.percent(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(
        fontsize=9.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=figures.INK
    )
    return figure, data


def table(search: Searched) -> pd.DataFrame:
    """Every state tried, every setting run to its end or given up, every branch audited."""
    rows = [
        ["tried", level.place, s.setting, s.hoped, s.kept, np.nan]
        for level in search.levels
        for s in level.tried
    ]
    for number, candidate in enumerate(search.candidates):
        if candidate.rows:
            kept = candidate.state == "judged" and not any(candidate.excess)
            rows.append(["end", number, candidate.setting, float(np.mean(candidate.objective)), kept, np.nan])
    hoped = {(level.place, s.setting): s.hoped for level in search.levels for s in level.tried}
    for a in search.audited:
        rows.append(["audited", a.place, a.setting, a.ends, a.better, hoped[a.place, a.state]])
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_levels(ax: Axes, data: pd.DataFrame, search: Searched) -> None:
    figures.quiet(ax, "place in the orders", "mean objective, %", "states tried task by task")
    tried = data[data["kind"] == "tried"].copy()
    tried["x"] = tried["place"] + spread(tried["place"])
    for kept, look in (
        (False, {"fc": "white", "label": "dropped"}),
        (True, {"fc": figures.BLUE, "label": "kept"}),
    ):
        rows = tried[tried["kept"] == kept]
        ax.scatter(rows["x"], rows["value"], s=42, ec=figures.BLUE, lw=1, zorder=3, **look)
    last, found = search.tasks + 1.0, data[data["kind"] == "audited"]
    ax.axvline(last - 0.5, color=figures.FAINT, lw=1.2)
    known = set(found["setting"])
    ends = data[(data["kind"] == "end") & data["kept"].astype(bool) & ~data["setting"].isin(known)]
    if len(ends):
        ax.axhline(ends["value"].max(), color=figures.INK, lw=1, ls=":", zorder=1, label="best that was kept")
    for row in found.to_dict("records"):
        colour = figures.ORANGE if row["kept"] else figures.QUIET
        start = tried[(tried["place"] == row["place"]) & (tried["value"] == row["before"])].iloc[0]
        ax.plot([start["x"], last], [start["value"], row["value"]], color=colour, lw=1, zorder=2)
    for above, colour, label in (
        (False, figures.QUIET, "audited, below"),
        (True, figures.ORANGE, "audited, above"),
    ):
        rows = found[found["kept"] == above]
        if len(rows):
            ax.scatter(
                [last] * len(rows), rows["value"], marker="D", s=34, color=colour, label=label, zorder=4
            )
    ticks = range(2, search.tasks + 1)
    ax.set_xticks([*ticks, last], [*map(str, ticks), "end"])


def draw_settings(ax: Axes, data: pd.DataFrame, search: Searched) -> None:
    figures.quiet(ax, "settings in the order proposed", "mean objective, %", "settings judged")
    kept = data[data["kept"].astype(bool)]
    rest = data[~data["kept"].astype(bool)]
    ax.scatter(kept["place"], kept["value"], s=42, fc="white", ec=figures.BLUE, label="judged", zorder=3)
    if len(rest):
        marks = {"marker": "x", "s": 34, "color": figures.QUIET, "zorder": 3}
        ax.scatter(rest["place"], rest["value"], label="pruned, or breaks a constraint", **marks)
    if len(kept) and len(search.objective) == 1:
        ax.step(
            kept["place"],
            kept["value"].cummax(),
            where="post",
            color=figures.BLUE,
            lw=1.6,
            label="best so far",
        )


def spread(places: pd.Series) -> np.ndarray:
    """Marks of one place side by side."""
    order, size = places.groupby(places).cumcount(), places.groupby(places).transform("size")
    return (0.6 * ((order + 0.5) / size - 0.5)).to_numpy()
