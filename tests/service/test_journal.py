"""The journal: one history for all servers of a store."""

import json
import threading

import pytest

from dgg_ray.service.journal import Journal, event_name
from dgg_ray.service.state import State
from dgg_ray.storage.backend import LocalBackend
from dgg_ray.storage.fsspec_backend import FsspecBackend


@pytest.fixture(params=["folder", "memory"])
def backend(request, tmp_path):
    if request.param == "folder":
        return LocalBackend(tmp_path)
    return FsspecBackend(f"memory://{tmp_path.name}")


def submitted(name, state: State):
    if name in state.studies:
        return None
    facts = {"text": "", "question": "", "needs": {}, "priority": 0}
    return {"kind": "submitted", "by": "ada", "study": name, **facts}


def test_another_server_sees_the_same_history(backend):
    journals = [Journal(backend) for _ in range(2)]
    for i in range(6):
        journals[i % 2].commit(lambda state, i=i: submitted(f"s{i}", state))
    late = Journal(backend)
    for journal in (*journals, late):
        assert list(journal.catch_up().studies) == [f"s{i}" for i in range(6)]
        assert journal.state.number == 6
    assert [s.number for s in late.state.studies.values()] == [1, 2, 3, 4, 5, 6]


def test_of_two_that_decide_at_once_the_second_decides_again(backend):
    first, second = Journal(backend), Journal(backend)
    second.catch_up()
    seen = []

    def decide(state):
        seen.append(state.number)
        if len(seen) == 1:  # the other is faster
            first.commit(lambda state: submitted("taken", state))
        return submitted("taken", state)

    assert second.commit(decide) is None
    assert seen == [0, 1]
    assert list(second.state.studies) == ["taken"]


def test_many_threads_take_a_name_once_and_lose_no_event(tmp_path):
    wins, names = [], [f"s{i}" for i in range(8)]

    def work():
        journal = Journal(LocalBackend(tmp_path))
        for name in names:
            if journal.commit(lambda state, name=name: submitted(name, state)):
                wins.append(name)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == names
    assert Journal(LocalBackend(tmp_path)).catch_up().number == 8


def test_an_event_that_was_cut_off_changes_nothing(tmp_path):
    backend = LocalBackend(tmp_path)
    backend.create(event_name(1), b'{"kind": "subm')
    journal = Journal(backend)
    journal.commit(lambda state: submitted("a", state))
    assert list(journal.state.studies) == ["a"]
    assert json.loads(backend.read(event_name(2)))["study"] == "a"


def test_events_of_a_later_version_change_nothing(tmp_path):
    journal = Journal(LocalBackend(tmp_path))
    journal.commit(lambda state: {"kind": "never heard of", "by": "x"})
    assert journal.state.number == 1
    assert journal.state == State(number=1)
