"""A budget is a hard cap: for a desk, for a process alone, and for a file that cannot keep it."""

import asyncio
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dgg_ray import cli, load_study
from dgg_ray.analysis.load import table
from dgg_ray.config.sections import Protocol
from dgg_ray.config.study import Budget, Workers
from dgg_ray.core.errors import OverBudget, StudyError
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost import budget, forecast
from dgg_ray.cost.budget import Disk, Hours, Purse
from dgg_ray.cost.model import CostModel, profiling_items, seconds
from dgg_ray.execution.broker import Broker, Desk
from dgg_ray.planning.plan import plan
from dgg_ray.search import comparison
from dgg_ray.storage.backend import Folder
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training import loop
from dgg_ray.training.learner import PeftLearner
from dgg_ray.training.simulated import MemoryStore, Simulated, imagined

WORKERS = Workers(gpus=1, price_per_hour=2)
HOUR = 3600.0


@pytest.fixture()
def measured(world):
    """Another study's stages in the store: an hour for each example of a task, half a minute an answer."""
    by = {"study": "another", "workers": WORKERS.setup}
    for name, task in world.tasks.items():
        for seed in range(4):
            (stage,), n = world.path(name, seed=1000 + seed), len(task.examples["train"])
            cost = {"seconds": HOUR * n, "examples": n, "begin_seconds": 0.01}
            world.store.publish(stage, {"earlier": [], "cost": cost, **by}, lambda folder: None)
            cell = {
                "evaluation": world.evaluation(name).key,
                "task": name,
                "split": "test",
                "score": 0.0,
                "n": n,
            }
            world.store.sit(stage, [cell | {"seconds": 30.0 * n}], lambda folder: None, by)
    return world


def study_of(world, cap):
    tasks = {name: world.data(name) for name in world.tasks}
    study = {"name": "toy", "workers": WORKERS, "fingerprint": "model", "tasks": tasks}
    return SimpleNamespace(**study, budget=cap, protocol=SimpleNamespace(max_new_tokens=2))


def purse(world, final=(), cap=None):
    return Hours(study_of(world, cap or Budget(worker_hours=6)), world.store, final)


def desk_of(world, **how):
    return Desk(world.store, max_retries=1, purse=purse(world, **how))


def learned(world, desk, group, item):
    published(world, item)
    desk.done(group, item.key, learned=True, error=None)


def published(world, item):
    """What `ones`, `fours`, `nines` promise: two, three hours, one."""
    n = len(world.tasks[item.stage.task].examples["train"])
    cost = {"seconds": HOUR * n, "examples": n, "begin_seconds": 0.0}
    record = {"earlier": [], "cost": cost, "study": "toy", "workers": WORKERS.setup}
    world.store.publish(item.stage, record, lambda folder: None)


def work_items(world, *names):
    return [WorkItem(world.path(name)[0]) for name in names]


def test_what_cannot_end_within_the_budget_is_refused(measured):
    desk = desk_of(measured)  # of 6 hours
    four, one, nine = work_items(measured, "fours", "ones", "nines")
    assert desk.need(four) == "queued"
    assert desk.take("a") == four
    learned(measured, desk, "a", four)
    assert desk.need(one) == "queued"
    assert desk.take("a") == one
    learned(measured, desk, "a", one)
    assert desk.purse.spent == 5 * HOUR
    assert desk.need(nine) == "over"  # an hour is left, and it may take a little more than one
    assert desk.need(four) == "ready"


def test_what_fits_only_if_others_end_early_waits_for_them(measured):
    desk = desk_of(measured, cap=Budget(worker_hours=3.1))
    one, nine = work_items(measured, "ones", "nines")
    desk.need(one)
    desk.need(nine)
    assert desk.take("a") == one
    assert desk.take("b") is None  # up to 2.1 and up to 1.05 hours are more than 3.1
    assert desk.waiting == 0  # no fleet is started for it
    learned(measured, desk, "a", one)
    assert desk.waiting == 1
    assert desk.take("b") == nine


def test_what_waited_and_no_longer_fits_is_refused_when_it_is_taken(measured):
    desk = desk_of(measured, cap=Budget(worker_hours=3.1))
    one, nine = work_items(measured, "ones", "nines")
    for item in (one, nine):
        desk.need(item)
    desk.take("a")
    desk.purse.lose(HOUR)
    learned(measured, desk, "a", one)
    assert desk.take("b") is None
    assert desk.refused[nine.key]["error"] == "OverBudget"
    assert desk.waiting == 0


def test_what_was_lost_is_on_the_bill(measured, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    desk = desk_of(measured)
    one, nine = work_items(measured, "ones", "nines")
    for item in (one, nine):
        desk.need(item)
    assert desk.take("a") == one
    now[0] = 2 * HOUR
    desk.lost("a")
    assert desk.purse.spent == 2 * HOUR
    desk.take("b")
    now[0] = 3 * HOUR
    desk.done("b", one.key, learned=False, error={"error": "NotFinite"})
    assert desk.purse.spent == 3 * HOUR


def test_the_comparison_is_set_aside_while_the_search_goes_on(measured):
    (final,) = (WorkItem(w.stage, (measured.evaluation("fours"),)) for w in work_items(measured, "fours"))
    tight = purse(measured, final=[final], cap=Budget(worker_hours=4))
    (one,) = work_items(measured, "ones")
    assert tight.verdict(one) == "over"  # two hours, and three are set aside
    assert "set aside for the comparison" in str(tight.refusal(one))
    assert tight.verdict(final) == "go"
    assert purse(measured, cap=Budget(worker_hours=4)).verdict(one) == "go"


@pytest.mark.parametrize(
    ("cap", "name"),
    [
        (Budget(gpu_hours=6), "gpu_hours"),
        (Budget(money=3), "money"),
        (Budget(gpu_hours=2, money=3), "money"),
        (Budget(gpu_hours=1, money=3), "gpu_hours"),
    ],
)
def test_the_cap_that_binds_first_is_the_cap(measured, cap, name):
    assert purse(measured, cap=cap).name == name  # a worker-hour is a GPU-hour, and 2 of money


def test_the_first_stage_of_all_runs_alone(world):
    empty = purse(world)
    one, four = work_items(world, "ones", "fours")
    assert empty.verdict(one) == "go"
    assert empty.verdict(four, [one]) == "wait"


def test_who_asked_is_told_and_nothing_is_kept_as_a_failure(measured):
    actor = Broker.__ray_metadata__.modified_class
    (four,) = work_items(measured, "fours")

    async def scene():
        broker = actor(measured.store, 1, purse(measured, cap=Budget(worker_hours=1)))
        return await broker.need(four)

    answer = asyncio.run(scene())
    assert answer["error"]["error"] == OverBudget.__name__
    assert "raise budget.worker_hours" in answer["error"]["message"]
    assert measured.store.failure(four.stage) is None


def watched(method, readers):
    def call(*arguments):
        readers.add((method.__name__, threading.current_thread() is threading.main_thread()))
        return method(*arguments)

    return call


def test_a_broker_with_a_budget_never_reads_the_store_in_its_event_loop(measured, monkeypatch):
    """Else a slow store would keep all who ask it anything waiting; this one may be, as far as it says."""
    monkeypatch.setattr(Folder, "near", False)
    readers = set()
    for name in ("record", "cells", "sittings", "finished", "profiles", "has", "size", "lease", "release"):
        monkeypatch.setattr(StageStore, name, watched(getattr(StageStore, name), readers))
    hours = purse(measured)
    disk = Disk(study_of(measured, Budget(worker_hours=6, disk_gb=1)), measured.store, ())
    broker = Broker.__ray_metadata__.modified_class(measured.store, 1, Purse([hours, disk]))
    (one,) = work_items(measured, "ones")
    readers.clear()
    disk.next_look = 0.0  # it is time for one

    async def scene():
        asker = asyncio.create_task(broker.need(one))
        assert await broker.take("a", patience_s=60) == [one]
        await asyncio.to_thread(published, measured, one)
        await broker.done("a", (one.key, True, None, 1.0))
        await asker
        await broker.close()

    asyncio.run(scene())
    assert {("size", False), ("record", False), ("release", False)} <= readers
    assert {name for name, in_loop in readers if in_loop} == set()
    assert hours.spent == 2 * HOUR  # and it knows


def test_a_budget_below_one_run_says_what_it_needs(measured):
    tight = purse(measured, cap=Budget(gpu_hours=1))
    with pytest.raises(StudyError, match=r"budget.gpu_hours: must be at least 2.* for one run.*, got 1"):
        tight.check(work_items(measured, "ones"))
    purse(measured, cap=Budget(gpu_hours=3)).check(work_items(measured, "ones"))
    tight.lose(1.0)  # it has begun: what is left is not judged so
    tight.check(work_items(measured, "ones"))


# -- profiles ----------------------------------------------------------------------------------------


def tight(cap):
    """A simulated study of three tasks with a budget of so many seconds, its purse, and who does its work."""
    of = imagined(3, DGG(), protocol=Protocol(baselines=()), budget=Budget(worker_hours=cap / HOUR))
    store = MemoryStore()
    return of, budget.purse(of, store, comparison.comparison_items), Simulated.of(of, store)


def done(kept, shop, item):
    shop.obtain(item)
    kept.finished(item)


def test_the_first_probe_alone_may_exceed_the_cap_and_none_starts_after_it():
    of, kept, shop = tight(cap=0.001)
    first, second, third = profiling_items(of)
    assert kept.verdict(first) == "go"
    assert kept.verdict(second, [first]) == "wait"  # alone
    done(kept, shop, first)
    for item in (second, third):
        assert kept.verdict(item) == "over"
        assert "more than the cap: nothing was known of what the first" in str(kept.refusal(item))
    with pytest.raises(StudyError, match=r"at least .* up to .* for one run.*\(task1 and task2 not timed"):
        kept.check(comparison.first_run_items(of))


def test_no_probe_starts_that_may_not_end_within_the_cap():
    *_, shop = tight(cap=1.0)
    (first, *_) = profiling_items(tight(cap=1.0)[0])
    shop.obtain(first)
    (one,) = (record["cost"]["seconds"] for record in shop.store.profiles())
    for cap, verdict in ((1.5 * one, "over"), (2 * one, "over"), (1000 * one, "go")):
        of, kept, shop = tight(cap)
        first, second, _ = profiling_items(of)
        done(kept, shop, first)
        assert kept.verdict(second) == verdict


def test_after_its_probes_a_simulated_study_is_told_what_it_needs_and_that_is_enough():
    of, kept, shop = tight(cap=1e6)
    for item in profiling_items(of):
        done(kept, shop, item)
    needs = kept.caps[0].upper(comparison.first_run_items(of))
    of, short, _ = tight(cap=needs / 2)
    of, enough, _ = tight(cap=2 * needs)
    run = 0.0
    for purse_ in (short, enough):
        for record in shop.store.profiles():
            purse_.caps[0].model.store.note(f"profiles/{record['meaning']['learns'][0][0]}", record)
        purse_.begin()
    with pytest.raises(StudyError, match=r"for one run, .* spent on probes, got"):
        short.check(comparison.first_run_items(of))
    enough.check(comparison.first_run_items(of))
    for item in comparison.first_run_items(of):
        assert enough.verdict(item) == "go"
        shop.obtain(item)
        run += sum(seconds(r) for r in (shop.store.record(item.stage), *shop.store.sittings(item.key)))
    assert 0.5 * needs < run <= needs


def test_what_is_not_known_is_not_told_as_nothing():
    of, kept, shop = tight(cap=0.001)
    for item in profiling_items(of):
        shop.profile(item)
        shop.store.note(f"profiles/{item.key}", shop.store.noted(f"profiles/{item.key}") | {"begin": []})
    kept.begin()
    with pytest.raises(StudyError, match=r"must be more than .*what one run takes is not known, .* spent on"):
        kept.check(comparison.first_run_items(of))


def test_a_plan_says_that_a_budget_cannot_be_checked_before_a_probe():
    of, _, shop = tight(cap=3.6)
    said = "budget            0.001 worker-hours"
    assert f"{said}, which cannot be checked before a probe\n" in str(plan(of, shop.store))
    for item in profiling_items(of):
        shop.obtain(item)
    assert f"{said}\n" in str(plan(of, shop.store))


# -- a study's file --------------------------------------------------------------------------------

STUDY = """\
name: small
model: embedded
tasks:
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 12, validation: 10, test: 10}
strategy: dgg
training: {batch_size: 4, learning_rate: 5e-3}
search: {method: grid, space: {adapter.rank: [2, 4], strategy.alpha: {per_task: [0, 1]}}}
protocol: {max_new_tokens: 2, baselines: [finetune]}
"""


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("budget: {}\n", r"budget: needs at least one of gpu_hours, worker_hours, money, disk_gb"),
        ("budget: {gpu_hours: 1}\n", r"line 10  budget.gpu_hours: needs workers.gpus, which is 0"),
        ("budget: {money: 1}\n", r"budget.money: needs workers.price_per_hour"),
        ("budget: {worker_hours: 0}\n", r"budget.worker_hours: must be greater than 0, got 0"),
        ("budget: {worker_hour: 1}\n", r"budget.worker_hour: no such setting. Did you mean 'worker_hours'"),
    ],
)
def test_a_budget_that_could_not_bind_is_a_fault(tmp_path, more, fault):
    (tmp_path / "study.yaml").write_text(STUDY + more)
    with pytest.raises(StudyError, match=fault):
        load_study(tmp_path / "study.yaml")


def test_the_dearest_corner_has_every_knobs_largest_value(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    corner = load_study(tmp_path / "study.yaml").dearest
    assert corner.adapter.rank == 4
    assert corner.strategy.alpha == {"words": 1, "charts": 1}


# -- a study that runs out of it -------------------------------------------------------------------


@pytest.fixture()
def clock(monkeypatch):
    """Time passes by the example: what stages take is the same on every machine."""
    now = [0.0]

    def takes(name, seconds):
        real = getattr(PeftLearner, name)

        def slow(self, *given):
            now[0] += seconds(*given)
            return real(self, *given)

        monkeypatch.setattr(PeftLearner, name, slow)

    takes("begin", lambda *_: 0.05)
    takes("step", lambda batch, *_: 0.1 * len(batch))
    takes("answer", lambda examples, *_: 0.01 * len(examples))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def spent_by(study, out):
    alone = replace(study, workers=study.workers.alone())
    return sum(CostModel(alone, StageStore(out / "stages")).spent.values()) / HOUR


@pytest.mark.whole
@pytest.mark.usefixtures("clock")
def test_a_study_ends_within_its_budget_and_goes_on_with_a_larger_one(tmp_path, capsys):
    file, out = tmp_path / "study.yaml", tmp_path / "out"

    def run(more):
        file.write_text(STUDY + more)
        code = cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"])
        return code, "".join(capsys.readouterr())

    file.write_text(STUDY)
    cli.main(["profile", str(file), "--out", str(out), "--local", "--quiet"])
    probed = spent_by(load_study(file), out)

    cap = probed + 9.5 / HOUR
    code, said = run(f"budget: {{worker_hours: {cap}}}\n")
    assert code == 0
    assert "would be exceeded" in said
    assert probed < spent_by(load_study(file), out) <= cap
    judged = table(out)
    assert set(judged[judged["split"] == "test"]["strategy"]) == {"dgg", "finetune"}  # it was set aside
    assert not list((out / "stages" / "failed").glob("*"))
    assert re.search(r"\d stages? w\w+ not started", (out / "report.html").read_text())
    few = judged["setting"].nunique()

    code, said = run("budget: {worker_hours: 1}\n")
    assert code == 0
    assert "would be exceeded" not in said
    assert table(out)["setting"].nunique() > few
    assert [entry["refused"] > 0 for entry in forecast.read(out)] == [True, False]
    _, last = (
        (said, spent) for _, unit, said, spent in forecast.compared(forecast.read(out), {"worker-hours": 1})
    )
    assert last[0]["low"] <= spent_by(load_study(file), out) - probed


@pytest.mark.whole
@pytest.mark.usefixtures("clock")
def test_a_budget_smaller_than_one_run_starts_nothing_but_the_probes(tmp_path, capsys):
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(STUDY + "budget: {worker_hours: 1e-3}\n")
    assert cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"]) == 2
    assert "budget.worker_hours: must be at least" in capsys.readouterr().err
    assert not list((out / "stages").glob("stages/*"))
    assert cli.main(["plan", str(file), "--out", str(out)]) == 2


def test_without_a_budget_everything_may_start(world):
    study = SimpleNamespace(budget=None)
    free = budget.purse(study, world.store, lambda winner: pytest.fail("nothing is set aside"))
    assert free.verdict(WorkItem(world.path("ones")[0])) == "go"
