"""Text for numbers, intervals and differences: one family for console, tables, figures and LaTeX.

    format_percent(0.6557)           "65.6"                             a score in percent
    format_signed(-0.021)            "−2.1"                             a difference of scores in points
    format_interval(0.556, 0.757)    "95 % CI 55.6 to 75.7"             bounds alone
    format_interval_suffix(0.5, 0.7) " (95 % CI 50.0 to 70.0)"          bounds that follow a number
    format_estimate(interval)        "65.6 (95 % CI 55.6 to 75.7)"      a mean with its bounds
    format_difference(interval)      "2.8 points (95 % CI 0.4 to 5.2)"  a difference with its bounds
    format_p_value(0.012, "p")       "p = 0.012"                        a p value

The functions that take a `row` read a row of the comparison table (`run_table.compare`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dgg_ray.stats.intervals import MIN_CLUSTERS, Difference, Interval

CI = "95 % CI "
EQUAL_SCORES = 1e-9  # scores that differ by less differ by rounding alone
NumberFormat = Callable[[float], str]


class Row(Protocol):
    """A row of a table: a Series, or a dict of its values by column."""

    def __getitem__(self, key: Any, /) -> Any: ...


def format_percent(value: float, digits: int = 1) -> str:
    """Format a score in [0, 1] in percent, without a unit; a dash for nan, and never a minus before zero."""
    return "–" if np.isnan(value) else f"{round(100 * value, digits) + 0:.{digits}f}".replace("-", "−")


def format_signed(value: float) -> str:
    """Format a difference of scores in points, with its sign."""
    return ("+" if round(100 * value, 1) > 0 else "") + format_percent(value)


@dataclass(frozen=True)
class EstimateStyle:
    """The format in which `format_estimate` prints a mean and its interval.

    number: formats the mean, the bounds and the single values.
    unit: follows the mean.
    replicate: noun for the n values behind the mean.
    interval_name: precedes the bounds.
    note: follows the bounds.
    """

    number: NumberFormat = format_percent
    unit: str = ""
    replicate: str = "block"
    interval_name: str = CI
    note: str = ""


DEFAULT_STYLE = EstimateStyle()
UNLABELLED = EstimateStyle(interval_name="")  # `65.6 (55.6 to 75.7)`: the table's caption names the interval
UNLABELLED_SIGNED = EstimateStyle(format_signed, interval_name="")


def format_interval(low: float, high: float, style: EstimateStyle = DEFAULT_STYLE) -> str:
    """Format the bounds of an interval; empty where there are none."""
    if np.isnan(low) or np.isnan(high):
        return ""
    return f"{style.interval_name}{style.number(low)} to {style.number(high)}{style.note}"


def format_interval_suffix(low: float, high: float, style: EstimateStyle = DEFAULT_STYLE) -> str:
    """Format bounds that follow a number: ` (95 % CI 55.6 to 75.7)`; empty where there are none."""
    bounds = format_interval(low, high, style)
    return f" ({bounds})" if bounds else ""


def format_estimate(estimate: Interval | Difference, style: EstimateStyle = DEFAULT_STYLE) -> str:
    """Format a mean with its interval, or with the single values where no interval can be given.

    `65.6 (95 % CI 55.6 to 75.7)`, `67.1 (2 blocks: 62.0, 72.0)`, `67.1 (1 block)`,
    `67.1 (the same in all 4 blocks)`, and `–` for nan.
    """
    if np.isnan(estimate.mean):
        return style.number(estimate.mean)
    text = style.number(estimate.mean) + style.unit
    bounds = format_interval(estimate.low, estimate.high, style)
    return f"{text} ({bounds or _format_replicates(estimate, style)})"


def _format_replicates(estimate: Interval | Difference, style: EstimateStyle) -> str:
    """Format the values behind a mean: `2 blocks: 62.0, 72.0`."""
    n, values = int(estimate.n), estimate.values
    if n >= MIN_CLUSTERS and len(values) == n and np.ptp(values) < EQUAL_SCORES:
        return f"the same in all {n} {style.replicate}s"
    count = f"{n} {style.replicate}{'' if n == 1 else 's'}"
    if n <= 1 or len(values) != n:
        return count
    return f"{count}: {', '.join(map(style.number, values))}"


def format_difference(gap: Interval | Difference, sign: float = 1, interval_name: str = CI) -> str:
    """Format a difference in points: `2.8 points (95 % CI 0.4 to 5.2)`; sign -1 swaps the two sides."""
    low, high = sorted((sign * gap.low, sign * gap.high))
    values = tuple(sign * value for value in gap.values)
    style = EstimateStyle(unit=" points", interval_name=interval_name)
    return format_estimate(Interval(sign * gap.mean, low, high, gap.n, values), style)


def score_interval(row: Row) -> Interval:
    """Return the mean of a row over other orders and seeds, with its interval."""
    return Interval(row["score"], row["low"], row["high"], row["n"], row["values"])


def simultaneous_difference(row: Row) -> Interval:
    """Return the paired difference of a row; its bounds hold for all baselines at once."""
    bounds = row["simultaneous_low"], row["simultaneous_high"], row["pairs"]
    return Interval(row["difference"], *bounds, row["difference_values"])


def difference_interval_name(row: Row) -> str:
    """Return the name of the bounds of `simultaneous_difference`.

    The bounds of a single baseline, and of joint training, are those of that comparison alone.
    """
    return CI if row["simultaneous_low"] == row["difference_low"] else f"simultaneous {CI}"


def format_score(row: Row) -> str:
    """Format the mean of a row over other orders and seeds."""
    return format_estimate(score_interval(row))


def format_paired_difference(row: Row, unit: str = "") -> str:
    """Format the paired difference of a row, over other orders and seeds; empty where there is none.

    unit: follows the mean.
    """
    if np.isnan(row["difference"]):
        return ""
    style = EstimateStyle(format_signed, unit, interval_name=difference_interval_name(row))
    return format_estimate(simultaneous_difference(row), style)


def format_on_fixed_orders(row: Row, difference: bool = False, unit: str = "") -> str:
    """Format the mean of a row on the orders that were run, over seeds; or its paired difference.

    unit: follows the mean.
    """
    prefix = "difference_fixed_orders_" if difference else "fixed_orders_"
    mean = row["difference" if difference else "score"]
    estimate = Interval(mean, *(row[f"{prefix}{part}"] for part in ("low", "high", "n", "values")))
    number = format_signed if difference else format_percent
    return format_estimate(estimate, EstimateStyle(number, unit, replicate="seed"))


def format_p_value(p: float, name: str = "") -> str:
    """Format a p value: `0.012`, `< 0.001`, with a name `p = 0.012`, `p < 0.001`; empty for nan."""
    if np.isnan(p):
        return ""
    number = "< 0.001" if p < 0.001 else f"= {p:.3f}"
    return f"{name} {number}" if name else number.removeprefix("= ")
