"""Kills processes of a running study at random moments, until enough have died, and lets it finish.

    storm = Monkey(study, folder, seed=1, kills=10).run()
    storm.killed            how many of each kind
    trace(folder)           what was learned, when and by whom

A driver that dies takes its Ray with it; it is started again, as a user or a cluster's job would. Only
descendants of processes that were started here are ever ended.
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

VICTIMS = {  # kind → how Ray titles its processes
    "broker": ("ray::Broker",),
    "controller": ("ray::run_fleet", "ray::TrainController"),
    "worker": ("ray::RayTrainWorker",),
}
TRACE = Path(__file__).parent / "trace"
PATIENCE_S = 120.0  # without a stage or an end


@dataclass
class Monkey:
    """pause: seconds between two kills, drawn from this range; weights: of the kinds of processes."""

    study: Path
    folder: Path
    seed: int
    kills: int
    pause: tuple[float, float] = (0.2, 4.0)
    weights: dict[str, float] = field(
        default_factory=lambda: {"driver": 1, "broker": 2, "controller": 3, "worker": 5}
    )
    killed: Counter[str] = field(default_factory=Counter)
    run_of: subprocess.Popen | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def run(self) -> Monkey:
        chance = random.Random(self.seed)
        try:
            while True:
                self.start()
                if self.harass(chance):
                    return self
        finally:
            self.end()

    def start(self) -> None:
        command = [sys.executable, "-m", "dgg_ray", "run", str(self.study), "--out", str(self.out), "--quiet"]
        path = os.pathsep.join([str(TRACE), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = os.environ | {"PYTHONPATH": path, "DGG_TRACE": str(self.folder / "trace")}
        with (self.folder / "log").open("a") as log:
            self.run_of = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)

    def harass(self, chance: random.Random) -> bool:
        """Kill one process after another; whether the study ended well, and not by its driver's death."""
        assert self.run_of is not None
        while sum(self.killed.values()) < self.kills:
            kind = chance.choices(list(self.weights), list(self.weights.values()))[0]
            pause = chance.uniform(*self.pause)
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.run_of.wait(timeout=pause) == 0, self.log[-3000:]
                return True
            if kind == "driver" and not self.working():
                continue  # killed before it learned anything, a study would not get on
            if kind == "driver":
                self.end()
                self.killed[kind] += 1
                return False
            if victims := self.victims(kind):
                with contextlib.suppress(psutil.NoSuchProcess):
                    chance.choice(victims).kill()
                    self.killed[kind] += 1
        self.let_finish()
        return True

    def let_finish(self) -> None:
        """Wait for the end, as long as something is learned now and then."""
        assert self.run_of is not None
        before, now = -1, self.traced()
        while now > before:
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.run_of.wait(timeout=PATIENCE_S) == 0, self.log[-3000:]
                return
            before, now = now, self.traced()
        raise AssertionError(f"nothing was learned for {PATIENCE_S:.0f} s: {self.log[-3000:]}")

    def traced(self) -> int:
        trace = self.folder / "trace"
        return trace.stat().st_size if trace.exists() else 0  # nothing was learned yet

    def working(self) -> bool:
        return bool(self.victims("worker"))

    def victims(self, kind: str) -> list[psutil.Process]:
        return [p for p in self.family() if titled(p, VICTIMS[kind])]

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.run_of is not None:
                return psutil.Process(self.run_of.pid).children(recursive=True)
        return []

    def end(self) -> None:
        """Kill the driver and all that it started, and wait until they are gone."""
        if self.run_of is None or self.run_of.poll() is not None:
            return
        family = self.family()
        self.run_of.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.run_of.wait()
        psutil.wait_procs(family, timeout=30)


def titled(process: psutil.Process, titles: tuple[str, ...]) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline()).startswith(titles)
    return False


@dataclass(frozen=True)
class Trace:
    """Per stage, in seconds since the epoch: when a process began to learn it, when one had published it."""

    begun: dict[str, list[float]]
    ended: dict[str, list[float]]

    @classmethod
    def of(cls, folder: Path) -> Trace:
        times: dict[str, dict[str, list[float]]] = {"begin": defaultdict(list), "end": defaultdict(list)}
        for line in (folder / "trace").read_text().splitlines():
            what, key, _, at = line.split()
            times[what][key].append(float(at))
        return cls(dict(times["begin"]), dict(times["end"]))

    @property
    def repeated(self) -> int:
        """How often a stage was begun beyond once."""
        return sum(len(times) - 1 for times in self.begun.values())

    @property
    def again(self) -> dict[str, float]:
        """Stages begun again after they were finished, and how many seconds after."""
        late = {key: max(self.begun[key]) - min(ends) for key, ends in self.ended.items()}
        return {key: by for key, by in late.items() if by > 0}
