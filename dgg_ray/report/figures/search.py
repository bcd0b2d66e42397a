"""Course of the search: settings tried, kept and pruned, and the result of the audit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.results import Results, SearchSummary
from dgg_ray.report import figure_style as style

READING = (
    "Search task by task: each mark is a state (a partial setting) tried at that position of the orders. "
    "Its height is a cautious extrapolation of the objective to the end of its runs: later tasks are "
    "assumed to cost as much as in the worse cases so far. Filled marks were kept. A line leads from a "
    "dropped state to its result in the audit, orange where that is above the best setting that was kept "
    "(dotted). Search over complete settings: settings in the order proposed. The line is the best so far. "
    "Crosses were pruned or break a constraint."
)
COLUMNS = ["kind", "position", "setting", "objective", "kept", "extrapolated"]


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw states by position for stagewise search, and settings by number for the others.

    Numbers: rows of three kinds.
    `tried`: a state. position: of its last task; objective: extrapolated; kept: whether the search kept it.
    `finished`: a setting that was run to its end or pruned. position: of its proposal; kept: whether it was
    evaluated completely and meets the constraints.
    `audited`: a dropped state that the audit finished. position: where it was dropped; objective: at its end;
    kept: whether it is preferred to the best setting that was kept; extrapolated: what was expected of it.
    None where nothing was evaluated.
    """
    search = results.search
    if search is None:
        return None
    data = search_table(search)
    if data.empty:
        return None
    figure, axes = style.new_figure(7.6, 4.2)
    ax = axes[0, 0]
    if search.depths:
        draw_states(ax, data, search)
    else:
        draw_settings(ax, data, search)
    style.percent_ticks(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend_outside(ax)
    return figure, data


def search_table(search: SearchSummary) -> pd.DataFrame:
    """List every state tried, every setting finished or pruned, and every state audited."""
    rows, extrapolated = [], {}
    for depth in search.depths:
        for state in depth.states:
            rows.append(["tried", depth.depth, state.setting, state.extrapolated, state.kept, np.nan])
            extrapolated[depth.depth, state.setting] = state.extrapolated
    for number, candidate in enumerate(search.candidates):
        if candidate.block_values:
            kept = candidate.state == "evaluated" and not any(candidate.violations)
            objective = float(np.mean(candidate.mean_objectives))
            rows.append(["finished", number, candidate.setting, objective, kept, np.nan])
    for audited in search.audited_states:
        expected = extrapolated[audited.depth, audited.state]
        rows.append(
            ["audited", audited.depth, audited.setting, audited.final_objective, audited.preferred, expected]
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_states(ax: Axes, data: pd.DataFrame, search: SearchSummary) -> None:
    """Draw the states tried at each position, and lines to the results of the audit."""
    style.style_axes(ax, "position in the orders", "mean objective, %", "states tried task by task")
    tried = data[data["kind"] == "tried"].copy()
    tried["x"] = tried["position"] + side_by_side(tried["position"])
    for kept, colour, label in ((False, "white", "dropped"), (True, style.BLUE, "kept")):
        rows = tried[tried["kept"] == kept]
        ax.scatter(rows["x"], rows["objective"], s=42, fc=colour, ec=style.BLUE, lw=1, zorder=3, label=label)
    audited = data[data["kind"] == "audited"]
    finished = data[(data["kind"] == "finished") & data["kept"].astype(bool)]
    kept_to_the_end = finished[~finished["setting"].isin(set(audited["setting"]))]
    end = search.tasks + 1.0
    ax.axvline(end - 0.5, color=style.FAINT, lw=1.2)
    if len(kept_to_the_end):
        best = kept_to_the_end["objective"].max()
        ax.axhline(best, color=style.INK, lw=1, ls=":", zorder=1, label="best that was kept")
    for row in audited.to_dict("records"):
        colour = style.ORANGE if row["kept"] else style.QUIET
        same = (tried["position"] == row["position"]) & (tried["objective"] == row["extrapolated"])
        start = tried[same].iloc[0]
        ax.plot([start["x"], end], [start["objective"], row["objective"]], color=colour, lw=1, zorder=2)
    for above, colour, label in (
        (False, style.QUIET, "audited, below"),
        (True, style.ORANGE, "audited, above"),
    ):
        values = audited["objective"][audited["kept"] == above]
        if len(values):
            ax.scatter([end] * len(values), values, marker="D", s=34, color=colour, label=label, zorder=4)
    ticks = range(2, search.tasks + 1)
    ax.set_xticks([*ticks, end], [*map(str, ticks), "end"])


def draw_settings(ax: Axes, data: pd.DataFrame, search: SearchSummary) -> None:
    """Draw complete settings in the order proposed, with the best so far."""
    style.style_axes(ax, "settings in the order proposed", "mean objective, %", "evaluated settings")
    kept = data[data["kept"].astype(bool)]
    rest = data[~data["kept"].astype(bool)]
    marks = {"s": 42, "fc": "white", "ec": style.BLUE, "zorder": 3}
    ax.scatter(kept["position"], kept["objective"], label="evaluated", **marks)
    if len(rest):
        crosses = {"marker": "x", "s": 34, "color": style.QUIET, "zorder": 3}
        ax.scatter(rest["position"], rest["objective"], label="pruned, or breaks a constraint", **crosses)
    if len(kept) and len(search.objective) == 1:
        best = kept["objective"].cummax()
        ax.step(kept["position"], best, where="post", color=style.BLUE, lw=1.6, label="best so far")


def side_by_side(positions: pd.Series) -> np.ndarray:
    """Compute offsets that put the marks of one position side by side."""
    groups = positions.groupby(positions)
    return (0.6 * ((groups.cumcount() + 0.5) / groups.transform("size") - 0.5)).to_numpy()
