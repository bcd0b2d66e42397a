"""Data and models by URL: fetched once into the node's cache, and equal to those in a folder."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from PIL import Image

from dgg_ray import load_study
from dgg_ray.config import loader, registry, saved_study
from dgg_ray.core import plugins
from dgg_ray.core.errors import PermanentStoreError, StoreError, StudyError
from dgg_ray.readers.llava import Llava
from dgg_ray.storage import fetching, node_cache
from dgg_ray.storage.fsspec_backend import FsspecBackend, connect

from servers import ENVIRONMENT, s3_server  # isort: skip

STUDY = """
name: far
model: embedded
strategy: finetune
tasks:
  - {name: a, reader: llava, train: a/train.json, test: a/test.json, images: pictures}
  - {name: b, reader: llava, train: b/train.json, test: b/test.json, images: pictures}
training: {batch_size: 2}
"""


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "hashes"))
    fetching.set_cache_limit(50)
    yield
    as_another_process()


def as_another_process():
    """Forget what this process has listed and locked, as a new process has nothing."""
    fetching.fetch.cache_clear()
    for handles in (node_cache._in_use, node_cache._pinned):
        while handles:
            os.close(handles.popitem()[1])


@pytest.fixture()
def asked(monkeypatch):
    """The names of the files that are fetched, in order."""
    names = []
    whole = FsspecBackend.download_files

    def fetch(self, files):
        names.extend(files)
        whole(self, files)

    monkeypatch.setattr(FsspecBackend, "download_files", fetch)
    return names


@pytest.fixture()
def folder(tmp_path):
    """Two tasks, each with its own questions about ten images."""
    root = tmp_path / "data"
    for i in range(10):
        write_image(root / "pictures" / f"set {i % 2}" / f"{i}.png", 20 * i)
    for task in "ab":
        (root / task).mkdir()
        for split, chosen in (("train", range(7)), ("test", range(7, 10))):
            records = [
                {
                    "question_id": i,
                    "image": f"set {i % 2}/{i}.png",
                    "text": f"{task}?",
                    "answer": f"{task}{i}",
                }
                for i in chosen
            ]
            (root / task / f"{split}.json").write_text(json.dumps(records))
    return root


def write_image(file, shade):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 255 - shade, 7)).save(file)


@pytest.fixture(scope="module")
def s3_port():
    with s3_server() as port:
        yield port


@pytest.fixture(params=["memory", "local", pytest.param("s3", marks=pytest.mark.whole)])
def bucket(request, tmp_path, monkeypatch):
    """A URL under which nothing is stored yet."""
    if request.param == "local":
        return f"local://{tmp_path}/bucket"
    if request.param == "s3":
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{request.getfixturevalue('s3_port')}")
    url = f"{request.param}://bucket-{uuid.uuid4().hex[:12]}"
    connect(url).mkdir(url)
    return f"{url}/a place"


def lay(folder: Path, url: str) -> str:
    """Upload a folder."""
    fs = connect(url)
    for file in folder.rglob("*"):
        if file.is_file():
            place = f"{url}/{file.relative_to(folder).as_posix()}"
            fs.makedirs(fs._parent(place), exist_ok=True)
            fs.put_file(str(file), place)
    return url


def read(root, **settings):
    reader = Llava(Path(root) / "a/train.json", test=Path(root) / "a/test.json", **settings)
    return reader.read("a")


def faults(do):
    with pytest.raises(StudyError) as caught:
        do()
    return {fault.path: str(fault) for fault in caught.value.faults}


# -- names -----------------------------------------------------------------------------------------


def test_a_url_survives_being_a_path():
    for url in ("s3://bucket/a b/c.json", "gs://bucket", "memory://x/y", "local:///tmp/x"):
        assert fetching.url_of(url) == url
        assert fetching.url_of(Path(url)) == url
        assert fetching.url_of(Path(url) / "d") == f"{url}/d"


def test_a_path_of_this_machine_is_returned_unchanged(tmp_path):
    for place in (tmp_path, Path("relative/x"), Path("org/model"), "C:/x"):
        assert fetching.url_of(place) == ""
        assert fetching.local_path(place) == Path(place)
    assert fetching.local_path(f"file://{tmp_path}") == tmp_path
    assert fetching.local_path("~/x") == Path.home() / "x"


def test_relative_paths_are_resolved_against_the_url():
    reader = Llava(Path("a.json"), test=Path("/abs/t.json"), references=Path("gs://other/r.json"))
    found = fetching.resolve_paths(reader, "s3://bucket/data")
    assert fetching.url_of(found.train) == "s3://bucket/data/a.json"
    assert found.test == Path("/abs/t.json")
    assert fetching.url_of(found.references) == "gs://other/r.json"


# -- data ------------------------------------------------------------------------------------------


def test_a_task_at_a_url_is_the_same_as_in_a_folder(folder, bucket):
    near, far = (
        read(folder, images=folder / "pictures"),
        read(lay(folder, bucket), images=Path(bucket) / "pictures"),
    )
    assert far.digests == near.digests
    said = [[(e.id, e.question, e.answer) for e in task.examples["test"]] for task in (near, far)]
    assert said[0] == said[1]
    assert all(example.image.is_file() for examples in far.examples.values() for example in examples)


def test_only_changed_content_is_fetched_again(folder, bucket, asked):
    lay(folder, bucket)
    first = read(bucket, images=Path(bucket) / "pictures")
    assert len(asked) == 2 + 10
    as_another_process()
    assert read(bucket, images=Path(bucket) / "pictures").digests == first.digests
    assert len(asked) == 2 + 10
    as_another_process()
    write_image(folder / "pictures/set 1/9.png", 255)
    connect(bucket).put_file(str(folder / "pictures/set 1/9.png"), f"{bucket}/pictures/set 1/9.png")
    second = read(bucket, images=Path(bucket) / "pictures")
    assert len(asked) == 2 + 10 + 10
    assert second.digests["train"] == first.digests["train"]
    assert second.digests["test"] != first.digests["test"]


def test_images_in_the_training_files_folder_are_found(folder, bucket):
    shutil.copytree(folder / "pictures", folder / "a", dirs_exist_ok=True)
    near = read(folder)
    assert read(lay(folder, bucket)).digests == near.digests


def test_a_task_of_text_fetches_no_folder(folder, asked):
    url = f"memory://{uuid.uuid4().hex}"
    for split in ("train", "test"):
        records = [{"text": f"{split} {i}?", "answer": "x"} for i in range(4)]
        (folder / "a" / f"{split}.json").write_text(json.dumps(records))
    read(lay(folder, url))
    assert asked == ["", ""]


def test_a_damaged_copy_is_fetched_again(folder, asked):
    url = lay(folder, f"memory://{uuid.uuid4().hex}")
    file = fetching.local_path(f"{url}/a/train.json")
    as_another_process()
    file.write_text("[")
    assert json.loads(fetching.local_path(f"{url}/a/train.json").read_text())
    assert len(asked) == 2


def test_content_that_changes_while_it_is_fetched_is_refused(folder, monkeypatch):
    url, whole = lay(folder, f"memory://{uuid.uuid4().hex}"), FsspecBackend.download_files

    def fetch(self, files):
        whole(self, files)
        self.fs.pipe_file(f"{url}/a/train.json", uuid.uuid4().hex.encode())

    monkeypatch.setattr(FsspecBackend, "download_files", fetch)
    with pytest.raises(StoreError, match="keeps changing while it is fetched"):
        fetching.local_path(f"{url}/a/train.json")


def test_a_study_with_data_at_a_url_has_the_keys_of_one_with_data_in_a_folder(
    folder, bucket, tmp_path, monkeypatch
):
    (tmp_path / "study.yaml").write_text(STUDY)
    near = load_study(tmp_path / "study.yaml", folder)
    far = load_study(tmp_path / "study.yaml", lay(folder, bucket))
    assert [run.stages for run in far.runs] == [run.stages for run in near.runs]
    assert far.read_tasks()["b"].digests == near.data.tasks["b"].digests
    assert registry.part_hashes(far.file.content) == registry.part_hashes(near.file.content)
    monkeypatch.setenv("DGG_RAY_DATA", bucket)
    assert load_study(tmp_path / "study.yaml").file.folder == bucket
    saved_study.save_study(far, tmp_path / "out")
    assert json.loads((tmp_path / "out/study.json").read_text())["root"] == bucket
    connect(bucket).rm(bucket, recursive=True)
    kept = saved_study.load_saved_study(tmp_path / "out")
    assert kept.readers == far.readers
    assert fetching.url_of(kept.readers["a"].train) == f"{bucket}/a/train.json"


# -- models ----------------------------------------------------------------------------------------


@pytest.fixture()
def weights(tmp_path):
    """A model's folder with the files that identify it."""
    place = tmp_path / "llava"
    place.mkdir()
    config = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}
    (place / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "preprocessor_config.json", "model.safetensors"):
        (place / name).write_text("{}")
    return place


def llava(path):
    return plugins.find("models", "llava_1_5")(str(path))


def test_a_model_at_a_url_has_the_fingerprint_of_its_folder(weights, bucket, asked):
    url = lay(weights, bucket)
    assert llava(url).faults() == []
    before = llava(weights).fingerprint()
    assert llava(url).fingerprint() == before
    assert len(asked) == 4
    (weights / "model.safetensors").write_text("{ }")
    as_another_process()
    lay(weights, bucket)
    assert llava(url).fingerprint() == llava(weights).fingerprint() != before


def test_a_model_is_loaded_from_a_url(tmp_path):
    from dgg_ray.models import embedded

    url = lay(embedded.FOLDER, f"memory://{uuid.uuid4().hex}")
    model, processor = plugins.find("models", "llava_1_5")(url, dtype="float32").load()
    assert processor.image_token == "<image>"
    assert model.config.model_type == "llava"


def test_reading_a_saved_study_fetches_no_model(asked):
    raw = {
        "name": "x",
        "model": {"name": "llava_1_5", "path": "memory://nowhere/llava"},
        "tasks": [{"name": n, "reader": "embedded"} for n in ("digits", "words")],
        "strategy": "finetune",
        "adapter": {"targets": ["q_proj"]},
    }
    assert loader.build_study(raw, "/", files=False)[1] == []
    assert asked == []
    assert [fault.path for fault in loader.build_study(raw, "/")[1]] == ["model.path"]


# -- URLs that cannot be read ----------------------------------------------------------------------


def test_missing_content_is_a_fault_of_the_study(folder, bucket, tmp_path):
    lay(folder, bucket)
    text = STUDY.replace("a/train.json", "a/trian.json").replace("images: pictures}", "images: none}", 1)
    text = text.replace("model: embedded", f"model: {{name: llava_1_5, path: '{bucket}/llava'}}")
    (tmp_path / "study.yaml").write_text(text)
    found = faults(lambda: load_study(tmp_path / "study.yaml", bucket))
    assert set(found) == {"model.path", "tasks[0].train", "tasks[0].images"}
    assert "line 3" in found["model.path"]
    assert f"nothing is at {bucket}/llava" in found["model.path"]
    assert "line 6" in found["tasks[0].train"]
    assert f"nothing is at {bucket}/a/trian.json" in found["tasks[0].train"]
    assert f"nothing is at {bucket}/none" in found["tasks[0].images"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nosuch://bucket/data", "fsspec does not support nosuch://"),
        ("gs://bucket/data", "gs:// needs a package that is not installed: pip install 'dgg_ray[gcs]'"),
    ],
)
def test_a_missing_package_is_a_fault_of_the_study(url, why, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    found = faults(lambda: read(url))
    assert set(found) == {"train", "test"}
    assert why in found["train"]


def test_denied_access_is_a_fault_of_the_study(folder, monkeypatch):
    def refuse(self):
        return self.request(lambda: (_ for _ in ()).throw(PermissionError("Forbidden")))

    monkeypatch.setattr(FsspecBackend, "list_versions", refuse)
    found = faults(lambda: read("memory://closed"))
    assert "access denied (PermissionError: Forbidden); give this machine credentials" in found["train"]
    assert [path for path, *_ in llava("memory://closed").faults()] == ["path"]


@pytest.mark.whole
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_missing_bucket_is_a_fault_of_the_study(bucket):
    assert "the bucket does not exist" in faults(lambda: read("s3://no-such-bucket/data"))["train"]


def test_file_names_that_lead_out_of_the_url_are_refused(monkeypatch):
    monkeypatch.setattr(FsspecBackend, "list_versions", lambda self: {"../../.bashrc": (1, "")})
    with pytest.raises(PermanentStoreError, match="lead out of it"):
        fetching.local_path("memory://x/y")


# -- one cache for a node --------------------------------------------------------------------------

FETCH = """
import sys
from dgg_ray.storage import fetching
from dgg_ray.storage.fsspec_backend import FsspecBackend
whole = FsspecBackend.download_files
def fetch(self, files):
    print(len(files), flush=True)
    whole(self, files)
FsspecBackend.download_files = fetch
fetching.local_path(sys.argv[1])
"""


def test_a_changed_file_with_its_old_size_and_time_is_fetched_again(folder, tmp_path):
    url = lay(folder, f"local://{tmp_path}/bucket")
    before = read(url, images=Path(f"{url}/pictures")).digests
    file = tmp_path / "bucket" / "a" / "test.json"
    about = file.stat()
    file.write_text(file.read_text().replace("a7", "b7"))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # as `cp -p` and `rsync -t` leave it
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    as_another_process()
    assert read(url, images=Path(f"{url}/pictures")).digests["test"] != before["test"]


def test_two_processes_of_a_node_fetch_once(folder, tmp_path):
    url = lay(folder, f"local://{tmp_path}/bucket")
    command = [sys.executable, "-c", FETCH, f"{url}/pictures"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0] for process in both) == ["", "10\n"]
    assert all(process.returncode == 0 for process in both)


def test_fetched_content_stays_while_its_process_lives_and_other_entries_are_evicted(monkeypatch):
    fs, root = connect("memory://x"), f"memory://{uuid.uuid4().hex}"
    for name in "abc":
        fs.pipe_file(f"{root}/{name}/file", bytes(400))
    fetching.set_cache_limit(1000e-9)
    a, b = (fetching.local_path(f"{root}/{name}") for name in "ab")
    node_cache.NodeCache(gigabytes=0).trim()
    for i in range(node_cache.IN_USE + 1):  # no longer among the last ones
        node_cache.NodeCache().get(f"{i}", lambda folder: None, lambda folder: None)
    node_cache.NodeCache(gigabytes=0).trim()
    assert a.exists()
    assert b.exists()
    as_another_process()
    fetching.local_path(f"{root}/b")
    room, whole = [], FsspecBackend.download_files
    monkeypatch.setattr(
        FsspecBackend, "download_files", lambda self, files: (room.append(not a.exists()), whole(self, files))
    )
    c = fetching.local_path(f"{root}/c")
    assert (a.exists(), b.exists(), c.exists()) == (False, True, True)
    assert room == [True]  # before it was fetched


def test_content_larger_than_the_cache_is_refused(asked):
    root = f"memory://{uuid.uuid4().hex}"
    connect(root).pipe_file(f"{root}/weights", bytes(2000))
    fetching.set_cache_limit(1000e-9)
    with pytest.raises(
        PermanentStoreError,
        match=r"takes 2e-06 GB, but a node's cache is limited to 1e-06 GB: raise workers.cache_gb",
    ):
        fetching.local_path(f"{root}/weights")
    assert asked == []
