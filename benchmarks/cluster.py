"""Overhead of broker, Ray Train and store, measured with worker groups whose stages only sleep.

    python benchmarks/cluster.py [--only stages|restart] [--groups 1 2 4 8 16 32] [--seconds 5]

stages   share of the time that worker groups spend on stages of 5 s, against plain Ray tasks of 5 s;
         measured once the last group has begun its first stage, because start-up takes all cores
restart  a broker that is killed while 10,000 stages wait: seconds until it knows them again and assigns one
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

from dgg_ray.config.sections import Workers
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution import cluster
from dgg_ray.execution.broker import Broker, run_chains
from dgg_ray.execution.executor import RayExecutor
from dgg_ray.execution.progress import Display
from dgg_ray.storage.backend import LocalBackend
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

STARTUP_STAGES = 200  # extra stages for each worker group, so that none idles while others start


@dataclass(frozen=True)
class TimedStore(StageStore):
    """A store that records when each worker finished each stage."""

    def publish(self, stage: Any, record: dict[str, Any], fill: Any) -> None:
        super().publish(stage, record, fill)
        with (self.backend.root / "ended").open("a") as log:
            log.write(f"{os.getpid()} {time.time()}\n")

    def starts(self, seconds: float) -> list[tuple[int, float]]:
        """Return (worker, start time) of each finished stage."""
        if not (self.backend.root / "ended").exists():
            return []
        lines = [line.split() for line in (self.backend.root / "ended").read_text().splitlines()]
        return [(int(worker), float(when) - seconds) for worker, when in lines]


def work_items(study: Study, count: int) -> list[WorkItem]:
    """Return `count` first stages, all different and equally long."""
    study = replace(study, seeds=tuple(range(count)))
    return [WorkItem(run.stages[0]) for run in study.runs]


def sleeping_study(groups: int, seconds: float) -> Study:
    """Return a study whose first stages take so many seconds."""
    simulation = ResponseModel(seconds=1.0, wait=1.0, spread=0.0, noise=0.0)
    study = synthetic_study(2, DGG(), simulation=simulation)
    _, once = SimulatedRunner.of(study, MemoryStore()).training_cost(work_items(study, 1)[0].stage)
    workers = Workers(groups=groups, engine="simulated", idle_timeout_s=2.0, hang_timeout_minutes=0)
    return replace(study, simulation=replace(simulation, seconds=seconds / once), workers=workers)


def busy_share(stage_starts: Iterable[tuple[int, float]], seconds: float) -> tuple[float, float]:
    """Return (share of the workers' time spent on stages, time at which all workers had started).

    The share counts the time between stage starts after all workers had started.
    """
    starts = defaultdict[int, list[float]](list)
    for worker, when in stage_starts:
        starts[worker].append(when)
    all_started = max(min(times) for times in starts.values())
    late = [sorted(when for when in times if when >= all_started) for times in starts.values()]
    cycles = sum(len(times) - 1 for times in late if times)
    span = sum(times[-1] - times[0] for times in late if times)
    return cycles * seconds / span if span else 0.0, all_started


def measure_groups(groups: int, rounds: int, seconds: float) -> tuple[float, float]:
    """Return (busy share, seconds until the last worker group started)."""
    study = sleeping_study(groups, seconds)
    with tempfile.TemporaryDirectory(prefix="dgg-") as name, ExitStack() as stack:
        store, began = TimedStore(LocalBackend(Path(name) / "stages")), time.time()
        store.backend.root.mkdir()
        display = stack.enter_context(Display("", quiet=True))
        executor = stack.enter_context(RayExecutor(study, store, Path(name), display, BudgetTracker()))
        broker, chains = (
            executor.start(),
            [[item] for item in work_items(study, groups * (rounds + STARTUP_STAGES))],
        )
        client = threading.Thread(target=run_chains, args=(chains, broker))
        client.start()
        starts: list[tuple[int, float]] = []
        while len({worker for worker, _ in starts}) < groups or time.time() < latest_end(
            starts, rounds, seconds
        ):
            time.sleep(seconds / 5)
            starts = store.starts(seconds)
        ray.get(broker.close.remote("the measurement is complete"))
        client.join()
    share, all_started = busy_share(starts, seconds)
    return share, all_started - began


def latest_end(starts: Iterable[tuple[int, float]], rounds: int, seconds: float) -> float:
    """Return the time by which each worker has trained `rounds` stages after all workers had started."""
    return busy_share(starts, seconds)[1] + (rounds + 2) * seconds


def measure_ray_tasks(groups: int, rounds: int, seconds: float, cores: int) -> float:
    """Return the busy share of plain Ray tasks."""

    @ray.remote(num_cpus=cores / groups)
    def nap() -> tuple[int, float]:
        start = time.time()
        time.sleep(seconds)
        return os.getpid(), start

    return busy_share(ray.get([nap.remote() for _ in range(groups * rounds)]), seconds)[0]


def memory_gb() -> float:
    """Return the unique memory of all child processes together."""
    return sum(p.memory_full_info().uss for p in psutil.Process().children(recursive=True)) / 1e9


def stages(counts: list[int], rounds: int, seconds: float) -> None:
    cores = max(counts)
    with cluster.connected(sleeping_study(cores, seconds)):
        for groups in counts:
            share, start = measure_groups(groups, rounds, seconds)
            plain = measure_ray_tasks(groups, rounds, seconds, cores)
            print(f"  {groups:3} groups: busy {share:6.1%}, plain tasks {plain:6.1%}; ", end="")
            print(f"all started after {start:.0f} s", flush=True)


# -- the broker ------------------------------------------------------------------------------------


def start_broker(store: StageStore) -> Any:
    return Broker.remote(store, 2, None, LeaseOwner.this_process())  # type: ignore[attr-defined]


def restart(count: int) -> None:
    study = sleeping_study(1, 1.0)
    with tempfile.TemporaryDirectory(prefix="dgg-") as name, cluster.connected(study):
        broker = start_broker(open_store(Path(name)))
        client = threading.Thread(
            target=run_chains, args=([[item] for item in work_items(study, count)], broker)
        )
        client.start()
        wait_until_known(broker, count)
        ray.get(broker.next_item.remote("early", 60.0))  # the new broker will not know this assignment
        ray.kill(broker, no_restart=False)
        killed = time.perf_counter()
        wait_until_known(broker, count)
        again = time.perf_counter() - killed
        assert ray.get(broker.next_item.remote("group", 60.0))
        print(f"  {count} stages known again after {again:.1f} s, ", end="")
        print(f"the first assigned after {time.perf_counter() - killed:.1f} s")
        ray.get(broker.close.remote())
        client.join()


def wait_until_known(broker: Any, count: int) -> None:
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
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=6, help="stages for each group")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of a stage")
    parser.add_argument(
        "--known", type=int, default=10_000, help="stages that wait when the broker is killed"
    )
    o = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    for name, run in parts.items():
        if o.only in (None, name):
            print(name, flush=True)
            run()


if __name__ == "__main__":
    main()
