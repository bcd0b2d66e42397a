"""Who does a run's work: the store, this process, or fleets that are started when they are needed."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray

from dgg_ray.config.study import Study
from dgg_ray.core import blame, event_log
from dgg_ray.core.errors import ClusterError, describe
from dgg_ray.core.stage import Stage, WorkItem
from dgg_ray.cost.budget import Purse
from dgg_ray.execution import cluster
from dgg_ray.execution.broker import Broker
from dgg_ray.execution.broker_client import over, walk
from dgg_ray.execution.hardware_check import Sentinel
from dgg_ray.execution.progress import Display
from dgg_ray.execution.prometheus import Watch
from dgg_ray.execution.worker_groups import WorkerGroups, workshop
from dgg_ray.storage.lease_keeper import LOOK_S, Claims
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.setup import LOADING


@dataclass
class Crew:
    """Gets work done: from the store, in this process, or by fleets that are started when needed.

    tally: of this run: stages asked for, there (in the store already), trained, failed; `fleet_up`,
        seconds until the first stage began, where a fleet was started.
    over: whether the budget kept work from being started.
    errors: of work that `obtain` asked for: {error, message, traceback}.
    """

    study: Study
    store: StageStore
    out: Path
    display: Display
    purse: Purse
    local: bool = False
    address: str | None = None
    tally: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(("asked", "there", "trained", "failed"), 0)
    )
    broker: Any = None
    shop: Any = field(default=None, init=False)
    claims: Claims = field(init=False, repr=False)
    over: bool = field(default=False, init=False)
    errors: list[dict[str, str]] = field(default_factory=list, init=False)
    failed: set[str] = field(default_factory=set, init=False)  # in this run: not tried twice in one
    counts: dict[str, int] = field(default_factory=lambda: {"trained": 0, "failed": 0}, init=False)
    last: dict[str, int] = field(default_factory=dict, init=False)  # of the counts, as the broker said them
    lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.began = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.broker and kind is None:
            self.count()
        self.stack.close()

    def obtain(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        """Leave the store with every work of every chain; a failed stage ends its chain."""
        left = []
        for chain in chains:
            self.expect(len(chain))
            missing = [item for item in chain if not self.store.has(item)]
            self.answered(len(chain) - len(missing))
            left += [missing] if missing else []
        if self.local:
            self.work_here(left)
        elif left:
            errors = walk(left, self.start(), lambda item: self.display.finished())
            self.errors += errors
            self.over |= over(errors)
            for line in dict.fromkeys(blame.line(error) for error in errors if error.get("place")):
                self.display.say(f"failed: {line}")
            self.check()

    def expect(self, count: int) -> None:
        self.tally["asked"] += count
        self.display.total += count

    def answered(self, count: int) -> None:
        """The store had these."""
        self.tally["there"] += count
        for _ in range(count):
            self.display.finished(was_there=True)

    def work_here(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        """Chain after chain; one at whose next stage another driver is comes last."""
        if not chains:
            return
        if self.shop is None:
            self.display.phase(LOADING)
            self.shop = workshop(self.study, self.store)
            self.shop.tick = self.tick
            self.sentinel = Sentinel(self.study, self.shop)
            self.claims = Claims(self.store)
            self.stack.callback(self.claims.close)
        left, waited = deque(deque(chain) for chain in chains), 0
        while left:
            chain = left.popleft()
            if self.follow(chain):
                waited = 0
                continue
            left.append(chain)
            waited += 1
            if waited >= len(left):  # another driver has the next of each
                time.sleep(LOOK_S)
                waited = 0

    def follow(self, chain: deque[WorkItem]) -> bool:
        """Do a chain's works; False where another driver has the next one."""
        while chain:
            item = chain[0]
            if item.key in self.failed:
                break
            if self.purse.verdict(item) == "over":
                self.over = True
                event_log.trouble("refused", describe(self.purse.refusal(item)), item, logging.WARNING)
                break
            if self.claims.take(item.key) is not None:
                return False
            try:
                if not self.done_here(item):
                    break
            finally:
                self.claims.drop(item.key)
            chain.popleft()
        return True

    def done_here(self, item: WorkItem) -> bool:
        """Whether it ended well."""
        fresh, began = self.store.record(item.stage) is None, time.monotonic()
        self.display.begun()
        self.sentinel.before(item)
        try:
            with event_log.about(item):
                self.shop.obtain(item)
        except Exception as problem:
            self.errors.append(blame.told(problem))
            event_log.trouble("failed", self.errors[-1], item)
            self.display.say(f"{item} failed: {blame.line(self.errors[-1])}")
            if not item.profile:
                self.store.fail(item.stage, self.errors[-1])
            self.purse.lose(time.monotonic() - began)
            self.failed.add(item.key)
            self.tally["failed"] += 1
            return False
        self.purse.finished(item)
        self.tally["trained"] += fresh and bool(item.stage.trained_tasks) and not item.profile
        self.display.finished()
        return True

    def tick(self, stage: Stage, done: int, steps: int) -> None:
        """What is in training in this process."""
        running = [{"stage": str(stage), "fleet": "this process", "steps": (done, steps)}]
        counts = {"trained": self.tally["trained"], "failed": self.tally["failed"]}
        self.display.update({**counts, "waiting": 0, "running": running})

    def start(self) -> Any:
        """The broker, with Ray and fleets behind it."""
        if self.broker is None:
            self.display.phase("starting Ray")
            self.stack.enter_context(cluster.connected(self.study, self.address))
            max_retries = self.study.workers.max_retries
            desk = (self.store, max_retries, self.purse, Holder.here(), Watch.of(self.study, self.out))
            self.broker = Broker.remote(*desk)  # type: ignore[attr-defined]
            folder = self.out / "ray"
            self.groups = self.stack.enter_context(
                WorkerGroups(self.study, self.store, self.broker, folder, self.heard)
            )
            self.display.phase("starting workers")
        return self.broker

    def heard(self, status: dict[str, Any]) -> None:
        """The broker's status, a few times a second."""
        self.counted(status)
        self.display.update(status | self.counts)
        if status["running"]:
            self.tally.setdefault("fleet_up", time.perf_counter() - self.began)

    def counted(self, status: dict[str, Any]) -> None:
        """Take up its counts; a broker that was restarted begins again at 0."""
        with self.lock:
            for name in self.counts:
                now, before = status.get(name, 0), self.last.get(name, 0)
                self.counts[name] += now - before if now >= before else now
                self.last[name] = now

    def count(self) -> None:
        self.counted(ray.get(self.broker.status.remote()))
        self.tally |= self.counts

    def check(self) -> None:
        """ClusterError where no fleet can be had; the broker may know before `Fleets` does."""
        if self.broker:
            status: dict[str, Any] = ray.get(self.broker.status.remote())
            if why := self.groups.failure or status["closed"]:
                raise ClusterError(why)
