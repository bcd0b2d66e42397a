"""The cost of a study besides training: work queue, broker and store, a large plan, a large report.

    python benchmarks/schedule.py                           all parts, some minutes
    python benchmarks/schedule.py --only ray

stages   10,000 simulated stages through the work queue into a store in a folder, as one worker group does it:
         requested, assigned, published (a manifest, put in place by a link), evaluations published, finished.
         For comparison, in the same run: without fsync, with a store in memory, and plain files each written
         with one fsync, which is what the disk allows. Target: 500 per second, at most 500 MB.
alone    as many through the broker in this process, without Ray, and nothing stored: its own time.
ray      as many through Ray's broker actor: the driver requests them, all at once, and two actors run them.
         For comparison, in the same run: nothing stored, and one call a stage of an actor that does nothing.
         Target: 100 per second (a real stage takes minutes), at most 500 MB in driver and broker.
plan     720 orders × 5 values of α (6 tasks, every order). Target: 1 s.
report   benchmarks/report.py.

CPU seconds are printed with wall seconds, because on a shared machine only CPU seconds are reproducible.
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

from dgg_ray.config.sections import Orders, Search, SearchParameter
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.config.study import Study
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.broker import Broker, run_chains
from dgg_ray.execution.work_queue import ItemResult, WorkQueue
from dgg_ray.planning.plan import plan
from dgg_ray.storage import backend
from dgg_ray.storage.leases import LEASE_S, LeaseOwner
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

ALPHA = "strategy.alpha"
PROCESSES = ("broker", "workers", "driver")


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Return (wall, CPU) seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def memory_mb() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# -- stages ----------------------------------------------------------------------------------------


def sample_items(count: int) -> list[WorkItem]:
    """Return items of different stages with their evaluations; each parent comes before its child."""
    items: dict[str, WorkItem] = {}
    for n in range(1, 1 + count):
        study = sample_study(n)
        for run in study.runs:
            items |= {item.key: item for item in study.runs.work_items(run)}
        if len(items) >= count:
            break
    return list(items.values())[:count]


def sample_study(n: int) -> Study:
    """Return a study of 6 tasks on 6 orders; each n has another α, so only first stages are shared."""
    simulation = ResponseModel(noise=0.0, evaluation_noise=False, spread=0.0)
    return synthetic_study(6, DGG(alpha=n / 1000), simulation=simulation, orders=Orders("cyclic"))


def through_queue(work_items: list[WorkItem], store: StageStore) -> Callable[[], None]:
    """Return a function that trains the items through the work queue."""
    queue, runner = WorkQueue(store), SimulatedRunner.of(sample_study(1), store)

    def run() -> None:
        for item in work_items:
            assert queue.request(item) == "queued"
            assigned = queue.dequeue("group")
            assert assigned is not None
            runner.run(assigned)
            queue.finish("group", ItemResult(assigned.key, trained=True))

    return run


def plain_files(folder: Path, count: int) -> None:
    for n in range(count):
        with (folder / str(n)).open("wb") as file:
            file.write(b"x" * 1000)
            file.flush()
            os.fsync(file.fileno())


def stages(count: int) -> None:
    work_items = sample_items(count)
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="dgg-") as name:
        folder = Path(name)
        (folder / "plain").mkdir()
        baselines = {
            "queue, store in memory": through_queue(work_items, MemoryStore()),
            "queue and store, no fsync": partial(
                unsynced, through_queue(work_items, open_store(folder / "unsynced"))
            ),
            "queue and store": through_queue(work_items, open_store(folder / "store")),
            "plain files, one fsync": partial(plain_files, folder / "plain", count),
        }
        for label, run in baselines.items():
            seconds[label], cpu = timed(run)
            print(f"  {label:<26}{count / seconds[label]:8.0f} per second,", end=" ")
            print(f"{count / cpu:8.0f} per second of CPU", flush=True)
    ratio = seconds["queue and store"] / seconds["plain files, one fsync"]
    print(
        f"  a stage with its evaluations takes as long as {ratio:.1f} plain files; "
        f"peak memory {memory_mb():.0f} MB"
    )


def unsynced(run: Callable[[], None]) -> None:
    fsync, backend.fsync = backend.fsync, lambda path: None
    try:
        run()
    finally:
        backend.fsync = fsync


# -- through Ray -----------------------------------------------------------------------------------


class EmptyStore(MemoryStore):
    """Stores nothing: a stage counts as stored from the second query on."""

    def has(self, item: WorkItem) -> bool:
        is_known = item.key in self.records
        self.records[item.key] = {}
        return is_known

    def acquire_lease(self, key: str, owner: LeaseOwner, seconds: float = LEASE_S) -> LeaseOwner | None:
        return None

    def release_lease(self, key: str, owner: LeaseOwner) -> None:
        pass


@ray.remote(num_cpus=0)
class Worker:
    """Runs items until none is left, as a worker group does."""

    def ready(self) -> None:
        """Returns once the process is there."""

    def run(self, name: str, broker: Any, store: StageStore, skip_training: bool) -> None:
        runner = SimulatedRunner.of(sample_study(1), store)
        result: ItemResult | None = None
        while item := ray.get(broker.next_item.remote(name, 5.0, result)):
            start = time.monotonic()
            if not skip_training:
                runner.run(item)
            result = ItemResult(item.key, True, None, time.monotonic() - start)


@ray.remote(num_cpus=0)
class Echo:
    async def call(self, item: WorkItem) -> WorkItem:
        return item


def wait_for_calls(calls: Iterable[ray.ObjectRef], at_once: int = 200) -> None:
    """Wait for all calls, with a limited number open at once; the iterator starts each call."""
    waiting: deque[ray.ObjectRef] = deque()
    for call in calls:
        waiting.append(call)
        if len(waiting) >= at_once:
            ray.get(waiting.popleft())
    ray.get(list(waiting))


def measure_broker(work_items: list[WorkItem], store: StageStore, workers: int = 2) -> str:
    """Return the stages per second, the CPU time of each process, and the broker's peak memory, as text."""
    broker = Broker.remote(store, 2, None)  # pyright: ignore[reportAttributeAccessIssue]
    ray.get(broker.status.remote())
    groups = [Worker.remote() for _ in range(workers)]
    ray.get([group.ready.remote() for group in groups])
    broker_process = actor_processes("Broker")[-1]
    worker_processes = actor_processes("Worker")[-workers:]
    before = cpu_seconds([broker_process]), cpu_seconds(worker_processes)
    skip = isinstance(store, EmptyStore)
    running = [group.run.remote(f"group-{i}", broker, store, skip) for i, group in enumerate(groups)]
    wall, driver_cpu = timed(lambda: run_chains([[item] for item in work_items], broker))
    broker_cpu = cpu_seconds([broker_process]) - before[0]
    worker_cpu = cpu_seconds(worker_processes) - before[1]
    status = Path(f"/proc/{broker_process.pid}/status").read_text()
    peak = next(line for line in status.splitlines() if "VmHWM" in line)
    ray.get([broker.close.remote(), *running])
    for actor in (broker, *groups):
        ray.kill(actor)
    seconds = zip(PROCESSES, (broker_cpu, worker_cpu, driver_cpu), strict=True)
    each = (f"{name} {1e3 * cpu / len(work_items):.2f}" for name, cpu in seconds)
    return (
        f"{len(work_items) / wall:6.0f} per second; ms of CPU per stage: {', '.join(each)}; "
        f"broker's peak {int(peak.split()[1]) / 1e3:.0f} MB"
    )


def actor_processes(name: str) -> list[psutil.Process]:
    """Return the processes of Ray's actors of that class, oldest first."""
    every = psutil.Process().children(recursive=True)
    of_class = [p for p in every if " ".join(p.cmdline()[:1]).startswith(f"ray::{name}")]
    return sorted(of_class, key=lambda p: p.create_time())


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


# -- the broker alone ------------------------------------------------------------------------------


def alone(count: int) -> None:
    work_items = sample_items(count)
    wall, cpu = timed(partial(asyncio.run, through_broker(work_items)))
    print(f"  {count / wall:8.0f} per second, {1e3 * cpu / count:.2f} ms of CPU per stage", flush=True)


async def through_broker(work_items: list[WorkItem]) -> None:
    broker = Broker.__ray_metadata__.modified_class(EmptyStore(), 2)  # pyright: ignore

    async def group(name: str) -> None:
        result: ItemResult | None = None
        while item := await broker.next_item(name, 5.0, result):
            result = ItemResult(item.key, True, None, 0.0)

    groups = [asyncio.create_task(group(name)) for name in ("one", "other")]
    await asyncio.gather(*(broker.request(item) for item in work_items))
    await broker.close()
    await asyncio.gather(*groups)


def through_ray(count: int) -> None:
    work_items = sample_items(count)
    options = {"include_dashboard": False, "object_store_memory": 200_000_000, "log_to_driver": False}
    ray.init(address="local", num_cpus=2, **options)
    try:
        echo = Echo.remote()
        ray.get(echo.call.remote(work_items[0]))
        wall, _ = timed(lambda: wait_for_calls(echo.call.remote(item) for item in work_items))
        print(f"  an idle call per stage     {count / wall:6.0f} per second", flush=True)
        print(f"  broker, nothing stored     {measure_broker(work_items, EmptyStore())}", flush=True)
        with tempfile.TemporaryDirectory(prefix="dgg-") as name:
            print(
                f"  broker and folder store    {measure_broker(work_items, open_store(Path(name)))}",
                flush=True,
            )
        print(f"  peak memory of the driver  {memory_mb():.0f} MB")
    finally:
        ray.shutdown()


# -- plan ------------------------------------------------------------------------------------------


def large_plan() -> None:
    space = {ALPHA: SearchParameter(values=(0.0, 0.1, 0.2, 0.5, 1.0))}
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        for _ in range(2):  # the second round imports nothing
            study = synthetic_study(
                6, DGG(buffer=20), orders=Orders("all"), search=Search(space, method="grid")
            )
            wall, cpu = timed(partial(print_plan, study, Path(folder)))
    print(f"  wall {wall:.2f} s, CPU {cpu:.2f} s")


def print_plan(study: Study, folder: Path) -> None:
    print(f"  {plan(study, open_store(folder)).requested} stages")


def large_report() -> None:
    import report  # late: the libraries for figures would count as the driver's memory

    report.run_report()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {
        "stages": lambda: stages(o.stages),
        "alone": lambda: alone(o.stages),
        "ray": lambda: through_ray(o.stages),
        "plan": large_plan,
        "report": large_report,
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
