"""The reader answers from the store alone, by a process that may die at any time."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest
from service_samples import parsed, run, sample

import dgg_ray
from dgg_ray.config import registry
from dgg_ray.core.errors import DggError, ResultsError
from dgg_ray.service import views
from dgg_ray.service.reader import Process, Query, Reader, ReaderError
from dgg_ray.storage.stage_store import open_store

pytestmark = pytest.mark.whole
COMMON = {"search": None, "seeds": [0]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the studies `a` and `b`; their results folders are gone."""
    place = tmp_path_factory.mktemp("store")
    for name, alpha in (("a", 0.3), ("b", 1.0)):
        out = tmp_path_factory.mktemp("out")
        study = sample(
            name=name,
            strategy={"name": "dgg", "alpha": alpha, "buffer": 4},
            **COMMON,
            output={"store": str(place)},
        )
        run(study, out)
        shutil.rmtree(out)
    return open_store(place)


def unknown(name: str) -> tuple[str, int]:
    """The state and the run of a study of which the server does not know them."""
    return "", 0


class Clock:
    """A clock that a test advances."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def shared_reader(store, tmp_path_factory):
    reader = Reader(store.url, tmp_path_factory.mktemp("cache"), unknown, clock=Clock())
    yield reader
    reader.close()


@pytest.fixture
def reader(shared_reader):
    """The reader without anything that it knew; its process goes on."""
    for known in (shared_reader.answers, shared_reader.studies, shared_reader.asked, shared_reader.refused):
        known.clear()
    return shared_reader


def wait(reader) -> None:
    """Wait until everything that was queued is done."""
    done: Future[None] = Future()
    reader.queue.put(lambda: done.set_result(None))
    done.result(60)


def publish(store, name: str, **live) -> None:
    document = registry.document_name(name, registry.LIVE)
    store.put_document(document, {"content": {"at": 0.0, "running": [], "queued": 0, **live}})


def opened(store, name: str, folder):
    return dgg_ray.open(registry.fetch_results(store, name, folder))


def test_views_come_from_the_store_alone(store, reader, tmp_path):
    own = opened(store, "a", tmp_path / "a")
    assert reader.view("a", "comparison") == views.view(own, "comparison", {})
    assert reader.view("a", "matrices", setting="replay") == views.view(
        own, "matrices", {"setting": "replay"}
    )
    assert parsed(reader.view("b", "summary"))["name"] == "b"


def test_a_study_with_stages_of_its_own_is_read_from_there(tmp_path):
    own = run(sample(name="own", **COMMON), tmp_path / "out")
    reader = Reader(str(tmp_path / "out" / "stages"), tmp_path / "cache", unknown)
    try:
        assert reader.view("own", "comparison") == views.view(own, "comparison", {})
    finally:
        reader.close()


def test_a_comparison_reads_several_studies(store, reader, tmp_path):
    own = [(opened(store, name, tmp_path / name), "") for name in ("a", "b")]
    assert reader.compare([("a", ""), ("b", "")]) == views.compare(own)


def test_a_repeated_query_does_not_reach_the_process(reader):
    first = reader.view("a", "summary")
    reader.process.running.kill()
    reader.process.running.wait()
    assert reader.view("a", "summary") == first
    assert reader.process.running.returncode is not None  # nobody has started another one


def test_a_process_that_died_is_started_again(reader):
    reader.view("a", "summary")
    killed = reader.process.running
    killed.kill()
    killed.wait()
    assert parsed(reader.view("a", "costs"))["by_part"]
    assert reader.process.running.pid != killed.pid


def test_a_query_that_takes_too_long_is_refused_for_a_while_and_then_tried_again(reader):
    reader.view("a", "summary")
    before, reader.time_limit_s = reader.time_limit_s, 0.0
    with pytest.raises(ReaderError, match="curves of a was not made within 0 s; try again in 30 s"):
        reader.view("a", "curves")
    reader.time_limit_s = before
    with pytest.raises(ReaderError, match="try again"):
        reader.view("a", "curves")
    assert parsed(reader.view("a", "summary"))["begun"]  # other queries go on
    reader.clock.now += 31
    assert parsed(reader.view("a", "curves"))["learning"]


def test_a_study_that_cannot_be_loaded_is_not_loaded_again_for_any_view_of_it(store, reader, monkeypatch):
    document = registry.document_name("broken", registry.STUDY)
    store.put_document(document, {"content": {"raw": {}}})
    sent = []
    ask = Process.ask
    monkeypatch.setattr(
        Process, "ask", lambda self, query, limit: sent.append(query) or ask(self, query, limit)
    )
    try:
        for view in ("summary", "costs", "summary", "tree"):
            with pytest.raises(DggError) as caught:
                reader.view("broken", view)
        assert [query.do for query in sent] == ["load"]
        assert len(caught.traceback) < 12  # the one error was raised four times
        assert parsed(reader.view("a", "summary"))["begun"]
        reader.clock.now += 31
        with pytest.raises(DggError):
            reader.view("broken", "summary")
        assert [query.do for query in sent if query.studies[0][0] == "broken"] == ["load", "load"]
    finally:
        store.remove_document(document)


def test_a_revision_that_cannot_be_loaded_is_tried_once_in_a_while(store, reader, monkeypatch):
    publish(store, "b", queued=7)
    first = reader.revision("b")
    reader.view("b", "summary")
    loads = []

    def refuse(self, query, limit):
        loads.append(query.studies)
        raise ResultsError("damaged")

    monkeypatch.setattr(Process, "ask", refuse)
    publish(store, "b", queued=8)
    reader.studies["b"].building_s = 0.0
    for _ in range(5):
        reader.clock.now += 5
        assert reader.revision("b") == first
        wait(reader)
    assert len(loads) == 1
    assert parsed(reader.view("b", "summary"))["begun"]  # as it was
    reader.clock.now += 31
    reader.revision("b")
    wait(reader)
    assert len(loads) == 2


def test_a_reader_that_is_closed_ends_its_process_and_refuses_who_waits(store, tmp_path):
    reader = Reader(store.url, tmp_path / "cache", unknown)
    wait(reader)
    process = reader.process.running
    process.send_signal(signal.SIGSTOP)  # it never answers
    refusals = []

    def ask(view):
        with pytest.raises(ReaderError, match="is being stopped") as caught:
            reader.view("a", view)
        refusals.append(caught.value)

    waiting = [threading.Thread(target=ask, args=(view,)) for view in ("summary", "costs")]
    for thread in waiting:
        thread.start()
    while len(reader.pending) < 2:
        time.sleep(0.01)
    reader.close()
    for thread in waiting:
        thread.join(60)
    assert process.returncode is not None
    ask("summary")
    assert (len(refusals), reader.process) == (3, None)


@pytest.mark.parametrize("name", ["c", "../a", "a/../a", "", "a\n"])
def test_an_unknown_study_is_refused_without_the_process(store, reader, name):
    with pytest.raises(ResultsError, match="holds no study"):
        reader.view(name, "summary")
    assert (reader.answers, reader.studies) == ({}, {})


def test_mistakes_are_raised_here_with_the_known_names(reader):
    with pytest.raises(ResultsError, match=r"no view is called 'sumary'.*Did you mean 'summary'"):
        reader.view("a", "sumary")
    with pytest.raises(ResultsError, match="its study was simulated"):
        reader.file("a", "adapter")
    assert parsed(reader.view("a", "summary"))["begun"]


def test_a_file_is_made_once_and_again_after_it_was_removed(store, reader, tmp_path):
    file = reader.file("a", "table", name="comparison")
    made_at = file.stat().st_mtime_ns
    assert reader.file("a", "table", name="comparison").stat().st_mtime_ns == made_at
    expected = views.write_file(opened(store, "a", tmp_path / "a"), tmp_path, "table", {"name": "comparison"})
    assert file.read_bytes() == expected.read_bytes()
    file.unlink()
    assert reader.file("a", "table", name="comparison").read_bytes() == expected.read_bytes()


# -- revisions -------------------------------------------------------------------------------------


def test_a_running_study_changes_its_revision_once_the_new_views_are_made(store, reader):
    publish(store, "a")
    first = reader.revision("a")
    reader.view("a", "summary")
    reader.view("a", "costs")
    publish(store, "a", queued=1)
    assert reader.revision("a") == first  # it was looked at a moment ago
    known = reader.studies["a"]
    known.building_s = 0.0
    reader.clock.now += 3
    assert reader.revision("a") == first  # looked at, and too early for a change
    assert not known.refreshing
    reader.clock.now += 3
    assert reader.revision("a") == first  # until the views are there
    wait(reader)
    second = reader.revision("a")
    assert second != first
    for name in ("summary", "costs"):
        assert Query("view", (("a", second),), name) in reader.answers
    reader.process.running.kill()  # so that a view which was not made again would need another process
    reader.process.running.wait()
    assert parsed(reader.view("a", "summary"))["begun"]
    assert reader.process.running.returncode is not None


def test_a_revision_lasts_at_least_twenty_times_as_long_as_it_took_to_build(store, reader):
    publish(store, "a", queued=2)
    first = reader.revision("a")
    reader.view("a", "summary")
    known = reader.studies["a"]
    assert known.building_s > 0
    known.building_s = 3.0
    publish(store, "a", queued=3)
    reader.clock.now += 59
    assert reader.revision("a") == first
    assert not known.refreshing
    reader.clock.now += 3
    reader.revision("a")
    wait(reader)
    assert reader.revision("a") != first


def test_a_study_that_has_ended_is_answered_by_what_it_ended_with(store, reader):
    publish(store, "b")
    first = reader.revision("b")
    reader.view("b", "summary")
    reader.studies["b"].building_s = 1000.0
    publish(store, "b", ended="ended")
    reader.clock.now += 3
    second = reader.revision("b")
    assert second != first
    reader.view("b", "summary")
    assert Query("view", (("b", second),), "summary") in reader.answers


def test_results_are_looked_at_again_as_soon_as_the_server_knows_that_a_study_is_over(
    store, reader, monkeypatch
):
    """Whoever waits for the end and asks then gets no answer from before, not even for a moment."""
    state = ["running", 1]
    monkeypatch.setattr(reader, "state_and_run", lambda name: tuple(state))
    publish(store, "b", queued=9)
    first = reader.revision("b")
    publish(store, "b", queued=0, ended="ended")
    assert reader.revision("b") == first  # it was looked at a moment ago
    state[0] = "finished"
    second = reader.revision("b")
    assert second != first
    state[:] = ["finished", 2]  # it was resumed, and over again at once
    publish(store, "b", queued=1)  # its process was killed before it could say so
    assert reader.revision("b") not in (first, second)


def test_what_was_being_made_when_a_study_ended_does_not_come_back(store, reader, monkeypatch):
    publish(store, "b", queued=11)
    reader.revision("b")
    reader.view("b", "summary")
    publish(store, "b", queued=12)
    reader.studies["b"].building_s = 0.0
    reader.clock.now += 6
    hold: Future[None] = Future()
    reader.queue.put(hold.result)
    reader.revision("b")
    assert reader.studies["b"].refreshing
    publish(store, "b", ended="ended")
    monkeypatch.setattr(reader, "state_and_run", lambda name: ("finished", 1))
    last = reader.revision("b")
    hold.set_result(None)
    wait(reader)
    assert reader.revision("b") == last


def test_a_view_that_nobody_asked_for_again_is_not_made_again(store, reader):
    publish(store, "a", queued=4)
    reader.view("a", "summary")
    reader.view("a", "costs")
    for queued in (5, 6):
        publish(store, "a", queued=queued)
        reader.studies["a"].building_s = 0.0
        reader.clock.now += 6
        reader.revision("a")
        wait(reader)
        if queued == 5:
            reader.view("a", "summary")
    made = {query.what for query in reader.answers if query.studies == (("a", reader.revision("a")),)}
    assert made == {"summary", ""}  # "" is the load


def test_the_oldest_answers_are_forgotten_beyond_the_limit(reader):
    sizes = {name: len(reader.view("a", name)) for name in ("summary", "costs", "search")}
    reader.answers.clear()
    before, reader.cache_bytes = reader.cache_bytes, sizes["costs"] + sizes["search"]
    for name in ("summary", "costs", "search"):
        reader.view("a", name)
    reader.cache_bytes = before
    assert [query.what for query in reader.answers] == ["costs", "search"]


def test_the_server_imports_nothing_heavy():
    heavy = "pandas torch scipy matplotlib ray optuna transformers sklearn"
    modules = "sys, dgg_ray.service.app, dgg_ray.service.reader, dgg_ray.service.server"
    code = f"import {modules}; print([m for m in {heavy.split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_study_that_is_read_by_its_name_proposes_what_was_run(tmp_path):
    """The order of the parameters decides what Optuna draws for each, so the store keeps it."""
    space = {"strategy.buffer": [4, 8], "strategy.alpha": [0, 0.5, 1], "adapter.rank": [4, 8]}
    search = {"space": space, "trials": 3, "parallel": 1}
    study = sample(search=search, protocol={"baselines": []}, output={"store": str(tmp_path / "store")})
    results = run(study, tmp_path / "out").results
    fetched = registry.fetch_results(open_store(tmp_path / "store"), "toy", tmp_path / "copy")
    copy = dgg_ray.open(fetched).results
    assert list(copy.archive.study.search.space) == list(space)
    assert copy.evaluated == results.evaluated
    assert len(results.evaluated) > 1
