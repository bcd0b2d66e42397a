"""Numbers with how sure they are, as the console, the tables, the figures and LaTeX print them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dgg_ray.stats.intervals import FEWEST, Difference, Interval

CI = "95 % CI "
SAME = 1e-9  # of scores: values that differ by less differ by rounding
Form = Callable[[float], str]


def percent(value: float, digits: int = 1) -> str:
    """A score in [0, 1] as a number of percent; a dash for nan, and no minus before zero."""
    return "–" if np.isnan(value) else f"{round(100 * value, digits) + 0:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """A difference of scores in points, with its sign."""
    return ("+" if round(100 * value, 1) > 0 else "") + percent(value)


def interval_text(
    mean: float,
    low: float,
    high: float,
    n: float,
    values: Sequence[float] = (),
    form: Form = percent,
    what: str = "block",
    unit: str = "",
    ci: str = CI,
    extra: str = "",
) -> str:
    """A mean with its interval, or with the values themselves where no interval can be given.

    `65.6 (95 % CI 55.6 to 75.7)`, `67.1 (2 blocks: 62.0, 72.0)`, `67.1 (1 block)`,
    `67.1 (the same in all 4 blocks)`, `–`. form: of a number; what: of which there are n; unit: of the mean;
    extra: said after the bounds.
    """
    if np.isnan(mean):
        return form(mean)
    text = form(mean) + unit
    if not (np.isnan(low) or np.isnan(high)):
        return f"{text} ({ci}{form(low)} to {form(high)}{extra})"
    n = int(n)
    if n >= FEWEST and len(values) == n and np.ptp(values) < SAME:
        return f"{text} (the same in all {n} {what}s)"
    shown = ": " + ", ".join(map(form, values)) if 1 < len(values) == n else ""
    return f"{text} ({n} {what}{'s' * (n != 1)}{shown})"


def points_text(gap: Interval | Difference, sign: float = 1, ci: str = CI) -> str:
    """`2.8 points (95 % CI 0.4 to 5.2)`; sign -1 turns the gap round."""
    low, high = sorted((sign * gap.low, sign * gap.high))
    values = [sign * value for value in gap.values]
    return interval_text(sign * gap.mean, low, high, gap.n, values, unit=" points", ci=ci)


def score_text(row: Mapping[str, Any]) -> str:
    """Of a row of `outcomes.compare`: the mean over other orders and seeds."""
    return interval_text(row["score"], row["low"], row["high"], row["n"], row["values"])


def at_once(row: Mapping[str, Any]) -> Interval:
    """The paired difference of a row of `outcomes.compare`, its bounds for all baselines at once."""
    bounds = row["at_once_low"], row["at_once_high"], row["pairs"]
    return Interval(row["difference"], *bounds, row["difference_values"])


def ci_of(row: Mapping[str, Any]) -> str:
    """The name of these bounds: those of a single baseline, or of joint, are of its own comparison."""
    return CI if row["at_once_low"] == row["difference_low"] else f"simultaneous {CI}"


def difference_text(row: Mapping[str, Any]) -> str:
    """The paired difference, over other orders and seeds, as the verdict has it; empty for none."""
    text = interval_text(*at_once(row), form=signed, ci=ci_of(row))
    return "" if np.isnan(row["difference"]) else text


def these_text(row: Mapping[str, Any], difference: bool = False) -> str:
    """The mean, or the paired difference, on these orders, over seeds."""
    name = "difference_" if difference else ""
    bounds = (row[f"{name}these_low"], row[f"{name}these_high"], row[f"{name}these_n"])
    values, form = row[f"{name}these_values"], signed if difference else percent
    return interval_text(row["difference" if difference else "score"], *bounds, values, form, "seed")
