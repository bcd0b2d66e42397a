"""The gain of further work, in numbers computed by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_samples import ORDERS, small_study

from dgg_ray.analysis import next_steps
from dgg_ray.analysis.next_steps import (
    NextStep,
    between_setting_share,
    block_steps,
    expected_search_gain,
    next_step_sentences,
)
from dgg_ray.analysis.results import CandidateSetting, ComparisonSetup, RemainingWork, SearchSummary
from dgg_ray.core.rng import make_rng
from dgg_ray.stats.intervals import expected_range

FIRST, SECOND = ((order, 0) for order in ORDERS)


def test_more_blocks_narrow_the_interval_of_the_nearest_baseline_by_students_t():
    # d1 - ft: 5/60 and 10/60, mean 12.5 points, sd 5.89. Two blocks have no interval; two more, at half an
    # hour each: 3.182 · 5.89 / 2 = 9.4
    setup = ComparisonSetup(search_blocks=(FIRST,), final_blocks=(FIRST, SECOND))
    (step,) = block_steps(small_study(setup=setup, remaining=RemainingWork(block=(0.5, 0.4, 0.6))))
    assert step.text.startswith("Compare on 2 more blocks, of orders that begin with other tasks, ")
    assert (
        "the difference to finetune (+12.5 points over 2 independent blocks) can then be given, about ±9.4"
        in step.text
    )
    assert step.gain == np.inf


def test_an_interval_narrows_by_students_t(monkeypatch):
    # differences 0.1, 0.2, 0.6 on three blocks: s/√3 = 0.1528, t(2) 4.303 and t(5) 2.571 over √6
    gaps = {"finetune": (np.array([0.1, 0.2, 0.6]), (0, 1, 2))}
    monkeypatch.setattr(next_steps, "block_differences", lambda results, metric: gaps)
    (step,) = block_steps(small_study(remaining=RemainingWork(block=(0.3, 0.2, 0.4))))
    assert "narrows from ±65.7 to about ±27.8" in step.text
    assert step.gain == pytest.approx(0.6573 - 2.571 * 0.26458 / 6**0.5, abs=1e-3)


def test_no_more_blocks_are_proposed_than_there_are_orders_for():
    # t(2) = 4.303: 4.303 · 5.89 / √3 = 14.6. 2.12 standard deviations take 5 blocks.
    setup = ComparisonSetup(search_blocks=(FIRST,), final_blocks=(FIRST, SECOND), held_out=True)

    def text_for(room):
        remaining = RemainingWork(block=(0.05, 0.04, 0.06), room=room)
        return block_steps(small_study(setup=setup, remaining=remaining))[0].text

    assert text_for(1).startswith("Compare on 1 more block, ")
    assert "begin with" not in text_for(1)  # held-out blocks share nothing anyway
    assert "can then be given, about ±14.6" in text_for(1)
    assert (
        "takes 5 independent blocks in all. The search left orders for 1 more. protocol.final_seeds"
        in text_for(1)
    )
    assert text_for(0).startswith(
        "Compare with finetune (+12.5 points over 2 independent blocks) on more seeds: no order is left"
    )
    assert "more block" not in text_for(0)
    assert "final_seeds" not in text_for(3)
    assert "final_seeds" not in text_for(None)
    assert all("Decide on their number beforehand" in text_for(room) for room in (0, 1, 3, None))


def test_a_step_without_visible_gain_is_not_listed(monkeypatch):
    results = small_study()
    steps = [NextStep(0.0004, "less"), NextStep(0.0006, "more")]
    monkeypatch.setattr(next_steps, "unfinished_steps", lambda results: [NextStep(0.0001, "asked for")])
    monkeypatch.setattr(next_steps, "block_steps", lambda results: steps)
    monkeypatch.setattr(next_steps, "alpha_steps", lambda results: [])
    assert next_step_sentences(results) == ["more", "asked for"]


def test_an_unfinished_search_comes_first_while_the_spread_of_settings_is_unknown():
    left = RemainingWork(search=(12, (2.0, 1.0, 3.0)))
    search = SearchSummary("tpe", ("faa",), expected_settings=4, finished=False)
    first = next_step_sentences(small_study(search=search, remaining=left))[0]
    assert first.startswith("Finish the search: about 12 stages are left")


def test_the_gain_of_the_remaining_settings_is_that_of_the_best_of_more_normal_values():
    # means 0.4, 0.5, 0.6 over two blocks that agree: sd 0.1, all of it between settings. The expected range
    # of 3 values is 1.693, of 6 it is 2.534: half of 0.841 · 0.1
    alike = [(0.4, 0.4), (0.5, 0.5), (0.6, 0.6)]
    assert expected_search_gain(results_with_settings(alike, 6)) == pytest.approx((0.0421, 1), abs=2e-4)
    # blocks that differ by ±0.05 for the first and ∓0.05 for the second: rest squared 4 · 0.05² on 2 degrees
    # of freedom is 0.005, between them 2 · 0.01: three quarters of the variance lie between settings
    unlike = [(0.45, 0.35), (0.45, 0.55), (0.6, 0.6)]
    assert expected_search_gain(results_with_settings(unlike, 6)) == pytest.approx(
        (0.75 * 0.0421, 0.75), abs=2e-4
    )
    assert expected_search_gain(results_with_settings([(0.5, 0.4), (0.4, 0.5), (0.45, 0.45)], 6)) == (
        0,
        0,
    )  # equal means
    assert (
        expected_search_gain(results_with_settings([(0.4,), (0.5,), (0.6,)], 6))[0] == np.inf
    )  # one block: unknown


def test_differences_between_settings_are_called_chance_only_where_nothing_exceeds_it():
    def unfinished(rows, count):
        left = RemainingWork(search=(12, (2.0, 1.0, 3.0)))
        return dataclasses.replace(results_with_settings(rows, count), remaining=left)

    chance = "So far no difference between the evaluated settings stands out from chance."
    (step,) = next_steps.unfinished_steps(unfinished([(0.5, 0.4), (0.4, 0.5), (0.45, 0.45)], 6))
    assert step.text.endswith(chance)
    apart = [(0.4, 0.4), (0.5, 0.5), (0.6, 0.6)]  # beyond chance, and none is left
    (step,) = next_steps.unfinished_steps(unfinished(apart, 3))
    assert step.text.endswith("The remaining settings are expected to add less than 0.1 points.")
    (step,) = next_steps.unfinished_steps(unfinished(apart, 6))
    assert step.text.endswith("the best of all is 4.2 points better, after shrinkage for chance.")


def results_with_settings(rows, count):
    evaluated = tuple(
        CandidateSetting(str(i), "evaluated", tuple((score,) for score in row), (float(np.mean(row)),))
        for i, row in enumerate(rows)
    )
    return small_study(search=SearchSummary("tpe", ("faa",), expected_settings=count, candidates=evaluated))


@pytest.mark.statistics
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_expected_gain_of_the_remaining_settings_is_right_on_average(share):
    # 8 settings evaluated on 3 blocks and 12 left; share: of the means' variance, between settings.
    # The realised gain is the true score of the best seen of all minus that of the best seen of the first.
    rng, evaluated, left, blocks, studies = make_rng(0, "", f"left {share}"), 8, 12, 3, 4000
    true = share**0.5 * rng.normal(size=(studies, evaluated + left, 1))
    seen = true + ((1 - share) * blocks) ** 0.5 * rng.normal(size=(studies, evaluated + left, blocks))
    means, first, each = seen.mean(axis=-1), np.arange(studies), true[..., 0]
    realised = each[first, means.argmax(axis=1)] - each[first, means[:, :evaluated].argmax(axis=1)]
    ranges = (expected_range(evaluated + left) - expected_range(evaluated)) / 2
    found = np.array([between_setting_share(table) for table in seen[:, :evaluated]])
    assert found.prod(axis=1).mean() * ranges == pytest.approx(realised.mean(), rel=0.3)
    if share == 0.3:  # without shrinkage for chance
        assert found[:, 1].mean() * ranges > 2 * realised.mean()


def test_the_hours_of_an_alpha_step_are_one_stage_for_each_round_of_the_worker_groups():
    rows = pd.DataFrame(
        {"alpha": [0.1, 0.3, 1.0], "best": [False, True, False], "open": [True, False, True]}
        | {"gain": [-0.01, 0.0, -0.02], "gain_high": [0.03, 0.0, 0.02], "blocks": 4}
    )
    tradeoff = SimpleNamespace(points=lambda: rows, task="words")
    for groups, hours in ((1, 3), (2, 2), (8, 1)):
        remaining = RemainingWork(stage=(1.0, 1.0, 1.0), groups=groups)
        _, step = next_steps.alpha_step(small_study(remaining=remaining), tradeoff)
        assert step.text.startswith("Try α = 0.1 and 1 for words and again 0.3 on another order or seed, ")
        assert f"{next_steps.format_hours((hours, hours, hours))} (3 stages" in step.text


def test_a_duration_is_in_the_largest_unit_that_it_reaches():
    assert next_steps.format_hours((2.14, 1.8, 2.4)) == "about 2.1 hours (95 %: 1.8 to 2.4)"
    assert next_steps.format_hours((0.5, 0.4, 0.6)) == "about 30 minutes (95 %: 24 to 36)"
    assert next_steps.format_hours((0.001, 0.0005, 0.002)) == "about 3.6 seconds (95 %: 1.8 to 7.2)"
