"""The headline claims no more than the evidence supports: which baselines are beaten, and by how much."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from order_samples import results_by_order
from scipy import stats

from dgg_ray.analysis import next_steps
from dgg_ray.analysis.alpha_curves import undecided_alphas
from dgg_ray.analysis.comparison_tables import compare
from dgg_ray.analysis.run_table import metrics
from dgg_ray.analysis.run_table import settings_by_label as outcomes_compared
from dgg_ray.analysis.verdict import is_simpler, simplicity_of, verdict
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report import console, page, summary
from dgg_ray.search.objective import metric_range

ORDERS = ("a > b", "b > a", "c > d", "d > c")  # they share no stage
OURS = (0.60, 0.64, 0.58, 0.66)


def compared(parameters=(), recommended="dgg", seeds=1, **baselines):
    """dgg and its baselines, a strategy each; baseline → final score in each order, the same on all tasks."""
    scores = {"dgg": OURS, **baselines}
    table = {s: {o: [(v,) * 2] * seeds for o, v in zip(ORDERS, of, strict=False)} for s, of in scores.items()}
    found = results_by_order(table)
    return dataclasses.replace(found, baselines={s: s for s in baselines}, recommended=recommended)


def faa(results, label):
    return compare(results, "validation").set_index(["label", "metric"]).loc[(label, "faa")]


def test_a_setting_that_beats_all_simpler_baselines_is_recommended():
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


def test_with_several_baselines_the_intervals_are_simultaneous():
    # 3, 9, 5, 9 points above replay: 6.5 ± 4.78 alone (t = 3.1824), ± 6.27 among two
    baselines = {"replay": (0.57, 0.55, 0.53, 0.57), "finetune": (0.2, 0.22, 0.21, 0.2)}
    alone, among = compared(replay=baselines["replay"]), compared(**baselines)
    assert verdict(alone).status == "clear"
    assert faa(alone, "replay")["simultaneous_low"] == faa(alone, "replay")["difference_low"]
    row = faa(among, "replay")
    half = stats.t.ppf(1 - 0.025 / 2, 3) * np.std([3, 9, 5, 9], ddof=1) / 200
    assert row["simultaneous_low"] == pytest.approx(0.065 - half)
    assert row["difference_low"] > row["simultaneous_low"]
    assert row["p_adjusted"] == pytest.approx(2 * row["p"])
    # 2, 9, 5, 9 points: p = 0.035 alone, which Holm leaves where the other is smaller; its interval holds 0
    doubtful = faa(compared(**baselines | {"replay": (0.58, 0.55, 0.53, 0.57)}), "replay")
    assert doubtful["p"] < 0.05 < doubtful["p_adjusted"]
    assert doubtful["simultaneous_low"] < 0
    assert faa(among, "finetune")["p_adjusted"] == pytest.approx(2 * faa(among, "finetune")["p"])


def test_sentences_table_and_next_steps_give_the_interval_of_the_headline():
    made = compared(finetune=(0.20, 0.25, 0.19, 0.24), replay=(0.50, 0.65, 0.51, 0.70))
    said = verdict(made).headline
    assert "3.0 points (simultaneous 95 % CI −10.7 to 16.7)" in said
    assert "+3.0 points (simultaneous 95 % CI −10.7 to +16.7)" in " ".join(summary.summary_sentences(made))
    (line,) = (line for line in console.method_table(made) if "replay" in line)
    assert "+3.0 (simultaneous 95 % CI −10.7 to +16.7)" in line
    (step,) = next_steps.next_step_sentences(made)
    assert "the simultaneous 95 % interval of the difference to replay" in step
    assert "narrows from ±13.7 to" in step


def test_a_setting_that_is_worse_than_a_baseline_is_not_within_noise_of_it():
    worse = compared(finetune=tuple(x + 0.2 + e for x, e in zip(OURS, (0, 0.01, 0, 0.01), strict=True)))
    found = verdict(worse)
    assert found.status == "beaten"
    # 20, 21, 20, 21 points: 20.5 ± 3.1824 · 0.57735 / 2
    assert found.headline == "Plain fine-tuning beats dgg by 20.5 points (95 % CI 19.6 to 21.4)."
    also = compared(replay=(0.1, 0.12, 0.1, 0.11), clever=(*(x + 0.2 for x in OURS[:3]), 0.87))
    assert verdict(also).headline.startswith("Clever beats dgg by ")  # a baseline need not be simpler


def test_no_page_recommends_a_setting_that_the_headline_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "figure_names", list)
    made = compared(finetune=(0.50, 0.65, 0.51, 0.70))
    assert verdict(made).status == "within noise"
    html = page.write_report(made, tmp_path).read_text(encoding="utf-8")
    assert "recommended" not in html
    assert "the score of dgg minus that of this method" in html
    assert "recommended" not in "\n".join(console.summary_lines(made, OptionalOutputs()))
    same = dataclasses.replace(made, baselines={"dgg": "finetune"})
    assert next(iter(outcomes_compared(same))) == "dgg (the study's own)"


def test_a_baseline_without_a_common_block_counts_neither_as_beaten_nor_as_unbeaten():
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


def test_two_blocks_give_their_values_instead_of_an_interval():
    found = verdict(compared(replay=(0.10, 0.12)))
    assert found.headline.startswith(
        "No setting was shown to beat replay with the same buffer: the difference is 51.0 points (2 blocks: "
        "50.0, 52.0)"
    )


def test_equal_differences_are_reported_as_equal():
    text = " ".join(summary.summary_sentences(compared(replay=tuple(x - 0.1 for x in OURS))))
    assert "the difference is 10.0 points (the same in all 4 blocks)" in text
    assert "+10.0 points (the same in all 4 blocks): no test is possible" in text


@pytest.mark.parametrize(
    ("ours", "joint", "status"),
    [((0.05, 0.06, 0.04, 0.05), 0.09, "floor"), ((0.995,) * 4, 0.999, "ceiling"), (OURS, 0.09, None)],
)
def test_scores_near_the_ends_of_the_scale_give_no_verdict(ours, joint, status):
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


def test_without_a_simpler_baseline_nothing_is_recommended():
    assert verdict(compared()).status == "not compared"
    assert "no simpler baseline" in verdict(compared()).headline
    two = dataclasses.replace(compared(replay=OURS), recommended=None, baselines={})
    assert verdict(two).status == "nothing evaluated"


def test_joint_training_is_a_reference_and_not_a_baseline():
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
    made.cache[("dgg_ray.analysis.run_table", "setting_values")] = known
    assert sorted(known.index, key=lambda s: simplicity_of(made, s)) == list(known.index)


def test_a_setting_without_a_value_is_simpler_than_one_with_a_number():
    made = dataclasses.replace(compared(l2sp=OURS), parameters=("strategy.norm",))
    values = {"strategy": ["dgg", "l2sp"], "strategy.norm": [0.3, np.nan]}
    made.cache[("dgg_ray.analysis.run_table", "setting_values")] = pd.DataFrame(values, index=["dgg", "l2sp"])
    assert is_simpler(made, "l2sp", "dgg")
    assert not is_simpler(made, "dgg", "l2sp")


def test_the_support_mentions_that_one_seed_serves_all_orders():
    made = compared(replay=(0.50, 0.53, 0.49, 0.55))
    assert "One seed (0) serves all orders" in " ".join(verdict(made).support)
    with_joint = compared(replay=(0.50, 0.53, 0.49, 0.55), joint=(0.8, 0.81, 0.85, 0.8))
    assert verdict(with_joint).status == "clear"
    assert "One seed (0) serves all orders" in " ".join(verdict(with_joint).support)


def test_seeds_are_replicates_on_these_orders():
    by_seed = (0, 0.02, -0.01)
    two = {o: [(v + more,) * 2 for more in by_seed] for o, v in zip(ORDERS[:2], OURS, strict=False)}
    row = faa(results_by_order({"dgg": two}), "dgg")
    # over orders two clusters; over seeds the means 0.62, 0.64, 0.61
    assert np.isnan(row["low"])
    half = stats.t.ppf(0.975, 2) * np.std(by_seed, ddof=1) / 3**0.5
    assert row["fixed_orders_high"] - row["score"] == pytest.approx(half, abs=1e-3)
    assert row["score"] - row["fixed_orders_low"] == pytest.approx(half, abs=2e-3)
    assert (row["fixed_orders_n"], row["n"]) == (3, 2)
    assert "On these orders alone, over seeds, FAA is 62.3 % (95 % CI " in " ".join(
        summary.summary_sentences(results_by_order({"dgg": two}))
    )


@pytest.mark.parametrize("name", sorted(metrics()))
def test_every_metric_stays_on_the_scale_that_its_module_declares(name):
    from dgg_ray.core.scores import ScoreMatrix

    low, high = metric_range(name)
    rng = np.random.default_rng(0)
    for R in (np.tri(3), 1 - np.tri(3, k=-1), *rng.integers(0, 2, (50, 3, 3)).astype(float)):
        value = metrics()[name](ScoreMatrix(R, np.array([1, 5, 9]), rng.random(3)))
        assert np.isnan(value) or low <= value <= high


def test_an_undecided_alpha_is_marked_next_to_its_value():
    from curve_agreement_samples import two_alpha_results

    open_ = two_alpha_results("s5", (0.02, 0.04, 0.09))
    assert undecided_alphas(open_) == {"strategy.alpha.b": "from 0 to 0.5 cannot be distinguished"}
    assert "α for b = 0.5 (from 0 to 0.5 cannot be distinguished)" in " ".join(
        summary.summary_sentences(open_)
    )
    assert undecided_alphas(two_alpha_results("s0")) == {}
