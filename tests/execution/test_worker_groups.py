"""Worker groups that cannot work give the reason, instead of starting again for ever."""

import json
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgg_ray.config.sections import Workers
from dgg_ray.core import event_log
from dgg_ray.core.errors import (
    ClusterError,
    Fault,
    IncompatibleCheckpointError,
    NonFiniteError,
    PermanentStoreError,
    StageError,
    StoreError,
    StudyError,
)
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import cluster, worker_groups
from dgg_ray.training.setup import build_stage_runner
from dgg_ray.training.simulated_runner import SimulatedRunner

CALLS = (
    "group_lost",
    "close",
    "heartbeat",
    "finish",
    "infrastructure_failed",
    "report_failure",
    "set_phase",
    "next_item",
)


class FakeBroker:
    """A broker whose calls are answered at once; `close` keeps the reason."""

    def __init__(self, **answers):
        self.reason, self.calls = "", []
        for name, answer in (dict.fromkeys(CALLS) | answers).items():
            setattr(self, name, SimpleNamespace(remote=self.make_call(name, answer)))

    def make_call(self, name, answer):
        def remote(*args):
            if name == "close":
                self.reason = args[0]
            elif name not in ("heartbeat", "set_phase"):
                self.calls.append((name, *args))
            return answer(*args) if callable(answer) else answer

        return remote

    @property
    def call_names(self):
        return [name for name, *_ in self.calls]


def get(answer, timeout=None):
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(worker_groups.ray, "get", get)
    monkeypatch.setattr(worker_groups.ray, "cancel", lambda ref: None)  # it would start Ray
    monkeypatch.setattr(worker_groups.cluster, "free_abandoned", lambda: 0)
    yield
    assert not worker_groups.ray.is_initialized()
    event_log.stop_logging()  # the worker's loop ran in this process


TOY = SimpleNamespace(name="toy", workers=Workers())


# -- workers ---------------------------------------------------------------------------------------


def config_of(broker, study=None, store=None, code=None, outside_plugins=()):
    """The configuration of a worker."""
    return {
        "study": study,
        "store": store,
        "broker": broker,
        "group": "group-001",
        "group_id": "0123",
        "code": code or cluster.code_version(),
        "outside_plugins": outside_plugins,
    }


def start_with(monkeypatch, problem):
    """The broker of a worker whose stage runner cannot be built because of the error."""

    def fail(*_):
        raise problem

    monkeypatch.setattr(worker_groups, "build_stage_runner", fail)
    broker = FakeBroker()
    worker_groups.run_worker(config_of(broker, TOY))
    return broker


def test_data_that_differ_from_the_studys_close_the_broker_with_the_reason(monkeypatch):
    broker = start_with(monkeypatch, StudyError([Fault("model", "has other content here")], "toy"))
    assert broker.reason.startswith("a worker cannot start: StudyError: toy: 1 fault")


def test_a_machine_on_which_a_worker_cannot_start_ends_that_worker_with_the_reason(monkeypatch):
    with pytest.raises(ClusterError, match="cannot start: OSError: the weights are gone"):
        start_with(monkeypatch, OSError("the weights are gone"))


def test_data_that_cannot_be_fetched_end_the_group_and_not_the_study(monkeypatch):
    broker = start_with(monkeypatch, StoreError("no answer"))
    assert (broker.reason, broker.call_names) == ("", ["group_lost", "infrastructure_failed"])


def test_data_that_no_machine_may_fetch_end_the_study(monkeypatch):
    broker = start_with(monkeypatch, PermanentStoreError("not allowed"))
    assert "not allowed" in broker.reason
    assert broker.call_names == ["group_lost"]


def test_a_worker_with_another_version_names_both_and_the_remedy_before_it_reads_the_study():
    broker = FakeBroker()
    worker_groups.run_worker(config_of(broker, code="0.0.9 (0123456789ab)"))
    expected = f"another dgg_ray than the driver: {cluster.code_version()}, not 0.0.9 (0123456789ab)"
    assert expected in broker.reason
    assert "install the driver's on every machine" in broker.reason


def test_a_worker_without_an_installed_plugin_names_it_and_the_remedy_before_it_reads_the_study():
    broker = FakeBroker()
    worker_groups.run_worker(config_of(broker, outside_plugins=[("strategies", "toolbox.pull:Pull")]))
    assert "cannot use the strategy `toolbox.pull:Pull`: toolbox.pull must be importable" in broker.reason
    assert "its package must be installed on this machine" in broker.reason


class FailingRunner(SimulatedRunner):
    """Every stage ends with the error."""

    def __init__(self, problem):
        self.problem, self.describe_environment = problem, dict

    def run(self, item):
        raise self.problem


def run_one_stage(world, monkeypatch, problem):
    """The broker's calls, and the kept failure, of a worker with one stage that ends with the error."""
    (stage,) = world.stages_of("ones")
    items = iter([WorkItem(stage), None])
    broker = FakeBroker(next_item=lambda *_: next(items))
    monkeypatch.setattr(worker_groups, "build_stage_runner", lambda *_: FailingRunner(problem))
    worker_groups.run_worker(config_of(broker, TOY, world.store))
    return broker, world.store.failure(stage)


def test_a_full_disk_is_not_the_stages_fault(world, monkeypatch):
    broker, failure = run_one_stage(world, monkeypatch, StoreError("cannot write: no space left"))
    # No second `next_item`: the group ends.
    assert broker.call_names == ["group_lost", "next_item", "infrastructure_failed"]
    assert failure is None


@pytest.mark.parametrize(
    "problem", [IncompatibleCheckpointError("by another version"), NonFiniteError("the loss is nan")]
)
def test_an_error_that_every_machine_would_repeat_is_kept_and_the_next_item_is_taken(
    world, monkeypatch, problem
):
    broker, failure = run_one_stage(world, monkeypatch, problem)
    assert broker.call_names == ["group_lost", "next_item", "next_item"]
    result = broker.calls[-1][-1]  # reported with the next question
    assert (result.trained, result.error["error"]) == (False, type(problem).__name__)
    assert failure["error"] == type(problem).__name__


def test_an_error_that_may_be_the_processs_fault_ends_it_and_is_reported_to_the_broker(world, monkeypatch):
    logged = []
    monkeypatch.setattr(event_log, "log_error", lambda name, error, *_: logged.append(error["error"]))
    (stage,) = world.stages_of("ones")
    broker = FakeBroker(next_item=WorkItem(stage))
    monkeypatch.setattr(
        worker_groups,
        "build_stage_runner",
        lambda *_: FailingRunner(RuntimeError("CUDA error: illegal access")),
    )
    with pytest.raises(RuntimeError, match="illegal access"):
        worker_groups.run_worker(config_of(broker, TOY, world.store))
    assert broker.call_names == ["group_lost", "next_item", "report_failure"]  # no other item is taken
    _, _, _, error, result = broker.calls[-1]
    assert "illegal access" in error["message"]
    assert "Traceback" in error["traceback"]
    assert result is None  # another try may end well
    assert logged[-1] == "RuntimeError"
    assert world.store.failure(stage) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_that_pytorch_does_not_find_are_reported_before_anything_is_read():
    study = SimpleNamespace(name="toy", workers=Workers(gpus=1))
    with pytest.raises(ClusterError, match=r"finds no GPU.*set workers.gpus to 0"):
        build_stage_runner(study, None)


# -- from study to study ---------------------------------------------------------------------------


def fake_pool(*assignments):
    """A pool that gives these assignments, one after another, and the names of the calls to it."""
    calls, rest = [], list(assignments)

    def park(member):
        calls.append("park")
        del rest[0]
        return bool(rest)

    pool = SimpleNamespace(
        current=SimpleNamespace(remote=lambda member: rest[0] if rest else None),
        park=SimpleNamespace(remote=park),
        refuse=SimpleNamespace(remote=lambda member, reason: calls.append(reason)),
    )
    return pool, calls


def run_in_pool(pool, code=None):
    config = {"code": code or cluster.code_version(), "outside_plugins": (), "pool": pool, "member": "0123"}
    worker_groups.run_worker(config)


def test_a_group_goes_from_study_to_study_and_leaves_no_thread_of_the_first(world, monkeypatch, tmp_path):
    (stage,) = world.stages_of("ones")
    runners = []

    def build(study, *_):
        runners.append(study.name)
        return FailingRunner(StageError("no"))

    monkeypatch.setattr(worker_groups, "build_stage_runner", build)
    studies, brokers, logs = [], [], []
    for name in ("first", "second"):
        items = iter([WorkItem(stage), None])
        brokers.append(FakeBroker(next_item=lambda *_, items=items: next(items)))
        logs.append(tmp_path / name)
        logs[-1].mkdir()
        study = SimpleNamespace(name=name, workers=Workers())
        studies.append(config_of(brokers[-1], study, world.store) | {"logs": logs[-1]})
    before = set(threading.enumerate())
    pool, calls = fake_pool(*studies)
    run_in_pool(pool)
    assert (runners, calls) == (["first", "second"], ["park", "park"])
    assert [broker.call_names for broker in brokers] == [["group_lost", "next_item", "next_item"]] * 2
    for name, folder in zip(("first", "second"), logs, strict=True):
        (file,) = folder.iterdir()
        assert {json.loads(line)["study"] for line in file.read_text().splitlines()} == {name}
    assert not any(isinstance(h, logging.FileHandler) for h in event_log.log.handlers)
    of_the_studies = [t for t in threading.enumerate() if t.name == "heartbeat" and t not in before]
    for thread in of_the_studies:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in of_the_studies)


def test_a_group_that_ends_with_a_fault_of_its_machine_does_not_wait_for_another_study(world, monkeypatch):
    (stage,) = world.stages_of("ones")
    monkeypatch.setattr(worker_groups, "build_stage_runner", lambda *_: FailingRunner(StoreError("full")))
    broker = FakeBroker(next_item=WorkItem(stage))
    pool, calls = fake_pool(config_of(broker, TOY, world.store))
    run_in_pool(pool)
    assert calls == []
    assert broker.call_names[-1] == "infrastructure_failed"


def test_a_worker_with_another_version_tells_the_pool_before_it_reads_the_study():
    pool, calls = fake_pool({"study": None})
    run_in_pool(pool, code="0.0.9 (0123456789ab)")
    (reason,) = calls
    assert "another dgg_ray than the driver" in reason


# -- the manager -----------------------------------------------------------------------------------


def ignore_status(status):
    pass


def manager_of(broker, study=TOY, on_status=ignore_status):
    return worker_groups.WorkerGroupManager(study, None, broker, Path(), on_status)


def wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_for_failure(manager):
    wait_until(lambda: manager.failure)


def test_a_broker_that_was_restarted_after_the_end_is_closed_again(monkeypatch):
    """Otherwise it would wait for groups for ever, and every client with it."""
    monkeypatch.setattr(worker_groups, "CLUSTER_CHECK_S", 0.05)
    reasons = []
    status = {"waiting": 0, "running": [], "closed": "another version"}
    with manager_of(FakeBroker(status=status, close=reasons.append)) as manager:
        wait_until(lambda: manager.failure and len(reasons) >= 3)
    assert reasons[:3] == ["another version"] * 3


def test_groups_that_cannot_be_supervised_are_given_up_with_the_reason(monkeypatch):
    monkeypatch.setattr(worker_groups, "MAX_TROUBLE_S", 0.0)
    broker = FakeBroker(status=RuntimeError("the broker is gone"))
    with manager_of(broker) as manager:
        wait_until(lambda: manager.failure and broker.reason)
        assert manager.failure == "worker groups cannot be supervised: RuntimeError: the broker is gone"
        assert broker.reason == manager.failure


def test_trouble_that_passes_ends_nothing():
    """A broker that answers too late once, a display that fails."""
    calls = []

    def status():
        calls.append(None)
        if len(calls) == 1:
            raise TimeoutError("late")
        return {"waiting": 0, "running": [], "closed": "enough" if len(calls) == 4 else ""}

    def fail(status):
        raise OSError("no terminal")

    with manager_of(FakeBroker(status=status), on_status=fail) as manager:
        wait_for_failure(manager)
        assert manager.failure == "enough"


def test_a_cluster_that_cannot_be_read_does_not_count_as_refusing(monkeypatch):
    def time_out():
        raise TimeoutError

    monkeypatch.setattr(worker_groups.cluster, "free_abandoned", time_out)
    manager = manager_of(FakeBroker())
    manager.running = {object(): "group-001"}
    assert manager._check_cluster({"running": []}) == ""


def test_failed_groups_are_replaced_later_and_later_until_all_is_well_for_a_while():
    manager = manager_of(FakeBroker())
    pauses = []
    for count in (1, 2, 2, 3, 0, 1):  # a restarted broker counts from 0
        manager._collect_finished({"infrastructure_failures": count})
        pauses.append(manager.back_off_s)
    assert pauses == [5, 10, 10, 20, 20, 40]
    manager.next_start -= 10 * worker_groups.MAX_BACK_OFF_S
    manager._collect_finished({"infrastructure_failures": 2})
    assert manager.back_off_s == 5


def test_a_broker_that_was_closed_ends_the_groups():
    status = {"waiting": 0, "running": [], "closed": "a worker cannot start: no GPU"}
    with manager_of(FakeBroker(status=status)) as manager:
        wait_for_failure(manager)
        assert manager.failure == "a worker cannot start: no GPU"


def test_all_groups_that_are_wanted_are_started_at_once(monkeypatch):
    """Started one after another, an autoscaler would grow machine by machine."""
    running = []
    statuses = iter([{"waiting": 3, "running": [{}], "closed": ""}])

    def status():
        running.append(len(manager.running))
        return next(statuses, {"waiting": 3, "running": [{}], "closed": "enough"})

    monkeypatch.setattr(worker_groups.ray, "wait", lambda refs, **_: ([], refs))
    monkeypatch.setattr(worker_groups.WorkerGroupManager, "_check_cluster", lambda self, status: "")
    monkeypatch.setattr(
        worker_groups.WorkerGroupManager,
        "_start_groups",
        lambda self, count: self.running.update({object(): "group" for _ in range(count)}),
    )
    manager = manager_of(FakeBroker(status=status), SimpleNamespace(workers=Workers(groups=4)))
    with manager:
        wait_for_failure(manager)
    assert running == [0, 4]
