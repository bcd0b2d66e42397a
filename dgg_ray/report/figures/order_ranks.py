"""Rank of every method in each order of the tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.order_sensitivity import MIN_ORDERS, rank_agreement, rank_table
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, settings_by_label
from dgg_ray.report import figure_style as style

READING = (
    "Where lines do not cross, every order ranks the methods alike. Orders are sorted by their agreement "
    "with the ranking of the mean scores, the best first. Kendall's τ, the mean agreement of two orders, is "
    "1 for the same ranking and 0 for chance."
)

MAX_WIDTH_ORDERS = 60  # orders: with more, the figure grows no wider


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Draw the rank by FAA of each method in each order, with Kendall's τ; None for fewer than 3 orders."""
    split = final_split(results)
    table = rank_table(results, split)
    if table["order"].nunique() < MIN_ORDERS:
        return None
    sorted_table = table.sort_values(["tau", "order"], ascending=[False, True], kind="stable")
    orders = list(dict.fromkeys(sorted_table["order"]))
    wide = table.pivot(index="order", columns="label", values="rank").loc[orders]
    labels = [label for label in settings_by_label(results) if label in wide]
    figure, axes = style.new_figure(
        max(6.4, 2.6 + 0.32 * min(len(orders), MAX_WIDTH_ORDERS)), 2.1 + 0.34 * len(labels)
    )
    ax = axes[0, 0]
    style.style_axes(
        ax, f"{len(orders)} orders of the tasks", "rank by FAA", tau_title(rank_agreement(results, split))
    )
    x = np.arange(1, len(orders) + 1)
    for index, label in enumerate(labels):
        colour, marker = style.colour_and_marker(label, index)
        offset = 0.06 * (index - (len(labels) - 1) / 2)  # so that equal ranks stay visible
        ax.plot(
            x,
            wide[label] + offset,
            color=colour,
            marker=marker,
            ms=11 if marker == "*" else 6.5,
            mec="white",
            lw=1.6,
            label=label,
            clip_on=False,
        )
    ax.set_ylim(len(labels) + 0.35, 0.65)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend_outside(ax)
    return figure, sorted_table


def tau_title(table: pd.DataFrame) -> str:
    """Format Kendall's τ between orders with its interval; empty where there is none."""
    row = table.iloc[0]
    if np.isnan(row["pairwise_tau"]):
        return ""
    interval = "" if np.isnan(row["low"]) else f" (95 % CI {row['low']:.2f} to {row['high']:.2f})"
    return f"Kendall's τ = {row['pairwise_tau']:.2f}{interval}".replace("-", "−")
