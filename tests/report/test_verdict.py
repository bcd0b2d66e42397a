"""The headline says no more than its evidence: who is beaten, by how much, and what cannot be told."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from order_samples import study
from scipy import stats

from dgg_ray.analysis import next_steps
from dgg_ray.analysis.agreement import undecided_alphas
from dgg_ray.analysis.run_table import compare, metrics
from dgg_ray.analysis.run_table import compared as outcomes_compared
from dgg_ray.analysis.verdict import is_simpler, simplicity_of, verdict
from dgg_ray.core.fence import Fence
from dgg_ray.report import answer, closing, report
from dgg_ray.search.objective import range_of
from dgg_ray.stats.formats import interval_text, points_text
from dgg_ray.stats.intervals import Interval

ORDERS = ("a > b", "b > a", "c > d", "d > c")  # they share no stage
OURS = (0.60, 0.64, 0.58, 0.66)


def compared(parameters=(), recommended="dgg", seeds=1, **baselines):
    """dgg and its baselines, a strategy each; baseline → final score in each order, the same on all tasks."""
    scores = {"dgg": OURS, **baselines}
    table = {s: {o: [(v,) * 2] * seeds for o, v in zip(ORDERS, of, strict=False)} for s, of in scores.items()}
    found = study(table)
    return dataclasses.replace(found, baselines={s: s for s in baselines}, recommended=recommended)


def faa(results, label):
    return compare(results, "validation").set_index(["label", "metric"]).loc[(label, "faa")]


def test_a_setting_that_beats_all_simpler_rivals_is_recommended():
    found = verdict(compared(finetune=(0.20, 0.25, 0.19, 0.24), replay=(0.50, 0.53, 0.49, 0.55)))
    assert found.status == "clear"
    assert found.headline == "Use dgg."
    # 10, 11, 9, 11 points above replay; for two baselines at once t(0.9875, 3) = 4.1765, s = 0.9574 / 2
    text = " ".join(found.support)
    assert "replay with the same buffer by 10.2 points (simultaneous 95 % CI 8.3 to 12.2)" in text
    assert len(found.support) <= 3


def test_a_lead_that_may_be_luck_recommends_the_simplest_setting_within_noise():
    found = verdict(compared(finetune=(0.20, 0.25, 0.19, 0.24), replay=(0.50, 0.65, 0.51, 0.70)))
    # 10, -1, 7, -4 points: mean 3, s = 6.5828 / 2, t(0.9875, 3) = 4.1765
    assert found.status == "within noise"
    assert found.headline == (
        "No setting was shown to beat replay with the same buffer: the difference is 3.0 points "
        "(simultaneous 95 % CI −10.7 to 16.7), and the simplest setting within noise is replay."
    )
    assert found.support[0] == (
        "The study's own setting is dgg. On the validation split its FAA is 62.0 % (95 % CI 56.0 to 67.8, 4 "
        "independent blocks)."
    )


def test_what_one_rival_alone_would_show_is_not_shown_where_several_are_tried():
    # 3, 9, 5, 9 points above replay: 6.5 ± 4.78 alone (t = 3.1824), ± 6.27 among two
    baselines = {"replay": (0.57, 0.55, 0.53, 0.57), "finetune": (0.2, 0.22, 0.21, 0.2)}
    alone, among = compared(replay=baselines["replay"]), compared(**baselines)
    assert verdict(alone).status == "clear"
    assert faa(alone, "replay")["at_once_low"] == faa(alone, "replay")["difference_low"]
    row = faa(among, "replay")
    half = stats.t.ppf(1 - 0.025 / 2, 3) * np.std([3, 9, 5, 9], ddof=1) / 200
    assert row["at_once_low"] == pytest.approx(0.065 - half)
    assert row["difference_low"] > row["at_once_low"]
    assert row["p_adjusted"] == pytest.approx(2 * row["p"])
    # 2, 9, 5, 9 points: p = 0.035 alone, which Holm leaves where the other is smaller; its interval holds 0
    doubtful = faa(compared(**baselines | {"replay": (0.58, 0.55, 0.53, 0.57)}), "replay")
    assert doubtful["p"] < 0.05 < doubtful["p_adjusted"]
    assert doubtful["at_once_low"] < 0
    assert faa(among, "finetune")["p_adjusted"] == pytest.approx(2 * faa(among, "finetune")["p"])


def test_the_sentences_the_table_and_the_steps_have_the_interval_of_the_headline():
    made = compared(finetune=(0.20, 0.25, 0.19, 0.24), replay=(0.50, 0.65, 0.51, 0.70))
    said = verdict(made).headline
    assert "3.0 points (simultaneous 95 % CI −10.7 to 16.7)" in said
    assert "+3.0 (simultaneous 95 % CI −10.7 to +16.7) points" in " ".join(answer.answer(made))
    (line,) = (line for line in closing.table(made) if "replay" in line)
    assert "+3.0 (simultaneous 95 % CI −10.7 to +16.7)" in line
    (step,) = next_steps.sentences(made)
    assert "the simultaneous 95 % interval of the difference to replay" in step
    assert "narrows from ±13.7 to" in step


def test_a_setting_that_is_worse_than_a_rival_is_not_within_noise_of_it():
    worse = compared(finetune=tuple(x + 0.2 + e for x, e in zip(OURS, (0, 0.01, 0, 0.01), strict=True)))
    found = verdict(worse)
    assert found.status == "beaten"
    # 20, 21, 20, 21 points: 20.5 ± 3.1824 · 0.57735 / 2
    assert found.headline == "Plain fine-tuning beats dgg by 20.5 points (95 % CI 19.6 to 21.4)."
    also = compared(replay=(0.1, 0.12, 0.1, 0.11), clever=(*(x + 0.2 for x in OURS[:3]), 0.87))
    assert verdict(also).headline.startswith("Clever beats dgg by ")  # a baseline need not be simpler


def test_no_page_calls_a_setting_recommended_that_the_headline_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "figure_names", list)
    made = compared(finetune=(0.50, 0.65, 0.51, 0.70))
    assert verdict(made).status == "within noise"
    page = report.write(made, tmp_path).read_text(encoding="utf-8")
    assert "recommended" not in page
    assert "dgg minus this" in page
    assert "recommended" not in "\n".join(closing.summary(made, Fence()))
    same = dataclasses.replace(made, baselines={"dgg": "finetune"})
    assert next(iter(outcomes_compared(same))) == "dgg (the study's own)"


def test_a_baseline_without_a_block_in_common_is_not_said_to_be_beaten_or_unbeaten():
    def elsewhere(**baselines):  # fine-tuning was run with another seed alone
        made = compared(finetune=(0.20, 0.25, 0.19, 0.24), **baselines)
        table = made.table.copy()
        table.loc[table["setting"] == "finetune", "seed"] = 7
        return dataclasses.replace(made, table=table)

    waiting = elsewhere(replay=(0.50, 0.53, 0.49, 0.55))
    found = verdict(waiting)
    assert found.status == "not compared"
    assert found.headline == ("Not compared yet: plain fine-tuning has no finished block in common with dgg.")
    assert "It beats replay with the same buffer by 10.2 points" in " ".join(found.support)
    assert "fine-tuning by" not in " ".join(found.support)
    alone = verdict(elsewhere())
    assert (alone.headline, alone.status) == (found.headline, "not compared")
    assert "It beats" not in " ".join(alone.support)
    unbeaten = verdict(elsewhere(replay=(0.50, 0.65, 0.51, 0.70)))
    assert unbeaten.status == "within noise"
    assert "beat replay with the same buffer: the difference is 3.0 points" in unbeaten.headline


def test_two_blocks_show_their_values_and_prove_nothing():
    found = verdict(compared(replay=(0.10, 0.12)))
    assert found.headline.startswith(
        "No setting was shown to beat replay with the same buffer: the difference is 51.0 points (2 blocks: "
        "50.0, 52.0)"
    )


def test_equal_differences_are_said_to_be_equal():
    text = " ".join(answer.answer(compared(replay=tuple(x - 0.1 for x in OURS))))
    assert "the difference is 10.0 points (the same in all 4 blocks)" in text
    assert "+10.0 (the same in all 4 blocks) points: no test is possible" in text


@pytest.mark.parametrize(
    ("ours", "joint", "status"),
    [((0.05, 0.06, 0.04, 0.05), 0.09, "floor"), ((0.995,) * 4, 0.999, "ceiling"), (OURS, 0.09, None)],
)
def test_near_the_ends_of_the_scale_the_study_cannot_tell(ours, joint, status):
    baselines = {"replay": tuple(x - 0.001 for x in ours), "joint": (joint,) * 4}
    made = compared(**baselines)
    table = made.table.copy()
    mine = table["setting"] == "dgg"
    table.loc[mine, "score"] = table.loc[mine, "order"].map(dict(zip(ORDERS, ours, strict=True)))
    found = verdict(dataclasses.replace(made, table=table))
    assert (found.status == status) is (status is not None)
    if status:
        assert found.headline.startswith("This study cannot tell which setting to use: e")
    if status == "floor":
        assert "even joint training on all tasks at once reaches only 9.0 % FAA" in found.headline


def test_without_a_simpler_rival_that_is_said():
    assert verdict(compared()).status == "not compared"
    assert "no simpler baseline" in verdict(compared()).headline
    two = dataclasses.replace(compared(replay=OURS), recommended=None, baselines={})
    assert verdict(two).status == "nothing judged"


def test_joint_is_a_reference_and_no_rival():
    made = compared(replay=(0.50, 0.53, 0.49, 0.55), joint=(0.8, 0.81, 0.85, 0.8))
    assert verdict(made).status == "clear"


def test_simpler_is_fine_tuning_then_replay_then_fewer_and_smaller_values():
    made = compared(finetune=OURS, replay=OURS)
    known = pd.DataFrame(
        {
            "strategy": ["finetune", "replay", "dgg", "dgg"],
            "strategy.alpha.a": [None, None, 0.3, 0.1],
            "strategy.alpha.b": [None, None, 0.3, 0.5],
        },
        index=["finetune", "replay", "constant", "dgg"],
    )
    made = dataclasses.replace(made, parameters=("strategy.alpha.a", "strategy.alpha.b"))
    made.known[("dgg_ray.analysis.run_table", "settings")] = known
    assert sorted(known.index, key=lambda s: simplicity_of(made, s)) == list(known.index)


def test_a_setting_without_a_value_is_simpler_than_one_with_a_number():
    made = dataclasses.replace(compared(l2sp=OURS), parameters=("strategy.norm",))
    values = {"strategy": ["dgg", "l2sp"], "strategy.norm": [0.3, np.nan]}
    made.known[("dgg_ray.analysis.run_table", "settings")] = pd.DataFrame(values, index=["dgg", "l2sp"])
    assert is_simpler(made, "l2sp", "dgg")
    assert not is_simpler(made, "dgg", "l2sp")


def test_one_seed_for_all_orders_is_said():
    made = compared(replay=(0.50, 0.53, 0.49, 0.55))
    assert "One seed (0) serves all orders" in " ".join(verdict(made).support)
    with_joint = compared(replay=(0.50, 0.53, 0.49, 0.55), joint=(0.8, 0.81, 0.85, 0.8))
    assert verdict(with_joint).status == "clear"
    assert "One seed (0) serves all orders" in " ".join(verdict(with_joint).support)


def test_seeds_are_replicates_on_these_orders():
    by_seed = (0, 0.02, -0.01)
    two = {o: [(v + more,) * 2 for more in by_seed] for o, v in zip(ORDERS[:2], OURS, strict=False)}
    row = faa(study({"dgg": two}), "dgg")
    # over orders two clusters; over seeds the means 0.62, 0.64, 0.61
    assert np.isnan(row["low"])
    half = stats.t.ppf(0.975, 2) * np.std(by_seed, ddof=1) / 3**0.5
    assert row["these_high"] - row["score"] == pytest.approx(half, abs=1e-3)
    assert row["score"] - row["these_low"] == pytest.approx(half, abs=2e-3)
    assert (row["these_n"], row["n"]) == (3, 2)
    assert "On these orders alone, over seeds: 62.3 (95 % CI " in " ".join(answer.answer(study({"dgg": two})))


def test_a_number_is_printed_with_its_interval_or_with_the_values_behind_it():
    assert interval_text(0.656, 0.556, 0.757, 4) == "65.6 (95 % CI 55.6 to 75.7)"
    assert interval_text(0.67, np.nan, np.nan, 2, (0.62, 0.72)) == "67.0 (2 blocks: 62.0, 72.0)"
    assert interval_text(0.67, np.nan, np.nan, 1, (0.67,)) == "67.0 (1 block)"
    assert interval_text(1.0, np.nan, np.nan, 5, (1.0,) * 5) == "100.0 (the same in all 5 blocks)"
    assert interval_text(0.67, np.nan, np.nan, 3, (0.62, 0.67, 0.72)) == "67.0 (3 blocks: 62.0, 67.0, 72.0)"
    assert interval_text(0.67, np.nan, np.nan, 3) == "67.0 (3 blocks)"
    assert (
        interval_text(0.656, 0.556, 0.757, 4, extra=", 4 blocks") == "65.6 (95 % CI 55.6 to 75.7, 4 blocks)"
    )
    assert interval_text(np.nan, np.nan, np.nan, 0) == "–"
    gap = Interval(-0.028, -0.052, -0.004, 4, ())
    assert points_text(gap, -1) == "2.8 points (95 % CI 0.4 to 5.2)"


@pytest.mark.parametrize("name", sorted(metrics()))
def test_every_metric_stays_on_the_scale_that_its_file_gives(name):
    from dgg_ray.core.interfaces import ScoreMatrix

    low, high = range_of(name)
    rng = np.random.default_rng(0)
    for R in (np.tri(3), 1 - np.tri(3, k=-1), *rng.integers(0, 2, (50, 3, 3)).astype(float)):
        value = metrics()[name](ScoreMatrix(R, np.array([1, 5, 9]), rng.random(3)))
        assert np.isnan(value) or low <= value <= high


def test_an_alpha_that_cannot_be_told_apart_says_so_beside_its_value():
    from agreement_samples import told

    open_ = told("s5", (0.02, 0.04, 0.09))
    assert undecided_alphas(open_) == {"strategy.alpha.b": "from 0 to 0.5 cannot be told apart"}
    assert "α for b = 0.5 (from 0 to 0.5 cannot be told apart)" in " ".join(answer.answer(open_))
    assert undecided_alphas(told("s0")) == {}
