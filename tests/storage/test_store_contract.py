"""The contract of every stage store: one suite in a folder, in memory, by fsspec, and on S3."""

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
from pathlib import Path

import pytest
import torch

from dgg_ray.core.errors import StoreError
from dgg_ray.core.stage import Evaluation, WorkItem
from dgg_ray.storage import manifest, node_cache, retry
from dgg_ray.storage.backend import DamagedError
from dgg_ray.storage.fsspec_backend import READ_S, FsspecBackend, connect, url_fault
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.manifest import manifest_name
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import DRAFT_S, open_store
from dgg_ray.storage.store_format import MARKER
from dgg_ray.storage.store_view import view_of
from dgg_ray.training import checkpoints
from dgg_ray.training.checkpoints import StageCheckpoint

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
    """S3 clients by their settings: creating one takes longer than most tests."""
    return {}


@pytest.fixture()
def s3(s3_port, clients, monkeypatch):
    """A URL at which nothing is stored."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")

    def client(url, *seconds):
        aws = [item for item in os.environ.items() if item[0].startswith("AWS_")]
        how = (url.partition("://")[0], seconds, frozenset(aws))
        if how not in clients:
            clients[how] = connect(url, *seconds)
        return clients[how]

    monkeypatch.setattr("dgg_ray.storage.fsspec_backend.connect", client)
    if "bucket" not in clients:
        clients["bucket"] = f"s3://bucket-{uuid.uuid4().hex[:12]}"
        client(clients["bucket"], READ_S).mkdir(clients["bucket"])
    return f"{clients['bucket']}/a place {uuid.uuid4().hex[:12]}"


@pytest.fixture()
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    match request.param:
        case "folder":
            return open_store(tmp_path / "stages")
        case "memory":
            return MemoryStore()
        case "fsspec":
            return open_store(f"memory://{uuid.uuid4().hex}/stages")
    return open_store(request.getfixturevalue("s3"))


everywhere = pytest.mark.parametrize("store", EVERYWHERE, indirect=True)
with_files = pytest.mark.parametrize("store", WITH_FILES, indirect=True)


def reopened(store):
    """Return the store as another process opens it."""
    return store if isinstance(store, MemoryStore) else pickle.loads(pickle.dumps(store))


def evaluation(name):
    return Evaluation(name, "test", f"key of {name}")


def cell(name, score=0.5):
    return {"evaluation": evaluation(name).key, "task": name, "split": "test", "score": score, "n": 4}


def nothing(folder):
    pass


# -- stages ----------------------------------------------------------------------------------------


@everywhere
def test_a_published_stage_is_seen_by_all_processes_and_no_other_stage_is(store):
    first, second = some_stages()
    assert store.record(first) is None
    assert store.open(first) is None
    store.publish(first, {"trained_task": "tâche 0", "cost": {"steps": 3}}, nothing)
    for seen in (store, reopened(store)):
        assert seen.record(first)["trained_task"] == "tâche 0"
        assert seen.record(second) is None
        assert [record["key"] for record in seen] == [first.key]


@everywhere
def test_only_evaluations_without_a_record_are_missing_and_records_are_merged(store):
    (stage,) = some_stages(1)
    a, b, c = evaluation("a"), evaluation("b"), evaluation("c")
    assert store.missing(WorkItem(stage, (a,))) is None
    store.publish(stage, {}, nothing)
    assert store.missing(WorkItem(stage, (a, b))) == (a, b)
    store.publish_evaluations(stage, [cell("a", 0.25)], nothing, {"study": "one"})
    store.publish_evaluations(stage, [cell("b", 0.75)], nothing, {"study": "other"})
    for seen in (store, reopened(store)):
        assert seen.has(WorkItem(stage, (a, b)))
        assert seen.missing(WorkItem(stage, (a, c))) == (c,)
        assert {k: v["score"] for k, v in seen.score_entries(stage).items()} == {a.key: 0.25, b.key: 0.75}
        assert {record["study"] for record in seen.evaluation_records(stage.key)} == {"one", "other"}
        ((record, evaluations),) = seen.finished()
        assert (record["key"], len(evaluations)) == (stage.key, 2)


@with_files
def test_files_are_returned_unchanged_whatever_their_names(store):
    first, second = some_stages()
    store.publish(first, {}, weights("w"))
    store.publish(second, {}, nothing)
    for seen in (store, reopened(store)):
        assert read_weights(seen.open(first)) == "w"
        assert (seen.open(first) / "empty").read_bytes() == b""
        assert list(seen.open(second).iterdir()) == []
        assert seen.record(first)["bytes"] == 1


@with_files
def test_the_first_of_two_publications_stays_and_the_second_leaves_nothing(store):
    (stage,) = some_stages(1)
    for text in ("first", "second"):
        store.publish(stage, {"of": text}, weights(text))
    seen = reopened(store)
    assert seen.record(stage)["of"] == "first"
    assert read_weights(seen.open(stage)) == "first"
    assert len({name.split("/")[2] for name in store.backend.list_names("files/")}) == 1
    assert store.backend.list_names("unfinished/") == []


@with_files
def test_damaged_files_are_detected_and_the_stage_can_be_published_again(store, tmp_path):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("right"))
    store.publish_evaluations(stage, [cell("a")], nothing)
    for name in store.backend.list_names("files/"):
        if "poids" in name or "%" in name:
            store.backend.write(name, b"wrong")
    clear_cache(tmp_path)
    seen = reopened(store)
    with pytest.warns(UserWarning, match=r"damaged \(adapter/poids"):
        assert seen.open(stage) is None
    assert seen.missing(WorkItem(stage)) is None
    assert len(seen.backend.list_names("quarantined/")) == 1
    seen.publish(stage, {}, weights("right"))
    assert read_weights(reopened(store).open(stage)) == "right"
    assert seen.has(
        WorkItem(stage, (evaluation("a"),))
    )  # training is repeatable, so its evaluations stay valid


@with_files
@pytest.mark.parametrize("harm", ["changed", "cut"])
def test_damaged_records_are_detected_without_reading_the_files(store, harm):
    (stage,) = some_stages(1)
    store.publish(stage, {"loss": 1.25}, weights("w"))
    name = manifest_name(stage.key)
    data = store.backend.read(name)
    store.backend.write(name, data.replace(b"1.25", b"1.26") if harm == "changed" else data[:100])
    seen = reopened(store)
    with pytest.warns(UserWarning, match="the record differs from what was written"):
        assert seen.record(stage) is None
    assert seen.missing(WorkItem(stage)) is None


@with_files
def test_missing_files_are_detected(store, tmp_path):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    store.backend.remove_folder(f"files/{stage.key}")
    clear_cache(tmp_path)
    seen = reopened(store)
    with pytest.warns(UserWarning, match="is missing"):
        assert seen.open(stage) is None
    assert seen.record(stage) is None


def clear_cache(tmp_path):
    """Empty the cache, as on another machine."""
    for place in (tmp_path / "cache" / "entries").glob("*"):
        node_cache.stop_using(place)
        shutil.rmtree(place)


@with_files
def test_a_writer_that_fails_leaves_nothing_but_the_marker(store):
    (stage,) = some_stages(1)

    def full(folder):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"No space left.*Free some space"):
        store.publish(stage, {}, full)
    assert store.record(stage) is None
    assert store.backend.list_names("") == [MARKER]
    assert list(store.backend.list_drafts()) == []


@with_files
def test_files_of_a_dead_writer_are_swept_a_day_later(store, monkeypatch):
    first, second = some_stages()
    store.publish(first, {}, weights("w"))
    with monkeypatch.context() as patched:
        patched.setattr(type(store.backend), "create", lambda *_, **__: os.kill(0, 0) or died())
        with suppress(KeyboardInterrupt):
            store.publish(second, {}, weights("lost"))
    assert store.record(second) is None
    assert any(second.key in name for name in store.backend.list_names("files/"))
    store.sweep()
    assert any(
        second.key in name for name in store.backend.list_names("files/")
    )  # the writer may still be at work
    monkeypatch.setattr("dgg_ray.storage.stage_store.DRAFT_S", -DRAFT_S)
    store.sweep()
    assert {name.split("/")[1] for name in store.backend.list_names("files/")} == {first.key}
    assert store.backend.list_names("unfinished/") == []
    assert read_weights(store.open(first)) == "w"


def died():
    raise KeyboardInterrupt


@with_files
def test_discarding_a_stage_removes_every_trace_of_it(store):
    first, second = some_stages()
    for stage in (first, second):
        store.publish(stage, {}, weights("x" * 1000))
        store.publish_evaluations(stage, [cell("a")], lambda f: (f / "answers").write_bytes(b"y" * 100))
    store.acquire_lease(first.key, LeaseOwner("ended", "elsewhere", 1), 0.0)
    before = sum(map(len, store.backend.list_names("")))
    assert 1100 < store.discard(first.key) < 10_000
    assert store.discard(first.key) == 0
    for seen in (store, reopened(store)):
        assert seen.record(first) is None
        assert seen.open(first) is None
        assert seen.score_entries(first) == {}
        assert read_weights(seen.open(second)) == "x" * 1000
        assert seen.has(WorkItem(second, (evaluation("a"),)))
    assert before > sum(map(len, store.backend.list_names("")))
    assert not any(first.key in name for name in store.backend.list_names(""))


@with_files
def test_a_stage_without_its_adapter_keeps_its_record_and_can_be_published_again(
    store, tmp_path, monkeypatch
):
    def fill(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "theta").write_bytes(b"x" * 1000)

    stage, _ = some_stages()
    store.publish(stage, {}, fill)
    store.publish_evaluations(stage, [cell("a")], lambda f: (f / "answers").write_bytes(b"y" * 100))
    before = store.size()
    assert store.remove_adapter(stage.key) == 1000
    assert before - 1000 < store.size() < before - 900  # a small mark is left
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "another node"))
    seen = reopened(store)
    assert seen.has(WorkItem(stage, (evaluation("a"),)))
    with pytest.warns(
        UserWarning, match="lost its adapter, which was removed to free space; .* will be repeated"
    ):
        assert seen.open(stage) is None
    assert seen.record(stage) is None
    seen.publish(stage, {}, fill)
    assert (seen.open(stage) / "adapter" / "theta").read_bytes() == b"x" * 1000
    assert seen.has(WorkItem(stage, (evaluation("a"),)))
    assert seen.backend.list_names("removed_adapters/") == []


@everywhere
def test_a_view_does_not_see_later_publications(store):
    first, second = some_stages()
    store.publish(first, {}, nothing)
    store.publish_evaluations(first, [cell("a")], nothing)
    seen = view_of(store)
    assert seen.has(WorkItem(first, (evaluation("a"),)))
    if isinstance(store, MemoryStore):
        return
    store.publish(second, {}, nothing)
    store.publish_evaluations(first, [cell("b")], nothing)
    assert seen.record(second) is None
    assert seen.missing(WorkItem(first, (evaluation("b"),))) == (evaluation("b"),)
    assert view_of(store).record(second)["key"] == second.key


# -- documents and leases -----------------------------------------------------------------------------


@everywhere
def test_documents_are_replaced_listed_and_removed_whatever_their_names(store):
    names = ["studies/été ? #1/live", "studies/a*b [x]/live", "studies/a", "hardware_checks/a"]
    for name in names:
        store.put_document(name, {"of": "nobody"})
        store.put_document(name, {"of": name})
    seen = reopened(store)
    assert [seen.get_document(name) for name in names] == [{"of": name} for name in names]
    assert sorted(seen.list_documents("studies/")) == sorted((name, {"of": name}) for name in names[:3])
    store.remove_document(names[0])
    store.remove_document("studies/never")
    assert seen.get_document(names[0]) is None
    assert len(list(seen.list_documents("studies/"))) == 2


@everywhere
def test_profiles_and_failures_are_stored(store):
    (stage,) = some_stages(1)
    profile = WorkItem(stage, profile="1xcpu1-auto")
    assert not store.has(profile)
    store.record_profile(profile, {"bytes": 7})
    store.record_failure(stage, {"error": "NonFiniteError", "message": "naïve", "traceback": ""})
    assert reopened(store).has(profile)
    assert [record["bytes"] for record in reopened(store).profiles()] == [7]
    assert reopened(store).failure(stage)["message"] == "naïve"
    store.publish(stage, {}, nothing)
    assert reopened(store).failure(stage) is None


@everywhere
def test_a_lease_has_one_owner_until_it_is_released(store):
    a, b = LeaseOwner("a", "elsewhere", 1), LeaseOwner("b", "elsewhere", 2)
    assert store.acquire_lease("key", a) is None
    assert store.acquire_lease("key", a) is None  # renewed
    assert reopened(store).acquire_lease("key", b) == a
    assert store.acquire_lease("other key", b) is None
    store.release_lease("key", b)  # not theirs
    assert store.acquire_lease("key", b) == a
    reopened(store).release_lease("key", a)
    assert store.acquire_lease("key", b) is None
    assert reopened(store).acquire_lease("key", a) == b


@everywhere
def test_a_check_of_a_sound_place_leaves_nothing_behind(store):
    store.check()
    assert store.backend.list_names("") == []


@everywhere
def test_clocks_that_differ_fail_the_check(store, monkeypatch):
    real = type(store.backend).modified_at
    monkeypatch.setattr(type(store.backend), "modified_at", lambda self, name: real(self, name) + 20)
    with pytest.raises(StoreError, match=r"clocks of this machine .* \d\d s apart"):
        store.check()
    monkeypatch.setattr(type(store.backend), "modified_at", lambda self, name: real(self, name) - 10)
    store.check()


@with_files
def test_checkpoints_are_replaced_whole_and_removed(store):
    (stage,) = some_stages(1)
    assert checkpoints.read(store, stage) is None
    for step in (1, 2):
        taken = StageCheckpoint([0.5] * step, 1.5, {"seen": [1]}, {"theta": torch.full((3,), float(step))})
        checkpoints.write(store, stage, taken)
    found = checkpoints.read(reopened(store), stage)
    assert (found.losses, found.seconds, found.memory) == ([0.5, 0.5], 1.5, {"seen": [1]})
    assert found.tensors["theta"].tolist() == [2.0] * 3
    store.publish(stage, {}, nothing)
    store.sweep()
    assert checkpoints.read(store, stage) is None
    assert list(store.backend.list_drafts()) == []


# -- several processes -----------------------------------------------------------------------------

PUBLISH = """
import pickle, sys
sys.path.insert(0, sys.argv[3])
from stage_samples import some_stages, weights
store, who = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2]
if who == "dies":
    import os, signal
    create = type(store.backend).create
    def create_or_die(self, name, *rest, **options):
        if name.startswith("stages/"):
            os.kill(os.getpid(), signal.SIGKILL)
        return create(self, name, *rest, **options)
    type(store.backend).create = create_or_die
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
    """Start a process that publishes once it reads a line."""
    command = [sys.executable, "-c", PUBLISH, pickle.dumps(store).hex(), who, str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.mark.whole
@pytest.mark.parametrize("store", TOGETHER, indirect=True)
def test_two_processes_that_publish_the_same_stages_leave_each_one_whole(store, tmp_path):
    with publishing(store, "one") as one, publishing(store, "other") as other:
        both = (one, other)
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(120) for process in both] == [0, 0]
    clear_cache(tmp_path)
    for stage in some_stages(8):
        of = store.record(stage)["of"]
        assert read_weights(store.open(stage)) == of
    assert (
        len(
            {
                name.rpartition("/adapter")[0]
                for name in store.backend.list_names("files/")
                if "adapter" in name
            }
        )
        == 8
    )
    assert store.backend.list_names("unfinished/") == []


@pytest.mark.whole
@pytest.mark.parametrize("store", TOGETHER, indirect=True)
def test_a_writer_killed_before_its_manifest_has_published_nothing(store):
    with publishing(store, "dies") as process:
        assert process.wait(120) == -signal.SIGKILL
    (stage,) = some_stages(1)
    assert store.record(stage) is None
    assert list(store) == []
    assert store.backend.list_names("files/") != []
    store.publish(stage, {}, weights("whole"))
    assert read_weights(store.open(stage)) == "whole"


# -- the node's cache ------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["fsspec"], indirect=True)
def test_a_stage_is_fetched_once_for_a_node(store, tmp_path, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    clear_cache(tmp_path)
    assert read_weights(reopened(store).open(stage)) == "w"
    monkeypatch.setattr(FsspecBackend, "request_all", lambda *_: pytest.fail("fetched again"))
    assert read_weights(reopened(store).open(stage)) == "w"


@pytest.mark.parametrize("store", ["fsspec"], indirect=True)
def test_a_damaged_copy_in_the_cache_is_fetched_again(store):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    (store.open(stage) / "adapter" / "poids – 重み.txt").write_text("v")
    assert read_weights(store.open(stage)) == "w"
    assert store.backend.list_names("quarantined/") == []


def test_the_cache_evicts_the_least_recently_used_entries_at_its_limit(tmp_path):
    held = node_cache.NodeCache(tmp_path, gigabytes=3500e-9)
    for n, name in enumerate("abc"):
        place = held.get(name, lambda folder: (folder / "file").write_bytes(b"x" * 1000), lambda folder: None)
        os.utime(place, (n, n))
        node_cache.stop_using(place)
    os.utime(held.entry_path("a"), (10, 10))
    place = held.get("d", lambda folder: (folder / "file").write_bytes(b"x" * 1000), lambda folder: None)
    assert {name for name in "abcd" if held.entry_path(name).exists()} == {"a", "c", "d"}
    node_cache.stop_using(place)


def test_an_entry_in_use_stays_in_the_cache(tmp_path):
    held = node_cache.NodeCache(tmp_path, gigabytes=500e-9)
    place = held.get("a", lambda folder: (folder / "file").write_bytes(b"x" * 1000), lambda folder: None)
    code = "import sys; from pathlib import Path; from dgg_ray.storage.node_cache import NodeCache; "
    code += "NodeCache(Path(sys.argv[1]), 0).trim()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert place.exists()
    node_cache.stop_using(place)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not place.exists()


# -- faults of the network --------------------------------------------------------------------


@pytest.fixture()
def wire(s3_port, s3, monkeypatch):
    wire = Wire(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
    yield wire
    wire.cut()


@pytest.fixture()
def far(wire, s3, tmp_path, monkeypatch):
    """A store behind a faulty connection."""
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    return open_store(s3)


@pytest.mark.whole
@pytest.mark.parametrize("trouble", ["late", "busy", "refused"])
def test_transient_errors_are_retried(far, wire, trouble):
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
    assert read_weights(reopened(far).open(stage)) == "w"
    assert wire.busy == 0
    if trouble == "refused":
        back.join()


@pytest.mark.whole
def test_an_error_that_lasts_is_reported_after_the_limit(far, wire, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_S", 1.0)
    wire.cut()
    with pytest.raises(StoreError, match=r"failed for 1 s.*run the study again"):
        far.record(some_stages(1)[0])


@pytest.mark.whole
def test_a_missing_bucket_is_reported_at_once(s3):
    store = open_store("s3://no-such-bucket/stages")
    (stage,) = some_stages(1)
    for ask in (
        store.check,
        lambda: store.record(stage),
        lambda: list(store),
        lambda: store.put_document("a", {}),
    ):
        with pytest.raises(StoreError, match="no-such-bucket/stages: the bucket does not exist; create it"):
            ask()


@pytest.mark.whole
def test_missing_credentials_are_reported_at_once(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"access denied.*give this machine credentials"):
        open_store(s3).check()


def test_refused_credentials_are_reported_at_once_without_a_retry():
    asked = []

    def refused():
        asked.append(1)
        raise PermissionError("The AWS Access Key Id you provided does not exist in our records.")

    with pytest.raises(StoreError, match=r"s3://b: access denied.*does not exist in our records"):
        retry.with_retries(refused, "s3://b")
    assert len(asked) == 1


def test_a_creation_whose_answer_was_lost_is_recognised_as_ours(monkeypatch):
    url = FsspecBackend(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    real, lost = type(url)._create, [True]

    def creates_and_loses_the_answer(self, at, data):
        real(self, at, data)
        if lost.pop() if lost else False:
            raise TimeoutError

    monkeypatch.setattr(FsspecBackend, "_create", creates_and_loses_the_answer)
    assert url.create("a", b"mine")
    assert not url.create("a", b"another's")
    assert url.read("a") == b"mine"


def test_a_place_that_overwrites_objects_fails_the_check(monkeypatch):
    store = open_store(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(
        FsspecBackend, "create", lambda self, name, data, durable=True: self.write(name, data) or True
    )
    with pytest.raises(
        StoreError, match=r"does not keep objects reliably \(created True, created again True"
    ):
        store.check()


def test_a_full_disk_under_a_local_store_is_reported_with_the_remedy(tmp_path, monkeypatch):
    store, (stage,) = open_store(tmp_path), some_stages(1)
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


def test_a_store_knows_its_url(tmp_path):
    assert open_store(tmp_path / "a").url == str(tmp_path / "a")
    assert open_store("s3://bucket/a").url == "s3://bucket/a"
    assert json.loads(manifest.seal({"a": 1}))["content"] == {"a": 1}
    assert open_store("s3://bucket/a/", cache_gb=1) == open_store("s3://bucket/a", 1)


# -- faults of this machine, and lost answers -----------------------------------

fsspec_store = pytest.mark.parametrize("store", ["fsspec"], indirect=True)


@fsspec_store
def test_other_threads_may_read_manifests_while_remembered_ones_are_used(store, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, nothing)
    for name in "ab":
        store.publish_evaluations(stage, [cell(name)], nothing)
    assert len(store.score_entries(stage)) == 2
    real = manifest.unseal

    def another_thread_reads_too(data):
        store.backend.remember(manifest_name(stage.key, uuid.uuid4().hex[:16]), data)
        return real(data)

    monkeypatch.setattr(manifest, "unseal", another_thread_reads_too)
    assert store.missing(WorkItem(stage, (evaluation("a"), evaluation("b")))) == ()


@pytest.mark.parametrize("store", ["folder", "fsspec"], indirect=True)
def test_a_writer_whose_manifest_exists_despite_a_failed_creation_keeps_its_files(store, monkeypatch):
    (stage,) = some_stages(1)
    real = type(store.backend).create
    with monkeypatch.context() as patched:
        patched.setattr(
            type(store.backend), "create", lambda self, name, data: real(self, name, data) and False
        )
        store.publish(stage, {}, weights("w"))
    assert read_weights(reopened(store).open(stage)) == "w"


def test_a_link_whose_creation_was_reported_as_failed_is_ours(tmp_path, monkeypatch):
    backend, real = open_store(tmp_path).backend, os.link

    def links_and_is_asked_again(draft, file):
        for _ in range(2):
            real(draft, file)

    monkeypatch.setattr(os, "link", links_and_is_asked_again)
    assert backend.create("a/b", b"mine")
    assert not backend.create("a/b", b"mine too")
    assert backend.list_names("") == ["a/b"]


@fsspec_store
def test_a_disk_that_damages_copies_quarantines_nothing(store, tmp_path, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    clear_cache(tmp_path)

    def bad_disk(folder, files):
        raise DamagedError("adapter/theta differs from what was written")

    with monkeypatch.context() as patched:
        patched.setattr("dgg_ray.storage.fsspec_backend.verify_files", bad_disk)
        with pytest.raises(StoreError, match=r"are intact, but their copies in .*cache are not"):
            store.open(stage)
    assert store.backend.list_names("quarantined/") == []
    assert read_weights(store.open(stage)) == "w"


@fsspec_store
def test_a_cache_that_is_cleaned_during_a_fetch_is_filled_again(store, tmp_path, monkeypatch):
    (stage,) = some_stages(1)
    store.publish(stage, {}, weights("w"))
    clear_cache(tmp_path)
    real, cleaned = store.backend.fs.get_file, []

    def get_file(name, file):
        if not cleaned:
            cleaned.append(shutil.rmtree(tmp_path / "cache"))
        return real(name, file)

    monkeypatch.setattr(store.backend.fs, "get_file", get_file)
    assert read_weights(store.open(stage)) == "w"
    assert cleaned
    assert store.backend.list_names("quarantined/") == []


def entry(held, name, size=1000):
    return held.get(name, lambda folder: (folder / "file").write_bytes(b"x" * size), lambda folder: None)


def test_a_damaged_entry_is_evicted_although_another_process_uses_it(tmp_path):
    held = node_cache.NodeCache(tmp_path)
    place = entry(held, "a")
    other = os.open(place, os.O_RDONLY)  # a second open file has a lock of its own, as in another process
    fcntl.flock(other, fcntl.LOCK_SH)
    reader = (place / "file").open("rb")

    def check(folder):
        if (folder / "file").read_bytes() != b"right":
            raise DamagedError("file differs from what was written")

    assert held.get("a", lambda folder: (folder / "file").write_bytes(b"right"), check) == place
    assert (place / "file").read_bytes() == b"right"
    with reader:
        assert reader.read() == b"x" * 1000
    os.close(other)
    node_cache.stop_using(place)


def test_a_failure_to_create_an_entry_is_reported(tmp_path, monkeypatch):
    def refused(self, to):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StoreError, match=r"cannot keep a in .*Input/output error"):
        entry(node_cache.NodeCache(tmp_path), "a")


def test_a_process_keeps_at_most_two_entries_beyond_the_limit(tmp_path):
    held = node_cache.NodeCache(tmp_path, gigabytes=500e-9)
    places = [entry(held, name) for name in "abcd"]
    held.trim()
    assert [place.exists() for place in places] == [False, False, True, True]
    for place in places:
        node_cache.stop_using(place)


def test_drafts_count_towards_the_limit_and_are_removed_after_a_day(tmp_path):
    held = node_cache.NodeCache(tmp_path, gigabytes=2500e-9)
    places = [entry(held, name) for name in "ab"]
    for place in places:
        node_cache.stop_using(place)
    young, old = held.make_draft(), held.make_draft()
    (old / "file").write_bytes(b"x" * 1000)
    os.utime(old, (time.time() - 2 * DRAFT_S,) * 2)
    held.trim()
    assert (young.exists(), old.exists()) == (True, False)
    assert all(place.exists() for place in places)
    (young / "file").write_bytes(b"x" * 1000)
    held.trim()
    assert [place.exists() for place in places] == [False, True]


def test_a_full_disk_of_this_machine_is_not_mistaken_for_a_network_error():
    asked = []

    def full():
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"this machine failed, not s3://b: .*No space left.*DGG_RAY_CACHE"):
        retry.with_retries(full, "s3://b")
    assert len(asked) == 1


class ResponseError(Exception):
    def __init__(self, status, code):
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


@pytest.mark.parametrize(("status", "code"), [(409, "ConditionalRequestConflict"), (500, "InternalError")])
def test_conflicts_and_server_errors_are_retried(monkeypatch, status, code):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    answers = [ResponseError(status, code)]

    def request():
        if answers:  # s3fs's form for an error that it does not know
            raise OSError(errno.EIO, code) from answers.pop()
        return "made"

    assert retry.with_retries(request, "s3://b") == "made"


def test_a_failed_precondition_is_not_retried():
    def request():
        raise ResponseError(412, "PreconditionFailed")

    with pytest.raises(FileExistsError):
        retry.with_retries(request, "s3://b")


@pytest.mark.parametrize("url", ["s3://me:secret@bucket/a", "memory://me@bucket/a"])
def test_credentials_in_a_url_are_refused_because_they_would_travel(url):
    assert "travel with the study; remove it" in url_fault(url)
    assert "secret" not in url_fault(url)
    with pytest.raises(StoreError, match="credentials in the environment"):
        open_store(url).check()


def test_an_at_sign_in_a_path_is_no_user():
    assert url_fault("s3://bucket/a@b") == ""


@pytest.mark.whole
def test_a_check_waits_no_longer_than_its_limit(far, wire, monkeypatch):
    monkeypatch.setattr("dgg_ray.storage.stage_store.CHECK_S", 1.0)
    wire.delay = 60.0
    with pytest.raises(StoreError, match="failed for 1 s"):
        far.check()


@with_files
def test_an_abandoned_checkpoint_is_removed_after_thirty_days(store, monkeypatch):
    (stage,) = some_stages(1)
    checkpoints.write(store, stage, StageCheckpoint([0.5], 1.5, {}, {"theta": torch.zeros(3)}))
    store.sweep()
    assert store.backend.list_names("checkpoints/") != []
    monkeypatch.setattr("dgg_ray.storage.stage_store.CHECKPOINT_S", -60.0)
    store.sweep()
    assert store.backend.list_names("checkpoints/") == []


@with_files
def test_leases_are_removed_a_day_after_they_ended(store, monkeypatch):
    a, b = LeaseOwner("a", "elsewhere", 1), LeaseOwner("b", "elsewhere", 2)
    for key in ("released", "held"):
        store.acquire_lease(key, a)
    store.release_lease("released", a)
    store.sweep()
    assert {name.split("/")[1] for name in store.backend.list_names("leases/")} == {"released", "held"}
    monkeypatch.setattr("dgg_ray.storage.stage_store.DRAFT_S", -60.0)  # as in a minute and a day
    store.sweep()
    assert {name.split("/")[1] for name in store.backend.list_names("leases/")} == {"held"}
    assert store.acquire_lease("held", b) == a
    assert store.acquire_lease("released", b) is None
