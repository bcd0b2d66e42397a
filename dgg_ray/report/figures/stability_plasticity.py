"""The cost of stability in plasticity: every setting as a point, and the curve along a constant α."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.agreement import unsearched
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    BLOCK,
    alphas,
    compared,
    mean_over,
    runs,
    searched,
    selected,
    selection,
    text_of,
)
from dgg_ray.config.sections import name_of
from dgg_ray.report import figures
from dgg_ray.search.objective import range_of
from dgg_ray.stats.intervals import FEWEST

CURVE_POINTS = 8  # more values of α than this are averaged in bins of BIN or more …
BIN = 4  # … because the noise of single settings would turn the curve into a zigzag
READING = (
    "Right is better at keeping the earlier tasks, up is better at learning the next one. Where settings "
    "with one α for all tasks were tried, a line joins them in the order of α; pale dots have an α of "
    "their own for each task. Crosses are 95 % intervals. The pale edge is the Pareto front of the "
    "settings tried, on the blocks of the search. Joint training has no sequence, hence neither stability "
    "nor plasticity: its final scores on the same tasks place it, without a cross."
)
AXES = ("stability", "plasticity")


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Stability against plasticity on the validation split; None where no setting has both.

    One curve for each value of the other searched settings. Where blocks are held out, what bears a name
    stands where it was compared, and the others where settings were chosen.
    """
    points = settings_as_points(results)
    if points.empty:
        return None
    curve = along_alpha(results, points)
    # Baselines that met held-out blocks alone bound nothing that was searched on others.
    learned = (points["kind"] == "setting") & (points["searched"] | (not results.terms.held_out))
    points["pareto"] = False
    points.loc[learned, "pareto"] = not_dominated(points.loc[learned, list(AXES)].to_numpy())

    figure, axes = figures.sheet(6.4, 6.0)
    ax = axes[0, 0]
    figures.quiet(
        ax, "stability: final score on the earlier tasks, %", "plasticity: score on a task just learned, %"
    )
    figures.percent(ax.xaxis, ax.yaxis)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    draw_front(ax, points)
    draw_searched(ax, points, curve)
    handles, names = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower left", ncols=2, fontsize=9.5, frameon=False)
    draw_compared(ax, points, curve, compared(results))
    notes = []
    if "compared" in set(points["kind"]):
        notes.append(
            "names: held-out blocks, dots: blocks of the search (a dotted line joins a setting's two)"
        )
    if (points["clusters"].dropna() < FEWEST).any():
        notes.append("no cross: fewer than 3 independent blocks")
    if notes:
        text = "\n".join(notes)
        ax.text(1, 1.01, text, transform=ax.transAxes, ha="right", fontsize=8.5, color=figures.QUIET)
    return figure, pd.concat([points, curve], ignore_index=True)


def settings_as_points(results: Results) -> pd.DataFrame:
    """One row per setting with both metrics, its mean α, its other searched values and its intervals.

    constant: whether its α is the same for all tasks that it acts on.
    """
    table = selected(results).dropna(subset=list(AXES)).groupby(["setting", *BLOCK])[list(AXES)].mean()
    known, labels = searched(results), {setting: label for label, setting in compared(results).items()}
    columns = sorted(set(alphas(results).values()) - set(unsearched(results)))
    others = [k for k in results.parameters if k not in columns and known[k].nunique() > 1]
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
        row["constant"] = values is not None and len(columns) > 0 and values[columns].nunique() == 1
        rows.append(row | bands(group) | {"blocks": len(group)})
    rows += held_out_points(results, labels)
    rows += joint_points(results, set(labels) - set(table.index.get_level_values("setting")), labels)
    return pd.DataFrame(rows)


def held_out_points(results: Results, labels: dict[str, str]) -> list[dict[str, Any]]:
    """Searched settings that are compared with baselines, once more, on the blocks of the comparison."""
    table = runs(results, results.terms.selection_split).dropna(subset=list(AXES)).set_index(BLOCK)
    there = table[table.index.isin(list(results.terms.compared_on)) & results.terms.held_out]
    twice = there[there["setting"].isin(labels.keys() & set(searched(results).index))]
    plain = {"kind": "compared", "alpha": np.nan, "others": "", "searched": False, "constant": False}
    return [
        plain | {"setting": setting, "label": labels[str(setting)]} | bands(group) | {"blocks": len(group)}
        for setting, group in twice.groupby("setting")
    ]


def bands(group: pd.DataFrame) -> dict[str, float]:
    """Means of both metrics over blocks (the rows), with their intervals; clusters: that these are over."""
    scores = group.reset_index().set_index(BLOCK)
    found = {axis: mean_over(scores[axis], range_of(axis)) for axis in AXES}
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
            row |= {"alpha": np.nan, "searched": False, "constant": False, **group.mean()}
            rows.append(row | {"blocks": len(group), "clusters": np.nan})
    return rows


def along_alpha(results: Results, points: pd.DataFrame) -> pd.DataFrame:
    """The curves of constant α: means over the blocks, and over nearly equal α, with their intervals."""
    rows: list[dict[str, Any]] = [
        {"kind": "curve", "others": others, "alpha": alpha, "searched": True}
        | bands(blocks)
        | {"blocks": len(blocks)}
        for others, line in constant(results, points).items()
        for alpha, blocks in line
    ]
    return pd.DataFrame(rows)


def constant(results: Results, points: pd.DataFrame) -> dict[str, list[tuple[float, pd.DataFrame]]]:
    """The other searched values → (one α for all tasks, both metrics by block), from the lowest α."""
    table = selected(results).dropna(subset=list(AXES))
    found: dict[str, list[tuple[float, pd.DataFrame]]] = {}
    for others, group in points[points["constant"]].groupby("others", sort=True):
        values = sorted(group["alpha"].dropna().unique())
        bins = len(values) if len(values) <= CURVE_POINTS else min(CURVE_POINTS, len(values) // BIN)
        for near in np.array_split(values, bins) if len(values) > 1 else []:
            members = set(group.loc[group["alpha"].isin(near), "setting"])
            blocks = table[table["setting"].isin(members)].groupby(BLOCK)[list(AXES)].mean()
            found.setdefault(str(others), []).append((float(np.mean(near)), blocks))
    return found


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
        look = {"color": figures.PALE, "lw": 3, "solid_joinstyle": "round", "label": "Pareto front"}
        ax.step(x, y, where="pre", zorder=1, **look)


def draw_searched(ax: Axes, points: pd.DataFrame, curve: pd.DataFrame) -> None:
    """The searched settings, pale, and a curve for each value of the others."""
    mixed = points[points["searched"] & ~points["constant"]]
    if len(mixed):
        kind = "an α for each task" if mixed["alpha"].notna().any() else "settings tried"
        ax.scatter(
            mixed["stability"],
            mixed["plasticity"],
            s=34,
            color=figures.PALE,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
            label=kind,
        )
    styles = ["-", "--", ":", "-."]
    for i, (others, line) in enumerate(curve.groupby("others", sort=True) if len(curve) else []):
        x, y = line["stability"].to_numpy(), line["plasticity"].to_numpy()
        label = f"one α for all tasks{f', {others}' if others else ''}"
        look = {"color": figures.BLUE, "lw": 1.6, "ls": styles[i % 4], "marker": "o", "ms": 6, "mec": "white"}
        ax.plot(x, y, label=label, zorder=4, **look)
        cross(ax, line, figures.BLUE)
    lone = points[points["constant"] & ~points["alpha"].isin(curve["alpha"] if len(curve) else [])]
    if len(lone):
        x, y = lone["stability"], lone["plasticity"]
        ax.scatter(x, y, color=figures.BLUE, s=40, edgecolor="white", label="one α for all tasks", zorder=4)


def cross(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Intervals in both directions."""
    rows = rows.loc[rows["clusters"] >= FEWEST]
    x, y = rows["stability"], rows["plasticity"]
    ax.hlines(y, rows["stability_low"], rows["stability_high"], color=colour, lw=0.9, alpha=0.55, zorder=1.5)
    ax.vlines(
        x, rows["plasticity_low"], rows["plasticity_high"], color=colour, lw=0.9, alpha=0.55, zorder=1.5
    )


def draw_compared(ax: Axes, points: pd.DataFrame, curve: pd.DataFrame, labels: dict[str, str]) -> None:
    """A star on the chosen setting, a marker and a word on each baseline; the curves' α beside them."""
    words = []
    for place, (label, setting) in enumerate(labels.items()):
        both = points[points["setting"] == setting]
        row = both.iloc[-1:]  # where it was compared
        if row.empty:
            continue
        colour, marker = figures.look(label, place)
        x, y = float(row["stability"].iloc[0]), float(row["plasticity"].iloc[0])
        if len(both) > 1:  # where it was judged is another place
            ax.plot(both["stability"], both["plasticity"], color=colour, lw=1.2, ls=":", zorder=5)
        size = 230 if marker == "*" else 62
        ax.scatter(x, y, marker=marker, s=size, color=colour, edgecolor="white", linewidth=1, zorder=6)
        if row["kind"].iloc[0] != "reference":
            cross(ax, row, colour)
        words.append((x, y, label, colour))
    for row in curve.to_dict("records"):
        words.append((row["stability"], row["plasticity"], f"α {text_of(row['alpha'])}", figures.BLUE))
    figures.callouts(ax, words, points[list(AXES)].to_numpy())
