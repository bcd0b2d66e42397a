"""What a fleet does when it cannot work: it says why, instead of starting again for ever."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgg_ray import cluster, fleet, logs
from dgg_ray.errors import ClusterError, OtherVersion, Refused, StoreError
from dgg_ray.sections import Workers
from dgg_ray.simulate import Simulated
from dgg_ray.stages import Work


class Desk:
    """A broker whose calls are answered at once; `close` keeps the reason."""

    def __init__(self, **answers):
        self.reason, self.calls = "", []
        answers = dict.fromkeys(("lost", "close", "tick", "done", "unwell")) | answers
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=self.call(name, answer)))

    def call(self, name, answer):
        def remote(*arguments):
            if name == "close":
                self.reason = arguments[0]
            elif name != "tick":
                self.calls.append((name, *arguments))
            return answer(*arguments) if callable(answer) else answer

        return remote


def got(answer, timeout=None):
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(fleet.ray, "get", got)
    monkeypatch.setattr(fleet.ray, "cancel", lambda ref: None)  # else it would start a Ray of its own
    monkeypatch.setattr(fleet.cluster, "free_abandoned", lambda: 0)
    yield
    assert not fleet.ray.is_initialized()
    logs.ended()  # the loop of a worker ran in this process


def test_a_worker_that_cannot_begin_closes_the_broker_with_the_reason(monkeypatch):
    def workshop(*_):
        raise OSError("the weights are gone")

    monkeypatch.setattr(fleet, "workshop", workshop)
    desk = Desk()
    study = SimpleNamespace(name="toy", workers=Workers())
    fleet.work_loop(given(desk, study))
    assert desk.reason == "a worker cannot begin: OSError: the weights are gone"


def test_data_that_do_not_come_end_the_fleet_and_not_the_study(monkeypatch):
    for error, said in ((StoreError("no answer"), "unwell"), (Refused("not allowed"), "")):

        def workshop(*_, error=error):
            raise error

        monkeypatch.setattr(fleet, "workshop", workshop)
        desk = Desk()
        fleet.work_loop(given(desk, SimpleNamespace(name="toy", workers=Workers())))
        assert bool(desk.reason) == (not said)
        assert [name for name, *_ in desk.calls if name != "lost"] == [said] * bool(said)


def given(desk, study=None, store=None, code=None):
    """What a worker of a fleet is given."""
    what = {"study": study, "store": store, "broker": desk, "fleet": "fleet-001", "life": "0123"}
    return {**what, "code": code or cluster.code()}


def test_a_worker_with_another_version_says_both_and_what_to_do_before_it_reads_the_study():
    desk = Desk()
    fleet.work_loop(given(desk, code="0.0.9 (0123456789ab)"))
    assert f"another dgg_ray than the driver: {cluster.code()}, not 0.0.9 (0123456789ab)" in desk.reason
    assert "install the driver's on every machine" in desk.reason


class Shop(Simulated):
    """Every stage ends with this error."""

    def __init__(self, problem):
        self.problem, self.where = problem, dict

    def obtain(self, work):
        raise self.problem


def served(world, monkeypatch, problem):
    """Calls to the broker that a worker makes over one stage that ends with the error."""
    (stage,) = world.path("ones")
    works = iter([Work(stage), None])
    desk = Desk(take=lambda *_: next(works))
    monkeypatch.setattr(fleet, "workshop", lambda *_: Shop(problem))
    fleet.work_loop(given(desk, SimpleNamespace(name="toy", workers=Workers()), world.store))
    return desk.calls, world.store.failure(stage)


def test_a_full_disk_is_not_the_stages_fault(world, monkeypatch):
    calls, failure = served(world, monkeypatch, StoreError("cannot write: no space left"))
    assert [name for name, *_ in calls] == ["lost", "take", "unwell"]  # no other take: the fleet ends
    assert failure is None


@pytest.mark.parametrize("problem", [OtherVersion("by another version"), ValueError("a corrupt image")])
def test_what_a_stage_ends_with_everywhere_is_kept_with_it_and_the_next_is_taken(world, monkeypatch, problem):
    calls, failure = served(world, monkeypatch, problem)
    assert [name for name, *_ in calls] == ["lost", "take", "done", "take"]
    assert failure["error"] == type(problem).__name__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_that_pytorch_does_not_find_are_said_before_anything_is_read():
    study = SimpleNamespace(name="toy", workers=Workers(gpus=1))
    with pytest.raises(ClusterError, match=r"finds no GPU here.*set workers.gpus to 0"):
        fleet.workshop(study, None)


def test_fleets_that_cannot_be_looked_after_are_given_up_with_the_reason():
    desk = Desk(status=RuntimeError("the broker is gone"))
    study = SimpleNamespace(name="toy", workers=Workers())
    with fleet.Fleets(study, None, desk, Path(), heard=lambda status: None) as fleets:
        fleets.thread.join(timeout=10)
        assert not fleets.thread.is_alive()
        assert fleets.failure == "fleets cannot be looked after: RuntimeError: the broker is gone"
        assert desk.reason == fleets.failure


def test_a_broker_that_was_closed_ends_the_fleets():
    status = {"waiting": 0, "running": [], "closed": "a worker cannot begin: no GPU"}
    study = SimpleNamespace(name="toy", workers=Workers())
    with fleet.Fleets(study, None, Desk(status=status), Path(), heard=lambda status: None) as fleets:
        fleets.thread.join(timeout=10)
        assert fleets.failure == "a worker cannot begin: no GPU"


def test_all_fleets_that_are_wanted_are_asked_for_at_once(monkeypatch):
    """One after the other, an autoscaler would grow machine by machine."""
    asked = []
    over = SimpleNamespace(workers=Workers(fleets=4))
    statuses = iter([{"waiting": 3, "running": [{}], "closed": ""}])

    def status():
        asked.append(len(fleets.running))
        return next(statuses, {"waiting": 3, "running": [{}], "closed": "enough"})

    monkeypatch.setattr(fleet.ray, "wait", lambda refs, **_: ([], refs))
    monkeypatch.setattr(fleet.Fleets, "_start", lambda self: self.running.update({object(): "fleet"}))
    fleets = fleet.Fleets(over, None, Desk(status=status), Path(), heard=lambda status: None)
    with fleets:
        fleets.thread.join(timeout=10)
    assert asked == [0, 4]
