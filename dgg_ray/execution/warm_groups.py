"""Worker groups that outlive a study: they wait for the next one, with the base model in memory.

    GroupPool          an actor on the head: which group waits, and what each has to do next
    WarmGroups         in the driver: starts groups that use the pool, takes waiting ones, ends them
    run_assignments    in each worker: one study after another

    a study ends, or has nothing for the group    → the group waits in the pool, at most `keep_warm_s`
    a study wants a group of the same kind        → a waiting one gets it: no process, import or model
    anyone in the cluster waits for machines      → all waiting groups end, within about a second
    a waiting group, the pool or the driver dies  → the group ends; the next study starts a new one

Two studies have groups of one kind if hardware, engine, base model and code agree (`group_kind`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray.exceptions import RayActorError

from dgg_ray.config.study import Study
from dgg_ray.core import event_log
from dgg_ray.core.hashing import digest
from dgg_ray.execution import cluster
from dgg_ray.training.process_group import on_rank0

KEEP_WARM_S = 300.0
MAX_KEEP_WARM_S = 1200.0  # the other ranks of a group wait in a broadcast, which PyTorch ends after 1800 s
DEMAND_CHECK_S = 0.3
TIMEOUT_S = 60.0  # for a call to the pool, which answers at once when it has started
PARKING_S = 2.0  # after a study closed its broker: idle groups have asked the pool by then

Assignment = dict[str, Any]  # the fields of a `worker_groups.WorkerConfig`


def group_kind(study: Study) -> str:
    """A hash of everything that two studies must agree in to use one group, 64 hex digits."""
    workers = study.workers
    simulated = workers.engine == "simulated"
    return digest(
        [
            cluster.code_version(),
            [workers.group_size, workers.cpus, workers.gpus, workers.threads],
            [workers.engine, workers.offload],
            "" if simulated else study.data.fingerprint,
            [[kind, name, study.source_hash(kind, name)] for kind, name in study.outside_plugins],
        ]
    )


# -- on the head -----------------------------------------------------------------------------------


@dataclass
class Member:
    """A worker group. assignment: what it works on; None while it waits and when it has ended.

    waiting: while it waits; its result says whether there is a new assignment.
    """

    kind: str
    assignment: Assignment | None
    waiting: asyncio.Future[bool] | None = field(default=None, repr=False)


@ray.remote(num_cpus=0, resources=cluster.ON_HEAD, max_concurrency=10_000)  # pyright: ignore
class GroupPool:
    """Keeps a driver's worker groups between its studies. It is not restarted: its groups end with it."""

    def __init__(self, keep_warm_s: float) -> None:
        self.keep_warm_s = keep_warm_s
        self.members: dict[str, Member] = {}
        self.parked: dict[str, None] = {}  # members that wait, the latest last
        self.watch: asyncio.Task[None] | None = None

    # -- worker groups -----------------------------------------------------------------------------

    async def current(self, member: str) -> Assignment | None:
        """The group's assignment; None where it must end."""
        while member not in self.members:
            await asyncio.sleep(0.05)  # its workers asked before the driver's call came
        return self.members[member].assignment

    async def park(self, member: str) -> bool:
        """Wait for another assignment; False where the group must end."""
        entry = self.members[member]
        entry.assignment, entry.waiting = None, asyncio.get_running_loop().create_future()
        self.parked[member] = None
        self.watch = self.watch or asyncio.create_task(self._watch_demand())
        try:
            return await asyncio.wait_for(entry.waiting, self.keep_warm_s)
        except TimeoutError:
            return False
        finally:
            entry.waiting = None
            self.parked.pop(member, None)

    async def refuse(self, member: str, reason: str) -> None:
        """Close the broker of the group's study, because the group's machine cannot work for it."""
        if assignment := await self.current(member):
            await assignment["broker"].close.remote(reason)

    async def workers_died(self, member: str) -> None:
        """Note that processes of the group died. One that waited ends; else the broker is told."""
        entry = self.members[member]
        if entry.assignment:
            await entry.assignment["broker"].workers_died.remote(entry.assignment["group"])
        self._answer(member, False)

    # -- the driver --------------------------------------------------------------------------------

    async def add(self, member: str, kind: str, assignment: Assignment) -> None:
        self.members[member] = Member(kind, assignment)

    async def take(self, kind: str, assignments: Sequence[Assignment]) -> list[str]:
        """Give the assignments, as many as there are, to waiting groups of the kind; return these groups."""
        fitting = [member for member in reversed(self.parked) if self.members[member].kind == kind]
        taken = fitting[: len(assignments)]
        for member, assignment in zip(taken, assignments, strict=False):
            self.members[member].assignment = {**assignment, "group_id": member}
            self._answer(member, True)
        return taken

    async def waiting(self) -> list[str]:
        """The groups that wait."""
        return list(self.parked)

    async def release(self) -> None:
        """End all groups that wait."""
        for member in list(self.parked):
            self._answer(member, False)

    # -- internals ---------------------------------------------------------------------------------

    def _answer(self, member: str, answer: bool) -> None:
        self.parked.pop(member, None)
        if (waiting := self.members[member].waiting) and not waiting.done():
            waiting.set_result(answer)

    async def _watch_demand(self) -> None:
        """While groups wait, end them once somebody has waited for machines for two checks."""
        before = False
        while self.parked:
            await asyncio.sleep(DEMAND_CHECK_S)
            try:
                now = await asyncio.to_thread(cluster.is_short_of_machines)
            except Exception:  # the cluster does not answer; the next check may succeed
                now = False
            if now and before:
                await self.release()
            before = now
        self.watch = None


# -- in the driver ---------------------------------------------------------------------------------


class WarmGroups:
    """The driver's side of a pool: the groups of its studies, at work or waiting."""

    def __init__(self, keep_warm_s: float) -> None:
        self.keep_warm_s = keep_warm_s
        self.members: dict[ray.ObjectRef, str] = {}  # task → member of the pool, studying or waiting
        self.pool = self._new_pool()

    def _new_pool(self) -> Any:
        return GroupPool.remote(self.keep_warm_s)  # type: ignore[attr-defined]

    def _call(self, name: str, *arguments: Any) -> list[str]:
        """The pool's answer; where it is dead, the answer of a new one, which knows no group."""
        try:
            return ray.get(getattr(self.pool, name).remote(*arguments), timeout=TIMEOUT_S)
        except RayActorError:
            self.pool = self._new_pool()
            return []

    def take(self, kind: str, assignments: Sequence[Assignment]) -> list[ray.ObjectRef]:
        """Give the first assignments to waiting groups; return the tasks of these, in this order."""
        if not self.members:
            return []
        tasks = {member: task for task, member in self.members.items()}
        return [tasks[member] for member in self._call("take", kind, assignments)]

    def start(
        self, kind: str, assignment: Assignment, run: Callable[[dict[str, Any], str], ray.ObjectRef]
    ) -> ray.ObjectRef:
        """Start a new group for the assignment.

        run: starts the Ray task of a group with its workers' configuration and its name.
        """
        member = uuid4().hex[:12]
        self.pool.add.remote(member, kind, {**assignment, "group_id": member})
        common = {name: assignment[name] for name in ("code", "outside_plugins")}
        task = run({**common, "pool": self.pool, "member": member}, member)
        self.members[task] = member
        return task

    def waiting(self, tasks: Iterable[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """Those of the tasks whose groups wait: they work for no study."""
        waiting = self._call("waiting")
        return [task for task in tasks if self.members.get(task) in waiting]

    def end_study(self, tasks: Iterable[ray.ObjectRef]) -> None:
        """Let the study's groups that are idle wait for the next study; end the others."""
        working, deadline = list(tasks), time.monotonic() + PARKING_S
        while working and time.monotonic() < deadline:
            waiting = self.waiting(working)
            ended, _ = ray.wait(working, num_returns=len(working), timeout=0)
            working = [task for task in working if task not in waiting and task not in ended]
            if working:
                time.sleep(0.05)
        for task in working:
            ray.cancel(task)
        for task in working:
            self.members.pop(task, None)
        if known := list(self.members):
            for task in ray.wait(known, num_returns=len(known), timeout=0)[0]:
                del self.members[task]

    def close(self) -> None:
        """End all groups."""
        for task in self.members:
            ray.cancel(task)
        self.members.clear()
        ray.kill(self.pool)


# -- in a worker -----------------------------------------------------------------------------------


def run_assignments(pool: Any, member: str, run: Callable[[Assignment], bool]) -> None:
    """Run what the pool assigns to the group, until it assigns nothing or a study ends in another way.

    run: runs a study's items; returns whether it ended because there were no more.
    """
    while assignment := next_assignment(pool, member):
        with undo_changes():
            if not run(assignment):
                return
        del assignment  # the study and its broker
        if not on_rank0(ask, pool.park, member):
            return


def next_assignment(pool: Any, member: str) -> Assignment | None:
    """The group's assignment, the same on all ranks; None where it must end."""
    assignment = ask(pool.current, member)
    if on_rank0(lambda: assignment is not None) != (assignment is not None):
        # The pool died in between. The group must end as one: a rank alone would wait for the others.
        raise RuntimeError(f"rank 0 and this worker do not agree on what {member} has to do")
    return assignment


def ask(method: Any, member: str) -> Any:
    """The pool's answer; None where it is dead."""
    try:
        return ray.get(method.remote(member))
    except RayActorError:
        return None


@contextlib.contextmanager
def undo_changes() -> Iterator[None]:
    """Undo after the block what a study changes in its process: random states, warning filters, the log."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    has_gpu = torch is not None and torch.cuda.is_available()
    of_gpus = torch.cuda.get_rng_state_all() if torch and has_gpu else []
    try:
        with warnings.catch_warnings():
            yield
    finally:
        event_log.stop_logging()
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch:
            torch.set_rng_state(states[2])
            if has_gpu:
                torch.cuda.set_rng_state_all(of_gpus)
        with contextlib.suppress(OSError):  # the peak memory of the process is that of the study from here on
            Path("/proc/self/clear_refs").write_bytes(b"5")
