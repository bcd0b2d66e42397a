"""Designs of orders beside each other, for one study."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dgg_ray import cli
from dgg_ray.config import task_similarity
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter
from dgg_ray.config.study import Study
from dgg_ray.core.interfaces import digest
from dgg_ray.core.orders import design
from dgg_ray.core.stage import Data, distinct
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.planning.order_designs import ASSUMED, counts, efficiencies, table
from dgg_ray.planning.spread import Spread, pooled
from dgg_ray.readers.embedded import Embedded
from dgg_ray.search import evidence
from dgg_ray.stats import power
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.strategies.dgg import DGG

NAMES = ("digits", "words", "shapes", "charts")


def study(tasks=NAMES, **parts) -> Study:
    splits = ("train", "validation", "test")
    data = {
        n: Data(n, {s: digest([n, s]) for s in splits}, dict.fromkeys(splits, 9), "exact_match")
        for n in tasks
    }
    readers = {name: Embedded(10, 10, 10) for name in tasks}
    parts = {"likeness": tuple(map(tuple, np.eye(len(tasks)).tolist())), **parts}
    parts = {"protocol": Protocol(evaluate="seen", baselines=("replay", "joint")), **parts}
    return Study("toy", Model(), readers, DGG(alpha=0.5, buffer=4), tasks=data, fingerprint="f", **parts)


@pytest.fixture()
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def finish(study: Study, store: StageStore, run, score: float, splits=evidence.FINAL) -> None:
    """Publish a run whose final scores are all `score`; stages that are there already keep theirs."""
    for item in evidence.work_items(study, run, splits):
        if store.record(item.stage) is None:
            store.publish(item.stage, {}, lambda folder: None)
        cells = [
            {"evaluation": e.key, "task": e.task, "split": e.split, "score": score, "n": 9}
            for e in item.evaluations
        ]
        store.sit(item.stage, cells, lambda folder: None)


def by_name(found):
    return {row.design: row for row in found.rows}


def test_each_design_that_exists_has_a_row_and_the_study_s_own_has_its_own_count(store):
    found = by_name(table(study(orders=Orders("random", 3)), store))
    assert list(found) == ["all", "random", "cyclic", "latin", "williams", "shared_prefix", "extreme"]
    assert {name: row.orders for name, row in found.items()} == {
        "all": 24,
        "random": 3,
        "cyclic": 4,
        "latin": 4,
        "williams": 4,
        "shared_prefix": 8,
        "extreme": 2,  # tasks that are all as alike: one chain, and backwards
    }
    assert [name for name, row in found.items() if row.own] == ["random"]


def test_designs_with_too_many_orders_to_learn_are_left_out(store):
    assert "all" not in by_name(table(study(tuple("abcdefg")), store))


@pytest.mark.parametrize("name", ["all", "random", "williams", "shared_prefix"])
def test_the_stages_of_a_row_are_the_distinct_keys_of_its_runs(name, store):
    own = study(orders=Orders(name), seeds=(3, 4))
    row = by_name(table(own, store))[name]
    runs = own.runs()
    assert row.asked == sum(len(run.stages) for run in runs)
    assert row.stages == len(distinct(stage for run in runs for stage in run.stages))
    assert row.first == len({run.stages[0].key for run in runs})


def test_a_simultaneous_strategy_learns_one_stage_a_seed_whatever_the_orders(store):
    joint = study(seeds=(3, 4)).beside("joint")
    row = by_name(table(joint, store))["williams"]
    assert (row.asked, row.stages, row.saves) == (8, 2, 4)
    assert (row.effective, row.sees) == (2, None)  # the four orders are one run, so one cluster


def test_what_shared_beginnings_save(store):
    own = study(tuple("abcdef"), orders=Orders("shared_prefix", prefix_length=3, suffixes=4))
    row = by_name(table(own, store))["shared_prefix"]
    assert (row.orders, row.asked, row.stages, row.places) == (24, 144, 84, (4, 4))
    assert row.saves == pytest.approx(1.71, abs=0.01)


@pytest.mark.parametrize("tasks", [3, 4, 5, 6])
def test_the_efficiencies_of_squares_are_those_on_paper(tasks):
    pairs = tasks * (tasks - 1)
    names = "abcdef"[:tasks]
    assert efficiencies(design("williams", names)) == pytest.approx((1, 1 - 2 / pairs))
    assert efficiencies(design("cyclic", names)) == pytest.approx((1, (tasks - 2) / pairs))


def test_one_order_tells_nothing_of_position_or_of_what_stood_before():
    assert efficiencies([("a", "b", "c", "d")]) == (0, 0)
    assert counts([("a", "b", "c", "d")]) == ((0, 1), (0, 1))


def test_an_effect_of_the_position_is_found_where_the_design_says_it_can_be():
    # score = task + position, exactly; the position's part is read off by least squares
    orders, position = design("random", "abcd", 6, seed=1), np.array([0.0, 1.0, 4.0, 9.0])
    assert efficiencies(orders)[0] > 0
    cells = [(order.index(task), "abcd".index(task)) for order in orders for task in "abcd"]
    X = np.array([[*np.eye(4)[t], *np.eye(4)[i]] for t, i in cells])
    score = np.array([position[t] + 7.0 * i for t, i in cells])
    found = np.linalg.lstsq(X, score)[0][:4]
    assert np.diff(found) == pytest.approx(np.diff(position))


def test_without_finished_runs_the_spread_is_assumed_and_said_to_be(store):
    found = table(study(orders=Orders("williams")), store)
    assert (found.spread.sd, found.spread.source) == (ASSUMED, "assumed")
    assert "assumed: no two settings differ yet on two blocks" in str(found)
    assert by_name(found)["williams"].sees == pytest.approx(power.detectable(4, ASSUMED))
    assert table(study(), store, sd=1.5).spread.sd == 1.5
    assert not store.folder.exists()


def test_the_spread_is_that_of_paired_differences_between_finished_contenders(store):
    own = study(orders=Orders("cyclic", 3))
    compared_settings = own.compared_settings()
    # Differences of 10, 20, 60 points: mean 30, sd √((400 + 100 + 900) / 2)
    for label, scores in {"dgg": (0.5, 0.6, 0.9), "replay": (0.4, 0.4, 0.3), "joint": (0.1,) * 3}.items():
        for run, score in zip(compared_settings[label].runs(), scores, strict=True):
            if label != "joint" or run.order[0] == "digits":
                finish(compared_settings[label], store, run, score)
    spread = table(own, store).spread
    assert spread.sd == pytest.approx(700**0.5)
    assert (spread.source, spread.of, spread.differences) == ("measured", "contenders on test", 3)


def test_a_search_under_way_measures_the_spread_on_validation(store):
    parameters = {"strategy.alpha": SearchParameter(values=(0.0, 0.5))}
    own = study(orders=Orders("cyclic", 2), search=Search(parameters, method="grid"))
    for alpha, scores in ((0.0, (0.5, 0.5)), (0.5, (0.6, 0.8))):
        at = own.at({"strategy.alpha": alpha})
        for run, score in zip(at.runs(), scores, strict=True):
            finish(at, store, run, score, ("validation",))
    spread = table(own, store).spread
    assert spread.sd == pytest.approx(200**0.5)  # differences of 10 and 30 points
    assert spread.of == "searched settings on validation"


def test_what_it_takes_to_see_a_difference_is_a_number_of_orders_of_each_design(store):
    # The rows of one Latin square share no stage, so 6 rows are as many blocks, and 6 see 1.6 points of 1.0.
    assert power.needed(1.6, 1.0) == 6
    found = table(study(tuple("abcdefg"), orders=Orders("latin", 2)), store, see=1.6, sd=1.0)
    rows = by_name(found)
    assert (rows["latin"].needs, rows["cyclic"].needs, rows["extreme"].needs) == ((6, 1), (6, 1), None)
    assert "6 orders × 1 seed" in str(found)


def test_seeds_are_not_offered_to_several_orders(store):
    # Four tasks are four clusters at most: 15 blocks are needed, and 4 orders × 4 seeds would be 16.
    found = table(study(orders=Orders("williams")), store, see=1.6, sd=2.0)
    assert {row.needs for row in found.rows if row.orders > 1} == {None}
    assert "4.3 points  not by this design with 1 seed" in str(found)
    assert (
        "held out: 0 blocks, an order and a seed each, of 20; to see 1.6 points: protocol.held_out: 15"
        in str(found)
    )


def test_a_single_order_is_offered_seeds(store):
    row = by_name(table(study(), store, see=1.6, sd=2.0))["given"]
    assert (row.orders, row.needs) == (1, (1, 15))


def test_all_orders_with_four_seeds_see_what_four_clusters_do(store):
    row = by_name(table(study(seeds=(0, 1, 2, 3)), store, see=2.1, sd=3.0))["all"]
    assert row.effective == pytest.approx(4 * 24 / 2.5)
    assert row.sees == pytest.approx(power.detectable(4 * 24 / 2.5, 3.0, freedom=3))
    assert row.needs == (24, 4)
    assert by_name(table(study(seeds=(0, 1, 2, 3)), store, see=2.0, sd=3.0))["all"].needs is None


def test_the_orders_own_share_is_that_of_the_analysis_of_variance():
    # Means 12, 22, 17 of two seeds: 24 within on 3 degrees, 100 between on 2; (100 - 2 · 8) / 4 = 21 and 8
    means = dict(zip(design("cyclic", "abc"), (12.0, 22.0, 17.0), strict=True))
    a = {(order, seed): mean + (2, -2)[seed] for order, mean in means.items() for seed in (0, 1)}
    spread = pooled([a, dict.fromkeys(a, 0.0)], "paper")
    assert spread.own == pytest.approx(21 / 29)
    assert spread.sd == pytest.approx((124 / 5) ** 0.5)
    one = {block: score for block, score in a.items() if block[1] == 0}
    assert pooled([one, dict.fromkeys(one, 0.0)], "paper").own is None
    two = {block: score for block, score in a.items() if block[0][0] != "c"}
    assert pooled([two, dict.fromkeys(two, 0.0)], "paper").own is None
    alike = {(order, seed): (2.0, -2.0)[seed] for order, seed in a}
    assert pooled([alike, dict.fromkeys(a, 0.0)], "paper").own == 0


def test_seeds_tell_nothing_where_a_difference_is_the_orders_own(store, monkeypatch):
    monkeypatch.setattr(
        "dgg_ray.planning.order_designs.measured", lambda study, store: Spread(2.0, "measured", own=1.0)
    )
    own = study(tuple("abcdefg"), orders=Orders("latin", 2))
    found, more = table(own, store, see=2.2), table(replace(own, seeds=(0, 1)), store, see=2.2)
    row = by_name(more)["latin"]
    assert (row.needs, by_name(found)["latin"].needs) == ((11, 2), (11, 1))
    assert row.effective == pytest.approx(2)
    assert "100% of its variance between orders" in str(found)
    assert "is not known" not in str(found)
    assert "is not known" in str(table(study(seeds=(0, 1)), store, sd=2.0))
    assert "is not known" not in str(table(study(), store, see=1.6, sd=2.0))


def test_held_out_blocks_have_a_line_with_as_many_as_there_are(store):
    def said(count, see=None):
        own = study(tuple("abc"), protocol=Protocol(held_out=count))
        return str(table(own, store, see, sd=1.0))

    assert power.detectable(4, 1.0) == pytest.approx(2.13, abs=0.01)
    assert "held out: 4 blocks, an order and a seed each, of 5; sees 2.1 points" in said(4)
    assert "of 5; sees nothing; to see 1.6 points: more than there are" in said(1, 1.6)
    assert "; to see 2.2 points: protocol.held_out: 4" in said(1, 2.2)
    assert "held out" not in said(0)


def test_the_likeness_behind_extreme_orders_is_read_where_the_study_has_none(store):
    own = study(likeness=())
    alike = task_similarity.matrix(
        [task_similarity.profile(Embedded(10, 10, 10).read(name)) for name in NAMES]
    )
    orders = design("extreme", NAMES, likeness=alike)
    row = by_name(table(own, store))["extreme"]
    assert (row.orders, row.places) == (len(orders), counts(orders)[0])


def test_a_single_block_sees_nothing_and_the_json_says_null(tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: x\nmodel: embedded\nstrategy: finetune\ntasks:\n"
        "  - {name: digits, reader: embedded, train: 12, validation: 10, test: 10}\n"
        "  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}\n"
    )
    arguments = ["plan", str(file), "--out", str(tmp_path / "out"), "--see", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["designs"]
    assert (found["rows"][0]["design"], found["rows"][0]["sees"], found["see"]) == ("given", None, 2)
    assert cli.main(arguments) == 0
    assert "given *" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--sd", "-1"])


def test_final_seeds_are_the_ones_that_count(store):
    own = replace(study(), protocol=Protocol(final_seeds=(5, 6, 7)))
    assert by_name(table(own, store))["williams"].effective == 4 * 3
