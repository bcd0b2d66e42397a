"""A budget is a hard limit: for the work queue, for a single process, and in a study file."""

import asyncio
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dgg_ray import cli, load_study
from dgg_ray.analysis.load import load_results
from dgg_ray.config.sections import Protocol
from dgg_ray.config.study import Budget, Workers
from dgg_ray.core.errors import OverBudgetError, StudyError
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost import budget, forecast
from dgg_ray.cost.budget import BudgetTracker, DiskLimit, HoursLimit
from dgg_ray.cost.model import CostModel, profiling_items, seconds_of
from dgg_ray.execution.broker import Broker
from dgg_ray.execution.work_queue import ItemResult, WorkQueue
from dgg_ray.planning.plan import plan
from dgg_ray.search.comparison import comparison_chains, first_run_items
from dgg_ray.storage.backend import LocalBackend
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training import loop
from dgg_ray.training.simulated_runner import SimulatedRunner

WORKERS = Workers(gpus=1, price_per_hour=2)
HOUR = 3600.0


@pytest.fixture()
def measured(world):
    """Another study's stages in the store: an hour for each example of a task, half a minute an answer."""
    by = {"study": "another", "workers": WORKERS.setup}
    for name, task in world.tasks.items():
        for seed in range(4):
            (stage,), n = world.stages_of(name, seed=1000 + seed), len(task.examples["train"])
            cost = {"seconds": HOUR * n, "examples": n, "begin_seconds": 0.01}
            world.store.publish(stage, {"earlier": [], "cost": cost, **by}, lambda folder: None)
            cell = {
                "evaluation": world.evaluation(name).key,
                "task": name,
                "split": "test",
                "score": 0.0,
                "n": n,
            }
            world.store.publish_evaluations(stage, [cell | {"seconds": 30.0 * n}], lambda folder: None, by)
    return world


def study_of(world, limits):
    tasks = {name: world.data(name) for name in world.tasks}
    data = SimpleNamespace(fingerprint="model", tasks=tasks)
    protocol = SimpleNamespace(max_new_tokens=2)
    return SimpleNamespace(name="toy", workers=WORKERS, data=data, budget=limits, protocol=protocol)


def hours_limit(world, comparison=(), limits=None):
    return HoursLimit(study_of(world, limits or Budget(worker_hours=6)), world.store, comparison)


def tracker(world, **changes):
    return BudgetTracker([hours_limit(world, **changes)])


def queue_of(world, **changes):
    return WorkQueue(world.store, max_retries=1, budget=tracker(world, **changes))


def spent(queue):
    (limit,) = queue.budget.limits
    return limit.spent


def finish(world, queue, group, item):
    publish(world, item)
    queue.finish(group, ItemResult(item.key, trained=True))


def publish(world, item):
    """Publish a stage with the cost that is predicted: `ones` two hours, `fours` three, `nines` one."""
    n = len(world.tasks[item.stage.task].examples["train"])
    cost = {"seconds": HOUR * n, "examples": n, "begin_seconds": 0.0}
    record = {"earlier": [], "cost": cost, "study": "toy", "workers": WORKERS.setup}
    world.store.publish(item.stage, record, lambda folder: None)


def items_of(world, *names):
    return [WorkItem(world.stages_of(name)[0]) for name in names]


def test_an_item_that_cannot_end_within_the_budget_is_rejected(measured):
    queue = queue_of(measured)  # of 6 hours
    fours, ones, nines = items_of(measured, "fours", "ones", "nines")
    assert queue.request(fours) == "queued"
    assert queue.dequeue("a") == fours
    finish(measured, queue, "a", fours)
    assert queue.request(ones) == "queued"
    assert queue.dequeue("a") == ones
    finish(measured, queue, "a", ones)
    assert spent(queue) == 5 * HOUR
    assert queue.request(nines) == "over budget"  # an hour is left, and it may take a little more than one
    assert queue.request(fours) == "stored"


def test_an_item_that_fits_only_if_others_end_early_waits_for_them(measured):
    queue = queue_of(measured, limits=Budget(worker_hours=3.1))
    ones, nines = items_of(measured, "ones", "nines")
    queue.request(ones)
    queue.request(nines)
    assert queue.dequeue("a") == ones
    assert queue.dequeue("b") is None  # up to 2.1 and up to 1.05 hours are more than 3.1
    assert queue.waiting == 0  # no worker group is started for it
    finish(measured, queue, "a", ones)
    assert queue.waiting == 1
    assert queue.dequeue("b") == nines


def test_an_item_that_waited_and_no_longer_fits_is_rejected_when_it_is_dequeued(measured):
    queue = queue_of(measured, limits=Budget(worker_hours=3.1))
    ones, nines = items_of(measured, "ones", "nines")
    for item in (ones, nines):
        queue.request(item)
    queue.dequeue("a")
    queue.budget.record_loss(HOUR)
    finish(measured, queue, "a", ones)
    assert queue.dequeue("b") is None
    assert queue.refused[nines.key]["error"] == OverBudgetError.__name__
    assert queue.waiting == 0


def test_lost_work_counts_as_spent(measured, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    queue = queue_of(measured)
    ones, nines = items_of(measured, "ones", "nines")
    for item in (ones, nines):
        queue.request(item)
    assert queue.dequeue("a") == ones
    now[0] = 2 * HOUR
    queue.group_lost("a")
    assert spent(queue) == 2 * HOUR
    queue.dequeue("b")
    now[0] = 3 * HOUR
    queue.finish("b", ItemResult(ones.key, trained=False, error={"error": "NonFiniteError"}))
    assert spent(queue) == 3 * HOUR


def test_the_cost_of_the_comparison_is_reserved_while_the_search_goes_on(measured):
    evaluations = (measured.evaluation("fours"),)
    (final,) = (WorkItem(item.stage, evaluations) for item in items_of(measured, "fours"))
    tight = hours_limit(measured, comparison=[final], limits=Budget(worker_hours=4))
    (ones,) = items_of(measured, "ones")
    assert tight.decide(ones) == "reject"  # two hours, and three are reserved
    assert "reserved for the comparison" in str(tight.refusal(ones))
    assert tight.decide(final) == "admit"
    assert hours_limit(measured, limits=Budget(worker_hours=4)).decide(ones) == "admit"


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Budget(gpu_hours=6), "gpu_hours"),
        (Budget(money=3), "money"),
        (Budget(gpu_hours=2, money=3), "money"),
        (Budget(gpu_hours=1, money=3), "gpu_hours"),
    ],
)
def test_the_limit_that_binds_first_is_enforced(measured, limits, name):
    assert hours_limit(measured, limits=limits).name == name  # a worker-hour is a GPU-hour, and 2 of money


def test_the_first_stage_of_all_runs_alone(world):
    empty = hours_limit(world)
    ones, fours = items_of(world, "ones", "fours")
    assert empty.decide(ones) == "admit"
    assert empty.decide(fours, [ones]) == "wait"


def test_a_client_gets_the_refusal_and_the_store_records_no_failure(measured):
    actor = Broker.__ray_metadata__.modified_class
    (fours,) = items_of(measured, "fours")

    async def scene():
        broker = actor(measured.store, 1, tracker(measured, limits=Budget(worker_hours=1)))
        return await broker.request(fours)

    answer = asyncio.run(scene())
    assert answer["error"]["error"] == OverBudgetError.__name__
    assert "Raise budget.worker_hours" in answer["error"]["message"]
    assert measured.store.failure(fours.stage) is None


def watched(method, readers):
    def call(*arguments):
        readers.add((method.__name__, threading.current_thread() is threading.main_thread()))
        return method(*arguments)

    return call


def test_a_broker_with_a_budget_never_reads_the_store_in_its_event_loop(measured, monkeypatch):
    """A slow store would keep every client waiting; this store claims to be one that may be slow."""
    monkeypatch.setattr(LocalBackend, "is_local", False)
    readers = set()
    reads = ("record", "score_entries", "evaluation_records", "finished", "profiles", "has", "size")
    for name in (*reads, "acquire_lease", "release_lease"):
        monkeypatch.setattr(StageStore, name, watched(getattr(StageStore, name), readers))
    hours = hours_limit(measured)
    disk = DiskLimit(study_of(measured, Budget(worker_hours=6, disk_gb=1)), measured.store, ())
    broker = Broker.__ray_metadata__.modified_class(measured.store, 1, BudgetTracker([hours, disk]))
    (ones,) = items_of(measured, "ones")
    readers.clear()
    disk.next_measurement = 0.0  # a measurement is due

    async def scene():
        client = asyncio.create_task(broker.request(ones))
        assert await broker.next_item("a", idle_timeout_s=60) == ones
        await asyncio.to_thread(publish, measured, ones)
        await broker.finish("a", ItemResult(ones.key, True, None, 1.0))
        await client
        await broker.close()

    asyncio.run(scene())
    assert {("size", False), ("record", False), ("release_lease", False)} <= readers
    assert {name for name, in_loop in readers if in_loop} == set()
    assert hours.spent == 2 * HOUR  # the measurement arrived


def test_a_budget_below_one_run_says_what_it_needs(measured):
    tight = tracker(measured, limits=Budget(gpu_hours=1))
    with pytest.raises(StudyError, match=r"budget.gpu_hours: must be at least 2.* for one run.*, got 1"):
        tight.check(items_of(measured, "ones"))
    tracker(measured, limits=Budget(gpu_hours=3)).check(items_of(measured, "ones"))
    tight.record_loss(1.0)  # work has begun: the check is for its start alone
    tight.check(items_of(measured, "ones"))


# -- profiles ----------------------------------------------------------------------------------------


def simulated(seconds):
    """Return a simulated study of three tasks with so many seconds, its budget tracker and its runner."""
    limits = Budget(worker_hours=seconds / HOUR)
    study = synthetic_study(3, DGG(), protocol=Protocol(baselines=()), budget=limits)
    store = MemoryStore()
    return study, budget.make_tracker(study, store, comparison_chains), SimulatedRunner.of(study, store)


def do(budget_tracker, runner, item):
    runner.run(item)
    budget_tracker.record_finished(item)


def test_the_first_profile_alone_may_exceed_the_limit_and_nothing_starts_after_it():
    study, limits, runner = simulated(seconds=0.001)
    first, second, third = profiling_items(study)
    assert limits.decide(first) == "admit"
    assert limits.decide(second, [first]) == "wait"  # alone
    do(limits, runner, first)
    for item in (second, third):
        assert limits.decide(item) == "reject"
        reason = "more than the limit: the cost of the first measurement was unknown"
        assert reason in str(limits.refusal(item))
    with pytest.raises(StudyError, match=r"at least .* up to .* for one run.*\(task1 and task2 not timed"):
        limits.check(first_run_items(study))


def test_no_profile_starts_that_may_not_end_within_the_limit():
    study, _, runner = simulated(seconds=1.0)
    (first, *_) = profiling_items(study)
    runner.run(first)
    (profile,) = (record["cost"]["seconds"] for record in runner.store.profiles())
    for seconds, decision in ((1.5 * profile, "reject"), (2 * profile, "reject"), (1000 * profile, "admit")):
        study, limits, runner = simulated(seconds)
        first, second, _ = profiling_items(study)
        do(limits, runner, first)
        assert limits.decide(second) == decision


def test_after_its_profiles_a_simulated_study_says_what_it_needs_and_that_is_enough():
    study, limits, runner = simulated(seconds=1e6)
    for item in profiling_items(study):
        do(limits, runner, item)
    needed = limits.limits[0].concurrent_bound(first_run_items(study))
    study, short, _ = simulated(seconds=needed / 2)
    study, enough, _ = simulated(seconds=2 * needed)
    run = 0.0
    for limits in (short, enough):
        for record in runner.store.profiles():
            limits.limits[0].model.store.put_document(f"profiles/{record['meaning']['learns'][0][0]}", record)
        limits.reload()
    with pytest.raises(StudyError, match=r"for one run, .* spent on profiles, got"):
        short.check(first_run_items(study))
    enough.check(first_run_items(study))
    for item in first_run_items(study):
        assert enough.decide(item) == "admit"
        runner.run(item)
        records = (runner.store.record(item.stage), *runner.store.evaluation_records(item.key))
        run += sum(map(seconds_of, records))
    assert 0.5 * needed < run <= needed


def test_an_unknown_amount_is_not_counted_as_nothing():
    study, limits, runner = simulated(seconds=0.001)
    for item in profiling_items(study):
        runner.profile(item)
        name = f"profiles/{item.key}"
        runner.store.put_document(name, runner.store.get_document(name) | {"setup": []})
    limits.reload()
    with pytest.raises(StudyError, match=r"must be more than .*an unknown amount for one run, .* spent on"):
        limits.check(first_run_items(study))


def test_a_plan_says_that_a_budget_cannot_be_checked_before_a_profile():
    study, _, runner = simulated(seconds=3.6)
    row = "budget            0.001 worker-hours"
    assert f"{row}, which cannot be checked before `dgg-ray profile`\n" in str(plan(study, runner.store))
    for item in profiling_items(study):
        runner.run(item)
    assert f"{row}\n" in str(plan(study, runner.store))


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


def test_the_most_expensive_corner_has_every_parameters_largest_value(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    corner = load_study(tmp_path / "study.yaml").most_expensive
    assert corner.adapter.rank == 4
    assert corner.strategy.alpha == {"words": 1, "charts": 1}


# -- a study that runs out of its budget ------------------------------------------------------------


@pytest.fixture()
def clock(monkeypatch):
    """Make time pass by the example, so that stages cost the same on every machine."""
    from dgg_ray.training.learner import PeftLearner  # late: it takes seconds

    now = [0.0]

    def takes(name, seconds):
        real = getattr(PeftLearner, name)

        def slow(self, *arguments):
            now[0] += seconds(*arguments)
            return real(self, *arguments)

        monkeypatch.setattr(PeftLearner, name, slow)

    takes("start", lambda *_: 0.05)
    takes("step", lambda batch, *_: 0.1 * len(batch))
    takes("answer", lambda examples, *_: 0.01 * len(examples))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def spent_by(study, out):
    alone = replace(study, workers=study.workers.alone())
    return sum(CostModel(alone, open_store(out / "stages")).spent.values()) / HOUR


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
    profiled = spent_by(load_study(file), out)

    limit = profiled + 9.5 / HOUR
    code, output = run(f"budget: {{worker_hours: {limit}}}\n")
    assert code == 0
    assert "would be exceeded" in output
    assert profiled < spent_by(load_study(file), out) <= limit
    rows = load_results(out).table
    assert set(rows[rows["split"] == "test"]["strategy"]) == {"dgg", "finetune"}  # its cost was reserved
    assert not list((out / "stages" / "failed").glob("*"))
    assert re.search(r"\d stages? w\w+ not started", (out / "report.html").read_text())
    few = rows["setting"].nunique()

    code, output = run("budget: {worker_hours: 1}\n")
    assert code == 0
    assert "would be exceeded" not in output
    assert load_results(out).table["setting"].nunique() > few
    entries = forecast.read_forecasts(out)
    assert [entry["refused"] > 0 for entry in entries] == [True, False]
    _, last = forecast.compare_forecasts(entries, {"worker-hours": 1})
    assert last.predicted["low"] <= spent_by(load_study(file), out) - profiled


@pytest.mark.whole
@pytest.mark.usefixtures("clock")
def test_a_budget_smaller_than_one_run_starts_nothing_but_the_profiles(tmp_path, capsys):
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(STUDY + "budget: {worker_hours: 1e-3}\n")
    assert cli.main(["run", str(file), "--out", str(out), "--local", "--quiet"]) == 2
    assert "budget.worker_hours: must be at least" in capsys.readouterr().err
    assert not list((out / "stages").glob("stages/*"))
    assert cli.main(["plan", str(file), "--out", str(out)]) == 2


def test_without_a_budget_everything_is_admitted(world):
    study = SimpleNamespace(budget=None)
    unlimited = budget.make_tracker(study, world.store, lambda winner: pytest.fail("nothing is reserved"))
    assert unlimited.decide(WorkItem(world.stages_of("ones")[0])) == "admit"
