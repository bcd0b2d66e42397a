"""Stability against plasticity: every setting as a point, and the curve along a constant α."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.alpha_curves import unsearched_parameters
from dgg_ray.analysis.comparison_tables import interval_of_scores
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    BLOCK,
    alpha_columns,
    format_value,
    runs,
    searched_settings,
    selection_runs,
    selection_table,
    settings_by_label,
)
from dgg_ray.config.sections import name_of
from dgg_ray.report import figure_style as style
from dgg_ray.search.objective import metric_range
from dgg_ray.stats.intervals import MIN_CLUSTERS

MAX_CURVE_POINTS = 8  # more values of α than this are averaged in bins of MIN_BIN_SIZE or more …
MIN_BIN_SIZE = 4  # … because the noise of single settings would turn the curve into a zigzag
READING = (
    "Further right: earlier tasks are kept better. Further up: the next task is learned better. A line "
    "joins the settings with one α for all tasks, where these were tried, in the order of α. Pale dots have "
    "a separate α for each task. Crosses are 95 % intervals. The pale edge is the Pareto front of the "
    "settings tried, on the blocks of the search. Joint training has no sequence, hence neither stability "
    "nor plasticity. It is placed by its final scores on the same tasks, without a cross."
)
AXES = ("stability", "plasticity")


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw stability against plasticity on the validation split; None where no setting has both."""
    points, curve = points_and_curves(results)
    if points.empty:
        return None
    figure, axes = style.new_figure(6.4, 6.0)
    ax = axes[0, 0]
    style.style_axes(
        ax, "stability: final score on the earlier tasks, %", "plasticity: score on a task just trained, %"
    )
    style.percent_ticks(ax.xaxis, ax.yaxis)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    draw_front(ax, points)
    draw_searched(ax, points, curve)
    handles, names = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower left", ncols=2, fontsize=9.5, frameon=False)
    draw_compared(ax, points, curve, settings_by_label(results))
    notes = []
    if "compared" in set(points["kind"]):
        notes.append(
            "names: held-out blocks; dots: blocks of the search (a dotted line joins the two points of a "
            "setting)"
        )
    if (points["clusters"].dropna() < MIN_CLUSTERS).any():
        notes.append("no cross: fewer than 3 independent blocks")
    if notes:
        text = "\n".join(notes)
        ax.text(1, 1.01, text, transform=ax.transAxes, ha="right", fontsize=8.5, color=style.QUIET)
    return figure, pd.concat([points, curve], ignore_index=True)


def points_and_curves(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List the settings as points, `pareto` saying which are on the front, and the curves of constant α.

    There is one curve for each combination of the other parameters. Where blocks are held out, named methods
    are placed by their scores on these, and all other settings by their scores on the blocks of the search.
    """
    points = settings_as_points(results)
    if points.empty:
        return points, pd.DataFrame()
    # Baselines with scores on held-out blocks alone do not bound settings that were searched on other blocks.
    sequential = (points["kind"] == "setting") & (points["searched"] | (not results.setup.held_out))
    points["pareto"] = False
    points.loc[sequential, "pareto"] = not_dominated(points.loc[sequential, list(AXES)].to_numpy())
    return points, constant_alpha_points(results, points)


def settings_as_points(results: Results) -> pd.DataFrame:
    """List each setting with both metrics, their intervals, its mean α and its other searched values.

    Columns: constant: whether α is the same for all tasks that it acts on; other_values: in words.
    """
    table = selection_table(results).dropna(subset=list(AXES)).groupby(["setting", *BLOCK])[list(AXES)].mean()
    searched = searched_settings(results)
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    alphas = sorted(set(alpha_columns(results).values()) - set(unsearched_parameters(results)))
    others = [p for p in results.parameters if p not in alphas and searched[p].nunique() > 1]
    rows: list[dict[str, Any]] = []
    for setting, group in table.groupby(level="setting", sort=True):
        row = {"kind": "setting", "setting": setting, "label": labels.get(str(setting), "")}
        row |= {"alpha": np.nan, "other_values": "", "searched": setting in searched.index, "constant": False}
        if row["searched"]:
            values = cast(pd.Series, searched.loc[str(setting)])
            row["other_values"] = ", ".join(f"{name_of(p)} {format_value(values[p])}" for p in others)
            if alphas:
                row["alpha"] = float(values[alphas].astype(float).mean())
                row["constant"] = values[alphas].nunique() == 1
        rows.append(row | metric_intervals(group) | {"blocks": len(group)})
    rows += held_out_points(results, labels)
    rows += joint_points(results, set(labels) - set(table.index.get_level_values("setting")), labels)
    return pd.DataFrame(rows)


def held_out_points(results: Results, labels: dict[str, str]) -> list[dict[str, Any]]:
    """List the searched settings among the compared methods again, with scores on the held-out blocks."""
    if not results.setup.held_out:
        return []
    table = runs(results, results.setup.selection_split).dropna(subset=list(AXES)).set_index(BLOCK)
    table = table[table.index.isin(list(results.setup.final_blocks))]
    table = table[table["setting"].isin(labels.keys() & set(searched_settings(results).index))]
    rows = []
    for setting, group in table.groupby("setting"):
        row = {"kind": "compared", "alpha": np.nan, "other_values": "", "searched": False, "constant": False}
        row |= {"setting": setting, "label": labels[str(setting)]}
        rows.append(row | metric_intervals(group) | {"blocks": len(group)})
    return rows


def metric_intervals(group: pd.DataFrame) -> dict[str, float]:
    """Compute the means of both metrics over blocks (the rows) with their intervals.

    clusters: the number of independent clusters of blocks behind the intervals.
    """
    scores = group.reset_index().set_index(BLOCK)
    intervals = {axis: interval_of_scores(scores[axis], metric_range(axis)) for axis in AXES}
    row: dict[str, float] = {"clusters": intervals[AXES[0]].n}
    for axis, interval in intervals.items():
        row |= {axis: interval.mean, f"{axis}_low": interval.low, f"{axis}_high": interval.high}
    return row


def joint_points(results: Results, missing: set[str], labels: dict[str, str]) -> list[dict[str, Any]]:
    """List joint runs, which have neither metric, by their final scores on the same tasks, as a reference."""
    rows = []
    for setting in sorted(missing):
        joint_runs = [run for run in selection_runs(results) if run.setting == setting and run.together]
        scores = [(run.scores.R[-1, :-1].mean(), run.scores.R[-1, 1:].mean()) for run in joint_runs]
        group = pd.DataFrame(scores, columns=list(AXES)).dropna()
        if len(group):
            row = {"kind": "reference", "setting": setting, "label": labels[setting], "other_values": ""}
            # One run serves every order of a seed, so its rows are not blocks and have no interval.
            row |= {"alpha": np.nan, "searched": False, "constant": False, **group.mean()}
            rows.append(row | {"blocks": len(group), "clusters": np.nan})
    return rows


def constant_alpha_points(results: Results, points: pd.DataFrame) -> pd.DataFrame:
    """List the points of the curves of constant α, with intervals; see `constant_alpha_curves`."""
    rows: list[dict[str, Any]] = []
    for other_values, curve in constant_alpha_curves(results, points).items():
        for alpha, blocks in curve:
            row = {"kind": "curve", "other_values": other_values, "alpha": alpha, "searched": True}
            rows.append(row | metric_intervals(blocks) | {"blocks": len(blocks)})
    return pd.DataFrame(rows)


def constant_alpha_curves(
    results: Results, points: pd.DataFrame
) -> dict[str, list[tuple[float, pd.DataFrame]]]:
    """Map the other searched values to a curve: (one α for all tasks, both metrics by block), by rising α.

    If many α were tried, neighbouring ones are averaged.
    """
    table = selection_table(results).dropna(subset=list(AXES))
    curves: dict[str, list[tuple[float, pd.DataFrame]]] = {}
    for other_values, group in points[points["constant"]].groupby("other_values", sort=True):
        alphas = sorted(group["alpha"].dropna().unique())
        if len(alphas) < 2:
            continue
        bins = len(alphas)
        if bins > MAX_CURVE_POINTS:
            bins = min(MAX_CURVE_POINTS, len(alphas) // MIN_BIN_SIZE)
        curve = []
        for neighbours in np.array_split(alphas, bins):
            members = set(group.loc[group["alpha"].isin(neighbours), "setting"])
            blocks = table[table["setting"].isin(members)].groupby(BLOCK)[list(AXES)].mean()
            curve.append((float(np.mean(neighbours)), blocks))
        curves[str(other_values)] = curve
    return curves


def not_dominated(points: np.ndarray) -> np.ndarray:
    """Mark the points that no other point exceeds in one coordinate without falling short in another."""
    as_good = (points[:, None] >= points[None]).all(axis=2)  # [i, j]: i is nowhere below j
    better = (points[:, None] > points[None]).any(axis=2)
    return cast(np.ndarray, ~(as_good & better).any(axis=0))


def draw_front(ax: Axes, points: pd.DataFrame) -> None:
    """Draw the Pareto front of all settings that train in sequence."""
    front = points[points["pareto"]].sort_values("stability")
    if len(front) > 1:
        x, y = front["stability"].to_numpy(), front["plasticity"].to_numpy()
        edge = {"color": style.PALE, "lw": 3, "solid_joinstyle": "round", "label": "Pareto front"}
        ax.step(x, y, where="pre", zorder=1, **edge)


def draw_searched(ax: Axes, points: pd.DataFrame, curves: pd.DataFrame) -> None:
    """Draw the searched settings, and a curve of constant α for each combination of the other parameters."""
    mixed = points[points["searched"] & ~points["constant"]]
    if len(mixed):
        label = "an α for each task" if mixed["alpha"].notna().any() else "settings tried"
        marks = {"s": 34, "color": style.PALE, "edgecolor": "white", "linewidth": 0.6}
        ax.scatter(mixed["stability"], mixed["plasticity"], zorder=3, label=label, **marks)
    on_curves = set()
    if len(curves):
        on_curves = set(curves["alpha"])
        dashes = itertools.cycle(["-", "--", ":", "-."])
        for (other_values, curve), dash in zip(
            curves.groupby("other_values", sort=True), dashes, strict=False
        ):
            x, y = curve["stability"].to_numpy(), curve["plasticity"].to_numpy()
            label = f"one α for all tasks{f', {other_values}' if other_values else ''}"
            line = {"color": style.BLUE, "lw": 1.6, "ls": dash, "marker": "o", "ms": 6, "mec": "white"}
            ax.plot(x, y, label=label, zorder=4, **line)
            draw_crosses(ax, curve, style.BLUE)
    single = points[points["constant"] & ~points["alpha"].isin(on_curves)]
    if len(single):
        x, y = single["stability"], single["plasticity"]
        ax.scatter(x, y, color=style.BLUE, s=40, edgecolor="white", label="one α for all tasks", zorder=4)


def draw_crosses(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Draw the intervals of both metrics, where there are enough independent blocks."""
    rows = rows.loc[rows["clusters"] >= MIN_CLUSTERS]
    line = {"color": colour, "lw": 0.9, "alpha": 0.55, "zorder": 1.5}
    ax.hlines(rows["plasticity"], rows["stability_low"], rows["stability_high"], **line)
    ax.vlines(rows["stability"], rows["plasticity_low"], rows["plasticity_high"], **line)


def draw_compared(ax: Axes, points: pd.DataFrame, curves: pd.DataFrame, labels: dict[str, str]) -> None:
    """Draw a star for the chosen setting and a labelled marker for each baseline; label the curves with α."""
    annotations = []
    for index, (label, setting) in enumerate(labels.items()):
        rows = points[points["setting"] == setting]
        if rows.empty:
            continue
        row = rows.iloc[-1:]  # the last one is on the blocks of the comparison
        colour, marker = style.colour_and_marker(label, index)
        x, y = float(row["stability"].iloc[0]), float(row["plasticity"].iloc[0])
        if len(rows) > 1:  # the setting has a second point on the blocks of the search
            ax.plot(rows["stability"], rows["plasticity"], color=colour, lw=1.2, ls=":", zorder=5)
        size = 230 if marker == "*" else 62
        ax.scatter(x, y, marker=marker, s=size, color=colour, edgecolor="white", linewidth=1, zorder=6)
        if row["kind"].iloc[0] != "reference":
            draw_crosses(ax, row, colour)
        annotations.append((x, y, label, colour))
    for row in curves.to_dict("records"):
        text = f"α {format_value(row['alpha'])}"
        annotations.append((row["stability"], row["plasticity"], text, style.BLUE))
    style.annotate_points(ax, annotations, points[list(AXES)].to_numpy())
