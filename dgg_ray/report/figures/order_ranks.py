"""Whether every order of the tasks ranks the strategies alike."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dgg_ray.analysis.order_sensitivity import ENOUGH, agreement, ranks
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import compared, final_split
from dgg_ray.report import figures

READING = (
    "Lines that do not cross are strategies that every order ranks alike. Orders are sorted by how "
    "well they agree with the ranking of the mean scores, the best first; τ, the mean agreement of two "
    "orders, is 1 for the same ranking and 0 for chance."
)

WIDE = 60  # orders, above which the figure grows no wider


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """The rank by FAA of each strategy in each order, and Kendall's τ; None for fewer than 3 orders."""
    split = final_split(results)
    table = ranks(results, split)
    if table["order"].nunique() < ENOUGH:
        return None
    sorted_table = table.sort_values(["tau", "order"], ascending=[False, True], kind="stable")
    orders = list(dict.fromkeys(sorted_table["order"]))
    wide = table.pivot(index="order", columns="label", values="rank").loc[orders]
    labels = [label for label in compared(results) if label in wide]
    figure, axes = figures.sheet(max(6.4, 2.6 + 0.32 * min(len(orders), WIDE)), 2.1 + 0.34 * len(labels))
    ax = axes[0, 0]
    figures.quiet(ax, f"{len(orders)} orders of the tasks", "rank by FAA", title(agreement(results, split)))
    x = np.arange(1, len(orders) + 1)
    for place, label in enumerate(labels):
        colour, marker = figures.look(label, place)
        aside = 0.06 * (place - (len(labels) - 1) / 2)  # equal ranks stay visible
        ax.plot(
            x,
            wide[label] + aside,
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
    ax.legend(
        fontsize=9.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=figures.INK
    )
    return figure, sorted_table


def title(table: pd.DataFrame) -> str:
    """τ between orders with its interval."""
    row = table.iloc[0]
    bounds = "" if np.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return "" if np.isnan(row["pairwise"]) else f"τ = {row['pairwise']:.2f}{bounds}".replace("-", "−")
