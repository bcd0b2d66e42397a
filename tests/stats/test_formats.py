"""Tests of the text for numbers, intervals and differences."""

from __future__ import annotations

import numpy as np

from dgg_ray.stats.formats import (
    EstimateStyle,
    format_difference,
    format_estimate,
    format_interval,
    format_p_value,
    format_percent,
    format_signed,
)
from dgg_ray.stats.intervals import Interval


def test_scores_are_percent_and_differences_carry_their_sign():
    assert [format_percent(x) for x in (0.6557, -0.021, -1e-6, np.nan)] == ["65.6", "−2.1", "0.0", "–"]
    assert [format_signed(x) for x in (0.021, -0.021, 1e-6)] == ["+2.1", "−2.1", "0.0"]


def test_an_interval_without_bounds_has_no_text():
    assert format_interval(0.556, 0.757) == "95 % CI 55.6 to 75.7"
    assert format_interval(np.nan, np.nan) == ""


def test_an_estimate_is_printed_with_its_interval_or_with_the_values_behind_it():
    def text(*estimate, **style):
        return format_estimate(Interval(*estimate), EstimateStyle(**style))

    assert text(0.656, 0.556, 0.757, 4) == "65.6 (95 % CI 55.6 to 75.7)"
    assert text(0.67, np.nan, np.nan, 2, (0.62, 0.72)) == "67.0 (2 blocks: 62.0, 72.0)"
    assert text(0.67, np.nan, np.nan, 1, (0.67,)) == "67.0 (1 block)"
    assert text(1.0, np.nan, np.nan, 5, (1.0,) * 5) == "100.0 (the same in all 5 blocks)"
    assert text(0.67, np.nan, np.nan, 3, (0.62, 0.67, 0.72)) == "67.0 (3 blocks: 62.0, 67.0, 72.0)"
    assert text(0.67, np.nan, np.nan, 3) == "67.0 (3 blocks)"
    assert text(0.656, 0.556, 0.757, 4, note=", 4 blocks") == "65.6 (95 % CI 55.6 to 75.7, 4 blocks)"
    assert text(np.nan, np.nan, np.nan, 0) == "–"
    gap = Interval(-0.028, -0.052, -0.004, 4, ())
    assert format_difference(gap, -1) == "2.8 points (95 % CI 0.4 to 5.2)"


def test_a_p_value_is_an_equation_where_it_has_a_name():
    assert [format_p_value(p) for p in (0.0123, 0.00099, np.nan)] == ["0.012", "< 0.001", ""]
    assert [format_p_value(p, "p") for p in (0.0123, 0.00099)] == ["p = 0.012", "p < 0.001"]
