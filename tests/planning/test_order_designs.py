"""A comparison of order designs for one study: costs, efficiencies and detectable differences."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dgg_ray import cli
from dgg_ray.config import task_similarity
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.study import Study, StudyData, StudyRuns
from dgg_ray.core.hashing import digest
from dgg_ray.core.orders import design
from dgg_ray.core.stage import TaskData, distinct_stages
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.planning.order_designs import (
    ASSUMED_SD,
    PairedSd,
    compare_designs,
    count_neighbours,
    efficiencies,
    pool_differences,
)
from dgg_ray.readers.embedded import Embedded
from dgg_ray.search.comparison import SPLITS
from dgg_ray.stats import power
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG

NAMES = ("digits", "words", "shapes", "charts")


def study(tasks=NAMES, similarity=True, **parts) -> Study:
    splits = ("train", "validation", "test")
    data = StudyData(
        {
            name: TaskData(
                name, {s: digest([name, s]) for s in splits}, dict.fromkeys(splits, 9), "exact_match"
            )
            for name in tasks
        },
        fingerprint="f",
        similarity=tuple(map(tuple, np.eye(len(tasks)).tolist())) if similarity else (),
    )
    readers = {name: Embedded(10, 10, 10) for name in tasks}
    parts = {"protocol": Protocol(evaluate="seen", baselines=("replay", "joint")), **parts}
    return Study("toy", Model(), readers, DGG(alpha=0.5, buffer=4), data=data, **parts)


@pytest.fixture()
def store(tmp_path):
    return open_store(tmp_path / "stages")


def finish(runs: StudyRuns, store: StageStore, run, score: float, splits=SPLITS) -> None:
    """Publish a run whose final scores are all `score`; stages that are stored already keep theirs."""
    for item in runs.work_items(run, splits):
        if store.record(item.stage) is None:
            store.publish(item.stage, {}, lambda folder: None)
        cells = [
            {"evaluation": e.key, "task": e.task, "split": e.split, "score": score, "n": 9}
            for e in item.evaluations
        ]
        store.publish_evaluations(item.stage, cells, lambda folder: None)


def by_name(table):
    return {row.design: row for row in table.rows}


def test_each_design_that_exists_has_a_row_and_the_study_s_own_has_its_own_count(store):
    rows = by_name(compare_designs(study(orders=Orders("random", 3)), store))
    assert list(rows) == ["all", "random", "cyclic", "latin", "williams", "shared_prefix", "extreme"]
    assert {name: row.orders for name, row in rows.items()} == {
        "all": 24,
        "random": 3,
        "cyclic": 4,
        "latin": 4,
        "williams": 4,
        "shared_prefix": 8,
        "extreme": 2,  # all tasks are equally similar: one chain, and its reverse
    }
    assert [name for name, row in rows.items() if row.own] == ["random"]


def test_designs_with_too_many_orders_to_train_are_left_out(store):
    assert "all" not in by_name(compare_designs(study(tuple("abcdefg")), store))


@pytest.mark.parametrize("name", ["all", "random", "williams", "shared_prefix"])
def test_the_stages_of_a_row_are_the_distinct_keys_of_its_runs(name, store):
    own = study(orders=Orders(name), seeds=(3, 4))
    row = by_name(compare_designs(own, store))[name]
    runs = own.runs
    assert row.requested == sum(len(run.stages) for run in runs)
    assert row.stages == len(distinct_stages(stage for run in runs for stage in run.stages))
    assert row.first_stages == len({run.stages[0].key for run in runs})


def test_a_simultaneous_strategy_trains_one_stage_per_seed_whatever_the_orders(store):
    joint = study(seeds=(3, 4)).with_strategy("joint")
    row = by_name(compare_designs(joint, store))["williams"]
    assert (row.requested, row.stages, row.sharing) == (8, 2, 4)
    assert (row.effective_blocks, row.detectable) == (2, None)  # the four orders are one run, so one cluster


def test_orders_with_shared_beginnings_share_stages(store):
    own = study(tuple("abcdef"), orders=Orders("shared_prefix", prefix_length=3, suffixes=4))
    row = by_name(compare_designs(own, store))["shared_prefix"]
    assert (row.orders, row.requested, row.stages, row.position_counts) == (24, 144, 84, (4, 4))
    assert row.sharing == pytest.approx(1.71, abs=0.01)


@pytest.mark.parametrize("tasks", [3, 4, 5, 6])
def test_the_efficiencies_of_squares_are_those_on_paper(tasks):
    pairs = tasks * (tasks - 1)
    names = "abcdef"[:tasks]
    assert efficiencies(design("williams", names)) == pytest.approx((1, 1 - 2 / pairs))
    assert efficiencies(design("cyclic", names)) == pytest.approx((1, (tasks - 2) / pairs))


def test_a_single_order_estimates_neither_position_nor_carry_over():
    assert efficiencies([("a", "b", "c", "d")]) == (0, 0)
    assert count_neighbours([("a", "b", "c", "d")]) == ((0, 1), (0, 1))


def test_a_position_effect_is_recovered_where_the_design_can_estimate_it():
    # score = task + position, exactly; least squares recover the position's part
    orders, position = design("random", "abcd", 6, seed=1), np.array([0.0, 1.0, 4.0, 9.0])
    assert efficiencies(orders)[0] > 0
    cells = [(order.index(task), "abcd".index(task)) for order in orders for task in "abcd"]
    X = np.array([[*np.eye(4)[t], *np.eye(4)[i]] for t, i in cells])
    score = np.array([position[t] + 7.0 * i for t, i in cells])
    estimate = np.linalg.lstsq(X, score)[0][:4]
    assert np.diff(estimate) == pytest.approx(np.diff(position))


def test_without_finished_runs_the_paired_sd_is_assumed_and_marked_so(store):
    table = compare_designs(study(orders=Orders("williams")), store)
    assert (table.paired_sd.sd, table.paired_sd.source) == (ASSUMED_SD, "assumed")
    assert "assumed: no two settings differ yet on two blocks" in str(table)
    assert by_name(table)["williams"].detectable == pytest.approx(power.detectable_difference(4, ASSUMED_SD))
    assert compare_designs(study(), store, sd=1.5).paired_sd.sd == 1.5
    assert not store.backend.root.exists()


def test_the_paired_sd_is_measured_between_compared_settings(store):
    own = study(orders=Orders("cyclic", 3))
    settings = own.compared_settings()
    # Differences of 10, 20, 60 points: mean 30, sd √((400 + 100 + 900) / 2)
    for label, scores in {"dgg": (0.5, 0.6, 0.9), "replay": (0.4, 0.4, 0.3), "joint": (0.1,) * 3}.items():
        for run, score in zip(settings[label], scores, strict=True):
            if label != "joint" or run.order[0] == "digits":
                finish(settings[label], store, run, score)
    paired_sd = compare_designs(own, store).paired_sd
    assert paired_sd.sd == pytest.approx(700**0.5)
    assert (paired_sd.source, paired_sd.basis, paired_sd.differences) == (
        "measured",
        "compared settings on test",
        3,
    )


def test_an_unfinished_search_measures_the_paired_sd_on_validation(store):
    parameters = {"strategy.alpha": SearchParameter(values=(0.0, 0.5))}
    own = study(orders=Orders("cyclic", 2), search=Search(parameters, method="grid"))
    for alpha, scores in ((0.0, (0.5, 0.5)), (0.5, (0.6, 0.8))):
        runs = own.at({"strategy.alpha": alpha}).runs
        for run, score in zip(runs, scores, strict=True):
            finish(runs, store, run, score, ("validation",))
    paired_sd = compare_designs(own, store).paired_sd
    assert paired_sd.sd == pytest.approx(200**0.5)  # differences of 10 and 30 points
    assert paired_sd.basis == "searched settings on validation"


def test_each_design_says_how_many_orders_detect_a_difference(store):
    # The rows of one Latin square share no stage, so 6 rows are 6 blocks. These detect 1.6 points at an
    # sd of 1.0.
    assert power.blocks_needed(1.6, 1.0) == 6
    table = compare_designs(study(tuple("abcdefg"), orders=Orders("latin", 2)), store, difference=1.6, sd=1.0)
    rows = by_name(table)
    assert (rows["latin"].needed, rows["cyclic"].needed, rows["extreme"].needed) == ((6, 1), (6, 1), None)
    assert "6 orders × 1 seed" in str(table)


def test_seeds_are_not_offered_to_several_orders(store):
    # Four tasks are four clusters at most: 15 blocks are needed, and 4 orders × 4 seeds would be 16.
    table = compare_designs(study(orders=Orders("williams")), store, difference=1.6, sd=2.0)
    assert {row.needed for row in table.rows if row.orders > 1} == {None}
    assert "4.3 points  not by this design with 1 seed" in str(table)
    assert (
        "held out: 0 blocks, an order and a seed each, of 20; to detect 1.6 points: protocol.held_out: 15"
        in str(table)
    )


def test_a_single_order_is_offered_seeds(store):
    row = by_name(compare_designs(study(), store, difference=1.6, sd=2.0))["given"]
    assert (row.orders, row.needed) == (1, (1, 15))


def test_all_orders_with_four_seeds_detect_what_four_clusters_do(store):
    four_seeds = study(seeds=(0, 1, 2, 3))
    row = by_name(compare_designs(four_seeds, store, difference=2.1, sd=3.0))["all"]
    assert row.effective_blocks == pytest.approx(4 * 24 / 2.5)
    assert row.detectable == pytest.approx(power.detectable_difference(4 * 24 / 2.5, 3.0, freedom=3))
    assert row.needed == (24, 4)
    smaller = by_name(compare_designs(four_seeds, store, difference=2.0, sd=3.0))["all"]
    assert smaller.needed is None


def test_the_share_of_the_order_is_that_of_the_analysis_of_variance():
    # Means 12, 22, 17 of two seeds: 24 within on 3 degrees, 100 between on 2; (100 - 2 · 8) / 4 = 21 and 8
    means = dict(zip(design("cyclic", "abc"), (12.0, 22.0, 17.0), strict=True))
    a = {(order, seed): mean + (2, -2)[seed] for order, mean in means.items() for seed in (0, 1)}
    paired_sd = pool_differences([a, dict.fromkeys(a, 0.0)], "paper")
    assert paired_sd.order_share == pytest.approx(21 / 29)
    assert paired_sd.sd == pytest.approx((124 / 5) ** 0.5)
    one = {block: score for block, score in a.items() if block[1] == 0}
    assert pool_differences([one, dict.fromkeys(one, 0.0)], "paper").order_share is None
    two = {block: score for block, score in a.items() if block[0][0] != "c"}
    assert pool_differences([two, dict.fromkeys(two, 0.0)], "paper").order_share is None
    alike = {(order, seed): (2.0, -2.0)[seed] for order, seed in a}
    assert pool_differences([alike, dict.fromkeys(a, 0.0)], "paper").order_share == 0


def test_seeds_add_nothing_where_a_difference_is_the_orders_own(store, monkeypatch):
    monkeypatch.setattr(
        "dgg_ray.planning.order_designs.measure_paired_sd",
        lambda study, store: PairedSd(2.0, "measured", order_share=1.0),
    )
    own = study(tuple("abcdefg"), orders=Orders("latin", 2))
    one_seed = compare_designs(own, store, difference=2.2)
    two_seeds = compare_designs(replace(own, seeds=(0, 1)), store, difference=2.2)
    row = by_name(two_seeds)["latin"]
    assert (row.needed, by_name(one_seed)["latin"].needed) == ((11, 2), (11, 1))
    assert row.effective_blocks == pytest.approx(2)
    assert "100% of its variance between orders" in str(one_seed)
    assert "is unknown" not in str(two_seeds)
    assert "is unknown" in str(compare_designs(study(seeds=(0, 1)), store, sd=2.0))
    assert "is unknown" not in str(compare_designs(study(), store, difference=1.6, sd=2.0))


def test_held_out_blocks_have_a_line_with_the_number_available(store):
    def text(count, difference=None):
        own = study(tuple("abc"), protocol=Protocol(held_out=count))
        return str(compare_designs(own, store, difference, sd=1.0))

    assert power.detectable_difference(4, 1.0) == pytest.approx(2.13, abs=0.01)
    assert "held out: 4 blocks, an order and a seed each, of 5; detect 2.1 points" in text(4)
    assert "of 5; detect nothing; to detect 1.6 points: more than there are" in text(1, 1.6)
    assert "; to detect 2.2 points: protocol.held_out: 4" in text(1, 2.2)
    assert "held out" not in text(0)


def test_the_task_similarity_behind_extreme_orders_is_computed_where_the_study_has_none(store):
    own = study(similarity=False)
    similarity = task_similarity.similarity_matrix(
        [task_similarity.profile_of(Embedded(10, 10, 10).read(name)) for name in NAMES]
    )
    orders = design("extreme", NAMES, similarity=similarity)
    row = by_name(compare_designs(own, store))["extreme"]
    assert (row.orders, row.position_counts) == (len(orders), count_neighbours(orders)[0])


def test_a_single_block_detects_nothing_and_the_json_says_null(tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: x\nmodel: embedded\nstrategy: finetune\ntasks:\n"
        "  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}\n"
        "  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}\n"
    )
    arguments = ["plan", str(file), "--out", str(tmp_path / "out"), "--detect", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["designs"]
    row = table["rows"][0]
    assert (row["design"], row["detectable"], table["difference"]) == ("given", None, 2)
    assert cli.main(arguments) == 0
    assert "given *" in capsys.readouterr().out
    assert cli.main([*arguments, "--sd", "-1"]) == 2


def test_final_seeds_are_the_ones_that_count(store):
    own = replace(study(), protocol=Protocol(final_seeds=(5, 6, 7)))
    assert by_name(compare_designs(own, store))["williams"].effective_blocks == 4 * 3
