"""The style that all figures share: colours, markers, axes, labels of points.

Colours are distinguishable for colour-blind readers (Okabe & Ito, 2008), and markers in greyscale. Figures do
not use pyplot, so drawing leaves no global state behind and needs no display.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

INK, QUIET, FAINT = "#1f2933", "#66717e", "#e4e8ec"
PALE = "#82909e"  # marks behind others; its contrast to white is 3 to 1 (WCAG 2.2, 1.4.11)
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
COLOURS = {"finetune": VERMILION, "replay": GREEN, "joint": "#4d4d4d"}
MARKERS = {"finetune": "s", "replay": "^", "joint": "D"}
# For all other methods, by index. The lists differ in length, so the combinations repeat late.
MORE_COLOURS = (PURPLE, ORANGE, "#56B4E9", "#8c6d31", "#7f7f7f")
MORE_MARKERS = ("P", "X", "v", "h", "<", ">", "p")


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, np.ndarray]:
    """Return a figure of that size in inches, and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colour_and_marker(label: str, index: int) -> tuple[str, str]:
    """Return the colour and marker of a compared method; index 0 is the chosen setting, a blue star."""
    if index == 0:
        return BLUE, "*"
    colour, marker = MORE_COLOURS[index % len(MORE_COLOURS)], MORE_MARKERS[index % len(MORE_MARKERS)]
    return COLOURS.get(label, colour), MARKERS.get(label, marker)


def style_axes(ax: Axes, x: str, y: str, title: str = "") -> None:
    """Label the axes, and keep them and the grid less prominent than the data."""
    ax.set_xlabel(x, fontsize=10.5, color=INK)
    ax.set_ylabel(y, fontsize=10.5, color=INK)
    ax.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold")
    ax.tick_params(labelsize=9.5, colors=QUIET, labelcolor=INK, length=3)
    ax.grid(color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance (WCAG 2.2) of red, green and blue in [0, 1]: 0 is black, 1 is white."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the contrast of two colours (WCAG 2.2), from 1 to 21."""
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def text_colour(background: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast: at least 4.5 to 1 on any background."""
    return "black" if contrast(background, (0, 0, 0)) > contrast(background, (1, 1, 1)) else "white"


def percent_ticks(*axes) -> None:
    """Print scores in [0, 1] in percent on these axes (`ax.xaxis`, `ax.yaxis`)."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def legend_outside(ax: Axes) -> None:
    """Put the legend to the right of the axes."""
    ax.legend(fontsize=9.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK)


# Offsets of a label from its point, in typographic points, by preference.
LABEL_OFFSETS = (
    *((9, 0), (-9, 0), (0, 12), (0, -12), (9, 11)),
    *((-9, 11), (9, -11), (-9, -11), (14, 22), (-14, -22)),
)


def annotate_points(ax: Axes, points: Sequence[tuple[float, float, str, str]], occupied: np.ndarray) -> None:
    """Write a label beside each point (x, y, text, colour), away from other points and labels.

    occupied: (n, 2), all points drawn. Limits and layout must be final.
    """
    ax.figure.canvas.draw()
    taken = ax.transData.transform(occupied)
    scale = ax.figure.dpi / 72  # pixels a typographic point
    for x, y, text, colour in points:
        origin = ax.transData.transform((x, y))
        width, height = 6.0 * len(text) * scale, 11 * scale
        obstacles = np.delete(taken, np.hypot(*(taken - origin).T) < 1, axis=0)
        best_score, best_offset, best_area = -np.inf, LABEL_OFFSETS[0], taken[:0]
        for dx, dy in LABEL_OFFSETS:
            left = origin[0] + dx * scale - width * (0 if dx > 0 else 1 if dx < 0 else 0.5)
            columns = left + width * np.linspace(0, 1, 7)
            area = np.column_stack([columns, np.full(7, origin[1] + dy * scale)])
            gaps = np.abs(area[:, None] - obstacles[None]) / [width / 6, height]
            room = gaps.max(axis=2).min() if len(obstacles) else 9.0
            inside = ax.bbox.x0 <= left and left + width <= ax.bbox.x1
            score = min(room, 2.0) + (0 if inside else -5) - 0.01 * np.hypot(dx, dy)
            if score > best_score:
                best_score, best_offset, best_area = score, (dx, dy), area
        dx, _ = best_offset
        label = ax.annotate(
            text,
            (x, y),
            xytext=best_offset,
            textcoords="offset points",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="center",
            fontsize=9.5,
            color=colour,
            zorder=9,
        )
        label.set_path_effects([withStroke(linewidth=3, foreground="white")])
        taken = np.vstack([taken, best_area])
