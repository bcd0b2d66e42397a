"""A learner that follows a known law, behind the same verbs as a real one."""

from dataclasses import replace

import numpy as np
import pytest

from dgg_ray import cli, load_study
from dgg_ray.analysis.load import table
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter, Workers
from dgg_ray.config.simulation import GUESS, Law, capacity
from dgg_ray.core.stage import WorkItem
from dgg_ray.search import evidence
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import Cluster, rehearse
from dgg_ray.training.simulated import MemoryStore, Simulated, imagined

EXACT = Law(noise=0.0, evaluation_noise=False, spread=0.0)


def test_the_law_is_its_formulas():
    law = Law(seed=7, place=0.02)
    top, rigid, frail, _ = law.nature("b")
    found = law.learned({"a": 0.8}, "b", alpha=0.5, buffer=50, rank=8)
    # c(8) = 1 - 0.3 / 2; (1-α)² = 0.25; 1 + m/m₀ = 2
    assert found["b"] == pytest.approx(top * 0.85 * (1 - rigid * 0.25) - 0.02)
    assert found["a"] == pytest.approx(0.8 * (1 - frail * (1 - 0.85 * 0.75) / 2))
    assert law.learned({}, "b", 1.0, 0, 8)["b"] == pytest.approx(top * 0.85)  # the first has no guidance
    assert law.together(("a", "b"), 1e9)["b"] == pytest.approx(top)
    assert capacity(8) == pytest.approx(0.85)


def test_a_law_in_which_one_tasks_guidance_is_felt_by_others():
    plain, other = Law(seed=7), Law(seed=7, bend=1.0, transfer=0.4)
    half = plain.nature("a").top / 2
    share = 1 - plain.learned({"a": half}, "b", 0.5, 50, 8)["a"] / half
    found = other.learned({"a": half}, "b", 0.5, 50, 8)
    assert found["a"] == pytest.approx(half * (1 - share / 2))  # half as much of half a score
    full = plain.learned({"a": half}, "b", 0.5, 50, 8)["b"]
    assert found["b"] == pytest.approx(full * (1 - 0.4 / 2))  # half of what is old is gone
    assert other.learned({}, "b", 0.5, 50, 8) == plain.learned({}, "b", 0.5, 50, 8)


def test_with_a_bend_below_0_what_is_half_forgotten_is_lost_faster_and_never_more_than_all():
    plain, other = Law(seed=7), Law(seed=7, bend=-2)
    top = plain.nature("a").top
    share = 1 - plain.learned({"a": top}, "b", 0.5, 50, 8)["a"] / top
    assert other.learned({"a": top}, "b", 0.5, 50, 8)["a"] == pytest.approx(top * (1 - share))
    half = other.learned({"a": top / 2}, "b", 0.5, 50, 8)["a"]
    assert half == pytest.approx(top / 2 * max(1 - 4 * share, 0.0))  # (1/2)⁻² as much
    assert other.learned({"a": top / 100}, "b", 0.0, 0, 8)["a"] == 0


def test_no_score_falls_below_0_whatever_its_place_takes():
    law = replace(EXACT, place=0.3, bend=0.5, transfer=0.5)
    found = rehearse(imagined(6, DGG(), simulation=law, protocol=Protocol(baselines=())))
    scores = [cell["score"] for cells in found.store.found.values() for cell in cells.values()]
    assert min(scores) == 0.0
    assert not np.isnan(scores).any()


def test_more_guidance_keeps_more_and_learns_less():
    law, alphas = Law(), np.linspace(0, 1, 11)
    found = [law.learned({"a": 0.8}, "b", a, 20, 8) for a in alphas]
    assert (np.diff([f["a"] for f in found]) > 0).all()
    assert (np.diff([f["b"] for f in found]) < 0).all()


def chain(study, store):
    (run,) = study.runs()
    return evidence.work_items(study, run, evidence.FINAL)


def test_scores_without_noise_are_the_laws():
    study = imagined(3, DGG(alpha=0.4, buffer=10), simulation=EXACT)
    store = MemoryStore()
    shop = Simulated.of(study, store)
    for item in chain(study, store):
        shop.obtain(item)
    skills: dict[str, float] = {}
    for task in study.names:
        skills = EXACT.learned(skills, task, 0.4, 10, 8)
    scores = evidence.matrix(study, store, study.runs()[0], "test")
    assert scores.R[2] == pytest.approx([skills[name] for name in study.names])
    assert np.isnan(scores.R[0, 1:]).all()


def test_noise_has_the_size_that_was_asked_for_and_a_part_in_common():
    def first(seed, alpha, shared):
        law = Law(noise=0.02, shared=shared, evaluation_noise=False)
        study = imagined(2, DGG(alpha=alpha), simulation=law, seeds=(seed,))
        shop = Simulated.of(study, MemoryStore())
        stage = study.runs()[0].stages[1]
        skills = shop.skills(stage)
        exact = Law(noise=0.0).learned(Law(noise=0.0).learned({}, "task0", 0, 0, 8), "task1", alpha, 0, 8)
        return skills["task1"] - exact["task1"]

    errors = np.array([[first(seed, a, 0.5) for a in (0.2, 0.6)] for seed in range(1500)])
    assert errors.std(axis=0) == pytest.approx([0.02, 0.02], rel=0.15)
    assert np.corrcoef(errors.T)[0, 1] == pytest.approx(0.5, abs=0.08)
    assert first(3, 0.2, 1.0) == pytest.approx(first(3, 0.6, 1.0))


def test_a_folder_and_memory_hold_the_same(tmp_path):
    study = imagined(3, DGG(alpha=0.4, buffer=10))
    stores = [MemoryStore(), StageStore(tmp_path)]
    for store in stores:
        shop = Simulated.of(study, store)
        for item in chain(study, store):
            shop.obtain(item)
        assert all(store.has(item) for item in chain(study, store))
    a, b = (evidence.matrix(study, store, study.runs()[0], "test").R for store in stores)
    assert np.array_equal(a, b, equal_nan=True)
    assert {r["key"] for r in stores[0]} == {r["key"] for r in stores[1]}


def test_what_was_never_learned_is_guessed():
    study = imagined(2, DGG(), simulation=EXACT)
    store = MemoryStore()
    Simulated.of(study, store).obtain(WorkItem(study.untouched(), (study.evaluation("task1", "test"),)))
    (cell,) = store.cells(study.untouched()).values()
    assert cell["score"] == GUESS


def test_simulated_stages_are_never_taken_for_real_ones():
    study = imagined(2, DGG())
    other = imagined(2, DGG(), simulation=Law(seed=1))
    keys = [{stage.key for stage in s.runs()[0].stages} for s in (study, other)]
    assert not keys[0] & keys[1]
    assert study.fingerprint != other.fingerprint != ""


def test_one_fleet_works_as_long_as_its_stages_take_and_many_share_it():
    study = imagined(4, DGG(), simulation=EXACT, orders=Orders("cyclic"), protocol=Protocol(baselines=()))
    one, four, many = (rehearse(study, groups) for groups in (1, 4, 64))
    assert one.busy == pytest.approx(1.0)
    assert one.stages == four.stages == 16
    assert one.hours > 3 * four.hours
    assert many.hours <= four.hours
    # No more than four orders can run at once, each one stage after another.
    longest = max(
        sum(Simulated.of(study, MemoryStore()).cost(stage)[1] for stage in run.stages) for run in study.runs()
    )
    assert many.hours * 3600 >= longest


def test_stages_that_two_runs_share_are_learned_once():
    orders = (("task0", "task1", "task2"), ("task0", "task2", "task1"))
    study = imagined(3, DGG(alpha=0.5), orders=Orders(given=orders), protocol=Protocol(baselines=()))
    assert rehearse(study, 2).stages == 5


def test_a_clock_that_waits_is_as_long_as_the_law_says(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    study = imagined(2, DGG(), simulation=Law(wait=0.5, spread=0.0, noise=0.0))
    shop = Simulated.of(study, MemoryStore())
    stage = study.runs()[0].stages[0]
    shop.learn(stage)
    assert slept == [pytest.approx(0.5 * shop.cost(stage)[1])]


def test_thousands_of_stages_pass_through_desk_and_store():
    study = imagined(
        6,
        DGG(alpha=0.1, buffer=20),
        orders=Orders("random", 8),
        search=Search(
            {"strategy.alpha": SearchParameter(low=0.0, high=1.0, per_task=True)}, method="random", trials=40
        ),
        protocol=Protocol(baselines=()),
    )
    found = rehearse(study, 16)
    assert found.stages > 1_400
    assert len(found.search.judged()) == 40
    assert found.busy > 0.88
    assert Cluster(study.simulated(), 2).idle == ["fleet 0", "fleet 1"]


def test_the_runner_up_learned_something_else_than_the_winner():
    """One order: the first task's α changes nothing, and the grid has every setting with two values of it."""
    study = imagined(
        2,
        DGG(buffer=20),
        search=Search({"strategy.alpha": SearchParameter(values=(0.1, 1.0), per_task=True)}, method="grid"),
        protocol=Protocol(baselines=("runner_up",)),
    )
    found = rehearse(study)
    _, second = study.all_orders[0]
    alphas = {label: of.strategy.alpha for label, of in found.final.items()}
    assert alphas["dgg"][second] != alphas["runner_up"][second]


FILE = """\
name: rehearsed
model: {name: llava_1_5, path: nowhere}
tasks:
  - {name: digits, reader: embedded, train: 40}
  - {name: words, reader: embedded, train: 40}
  - {name: charts, reader: embedded, train: 40}
strategy: {name: dgg, buffer: 10}
search:
  method: stagewise
  space:
    strategy.alpha: {per_task: [0, 0.3, 1.0]}
protocol: {held_out: 2, baselines: [runner_up, constant, two_task, replay, finetune, joint]}
workers: {engine: simulated}
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsed")
    (folder / "study.yaml").write_text(FILE)
    arguments = ["run", str(folder / "study.yaml"), "--out", str(folder / "out"), "--local", "--quiet"]
    assert cli.main(arguments) == 0
    return folder


def test_any_study_can_be_rehearsed_without_its_model(rehearsed):
    cells = table(rehearsed / "out")
    assert set(cells["strategy"]) == {"dgg", "replay", "finetune", "joint"}
    assert (rehearsed / "out" / "report.html").stat().st_size > 10_000


def test_the_winner_and_all_its_rivals_meet_on_blocks_that_took_no_part_in_the_choice(rehearsed):
    study = load_study(rehearsed / "study.yaml")
    cells = table(rehearsed / "out")
    test = cells[cells["split"] == "test"]
    searched = {" > ".join(order) for order in study.all_orders}
    assert not set(test["order"]) & searched
    assert set(test["seed"]) == {1, 2}
    assert test.groupby("setting")["order"].nunique().eq(2).all()


def test_a_rehearsed_study_that_is_run_again_learns_nothing(rehearsed, capsys):
    (rehearsed / "out" / "report.html").unlink()
    arguments = ["run", str(rehearsed / "study.yaml"), "--out", str(rehearsed / "out"), "--local", "--quiet"]
    assert cli.main(arguments) == 0
    assert "nothing trained, all answered from the store" in capsys.readouterr().out


def test_engine_simulated_keeps_its_name_in_one_process():
    assert Workers(engine="simulated", groups=4).alone().engine == "simulated"


def test_an_exam_has_the_same_noise_whatever_is_sat_with_it():
    study = imagined(2, DGG(), simulation=Law(evaluation_noise=True))
    (first, *_), (task, *_) = study.runs()[0].stages, study.names
    alone, together = MemoryStore(), MemoryStore()
    evaluations = [study.evaluation(task, split) for split in ("validation", "test")]
    Simulated.of(study, together).obtain(WorkItem(first, tuple(evaluations)))
    for evaluation in evaluations:
        Simulated.of(study, alone).obtain(WorkItem(first, (evaluation,)))
    scores = [{key: cell["score"] for key, cell in store.cells(first).items()} for store in (alone, together)]
    assert scores[0] == scores[1]


def test_how_long_workers_wait_is_no_part_of_a_key():
    keys = [imagined(2, DGG(), simulation=Law(wait=w)).runs()[0].stages[0].key for w in (0.0, 1.0)]
    assert keys[0] == keys[1]
