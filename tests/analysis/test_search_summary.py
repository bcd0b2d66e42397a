"""Searches in numbers: Pareto fronts, and how many settings are expected."""

import pytest

from dgg_ray.analysis.results import CandidateSetting, SearchSummary
from dgg_ray.analysis.search_summary import count_expected, hypervolumes, pareto_front
from dgg_ray.config.sections import Search, SearchParameter
from dgg_ray.search.comparison import make_search
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study


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


def test_the_settings_of_a_limit_of_stages_are_expected_to_need_as_many_as_those_so_far():
    space = {"strategy.alpha": SearchParameter(values=(0.0, 0.3, 1.0), per_task=True)}

    def expected(so_far, **search):
        made = make_search(synthetic_study(3, DGG(), search=Search(space, **search)))
        return count_expected(
            made, [CandidateSetting(str(i), "open", stages_so_far=n) for i, n in enumerate(so_far)]
        )

    assert expected([3, 5, 8], stages=40) == 15  # 40 / 8 times three
    assert expected([3, 5, 8], stages=8) == 3
    assert expected([], stages=40) == 0
    assert expected([3], trials=7) == 7
    assert expected([3], method="stagewise") is None
