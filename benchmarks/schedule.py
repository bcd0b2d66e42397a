"""What a study costs beside its training: stages through desk and store, a large plan, a large report.

    python benchmarks/schedule.py                           all parts, some minutes
    python benchmarks/schedule.py --only ray

stages   10,000 simulated ones through the desk into a folder's store, as one fleet does it: asked for, taken,
         published (record, manifest, rename), their exams published, answered. Beside it, in the same run:
         without fsync, the desk on a store in memory, and plain files each written with one fsync, which
         is what the disk allows. Wanted: 500 a second, at most 500 MB.
alone    as many through the broker in this process, without Ray, nothing stored: its own time. Beside it, in
         the same run: every look at the store in a thread, as at one that may be slow.
ray      as many through Ray's broker actor: the driver asks for them, all at once, two actors take and learn
         them. Beside it, in the same run: nothing stored, and a call a stage of an actor that does nothing.
         Wanted: 500 a second, at most 500 MB in driver and broker.
plan     720 orders × 5 values of α (6 tasks, every order): wanted in 1 s.
report   benchmarks/report.py.

Seconds of the process's CPU stand beside wall seconds: on a shared machine only the first repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from dgg_ray.execution.broker_client import walk

from dgg_ray.config.sections import Orders, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.broker import Broker
from dgg_ray.execution.work_queue import Ended, WorkQueue
from dgg_ray.planning.plan import plan
from dgg_ray.storage import backend
from dgg_ray.storage.leases import LEASE_S, LeaseOwner
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.setup import handful
from dgg_ray.training.simulated_runner import SimulatedRunner

ALPHA = "strategy.alpha"
PARTS = ("broker", "takers", "driver")


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def memory_mb() -> float:
    """Peak of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# -- stages ----------------------------------------------------------------------------------------


def some_works(count: int) -> list[WorkItem]:
    """Different stages with their exams, in an order in which they can be learned."""
    found: dict[str, WorkItem] = {}
    for n in range(1, 1 + count):
        study = learner_of(n)
        for run in study.runs:
            found |= {item.key: item for item in study.runs.work_items(run)}
        if len(found) >= count:
            break
    return list(found.values())[:count]


def learner_of(n: int) -> Study:
    """A study of 6 tasks on 6 orders; every stage after the first has an α of its own."""
    law = ResponseModel(noise=0.0, evaluation_noise=False, spread=0.0)
    return synthetic_study(6, DGG(alpha=n / 1000), simulation=law, orders=Orders("cyclic"))


def through(work_items: list[WorkItem], store: StageStore) -> Callable[[], None]:
    desk, runner = WorkQueue(store), SimulatedRunner.of(learner_of(1), store)

    def run() -> None:
        for item in work_items:
            assert desk.need(item) == "queued"
            taken = desk.take("fleet")
            assert taken is not None
            runner.run(taken)
            desk.done("fleet", taken.key, True, None)

    return run


def plain_files(folder: Path, count: int) -> None:
    for n in range(count):
        with (folder / str(n)).open("wb") as file:
            file.write(b"x" * 1000)
            file.flush()
            os.fsync(file.fileno())


def stages(count: int) -> None:
    work_items = some_works(count)
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="dgg-") as name:
        folder = Path(name)
        (folder / "plain").mkdir()
        baselines = {
            "desk, store in memory": through(work_items, MemoryStore()),
            "desk and store, no fsync": partial(
                unsynced, through(work_items, open_store(folder / "unsynced"))
            ),
            "desk and store": through(work_items, open_store(folder / "store")),
            "plain files, one fsync": partial(plain_files, folder / "plain", count),
        }
        for label, run in baselines.items():
            seconds[label], cpu = timed(run)
            print(f"  {label:<26}{count / seconds[label]:8.0f} a second,", end=" ")
            print(f"{count / cpu:8.0f} a second of CPU", flush=True)
    ratio = seconds["desk and store"] / seconds["plain files, one fsync"]
    print(
        f"  a stage with its exams takes as long as {ratio:.1f} plain files; peak memory {memory_mb():.0f} MB"
    )


def unsynced(run: Callable[[], None]) -> None:
    fsync, backend.fsync = backend.fsync, lambda place: None
    try:
        run()
    finally:
        backend.fsync = fsync


# -- through Ray -----------------------------------------------------------------------------------


class Nowhere(MemoryStore):
    """Keeps nothing: a stage is there from the second time that it is asked for."""

    def has(self, item: WorkItem) -> bool:
        there = item.key in self.records
        self.records[item.key] = {}
        return there

    def acquire_lease(self, key: str, owner: LeaseOwner, seconds: float = LEASE_S) -> LeaseOwner | None:
        return None

    def release_lease(self, key: str, owner: LeaseOwner) -> None:
        pass


@ray.remote(num_cpus=0)
class Taker:
    """Takes and learns until nothing is left, as a fleet does."""

    def ready(self) -> None:
        """Its process is there."""

    def item(self, name: str, broker: Any, store: StageStore, nothing: bool) -> None:
        runner = SimulatedRunner.of(learner_of(1), store)
        ended: list[Ended] = []
        while work_items := ray.get(broker.take.remote(name, 5.0, ended)):
            ended = []
            for item in handful(work_items, lambda compute: compute()):
                began = time.monotonic()
                if not nothing:
                    runner.run(item)
                ended.append((item.key, True, None, time.monotonic() - began))


@ray.remote(num_cpus=0)
class Echo:
    async def call(self, item: WorkItem) -> WorkItem:
        return item


def answered(calls: Iterable[ray.ObjectRef], at_once: int = 200) -> None:
    """Every call's answer, so many open at once; calls are made as they are drawn."""
    waiting: deque[ray.ObjectRef] = deque()
    for call in calls:
        waiting.append(call)
        if len(waiting) >= at_once:
            ray.get(waiting.popleft())
    ray.get(list(waiting))


def brokered(work_items: list[WorkItem], store: StageStore, takers: int = 2) -> str:
    """Stages a second, what each process took, and the broker's peak memory."""
    broker = Broker.remote(store, 2, None)  # pyright: ignore[reportAttributeAccessIssue]
    ray.get(broker.status.remote())
    groups = [Taker.remote() for _ in range(takers)]
    ray.get([group.ready.remote() for group in groups])
    mine, others = titled("Broker")[-1], titled("Taker")[-takers:]
    before = cpu_of([mine]), cpu_of(others)
    open_ = [f.item.remote(f"f{i}", broker, store, isinstance(store, Nowhere)) for i, f in enumerate(groups)]
    wall, own = timed(lambda: walk([[item] for item in work_items], broker))
    used, taken = cpu_of([mine]) - before[0], cpu_of(others) - before[1]
    peak = next(row for row in Path(f"/proc/{mine.pid}/status").read_text().splitlines() if "VmHWM" in row)
    ray.get([broker.close.remote(), *open_])
    for actor in (broker, *groups):
        ray.kill(actor)
    each = (
        f"{name} {1e3 * s / len(work_items):.2f}" for name, s in zip(PARTS, (used, taken, own), strict=True)
    )
    return (
        f"{len(work_items) / wall:6.0f} a second; ms of CPU a stage: {', '.join(each)}; "
        f"broker's peak {int(peak.split()[1]) / 1e3:.0f} MB"
    )


def titled(name: str) -> list[psutil.Process]:
    """Processes of Ray's actors of that class, the oldest first."""
    every = psutil.Process().children(recursive=True)
    found = [p for p in every if " ".join(p.cmdline()[:1]).startswith(f"ray::{name}")]
    return sorted(found, key=lambda p: p.create_time())


def cpu_of(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


# -- the broker alone ------------------------------------------------------------------------------


def alone(count: int) -> None:
    work_items = some_works(count)
    for label, near in (("as it is", True), ("every look in a thread", False)):
        wall, cpu = timed(partial(asyncio.run, through_broker(work_items, near)))
        print(
            f"  {label:<24}{count / wall:8.0f} a second, {1e3 * cpu / count:.2f} ms of CPU a stage",
            flush=True,
        )


async def through_broker(work_items: list[WorkItem], near: bool) -> None:
    broker = Broker.__ray_metadata__.modified_class(Nowhere(), 2)  # pyright: ignore
    broker.threads.near = broker.claims.pool.near = near

    async def group(name: str) -> None:
        ended: list[Ended] = []
        while work_items := await broker.take(name, 5.0, ended):
            ended = [(item.key, True, None, 0.0) for item in work_items]

    groups = [asyncio.create_task(group(name)) for name in ("one", "other")]
    await asyncio.gather(*(broker.need(item) for item in work_items))
    await broker.close()
    await asyncio.gather(*groups)


def through_ray(count: int) -> None:
    work_items = some_works(count)
    options = {"include_dashboard": False, "object_store_memory": 200_000_000, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, **options)
    try:
        echo = Echo.remote()
        ray.get(echo.call.remote(work_items[0]))
        wall, _ = timed(lambda: answered(echo.call.remote(item) for item in work_items))
        print(f"  an idle call a stage       {count / wall:6.0f} a second", flush=True)
        print(f"  broker, nothing stored     {brokered(work_items, Nowhere())}", flush=True)
        with tempfile.TemporaryDirectory(prefix="dgg-") as name:
            print(f"  broker and folder store    {brokered(work_items, open_store(Path(name)))}", flush=True)
        print(f"  peak memory of the driver  {memory_mb():.0f} MB")
    finally:
        ray.shutdown()


# -- plan ------------------------------------------------------------------------------------------


def planned() -> None:
    space = {ALPHA: SearchParameter(values=(0.0, 0.1, 0.2, 0.5, 1.0))}
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        for _ in range(2):  # the second time nothing is imported
            study = synthetic_study(
                6, DGG(buffer=20), orders=Orders("all"), search=Search(space, method="grid")
            )
            wall, cpu = timed(
                lambda study=study: print(f"  {plan(study, open_store(Path(folder))).requested} stages")
            )
    print(f"  wall {wall:.2f} s, CPU {cpu:.2f} s")


def reported() -> None:
    import report  # here: what draws figures would count among the driver's memory

    report.reported()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "stages": lambda: stages(o.stages),
        "alone": lambda: alone(o.stages),
        "ray": lambda: through_ray(o.stages),
        "plan": planned,
        "report": reported,
    }
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--stages", type=int, default=10_000)
    o = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    for name, run in parts.items():
        if o.only in (None, name):
            print(name, flush=True)
            run()


if __name__ == "__main__":
    main()
