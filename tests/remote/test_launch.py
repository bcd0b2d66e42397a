"""Studies are sent to a cluster, found again by name, and never run twice at once."""

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
from commands import ROOT, check, in_blocks

from dgg_ray import cli, load_study
from dgg_ray.config import registry
from dgg_ray.core.errors import ClusterError, ResultsError, StudyError
from dgg_ray.execution import progress
from dgg_ray.remote import submission
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import StageStore

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
        submission.checked(*arguments)
    return {fault.path: fault for fault in error.value.faults}


# -- what is checked before anything is sent -------------------------------------------------------


def test_every_fault_is_told_before_the_head_is_asked(study, capsys):
    study.write_text(STUDY.replace("alpha: 0.2", "alpha: 2").replace("train: 24", "train: 0"))
    assert cli.main(["submit", str(study), "--address", "http://127.0.0.1:9"]) == 2
    told = capsys.readouterr().err
    assert "line 7  strategy.alpha: must be at most 1, got 2" in told
    assert "line 5  tasks[0].train" in told
    assert "output.store: is required on a cluster" in told


def test_a_store_of_one_machine_is_refused(study):
    assert "full path of a shared disk" in faults(study, None, "out/stages")["output.store"].rule
    assert submission.checked(study, None, "/shared/stages").store == "/shared/stages"


def test_older_results_must_be_named_as_the_cluster_has_them(study):
    study.write_text(STUDY + "search: {space: {strategy.buffer: [1, 2]}, warm_start_from: [out/older]}\n")
    assert "~/dgg_ray/NAME" in faults(study, None, "/shared")["search.warm_start_from[0]"].rule


def test_files_that_a_study_names_are_sent_with_it_and_its_data_are_checked(files):
    errand = submission.checked(files, None, None)
    assert {str(path) for path in errand.files} == {
        "a/train.json",
        "a/test.json",
        "b/train.json",
        "b/test.json",
        "pictures",
    }
    with submission.packed(errand, None) as environment:
        sent = Path(environment["working_dir"])
        assert (sent / "a/train.json").read_text() == (files.parent / "a/train.json").read_text()
        assert (sent / "files.yaml").read_text() == FILES
        (package,) = environment["py_modules"]
        assert Path(package) == Path(submission.__file__).parents[1]
    (files.parent / "a/train.json").write_text("[{}]")
    assert any("train" in path for path in faults(files, None, None))


def test_plugins_that_stand_beside_a_study_are_sent_with_it_and_with_what_they_import(study):
    text = "from dgg_ray.strategies.replay import Replay\nfrom sent_parts import inner\n"
    (study.parent / "sent_ewc.py").write_text(f"{text}\n\nclass Sent(Replay):\n    pass\n")
    (study.parent / "sent_parts").mkdir()
    for name in ("__init__", "inner", "unused"):
        (study.parent / "sent_parts" / f"{name}.py").write_text(f"NAME = {name!r}\n")
    raw = STUDY.replace("{name: dgg, alpha: 0.2, buffer: 4}", '{name: "sent_ewc:Sent"}')
    study.write_text(raw + "output: {store: /shared/stages}\n")
    with submission.packed(submission.checked(study, None, None), None) as environment:
        sent = Path(environment["working_dir"])
        found = {str(path.relative_to(sent)) for path in sent.rglob("*.py")}
        assert found == {"sent_ewc.py", "sent_parts/__init__.py", "sent_parts/inner.py"}


def test_files_that_are_not_here_are_a_fault_unless_they_are_said_to_be_on_the_cluster(files):
    (files.parent / "a/train.json").unlink()
    found = faults(files, None, None)["tasks.a.train"]
    assert "--data DIR says that it is on the cluster" in found.rule
    errand = submission.checked(files, "/data", None)
    assert errand.files == ()
    assert any("from /data: looked at on the cluster" in note for note in errand.notes)
    assert "--data /data" in submission.entrypoint(errand, "/data", "dgg_ray/files")


def test_full_paths_that_are_not_here_are_looked_at_there(files):
    files.write_text(FILES.replace("a/train.json", "/on/the/cluster/train.json"))
    errand = submission.checked(files, None, None)
    assert errand.notes == ("/on/the/cluster/train.json: looked at on the cluster",)


def test_urls_are_neither_sent_nor_fetched_here(files, monkeypatch):
    monkeypatch.setattr(fetching, "fetched", lambda url: pytest.fail(f"{url} was fetched"))
    text = FILES.replace("a/train.json", "memory://bucket/train.json")
    text = text.replace("model: embedded", "model: {name: llava_1_5, path: 'memory://bucket/llava'}")
    files.write_text(text)
    errand = submission.checked(files, None, None)
    assert errand.notes == (
        "memory://bucket/llava: looked at on the cluster",
        "memory://bucket/train.json: looked at on the cluster",
    )
    assert not any("bucket" in str(path) for path in errand.files)
    errand = submission.checked(files, "memory://bucket", None)
    assert errand.files == ()
    words = shlex.split(submission.entrypoint(errand, "memory://bucket/data", "x"))
    told = cli.parser().parse_args(words[4:])
    assert fetching.full(told.data) == "memory://bucket/data"


def test_too_much_to_send_names_the_sizes_and_the_way_out(files, monkeypatch):
    monkeypatch.setattr(submission, "LARGEST", 1000)
    (files.parent / "pictures" / "large.png").write_bytes(bytes(3_000_000))
    found = faults(files, None, None)["tasks"]
    assert "name that folder with --data" in found.rule
    assert found.found == "3 MB"


def test_a_path_out_of_the_studys_folder_is_not_sent(files):
    files.write_text(FILES.replace("a/train.json", "../elsewhere.json"))
    assert "must lie below" in faults(files, None, None)["tasks.a.train"].rule


def test_the_job_is_one_command_for_a_shell_with_awkward_names(study):
    errand = submission.checked(study, None, "s3://bucket/my stages")
    words = shlex.split(submission.entrypoint(errand, None, "dgg_ray/my study"))
    assert words[:5] == ["exec", "python", "-m", "dgg_ray", "run"]
    options = cli.parser().parse_args(words[4:])
    assert (options.store, options.address) == ("s3://bucket/my stages", "auto")
    assert str(options.out) == "$HOME/dgg_ray/my study"
    assert submission.slug("plain-name_1") == "plain-name_1"
    assert submission.slug("a b") != submission.slug("a.b")


def test_the_pinned_set_is_installed_without_ray_which_is_the_images_own():
    pins = submission.requirements(ROOT / "constraints.txt")
    assert {"torch", "s3fs", "transformers"} <= {pin.partition("==")[0] for pin in pins}
    assert all(pin.count("==") == 1 and not pin.startswith("ray==") for pin in pins)


# -- one name, one study ---------------------------------------------------------------------------


def test_a_study_may_grow_under_its_name_and_not_become_another(study):
    raw = load_study(study).raw
    mine = registry.parts(raw)
    grown = {
        **raw,
        "seeds": [0, 1],
        "orders": {"design": "all"},
        "budget": {"worker_hours": 1},
        "question": "?",
    }
    registry.refuse_other("quickstart", registry.parts(grown), mine, "here")
    other = {**raw, "adapter": {"rank": 3}, "training": {"epochs": 2}}
    with pytest.raises(
        StudyError, match="at here with another adapter and training; give this one another name"
    ):
        registry.refuse_other("quickstart", registry.parts(other), mine, "here")


def test_where_the_data_lie_makes_no_other_study(files, monkeypatch):
    raw = submission.checked(files, None, None).study.raw
    before = registry.parts(raw)
    monkeypatch.chdir("/")
    assert registry.parts(dict(raw)) == before
    renamed = [{**task, "name": f"{task['name']}2"} for task in raw["tasks"]]
    assert registry.parts({**raw, "tasks": renamed})["tasks"] != before["tasks"]


def run_here(study, tmp_path):
    out, store = tmp_path / "out", tmp_path / "stages"
    command = ["run", str(study), "--local", "--quiet", "--out", str(out), "--store", str(store)]
    assert cli.main(command) == 0
    return out, store


def test_a_study_is_read_from_its_store_by_name(study, tmp_path, capsys, monkeypatch):
    out, store = run_here(study, tmp_path)
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


def test_a_name_that_the_store_does_not_know_names_the_nearest(study, tmp_path, capsys):
    _, store = run_here(study, tmp_path)
    with pytest.raises(ResultsError, match="did you mean 'quickstart'"):
        registry.fetched(StageStore(store), "quikstart", tmp_path / "copy")


def test_a_copy_never_takes_the_place_of_results_with_stages(study, tmp_path):
    _, store = run_here(study, tmp_path)
    (tmp_path / "mine" / "stages").mkdir(parents=True)
    with pytest.raises(ResultsError, match="stages of its own"):
        registry.fetched(StageStore(store), "quickstart", tmp_path / "mine")


def test_a_store_tells_what_runs_until_it_falls_silent(study, tmp_path, monkeypatch):
    checked = load_study(study)
    store, out = StageStore(tmp_path / "stages"), tmp_path / "out"
    with contextlib.suppress(KeyboardInterrupt), registry.Ledger(checked, store, out) as told:
        told.live({"at": time.time(), "running": [{"stage": "s", "steps": [1, 2]}], "queued": 3})
        told.telling.join()
        assert [e.state for e in registry.entries(store)] == ["running"]
        copy = registry.fetched(store, "quickstart", tmp_path / "copy")
        assert progress.live(copy) == {"running": [{"stage": "s", "steps": [1, 2]}], "queued": 3}
        monkeypatch.setattr(registry.time, "time", lambda: 1e12)
        assert [e.state for e in registry.entries(store)] == ["silent"]
        monkeypatch.undo()
        raise KeyboardInterrupt
    assert [e.state for e in registry.entries(store)] == ["stopped"]
    assert not (out / registry.LIVE).exists()


def test_a_driver_does_not_take_over_another_studys_name(study, tmp_path):
    checked = load_study(study)
    store = StageStore(tmp_path / "stages")
    with registry.Ledger(checked, store, tmp_path / "one"):
        pass
    other = replace(checked, raw={**checked.raw, "adapter": {"rank": 3}})
    with (
        pytest.raises(StudyError, match="another adapter"),
        registry.Ledger(other, store, tmp_path / "b", True),
    ):
        pass
    assert not (tmp_path / "b").exists()
    with registry.Ledger(checked, store, tmp_path / "two", True):
        pass


def test_a_store_out_of_reach_ends_no_run(study, tmp_path):
    store = SimpleNamespace(noted=lambda name: None, note=lambda name, content: None, url="")
    with registry.Ledger(load_study(study), store, tmp_path / "out") as told:
        store.note = lambda name, content: (_ for _ in ()).throw(OSError("no route"))
        told.live({"at": 0.0, "running": [], "queued": 0})
        assert (tmp_path / "out" / registry.LIVE).exists()


def test_a_store_that_hangs_holds_up_neither_a_run_nor_its_end(study, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "END_S", 0.1)
    store, back = SimpleNamespace(noted=lambda name: None, note=lambda *_: None, url=""), threading.Event()
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), registry.Ledger(load_study(study), store, tmp_path) as told:
        store.note = lambda *_: back.wait(60)
        told.live({"at": 0.0, "running": [], "queued": 0})
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30
    back.set()
    told.telling.join()


def test_a_copy_never_takes_the_place_of_another_studys(study, tmp_path):
    _, store = run_here(study, tmp_path)
    copy = registry.fetched(StageStore(store), "quickstart", tmp_path / "copy")
    assert registry.fetched(StageStore(store), "quickstart", copy) == copy
    kept = json.loads((copy / "study.json").read_text())
    for change in ({"name": "another"}, {"adapter": {"rank": 3}}):
        (copy / "study.json").write_text(json.dumps(kept | {"raw": kept["raw"] | change}))
        before = (copy / "study.json").read_text()
        with pytest.raises(ResultsError, match=r"of another study, .* with --copy"):
            registry.fetched(StageStore(store), "quickstart", copy)
        assert (copy / "study.json").read_text() == before


def test_a_store_by_url_is_shared_whoever_runs_a_study_with_it(study, tmp_path, monkeypatch):
    monkeypatch.setenv("DGG_RAY_CACHE", str(tmp_path / "cache"))
    store = f"memory://{uuid.uuid4().hex}/stages"
    command = ["run", str(study), "--local", "--quiet", "--store", store, "--out"]
    assert cli.main([*command, str(tmp_path / "one")]) == 0
    study.write_text(STUDY + "adapter: {rank: 3}\n")
    assert cli.main([*command, str(tmp_path / "two")]) == 2
    assert not (tmp_path / "two" / "study.json").exists()


def test_a_disk_of_the_cluster_that_is_not_here_says_so_and_where_to_ask(tmp_path, monkeypatch, capsys):
    job = submission.Job("a-1", "a", 1, "RUNNING", 1.0, 0.0, "", None, {})
    store, out = str(tmp_path / "shared"), "dgg_ray/a"
    job = job._replace(about={"store": store, "out": out, "question": ""})
    monkeypatch.setattr(submission, "Head", lambda address: SimpleNamespace(jobs=lambda: [job]))
    assert cli.main(["status", "a", "--address", "head"]) == 0
    told = capsys.readouterr().err
    assert f"there is no folder {store} on this machine" in told
    assert "`ray exec cluster.yaml 'dgg-ray report ~/dgg_ray/a'`" in told
    assert cli.main(["report", "a", "--address", "head"]) == 1
    assert "That store cannot be read from here (there is no folder" in capsys.readouterr().err
    (tmp_path / "shared").mkdir()
    assert cli.main(["status", "a", "--address", "head"]) == 0
    assert "its first stages are not known yet" in capsys.readouterr().err


# -- what is wrong with a head is told in seconds --------------------------------------------------


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
        submission.Head(address)
    assert time.monotonic() - began < 8
    return str(error.value)


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "DGG_RAY_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_an_address_where_nobody_listens_asks_for_the_tunnel():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "is the cluster up, and the tunnel to it open?" in head_error(f"http://127.0.0.1:{port}")
    assert "no answer from http://nowhere.invalid:1" in head_error("nowhere.invalid:1")


def test_another_service_is_no_head():
    with answering(200, "<html>hello</html>") as address:
        assert "is no Ray head that takes jobs" in head_error(address)
    with answering(404, "") as address:
        assert 'pip install "ray[default]"' in head_error(address)


def test_what_speaks_no_http_is_no_head_nor_is_an_address_that_is_none():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            came, _ = listening.accept()
            with came:
                came.recv(1000)
                came.sendall(b"SSH-2.0-none\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        told = head_error(f"127.0.0.1:{listening.getsockname()[1]}")
    assert "is no Ray head that takes jobs (BadStatusLine: SSH-2.0-none" in told
    assert "http://127.0.0.1:port is no Ray head that takes jobs (InvalidURL" in head_error("127.0.0.1:port")


def test_another_version_of_ray_names_both():
    import ray

    with answering(200, '{"ray_version": "1.2.3"}') as address:
        told = head_error(address)
    assert f"runs Ray 1.2.3, this machine Ray {ray.__version__}" in told


def test_a_missing_and_a_wrong_token_are_told_apart(monkeypatch, tmp_path):
    with answering(200, '{"ray_version": "1.2.3"}', token="right") as address:
        assert "wants a token, and there is none here" in head_error(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        assert "does not take this token" in head_error(address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("right\n")
        assert "runs Ray 1.2.3" in head_error(address)  # the token was taken


@pytest.mark.parametrize("names", [("NO_PROXY",), ("no_proxy",), ("no_proxy", "NO_PROXY")])
def test_a_tunnel_goes_around_the_proxy_and_so_does_what_the_user_excluded(monkeypatch, names):
    from dgg_ray.remote import ray_jobs

    monkeypatch.setattr(
        os, "environ", {"http_proxy": "http://proxy:3128"} | dict.fromkeys(names, "mine, .lab")
    )
    for _ in range(2):
        ray_jobs.around_proxies("http://127.0.0.1:8265")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "mine, .lab,127.0.0.1"
    for host in ("mine", "a.lab", "127.0.0.1"):
        assert urllib.request.proxy_bypass_environment(host)  # pyright: ignore
    assert not urllib.request.proxy_bypass_environment("elsewhere")  # pyright: ignore


def test_an_exclusion_of_every_host_stays_one(monkeypatch):
    from dgg_ray.remote import ray_jobs

    monkeypatch.setattr(os, "environ", {"NO_PROXY": "*"})
    ray_jobs.around_proxies("http://localhost:8265")
    assert os.environ == {"NO_PROXY": "*"}


# -- the whole way, with a cluster of one machine --------------------------------------------------

WALK = [c for c in in_blocks(DOCUMENT.partition("## Google")[0]) if c.startswith("dgg-ray")]


@pytest.mark.parametrize("command", sorted(set(in_blocks(DOCUMENT))), ids=lambda c: c[:40])
def test_every_command_of_the_document_exists(command):
    check(command)


def free_ports(count: int) -> list[int]:
    """Below those that Ray gives its workers."""
    found = []
    for port in range(20_000 + os.getpid() % 3000, 30_000):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
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
        deadline = time.monotonic() + 60
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
def test_the_documents_commands_do_what_it_says(cluster, tmp_path, monkeypatch, capfd):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "quickstart.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_TOKEN", "DGG_RAY_ADDRESS"):
        monkeypatch.setenv(name, cluster[name])
    said = {}

    def do(command: str) -> str:
        words = shlex.split(command.replace("s3://BUCKET", str(tmp_path / "bucket")))
        code = cli.main(words[1:])
        told = "".join(capfd.readouterr())
        assert code == 0, f"{command}\n{told}"
        return told

    assert [c.split()[1] for c in WALK][:5] == ["submit", "studies", "status", "logs", "stop"]
    for command in WALK:
        said[command] = do(command)
    first, again = (said[c] for c in WALK if "submit" in c)
    assert "job quickstart-1, stages in" in first
    assert "quickstart-2" in again or "quickstart-1" in again
    assert "stages trained" in again or "nothing trained" in again
    assert (tmp_path / "out/cluster/quickstart/report.html").stat().st_size > 10_000
    assert "Does it run from afar?" in said["dgg-ray studies --store s3://BUCKET/stages"]
    assert (Path(cluster["HOME"]) / "dgg_ray/quickstart/report.html").exists()


@pytest.mark.ray
def test_a_study_runs_once_however_often_it_is_submitted(cluster, study, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, cluster[name])
    address = cluster["DGG_RAY_ADDRESS"]
    study.write_text(STUDY.replace("name: quickstart", "name: a b"))
    monkeypatch.setattr(submission, "entrypoint", lambda *_: "sleep 60")
    one, new, _ = submission.submit(study, address, None, "/nowhere/stages", None)
    assert new
    two, new, _ = submission.submit(study, address, None, "/nowhere/stages", None)
    assert (two.id, new) == (one.id, False)
    head = submission.Head(address)
    assert not head.submit(one.id, "true", one.about)  # of two at the same moment, one
    study.write_text(study.read_text().replace("alpha: 0.2", "alpha: 0.3"))
    with pytest.raises(StudyError, match="with another strategy; give this one another name"):
        submission.submit(study, address, None, "/nowhere/stages", None)
    assert head.stop(one).state == "STOPPED"
    with pytest.raises(ClusterError, match="has run no study 'a bb'; did you mean 'a b'"):
        submission.the_job(head, "a bb")
