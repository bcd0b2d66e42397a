"""The format marker: all commands refuse a store of another version in one sentence."""

import json
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from dgg_ray import cli, load_study
from dgg_ray.config import saved_study
from dgg_ray.core.errors import StoreError
from dgg_ray.core.stage import WorkItem
from dgg_ray.storage.fsspec_backend import FsspecBackend
from dgg_ray.storage.stage_store import open_store
from dgg_ray.storage.store_format import FORMAT, MARKER
from dgg_ray.storage.store_view import view_of

from stage_samples import some_stages  # isort: skip

UNMARKED = r"holds a store of a version that marked no format, but this version of dgg_ray reads and writes "
UNMARKED += (
    rf"format {FORMAT}: name an empty place as output.store, or use the version that wrote this store$"
)

STUDY = {
    "name": "small",
    "model": "embedded",
    "tasks": [
        {"name": name, "reader": "embedded", "train": 12, "validation": 10, "test": 10}
        for name in ("words", "charts")
    ],
    "strategy": "finetune",
    "workers": {"engine": "simulated"},
}


@pytest.fixture(params=["folder", "url"])
def place(request, tmp_path, monkeypatch):
    """An empty place."""
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "stages") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/stages"


def write_old_store(place):
    """Write a stage, and remove the marker."""
    (stage,) = some_stages(1)
    store = open_store(place)
    store.publish(stage, {}, None)
    store.backend.remove(MARKER)


def test_the_first_record_marks_a_new_store(place):
    store, (stage,) = open_store(place), some_stages(1)
    store.check()
    assert store.backend.list_names("") == []
    store.publish(stage, {}, None)
    assert json.loads(store.backend.read(MARKER)) == {"format": FORMAT}
    open_store(place).check()


@pytest.mark.parametrize(
    "write",
    [
        lambda store, stage: store.publish(stage, {}, None),
        lambda store, stage: store.publish_evaluations(stage, [], None),
        lambda store, stage: store.put_document("studies/a", {}),
        lambda store, stage: store.record_profile(WorkItem(stage, profile="1xcpu1-auto"), {}),
        lambda store, stage: store.record_failure(stage, {}),
    ],
)
def test_every_kind_of_record_marks_a_new_store(place, write):
    write(open_store(place), some_stages(1)[0])
    assert MARKER in open_store(place).backend.list_names("")


def test_an_empty_place_can_be_read(place):
    view_of(open_store(place))
    assert list(open_store(place)) == []


@pytest.mark.parametrize(
    "use", [lambda store: store.check(), view_of, lambda store: store.put_document("a", {})]
)
def test_a_store_without_a_marker_is_refused(place, use):
    write_old_store(place)
    with pytest.raises(StoreError, match=UNMARKED) as caught:
        use(open_store(place))
    assert str(caught.value).startswith(open_store(place).url)
    assert open_store(place).backend.read(MARKER) is None


def test_documents_of_studies_without_a_marker_are_refused_too(place):
    store = open_store(place)
    store.put_document("studies/a/study.json", {})
    store.backend.remove(MARKER)
    with pytest.raises(StoreError, match=UNMARKED):
        open_store(place).check()


@pytest.mark.parametrize(
    ("marker", "found"),
    [(b'{"format": 2}', "of format 2"), (b'{"format": 0}', "of format 0"), (b"{", "of format unknown")],
)
def test_a_store_of_another_format_is_refused(place, marker, found):
    open_store(place).backend.write(MARKER, marker)
    for use in (lambda store: store.check(), view_of, lambda store: store.put_document("a", {})):
        with pytest.raises(StoreError, match=f"holds a store {found}, but this version of dgg_ray reads"):
            use(open_store(place))
    assert open_store(place).backend.list_names("") == [MARKER]


def test_a_refused_store_takes_no_failure_and_raises_none(place):
    write_old_store(place)
    (stage,) = some_stages(1)
    open_store(place).record_failure(stage, {"error": "ValueError", "message": "", "traceback": ""})
    assert open_store(place).failure(stage) is None


def test_a_store_that_others_begin_during_the_check_is_not_refused(place, monkeypatch):
    first, second = open_store(place), open_store(place)
    (stage,) = some_stages(1)
    real, published = type(first.backend).list_names, []

    def publish_before_the_listing(self, prefix):
        if not published:
            published.append(stage)
            second.publish(stage, {}, None)
        return real(self, prefix)

    monkeypatch.setattr(type(first.backend), "list_names", publish_before_the_listing)
    first.check()
    assert first.record(stage)["key"] == stage.key


def test_many_threads_that_begin_a_store_at_once_mark_it_once(place):
    stages, created = some_stages(8), []

    def begin(stage):
        store = open_store(place)
        store.check()
        store.publish(stage, {}, None)
        created.append(store.backend.read(MARKER))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(begin, stages))
    assert len(set(created)) == 1
    assert len(list(open_store(place))) == 8


BEGIN = """
import sys
from dgg_ray.storage.stage_store import open_store
store = open_store(sys.argv[1])
sys.stdin.readline()
store.check()
store.put_document(f"studies/{sys.argv[2]}", {})
"""


@pytest.mark.whole
def test_many_processes_that_begin_a_store_at_once_all_succeed(tmp_path):
    place = str(tmp_path / "stages")
    processes = [
        subprocess.Popen([sys.executable, "-c", BEGIN, place, str(n)], stdin=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    for process in processes:
        process.communicate("go\n", timeout=120)
    assert [process.returncode for process in processes] == [0] * 4
    assert len(list(open_store(place).list_documents("studies/"))) == 4


def test_the_format_is_verified_once_in_a_process(monkeypatch):
    place = f"memory://{uuid.uuid4().hex}"
    open_store(place).put_document("a", {})
    reads, real = [], FsspecBackend.read
    monkeypatch.setattr(
        FsspecBackend, "read", lambda self, name, fresh=False: reads.append(name) or real(self, name, fresh)
    )
    store = open_store(place)
    for n in range(5):
        store.put_document(f"a{n}", {})
        view_of(store)
    assert reads == [MARKER]


@pytest.mark.parametrize(
    "command", ["status", "plan", "best", "report", "robustness", "gc", "run", "studies"]
)
def test_every_command_refuses_an_old_store_in_one_sentence(command, tmp_path, capsys):
    place = str(tmp_path / "stages")
    write_old_store(place)
    study = load_study({**STUDY, "output": {"store": place}})
    out = tmp_path / "out"
    saved_study.save_study(study, out)
    (tmp_path / "study.yaml").write_text(json.dumps({**STUDY, "output": {"store": place}}))
    arguments = {
        "plan": [str(tmp_path / "study.yaml")],
        "run": [str(tmp_path / "study.yaml"), "--local", "--out", str(tmp_path / "new")],
        "studies": ["--store", place],
    }
    before = open_store(place).backend.list_names("")
    assert cli.main([command, *arguments.get(command, [str(out)])]) == 1
    messages = [line for line in capsys.readouterr().err.splitlines() if "holds a store" in line]
    assert len(messages) == 1
    assert re.search(f"^StoreError: {re.escape(place)} {UNMARKED}", messages[0])
    assert open_store(place).backend.list_names("") == before
