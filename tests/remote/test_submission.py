"""Studies are submitted to a cluster, found by name, and never run twice at the same time."""

import contextlib
import http.server
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import typer
from commands import ROOT, check, in_blocks

from dgg_ray import cli, load_study
from dgg_ray.config import registry
from dgg_ray.core.errors import ClusterError, ResultsError, StudyError
from dgg_ray.execution import progress
from dgg_ray.remote import submission
from dgg_ray.report import page
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import open_store

DOCUMENT = (ROOT / "docs" / "cluster.md").read_text()
STUDY = """\
name: quickstart
question: Does it run from afar?
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 24, validation: 10, test: 12}
  - {name: words, reader: embedded, train: 24, validation: 12, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
workers: {engine: simulated, idle_timeout_s: 1}
protocol: {baselines: [finetune]}
"""
FILES = """\
name: files
model: embedded
tasks:
  - {name: a, reader: llava, train: a/train.json, test: a/test.json, images: pictures}
  - {name: b, reader: llava, train: b/train.json, test: b/test.json, images: pictures}
strategy: dgg
output: {store: /shared/stages}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(STUDY)
    return tmp_path / "quickstart.yaml"


@pytest.fixture
def files(tmp_path):
    """A study of texts in LLaVA's format, two tasks of six examples."""
    for task in "ab":
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            records = [
                {"question_id": f"{task}{split}{i}", "text": f"{split} {i}?", "answer": str(i)}
                for i in range(6)
            ]
            (tmp_path / task / f"{split}.json").write_text(json.dumps(records))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "files.yaml").write_text(FILES)
    return tmp_path / "files.yaml"


def faults(*arguments):
    with pytest.raises(StudyError) as error:
        submission.check_submission(*arguments)
    return {fault.path: fault for fault in error.value.faults}


def options_of_run(words: list[str]) -> dict:
    """The options of `exec python -m dgg_ray run …`, as the command line parses them."""
    assert words[:5] == ["exec", "python", "-m", "dgg_ray", "run"]
    return typer.main.get_command(cli.app).commands["run"].make_context("run", words[5:]).params


# -- checks before anything is uploaded -------------------------------------------------------------


def test_every_fault_is_reported_before_the_head_is_contacted(study, capsys):
    study.write_text(STUDY.replace("alpha: 0.2", "alpha: 2").replace("train: 24", "train: 0"))
    assert cli.main(["submit", str(study), "--dashboard", "http://127.0.0.1:9"]) == 2
    err = capsys.readouterr().err
    assert "line 7  strategy.alpha: must be at most 1, got 2" in err
    assert "line 5  tasks[0].train" in err
    assert "output.store: is required on a cluster" in err


def test_a_store_on_one_machine_is_refused(study):
    assert "absolute path of a shared disk" in faults(study, None, "out/stages")["output.store"].rule
    assert submission.check_submission(study, None, "/shared/stages").store == "/shared/stages"


def test_warm_start_folders_must_be_paths_on_the_cluster(study):
    study.write_text(STUDY + "search: {space: {strategy.buffer: [1, 2]}, warm_start_from: [out/older]}\n")
    assert "~/dgg_ray/NAME" in faults(study, None, "/shared")["search.warm_start_from[0]"].rule


def test_named_files_are_uploaded_and_their_data_are_checked(files):
    submitted = submission.check_submission(files, None, None)
    assert {str(path) for path in submitted.files} == {
        "a/train.json",
        "a/test.json",
        "b/train.json",
        "b/test.json",
        "pictures",
    }
    with submission.runtime_environment(submitted, None) as environment:
        sent = Path(environment["working_dir"])
        assert (sent / "a/train.json").read_text() == (files.parent / "a/train.json").read_text()
        assert (sent / "files.yaml").read_text() == FILES
        (package,) = environment["py_modules"]
        assert Path(package) == Path(submission.__file__).parents[1]
    (files.parent / "a/train.json").write_text("[{}]")
    assert any("train" in path for path in faults(files, None, None))


def test_plugins_next_to_a_study_are_uploaded_with_the_modules_that_they_import(study):
    text = "from dgg_ray.strategies.replay import Replay\nfrom sent_parts import inner\n"
    (study.parent / "sent_ewc.py").write_text(f"{text}\n\nclass Sent(Replay):\n    pass\n")
    (study.parent / "sent_parts").mkdir()
    for name in ("__init__", "inner", "unused"):
        (study.parent / "sent_parts" / f"{name}.py").write_text(f"NAME = {name!r}\n")
    raw = STUDY.replace("{name: dgg, alpha: 0.2, buffer: 4}", '{name: "sent_ewc:Sent"}')
    study.write_text(raw + "output: {store: /shared/stages}\n")
    with submission.runtime_environment(submission.check_submission(study, None, None), None) as environment:
        sent = Path(environment["working_dir"])
        files = {str(path.relative_to(sent)) for path in sent.rglob("*.py")}
        assert files == {"sent_ewc.py", "sent_parts/__init__.py", "sent_parts/inner.py"}


def test_missing_files_are_a_fault_unless_they_are_declared_to_be_on_the_cluster(files):
    (files.parent / "a/train.json").unlink()
    fault = faults(files, None, None)["tasks.a.train"]
    assert "if it is on the cluster, name its folder with --data DIR" in fault.rule
    submitted = submission.check_submission(files, "/data", None)
    assert submitted.files == ()
    assert any("from /data: checked on the cluster" in note for note in submitted.notes)
    assert "--data /data" in submission.job_command(submitted, "/data", "dgg_ray/files")


def test_absolute_paths_that_this_machine_lacks_are_checked_on_the_cluster(files):
    files.write_text(FILES.replace("a/train.json", "/on/the/cluster/train.json"))
    submitted = submission.check_submission(files, None, None)
    assert submitted.notes == ("/on/the/cluster/train.json: checked on the cluster",)


def test_urls_are_neither_uploaded_nor_fetched_here(files, monkeypatch):
    monkeypatch.setattr(fetching, "fetch", lambda url: pytest.fail(f"{url} was fetched"))
    text = FILES.replace("a/train.json", "memory://bucket/train.json")
    text = text.replace("model: embedded", "model: {name: llava_1_5, path: 'memory://bucket/llava'}")
    files.write_text(text)
    submitted = submission.check_submission(files, None, None)
    assert submitted.notes == (
        "memory://bucket/llava: checked on the cluster",
        "memory://bucket/train.json: checked on the cluster",
    )
    assert not any("bucket" in str(path) for path in submitted.files)
    submitted = submission.check_submission(files, "memory://bucket", None)
    assert submitted.files == ()
    words = shlex.split(submission.job_command(submitted, "memory://bucket/data", "x"))
    assert fetching.absolute(options_of_run(words)["data"]) == "memory://bucket/data"


def test_an_upload_that_is_too_large_is_refused_with_its_size_and_advice(files, monkeypatch):
    monkeypatch.setattr(submission, "MAX_UPLOAD_BYTES", 1000)
    (files.parent / "pictures" / "large.png").write_bytes(bytes(3_000_000))
    fault = faults(files, None, None)["tasks"]
    assert "name that folder with --data" in fault.rule
    assert fault.found == "3 MB"


def test_a_path_outside_the_studys_folder_is_not_uploaded(files):
    files.write_text(FILES.replace("a/train.json", "../elsewhere.json"))
    assert "must lie below" in faults(files, None, None)["tasks.a.train"].rule


def test_the_job_is_one_shell_command_also_for_awkward_names(study):
    submitted = submission.check_submission(study, None, "s3://bucket/my stages")
    words = shlex.split(submission.job_command(submitted, None, "dgg_ray/my study"))
    assert words[:5] == ["exec", "python", "-m", "dgg_ray", "run"]
    options = options_of_run(words)
    assert (options["store"], options["ray_address"]) == ("s3://bucket/my stages", "auto")
    assert str(options["out"]) == "$HOME/dgg_ray/my study"
    assert submission.job_id_prefix("plain-name_1") == "plain-name_1"
    assert submission.job_id_prefix("a b") != submission.job_id_prefix("a.b")


def test_pinned_versions_are_installed_without_ray():
    pins = submission.pip_requirements(ROOT / "constraints.txt")
    assert {"torch", "s3fs", "transformers"} <= {pin.partition("==")[0] for pin in pins}
    assert all(pin.count("==") == 1 and not pin.startswith("ray==") for pin in pins)


# -- one name, one study ---------------------------------------------------------------------------


def test_a_study_may_grow_under_its_name_but_not_become_another(study):
    raw = load_study(study).file.content
    mine = registry.part_hashes(raw)
    grown = {
        **raw,
        "seeds": [0, 1],
        "orders": {"design": "all"},
        "budget": {"worker_hours": 1},
        "question": "?",
    }
    registry.refuse_another_study("quickstart", registry.part_hashes(grown), mine, "here")
    other = {**raw, "adapter": {"rank": 3}, "training": {"epochs": 2}}
    with pytest.raises(
        StudyError, match="at here with another adapter and training; give this one another name"
    ):
        registry.refuse_another_study("quickstart", registry.part_hashes(other), mine, "here")


def test_the_location_of_the_data_does_not_change_the_study(files, monkeypatch):
    raw = submission.check_submission(files, None, None).study.file.content
    before = registry.part_hashes(raw)
    monkeypatch.chdir("/")
    assert registry.part_hashes(dict(raw)) == before
    renamed = [{**task, "name": f"{task['name']}2"} for task in raw["tasks"]]
    assert registry.part_hashes({**raw, "tasks": renamed})["tasks"] != before["tasks"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results folder and the store of a finished study, without figures, which take seconds."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "quickstart.yaml").write_text(STUDY)
    out, store = folder / "out", folder / "stages"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_names", list)
        study = str(folder / "quickstart.yaml")
        command = ["run", study, "--local", "--quiet", "--out", str(out), "--store", str(store)]
        assert cli.main(command) == 0
    return out, store


@pytest.mark.whole
def test_a_study_is_read_from_its_store_by_name(finished, tmp_path, capsys, monkeypatch):
    out, store = finished
    monkeypatch.setattr(page, "figure_names", list)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(["studies", "--store", str(store), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["state"]) == ("quickstart", "ended")
    assert cli.main(["best", "quickstart", "--store", str(store), "--json"]) == 0
    afar = json.loads(capsys.readouterr().out)
    assert cli.main(["best", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == afar
    assert cli.main(["report", "quickstart", "--store", str(store)]) == 0
    copy = tmp_path / "out/cluster/quickstart"
    assert (copy / "table.parquet").read_bytes() == (out / "table.parquet").read_bytes()
    assert not (copy / "stages").exists()


def test_an_unknown_name_is_refused_with_the_nearest_known_one(finished, tmp_path):
    _, store = finished
    with pytest.raises(ResultsError, match=r"it holds quickstart\. Did you mean 'quickstart'\?"):
        registry.fetch_results(open_store(store), "quikstart", tmp_path / "copy")


def test_a_download_never_replaces_results_with_stages(finished, tmp_path):
    _, store = finished
    (tmp_path / "mine" / "stages").mkdir(parents=True)
    with pytest.raises(ResultsError, match="stages of its own"):
        registry.fetch_results(open_store(store), "quickstart", tmp_path / "mine")


def test_a_store_shows_a_running_study_until_its_driver_falls_silent(study, tmp_path, monkeypatch):
    checked = load_study(study)
    store, out = open_store(tmp_path / "stages"), tmp_path / "out"
    with contextlib.suppress(KeyboardInterrupt), registry.StatePublisher(checked, store, out) as publisher:
        publisher.live({"at": time.time(), "running": [{"stage": "s", "steps": [1, 2]}], "queued": 3})
        publisher.publishing.join()
        assert [e.state for e in registry.list_studies(store)] == ["running"]
        copy = registry.fetch_results(store, "quickstart", tmp_path / "copy")
        live = progress.read_live(copy)
        assert (live["running"], live["queued"]) == ([{"stage": "s", "steps": [1, 2]}], 3)
        monkeypatch.setattr(registry.time, "time", lambda: 1e12)
        assert [e.state for e in registry.list_studies(store)] == ["silent"]
        monkeypatch.undo()
        raise KeyboardInterrupt
    assert [e.state for e in registry.list_studies(store)] == ["stopped"]
    assert not (out / registry.LIVE).exists()


def test_a_driver_refuses_the_name_of_another_study(study, tmp_path):
    checked = load_study(study)
    store = open_store(tmp_path / "stages")
    with registry.StatePublisher(checked, store, tmp_path / "one"):
        pass
    other = replace(
        checked, file=replace(checked.file, content={**checked.file.content, "adapter": {"rank": 3}})
    )
    with (
        pytest.raises(StudyError, match="another adapter"),
        registry.StatePublisher(other, store, tmp_path / "b", True),
    ):
        pass
    assert not (tmp_path / "b").exists()
    with registry.StatePublisher(checked, store, tmp_path / "two", True):
        pass


def test_an_unreachable_store_ends_no_run(study, tmp_path):
    store = SimpleNamespace(get_document=lambda name: None, put_document=lambda name, content: None, url="")
    with registry.StatePublisher(load_study(study), store, tmp_path / "out") as publisher:
        store.put_document = lambda name, content: (_ for _ in ()).throw(OSError("no route"))
        publisher.live({"at": 0.0, "running": [], "queued": 0})
        assert (tmp_path / "out" / registry.LIVE).exists()


def test_a_hanging_store_delays_neither_a_run_nor_its_end(study, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "END_S", 0.1)
    store, back = (
        SimpleNamespace(get_document=lambda name: None, put_document=lambda *_: None, url=""),
        threading.Event(),
    )
    began = time.monotonic()
    with (
        contextlib.suppress(KeyboardInterrupt),
        registry.StatePublisher(load_study(study), store, tmp_path) as publisher,
    ):
        store.put_document = lambda *_: back.wait(60)
        publisher.live({"at": 0.0, "running": [], "queued": 0})
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
    back.set()
    publisher.publishing.join()


def test_a_download_never_replaces_another_studys_results(finished, tmp_path):
    _, store = finished
    copy = registry.fetch_results(open_store(store), "quickstart", tmp_path / "copy")
    assert registry.fetch_results(open_store(store), "quickstart", copy) == copy
    kept = json.loads((copy / "study.json").read_text())
    for change in ({"name": "another"}, {"adapter": {"rank": 3}}):
        (copy / "study.json").write_text(json.dumps(kept | {"raw": kept["raw"] | change}))
        before = (copy / "study.json").read_text()
        with pytest.raises(ResultsError, match=r"of another study, .* with --download-to"):
            registry.fetch_results(open_store(store), "quickstart", copy)
        assert (copy / "study.json").read_text() == before


@pytest.mark.whole
def test_a_store_at_a_url_refuses_another_study_of_the_same_name(study, tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    store = f"memory://{uuid.uuid4().hex}/stages"
    command = ["run", str(study), "--local", "--quiet", "--store", store, "--out"]
    assert cli.main([*command, str(tmp_path / "one")]) == 0
    study.write_text(STUDY + "adapter: {rank: 3}\n")
    assert cli.main([*command, str(tmp_path / "two")]) == 2
    assert not (tmp_path / "two" / "study.json").exists()


def test_a_shared_disk_that_this_machine_lacks_is_reported_with_the_command_to_run_on_the_head(
    tmp_path, monkeypatch, capsys
):
    job = submission.Job("a-1", "a", 1, "RUNNING", 1.0, 0.0, "", None, {})
    store, out = str(tmp_path / "shared"), "dgg_ray/a"
    job = job._replace(metadata={"store": store, "out": out, "question": ""})
    monkeypatch.setattr(submission, "RayJobsClient", lambda address: SimpleNamespace(jobs=lambda: [job]))
    assert cli.main(["status", "a", "--cluster", "--dashboard", "head"]) == 0
    err = capsys.readouterr().err
    assert f"there is no folder {store} on this machine" in err
    assert "`ray exec cluster.yaml 'dgg-ray report ~/dgg_ray/a'`" in err
    assert cli.main(["report", "a", "--cluster", "--dashboard", "head"]) == 1
    assert "That store cannot be read from here (there is no folder" in capsys.readouterr().err
    (tmp_path / "shared").mkdir()
    assert cli.main(["status", "a", "--cluster", "--dashboard", "head"]) == 0
    assert "its first stages are not known yet" in capsys.readouterr().err


# -- errors of a head are reported in seconds -------------------------------------------------------


@contextlib.contextmanager
def answering(status: int, content: str, token: str = ""):
    """A server that gives one answer to all; where there is a token, 401 or 403 to those without it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization", "")
            code = status if given in (token and f"Bearer {token}", token) else 403 if given else 401
            self.send_response(code)
            self.end_headers()
            self.wfile.write(content.encode() if code == status else b"Unauthorized")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def head_error(address: str) -> str:
    began = time.monotonic()
    with pytest.raises(ClusterError) as error:
        submission.RayJobsClient(address)
    assert time.monotonic() - began < 8
    return str(error.value)


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "DGG_RAY_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_an_address_where_nothing_listens_asks_for_the_tunnel():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "is the cluster up, and the tunnel to it open?" in head_error(f"http://127.0.0.1:{port}")
    assert "no answer from http://nowhere.invalid:1" in head_error("nowhere.invalid:1")


def test_another_service_is_not_taken_for_a_head():
    with answering(200, "<html>hello</html>") as address:
        assert "is not a Ray head that accepts jobs" in head_error(address)
    with answering(404, "") as address:
        assert 'pip install "ray[default]"' in head_error(address)


def test_a_service_without_http_and_a_malformed_address_are_refused():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            came, _ = listening.accept()
            with came:
                came.recv(1000)
                came.sendall(b"SSH-2.0-none\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        message = head_error(f"127.0.0.1:{listening.getsockname()[1]}")
    assert "is not a Ray head that accepts jobs (BadStatusLine: SSH-2.0-none" in message
    assert "http://127.0.0.1:port is not a Ray head that accepts jobs (InvalidURL" in head_error(
        "127.0.0.1:port"
    )


def test_another_version_of_ray_is_refused_with_both_versions():
    import ray

    with answering(200, '{"ray_version": "1.2.3"}') as address:
        message = head_error(address)
    assert f"runs Ray 1.2.3, this machine Ray {ray.__version__}" in message


def test_a_missing_and_a_wrong_token_have_different_messages(monkeypatch, tmp_path):
    with answering(200, '{"ray_version": "1.2.3"}', token="right") as address:
        assert "wants a token, and this machine has none" in head_error(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        assert "refuses this machine's token" in head_error(address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("right\n")
        assert "runs Ray 1.2.3" in head_error(address)  # the token was taken


@pytest.mark.parametrize("names", [("NO_PROXY",), ("no_proxy",), ("no_proxy", "NO_PROXY")])
def test_a_tunnel_bypasses_the_proxy_and_so_do_hosts_that_the_user_excluded(monkeypatch, names):
    from dgg_ray.remote import ray_jobs

    monkeypatch.setattr(
        os, "environ", {"http_proxy": "http://proxy:3128"} | dict.fromkeys(names, "mine, .lab")
    )
    for _ in range(2):
        ray_jobs.bypass_proxy_for_localhost("http://127.0.0.1:8265")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "mine, .lab,127.0.0.1"
    for host in ("mine", "a.lab", "127.0.0.1"):
        assert urllib.request.proxy_bypass_environment(host)  # pyright: ignore
    assert not urllib.request.proxy_bypass_environment("elsewhere")  # pyright: ignore


def test_an_exclusion_of_every_host_is_kept(monkeypatch):
    from dgg_ray.remote import ray_jobs

    monkeypatch.setattr(os, "environ", {"NO_PROXY": "*"})
    ray_jobs.bypass_proxy_for_localhost("http://localhost:8265")
    assert os.environ == {"NO_PROXY": "*"}


# -- end to end, on a cluster of one machine --------------------------------------------------------

WALK = [c for c in in_blocks(DOCUMENT.partition("## Google")[0]) if c.startswith("dgg-ray")]


@pytest.mark.parametrize("command", sorted(set(in_blocks(DOCUMENT))), ids=lambda c: c[:40])
def test_every_command_of_the_document_exists(command):
    check(command)


def free_ports(count: int) -> list[int]:
    """Below those that Ray gives its workers."""
    ports = []
    for port in range(20_000 + os.getpid() % 3000, 30_000):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """`ray start --head` with its dashboard, jobs and a token: an environment in which commands find it."""
    home = tmp_path_factory.mktemp("home")
    gcs, dashboard, client, agent, grpc, metrics = free_ports(6)
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "DGG_RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    temp = Path(f"/tmp/dgg-{os.getpid()}")  # short: the names of sockets are at most 107 characters long
    options = {
        "--port": gcs,
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": dashboard,
        "--ray-client-server-port": client,
        "--dashboard-agent-listen-port": agent,
        "--dashboard-agent-grpc-port": grpc,
        "--metrics-export-port": metrics,
        "--num-cpus": 2,
        "--object-store-memory": 200_000_000,
        "--temp-dir": temp,
    }
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--block"]
    with (home / "head.log").open("w") as log:
        words = [*command, *(f"{name}={value}" for name, value in options.items())]
        head = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", dashboard), 1):
                break
            assert head.poll() is None, (home / "head.log").read_text()
            assert time.monotonic() < deadline, (home / "head.log").read_text()
            time.sleep(0.2)
        yield environment
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        for process in (*family, head):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        subprocess.run(["rm", "-rf", temp], check=True)


@pytest.mark.ray
def test_the_commands_of_the_document_do_what_it_says(cluster, tmp_path, monkeypatch, capfd):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "quickstart.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_TOKEN", "DGG_RAY_ADDRESS"):
        monkeypatch.setenv(name, cluster[name])
    outputs = {}

    def do(command: str) -> str:
        words = shlex.split(command.replace("s3://BUCKET", str(tmp_path / "bucket")))
        code = cli.main(words[1:])
        output = "".join(capfd.readouterr())
        assert code == 0, f"{command}\n{output}"
        return output

    assert [c.split()[1] for c in WALK][:5] == ["submit", "studies", "status", "logs", "stop"]
    for command in WALK:
        outputs[command] = do(command)
    first, again = (outputs[c] for c in WALK if "submit" in c)
    assert "job quickstart-1, stages in" in first
    assert "quickstart-2" in again or "quickstart-1" in again
    assert "stages trained" in again or "nothing trained" in again
    assert (tmp_path / "out/cluster/quickstart/report.html").stat().st_size > 10_000
    assert "Does it run from afar?" in outputs["dgg-ray studies --store s3://BUCKET/stages"]
    assert (Path(cluster["HOME"]) / "dgg_ray/quickstart/report.html").exists()


@pytest.mark.ray
def test_a_study_runs_once_however_often_it_is_submitted(cluster, study, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, cluster[name])
    address = cluster["DGG_RAY_ADDRESS"]
    study.write_text(STUDY.replace("name: quickstart", "name: a b"))
    monkeypatch.setattr(submission, "job_command", lambda *_: "sleep 60")
    one, new, _ = submission.submit(study, address, None, "/nowhere/stages", None)
    assert new
    two, new, _ = submission.submit(study, address, None, "/nowhere/stages", None)
    assert (two.id, new) == (one.id, False)
    client = submission.RayJobsClient(address)
    assert not client.submit(one.id, "true", one.metadata)  # of two at the same moment, one
    study.write_text(study.read_text().replace("alpha: 0.2", "alpha: 0.3"))
    with pytest.raises(StudyError, match="with another strategy; give this one another name"):
        submission.submit(study, address, None, "/nowhere/stages", None)
    assert client.stop(one).state == "STOPPED"
    with pytest.raises(
        ClusterError, match=r"it knows a b(, quickstart)?\. Did you mean 'a b'\? A head forgets"
    ):
        submission.find_job(client, "a bb")
