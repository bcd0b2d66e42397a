"""What the search's score hides, and what more work would change, in numbers from paper."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_samples import ORDERS, small_study

from dgg_ray.analysis import next_steps
from dgg_ray.analysis.front import front, volumes
from dgg_ray.analysis.next_steps import Step, best_of_all, more_blocks, sentences, skill
from dgg_ray.analysis.optimism import below, kept_by, optimism, over
from dgg_ray.analysis.results import Ahead, Candidate, Searched, Terms
from dgg_ray.config.sections import Constraint
from dgg_ray.core import draws
from dgg_ray.stats.intervals import expected_range, mean_interval

FIRST, SECOND = ((order, 0) for order in ORDERS)
SEARCH = Searched("tpe", ("faa",))


def test_optimism_is_what_was_seen_minus_test_on_the_final_blocks():
    # d1: (6 + 10 + 27) / 60 on the first order, (21 + 6 + 10) / 60 on the second, the same on both splits
    held = Terms(chosen_on=(FIRST,), compared_on=(SECOND,), held_out=True)
    found = optimism(small_study(search=SEARCH, terms=held))
    assert found.seen == pytest.approx(43 / 60)
    assert found.total.mean == pytest.approx(0.1)
    assert found.choice.mean == pytest.approx(0.1)
    assert found.split.mean == pytest.approx(0)


def test_the_gap_has_an_interval_where_the_final_blocks_are_held_out():
    both = {"chosen_on": (FIRST,), "compared_on": (FIRST, SECOND)}
    held = optimism(small_study(search=SEARCH, terms=Terms(**both, held_out=True))).total
    assert held.mean == pytest.approx(0.05)  # finals 43/60 and 37/60, seen 43/60
    assert held.low != held.low  # of two blocks none can be given
    final = mean_interval([0.6, 0.7, 0.8])
    gap = below(0.75, final, True)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.05, 0.75 - final.high, 0.75 - final.low))
    same = optimism(small_study(search=SEARCH, terms=Terms(**both))).total
    assert same.mean == held.mean
    dependent = below(0.75, final, False)  # not independent of the choice: no interval is given
    assert np.isnan(dependent.low)
    assert over(dependent) == "5.0 points higher"  # of 15, 5 and -5 points none is "the same in all"
    assert over(gap) == "5.0 points (95 % CI −19.8 to 29.8) higher"  # 0.1 · 4.3027 / √3 = 0.2484


def test_no_bound_of_a_margin_lies_beyond_what_the_margin_can_be():
    # 8, 4 and 9 points above 90 %: 7 ± 6.57 by t, and no score is more than 10 above it
    floor = kept_by(np.array([0.08, 0.04, 0.09]), Constraint("faa", None, 0.9), [0, 1, 2])
    assert floor.mean == pytest.approx(0.07)
    assert floor.high <= 0.1
    # 100, 85 and 97 points above a baseline less 5 points, which is 105 at most
    beside = kept_by(np.array([1.0, 0.85, 0.97]), Constraint("faa", "replay", -0.05), [0, 1, 2])
    assert beside.high == pytest.approx(1.05)


def test_nothing_searched_has_no_optimism():
    assert optimism(small_study()) is None


def test_more_blocks_narrow_the_interval_of_the_nearest_rival_by_students_t():
    # d1 - ft: 5/60 and 10/60, mean 12.5 points, sd 5.89. Two blocks have no interval; two more, at half an
    # hour each: 3.182 · 5.89 / 2 = 9.4
    terms = Terms(chosen_on=(FIRST,), compared_on=(FIRST, SECOND))
    (step,) = more_blocks(small_study(terms=terms, ahead=Ahead(block=(0.5, 0.4, 0.6))))
    assert step.text.startswith("Compare on 2 more blocks, of orders that begin with other tasks, ")
    assert (
        "the difference to finetune (+12.5 points over 2 independent blocks) can be given then, of about ±9.4"
        in step.text
    )
    assert step.gain == np.inf


def test_an_interval_narrows_by_students_t(monkeypatch):
    # differences 0.1, 0.2, 0.6 on three blocks: s/√3 = 0.1528, t(2) 4.303 and t(5) 2.571 over √6
    gaps = {"finetune": (np.array([0.1, 0.2, 0.6]), (0, 1, 2))}
    monkeypatch.setattr(next_steps, "differences", lambda results, metric: gaps)
    (step,) = more_blocks(small_study(ahead=Ahead(block=(0.3, 0.2, 0.4))))
    assert "narrows from ±65.7 to about ±27.8" in step.text
    assert step.gain == pytest.approx(0.6573 - 2.571 * 0.26458 / 6**0.5, abs=1e-3)


def test_no_more_blocks_are_proposed_than_there_are_orders_for():
    # t(2) = 4.303: 4.303 · 5.89 / √3 = 14.6. 2.12 standard deviations take 5 blocks.
    terms = Terms(chosen_on=(FIRST,), compared_on=(FIRST, SECOND), held_out=True)

    def said(room):
        ahead = Ahead(block=(0.05, 0.04, 0.06), room=room)
        return more_blocks(small_study(terms=terms, ahead=ahead))[0].text

    assert said(1).startswith("Compare on 1 more block, ")
    assert "begin with" not in said(1)  # held-out blocks share nothing anyway
    assert "can be given then, of about ±14.6" in said(1)
    assert (
        "takes 5 independent blocks in all. The search left orders for 1 more. protocol.final_seeds"
        in said(1)
    )
    assert said(0).startswith(
        "Compare with finetune (+12.5 points over 2 independent blocks) on more seeds: no order is left"
    )
    assert "more block" not in said(0)
    assert "final_seeds" not in said(3)
    assert "final_seeds" not in said(None)
    assert all("Decide on their number beforehand" in said(room) for room in (0, 1, 3, None))


def test_a_step_that_changes_nothing_that_is_printed_is_not_listed(monkeypatch):
    results = small_study()
    steps = [Step(0.0004, "less"), Step(0.0006, "more")]
    monkeypatch.setattr(next_steps, "unfinished", lambda results: [Step(0.0001, "asked for")])
    monkeypatch.setattr(next_steps, "more_blocks", lambda results: steps)
    monkeypatch.setattr(next_steps, "more_alphas", lambda results: [])
    assert sentences(results) == ["more", "asked for"]


def test_a_search_under_way_comes_first_while_nothing_says_how_much_settings_differ():
    left = Ahead(search=(12, (2.0, 1.0, 3.0)))
    search = Searched("tpe", ("faa",), count=4, finished=False)
    first = sentences(small_study(search=search, ahead=left))[0]
    assert first.startswith("Finish the search: about 12 stages are left")


def test_the_settings_left_gain_what_the_best_of_more_normal_values_does():
    # means 0.4, 0.5, 0.6 over two blocks that agree: sd 0.1, all of it between settings. The expected range
    # of 3 values is 1.693, of 6 it is 2.534: half of 0.841 · 0.1
    alike = [(0.4, 0.4), (0.5, 0.5), (0.6, 0.6)]
    assert best_of_all(left_over(alike, 6)) == pytest.approx((0.0421, 1), abs=2e-4)
    # blocks that differ by ±0.05 for the first and ∓0.05 for the second: rest squared 4 · 0.05² on 2 degrees
    # of freedom is 0.005, between them 2 · 0.01: three quarters of the deviation are skill
    unlike = [(0.45, 0.35), (0.45, 0.55), (0.6, 0.6)]
    assert best_of_all(left_over(unlike, 6)) == pytest.approx((0.75 * 0.0421, 0.75), abs=2e-4)
    assert best_of_all(left_over([(0.5, 0.4), (0.4, 0.5), (0.45, 0.45)], 6)) == (0, 0)  # equal means
    assert best_of_all(left_over([(0.4,), (0.5,), (0.6,)], 6))[0] == np.inf  # one block: who knows


def test_differences_between_settings_are_called_luck_only_where_nothing_tells_them_from_it():
    def said(rows, count):
        left = Ahead(search=(12, (2.0, 1.0, 3.0)))
        return dataclasses.replace(left_over(rows, count), ahead=left)

    luck = "So far no difference between the settings judged could be told from luck."
    (step,) = next_steps.unfinished(said([(0.5, 0.4), (0.4, 0.5), (0.45, 0.45)], 6))
    assert step.text.endswith(luck)
    apart = [(0.4, 0.4), (0.5, 0.5), (0.6, 0.6)]  # beyond luck, and none is left
    (step,) = next_steps.unfinished(said(apart, 3))
    assert step.text.endswith("The settings left are expected to add less than 0.1 points.")
    (step,) = next_steps.unfinished(said(apart, 6))
    assert step.text.endswith("the best of all is 4.2 points better, after shrinking for luck.")


def left_over(rows, count):
    judged = tuple(
        Candidate(str(i), "judged", tuple((score,) for score in row), (float(np.mean(row)),))
        for i, row in enumerate(rows)
    )
    return small_study(search=Searched("tpe", ("faa",), count=count, candidates=judged))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_what_is_said_of_the_settings_left_is_what_they_bring_on_average(share):
    # 8 settings judged on 3 blocks and 12 left, share: of their means' variance that lies between settings.
    # What is brought is the true score of the best seen of all minus that of the best seen of the first.
    rng, judged, left, blocks, studies = draws.generator(0, "", f"left {share}"), 8, 12, 3, 4000
    true = share**0.5 * rng.normal(size=(studies, judged + left, 1))
    seen = true + ((1 - share) * blocks) ** 0.5 * rng.normal(size=(studies, judged + left, blocks))
    means, first, each = seen.mean(axis=-1), np.arange(studies), true[..., 0]
    brought = each[first, means.argmax(axis=1)] - each[first, means[:, :judged].argmax(axis=1)]
    ranges = (expected_range(judged + left) - expected_range(judged)) / 2
    found = np.array([skill(table) for table in seen[:, :judged]])
    assert found.prod(axis=1).mean() * ranges == pytest.approx(brought.mean(), rel=0.3)
    if share == 0.3:  # with luck taken for skill
        assert found[:, 1].mean() * ranges > 2 * brought.mean()


def test_the_front_and_its_volume_leave_out_what_breaks_a_constraint():
    points = ((0.2, 0.9), (0.6, 0.6), (0.5, 0.5), (0.9, 0.9))
    found = tuple(
        Candidate(str(i), "judged", objective=p, excess=(0.1 if i == 3 else 0.0,), stages=i)
        for i, p in enumerate(points)
    )
    search = Searched("nsga2", ("stability", "plasticity"), candidates=found)
    assert [c.setting for c in front(search)] == ["1", "0"]
    areas = [volume for _, _, volume in volumes(search)]
    assert areas == pytest.approx([0.18, 0.18 + 0.24, 0.42, 0.42])


def test_alphas_to_try_take_as_many_stages_one_after_another_as_the_fleets_need_turns():
    rows = pd.DataFrame(
        {"alpha": [0.1, 0.3, 1.0], "best": [False, True, False], "open": [True, False, True]}
        | {"gain": [-0.01, 0.0, -0.02], "gain_high": [0.03, 0.0, 0.02], "blocks": 4}
    )
    tradeoff = SimpleNamespace(points=lambda: rows, task="words")
    for groups, hours in ((1, 3), (2, 2), (8, 1)):
        ahead = Ahead(stage=(1.0, 1.0, 1.0), groups=groups)
        _, step = next_steps.undecided(small_study(ahead=ahead), tradeoff)
        assert step.text.startswith("Try α = 0.1 and 1 for words beside 0.3 on another order or seed, ")
        assert f"{next_steps.taking((hours, hours, hours))} (3 stages" in step.text


def test_how_long_it_takes_is_in_the_largest_unit_of_which_it_is_one_or_more():
    assert next_steps.taking((2.14, 1.8, 2.4)) == "about 2.1 hours (95 %: 1.8 to 2.4)"
    assert next_steps.taking((0.5, 0.4, 0.6)) == "about 30 minutes (95 %: 24 to 36)"
    assert next_steps.taking((0.001, 0.0005, 0.002)) == "about 3.6 seconds (95 %: 1.8 to 7.2)"
