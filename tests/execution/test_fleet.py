"""What a fleet does when it cannot work: it says why, instead of starting again for ever."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgg_ray.config.sections import Workers
from dgg_ray.core import event_log
from dgg_ray.core.errors import ClusterError, Fault, NotFinite, OtherVersion, Refused, StoreError, StudyError
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import cluster, worker_groups
from dgg_ray.training import setup
from dgg_ray.training.simulated import Simulated


class Desk:
    """A broker whose calls are answered at once; `close` keeps the reason."""

    def __init__(self, **answers):
        self.reason, self.calls = "", []
        answers = dict.fromkeys(("lost", "close", "tick", "done", "unwell", "blame", "set_phase")) | answers
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=self.call(name, answer)))

    def call(self, name, answer):
        def remote(*arguments):
            if name == "close":
                self.reason = arguments[0]
            elif name not in ("tick", "set_phase"):
                self.calls.append((name, *arguments))
            return answer(*arguments) if callable(answer) else answer

        return remote


def got(answer, timeout=None):
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(worker_groups.ray, "get", got)
    monkeypatch.setattr(worker_groups.ray, "cancel", lambda ref: None)  # else it would start a Ray of its own
    monkeypatch.setattr(worker_groups.cluster, "free_abandoned", lambda: 0)
    yield
    assert not worker_groups.ray.is_initialized()
    event_log.ended()  # the loop of a worker ran in this process


def begun(monkeypatch, problem):
    """Why a broker was closed whose worker found this at its start."""

    def workshop(*_):
        raise problem

    monkeypatch.setattr(worker_groups, "workshop", workshop)
    desk = Desk()
    try:
        worker_groups.work_loop(given(desk, SimpleNamespace(name="toy", workers=Workers())))
    finally:
        reason = desk.reason
    return reason


def test_other_data_than_the_studys_close_the_broker_with_the_reason(monkeypatch):
    reason = begun(monkeypatch, StudyError([Fault("model", "has other content here")], "toy"))
    assert reason.startswith("a worker cannot begin: StudyError: toy: 1 fault")


def test_one_machine_that_cannot_begin_ends_its_own_worker_with_the_reason(monkeypatch):
    with pytest.raises(ClusterError, match="cannot begin: OSError: the weights are gone"):
        begun(monkeypatch, OSError("the weights are gone"))


def test_data_that_do_not_come_end_the_fleet_and_not_the_study(monkeypatch):
    for error, said in ((StoreError("no answer"), "unwell"), (Refused("not allowed"), "")):

        def workshop(*_, error=error):
            raise error

        monkeypatch.setattr(worker_groups, "workshop", workshop)
        desk = Desk()
        worker_groups.work_loop(given(desk, SimpleNamespace(name="toy", workers=Workers())))
        assert bool(desk.reason) == (not said)
        assert [name for name, *_ in desk.calls if name != "lost"] == [said] * bool(said)


def given(desk, study=None, store=None, code=None):
    """What a worker of a fleet is given."""
    what = {"study": study, "store": store, "broker": desk, "fleet": "fleet-001", "life": "0123"}
    return {**what, "code": code or cluster.code()}


def test_a_worker_with_another_version_says_both_and_what_to_do_before_it_reads_the_study():
    desk = Desk()
    worker_groups.work_loop(given(desk, code="0.0.9 (0123456789ab)"))
    assert f"another dgg_ray than the driver: {cluster.code()}, not 0.0.9 (0123456789ab)" in desk.reason
    assert "install the driver's on every machine" in desk.reason


class Shop(Simulated):
    """Every stage ends with this error."""

    def __init__(self, problem):
        self.problem, self.where = problem, dict

    def obtain(self, item):
        raise self.problem


def served(world, monkeypatch, problem):
    """Calls to the broker that a worker makes over one stage that ends with the error."""
    (stage,) = world.path("ones")
    work_items = iter([[WorkItem(stage)], []])
    desk = Desk(take=lambda *_: next(work_items))
    monkeypatch.setattr(worker_groups, "workshop", lambda *_: Shop(problem))
    worker_groups.work_loop(given(desk, SimpleNamespace(name="toy", workers=Workers()), world.store))
    return desk.calls, world.store.failure(stage)


def test_a_full_disk_is_not_the_stages_fault(world, monkeypatch):
    calls, failure = served(world, monkeypatch, StoreError("cannot write: no space left"))
    assert [name for name, *_ in calls] == ["lost", "take", "unwell"]  # no other take: the fleet ends
    assert failure is None


@pytest.mark.parametrize("problem", [OtherVersion("by another version"), NotFinite("the loss is nan")])
def test_what_a_stage_ends_with_everywhere_is_kept_with_it_and_the_next_is_taken(world, monkeypatch, problem):
    calls, failure = served(world, monkeypatch, problem)
    assert [name for name, *_ in calls] == ["lost", "take", "take"]
    ((_, learned, error, _),) = calls[-1][-1]  # what it had is told with the next question
    assert (learned, error["error"]) == (False, type(problem).__name__)
    assert failure["error"] == type(problem).__name__


def test_what_a_handful_has_not_begun_in_its_time_is_left(world, monkeypatch):
    many = [WorkItem(world.path("ones", seed=seed)[0]) for seed in range(3)]
    clock = iter([0.0, 0.09, 0.11])
    monkeypatch.setattr(setup.time, "monotonic", lambda: next(clock))
    assert list(setup.handful(many, lambda compute: compute())) == many[:2]


def test_what_may_be_the_processs_fault_ends_it_and_the_broker_knows_with_what(world, monkeypatch):
    seen = []
    monkeypatch.setattr(event_log, "trouble", lambda name, error, *_: seen.append(error["error"]))
    (stage,) = world.path("ones")
    desk = Desk(take=[WorkItem(stage)])
    monkeypatch.setattr(
        worker_groups, "workshop", lambda *_: Shop(RuntimeError("CUDA error: illegal access"))
    )
    with pytest.raises(RuntimeError, match="illegal access"):
        worker_groups.work_loop(given(desk, SimpleNamespace(name="toy", workers=Workers()), world.store))
    assert [name for name, *_ in desk.calls] == ["lost", "take", "blame"]  # nothing else is taken
    assert "illegal access" in desk.calls[-1][3]["message"]
    assert "Traceback" in desk.calls[-1][3]["traceback"]
    assert world.store.failure(stage) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_that_pytorch_does_not_find_are_said_before_anything_is_read():
    study = SimpleNamespace(name="toy", workers=Workers(gpus=1))
    with pytest.raises(ClusterError, match=r"finds no GPU here.*set workers.gpus to 0"):
        worker_groups.workshop(study, None)


def given_up(groups):
    until = time.monotonic() + 10
    while not groups.failure and time.monotonic() < until:
        time.sleep(0.01)


def test_a_broker_that_was_restarted_after_the_end_is_told_of_it_again(monkeypatch):
    """Else it would wait for fleets for ever, and whoever needs a stage with it."""
    monkeypatch.setattr(worker_groups, "LOOK_S", 0.05)
    told = []
    status = {"waiting": 0, "running": [], "closed": "another version"}
    study = SimpleNamespace(name="toy", workers=Workers())
    with worker_groups.WorkerGroups(
        study, None, Desk(status=status, close=told.append), Path(), print
    ) as groups:
        given_up(groups)
        time.sleep(0.5)
    assert told[:3] == ["another version"] * 3


def test_fleets_that_cannot_be_looked_after_are_given_up_with_the_reason(monkeypatch):
    monkeypatch.setattr(worker_groups, "TROUBLE_S", 0.0)
    desk = Desk(status=RuntimeError("the broker is gone"))
    study = SimpleNamespace(name="toy", workers=Workers())
    with worker_groups.WorkerGroups(study, None, desk, Path(), heard=lambda status: None) as groups:
        given_up(groups)
        time.sleep(0.1)  # then it is told
        assert groups.failure == "fleets cannot be looked after: RuntimeError: the broker is gone"
        assert desk.reason == groups.failure


def test_trouble_that_passes_ends_nothing():
    """A broker too late once, a display that fails, a cluster that does not answer."""
    calls = []

    def status():
        calls.append(None)
        if len(calls) == 1:
            raise TimeoutError("late")
        return {"waiting": 0, "running": [], "closed": "enough" if len(calls) == 4 else ""}

    def heard(status):
        raise OSError("no terminal")

    study = SimpleNamespace(name="toy", workers=Workers())
    with worker_groups.WorkerGroups(study, None, Desk(status=status), Path(), heard) as groups:
        given_up(groups)
        assert groups.failure == "enough"


def test_a_cluster_that_cannot_be_seen_is_not_known_to_refuse(monkeypatch):
    def unseen():
        raise TimeoutError

    monkeypatch.setattr(worker_groups.cluster, "free_abandoned", unseen)
    groups = worker_groups.WorkerGroups(SimpleNamespace(workers=Workers()), None, Desk(), Path(), heard=print)
    groups.running = {object(): "fleet-001"}
    assert groups._look({"running": []}) == ""


def test_fleets_that_end_ill_are_replaced_later_and_later_until_all_is_well_for_a_while():
    groups = worker_groups.WorkerGroups(SimpleNamespace(workers=Workers()), None, Desk(), Path(), heard=print)
    pauses = []
    for count in (1, 2, 2, 3, 0, 1):  # a broker that was restarted begins again at 0
        groups._reap({"unwell": count})
        pauses.append(groups.pause)
    assert pauses == [5, 10, 10, 20, 20, 40]
    groups.next_start -= 10 * worker_groups.LONGEST_S
    groups._reap({"unwell": 2})
    assert groups.pause == 5


def test_a_broker_that_was_closed_ends_the_fleets():
    status = {"waiting": 0, "running": [], "closed": "a worker cannot begin: no GPU"}
    study = SimpleNamespace(name="toy", workers=Workers())
    with worker_groups.WorkerGroups(
        study, None, Desk(status=status), Path(), heard=lambda status: None
    ) as groups:
        given_up(groups)
        assert groups.failure == "a worker cannot begin: no GPU"


def test_all_fleets_that_are_wanted_are_asked_for_at_once(monkeypatch):
    """One after the other, an autoscaler would grow machine by machine."""
    asked = []
    over = SimpleNamespace(workers=Workers(groups=4))
    statuses = iter([{"waiting": 3, "running": [{}], "closed": ""}])

    def status():
        asked.append(len(groups.running))
        return next(statuses, {"waiting": 3, "running": [{}], "closed": "enough"})

    monkeypatch.setattr(worker_groups.ray, "wait", lambda refs, **_: ([], refs))
    monkeypatch.setattr(worker_groups.WorkerGroups, "_look", lambda self, status: "")
    monkeypatch.setattr(
        worker_groups.WorkerGroups, "_start", lambda self: self.running.update({object(): "fleet"})
    )
    groups = worker_groups.WorkerGroups(over, None, Desk(status=status), Path(), heard=lambda status: None)
    with groups:
        given_up(groups)
    assert asked == [0, 4]
