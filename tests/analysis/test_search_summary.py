"""The Pareto front of a search with several objectives."""

import pytest

from dgg_ray.analysis.results import CandidateSetting, SearchSummary
from dgg_ray.analysis.search_summary import hypervolumes, pareto_front


def test_the_pareto_front_and_its_hypervolume_leave_out_settings_that_break_a_constraint():
    points = ((0.2, 0.9), (0.6, 0.6), (0.5, 0.5), (0.9, 0.9))
    candidates = tuple(
        CandidateSetting(
            str(i), "evaluated", mean_objectives=p, violations=(0.1 if i == 3 else 0.0,), stages_so_far=i
        )
        for i, p in enumerate(points)
    )
    search = SearchSummary("nsga2", ("stability", "plasticity"), candidates=candidates)
    assert [c.setting for c in pareto_front(search)] == ["1", "0"]
    areas = [volume for _, _, volume in hypervolumes(search)]
    assert areas == pytest.approx([0.18, 0.18 + 0.24, 0.42, 0.42])
