"""The server is killed at random moments while studies are submitted, stopped, resumed and cloned.

No study is lost, none has two runners, and the order of the queue is the order in which they came.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from server_samples import text

from dgg_ray.core.errors import StudyError
from dgg_ray.service.client import OVER, Client, ServerError
from dgg_ray.service.journal import Journal
from dgg_ray.service.state import ACTIVE, State
from dgg_ray.storage.stage_store import open_store

START_S, END_S = 120.0, 600.0


class Server:
    """A server in a process of its own, that can be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root, self.process = root, None

    def start(self) -> Client:
        command = [sys.executable, "-m", "dgg_ray", "serve", "--root", str(self.root), "--port", "0"]
        command += ["--cpus", "2"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=self.root, start_new_session=True
        )
        for line in self.process.stdout:
            if match := re.search(r"(http://\S+?)/login\?token=(\S+)", line):
                return Client(*match.groups())
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        """Kill the server alone; its runners go on, and the processes that read for it end by themselves."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def runners_of(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "dgg_ray.service.runner" in words and str(root) in words:
                found.append(process)
    return found


class Moment(NamedTuple):
    """An event, the studies that waited before it as they came, and the busy runners after it."""

    event: dict[str, Any]
    waiting: list[str]
    runners: list[str]


def every_moment(store) -> list[Moment]:
    moments = []

    class Noted(State):
        def apply(self, number, event):
            waiting = [study.name for study in sorted(self.queued, key=lambda study: study.number)]
            super().apply(number, event)
            runners = [study.runner for study in self.studies.values() if study.state in ACTIVE]
            moments.append(Moment(event, waiting, runners))

    journal = Journal(store.backend)
    journal.state = Noted()
    journal.catch_up()
    return moments


@pytest.mark.parametrize(
    "kills", [pytest.param(4, marks=pytest.mark.whole), pytest.param(50, marks=pytest.mark.slow)]
)
def test_a_killed_server_loses_nothing_and_starts_nothing_twice(tmp_path, kills):
    rng, server = random.Random(0), Server(tmp_path)
    accepted: list[str] = []
    client, number = server.start(), 0
    try:
        for _ in range(kills):
            until = time.monotonic() + rng.uniform(0.2, 4.0)
            while time.monotonic() < until:
                number += 1
                name, act = f"s{number}", rng.choice(["submit", "submit", "stop", "resume", "clone"])
                with contextlib.suppress(ServerError, StudyError):
                    if act == "submit" or not accepted:
                        if len(accepted) < 15:
                            client.submit(text(name))
                            accepted.append(name)
                    elif act == "clone" and len(accepted) < 15:
                        client.clone(rng.choice(accepted), name)
                        accepted.append(name)
                    elif act in ("stop", "resume"):
                        getattr(client, act)(rng.choice(accepted))
                time.sleep(rng.uniform(0.0, 0.3))
            server.kill()
            client = server.start()
        for name in accepted:  # what was stopped goes on to its end
            with contextlib.suppress(ServerError):
                client.resume(name)
        deadline = time.monotonic() + END_S
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            states = {card["name"]: card["state"] for card in client.studies()}
            if all(state in OVER for state in states.values()):
                break
            for name, state in states.items():
                if state == "stopped":
                    with contextlib.suppress(ServerError):
                        client.resume(name)
            time.sleep(1.0)
        assert set(accepted) <= set(states)
        assert {state for name, state in states.items() if name in accepted} == {"finished"}
        journal = every_moment(open_store(tmp_path / "store"))
        assert all(len(at.runners) == len(set(at.runners)) <= 2 for at in journal)
        submitted = [at.event["study"] for at in journal if at.event["kind"] == "submitted"]
        assert [name for name in submitted if name in accepted] == accepted
        started = [at for at in journal if at.event["kind"] == "started"]
        assert all(at.event["study"] == at.waiting[0] for at in started)
        assert {at.event["study"] for at in started} >= set(accepted)
    finally:
        server.kill()
        for runner in runners_of(tmp_path):
            runner.terminate()
        psutil.wait_procs(runners_of(tmp_path), timeout=20)
