"""The predicted cost of a study, from stages and profiles in a store."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dgg_ray import cli, load_study
from dgg_ray.config.study import Workers
from dgg_ray.core.stage import WorkItem, untouched_stage
from dgg_ray.core.strategy import Strategy
from dgg_ray.cost.makespan import WorkRequest
from dgg_ray.cost.model import UNMEASURED, CostModel, profiled_ranks, profiling_items
from dgg_ray.cost.rates import Estimate
from dgg_ray.strategies.replay import Replay

WORKERS = Workers(group_size=2, gpus=1, groups=4, price_per_hour=3)
BY = {"study": "toy", "workers": WORKERS.setup}


def model_of(world, **changes):
    """Return the cost model of a study of the toy world."""
    fields = {"fingerprint": "model", "workers": WORKERS} | changes
    tasks = {name: world.data(name) for name in world.tasks}
    data = SimpleNamespace(tasks=tasks, fingerprint=fields["fingerprint"])
    return CostModel(SimpleNamespace(name="toy", workers=fields["workers"], data=data), world.store)


def predict(model, *work_items):
    return model.predict([WorkRequest(work_items)])


def train(world, *stages, each=10.0, by=BY):
    """Publish stages whose every example took `each` seconds; their setup took 1, an answer 0.5."""
    for stage in stages:
        n = sum(len(world.tasks[name].examples["train"]) for name in stage.trained_tasks)
        cost = {"seconds": each * n * stage.training.epochs, "examples": n, "begin_seconds": 1.0}
        record = {"earlier": list(stage.earlier), "cost": cost, **by}
        world.store.publish(stage, record, lambda folder: (folder / "adapter").write_bytes(b"x" * 1000))
        evaluation = world.evaluation(stage.task)
        cell = {
            "evaluation": evaluation.key,
            "task": evaluation.task,
            "split": "test",
            "score": 0.0,
            "n": n,
            "seconds": n / 2,
        }
        world.store.publish_evaluations(stage, [cell], lambda folder: None, by)


# -- measurements in a store -----------------------------------------------------------------------


def test_finished_stages_predict_the_cost_of_the_next(world):
    for seed in range(8):
        train(world, world.stages_of("fours", seed=seed)[0])
    (stage,) = world.stages_of("fours", seed=99, epochs=2)
    cost = predict(model_of(world), WorkItem(stage))  # 3 examples, twice, at 10 s each, and 1 s of setup
    assert cost.seconds.mean == pytest.approx(61, rel=0.02)
    assert cost.seconds.low < 61 < cost.seconds.high
    assert cost.bytes.mean == pytest.approx(1000, rel=0.02)
    evaluated = predict(model_of(world), WorkItem(stage, (world.evaluation("fours"),)))
    assert evaluated.seconds.mean == pytest.approx(62.5, rel=0.02)


def test_a_replay_buffer_is_trained_at_the_rates_of_its_own_tasks(world):
    for seed in range(8):
        train(world, world.stages_of("ones", seed=seed)[0], each=1.0)
        train(world, world.stages_of("nines", seed=seed)[0], each=100.0)
    stage = world.stages_of("nines", "ones", seed=99, strategy=Replay(buffer=5))[1]
    cost = predict(model_of(world), WorkItem(stage))
    assert cost.seconds.mean == pytest.approx(2 * 1 + 1 * 100 + 1, rel=0.05)  # of nines there is but one


def test_a_shared_stage_is_predicted_once_and_a_stored_one_not_at_all(world):
    for seed in range(4):
        train(world, world.stages_of("ones", seed=seed)[0])
    model, (stage,) = model_of(world), world.stages_of("ones", seed=99)
    assert predict(model, *[WorkItem(stage)] * 3) == predict(model, WorkItem(stage))
    stored = WorkItem(world.stages_of("ones", seed=0)[0])
    assert predict(model, stored).seconds == Estimate(0.0, 0.0, 0.0)


def test_stages_of_another_study_are_measurements_and_cost_nothing(world):
    train(world, world.stages_of("ones", seed=0)[0], by=BY | {"study": "another"})
    train(world, world.stages_of("ones", seed=1)[0])
    model = model_of(world)
    assert sum(model.spent.values()) == 2 * 10 + 1 + 2 / 2
    assert model.rates["train"].degrees_of_freedom == pytest.approx(2.0, abs=0.1)  # 2 seen + 1 prior - 1 rate


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"workers": replace(WORKERS, group_size=1)}])
def test_stages_of_another_model_or_other_workers_are_no_measurements(world, change):
    train(world, world.stages_of("ones")[0])
    assert predict(model_of(world, **change), WorkItem(world.stages_of("fours")[0])) is None


def test_without_a_measurement_no_number_is_predicted(world):
    cost_forecast = model_of(world).forecast([WorkRequest([WorkItem(world.stages_of("ones")[0])])])
    assert cost_forecast.remaining is None
    assert UNMEASURED in str(cost_forecast)
    assert "dgg-ray profile" in UNMEASURED
    nothing = {"worker-hours": 0, "GPU-hours": 0, "money": 0}
    assert cost_forecast.as_json() == {"remaining": None, "spent": nothing}


def test_hours_and_money_follow_from_the_workers(world):
    for seed in range(8):
        train(world, world.stages_of("ones", seed=seed)[0], each=1799.5)
    # Each takes an hour of a group of two workers, and one of the four groups gets two of them.
    work_items = [WorkItem(world.stages_of("ones", seed=90 + i)[0]) for i in range(5)]
    cost = predict(model_of(world), *work_items)
    means = {unit: amount.mean for unit, amount in cost.amounts().items()}
    assert means == pytest.approx(
        {"worker-hours": 10, "GPU-hours": 10, "wall hours": 2, "money": 30, "GB on disk": 5e-6}, rel=0.01
    )


def test_evaluations_of_the_untouched_model_are_predicted_without_training(world):
    train(world, world.stages_of("ones")[0])
    cost = predict(model_of(world), WorkItem(untouched_stage("model"), (world.evaluation("ones"),)))
    assert cost.seconds.mean == pytest.approx(1.0, rel=0.1)


# -- profiles --------------------------------------------------------------------------------------


def test_a_profile_is_stored_and_leaves_no_stage(world):
    world.runner.origin = BY
    (stage,) = world.stages_of("fours", strategy=Strategy(), batch_size=2)
    item = WorkItem(stage, (world.evaluation("fours", "validation"),), WORKERS.setup)
    assert not world.store.has(item)
    world.runner.run(item)
    assert world.store.has(item)
    assert world.store.record(stage) is None
    (profile,) = world.store.profiles()
    assert [timing["n"] for timing in profile["train"]] == [4, 4, 4]  # two steps of two
    assert [timing["n"] for timing in profile["answer"]] == [3, 3, 3]
    assert profile["bytes"] > 0
    model = model_of(world)
    assert predict(model, WorkItem(stage, (world.evaluation("fours"),))).seconds.mean > 0
    assert sum(model.spent.values()) == pytest.approx(profile["cost"]["seconds"])


STUDY = """\
name: small
model: embedded
tasks:
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: dgg
training: {batch_size: 8}
protocol: {max_new_tokens: 2, baselines: []}
"""


@pytest.fixture()
def load(tmp_path):
    def load(more=""):
        (tmp_path / "study.yaml").write_text(STUDY + more)
        return load_study(tmp_path / "study.yaml")

    return load


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", [8]),
        ("search: {space: {adapter.rank: [16, 4]}}\n", [4, 16]),
        ("search: {space: {adapter.rank: {low: 2, high: 64, log: true}}}\n", [2, 64]),
    ],
)
def test_every_rank_that_a_study_uses_is_profiled_with_every_task(load, more, expected):
    study = load(more)
    assert profiled_ranks(study) == expected
    profiled = {(item.stage.task, item.stage.adapter.rank) for item in profiling_items(study)}
    assert profiled == {(name, rank) for name in ("words", "charts") for rank in expected}


@pytest.mark.whole
def test_after_a_profile_the_plan_predicts_the_cost_of_the_study(load, tmp_path, capsys):
    load()
    command = [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(["plan", *command]) == 0
    assert UNMEASURED in capsys.readouterr().out
    assert cli.main(["profile", *command, "--local", "--quiet"]) == 0
    assert not list((tmp_path / "out" / "stages").glob("stages/*"))
    capsys.readouterr()
    assert cli.main(["plan", *command, "--json"]) == 0
    cost_forecast = json.loads(capsys.readouterr().out)["cost_forecast"]
    hours = cost_forecast["remaining"]["worker-hours"]
    assert 0 < hours["low"] < hours["mean"] < hours["high"]
    assert cost_forecast["spent"]["worker-hours"] > 0
