"""Figures of the report, one file each: `draw(results) -> (Figure, its numbers) | None`.

None where the study has nothing for the figure. Here is the hand they share: colours that stay apart
for colour-blind readers (Okabe & Ito, 2008) and in grey by their markers, and quiet axes. Figures are
made without pyplot, so that drawing leaves no state behind and needs no display.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

INK, QUIET, FAINT = "#1f2933", "#66717e", "#e4e8ec"
PALE = "#82909e"  # marks that stay behind others, and are seen: 3 to 1 against white (WCAG 2.2, 1.4.11)
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
COLOURS = {"finetune": VERMILION, "replay": GREEN, "joint": "#4d4d4d"}
MARKERS = {"finetune": "s", "replay": "^", "joint": "D"}
# Of all others, by their place; colours and markers come round at different times.
MORE_COLOURS = (PURPLE, ORANGE, "#56B4E9", "#8c6d31", "#7f7f7f")
MORE_MARKERS = ("P", "X", "v", "h", "<", ">", "p")


def sheet(
    width: float, height: float, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, np.ndarray]:
    """A figure in inches and its axes as (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def look(label: str, place: int) -> tuple[str, str]:
    """(colour, marker) of a compared setting; the first, ours, is a blue star."""
    if place == 0:
        return BLUE, "*"
    colour, marker = MORE_COLOURS[place % len(MORE_COLOURS)], MORE_MARKERS[place % len(MORE_MARKERS)]
    return COLOURS.get(label, colour), MARKERS.get(label, marker)


def quiet(ax: Axes, x: str, y: str, title: str = "") -> None:
    """Axes that stay behind the data."""
    ax.set_xlabel(x, fontsize=10.5, color=INK)
    ax.set_ylabel(y, fontsize=10.5, color=INK)
    ax.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold")
    ax.tick_params(labelsize=9.5, colors=QUIET, labelcolor=INK, length=3)
    ax.grid(color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance (WCAG 2.2) of red, green and blue in [0, 1]: 0 is black, 1 is white."""
    parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast of two colours (WCAG 2.2), from 1 to 21."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def readable(on: Sequence[float]) -> str:
    """Black or white, whichever stands out more: at least 4.5 to 1 on any colour."""
    return "black" if contrast(on, (0, 0, 0)) > contrast(on, (1, 1, 1)) else "white"


def percent(*axes) -> None:
    """Scores in [0, 1] printed in percent on these axes (`ax.xaxis`, `ax.yaxis`)."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def callouts(ax: Axes, points: Sequence[tuple[float, float, str, str]], others: np.ndarray) -> None:
    """A word beside each point (x, y, text, colour), where neither points nor words are in its way.

    others: (n, 2), all points drawn. Limits and layout must be final.
    """
    ax.figure.canvas.draw()
    taken = ax.transData.transform(others)
    scale = ax.figure.dpi / 72  # pixels a typographic point
    for x, y, text, colour in points:
        home = ax.transData.transform((x, y))
        width, height = 6.0 * len(text) * scale, 11 * scale
        best = None
        for dx, dy in [
            (9, 0),
            (-9, 0),
            (0, 12),
            (0, -12),
            (9, 11),
            (-9, 11),
            (9, -11),
            (-9, -11),
            (14, 22),
            (-14, -22),
        ]:
            left = home[0] + dx * scale - width * (0 if dx > 0 else 1 if dx < 0 else 0.5)
            spots = left + width * np.linspace(0, 1, 7)
            mine = np.column_stack([spots, np.full(7, home[1] + dy * scale)])
            apart = np.delete(taken, np.hypot(*(taken - home).T) < 1, axis=0)
            gap = np.abs(mine[:, None] - apart[None]) / [width / 6, height]
            room = gap.max(axis=2).min() if len(apart) else 9.0
            inside = ax.bbox.x0 <= left and left + width <= ax.bbox.x1
            value = min(room, 2.0) + (0 if inside else -5) - 0.01 * np.hypot(dx, dy)
            if best is None or value > best[0]:
                best = (value, dx, dy, mine)
        assert best is not None
        _, dx, dy, mine = best
        note = ax.annotate(
            text,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="center",
            fontsize=9.5,
            color=colour,
            zorder=9,
        )
        note.set_path_effects([withStroke(linewidth=3, foreground="white")])
        taken = np.vstack([taken, mine])
