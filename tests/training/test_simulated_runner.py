"""Simulated stages follow the response model, and simulated studies run like real ones."""

from dataclasses import replace

import numpy as np
import pytest

from dgg_ray import cli, load_study
from dgg_ray.analysis.load import load_results
from dgg_ray.config.sections import Orders, Protocol, Search, SearchParameter, Workers
from dgg_ray.config.simulation import GUESS, ResponseModel, rank_capacity
from dgg_ray.core.stage import WorkItem
from dgg_ray.search.comparison import SPLITS
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.simulated_cluster import SimulatedCluster, simulate_study
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

EXACT = ResponseModel(noise=0.0, evaluation_noise=False, spread=0.0)


def test_the_response_model_follows_its_formulas():
    model = ResponseModel(seed=7, place=0.02)
    top, rigid, frail, _, _ = model.task_constants("b")
    scores = model.trained({"a": 0.8}, "b", alpha=0.5, buffer=50, rank=8)
    # c(8) = 1 - 0.3 / 2; (1-α)² = 0.25; 1 + m/m₀ = 2
    assert scores["b"] == pytest.approx(top * 0.85 * (1 - rigid * 0.25) - 0.02)
    assert scores["a"] == pytest.approx(0.8 * (1 - frail * (1 - 0.85 * 0.75) / 2))
    assert model.trained({}, "b", 1.0, 0, 8)["b"] == pytest.approx(top * 0.85)  # the first has no guidance
    assert model.trained_jointly(("a", "b"), 1e9)["b"] == pytest.approx(top)
    assert rank_capacity(8) == pytest.approx(0.85)


def test_bend_and_transfer_make_one_tasks_guidance_affect_others():
    plain, other = ResponseModel(seed=7), ResponseModel(seed=7, bend=1.0, transfer=0.4)
    half = plain.task_constants("a").top / 2
    share = 1 - plain.trained({"a": half}, "b", 0.5, 50, 8)["a"] / half
    scores = other.trained({"a": half}, "b", 0.5, 50, 8)
    assert scores["a"] == pytest.approx(half * (1 - share / 2))  # half as much of half a score
    full = plain.trained({"a": half}, "b", 0.5, 50, 8)["b"]
    assert scores["b"] == pytest.approx(full * (1 - 0.4 / 2))  # half of what is old is gone
    assert other.trained({}, "b", 0.5, 50, 8) == plain.trained({}, "b", 0.5, 50, 8)


def test_with_a_negative_bend_a_half_forgotten_task_is_lost_faster_but_never_below_0():
    plain, other = ResponseModel(seed=7), ResponseModel(seed=7, bend=-2)
    top = plain.task_constants("a").top
    share = 1 - plain.trained({"a": top}, "b", 0.5, 50, 8)["a"] / top
    assert other.trained({"a": top}, "b", 0.5, 50, 8)["a"] == pytest.approx(top * (1 - share))
    half = other.trained({"a": top / 2}, "b", 0.5, 50, 8)["a"]
    assert half == pytest.approx(top / 2 * max(1 - 4 * share, 0.0))  # (1/2)⁻² as much
    assert other.trained({"a": top / 100}, "b", 0.0, 0, 8)["a"] == 0


def test_with_a_peak_an_alpha_protects_most_at_its_tasks_place():
    plain, other = ResponseModel(seed=7), ResponseModel(seed=7, peak=0.5)
    frail, place = plain.task_constants("b").frail, plain.task_constants("b").peak
    assert 0.1 <= place <= 0.7
    away = (place + 0.05) * np.e**0.5 - 0.05  # one width above it in the logarithm of α + 0.05
    for alpha, protection in [(place, 1.0), (away, np.exp(-0.5))]:
        scores = other.trained({"a": 0.8}, "b", alpha, 50, 8)
        assert scores["a"] == pytest.approx(0.8 * (1 - frail * (1 - 0.85 * protection) / 2))
        assert scores["b"] == plain.trained({"a": 0.8}, "b", alpha, 50, 8)["b"]


def test_a_change_of_alpha_costs_the_new_task_from_the_third_on():
    plain, other = ResponseModel(seed=7), ResponseModel(seed=7, change=0.5)
    two = {"a": 0.8, "b": 0.7}
    full = plain.trained(two, "c", 0.3, 50, 8)
    scores = other.trained(two, "c", 0.3, 50, 8, alpha_before=0.7)
    assert scores == {**full, "c": pytest.approx(full["c"] * (1 - 0.5 * 0.4))}
    assert other.trained({"a": 0.8}, "b", 0.3, 50, 8, 0.0) == plain.trained({"a": 0.8}, "b", 0.3, 50, 8)
    study = synthetic_study(3, DGG(alpha={"task1": 0.7, "task2": 0.3}), simulation=replace(EXACT, change=0.5))
    runner = SimulatedRunner.of(study, MemoryStore())
    scores = [runner.true_scores(stage) for stage in study.runs[0].stages]
    expected = study.simulation.trained(
        scores[1], "task2", 0.3, study.strategy.buffer, study.adapter.rank, 0.7
    )
    assert scores[2] == pytest.approx(expected)


def test_constants_that_were_added_later_are_hashed_only_where_they_are_used():
    assert not {"change", "peak", "tails"} & ResponseModel().meaning.keys()
    assert ResponseModel(peak=0.3).meaning == {**ResponseModel().meaning, "peak": 0.3}


@pytest.mark.statistics
def test_heavy_tails_have_the_quantiles_of_their_distribution():
    study = synthetic_study(2, DGG(), simulation=replace(EXACT, noise=0.01, tails=3.0))
    runner = SimulatedRunner.of(study, MemoryStore())
    drawn = runner.draw(np.random.default_rng(0), 20_000)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([-3.182, 3.182], abs=0.15)  # of Student's t, 3


def test_no_score_falls_below_0_however_late_its_task_comes():
    model = replace(EXACT, place=0.3, bend=0.5, transfer=0.5)
    result = simulate_study(synthetic_study(6, DGG(), simulation=model, protocol=Protocol(baselines=())))
    scores = [cell["score"] for stage in result.store.scores.values() for cell in stage.values()]
    assert min(scores) == 0.0
    assert not np.isnan(scores).any()


def test_more_guidance_keeps_more_of_the_old_and_takes_from_the_new():
    model, alphas = ResponseModel(), np.linspace(0, 1, 11)
    scores = [model.trained({"a": 0.8}, "b", a, 20, 8) for a in alphas]
    assert (np.diff([s["a"] for s in scores]) > 0).all()
    assert (np.diff([s["b"] for s in scores]) < 0).all()


def chain(study, store):
    (run,) = study.runs
    return study.runs.work_items(run, SPLITS)


def test_scores_without_noise_are_those_of_the_response_model():
    study = synthetic_study(3, DGG(alpha=0.4, buffer=10), simulation=EXACT)
    store = MemoryStore()
    runner = SimulatedRunner.of(study, store)
    for item in chain(study, store):
        runner.run(item)
    skills: dict[str, float] = {}
    for task in study.task_names:
        skills = EXACT.trained(skills, task, 0.4, 10, 8)
    scores = EvidenceReader(study, store).score_matrix(study.runs, study.runs[0], "test")
    assert scores.R[2] == pytest.approx([skills[name] for name in study.task_names])
    assert np.isnan(scores.R[0, 1:]).all()


@pytest.mark.statistics
def test_noise_has_the_configured_size_and_shared_part():
    def first(seed, alpha, shared):
        model = ResponseModel(noise=0.02, shared=shared, evaluation_noise=False)
        study = synthetic_study(2, DGG(alpha=alpha), simulation=model, seeds=(seed,))
        runner = SimulatedRunner.of(study, MemoryStore())
        stage = study.runs[0].stages[1]
        skills = runner.true_scores(stage)
        exact = ResponseModel(noise=0.0).trained(
            ResponseModel(noise=0.0).trained({}, "task0", 0, 0, 8), "task1", alpha, 0, 8
        )
        return skills["task1"] - exact["task1"]

    errors = np.array([[first(seed, a, 0.5) for a in (0.2, 0.6)] for seed in range(1500)])
    assert errors.std(axis=0) == pytest.approx([0.02, 0.02], rel=0.15)
    assert np.corrcoef(errors.T)[0, 1] == pytest.approx(0.5, abs=0.08)
    assert first(3, 0.2, 1.0) == pytest.approx(first(3, 0.6, 1.0))


def test_a_store_in_a_folder_and_one_in_memory_hold_the_same(tmp_path):
    study = synthetic_study(3, DGG(alpha=0.4, buffer=10))
    stores = [MemoryStore(), open_store(tmp_path)]
    for store in stores:
        runner = SimulatedRunner.of(study, store)
        for item in chain(study, store):
            runner.run(item)
        assert all(store.has(item) for item in chain(study, store))
    a, b = (
        EvidenceReader(study, store).score_matrix(study.runs, study.runs[0], "test").R for store in stores
    )
    assert np.array_equal(a, b, equal_nan=True)
    assert {r["key"] for r in stores[0]} == {r["key"] for r in stores[1]}


def test_a_task_that_was_never_trained_has_the_score_of_a_guess():
    study = synthetic_study(2, DGG(), simulation=EXACT)
    store = MemoryStore()
    SimulatedRunner.of(study, store).run(
        WorkItem(study.runs.untouched_stage, (study.runs.evaluation("task1", "test"),))
    )
    (cell,) = store.score_entries(study.runs.untouched_stage).values()
    assert cell["score"] == GUESS


def test_other_response_models_give_other_stage_keys():
    study = synthetic_study(2, DGG())
    other = synthetic_study(2, DGG(), simulation=ResponseModel(seed=1))
    keys = [{stage.key for stage in s.runs[0].stages} for s in (study, other)]
    assert not keys[0] & keys[1]
    assert study.data.fingerprint != other.data.fingerprint != ""


def test_one_worker_group_is_always_busy_and_several_share_the_work():
    study = synthetic_study(
        4, DGG(), simulation=EXACT, orders=Orders("cyclic"), protocol=Protocol(baselines=())
    )
    one, four, many = (simulate_study(study, groups) for groups in (1, 4, 64))
    assert one.utilization == pytest.approx(1.0)
    assert one.stages == four.stages == 16
    assert one.hours > 3 * four.hours
    assert many.hours <= four.hours
    # At most four orders run at the same time, each one stage after another.
    longest = max(
        sum(SimulatedRunner.of(study, MemoryStore()).training_cost(stage)[1] for stage in run.stages)
        for run in study.runs
    )
    assert many.hours * 3600 >= longest


def test_stages_that_two_runs_share_are_trained_once():
    orders = (("task0", "task1", "task2"), ("task0", "task2", "task1"))
    study = synthetic_study(3, DGG(alpha=0.5), orders=Orders(given=orders), protocol=Protocol(baselines=()))
    assert simulate_study(study, 2).stages == 5


def test_a_waiting_runner_sleeps_for_the_configured_share_of_simulated_time(monkeypatch):
    sleeps: list[float] = []
    monkeypatch.setattr("time.sleep", sleeps.append)
    study = synthetic_study(2, DGG(), simulation=ResponseModel(wait=0.5, spread=0.0, noise=0.0))
    runner = SimulatedRunner.of(study, MemoryStore())
    stage = study.runs[0].stages[0]
    runner.train(stage)
    assert sleeps == [pytest.approx(0.5 * runner.training_cost(stage)[1])]


@pytest.mark.whole
def test_thousands_of_stages_pass_through_the_work_queue_and_the_store():
    study = synthetic_study(
        6,
        DGG(alpha=0.1, buffer=20),
        orders=Orders("random", 8),
        search=Search(
            {"strategy.alpha": SearchParameter(low=0.0, high=1.0, per_task=True)}, method="random", trials=40
        ),
        protocol=Protocol(baselines=()),
    )
    result = simulate_study(study, 16)
    assert result.stages > 1_400
    assert len(result.search.evaluated()) == 40
    assert result.utilization > 0.88
    assert SimulatedCluster(study.simulated(), 2).idle == ["group 0", "group 1"]


def test_the_runner_up_was_trained_differently_from_the_winner():
    """One order: the first task's α changes nothing, and the grid has every setting with two values of it."""
    study = synthetic_study(
        2,
        DGG(buffer=20),
        search=Search({"strategy.alpha": SearchParameter(values=(0.1, 1.0), per_task=True)}, method="grid"),
        protocol=Protocol(baselines=("runner_up",)),
    )
    result = simulate_study(study)
    _, second = study.all_orders[0]
    alphas = {label: runs.study.strategy.alpha for label, runs in result.final.items()}
    assert alphas["dgg"][second] != alphas["runner_up"][second]


FILE = """\
name: simulated
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
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "study.yaml").write_text(FILE)
    arguments = ["run", str(folder / "study.yaml"), "--out", str(folder / "out"), "--local", "--quiet"]
    assert cli.main(arguments) == 0
    return folder


@pytest.mark.whole
def test_any_study_can_be_simulated_without_its_model(simulated):
    cells = load_results(simulated / "out").table
    assert set(cells["strategy"]) == {"dgg", "replay", "finetune", "joint"}
    assert (simulated / "out" / "report.html").stat().st_size > 10_000


@pytest.mark.whole
def test_the_winner_and_all_baselines_are_compared_on_held_out_blocks(simulated):
    study = load_study(simulated / "study.yaml")
    cells = load_results(simulated / "out").table
    test = cells[cells["split"] == "test"]
    searched = {" > ".join(order) for order in study.all_orders}
    assert not set(test["order"]) & searched
    assert set(test["seed"]) == {1, 2}
    assert test.groupby("setting")["order"].nunique().eq(2).all()


@pytest.mark.whole
def test_a_simulated_study_that_runs_again_trains_nothing(simulated, capsys):
    (simulated / "out" / "report.html").unlink()
    arguments = ["run", str(simulated / "study.yaml"), "--out", str(simulated / "out"), "--local", "--quiet"]
    assert cli.main(arguments) == 0
    assert "nothing trained, all answered from the store" in capsys.readouterr().out


def test_the_simulated_engine_stays_simulated_in_one_process():
    assert Workers(engine="simulated", groups=4).alone().engine == "simulated"


def test_an_evaluations_noise_does_not_depend_on_other_evaluations():
    study = synthetic_study(2, DGG(), simulation=ResponseModel(evaluation_noise=True))
    (first, *_), (task, *_) = study.runs[0].stages, study.task_names
    alone, together = MemoryStore(), MemoryStore()
    evaluations = [study.runs.evaluation(task, split) for split in ("validation", "test")]
    SimulatedRunner.of(study, together).run(WorkItem(first, tuple(evaluations)))
    for evaluation in evaluations:
        SimulatedRunner.of(study, alone).run(WorkItem(first, (evaluation,)))
    scores = [
        {key: cell["score"] for key, cell in store.score_entries(first).items()}
        for store in (alone, together)
    ]
    assert scores[0] == scores[1]


def test_the_waiting_time_of_workers_is_not_in_stage_keys():
    keys = [
        synthetic_study(2, DGG(), simulation=ResponseModel(wait=w)).runs[0].stages[0].key for w in (0.0, 1.0)
    ]
    assert keys[0] == keys[1]
