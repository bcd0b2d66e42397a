"""The recommendation beside the curves: differences from paper, and what no run could tell is said so."""

import dataclasses
import re

import numpy as np
import pytest
from agreement_samples import told
from curve_samples import A
from report_samples import small_study

from dgg_ray.analysis.agreement import (
    agreement_sentences,
    stands,
    trades,
    undecided_alphas,
    unsearched,
    unsearched_sentences,
)
from dgg_ray.analysis.alpha_curves import observed, tradeoffs
from dgg_ray.analysis.load import recommendation
from dgg_ray.analysis.results import Searched, Terms
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.simulation import Law
from dgg_ray.core.interfaces import ScoreMatrix
from dgg_ray.report import answer
from dgg_ray.search import comparison
from dgg_ray.search.curve_baseline import curves_of, read_off
from dgg_ray.search.objective import Evidence
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import rehearse
from dgg_ray.training.simulated import imagined

VALUES = (0.0, 0.2, 0.5, 1.0)
EXACT = Law(noise=0.0, evaluation_noise=False, seed=3)


def test_the_recommended_alpha_is_held_against_the_best_of_its_curve():
    # (Δold + Δnew) / 2 = 3, 4, 5 points: mean 4, half width 4.303 · 1 / √3 = 2.48
    (one,) = stands(told("s0"))
    assert (one.task, one.used, one.best) == ("b", 0, 0.5)
    assert one.below == pytest.approx((0.04, 0.04 - 0.0248, 0.04 + 0.0248), abs=0.001)
    assert not one.open
    (same,) = stands(told("s5"))
    assert (same.agrees, same.below[0]) == (True, 0)


def test_the_answer_says_where_the_curves_are_higher_and_whether_that_can_be_told():
    (apart,) = agreement_sentences(told("s0"))
    assert "the mean final score is highest elsewhere: for b at α = 0.5, 4.0 points (95 % CI " in apart
    assert apart.endswith("above the chosen 0: they can be told apart.")
    # sums 1, 4 and 7 points halved twice: mean 4, half width 4.303 · 3 / √3 = 7.5
    assert "they cannot be told apart" in agreement_sentences(told("s0", (0.06, 0.12, 0.18)))[0]
    assert (
        "4.0 points above the chosen 0, in too few independent blocks"
        in agreement_sentences(told("s0", (0.12,)))[0]
    )
    assert agreement_sentences(told("s5")) == [
        "By the curves of what α trades, the mean final score is highest at these α."
    ]
    assert "The search served stability." in agreement_sentences(told("s0", objective=("stability",)))[0]
    assert agreement_sentences(told(None)) == []


def test_the_section_on_the_curves_says_what_is_recommended():
    ((_, text),) = trades(told("s0"))
    assert "For b, the curve of the mean final score is highest at α = 0.5" in text
    assert "Chosen was α = 0, by this curve 4.0 points (95 % CI " in text
    assert "Chosen was α = 0.5 too." in trades(told("s5"))[0][1]


def test_a_chosen_alpha_that_the_curve_can_tell_from_its_best_is_not_said_to_be_open():
    between = [("s2", "ab", s, (0.25,), [A, (0.5 + x, 0.66)]) for s, x in enumerate((0.11, 0.10, 0.16))]
    assert undecided_alphas(told("s0", more=between)) == {
        "strategy.alpha.b": "the curve is higher from 0.25 to 0.5"
    }
    assert undecided_alphas(told("s5", more=between)) == {
        "strategy.alpha.b": "from 0.25 to 0.5 cannot be told apart"
    }


def test_equal_but_for_rounding_is_equal():
    tied = told("s5", (0.04,) * 3)  # 0.7 + 0.5 - 0.8 and 0.66 + 0.54 - 0.8
    (found,) = tradeoffs(tied)
    assert 0 < abs(np.diff(found.new + found.old)[0]) < 1e-15
    assert found.points()[["gain", "open"]].to_numpy().tolist() == [[0, True], [0, True]]
    (one,) = stands(tied)
    assert (one.used, one.best, one.agrees) == (0.5, 0, True)
    assert trades(tied)[0][1].endswith("Chosen was α = 0.5, as good by this curve.")


def test_an_alpha_between_those_tried_is_read_off_the_line_between_them():
    between = ("mid", "ab", 0, (0.125,), [A])  # learned no further than a
    (one,) = stands(told("mid", more=[between]))
    assert one.below[0] == pytest.approx(0.04 * 3 / 4)


# -- a task that is first in every order -----------------------------------------------------------

FIRST = (("a > b > c", 0), ("a > c > b", 0))
ALPHAS = ("strategy.alpha.a", "strategy.alpha.b", "training.epochs.a")


def searched(method="tpe", chosen_on=FIRST, compared_on=FIRST):
    results = small_study(
        parameters=ALPHAS, search=Searched(method, ("faa",), parameters=("strategy.alpha", "training.epochs"))
    )
    table = results.table.assign(**dict.fromkeys(ALPHAS, 0.25))
    return dataclasses.replace(
        results, table=table, terms=Terms(chosen_on=chosen_on, compared_on=compared_on)
    )


def test_an_alpha_that_acted_in_no_run_is_no_finding():
    text = "\n".join(answer.answer(found := searched()))
    assert text.startswith("No setting was shown to beat plain fine-tuning")
    assert "was dgg with α for b = 0.25, training.epochs.a = 0.25." in text
    assert "α for a was not searched: a is" in text
    assert "a is first in every order of the search, where α does nothing." in text
    assert "nothing chose" not in text
    told = recommendation(found)
    assert set(told["recommended"]) == set(ALPHAS)
    assert told["not_searched"] == ["strategy.alpha.a"]


def test_where_it_acts_on_held_out_orders_that_is_said():
    (text,) = unsearched_sentences(searched(compared_on=(("b > a > c", 3),)))
    assert text.endswith("On final blocks that begin with another task it is 0.25, which nothing chose.")


def test_stagewise_chooses_nothing_of_the_first_task_and_other_orders_search_it():
    assert unsearched(searched("stagewise")) == ("strategy.alpha.a", "training.epochs.a")
    assert unsearched(searched(chosen_on=(*FIRST, ("b > a > c", 0)))) == ()


# -- which split, and what is read off -------------------------------------------------------------


def test_curves_are_of_the_split_on_which_settings_were_chosen():
    on_test = told("s0")
    on_test = dataclasses.replace(
        on_test, table=on_test.table.assign(split="test"), terms=Terms(selection_split="test")
    )
    assert len(observed(on_test)) == 6


def study_of(values=VALUES, **search):
    space = {"strategy.alpha": SearchParameter(values=values, per_task=True)}
    search = Search(space, **{"method": "stagewise", "values_per_task": 4, **search})
    return imagined(3, DGG(alpha=0.1, buffer=20), simulation=EXACT, search=search, orders=Orders("random", 1),
                    protocol=Protocol(held_out=1, baselines=("curve_optimum", "replay")))  # fmt: skip


def test_the_setting_read_off_the_curves_is_one_more_rival():
    of = study_of()
    found = rehearse(of)
    assert list(found.final) == ["dgg", "curve", "replay"]
    (first, second, _), read = of.all_orders[0], read_off(found.search)
    assert found.final["curve_optimum"].id == found.study.at(read).id
    assert f"strategy.alpha.{first}" not in read

    def after(alpha):  # mean of both tasks right after the second, by the law
        law = of.simulation
        return np.mean(list(law.learned(law.learned({}, first, 0, 20, 8), second, alpha, 20, 8).values()))

    assert read[f"strategy.alpha.{second}"] == max(VALUES, key=after)


def test_what_is_read_off_is_as_it_was_tried_for_each_task_that_has_a_curve():
    search = rehearse(of := study_of(values=(0, 1)), compare=False).search  # 0 and 0.0 have other keys
    tried = {(k, type(v), v) for query in search.proposed for k, v in query.setting.items()}
    assert {(k, type(v), v) for k, v in read_off(search).items()} <= tried
    best = {t.task: t.alpha[t.points()["best"]][0] for t in curves_of(search)}
    assert set(best) == set(of.all_orders[0][1:])


def test_the_best_so_far_does_not_name_an_alpha_that_does_nothing():
    of = study_of(method="random", trials=3, values_per_task=2)
    said = comparison.best_so_far(rehearse(of, compare=False).search)
    first, *rest = of.all_orders[0]
    assert [f"strategy.alpha.{name}=" in said for name in (first, *rest)] == [False, True, True]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((0.97, 1.0, 0.9), r"faa 0\.957 \(95 % CI 0\.\d{3} to 1\.000\) with "),  # t alone would end at 1.084
        ((0.62, 0.722), r"faa 0\.671 \(2 blocks: 0\.620, 0\.722\) with "),
        ((0.62,), r"faa 0\.620 \(1 block\) with "),
    ],
)
def test_the_best_so_far_stays_within_what_a_score_can_be_and_tells_a_few_blocks_values(scores, said):
    of = dataclasses.replace(
        study_of(method="random", trials=1, values_per_task=1), seeds=tuple(range(len(scores)))
    )
    search = comparison.make_search(of)
    number, _ = search.ask() or pytest.fail("nothing was proposed")
    search.tell(
        number, Evidence([ScoreMatrix(np.full((3, 3), s), np.ones(3), np.zeros(3)) for s in scores], {})
    )
    assert re.match(said, comparison.best_so_far(search))
