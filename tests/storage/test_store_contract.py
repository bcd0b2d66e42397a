"""What every store promises, wherever it lies: one suite on a folder, in memory, by fsspec, and on S3."""

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgg_ray.core.errors import StoreError
from dgg_ray.core.stage import Evaluation, WorkItem
from dgg_ray.storage import manifest, node_cache, retry
from dgg_ray.storage.backend import Damaged
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.manifest import name_of
from dgg_ray.storage.reach import READ_S, connected, fault
from dgg_ray.storage.remote_store import RemoteStore, Url
from dgg_ray.storage.stage_store import DRAFT_S, StageStore
from dgg_ray.storage.store_view import Glance
from dgg_ray.training import checkpoints
from dgg_ray.training.checkpoints import Snapshot
from dgg_ray.training.simulated import MemoryStore

from servers import ENVIRONMENT, Wire, s3_server  # isort: skip
from stage_samples import read_weights, some_stages, weights  # isort: skip

WITH_FILES = ("folder", "fsspec", pytest.param("s3", marks=pytest.mark.whole))
EVERYWHERE = ("memory", *WITH_FILES)


@pytest.fixture(scope="session")
def s3_port():
    with s3_server() as port:
        yield port


@pytest.fixture(scope="session")
def clients():
    """Of S3, by what they were made with: making one takes longer than most tests."""
    return {}


@pytest.fixture()
def s3(s3_port, clients, monkeypatch):
    """A URL at which there is nothing."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")

    def client(url, *seconds):
        aws = [item for item in os.environ.items() if item[0].startswith("AWS_")]
        how = (url.partition("://")[0], seconds, frozenset(aws))
        if how not in clients:
            clients[how] = connected(url, *seconds)
        return clients[how]

    monkeypatch.setattr("dgg_ray.storage.remote_store.connected", client)
    if "bucket" not in clients:
        clients["bucket"] = f"s3://bucket-{uuid.uuid4().hex[:12]}"
        client(clients["bucket"], READ_S).mkdir(clients["bucket"])
    return f"{clients['bucket']}/a place {uuid.uuid4().hex[:12]}"


@pytest.fixture()
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    match request.param:
        case "folder":
            return StageStore(tmp_path / "stages")
        case "memory":
            return MemoryStore()
        case "fsspec":
            return RemoteStore(f"memory://{uuid.uuid4().hex}/stages")
    return RemoteStore(request.getfixturevalue("s3"))


everywhere = pytest.mark.parametrize("store", EVERYWHERE, indirect=True)
with_files = pytest.mark.parametrize("store", WITH_FILES, indirect=True)


def anew(store):
    """The store as another process sees it."""
    return store if isinstance(store, MemoryStore) else pickle.loads(pickle.dumps(store))


def evaluation(name):
    return Evaluation(name, "test", f"key of {name}")


def cell(name, score=0.5):
    return {"evaluation": evaluation(name).key, "task": name, "split": "test", "score": score, "n": 4}


def nothing(folder):
    pass


# -- stages ----------------------------------------------------------------------------------------


@everywhere
def test_what_is_published_is_there_for_all_and_what_is_not_is_not(store):
    first, second = some_stages()
    assert store.record(first) is None
    assert store.open(first) is None
    store.publish(first, {"trained_task": "tâche 0", "cost": {"steps": 3}}, nothing)
    for seen in (store, anew(store)):
        assert seen.record(first)["trained_task"] == "tâche 0"
        assert seen.record(second) is None
        assert [record["key"] for record in seen] == [first.key]


@everywhere
def test_only_exams_that_were_not_sat_are_missing_and_sittings_are_merged(store):
    (stage,) = some_stages(1)
    a, b, c = evaluation("a"), evaluation("b"), evaluation("c")
    assert store.missing(WorkItem(stage, (a,))) is None
    store.publish(stage, {}, nothing)
    assert store.missing(WorkItem(stage, (a, b))) == (a, b)
    store.sit(stage, [cell("a", 0.25)], nothing, {"study": "one"})
    store.sit(stage, [cell("b", 0.75)], nothing, {"study": "other"})
    for seen in (store, anew(store)):
        assert seen.has(WorkItem(stage, (a, b)))
        assert seen.missing(WorkItem(stage, (a, c))) == (c,)
        assert {k: v["score"] for k, v in seen.cells(stage).items()} == {a.key: 0.25, b.key: 0.75}
        assert {sitting["study"] for sitting in seen.sittings(stage.key)} == {"one", "other"}
        ((record, sittings),) = seen.finished()
        assert (record["key"], len(sittings)) == (stage.key, 2)


@with_files
def test_files_come_back_as_they_were_whatever_their_names(store):
    first, second = some_stages()
    store.publish(first, {}, weights("w"))
    store.publish(second, {}, nothing)
    for seen in (store, anew(store)):
        assert read_weights(seen.open(first)) == "w"
        assert (seen.open(first) / "empty").read_bytes() == b""
        assert list(seen.open(second).iterdir()) == []
        assert seen.record(first)["bytes"] == 1


@with_files
def test_the_first_of_two_publications_stays_and_the_other_leaves_nothing(store):
    (stage,) = some_stages(1)
    for text in ("first", "second"):
        store.publish(stage, {"of": text}, weights(text))
    seen = anew(store)
    assert seen.record(stage)["of"] == "first"
    assert read_weights(seen.open(stage)) == "first"
    assert len({name.split("/")[2] for name in store.objects.names("files/")}) == 1
    assert store.objects.names("writers/") == []


@with_files
def test_damaged_files_are_noticed_and_the_stage_is_learned_again(store, tmp_path):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("right"))
    store.sit(stage, [cell("a")], nothing)
    for name in store.objects.names("files/"):
        if "poids" in name or "%" in name:
            store.objects.write(name, b"wrong")
    forget_cache(tmp_path)
    seen = anew(store)
    with pytest.warns(UserWarning, match=r"damaged \(adapter/poids"):
        assert seen.open(stage) is None
    assert seen.missing(WorkItem(stage)) is None
    assert len(seen.objects.names("damaged/")) == 1
    seen.publish(stage, {}, weights("right"))
    assert read_weights(anew(store).open(stage)) == "right"
    assert seen.has(WorkItem(stage, (evaluation("a"),)))  # learning is repeatable, so its sittings still hold


@with_files
@pytest.mark.parametrize("harm", ["changed", "cut"])
def test_damaged_records_are_noticed_without_the_files(store, harm):
    (stage,) = some_stages(1)
    store.publish(stage, {"loss": 1.25}, weights("w"))
    name = name_of(stage.key)
    data = store.objects.read(name)
    store.objects.write(name, data.replace(b"1.25", b"1.26") if harm == "changed" else data[:100])
    seen = anew(store)
    with pytest.warns(UserWarning, match="the record is not what was written"):
        assert seen.record(stage) is None
    assert seen.missing(WorkItem(stage)) is None


@with_files
def test_lost_files_are_noticed(store, tmp_path):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    store.objects.clear(f"files/{stage.key}")
    forget_cache(tmp_path)
    seen = anew(store)
    with pytest.warns(UserWarning, match="is missing"):
        assert seen.open(stage) is None
    assert seen.record(stage) is None


def forget_cache(tmp_path):
    """As on another machine."""
    for place in (tmp_path / "cache" / "entries").glob("*"):
        node_cache.drop(place)
        shutil.rmtree(place)


@with_files
def test_a_writer_that_fails_leaves_nothing_to_be_seen(store):
    (stage,) = some_stages(1)

    def full(folder):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"No space left.*Free some space"):
        store.publish(stage, {}, full)
    assert store.record(stage) is None
    assert store.objects.names("") == []
    assert list(store.objects.drafts()) == []


@with_files
def test_files_of_a_writer_that_died_are_swept_up_a_day_later(store, monkeypatch):
    first, second = some_stages()
    store.publish(first, {}, weights("w"))
    with monkeypatch.context() as patched:
        patched.setattr(type(store.objects), "create", lambda *_, **__: os.kill(0, 0) or died())
        with suppress(KeyboardInterrupt):
            store.publish(second, {}, weights("lost"))
    assert store.record(second) is None
    assert any(second.key in name for name in store.objects.names("files/"))
    store.sweep()
    assert any(second.key in name for name in store.objects.names("files/"))  # it may still be at it
    monkeypatch.setattr("dgg_ray.storage.stage_store.DRAFT_S", -DRAFT_S)
    store.sweep()
    assert {name.split("/")[1] for name in store.objects.names("files/")} == {first.key}
    assert store.objects.names("writers/") == []
    assert read_weights(store.open(first)) == "w"


def died():
    raise KeyboardInterrupt


@with_files
def test_a_discarded_stage_is_as_if_it_had_never_been(store):
    first, second = some_stages()
    for stage in (first, second):
        store.publish(stage, {}, weights("x" * 1000))
        store.sit(stage, [cell("a")], lambda f: (f / "answers").write_bytes(b"y" * 100))
    store.lease(first.key, Holder("ended", "elsewhere", 1), 0.0)
    before = sum(map(len, store.objects.names("")))
    assert 1100 < store.discard(first.key) < 10_000
    assert store.discard(first.key) == 0
    for seen in (store, anew(store)):
        assert seen.record(first) is None
        assert seen.open(first) is None
        assert seen.cells(first) == {}
        assert read_weights(seen.open(second)) == "x" * 1000
        assert seen.has(WorkItem(second, (evaluation("a"),)))
    assert before > sum(map(len, store.objects.names("")))
    assert not any(first.key in name for name in store.objects.names(""))


@with_files
def test_a_stage_shed_of_its_adapter_keeps_its_record_and_is_learned_again(store, tmp_path, monkeypatch):
    def fill(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "theta").write_bytes(b"x" * 1000)

    stage, _ = some_stages()
    store.publish(stage, {}, fill)
    store.sit(stage, [cell("a")], lambda f: (f / "answers").write_bytes(b"y" * 100))
    held = store.size()
    assert store.discard(stage.key, "adapter") == 1000
    assert held - 1000 < store.size() < held - 900  # a note tells of it
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "another node"))
    seen = anew(store)
    assert seen.has(WorkItem(stage, (evaluation("a"),)))
    with pytest.warns(UserWarning, match="shed of its weights to free space; .* done again"):
        assert seen.open(stage) is None
    assert seen.record(stage) is None
    seen.publish(stage, {}, fill)
    assert (seen.open(stage) / "adapter" / "theta").read_bytes() == b"x" * 1000
    assert seen.has(WorkItem(stage, (evaluation("a"),)))
    assert seen.objects.names("shed/") == []


@everywhere
def test_a_glance_sees_what_was_there_and_nothing_after(store):
    first, second = some_stages()
    store.publish(first, {}, nothing)
    store.sit(first, [cell("a")], nothing)
    seen = Glance(store)
    assert seen.has(WorkItem(first, (evaluation("a"),)))
    if isinstance(store, MemoryStore):
        return
    store.publish(second, {}, nothing)
    store.sit(first, [cell("b")], nothing)
    assert seen.record(second) is None
    assert seen.missing(WorkItem(first, (evaluation("b"),))) == (evaluation("b"),)
    assert Glance(store).record(second)["key"] == second.key


# -- beside the stages -----------------------------------------------------------------------------


@everywhere
def test_notes_are_replaced_listed_and_forgotten_whatever_they_are_called(store):
    names = ["studies/été ? #1/live", "studies/a*b [x]/live", "studies/a", "sentinels/a"]
    for name in names:
        store.note(name, {"of": "nobody"})
        store.note(name, {"of": name})
    seen = anew(store)
    assert [seen.noted(name) for name in names] == [{"of": name} for name in names]
    assert sorted(seen.notes("studies/")) == sorted((name, {"of": name}) for name in names[:3])
    store.forget(names[0])
    store.forget("studies/never")
    assert seen.noted(names[0]) is None
    assert len(list(seen.notes("studies/"))) == 2


@everywhere
def test_probes_and_failures_are_kept(store):
    (stage,) = some_stages(1)
    profile = WorkItem(stage, profile="1xcpu1-auto")
    assert not store.has(profile)
    store.measure(profile, {"bytes": 7})
    store.fail(stage, {"error": "NotFinite", "message": "naïve", "traceback": ""})
    assert anew(store).has(profile)
    assert [record["bytes"] for record in anew(store).profiles()] == [7]
    assert anew(store).failure(stage)["message"] == "naïve"
    store.publish(stage, {}, nothing)
    assert anew(store).failure(stage) is None


@everywhere
def test_a_lease_is_one_holders_until_it_is_given_back(store):
    a, b = Holder("a", "elsewhere", 1), Holder("b", "elsewhere", 2)
    assert store.lease("key", a) is None
    assert store.lease("key", a) is None  # renewed
    assert anew(store).lease("key", b) == a
    assert store.lease("other key", b) is None
    store.release("key", b)  # not theirs
    assert store.lease("key", b) == a
    anew(store).release("key", a)
    assert store.lease("key", b) is None
    assert anew(store).lease("key", a) == b


@everywhere
def test_a_place_that_is_fit_passes_the_check_and_keeps_nothing_of_it(store):
    store.check()
    assert store.objects.names("") == []


@everywhere
def test_clocks_that_are_apart_are_told(store, monkeypatch):
    real = type(store.objects).modified
    monkeypatch.setattr(type(store.objects), "modified", lambda self, name: real(self, name) + 20)
    with pytest.raises(StoreError, match=r"clocks of this machine .* \d\d s apart"):
        store.check()
    monkeypatch.setattr(type(store.objects), "modified", lambda self, name: real(self, name) - 10)
    store.check()


@with_files
def test_snapshots_are_replaced_whole_and_removed(store):
    (stage,) = some_stages(1)
    assert checkpoints.read(store, stage) is None
    for step in (1, 2):
        taken = Snapshot([0.5] * step, 1.5, {"seen": [1]}, {"theta": torch.full((3,), float(step))})
        checkpoints.write(store, stage, taken)
    found = checkpoints.read(anew(store), stage)
    assert (found.losses, found.seconds, found.memory) == ([0.5, 0.5], 1.5, {"seen": [1]})
    assert found.tensors["theta"].tolist() == [2.0] * 3
    store.publish(stage, {}, nothing)
    store.sweep()
    assert checkpoints.read(store, stage) is None
    assert list(store.objects.drafts()) == []


# -- several processes -----------------------------------------------------------------------------

PUBLISH = """
import pickle, sys
sys.path.insert(0, sys.argv[3])
from stage_samples import some_stages, weights
store, who = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2]
if who == "dies":
    import os, signal
    type(store.objects).create = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    store.publish(some_stages(1)[0], {}, weights("half"))
store.check()
print("ready", flush=True)
sys.stdin.readline()
for stage in some_stages(8):
    store.publish(stage, {"of": who}, weights(who))
"""
TOGETHER = ("folder", "s3")


@contextmanager
def publishing(store, who):
    """A process that publishes when it is given a line."""
    command = [sys.executable, "-c", PUBLISH, pickle.dumps(store).hex(), who, str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.mark.whole
@pytest.mark.parametrize("store", TOGETHER, indirect=True)
def test_two_processes_that_publish_the_same_leave_each_stage_whole(store, tmp_path):
    with publishing(store, "one") as one, publishing(store, "other") as other:
        both = (one, other)
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(120) for process in both] == [0, 0]
    forget_cache(tmp_path)
    for stage in some_stages(8):
        of = store.record(stage)["of"]
        assert read_weights(store.open(stage)) == of
    assert (
        len({name.rpartition("/adapter")[0] for name in store.objects.names("files/") if "adapter" in name})
        == 8
    )
    assert store.objects.names("writers/") == []


@pytest.mark.whole
@pytest.mark.parametrize("store", TOGETHER, indirect=True)
def test_a_writer_that_is_killed_before_its_manifest_has_written_nothing(store):
    with publishing(store, "dies") as process:
        assert process.wait(120) == -signal.SIGKILL
    (stage,) = some_stages(1)
    assert store.record(stage) is None
    assert list(store) == []
    assert store.objects.names("files/") != []
    store.publish(stage, {}, weights("whole"))
    assert read_weights(store.open(stage)) == "whole"


# -- the node's cache ------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["fsspec"], indirect=True)
def test_what_was_fetched_once_is_not_fetched_again(store, tmp_path, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    forget_cache(tmp_path)
    assert read_weights(anew(store).open(stage)) == "w"
    monkeypatch.setattr(Url, "together", lambda *_: pytest.fail("fetched again"))
    assert read_weights(anew(store).open(stage)) == "w"


@pytest.mark.parametrize("store", ["fsspec"], indirect=True)
def test_a_damaged_copy_in_the_cache_is_fetched_again(store):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    (store.open(stage) / "adapter" / "poids – 重み.txt").write_text("v")
    assert read_weights(store.open(stage)) == "w"
    assert store.objects.names("damaged/") == []


def test_the_cache_keeps_to_its_size_and_the_least_recently_used_go_first(tmp_path):
    held = node_cache.Cache(tmp_path, gigabytes=3500e-9)
    for n, name in enumerate("abc"):
        place = held.get(name, lambda folder: (folder / "file").write_bytes(b"x" * 1000), lambda folder: None)
        os.utime(place, (n, n))
        node_cache.drop(place)
    os.utime(held.place("a"), (10, 10))
    place = held.get("d", lambda folder: (folder / "file").write_bytes(b"x" * 1000), lambda folder: None)
    assert {name for name in "abcd" if held.place(name).exists()} == {"a", "c", "d"}
    node_cache.drop(place)


def test_what_a_process_has_in_use_stays_in_the_cache(tmp_path):
    held = node_cache.Cache(tmp_path, gigabytes=500e-9)
    place = held.get("a", lambda folder: (folder / "file").write_bytes(b"x" * 1000), lambda folder: None)
    code = (
        "import sys, pathlib, dgg_ray.storage.node_cache as c; c.Cache(pathlib.Path(sys.argv[1]), 0).trim()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert place.exists()
    node_cache.drop(place)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not place.exists()


# -- what goes wrong on the way --------------------------------------------------------------------


@pytest.fixture()
def wire(s3_port, s3, monkeypatch):
    wire = Wire(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
    yield wire
    wire.cut()


@pytest.fixture()
def far(wire, s3, tmp_path, monkeypatch):
    """A store behind the wire."""
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    return RemoteStore(s3)


@pytest.mark.whole
@pytest.mark.parametrize("trouble", ["late", "busy", "refused"])
def test_what_passes_is_waited_for(far, wire, trouble):
    import threading

    (stage,) = some_stages(1)
    back = threading.Timer(1.5, wire.open)
    if trouble == "late":
        wire.delay = 0.3
    elif trouble == "busy":
        wire.busy = 3
    else:
        wire.cut()
        back.start()
    far.publish(stage, {}, weights("w"))
    assert read_weights(anew(far).open(stage)) == "w"
    assert wire.busy == 0
    if trouble == "refused":
        back.join()


@pytest.mark.whole
def test_what_does_not_pass_is_told_after_a_while(far, wire, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE_S", 1.0)
    wire.cut()
    with pytest.raises(StoreError, match=r"did not answer as it should for 1 s.*run the study again"):
        far.record(some_stages(1)[0])


@pytest.mark.whole
def test_a_bucket_that_is_not_there_is_named_at_once(s3):
    store = RemoteStore("s3://no-such-bucket/stages")
    (stage,) = some_stages(1)
    for ask in (store.check, lambda: store.record(stage), lambda: list(store), lambda: store.note("a", {})):
        with pytest.raises(StoreError, match="no-such-bucket/stages: there is no such bucket; make it"):
            ask()


@pytest.mark.whole
def test_missing_credentials_are_named_at_once(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"not allowed.*give this machine credentials"):
        RemoteStore(s3).check()


def test_refused_credentials_are_told_at_once_and_nothing_is_tried_twice():
    asked = []

    def refused():
        asked.append(1)
        raise PermissionError("The AWS Access Key Id you provided does not exist in our records.")

    with pytest.raises(StoreError, match=r"s3://b: not allowed.*does not exist in our records"):
        retry.ask(refused, "s3://b")
    assert len(asked) == 1


def test_an_answer_that_was_lost_on_the_way_is_not_taken_for_another_writers(monkeypatch):
    url = Url(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(retry, "PAUSE_S", 0.01)
    real, lost = type(url)._create, [True]

    def creates_and_loses_the_answer(self, at, data):
        real(self, at, data)
        if lost.pop() if lost else False:
            raise TimeoutError

    monkeypatch.setattr(Url, "_create", creates_and_loses_the_answer)
    assert url.create("a", b"mine")
    assert not url.create("a", b"another's")
    assert url.read("a") == b"mine"


def test_a_place_that_overwrites_what_is_there_fails_the_check(monkeypatch):
    store = RemoteStore(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(Url, "create", lambda self, name, data, lasting=True: self.write(name, data) or True)
    with pytest.raises(
        StoreError, match=r"does not keep things as a store needs it \(created True, created again True"
    ):
        store.check()


def test_a_full_disk_under_a_folder_names_what_to_do(tmp_path, monkeypatch):
    store, (stage,) = StageStore(tmp_path), some_stages(1)
    store.publish(some_stages(2)[1], {}, weights("w"))

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dgg_ray.storage.backend.write_all", full)
    with pytest.raises(StoreError, match=r"No space left on device. Free some space or name another folder"):
        store.publish(stage, {}, weights("w"))
    assert store.record(stage) is None
    with pytest.raises(StoreError, match="cannot be written"):
        store.check()
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]


def test_a_store_says_where_it_is(tmp_path):
    assert StageStore(tmp_path / "a").url == str(tmp_path / "a")
    assert RemoteStore("s3://bucket/a").url == "s3://bucket/a"
    assert json.loads(manifest.seal({"a": 1}))["of"] == {"a": 1}
    assert replace(RemoteStore("s3://bucket/a"), cache_gb=1) == RemoteStore("s3://bucket/a", 1)


# -- faults that are not the store's, and answers that were lost -----------------------------------

fsspec_store = pytest.mark.parametrize("store", ["fsspec"], indirect=True)


@fsspec_store
def test_what_is_remembered_may_grow_while_it_is_looked_at(store, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, nothing)
    for name in "ab":
        store.sit(stage, [cell(name)], nothing)
    assert len(store.cells(stage)) == 2
    real = manifest.unseal

    def another_thread_reads_too(data):
        store.objects.remember(name_of(stage.key, uuid.uuid4().hex[:16]), data)
        return real(data)

    monkeypatch.setattr(manifest, "unseal", another_thread_reads_too)
    assert store.missing(WorkItem(stage, (evaluation("a"), evaluation("b")))) == ()


@pytest.mark.parametrize("store", ["folder", "fsspec"], indirect=True)
def test_a_writer_whose_manifest_was_made_though_it_was_told_otherwise_keeps_its_files(store, monkeypatch):
    (stage,) = some_stages(1)
    real = type(store.objects).create
    with monkeypatch.context() as patched:
        patched.setattr(
            type(store.objects), "create", lambda self, name, data: real(self, name, data) and False
        )
        store.publish(stage, {}, weights("w"))
    assert read_weights(anew(store).open(stage)) == "w"


def test_a_link_that_was_made_though_the_answer_was_lost_is_ours(tmp_path, monkeypatch):
    objects, real = StageStore(tmp_path).objects, os.link

    def links_and_is_asked_again(draft, file):
        for _ in range(2):
            real(draft, file)

    monkeypatch.setattr(os, "link", links_and_is_asked_again)
    assert objects.create("a/b", b"mine")
    assert not objects.create("a/b", b"mine too")
    assert objects.names("") == ["a/b"]


@fsspec_store
def test_a_disk_that_damages_what_is_fetched_sets_nothing_aside(store, tmp_path, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    forget_cache(tmp_path)

    def bad_disk(folder, files):
        raise Damaged("adapter/theta is not what was written")

    with monkeypatch.context() as patched:
        patched.setattr("dgg_ray.storage.remote_store.verify", bad_disk)
        with pytest.raises(StoreError, match=r"are right, but not their copies in .*cache"):
            store.open(stage)
    assert store.objects.names("damaged/") == []
    assert read_weights(store.open(stage)) == "w"


@fsspec_store
def test_a_cache_that_is_cleaned_meanwhile_is_filled_again(store, tmp_path, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    forget_cache(tmp_path)
    real, cleaned = store.objects.fs.get_file, []

    def get_file(name, file):
        if not cleaned:
            cleaned.append(shutil.rmtree(tmp_path / "cache"))
        return real(name, file)

    monkeypatch.setattr(store.objects.fs, "get_file", get_file)
    assert read_weights(store.open(stage)) == "w"
    assert cleaned
    assert store.objects.names("damaged/") == []


def entry(held, name, size=1000):
    return held.get(name, lambda folder: (folder / "file").write_bytes(b"x" * size), lambda folder: None)


def test_a_damaged_entry_goes_though_another_process_holds_it(tmp_path):
    held = node_cache.Cache(tmp_path)
    place = entry(held, "a")
    other = os.open(place, os.O_RDONLY)  # locks are of what was opened, so this is as another process
    fcntl.flock(other, fcntl.LOCK_SH)
    reader = (place / "file").open("rb")

    def check(folder):
        if (folder / "file").read_bytes() != b"right":
            raise Damaged("file is not what was written")

    assert held.get("a", lambda folder: (folder / "file").write_bytes(b"right"), check) == place
    assert (place / "file").read_bytes() == b"right"
    with reader:
        assert reader.read() == b"x" * 1000
    os.close(other)
    node_cache.drop(place)


def test_what_cannot_be_made_an_entry_is_told(tmp_path, monkeypatch):
    def refused(self, to):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StoreError, match=r"cannot keep a in .*Input/output error"):
        entry(node_cache.Cache(tmp_path), "a")


def test_a_process_keeps_no_more_than_two_entries_beyond_the_size(tmp_path):
    held = node_cache.Cache(tmp_path, gigabytes=500e-9)
    places = [entry(held, name) for name in "abcd"]
    held.trim()
    assert [place.exists() for place in places] == [False, False, True, True]
    for place in places:
        node_cache.drop(place)


def test_drafts_count_in_the_cache_and_go_after_a_day(tmp_path):
    held = node_cache.Cache(tmp_path, gigabytes=2500e-9)
    places = [entry(held, name) for name in "ab"]
    for place in places:
        node_cache.drop(place)
    young, old = held.draft(), held.draft()
    (old / "file").write_bytes(b"x" * 1000)
    os.utime(old, (time.time() - 2 * DRAFT_S,) * 2)
    held.trim()
    assert (young.exists(), old.exists()) == (True, False)
    assert all(place.exists() for place in places)
    (young / "file").write_bytes(b"x" * 1000)
    held.trim()
    assert [place.exists() for place in places] == [False, True]


def test_a_full_disk_of_this_machine_is_told_at_once_and_not_taken_for_the_networks():
    asked = []

    def full():
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"this machine failed, not s3://b: .*No space left.*DGG_RAY_CACHE"):
        retry.ask(full, "s3://b")
    assert len(asked) == 1


class Answered(Exception):
    def __init__(self, status, code):
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


@pytest.mark.parametrize(("status", "code"), [(409, "ConditionalRequestConflict"), (500, "InternalError")])
def test_what_a_store_could_not_decide_is_asked_again(monkeypatch, status, code):
    monkeypatch.setattr(retry, "PAUSE_S", 0.01)
    answers = [Answered(status, code)]

    def request():
        if answers:  # as s3fs says what it has no name for
            raise OSError(errno.EIO, code) from answers.pop()
        return "made"

    assert retry.ask(request, "s3://b") == "made"


def test_something_that_is_there_is_not_asked_for_again():
    def request():
        raise Answered(412, "PreconditionFailed")

    with pytest.raises(FileExistsError):
        retry.ask(request, "s3://b")


@pytest.mark.parametrize("url", ["s3://me:secret@bucket/a", "memory://me@bucket/a"])
def test_credentials_in_a_url_are_refused_as_they_would_travel(url):
    assert "travel with the study; take it out" in fault(url)
    assert "secret" not in fault(url)
    with pytest.raises(StoreError, match="credentials in the environment"):
        RemoteStore(url).check()


def test_an_at_sign_in_a_path_is_none_of_a_user():
    assert fault("s3://bucket/a@b") == ""


@pytest.mark.whole
def test_a_check_waits_for_no_answer_longer_than_its_patience(far, wire, monkeypatch):
    monkeypatch.setattr("dgg_ray.storage.remote_store.CHECK_S", 1.0)
    wire.delay = 60.0
    with pytest.raises(StoreError, match="did not answer as it should for 1 s"):
        far.check()


@with_files
def test_a_snapshot_to_which_nobody_comes_back_goes_after_thirty_days(store, monkeypatch):
    (stage,) = some_stages(1)
    checkpoints.write(store, stage, Snapshot([0.5], 1.5, {}, {"theta": torch.zeros(3)}))
    store.sweep()
    assert store.objects.names("inflight/") != []
    monkeypatch.setattr("dgg_ray.storage.stage_store.SNAPSHOT_S", -60.0)
    store.sweep()
    assert store.objects.names("inflight/") == []


@with_files
def test_leases_go_a_day_after_they_ended(store, monkeypatch):
    a, b = Holder("a", "elsewhere", 1), Holder("b", "elsewhere", 2)
    for key in ("given back", "held"):
        store.lease(key, a)
    store.release("given back", a)
    store.sweep()
    assert {name.split("/")[1] for name in store.objects.names("leases/")} == {"given back", "held"}
    monkeypatch.setattr("dgg_ray.storage.stage_store.DRAFT_S", -60.0)  # as in a minute and a day
    store.sweep()
    assert {name.split("/")[1] for name in store.objects.names("leases/")} == {"held"}
    assert store.lease("held", b) == a
    assert store.lease("given back", b) is None
