"""Fleets that do nothing but wait: what the broker, Ray Train and the store take of their time.

    python benchmarks/cluster.py [--only stages|restart] [--fleets 1 2 4 8 16 32] [--seconds 5]

stages   share of the time that fleets spend on stages of 5 s, against plain Ray tasks that sleep as long;
         from when the last fleet began its first stage: until then, others' start-up takes all cores
restart  a broker that is killed while 10,000 stages wait: until it knows them again, until it hands one out
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from dgg_ray.execution.broker_client import walk

from dgg_ray.config.sections import Workers
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution import cluster
from dgg_ray.execution.broker import Broker
from dgg_ray.execution.executor import Crew
from dgg_ray.execution.progress import Display
from dgg_ray.storage.backend import LocalBackend
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

ENOUGH = 200  # stages for each fleet, so that none waits while others start


@dataclass(frozen=True)
class Clocked(StageStore):
    """Keeps when each worker ended each stage."""

    def publish(self, stage: Any, record: dict[str, Any], fill: Any) -> None:
        super().publish(stage, record, fill)
        with (self.backend.root / "ended").open("a") as log:
            log.write(f"{os.getpid()} {time.time()}\n")

    def begun(self, seconds: float) -> list[tuple[int, float]]:
        """(Worker, when) of each stage that has ended."""
        if not (self.backend.root / "ended").exists():
            return []
        lines = [line.split() for line in (self.backend.root / "ended").read_text().splitlines()]
        return [(int(worker), float(when) - seconds) for worker, when in lines]


def work_items(study: Study, count: int) -> list[WorkItem]:
    """So many first stages, all different and equally long."""
    study = replace(study, seeds=tuple(range(count)))
    return [WorkItem(run.stages[0]) for run in study.runs]


def sleeping(groups: int, seconds: float) -> Study:
    """A study whose first stages take so many seconds."""
    law = ResponseModel(seconds=1.0, wait=1.0, spread=0.0, noise=0.0)
    study = synthetic_study(2, DGG(), simulation=law)
    _, once = SimulatedRunner.of(study, MemoryStore()).training_cost(work_items(study, 1)[0].stage)
    workers = Workers(groups=groups, engine="simulated", idle_timeout_s=2.0, hang_timeout_minutes=0)
    return replace(study, simulation=replace(law, seconds=seconds / once), workers=workers)


def busy(begun: Iterable[tuple[int, float]], seconds: float) -> tuple[float, float]:
    """(Share of their time that workers slept, between beginnings after all were at work; when all were)."""
    starts = defaultdict[int, list[float]](list)
    for worker, when in begun:
        starts[worker].append(when)
    together = max(min(times) for times in starts.values())
    late = [sorted(when for when in times if when >= together) for times in starts.values()]
    cycles = sum(len(times) - 1 for times in late if times)
    span = sum(times[-1] - times[0] for times in late if times)
    return cycles * seconds / span if span else 0.0, together


def by_fleets(groups: int, rounds: int, seconds: float) -> tuple[float, float]:
    """(busy share, seconds until the last fleet began)."""
    study = sleeping(groups, seconds)
    with tempfile.TemporaryDirectory(prefix="dgg-") as name, ExitStack() as stack:
        store, began = Clocked(LocalBackend(Path(name) / "stages")), time.time()
        store.backend.root.mkdir()
        display = stack.enter_context(Display("", quiet=True))
        crew = stack.enter_context(Crew(study, store, Path(name), display, BudgetTracker()))
        broker, many = crew.start(), [[item] for item in work_items(study, groups * (rounds + ENOUGH))]
        asking = threading.Thread(target=walk, args=(many, broker))
        asking.start()
        begun: list[tuple[int, float]] = []
        while len({worker for worker, _ in begun}) < groups or time.time() < until(begun, rounds, seconds):
            time.sleep(seconds / 5)
            begun = store.begun(seconds)
        ray.get(broker.close.remote("enough was seen"))
        asking.join()
    share, together = busy(begun, seconds)
    return share, together - began


def until(begun: Iterable[tuple[int, float]], rounds: int, seconds: float) -> float:
    """When so many stages were done by each worker after all were at work, at the latest."""
    return busy(begun, seconds)[1] + (rounds + 2) * seconds


def by_tasks(groups: int, rounds: int, seconds: float, cores: int) -> float:
    """Busy share of plain Ray tasks."""

    @ray.remote(num_cpus=cores / groups)
    def nap() -> tuple[int, float]:
        begun = time.time()
        time.sleep(seconds)
        return os.getpid(), begun

    return busy(ray.get([nap.remote() for _ in range(groups * rounds)]), seconds)[0]


def memory_gb() -> float:
    """Of all processes that this one started, each counted with what it has for itself."""
    return sum(p.memory_full_info().uss for p in psutil.Process().children(recursive=True)) / 1e9


def stages(counts: list[int], rounds: int, seconds: float) -> None:
    cores = max(counts)
    with cluster.connected(sleeping(cores, seconds)):
        for groups in counts:
            share, start = by_fleets(groups, rounds, seconds)
            plain = by_tasks(groups, rounds, seconds, cores)
            print(f"  {groups:3} groups: busy {share:6.1%}, plain tasks {plain:6.1%}; ", end="")
            print(f"all at work after {start:.0f} s", flush=True)


# -- the broker ------------------------------------------------------------------------------------


def broker_of(store: StageStore) -> Any:
    return Broker.remote(store, 2, None, LeaseOwner.this_process())  # type: ignore[attr-defined]


def restart(count: int) -> None:
    study = sleeping(1, 1.0)
    with tempfile.TemporaryDirectory(prefix="dgg-") as name, cluster.connected(study):
        broker = broker_of(open_store(Path(name)))
        asking = threading.Thread(target=walk, args=([[item] for item in work_items(study, count)], broker))
        asking.start()
        known(broker, count)
        ray.get(broker.take.remote("early", 60.0))  # which the new one will not know
        ray.kill(broker, no_restart=False)
        killed = time.perf_counter()
        known(broker, count)
        again = time.perf_counter() - killed
        assert ray.get(broker.take.remote("fleet", 60.0))
        print(f"  {count} stages known again after {again:.1f} s, ", end="")
        print(f"the first handed out after {time.perf_counter() - killed:.1f} s")
        ray.get(broker.close.remote())
        asking.join()


def known(broker: Any, count: int) -> None:
    while True:
        status: dict[str, Any] = ray.get(broker.status.remote())
        if status["waiting"] == count:
            return
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "restart": lambda: restart(o.known),
        "stages": lambda: stages(o.groups, o.rounds, o.seconds),
    }
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--fleets", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=6, help="stages for each fleet")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a stage")
    parser.add_argument("--known", type=int, default=10_000, help="that wait when the broker is killed")
    o = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    for name, run in parts.items():
        if o.only in (None, name):
            print(name, flush=True)
            run()


if __name__ == "__main__":
    main()
