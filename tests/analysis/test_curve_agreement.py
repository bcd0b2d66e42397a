"""The chosen α against its curve: gaps computed by hand, and statements where no run gives evidence."""

import dataclasses
import re

import numpy as np
import pytest
from curve_agreement_samples import two_alpha_results
from curve_samples import A
from report_samples import small_study

from dgg_ray.analysis.alpha_curves import (
    curve_agreement_sentences,
    curve_agreements,
    observed_stages,
    tradeoff_rows,
    tradeoffs,
    undecided_alphas,
    unsearched_parameters,
    unsearched_sentences,
)
from dgg_ray.analysis.load import recommendation
from dgg_ray.analysis.results import ComparisonSetup, SearchSummary
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.report import summary
from dgg_ray.search import comparison
from dgg_ray.search.curve_baseline import curve_optimum, search_curves
from dgg_ray.search.objective import Evidence
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study

VALUES = (0.0, 0.2, 0.5, 1.0)
EXACT = ResponseModel(noise=0.0, evaluation_noise=False, seed=3)


def test_the_chosen_alpha_is_compared_with_the_best_of_its_curve():
    # (Δold + Δnew) / 2 = 3, 4, 5 points: mean 4, half width 4.303 · 1 / √3 = 2.48
    (agreement,) = curve_agreements(two_alpha_results("s0"))
    assert (agreement.task, agreement.chosen_alpha, agreement.best_alpha) == ("b", 0, 0.5)
    assert agreement.gap == pytest.approx((0.04, 0.04 - 0.0248, 0.04 + 0.0248), abs=0.001)
    assert not agreement.is_undecided
    (same,) = curve_agreements(two_alpha_results("s5"))
    assert (same.agrees, same.gap[0]) == (True, 0)


def test_the_summary_says_where_the_curves_are_higher_and_whether_that_is_significant():
    (apart,) = curve_agreement_sentences(two_alpha_results("s0"))
    assert "the mean final score is highest at other values: for b at α = 0.5, 4.0 points (95 % CI " in apart
    assert apart.endswith("above the chosen 0: significant.")
    # sums 1, 4 and 7 points halved twice: mean 4, half width 4.303 · 3 / √3 = 7.5
    assert ": not significant" in curve_agreement_sentences(two_alpha_results("s0", (0.06, 0.12, 0.18)))[0]
    assert (
        "4.0 points above the chosen 0, with too few independent blocks for a test"
        in curve_agreement_sentences(two_alpha_results("s0", (0.12,)))[0]
    )
    assert curve_agreement_sentences(two_alpha_results("s5")) == [
        "The curves of α agree with the choice: the mean final score is highest at these α."
    ]
    assert (
        "The objective of the search was stability."
        in curve_agreement_sentences(two_alpha_results("s0", objective=("stability",)))[0]
    )
    assert curve_agreement_sentences(two_alpha_results(None)) == []


def test_the_section_on_the_curves_says_which_alpha_was_chosen():
    ((_, text),) = tradeoff_rows(two_alpha_results("s0"))
    assert "For b, the curve of the mean final score is highest at α = 0.5" in text
    assert "The search chose α = 0, by this curve 4.0 points (95 % CI " in text
    assert "The search chose α = 0.5 too." in tradeoff_rows(two_alpha_results("s5"))[0][1]


def test_a_chosen_alpha_that_is_significantly_below_the_best_is_not_called_undecided():
    between = [("s2", "ab", s, (0.25,), [A, (0.5 + x, 0.66)]) for s, x in enumerate((0.11, 0.10, 0.16))]
    assert undecided_alphas(two_alpha_results("s0", more=between)) == {
        "strategy.alpha.b": "the curve is higher from 0.25 to 0.5"
    }
    assert undecided_alphas(two_alpha_results("s5", more=between)) == {
        "strategy.alpha.b": "from 0.25 to 0.5 cannot be distinguished"
    }


def test_values_that_differ_by_rounding_alone_are_equal():
    tied = two_alpha_results("s5", (0.04,) * 3)  # 0.7 + 0.5 - 0.8 and 0.66 + 0.54 - 0.8
    (found,) = tradeoffs(tied)
    assert 0 < abs(np.diff(found.new + found.old)[0]) < 1e-15
    assert found.points()[["gain", "open"]].to_numpy().tolist() == [[0, True], [0, True]]
    (agreement,) = curve_agreements(tied)
    assert (agreement.chosen_alpha, agreement.best_alpha, agreement.agrees) == (0.5, 0, True)
    assert tradeoff_rows(tied)[0][1].endswith("The search chose α = 0.5, which is as good by this curve.")


def test_a_chosen_alpha_between_tried_values_is_interpolated():
    between = ("mid", "ab", 0, (0.125,), [A])  # trained no further than a
    (agreement,) = curve_agreements(two_alpha_results("mid", more=[between]))
    assert agreement.gap[0] == pytest.approx(0.04 * 3 / 4)


# -- a task that is first in every order -----------------------------------------------------------

FIRST = (("a > b > c", 0), ("a > c > b", 0))
ALPHAS = ("strategy.alpha.a", "strategy.alpha.b", "training.epochs.a")


def searched(method="tpe", search_blocks=FIRST, final_blocks=FIRST):
    results = small_study(
        parameters=ALPHAS,
        search=SearchSummary(method, ("faa",), per_task_parameters=("strategy.alpha", "training.epochs")),
    )
    table = results.table.assign(**dict.fromkeys(ALPHAS, 0.25))
    return dataclasses.replace(
        results, table=table, setup=ComparisonSetup(search_blocks=search_blocks, final_blocks=final_blocks)
    )


def test_an_alpha_without_effect_in_any_run_is_not_recommended():
    text = "\n".join(summary.summary_sentences(found := searched()))
    assert text.startswith("No setting was shown to beat plain fine-tuning")
    assert "was that of dgg with α for b = 0.25, training.epochs.a = 0.25." in text
    assert "α for a was not searched: a is" in text
    assert "a is first in every order of the search, where α has no effect." in text
    assert "did not choose" not in text
    recommended = recommendation(found)
    assert set(recommended["recommended"]) == set(ALPHAS)
    assert recommended["not_searched"] == ["strategy.alpha.a"]


def test_its_value_is_named_where_it_acts_on_held_out_orders():
    (text,) = unsearched_sentences(searched(final_blocks=(("b > a > c", 3),)))
    assert text.endswith(
        "On final blocks that begin with another task its value is 0.25, which the search did not choose."
    )


def test_stagewise_does_not_search_the_first_task_unless_orders_begin_with_different_tasks():
    assert unsearched_parameters(searched("stagewise")) == ("strategy.alpha.a", "training.epochs.a")
    assert unsearched_parameters(searched(search_blocks=(*FIRST, ("b > a > c", 0)))) == ()


# -- the split, and the baseline from the curves -------------------------------------------------------------


def test_curves_use_the_split_on_which_settings_were_chosen():
    on_test = two_alpha_results("s0")
    on_test = dataclasses.replace(
        on_test, table=on_test.table.assign(split="test"), setup=ComparisonSetup(selection_split="test")
    )
    assert len(observed_stages(on_test)) == 6


def searched_study(values=VALUES, **search):
    space = {"strategy.alpha": SearchParameter(values=values, per_task=True)}
    search = Search(space, **{"method": "stagewise", "values_per_task": 4, **search})
    return synthetic_study(
        3,
        DGG(alpha=0.1, buffer=20),
        simulation=EXACT,
        search=search,
        orders=Orders("random", 1),
        protocol=Protocol(held_out=1, baselines=("curve_optimum", "replay")),
    )


def test_the_setting_read_off_the_curves_is_one_more_baseline():
    study = searched_study()
    simulated = simulate_study(study)
    assert list(simulated.final) == ["dgg", "curve_optimum", "replay"]
    (first, second, _), values = study.all_orders[0], curve_optimum(simulated.search)
    assert simulated.final["curve_optimum"].id == simulated.study.at(values).id
    assert f"strategy.alpha.{first}" not in values

    def mean_score(alpha):  # of both tasks right after the second, by the response model
        model = study.simulation
        after_first = model.trained({}, first, 0, 20, 8)
        return np.mean(list(model.trained(after_first, second, alpha, 20, 8).values()))

    assert values[f"strategy.alpha.{second}"] == max(VALUES, key=mean_score)


def test_values_read_off_the_curves_are_among_the_values_tried():
    study = searched_study(values=(0, 1))  # 0 and 0.0 have different keys
    search = simulate_study(study, compare=False).search
    tried = {(k, type(v), v) for query in search.proposed for k, v in query.setting.items()}
    assert {(k, type(v), v) for k, v in curve_optimum(search).items()} <= tried
    best = {t.task: t.alpha[t.points()["best"]][0] for t in search_curves(search, "strategy.alpha")}
    assert set(best) == set(study.all_orders[0][1:])


def test_the_best_so_far_does_not_name_an_alpha_without_effect():
    study = searched_study(method="random", trials=3, values_per_task=2)
    text = comparison.describe_best_so_far(simulate_study(study, compare=False).search)
    first, *rest = study.all_orders[0]
    assert [f"strategy.alpha.{name}=" in text for name in (first, *rest)] == [False, True, True]


@pytest.mark.parametrize(
    ("scores", "pattern"),
    [
        ((0.97, 1.0, 0.9), r"faa 0\.957 \(95 % CI 0\.\d{3} to 1\.000\) with "),  # t alone would end at 1.084
        ((0.62, 0.722), r"faa 0\.671 \(2 blocks: 0\.620, 0\.722\) with "),
        ((0.62,), r"faa 0\.620 \(1 block\) with "),
    ],
)
def test_the_interval_of_the_best_so_far_stays_in_range_and_few_blocks_show_their_values(scores, pattern):
    study = dataclasses.replace(
        searched_study(method="random", trials=1, values_per_task=1), seeds=tuple(range(len(scores)))
    )
    search = comparison.make_search(study)
    number, _ = search.ask() or pytest.fail("nothing was proposed")
    search.tell(
        number, Evidence([ScoreMatrix(np.full((3, 3), s), np.ones(3), np.zeros(3)) for s in scores], {})
    )
    assert re.match(pattern, comparison.describe_best_so_far(search))
