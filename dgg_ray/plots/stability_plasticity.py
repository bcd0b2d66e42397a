"""What stability costs in plasticity: every setting as a point, and the curve along α."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray import plots
from dgg_ray.intervals import mean_interval, ways_of
from dgg_ray.outcomes import (
    BLOCK,
    Results,
    alphas,
    compared,
    name_of,
    runs,
    searched,
    selected,
    selection,
    text_of,
)

CURVE_POINTS = 8  # more values of α than this are averaged in bins of BIN or more …
BIN = 4  # … because the noise of single settings would turn the curve into a zigzag
READING = (
    "Up is better at learning the next task, right is better at keeping the old ones; each dot is a setting, "
    "coloured by its α, with 95 % intervals over blocks where three or more are independent. The pale edge "
    "is what no setting goes beyond. Where blocks are held out, what bears a name lies where it was compared "
    "and the dots lie where settings were chosen: these are different blocks."
)
FEWEST = 3  # independent blocks behind a cross: over two an interval is wider than the figure
AXES = ("stability", "plasticity")


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Stability against plasticity on the validation split; None where no setting has both.

    The curve runs along α, its mean over the tasks where it differs between them; one curve for each
    value of the other searched settings. Crosses are 95 % intervals over blocks (`FEWEST`).
    """
    points = settings_as_points(results)
    if points.empty:
        return None
    curve = along_alpha(results, points)
    # Rivals that met held-out blocks alone bound nothing that was searched on others.
    learned = (points["kind"] == "setting") & (points["searched"] | (not results.terms.held_out))
    points["pareto"] = False
    points.loc[learned, "pareto"] = not_dominated(points.loc[learned, list(AXES)].to_numpy())

    figure, axes = plots.sheet(7.6, 5.4)
    ax = axes[0, 0]
    plots.quiet(
        ax, "stability: final score on the earlier tasks, %", "plasticity: score on a task just learned, %"
    )
    plots.percent(ax.xaxis, ax.yaxis)
    ax.margins(0.12)
    draw_front(ax, points)
    draw_searched(figure, ax, points, curve)
    handles, names = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower left", ncols=3, fontsize=9.5, frameon=False)
    searched_for = results.recommended if results.knobs else None
    draw_compared(ax, points, compared(results), searched_for)
    notes = (
        ["names: held-out blocks, dots: blocks of the search"] if "compared" in set(points["kind"]) else []
    )
    if (points["clusters"].dropna() < FEWEST).any():
        notes.append("no cross: fewer than 3 independent blocks")
    if notes:
        text = "\n".join(notes)
        ax.text(1, 1.01, text, transform=ax.transAxes, ha="right", fontsize=8.5, color=plots.QUIET)
    return figure, pd.concat([points, curve], ignore_index=True)


def settings_as_points(results: Results) -> pd.DataFrame:
    """One row per setting with both metrics, its mean α, its other searched values and its intervals."""
    table = selected(results).dropna(subset=list(AXES)).groupby(["setting", *BLOCK])[list(AXES)].mean()
    known, labels = searched(results), {setting: label for label, setting in compared(results).items()}
    columns = sorted(set(alphas(results).values()))
    others = [k for k in results.knobs if k not in columns and known[k].nunique() > 1]
    rows: list[dict[str, Any]] = []
    for setting, group in table.groupby(level="setting", sort=True):
        ours = setting in known.index
        values = known.loc[setting] if ours else None
        row = {"kind": "setting", "setting": setting, "label": labels.get(str(setting), "")}
        row["alpha"] = (
            float(values[columns].astype(float).mean()) if values is not None and columns else np.nan
        )
        row["others"] = (
            ", ".join(f"{name_of(k)} {text_of(values[k])}" for k in others) if values is not None else ""
        )
        row["searched"] = ours
        rows.append(row | bands(group) | {"blocks": len(group)})
    rows += held_out_points(results, labels)
    rows += joint_points(results, set(labels) - set(table.index.get_level_values("setting")), labels)
    return pd.DataFrame(rows)


def held_out_points(results: Results, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Searched settings that are compared with rivals, once more, on the blocks of the comparison."""
    table = runs(results, results.terms.select_on).dropna(subset=list(AXES)).set_index(BLOCK)
    there = table[table.index.isin(list(results.terms.compared_on)) & results.terms.held_out]
    twice = there[there["setting"].isin(labels.keys() & set(searched(results).index))]
    plain = {"kind": "compared", "alpha": np.nan, "others": "", "searched": False}
    return [
        plain | {"setting": setting, "label": labels[str(setting)]} | bands(group) | {"blocks": len(group)}
        for setting, group in twice.groupby("setting")
    ]


def bands(group: pd.DataFrame) -> dict[str, float]:
    """Means of both metrics over blocks (the rows), with their intervals; clusters: that these are over."""
    blocks = tuple(zip(*(group.index.get_level_values(name) for name in BLOCK), strict=True))
    found = {axis: mean_interval(group[axis], clusters=ways_of(blocks)) for axis in AXES}
    row = {
        f"{axis}{part}": value
        for axis, interval in found.items()
        for part, value in zip(("", "_low", "_high"), interval[:3], strict=True)
    }
    return row | {"clusters": found[AXES[0]].n}


def joint_points(results: Results, missing: set[str], labels: dict[str, str]) -> list[dict[str, Any]]:
    """Joint runs have neither metric; they are placed by the same tasks' scores, as a reference."""
    rows = []
    for setting in sorted(missing):
        together = [run for run in selection(results) if run.setting == setting and run.together]
        last = [(run.scores.R[-1, :-1].mean(), run.scores.R[-1, 1:].mean()) for run in together]
        group = pd.DataFrame(last, columns=list(AXES)).dropna()
        if len(group):
            row = {"kind": "reference", "setting": setting, "label": labels[setting], "others": ""}
            # One run serves every order of a seed, so its rows are no blocks and bear no band.
            row |= {"alpha": np.nan, "searched": False, **group.mean()}
            rows.append(row | {"blocks": len(group), "clusters": np.nan})
    return rows


def along_alpha(results: Results, points: pd.DataFrame) -> pd.DataFrame:
    """The curves: means over the blocks, and over settings of nearly the same α, with their intervals."""
    table = selected(results).dropna(subset=list(AXES))
    rows: list[dict[str, Any]] = []
    for others, group in points[points["searched"]].groupby("others", sort=True):
        values = sorted(group["alpha"].dropna().unique())
        bins = len(values) if len(values) <= CURVE_POINTS else min(CURVE_POINTS, len(values) // BIN)
        for near in np.array_split(values, bins) if len(values) > 1 else []:
            members = set(group.loc[group["alpha"].isin(near), "setting"])
            blocks = table[table["setting"].isin(members)].groupby(BLOCK)[list(AXES)].mean()
            row = {"kind": "curve", "others": others, "alpha": float(np.mean(near)), "searched": True}
            rows.append(row | bands(blocks) | {"blocks": len(blocks)})
    return pd.DataFrame(rows)


def not_dominated(points: np.ndarray) -> np.ndarray:
    """Which points no other beats in one coordinate without losing in the other."""
    as_good = (points[:, None] >= points[None]).all(axis=2)  # [i, j]: i is nowhere below j
    better = (points[:, None] > points[None]).any(axis=2)
    return ~(as_good & better).any(axis=0)


def draw_front(ax: Axes, points: pd.DataFrame) -> None:
    """The Pareto front of all settings that learn in sequence, as the edge of what was reached."""
    best = points[points["pareto"]].sort_values("stability")
    if len(best) > 1:
        x, y = best["stability"].to_numpy(), best["plasticity"].to_numpy()
        ax.step(
            x, y, where="pre", color="#d3dce6", lw=7, solid_joinstyle="round", zorder=1, label="Pareto front"
        )


def draw_searched(figure: Figure, ax: Axes, points: pd.DataFrame, curve: pd.DataFrame) -> None:
    """The searched settings coloured by α, and a curve for each value of the others."""
    own = points[points["searched"]]
    styles = ["-", "--", ":", "-."]
    for i, (others, line) in enumerate(curve.groupby("others", sort=True) if len(curve) else []):
        x, y = line["stability"].to_numpy(), line["plasticity"].to_numpy()
        ax.plot(x, y, color=plots.QUIET, lw=1.4, ls=styles[i % 4], zorder=2, label=others or "along α")
        cross(ax, line, plots.QUIET)
    if own["alpha"].nunique() > 1:
        dots = ax.scatter(
            own["stability"],
            own["plasticity"],
            c=own["alpha"],
            cmap="viridis",
            norm=PowerNorm(0.5),  # published values of α lie between 0.05 and 0.2: small ones need the room
            s=50,
            edgecolor=plots.INK,
            linewidth=0.6,
            zorder=4,
        )
        bar = figure.colorbar(dots, ax=ax, ticks=MaxNLocator(5), shrink=0.75, pad=0.02, aspect=28)
        bar.set_label("α (mean over tasks)", fontsize=10, color=plots.INK)
        bar.ax.tick_params(labelsize=9, colors=plots.QUIET, labelcolor=plots.INK)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    elif len(own):
        ax.scatter(own["stability"], own["plasticity"], color=plots.BLUE, s=46, edgecolor="white", zorder=4)


def cross(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Intervals in both directions."""
    rows = rows.loc[rows["clusters"] >= FEWEST]
    x, y = rows["stability"], rows["plasticity"]
    ax.hlines(y, rows["stability_low"], rows["stability_high"], color=colour, lw=0.9, alpha=0.55, zorder=1.5)
    ax.vlines(
        x, rows["plasticity_low"], rows["plasticity_high"], color=colour, lw=0.9, alpha=0.55, zorder=1.5
    )


def draw_compared(ax: Axes, points: pd.DataFrame, labels: dict[str, str], recommended: str | None) -> None:
    """A star on the recommended setting, a marker and a word on each rival."""
    words = []
    for place, (label, setting) in enumerate(labels.items()):
        row = points[points["setting"] == setting].iloc[-1:]  # where it was compared
        if row.empty:
            continue
        colour, marker = plots.look(label, place)
        x, y = float(row["stability"].iloc[0]), float(row["plasticity"].iloc[0])
        size = 230 if marker == "*" else 62
        ax.scatter(x, y, marker=marker, s=size, color=colour, edgecolor="white", linewidth=1, zorder=6)
        if row["kind"].iloc[0] != "reference":
            cross(ax, row, colour)
        words.append((x, y, f"{label}, recommended" if setting == recommended else label, colour))
    plots.callouts(ax, words, points[list(AXES)].to_numpy())
