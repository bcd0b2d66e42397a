"""A service whose runners are noted rather than started."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from study_samples import GOOD

from dgg_ray.core.errors import ResultsError
from dgg_ray.service.checks import Rules
from dgg_ray.service.launchers import Launcher
from dgg_ray.service.scheduling import Capacity
from dgg_ray.service.server import Options, listen
from dgg_ray.service.service import Service
from dgg_ray.storage.stage_store import open_store

SIMULATED = GOOD + "workers: {engine: simulated}\n"


@dataclass(frozen=True)
class NotedLauncher(Launcher):
    """Notes which runners it was asked to start."""

    started: list[str] = field(default_factory=list)

    def start(self, runner: str) -> None:
        self.started.append(runner)

    def output_of(self, runner: str) -> str:
        return f"{runner}.log"


class NoChild:
    """Calls functions in this process, where the tests have loaded the libraries already."""

    def call(self, function, *arguments):
        return function(*arguments)

    def rest(self):
        pass

    def close(self):
        pass


def make_service(folder, capacity=None, launcher=None) -> Service:
    store = open_store(folder / "store")
    rules = Rules(store.url, str(folder), (str(folder),), str(folder / "root" / "studies"))
    launcher = launcher or NotedLauncher(rules, folder / "root")
    service = Service(store, rules, folder / "root", launcher, capacity or Capacity(2))
    service.child = NoChild()
    return service


@contextmanager
def listening(app) -> Iterator[str]:
    """Let an application listen at a free port, as `dgg-ray serve` does; yield its address."""
    socket = listen(Options(Path(), "", "", (), "127.0.0.1", 0, (), False, Capacity(0)))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def text(name: str = "small", **changes: str) -> str:
    """A study's text under a name, with replaced parts: old → new."""
    found = SIMULATED.replace("name: small", f"name: {name}")
    for old, new in changes.items():
        found = found.replace(old, new)
    return found


class NotedReader:
    """Answers every question about results with what it was asked."""

    def view(self, study, view, /, **params):
        return json.dumps([study, view, params]).encode()

    def compare(self, subjects):
        return json.dumps(subjects).encode()

    def file(self, study, what, /, **params):
        raise ResultsError(f"no {what} {params}")

    def picture(self, study, task, id, split=""):
        raise ResultsError(f"no picture of {id}")

    def close(self):
        pass
