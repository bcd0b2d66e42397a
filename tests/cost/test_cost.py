"""What a study will cost: rates on paper, intervals that hold, and a profile."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dgg_ray import cli, load_study
from dgg_ray.config.study import Workers
from dgg_ray.core.interfaces import Strategy
from dgg_ray.core.stage import WorkItem, untouched
from dgg_ray.cost.makespan import Ask
from dgg_ray.cost.model import UNMEASURED, CostModel, profiling_items, ranks
from dgg_ray.cost.rates import Estimate, Part, Rate, total
from dgg_ray.strategies.replay import Replay

WORKERS = Workers(group_size=2, gpus=1, groups=4, price_per_hour=3)
BY = {"study": "toy", "workers": WORKERS.setup}


def of(world, **changes):
    """A study of the toy world, as far as its cost goes."""
    tasks = {name: world.data(name) for name in world.tasks}
    study = {"name": "toy", "workers": WORKERS, "fingerprint": "model", "tasks": tasks}
    return CostModel(SimpleNamespace(**study | changes), world.store)


def trained(world, *stages, each=10.0, by=BY):
    """Finished stages whose every example took `each` seconds; their begin took 1, an answer 0.5."""
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
        world.store.sit(stage, [cell], lambda folder: None, by)


# -- rates -----------------------------------------------------------------------------------------

TASKS = ["a", "b", "c", "d"]


def drawn(rng, truth, parts, scatter):
    """What parts take in truth: exp(μ + a + b · log rank), times lognormal scatter."""
    a, b = truth
    plain = [sum(n * np.exp(a[name]) for name, n in p.counts.items()) * p.rank**b for p in parts]
    return np.array(plain) * np.exp(scatter * rng.standard_normal(len(parts)))


@pytest.mark.parametrize(("stages", "scatter"), [(2, 0.1), (60, 0.1), (60, 0.3)])
def test_of_a_thousand_intervals_about_950_hold_what_came(stages, scatter):
    rng = np.random.default_rng(stages)
    measured = [Part("learn", {name: 32.0}, rank) for name in TASKS for rank in (4, 16) for _ in range(3)]
    item = [
        Part("learn", {name: 900.0, other: 100.0} if i % 2 else {name: 500.0}, rank)
        for i, (name, other, rank) in enumerate(
            zip(
                rng.choice(TASKS, stages), rng.choice(TASKS, stages), rng.choice([4, 16], stages), strict=True
            )
        )
    ]
    held = 0
    for _ in range(1000):
        truth = dict(zip(TASKS, rng.standard_normal(4), strict=True)), rng.uniform(0, 0.5)
        rate = Rate(TASKS, list(zip(measured, drawn(rng, truth, measured, scatter), strict=True)))
        predicted = total([rate.sum(item)])
        held += predicted.low <= drawn(rng, truth, item, scatter).sum() <= predicted.high
    assert 930 <= held <= 970


def test_scatter_averages_out_and_doubt_about_the_rate_does_not():
    rng = np.random.default_rng(0)
    part = Part("learn", {"a": 1.0}, 8)
    rate = Rate(["a"], [(part, took) for took in np.exp(0.2 * rng.standard_normal(25))])

    def width(count):
        predicted = total([rate.sum([part] * count)])
        return np.log(predicted.high / predicted.low)

    assert width(1) > 4 * width(1000)
    assert width(3000) == pytest.approx(width(10**4), rel=0.02)
    # 25 measurements: doubt 1/√25 of the scatter, and one stage has both: √(1/25) against √(1 + 1/25)
    assert width(10**4) / width(1) == pytest.approx((1 / 26) ** 0.5, rel=0.02)


def test_a_mixed_stage_takes_what_its_tasks_take():
    seen = [(Part("learn", {"a": 10.0}, 8), 10.0), (Part("learn", {"b": 10.0}, 8), 40.0)] * 20
    mean, _, _ = Rate(["a", "b"], seen).sum([Part("learn", {"a": 3.0, "b": 1.0}, 8)])
    assert mean == pytest.approx(3 * 1 + 1 * 4, rel=0.02)


def test_what_was_never_measured_is_guessed_from_the_others_with_a_wide_interval():
    seen = [(Part("learn", {name: 10.0}, 8), 10.0) for name in ("a", "b") for _ in range(10)]
    rate = Rate(["a", "b", "c"], seen)
    known, task, rank = (
        total([rate.sum([Part("learn", {name: 100.0}, r)])]) for name, r in (("a", 8), ("c", 8), ("a", 64))
    )
    assert known.high / known.low < 1.5
    assert task.low < known.mean < task.high
    assert task.high / task.low > 20
    assert rank.high / rank.low > 3


def test_the_rank_trend_reaches_a_rank_between():
    seen = [(Part("learn", {"a": 1.0}, rank), rank**0.3) for rank in (2, 8, 32) for _ in range(5)]
    mean, _, _ = Rate(["a"], seen).sum([Part("learn", {"a": 1.0}, 16)])
    assert mean == pytest.approx(16**0.3, rel=0.02)


# -- what a store tells ----------------------------------------------------------------------------


def test_finished_stages_tell_what_the_next_will_take(world):
    for seed in range(8):
        trained(world, world.path("fours", seed=seed)[0])
    stage = world.path("fours", seed=99, epochs=2)[0]  # 3 examples, twice, at 10 s each, and 1 s to begin
    cost = of(world).predict([Ask([WorkItem(stage)])])
    assert cost.seconds.mean == pytest.approx(61, rel=0.02)
    assert cost.seconds.low < 61 < cost.seconds.high
    assert cost.bytes.mean == pytest.approx(1000, rel=0.02)
    assert of(world).predict(
        [Ask([WorkItem(stage, (world.evaluation("fours"),))])]
    ).seconds.mean == pytest.approx(62.5, rel=0.02)


def test_a_buffer_is_learned_at_its_own_tasks_rates(world):
    for seed in range(8):
        trained(world, world.path("ones", seed=seed)[0], each=1.0)
        trained(world, world.path("nines", seed=seed)[0], each=100.0)
    stage = world.path("nines", "ones", seed=99, strategy=Replay(buffer=5))[1]
    cost = of(world).predict([Ask([WorkItem(stage)])])
    assert cost.seconds.mean == pytest.approx(2 * 1 + 1 * 100 + 1, rel=0.05)  # of nines there is but one


def test_what_is_shared_or_stored_is_predicted_once_or_not_at_all(world):
    for seed in range(4):
        trained(world, world.path("ones", seed=seed)[0])
    model, (stage,) = of(world), world.path("ones", seed=99)
    assert model.predict([Ask([WorkItem(stage)] * 3)]) == model.predict([Ask([WorkItem(stage)])])
    assert model.predict([Ask([WorkItem(world.path("ones", seed=0)[0])])]).seconds == Estimate(0.0, 0.0, 0.0)


def test_another_studys_stages_teach_and_cost_nothing(world):
    trained(world, world.path("ones", seed=0)[0], by=BY | {"study": "another"})
    trained(world, world.path("ones", seed=1)[0])
    model = of(world)
    assert sum(model.spent.values()) == 2 * 10 + 1 + 2 / 2
    assert model.rates["learn"].freedom == pytest.approx(2.0, abs=0.1)  # two seen, one rate, the prior's one


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"workers": replace(WORKERS, group_size=1)}])
def test_another_model_or_other_workers_teach_nothing(world, change):
    trained(world, world.path("ones")[0])
    assert of(world, **change).predict([Ask([WorkItem(world.path("fours")[0])])]) is None


def test_without_a_measurement_no_number_is_given(world):
    outlook = of(world).outlook([Ask([WorkItem(world.path("ones")[0])])])
    assert outlook.rest is None
    assert UNMEASURED in str(outlook)
    assert "dgg-ray profile" in UNMEASURED
    assert outlook.as_json() == {"rest": None, "spent": {"worker-hours": 0, "GPU-hours": 0, "money": 0}}


def test_hours_and_money_follow_from_the_workers(world):
    for seed in range(8):
        trained(world, world.path("ones", seed=seed)[0], each=1799.5)
    work_items = [
        WorkItem(world.path("ones", seed=90 + i)[0]) for i in range(5)
    ]  # an hour of a fleet of two each,
    cost = of(world).predict([Ask(work_items)])  # and of four fleets one has two of them
    means = {unit: amount.mean for unit, amount in cost.amounts().items()}
    assert means == pytest.approx(
        {"worker-hours": 10, "GPU-hours": 10, "wall hours": 2, "money": 30, "GB on disk": 5e-6}, rel=0.01
    )


def test_the_untouched_models_exams_are_predicted_without_learning(world):
    trained(world, world.path("ones")[0])
    cost = of(world).predict([Ask([WorkItem(untouched("model"), (world.evaluation("ones"),))])])
    assert cost.seconds.mean == pytest.approx(1.0, rel=0.1)


# -- profiles ----------------------------------------------------------------------------------------


def test_a_probe_is_kept_and_leaves_no_stage(world):
    world.shop.by = BY
    (stage,) = world.path("fours", strategy=Strategy(), batch_size=2)
    item = WorkItem(stage, (world.evaluation("fours", "validation"),), WORKERS.setup)
    assert not world.store.has(item)
    world.shop.obtain(item)
    assert world.store.has(item)
    assert world.store.record(stage) is None
    (profile,) = world.store.profiles()
    assert [round["n"] for round in profile["learn"]] == [4, 4, 4]  # two steps of two
    assert [round["n"] for round in profile["answer"]] == [3, 3, 3]
    assert profile["bytes"] > 0
    model = of(world)
    assert model.predict([Ask([WorkItem(stage, (world.evaluation("fours"),))])]).seconds.mean > 0
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
def test_every_rank_that_a_study_uses_is_probed_with_every_task(load, more, expected):
    study = load(more)
    assert ranks(study) == expected
    found = {(item.stage.task, item.stage.adapter.rank) for item in profiling_items(study)}
    assert found == {(name, rank) for name in ("words", "charts") for rank in expected}


@pytest.mark.whole
def test_after_a_probe_plan_knows_what_the_study_costs(load, tmp_path, capsys):
    load()
    command = [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(["plan", *command]) == 0
    assert UNMEASURED in capsys.readouterr().out
    assert cli.main(["profile", *command, "--local", "--quiet"]) == 0
    assert not list((tmp_path / "out" / "stages").glob("stages/*"))
    capsys.readouterr()
    assert cli.main(["plan", *command, "--json"]) == 0
    outlook = json.loads(capsys.readouterr().out)["outlook"]
    hours = outlook["rest"]["worker-hours"]
    assert 0 < hours["low"] < hours["mean"] < hours["high"]
    assert outlook["spent"]["worker-hours"] > 0
