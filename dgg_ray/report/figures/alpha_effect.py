"""What a task's α trades: the new task's score and the change of the old ones, right after that stage."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgg_ray.analysis.alpha_curves import tradeoffs
from dgg_ray.analysis.results import Results
from dgg_ray.report import figures
from dgg_ray.search.alpha_curve import SERIES, Tradeoff

ABREAST = 4  # tasks beside each other
APART = 0.1  # of the width: nearer than that two ticks would touch
MANY = 1000  # stages, above which a PDF holds their dots as a picture
READING = (
    "Above: what α costs the new task. Below: what it saves of the old ones. Lines are monotone fits "
    "within blocks, with 95 % bands of their shape where three independent blocks have an α; faint dots "
    "are single stages, moved by how far their block (order so far and seed) lies above or below the "
    "average block. Dotted: the α where the mean final score is highest; grey bar: those that cannot be told "
    "apart from it, where others can. Filled markers: α = 0 and 1."
)
LOOKS = {
    "new": (figures.ORANGE, "o", "the new task's score, %"),
    "old": (figures.BLUE, "s", "change of the old tasks, points"),
}


def draw(results: Results) -> tuple[Figure, pd.DataFrame] | None:
    """Two panels per task with a searched α, the same α below each other, on the split of the choice.

    Numbers: kind `curve`, a row per α tried with bands and gains; kind `stage`, a row per distinct stage.
    None where no task was learned with two α after another task.
    """
    found = tradeoffs(results)
    if not found:
        return None
    abreast = min(ABREAST, len(found))
    rows = 2 * -(-len(found) // abreast)
    figure, axes = figures.sheet(max(4.2, 1.2 + 2.6 * abreast), 0.3 + 2.3 * rows, rows, abreast, sharex=True)
    for place, tradeoff in enumerate(found):
        row, column = 2 * (place // abreast), place % abreast
        for ax, name in zip(axes[row : row + 2, column], SERIES, strict=True):
            draw_panel(ax, tradeoff, name)
            label = LOOKS[name][2] if column == 0 else ""
            figures.quiet(
                ax, "α of this task" if name == "old" else "", label, tradeoff.task if name == "new" else ""
            )
            figures.percent(ax.yaxis)
            ax.tick_params(labelbottom=name == "old")
    for ax in axes.flat:
        ax.set_axis_on() if ax.lines else ax.set_axis_off()
    data = [tradeoff.points().assign(kind="curve") for tradeoff in found]
    data += [tradeoff.stages.assign(kind="stage") for tradeoff in found]
    return figure, pd.concat(data, ignore_index=True)


def draw_panel(ax: Axes, tradeoff: Tradeoff, name: str) -> None:
    """One curve of one task: stages, line, band, the best α and what cannot be told apart from it."""
    colour, marker, _ = LOOKS[name]
    rows = tradeoff.points()
    alpha, value, low, high = (rows[c].to_numpy() for c in ("alpha", name, f"{name}_low", f"{name}_high"))
    stages = tradeoff.stages[name] - tradeoff.stages[f"{name}_level"]
    # A line without a line: its markers are drawn once and stamped, a scatter's are drawn one by one.
    dots = {"ms": 3.7, "mew": 0, "color": colour, "alpha": 0.35, "rasterized": len(stages) > MANY}
    ax.plot(tradeoff.stages["alpha"], stages, "o", zorder=2, **dots)
    ax.fill_between(alpha, low, high, color=colour, alpha=0.15, lw=0, zorder=1)
    ax.plot(alpha, value, color=colour, lw=1.8, zorder=4)
    anchor = np.isin(alpha, (0, 1))
    ax.scatter(alpha[anchor], value[anchor], marker=marker, s=34, color=colour, zorder=5)
    ax.scatter(
        alpha[~anchor], value[~anchor], marker=marker, s=30, facecolor="white", edgecolor=colour, zorder=5
    )
    # Bands of two blocks are many times as high as the curve: they may leave the panel.
    reach = np.array([*stages, *value])
    room = 0.6 * max(np.ptp(reach), 0.02)
    ax.set_ylim(reach.min() - room, min(reach.max() + room, 1.02))
    ax.axvline(float(rows["alpha"][rows["best"]].iloc[0]), color=figures.INK, lw=1.2, ls=":", zorder=3)
    apart = rows["open"].to_numpy()
    for start, end in stretches(apart) if not apart.all() else []:
        ends, foot = [alpha[start], alpha[end]], ax.get_xaxis_transform()
        ax.plot(
            ends, [0.03, 0.03], color=figures.PALE, lw=5, marker="o", ms=5, mew=0, transform=foot, zorder=3
        )
    ax.set_xscale("function", functions=(signed_root, signed_square))
    if apart.all():
        text = "no α can be told apart"
        ax.text(
            0.5,
            0.02,
            text,
            transform=ax.transAxes,
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=figures.QUIET,
        )
    ticks = spaced(alpha)
    ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])


def spaced(alpha: np.ndarray) -> list[float]:
    """The α tried, as far as there is room to print them; the lowest and the highest always."""
    places = signed_root(alpha)
    room, kept = APART * float(np.ptp(places)), [0]
    for place in range(1, len(alpha) - 1):
        if min(places[place] - places[kept[-1]], places[-1] - places[place]) >= room:
            kept.append(place)
    return alpha[[*kept, *range(max(1, len(alpha) - 1), len(alpha))]].tolist()


def stretches(kept: np.ndarray) -> list[tuple[int, int]]:
    """First and last place of each unbroken run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]])))
    return [(int(start), int(end) - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def signed_root(x: np.ndarray) -> np.ndarray:
    """√x, odd: room for small α, which matter most, with 0 still on the axis."""
    return np.sign(x) * np.sqrt(np.abs(x))


def signed_square(x: np.ndarray) -> np.ndarray:
    """The inverse of signed_root."""
    return np.sign(x) * np.square(x)
