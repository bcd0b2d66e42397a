"""Optimism of the search's score, in numbers computed by hand."""

import numpy as np
import pytest
from report_samples import ORDERS, small_study

from dgg_ray.analysis.optimism import constraint_margin, describe_excess, gap_below, optimism
from dgg_ray.analysis.results import ComparisonSetup, SearchSummary
from dgg_ray.config.sections import Constraint
from dgg_ray.stats.intervals import mean_interval

FIRST, SECOND = ((order, 0) for order in ORDERS)
SEARCH = SearchSummary("tpe", ("faa",))


def test_optimism_is_the_search_score_minus_test_on_the_final_blocks():
    # d1: (6 + 10 + 27) / 60 on the first order, (21 + 6 + 10) / 60 on the second, the same on both splits
    held = ComparisonSetup(search_blocks=(FIRST,), final_blocks=(SECOND,), held_out=True)
    measured = optimism(small_study(search=SEARCH, setup=held))
    assert measured.search_score == pytest.approx(43 / 60)
    assert measured.gap.mean == pytest.approx(0.1)
    assert measured.choice_part.mean == pytest.approx(0.1)
    assert measured.split_part.mean == pytest.approx(0)


def test_the_gap_has_an_interval_where_the_final_blocks_are_held_out():
    both = {"search_blocks": (FIRST,), "final_blocks": (FIRST, SECOND)}
    held = optimism(small_study(search=SEARCH, setup=ComparisonSetup(**both, held_out=True))).gap
    assert held.mean == pytest.approx(0.05)  # final scores 43/60 and 37/60, search score 43/60
    assert np.isnan(held.low)  # two blocks have no interval
    final = mean_interval([0.6, 0.7, 0.8])
    gap = gap_below(0.75, final, True)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.05, 0.75 - final.high, 0.75 - final.low))
    same = optimism(small_study(search=SEARCH, setup=ComparisonSetup(**both))).gap
    assert same.mean == held.mean
    dependent = gap_below(0.75, final, False)  # not independent of the choice: no interval is given
    assert np.isnan(dependent.low)
    assert describe_excess(dependent) == "5.0 points higher"  # 15, 5 and -5 points are not "the same in all"
    assert describe_excess(gap) == "5.0 points (95 % CI −19.8 to 29.8) higher"  # 0.1 · 4.3027 / √3 = 0.2484


def test_no_bound_of_a_margin_exceeds_its_range():
    # 8, 4 and 9 points above 90 %: 7 ± 6.57 by t, and no score is more than 10 above it
    floor = constraint_margin(np.array([0.08, 0.04, 0.09]), Constraint("faa", None, 0.9), [0, 1, 2])
    assert floor.mean == pytest.approx(0.07)
    assert floor.high <= 0.1
    # 100, 85 and 97 points above a baseline less 5 points, which is 105 at most
    relative = constraint_margin(np.array([1.0, 0.85, 0.97]), Constraint("faa", "replay", -0.05), [0, 1, 2])
    assert relative.high == pytest.approx(1.05)


def test_a_study_without_a_search_has_no_optimism():
    assert optimism(small_study()) is None
