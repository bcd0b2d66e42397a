"""What a fleet does when it cannot work: it says why, instead of starting again for ever."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgg_ray import fleet
from dgg_ray.errors import ClusterError
from dgg_ray.sections import Workers


class Desk:
    """A broker whose calls are answered at once; `close` keeps the reason."""

    def __init__(self, **answers):
        self.reason = ""
        answers = {"lost": None, "close": None, **answers}
        for name, answer in answers.items():
            setattr(self, name, SimpleNamespace(remote=self.call(name, answer)))

    def call(self, name, answer):
        def remote(*arguments):
            if name == "close":
                self.reason = arguments[0]
            return answer

        return remote


def got(answer, timeout=None):
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(fleet.ray, "get", got)


def test_a_worker_that_cannot_begin_closes_the_broker_with_the_reason(monkeypatch):
    def workshop(*_):
        raise OSError("the weights are gone")

    monkeypatch.setattr(fleet, "workshop", workshop)
    desk = Desk()
    study = SimpleNamespace(workers=Workers())
    fleet.work_loop({"study": study, "store": None, "broker": desk, "fleet": "fleet-001"})
    assert desk.reason == "a worker cannot begin: OSError: the weights are gone"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_that_pytorch_does_not_find_are_said_before_anything_is_read():
    study = SimpleNamespace(workers=Workers(gpus=1))
    with pytest.raises(ClusterError, match=r"finds no GPU here.*set workers.gpus to 0"):
        fleet.workshop(study, None)


def test_fleets_that_cannot_be_looked_after_are_given_up_with_the_reason():
    desk = Desk(status=RuntimeError("the broker is gone"))
    study = SimpleNamespace(workers=Workers())
    with fleet.Fleets(study, None, desk, Path(), heard=lambda status: None) as fleets:
        fleets.thread.join(timeout=10)
        assert not fleets.thread.is_alive()
        assert fleets.failure == "fleets cannot be looked after: RuntimeError: the broker is gone"
        assert desk.reason == fleets.failure


def test_a_broker_that_was_closed_ends_the_fleets():
    status = {"waiting": 0, "running": [], "closed": "a worker cannot begin: no GPU"}
    study = SimpleNamespace(workers=Workers())
    with fleet.Fleets(study, None, Desk(status=status), Path(), heard=lambda status: None) as fleets:
        fleets.thread.join(timeout=10)
        assert fleets.failure == "a worker cannot begin: no GPU"
