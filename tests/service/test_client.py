"""The Python client and the command line against a server on loopback."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from server_samples import NotedReader, text
from service_samples import begin as study_runs_here
from service_samples import sample

import dgg_ray
from dgg_ray.cli import main
from dgg_ray.core.errors import StudyError
from dgg_ray.service import accounts
from dgg_ray.service.app import make_app
from dgg_ray.service.client import ANSWER_S, Client, ServerError
from dgg_ray.service.reader import TIME_LIMIT_S
from dgg_ray.service.security import Access


@pytest.fixture
def server(service, listen, monkeypatch):
    """The address of a server whose studies are ended by the test."""
    monkeypatch.setattr(type(service), "start", lambda self: None)
    return listen(make_app(service, NotedReader(), Access(service.journal)))


@pytest.fixture
def client(server, service):
    return Client(server, accounts.add_user(service.journal, "ada", "admin", "test"))


def test_a_study_is_submitted_steered_and_cloned(client, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(text())
    assert client.validate(file)["faults"] == []
    assert client.plan(file)["distinct"] > 0
    assert client.submit(file, priority=2)["priority"] == 2
    assert client.set_priority("small", 5)["priority"] == 5
    assert client.stop("small")["state"] == "stopped"
    assert client.resume("small", text(**{"trials: 4": "trials: 5"}))["state"] == "queued"
    assert "trials: 5" in client.study("small")["text"]
    assert client.clone("small", "second", {"strategy.buffer": 3})["cloned_from"] == "small"
    assert [card["name"] for card in client.studies(sort="name")] == ["second", "small"]
    client.delete("second")
    assert [card["name"] for card in client.studies()] == ["small"]
    assert client.me()["name"] == "ada"
    assert [card["name"] for card in client.queue()["waiting"]] == ["small"]


def test_faults_are_those_of_the_file(client):
    with pytest.raises(StudyError) as caught:
        client.submit(text(**{"model: embedded": "model: embeded"}))
    (fault,) = caught.value.faults
    assert (fault.path, fault.line, fault.near) == ("model.name", 2, "embedded")


def test_refusals_say_why(client, server):
    with pytest.raises(ServerError, match="no study 'nobody'") as caught:
        client.study("nobody")
    assert caught.value.status == 404
    with pytest.raises(ServerError, match="DGG_RAY_TOKEN"):
        Client(server, "").me()
    with pytest.raises(ServerError, match="does `dgg-ray serve` run"):
        Client("http://127.0.0.1:9", "").me()


@pytest.fixture
def stranger():
    """A server of something else: (its address, its answers by path, each (status, media type, bytes))."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, media_type, body, length = answers[self.path.removeprefix("/api/v1").partition("?")[0]]
            self.send_response(status)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "media_type", "body", "found"),
    [
        (200, "text/html", b"<h1>Welcome</h1>", "what is no JSON"),
        (502, "text/html", b"<h1>Bad gateway</h1>", "status 502"),
        (400, "application/json", b'["no", "problem"]', "status 400"),
    ],
)
def test_an_answer_of_something_else_is_said_to_be_one(stranger, status, media_type, body, found):
    address, answers = stranger
    answers["/me"] = (status, media_type, body, len(body))
    with pytest.raises(ServerError, match=f"answers with {found}; is it a dgg_ray service") as caught:
        Client(address).me()
    assert caught.value.status == status
    answers["/studies/a/events"] = (200, "text/html", body, len(body))
    with pytest.raises(ServerError, match="what is no stream of events; is it a dgg_ray service"):
        next(Client(address).follow("a"))


def test_a_download_that_breaks_off_leaves_no_file_and_says_so(stranger, tmp_path):
    address, answers = stranger
    answers["/studies/a/report"] = (200, "text/html", b"<html>", 1000)
    (tmp_path / "old.html").write_text("the old one")
    with pytest.raises(ServerError, match=r"was lost while .*old\.html was downloaded; ask again"):
        Client(address).report("a", tmp_path / "old.html")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"old.html": "the old one"}
    answers["/studies/a/report"] = (200, "text/html", b"<html>", 6)
    assert Client(address).report("a", tmp_path / "old.html").read_text() == "<html>"


def test_a_decision_of_an_unknown_kind_is_refused_here(client):
    with pytest.raises(ServerError, match=r"'stop_seting'; there are .*Did you mean 'stop_setting'"):
        client.decide("small", "stop_seting", setting="1a2b3c4d")
    with pytest.raises(ServerError, match="pin needs a setting"):
        client.decide("small", "pin")
    with pytest.raises(ServerError, match="no study 'small'"):
        client.decide("small", "pin", setting="1a2b3c4d")


def test_the_client_waits_longer_than_the_server_reads():
    assert ANSWER_S > TIME_LIMIT_S


@pytest.mark.whole
def test_a_study_is_followed_until_it_is_over(client, service):
    client.submit(text())

    def end():
        time.sleep(1.5)
        service.supervise()
        facts = {"by": "runner", "study": "small"}
        service.journal.commit(lambda state: {"kind": "began", **facts})
        time.sleep(1.5)
        service.journal.commit(lambda state: {"kind": "ended", "how": "finished", **facts})

    thread = threading.Thread(target=end)
    thread.start()
    states = [card["state"] for card in client.follow("small")]
    thread.join()
    assert states[0] == "queued"
    assert states[-1] == "finished"
    assert "running" in states


def test_the_command_line_asks_a_server(client, server, service, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DGG_RAY_TOKEN", client.session.headers["authorization"].split()[1])
    file = tmp_path / "study.yaml"
    file.write_text(text())
    ask = ["--server", server]
    assert run(capsys, "submit", str(file), *ask) == (
        0,
        "small: queued, starts now\n  owner             ada\n",
    )
    code, out = run(capsys, "status", "small", *ask)
    assert (code, out.splitlines()[0]) == (0, "small: queued, starts now")
    service.store.put_document("service/logs/small", {"at": 0.0, "text": "trained\n"})
    assert run(capsys, "logs", "small", *ask) == (0, "trained\n")
    assert run(capsys, "stop", "small", *ask)[1].startswith("small: stopped")
    file.write_text(text(**{"model: embedded": "model: embeded"}))
    assert run(capsys, "submit", str(file), *ask)[0] == 2
    assert dgg_ray.Client is Client


def test_status_reads_other_results_where_only_the_environment_names_a_server(
    client, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DGG_RAY_TOKEN", client.session.headers["authorization"].split()[1])
    monkeypatch.setenv("DGG_RAY_SERVER", server)
    monkeypatch.chdir(tmp_path)
    client.submit(text())
    study_runs_here(sample(name="small"), tmp_path / "small")
    (tmp_path / "empty").mkdir()
    assert run(capsys, "status", "small")[1].startswith("small: 3 settings")
    assert run(capsys, "status", "small", "--server", server)[1].startswith("small: queued")
    assert run(capsys, "status", "empty")[0] == 1  # the server knows none of that name
    store = str(tmp_path / "nothing")
    code = main(["status", "other", "--store", store])
    assert (code, store in capsys.readouterr().err) == (1, True)
    code = main(["status", "small", "--server", server, "--store", store, "--download-to", "x"])
    assert code == 2
    assert "--store, --download-to" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("option", ["--store", "--data", "--out", "--pip"])
def test_what_a_service_would_not_heed_is_refused(option, monkeypatch, capsys, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(text())
    monkeypatch.setenv("DGG_RAY_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("DGG_RAY_STORE", str(tmp_path))  # it is for every command, and no option of this one
    assert main(["submit", str(file)]) == 1
    assert "no answer from" in capsys.readouterr().err
    assert main(["submit", str(file), option, str(file)]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"so {option} would do nothing; leave that out, or submit to a cluster" in said


def run(capsys, *arguments):
    code = main(list(arguments))
    return code, capsys.readouterr().out
