"""The curves of α: fits that can be computed by hand, coverage of the bands, and the stages behind them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from curve_samples import STAGES, A, results_of_runs

from dgg_ray.analysis import alpha_curves
from dgg_ray.analysis.alpha_curves import observed_stages, tradeoffs
from dgg_ray.analysis.importance import parameter_importance
from dgg_ray.core.rng import make_rng
from dgg_ray.search import alpha_curve
from dgg_ray.search.alpha_curve import Tradeoff
from dgg_ray.stats.monotone_fit import band_half_width, comparable_stages, fit_effects, isotonic


def balanced_tradeoff(
    new: dict[float, float], old: dict[float, float], blocks=3, noise=0.0, earlier=1
) -> Tradeoff:
    """Fit the curves of a task that every block trained with every α; blocks differ in level and by noise."""
    rng = make_rng(0, "", "test")
    rows = [
        ["b", alpha, new[alpha] + 0.1 * seed + e[0], old[alpha] + e[1], earlier, earlier + 1, *[block] * 3]
        for seed in range(blocks)
        for block in [f"a > b, seed {seed}"]
        for alpha in new
        for e in [rng.normal(0, noise, 2)]
    ]  # fmt: skip
    tradeoff = alpha_curve.of_task("b", pd.DataFrame(rows, columns=STAGES))
    assert tradeoff is not None
    return tradeoff


# -- fits --------------------------------------------------------------------------------------------


def test_blocks_with_different_values_are_compared_through_a_value_that_both_have():
    # block 0: 0.5, 0.4 at the first two values; block 1, 0.2 higher: 0.6, 0.3 at the last two
    fitted = fit_effects([0, 1, 1, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0.5, 0.4, 0.6, 0.3])
    assert fitted.levels[:, 0] == pytest.approx(np.array([0.5, 0.4, 0.1]) + 0.2 / 2)
    assert fitted.block_effects[:, 0] == pytest.approx([-0.1, 0.1])
    assert (fitted.stages.tolist(), fitted.blocks.tolist()) == ([1, 2, 1], [1, 2, 1])


def test_peers_are_compared_first_and_a_stage_without_peers_counts_less():
    # y₁ and y₂ share a parent, y₃ has another: Var(w·y₂ + (1-w)·y₃ - y₁) = 1 + w² + 3(1-w)² is least at w = ¾
    fitted = fit_effects([0, 1, 1], [0, 0, 0], [0, 0, 1], [1.0, 0.8, 0.4])
    assert np.diff(fitted.levels[:, 0]) == pytest.approx(0.75 * 0.8 + 0.25 * 0.4 - 1.0)


def test_peers_at_two_levels_have_more_in_common():
    # as above, with y₃ of the same settings: the effect of the settings is in all three, and cancels
    fitted = fit_effects([0, 1, 1], [0, 0, 0], [[0, 0], [0, 0], [0, 1]], [1.0, 0.8, 0.4])
    assert np.diff(fitted.levels[:, 0]) == pytest.approx(-0.3)
    # y₃ of another setting too: 1 + w² + 5(1-w)² is least at w = 5/6
    fitted = fit_effects([0, 1, 1], [0, 0, 0], [[0, 0], [0, 0], [1, 1]], [1.0, 0.8, 0.4])
    assert np.diff(fitted.levels[:, 0]) == pytest.approx(5 / 6 * 0.8 + 1 / 6 * 0.4 - 1.0)


def test_a_curve_that_turns_is_pooled_by_the_number_of_stages():
    assert isotonic([0.1, 0.5, 0.2], [1, 1, 2]) == pytest.approx([0.1, 0.3, 0.3])
    assert isotonic([0.1, 0.5, 0.2], [1, 1, 2], rising=False) == pytest.approx([0.3, 0.3, 0.2])


def test_values_that_no_block_connects_to_the_others_are_left_out():
    # blocks 0 and 1 hold values 0, 1 and 2 together; block 2 holds 3 alone
    assert comparable_stages([0, 1, 1, 2, 3], [0, 0, 1, 1, 2]).tolist() == [True] * 4 + [False]


# -- bands -------------------------------------------------------------------------------------------


def test_the_band_is_students_t_where_every_block_has_every_value():
    # differences 0.1, 0.2, 0.6 over three blocks: s/√3 = 0.1528, t(0.975, 2) = 4.3027
    fitted = fit_effects([0, 1] * 3, [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0.5, 0.6, 0.3, 0.5, 0.1, 0.7])
    draws_ = fitted.resamples[:, 1] - fitted.resamples[:, 0]
    assert band_half_width(draws_, 3) == pytest.approx(4.3027 * 0.1528, rel=0.05)


def test_a_value_that_fewer_than_three_blocks_compare_has_no_band():
    blocks = [0, 0, 1, 1, 1, 2, 2]
    fitted = fit_effects([0, 1, 0, 1, 2, 0, 1], blocks, blocks, [0.5, 0.4, 0.6, 0.4, 0.2, 0.7, 0.4])
    assert np.isnan(band_half_width(fitted.resamples, fitted.blocks[:, None])[:, 0]).tolist() == [
        False,
        False,
        True,
    ]


def test_a_block_with_a_single_value_does_not_count():
    fitted = fit_effects([0, 1, 0, 1, 0], [0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [0.5, 0.4, 0.6, 0.4, 0.2])
    assert (fitted.stages.tolist(), fitted.blocks.tolist()) == ([3, 2], [2, 2])
    assert np.diff(fitted.levels[:, 0]) == pytest.approx(-0.15)


def test_the_levels_of_blocks_do_not_widen_the_bands():
    rows = balanced_tradeoff(
        {0: 0.7, 1: 0.5}, {0: -0.2, 1: -0.1}
    ).points()  # levels 0.1 apart, the shape the same
    assert rows["new_low"].tolist() == pytest.approx([0.8, 0.6])
    assert rows["new_high"].tolist() == pytest.approx([0.8, 0.6])


def test_no_band_exceeds_the_range_of_its_values():
    found = balanced_tradeoff({0: 0.8, 1: 0.1}, {0: -0.9, 1: -0.3}, noise=0.3)
    rows, (new, old) = found.points(), found.difference(0, -1).values()
    width = band_half_width(found.fit.resamples, found.fit.blocks[:, None])
    assert (found.new + width[:, 0] > 1).any()
    assert (found.old - width[:, 1] < -1).any()
    assert (rows["new_low"].min(), rows["new_high"].max(), rows["old_low"].min()) == (0, 1, -1)
    assert (new[1], old[2]) == (-1, 1)
    assert alpha_curve.band(1.02, 0.1, (0, 1)) == pytest.approx((0.92, 1.02))  # a level beside other blocks'


ALPHA = np.array([0, 0.1, 0.3, 0.6, 1])
RESPONSES = {"steep": 0.6 - 0.4 * ALPHA, "gentle": 0.6 - 0.1 * np.sqrt(ALPHA)}


def simulated(rng, response: np.ndarray, blocks: int, kept: float, parents: int = 2):
    """Simulate stages: blocks and parents differ in level, blocks in the effect of α; some α are tried."""
    shape = (blocks, parents, len(response))
    y = response + rng.normal(0, 0.05, (blocks, 1, 1)) + rng.normal(0, 0.02, (blocks, parents, 1))
    y = y + rng.normal(0, 0.02, (blocks, 1, len(response))) + rng.normal(0, 0.03, shape)
    block, parent, place = (x.ravel() for x in np.indices(shape))
    tried = rng.random(shape).ravel() < kept
    return place[tried], block[tried], (block * parents + parent)[tried], y.ravel()[tried]


@pytest.mark.statistics
@pytest.mark.parametrize(("blocks", "kept"), [(5, 1.0), (8, 0.7)])
@pytest.mark.parametrize("response", RESPONSES)
def test_95_percent_bands_cover_the_response_95_percent_of_the_time(response, blocks, kept):
    rng, truth, covered = make_rng(blocks, "", response), RESPONSES[response], []
    while len(covered) < 1000:
        place, block, peers, y = simulated(rng, truth, blocks, kept)
        if comparable_stages(place, block).all() and len(set(place)) == len(truth):
            fitted = fit_effects(place, block, peers, y, resamples=200)
            curve = isotonic(fitted.levels[:, 0], fitted.stages, rising=False)
            gap = (curve - curve @ fitted.stages / len(y)) - (truth - truth @ fitted.stages / len(y))
            covered.append(np.abs(gap) <= band_half_width(fitted.resamples, fitted.blocks[:, None])[:, 0])
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(covered, axis=0).min() > 0.92


@pytest.mark.statistics
@pytest.mark.parametrize(("orders", "seeds"), [(3, 3), (4, 3), (6, 1)])
def test_bands_hold_where_the_effect_of_alpha_depends_on_the_order(orders, seeds):
    # 2,000 studies, one outcome each: the effect of α varies by 1 over orders, and by 0.5 over their seeds
    rng = make_rng(orders, "", "orders")
    effect = rng.normal(0, 1, (orders, 1, 2000)) + rng.normal(0, 0.5, (orders, seeds, 2000))
    y = np.stack([0 * effect, effect]).reshape(2, -1, 2000)  # (α, block, study)
    place, block = (x.ravel() for x in np.indices(y.shape[:2]))
    named = [(f"{order} > b", seed) for order in range(orders) for seed in range(seeds)]
    covered = []
    for names in (named, None):
        fitted = fit_effects(place, block, block, y.reshape(-1, 2000), resamples=500, block_names=names)
        half = band_half_width(fitted.resamples[:, 1] - fitted.resamples[:, 0], fitted.blocks.min())
        covered.append(np.mean(np.abs(fitted.levels[1] - fitted.levels[0]) <= half))
    assert 0.93 < covered[0] < 0.97
    assert covered[1] == covered[0] if seeds == 1 else covered[1] < 0.8  # as if blocks shared nothing


def tried_on(*blocks: tuple[str, int], more=()) -> Tradeoff:
    """Fit the curves of b, trained with α = 0.1 and 0.4 on these blocks."""
    runs = [
        (f"s{alpha}", order, seed, (alpha,), [[0.8 - alpha] * t for t in range(1, len(order) + 1)])
        for alpha, some in ((0.1, (*blocks, *more)), (0.4, blocks))
        for order, seed in some
    ]
    (found,) = tradeoffs(results_of_runs(*runs, parameters=("strategy.alpha.b",)))
    return found


def test_bands_are_over_beginnings_that_share_no_stage():
    def blocks(found):
        return found.fit.blocks.tolist()

    crossed = [(order, seed) for order in ("abc", "cab") for seed in range(3)]
    assert blocks(tried_on(*crossed)) == [2, 2]  # a > b and c > a > b
    alike = tried_on(("abc", 0), ("acb", 0))  # a is trained once
    assert blocks(alike) == [1, 1]
    assert np.isnan(alike.points()["gain_low"]).all()
    assert "too few independent blocks" in alpha_curves.tradeoff_sentences(alike)[0]
    assert blocks(tried_on(("abc", 1), ("acb", 2), ("cab", 3))) == [3, 3]
    assert tried_on(*crossed).beginning is None
    # seeds of one beginning, whatever follows it; a block with one α compares nothing and joins no clusters
    assert blocks(tried_on(("abc", 0), ("abd", 1), ("abc", 2), more=[("cab", 9), ("acb", 0)])) == [3, 3]
    assert tried_on(("abc", 0), ("abd", 1), more=[("cab", 9)]).beginning == "a > b"


@pytest.mark.statistics
def test_the_best_alpha_is_rarely_ruled_out():
    # gain is highest at α = 0.3; where it is flat around it, which of them looks best is luck
    rng, kept = make_rng(0, "", "best"), []
    for _ in range(120):
        rows = [
            [
                "b",
                alpha,
                0.6 - 0.2 * alpha + e[0] + c,
                0.4 * min(alpha, 0.3) + e[1],
                1,
                2,
                *[f"a > b, seed {block}"] * 3,
            ]
            for block, c in enumerate(rng.normal(0, 0.05, 5))
            for alpha, e in zip(ALPHA, rng.normal(0, 0.03, (len(ALPHA), 2)), strict=True)
        ]
        table = pd.DataFrame(rows, columns=STAGES)
        kept.append(bool(alpha_curve.of_task("b", table).points()["open"][2]))
    assert np.mean(kept) > 0.93


# -- stages ------------------------------------------------------------------------------------------


def test_a_shared_stage_counts_once_and_unfinished_runs_count_too():
    low, high, far = (0.1, 0.2, 10), (0.1, 0.5, 10), (0.6, 0.2, 10)
    results = results_of_runs(
        ("s1", "abc", 0, low, [A, (0.7, 0.6), (0.5, 0.5, 0.9)]),
        ("s2", "abc", 0, high, [A, (0.7, 0.6), (0.6, 0.6, 0.7)]),  # the same until c
        ("s3", "abc", 0, far, [A, (0.8, 0.4)]),  # not trained further
    )
    stages = observed_stages(results).set_index(["task", "alpha"])
    assert stages.index.tolist() == [("b", 0.1), ("b", 0.6), ("c", 0.2), ("c", 0.5)]
    assert stages["new"].tolist() == pytest.approx([0.6, 0.4, 0.9, 0.7])
    # a from 0.7 to 0.5 and b from 0.6 to 0.5, mean -0.15
    assert stages["old"].tolist() == pytest.approx([-0.1, 0.0, -0.15, -0.05])
    assert stages.loc["c", "peers"].nunique() == 1
    assert stages["block"].unique().tolist() == ["a > b, seed 0", "a > b > c, seed 0"]


def test_a_stage_of_another_buffer_seed_or_parent_is_another_stage():
    R = [A, (0.7, 0.6), (0.5, 0.5, 0.9)]
    results = results_of_runs(
        ("s1", "abc", 0, (0.1, 0.2, 10), R),
        ("s1", "abc", 1, (0.1, 0.2, 10), R),
        ("s2", "abc", 0, (0.1, 0.2, 20), R),
        ("s3", "abc", 0, (0.6, 0.2, 10), R),
        ("s4", "bac", 0, (0.6, 0.2, 10), R),  # b comes first, and its α has no effect
        ("s5", "bac", 0, (0.1, 0.2, 10), R),
    )
    stages = (
        observed_stages(results)
        .groupby("task")
        .agg({"alpha": "size", "block": "nunique", "peers": "nunique"})
    )
    assert stages.loc["c"].tolist() == [5, 3, 5]
    assert stages.loc["b"].tolist() == [4, 2, 3]


def test_a_parameter_of_a_task_that_is_not_trained_yet_does_not_make_another_stage():
    parameters, R = ("strategy.alpha", "training.epochs.c"), [A, (0.7, 0.6), (0.5, 0.5, 0.9)]
    results = results_of_runs(
        ("s1", "abc", 0, (0.1, 1), R), ("s2", "abc", 0, (0.1, 3), R), parameters=parameters
    )
    assert observed_stages(results)["task"].tolist() == ["b", "c", "c"]


def test_replay_is_the_anchor_at_alpha_0():
    dgg = ("s1", "ab", 0, (0.5, np.nan, 10), [A, (0.7, 0.6)])
    replay = ("rp", "ab", 0, (np.nan, np.nan, 10), [A, (0.5, 0.8)])
    (found,) = tradeoffs(results_of_runs(dgg, replay, baselines={"replay": "rp"}))
    assert (found.task, found.alpha.tolist(), found.anchors) == ("b", [0, 0.5], (True, False))
    assert found.new.tolist() == pytest.approx([0.8, 0.6])
    assert found.stages["peers"].nunique() == 1


def test_an_alpha_for_all_tasks_has_a_curve_for_each():
    runs = [
        (f"s{alpha}", "abc", 0, (alpha,), [A, (0.7, 0.6 - alpha), (0.6, 0.5, 0.9 - alpha)])
        for alpha in (0.1, 0.4)
    ]
    b, c = tradeoffs(results_of_runs(*runs, parameters=("strategy.alpha",)))
    assert np.diff(b.new) == pytest.approx(-0.3)
    assert np.diff(c.new) == pytest.approx(-0.3)


def test_a_single_alpha_has_no_curve():
    assert tradeoffs(results_of_runs(("s1", "ab", 0, (0.1, 0.2, 10), [A, (0.7, 0.6)]))) == []


def test_many_alphas_are_averaged_in_groups():
    alphas = np.linspace(0, 1, 32)
    found = balanced_tradeoff({a: 0.9 - a for a in alphas}, dict.fromkeys(alphas, 0.0))
    assert len(found.alpha) == 1 + alpha_curve.EXACT + 1  # 0 and 1 are no neighbours of any
    assert found.alpha[:2] == pytest.approx([0, alphas[1:5].mean()])
    assert found.anchors == (True, True)


# -- which α -----------------------------------------------------------------------------------------

NEW, OLD = {0: 0.8, 0.2: 0.78, 0.6: 0.7, 1: 0.4}, {0: -0.3, 0.2: -0.2, 0.6: -0.1, 1: -0.05}


def test_the_best_alpha_has_the_highest_mean_final_score():
    # one earlier task of two: (new + old) / 2 = 0.25, 0.29, 0.30, 0.175
    rows = balanced_tradeoff(NEW, OLD).points()
    assert rows["gain"].tolist() == pytest.approx([-0.05, -0.01, 0, -0.125])
    assert rows["alpha"][rows["best"]].tolist() == [0.6]


def test_more_earlier_tasks_or_a_higher_weight_ask_for_more_stability():
    steep = {**OLD, 1: 0.15}  # (new + p · old): 0.6 at α = 0.6, 0.55 at α = 1, and for two 0.5 and 0.7
    assert balanced_tradeoff(NEW, steep).points()["best"].tolist() == [False, False, True, False]
    assert balanced_tradeoff(NEW, steep, earlier=2).points()["best"].tolist() == [False, False, False, True]
    assert balanced_tradeoff(NEW, steep).points(weight=2)["best"].tolist() == [False, False, False, True]


def test_curves_are_interpolated_between_tried_values_and_end_there():
    found = balanced_tradeoff({0.1: 0.8, 0.5: 0.4}, {0.1: -0.3, 0.5: -0.1})
    assert found.at(0.2) == pytest.approx((0.1 + 0.7, -0.25))
    assert np.isnan(found.at(0.05)).all()
    assert found.anchors == (False, False)


def test_at_least_gives_the_largest_alpha_within_a_loss():
    found = balanced_tradeoff(NEW, OLD)
    assert found.at_least(0.02) == pytest.approx(0.2)
    assert found.at_least(0.06) == pytest.approx(0.4)  # halfway from 0.78 to 0.70
    assert found.at_least(0.5) == 1


def test_sentences_name_the_best_alpha_and_what_the_extremes_trade():
    best, extremes, beginning = alpha_curves.tradeoff_sentences(
        balanced_tradeoff(NEW, OLD, blocks=6, noise=0.01)
    )
    assert best == (
        "For b, the curve of the mean final score is highest at α = 0.6; "
        "α from 0.2 to 0.6 cannot be distinguished."
    )
    assert extremes == (
        "Compared with α = 0, α = 1 costs 40.6 points (95 % CI 40.0 to 41.2) on the new task and saves 24.9 "
        "points (95 % CI 23.4 to 26.4) on the old ones."
    )
    assert beginning == "It was tried after a alone: the bands hold for this beginning, not for others."


def test_sentences_name_what_was_not_tried_and_what_one_block_cannot_show():
    best, extremes, missing = alpha_curves.tradeoff_sentences(
        balanced_tradeoff({0.1: 0.8, 0.5: 0.4}, {0.1: -0.3, 0.5: -0.1}, blocks=1)
    )
    assert "too few independent blocks of order and seed" in best
    assert extremes == (
        "Compared with α = 0.1, α = 0.5 costs 40.0 points on the new task and saves 20.0 points on the old "
        "ones."
    )
    assert missing == "α = 0 and 1 were not tried, so nothing is known beyond 0.1 and 0.5."


def test_the_table_has_a_row_for_each_task():
    row = alpha_curves.tradeoff_summary(balanced_tradeoff(NEW, OLD, blocks=6, noise=0.01))
    assert (row["curve highest at α"], row["not distinguishable"], row["stages (blocks)"]) == (
        "0.6",
        "from 0.2 to 0.6",
        "24 (6)",
    )
    assert row["new task loses"] == "40.6 (95 % CI 40.0 to 41.2)"


def test_a_worse_alpha_between_two_undecided_ones_is_left_out():
    rows = pd.DataFrame({"alpha": [0.0, 0.1, 0.3], "open": [True, False, True]})
    assert alpha_curves.format_alpha_range(rows) == "= 0, 0.3"


# -- importance --------------------------------------------------------------------------------------


def test_the_parameter_that_decides_has_the_importance():
    rng = make_rng(0, "", "importance")
    table = pd.DataFrame(
        {"a": rng.random(30), "b": rng.integers(0, 3, 30), "kind": rng.choice(["x", "y"], 30)}
    )
    found = parameter_importance(table.assign(same=1), table["a"].tolist(), ["a", "b", "kind", "same"])
    assert found["a"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert "same" not in found


def test_fewer_settings_than_parameters_have_no_importance():
    assert parameter_importance(pd.DataFrame({"a": [0.1, 0.2], "b": [1, 2]}), [0.3, 0.4], ["a", "b"]) == {}


def test_results_are_the_same_each_time():
    results = results_of_runs(
        *[("s" + str(v), "ab", s, (v, 0, 1), [A, (0.7, 0.6 - v * s)]) for v in (0, 0.5) for s in (0, 1)]
    )
    once, again = (tradeoffs(r)[0].points() for r in (results, dataclasses.replace(results)))
    assert once.equals(again)
