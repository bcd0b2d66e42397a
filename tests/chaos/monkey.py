"""Kill processes of a running study at random moments until enough have died, then let it finish.

    monkey = Monkey(study, folder, seed=1, kills=10).run()
    monkey.killed           number of killed processes of each kind
    Trace.of(folder)        when each stage was started and published

A killed driver takes its Ray cluster with it; it is started again, as a user or a cluster's job would do.
Only descendants of processes that were started here are killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROCESS_TITLES = {  # kind → the titles that Ray gives its processes
    "broker": ("ray::Broker",),
    "controller": ("ray::run_worker_group", "ray::TrainController"),
    "worker": ("ray::RayTrainWorker",),
}
TRACE = Path(__file__).parent / "trace"
STALL_S = 120.0  # a study that starts no stage for so long has failed


@dataclass
class Monkey:
    """Runs one study and kills its processes.

    pause: range of the seconds between two kills; weights: how often each kind of process is chosen.
    """

    study: Path
    folder: Path
    seed: int
    kills: int
    pause: tuple[float, float] = (0.2, 4.0)
    weights: dict[str, float] = field(
        default_factory=lambda: {"driver": 1, "broker": 2, "controller": 3, "worker": 5}
    )
    killed: Counter[str] = field(default_factory=Counter)
    driver: subprocess.Popen | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def run(self) -> Monkey:
        rng = random.Random(self.seed)
        try:
            while True:
                self.start()
                if self.kill_some(rng):
                    return self
        finally:
            self.end()

    def start(self) -> None:
        command = [sys.executable, "-m", "dgg_ray", "run", str(self.study), "--out", str(self.out), "--quiet"]
        path = os.pathsep.join([str(TRACE), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | {"PYTHONPATH": path, "DGG_TRACE": str(self.folder / "trace")}
        with (self.folder / "log").open("a") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)

    def kill_some(self, rng: random.Random) -> bool:
        """Kill one process after another; return whether the study finished with its driver alive."""
        assert self.driver is not None
        while sum(self.killed.values()) < self.kills:
            kind = rng.choices(list(self.weights), list(self.weights.values()))[0]
            pause = rng.uniform(*self.pause)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.driver.wait(timeout=pause) == 0, self.log[-3000:]
                return True
            if kind == "driver" and not self.has_workers():
                continue  # a driver that dies before the first stage makes no progress
            if kind == "driver":
                self.end()
                self.killed[kind] += 1
                return False
            if victims := self.victims(kind):
                with contextlib.suppress(psutil.NoSuchProcess):
                    rng.choice(victims).kill()
                    self.killed[kind] += 1
        self.let_finish()
        return True

    def let_finish(self) -> None:
        """Wait for the end while the study still starts or finishes stages."""
        assert self.driver is not None
        before, now = -1, self.trace_size()
        while now > before:
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.driver.wait(timeout=STALL_S) == 0, self.log[-3000:]
                return
            before, now = now, self.trace_size()
        raise AssertionError(f"no stage was started for {STALL_S:.0f} s: {self.log[-3000:]}")

    def trace_size(self) -> int:
        trace = self.folder / "trace"
        return trace.stat().st_size if trace.exists() else 0  # no stage was started yet

    def has_workers(self) -> bool:
        return bool(self.victims("worker"))

    def victims(self, kind: str) -> list[psutil.Process]:
        return [p for p in self.descendants() if has_title(p, PROCESS_TITLES[kind])]

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.driver is not None:
                return psutil.Process(self.driver.pid).children(recursive=True)
        return []

    def end(self) -> None:
        """Kill the driver and all its descendants, and wait for their end."""
        if self.driver is None or self.driver.poll() is not None:
            return
        descendants = self.descendants()
        self.driver.kill()
        for member in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.driver.wait()
        psutil.wait_procs(descendants, timeout=30)


def has_title(process: psutil.Process, titles: tuple[str, ...]) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline()).startswith(titles)
    return False


@dataclass(frozen=True)
class Trace:
    """Times of each stage, in seconds since the epoch: training starts, and publications."""

    started: dict[str, list[float]]
    published: dict[str, list[float]]

    @classmethod
    def of(cls, folder: Path) -> Trace:
        times: dict[str, dict[str, list[float]]] = {"begin": defaultdict(list), "end": defaultdict(list)}
        for line in (folder / "trace").read_text().splitlines():
            event, key, _, time = line.split()
            times[event][key].append(float(time))
        return cls(dict(times["begin"]), dict(times["end"]))

    @property
    def repeated(self) -> int:
        """Number of training starts beyond the first of each stage."""
        return sum(len(times) - 1 for times in self.started.values())

    @property
    def started_after_publication(self) -> dict[str, float]:
        """Stages that were started again after their publication, with the delay in seconds."""
        delays = {key: max(self.started[key]) - min(times) for key, times in self.published.items()}
        return {key: delay for key, delay in delays.items() if delay > 0}
