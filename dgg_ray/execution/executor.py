"""Stage executors: they train and evaluate what the store does not hold yet.

LocalExecutor    in this process, one item after another
RayExecutor      by worker groups; Ray is started when the first item is missing
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray

from dgg_ray.config.study import Study
from dgg_ray.core import error_records, event_log
from dgg_ray.core.errors import ClusterError, error_record
from dgg_ray.core.stage import Stage, WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution.broker import Broker, is_budget_exhausted, run_chains
from dgg_ray.execution.hardware_check import HardwareCheck
from dgg_ray.execution.progress import Display
from dgg_ray.execution.prometheus import MetricsExporter
from dgg_ray.execution.session import RaySession
from dgg_ray.execution.worker_groups import BROKER_TIMEOUT_S, WorkerGroupManager
from dgg_ray.search.base import SearchMethod
from dgg_ray.search.comparison import describe_best_so_far
from dgg_ray.storage.lease_keeper import POLL_S, LeaseKeeper
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.setup import LOADING, build_stage_runner


@dataclass
class StageExecutor(ABC):
    """Runs chains of work items for the driver, and counts them.

    tally: counts of this run: stages asked for, there (in the store already), trained, failed.
    budget_exhausted: whether the budget kept an item from being started.
    interrupted: whether it starts nothing more of what it was asked for, until it is resumed.
    errors: of the items given to `execute`: {error, message, traceback} each.
    search: the study's own, whose best setting is shown; None before it began, and where there is none.
    """

    study: Study
    store: StageStore
    out: Path
    display: Display
    budget: BudgetTracker
    tally: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(("asked", "there", "trained", "failed"), 0), init=False
    )
    budget_exhausted: bool = field(default=False, init=False)
    interrupted: bool = field(default=False, init=False)
    errors: list[dict[str, str]] = field(default_factory=list, init=False)
    search: SearchMethod | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.tally["there"] = max(0, self.tally["there"])
        self.stack.close()

    def setting_evaluated(self, search: SearchMethod) -> None:
        """Show the best setting so far, unless the search only tunes a baseline."""
        if search is self.search:
            self.display.setting_evaluated(lambda: describe_best_so_far(search))

    def execute(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        """Ensure that the store holds every item of every chain; a failed item ends its chain."""
        missing_chains: list[list[WorkItem]] = []
        for chain in chains:
            self.expect(len(chain))
            missing = [item for item in chain if not self.store.has(item)]
            self.count_stored(len(chain) - len(missing))
            if missing:
                missing_chains.append(missing)
        if missing_chains:
            self._execute_missing(missing_chains)

    def expect(self, count: int) -> None:
        """Count items that are asked for."""
        self.tally["asked"] += count
        self.display.total += count

    def count_stored(self, count: int) -> None:
        """Count items that the store has already."""
        self.tally["there"] += count
        for _ in range(count):
            self.display.item_finished()

    def interrupt(self) -> None:
        """Start nothing more; what is in training ends normally. Any thread may call this, more than once."""
        self.interrupted = True

    def resume(self, budget: BudgetTracker) -> None:
        """Go on after an interruption, with the budget as it is now; all that is needed is asked for anew."""
        budget.take_losses(self.budget)
        self.budget, self.budget_exhausted, self.interrupted = budget, False, False
        # What this run has finished will be asked for again, and is no longer counted as there already.
        there = self.tally["there"] - self.display.done
        self.tally |= {"asked": 0, "there": there}
        self.display.total = self.display.done = 0

    @abstractmethod
    def _execute_missing(self, chains: Sequence[Sequence[WorkItem]]) -> None: ...


def make_executor(
    study: Study,
    store: StageStore,
    out: Path,
    display: Display,
    budget: BudgetTracker,
    local: bool = False,
    session: RaySession | None = None,
) -> StageExecutor:
    """The executor in this process, or the one on Ray (None: on this machine, for this study alone)."""
    if local:
        return LocalExecutor(study, store, out, display, budget)
    return RayExecutor(study, store, out, display, budget, session or RaySession())


# -- in this process -------------------------------------------------------------------------------


@dataclass
class LocalExecutor(StageExecutor):
    """Trains in this process. Other drivers may work on the same store at the same time."""

    runner: Any = field(default=None, init=False)
    leases: LeaseKeeper = field(init=False, repr=False)
    failed: set[str] = field(default_factory=set, init=False)  # keys; not tried twice in one run

    def _execute_missing(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        """Run one chain after another; a chain whose next item another driver has is tried again later."""
        self._set_up()
        waiting, blocked_in_a_row = deque(deque(chain) for chain in chains), 0
        while waiting and not self.interrupted:
            chain = waiting.popleft()
            if self._run_chain(chain):
                blocked_in_a_row = 0
                continue
            waiting.append(chain)
            blocked_in_a_row += 1
            if blocked_in_a_row >= len(waiting):  # other drivers have the next item of every chain
                time.sleep(POLL_S)
                blocked_in_a_row = 0

    def _set_up(self) -> None:
        if self.runner is None:
            self.display.phase(LOADING)
            self.runner = build_stage_runner(self.study, self.store)
            self.runner.on_step = self._show_step
            self.hardware_check = HardwareCheck(self.study, self.runner)
            self.leases = LeaseKeeper(self.store)
            self.stack.callback(self.leases.close)

    def _run_chain(self, chain: deque[WorkItem]) -> bool:
        """Run a chain's items and remove them from it; False where another driver has the next one."""
        while chain and not self.interrupted:
            item = chain[0]
            if item.key in self.failed:
                break
            if self.budget.decide(item) == "reject":
                self.budget_exhausted = True
                refusal = error_record(self.budget.refusal(item))
                event_log.log_error("refused", refusal, item, logging.WARNING)
                break
            if self.leases.acquire(item.key) is not None:
                return False
            try:
                if not self._run_item(item):
                    break
            finally:
                self.leases.release(item.key)
            chain.popleft()
        return True

    def _run_item(self, item: WorkItem) -> bool:
        """Train and evaluate one item; False where it failed."""
        untrained, start = self.store.record(item.stage) is None, time.monotonic()
        self.display.first_stage_started()
        self.hardware_check.run_if_due(item)
        try:
            with event_log.stage_context(item):
                self.runner.run(item)
        except Exception as problem:
            self._record_failure(item, problem, time.monotonic() - start)
            return False
        self.budget.record_finished(item)
        self.tally["trained"] += untrained and bool(item.stage.trained_tasks) and not item.profile
        self.display.item_finished()
        return True

    def _record_failure(self, item: WorkItem, problem: Exception, seconds: float) -> None:
        error = error_records.located_error_record(problem)
        self.errors.append(error)
        event_log.log_error("failed", error, item)
        self.display.say(f"{item} failed: {error_records.format_error_record(error)}")
        if not item.profile:
            self.store.record_failure(item.stage, error)
        self.budget.record_loss(seconds)
        self.failed.add(item.key)
        self.tally["failed"] += 1

    def _show_step(self, stage: Stage, done: int, steps: int) -> None:
        running = [{"stage": str(stage), "group": "this process", "steps": (done, steps)}]
        counts = {"trained": self.tally["trained"], "failed": self.tally["failed"]}
        self.display.update({**counts, "waiting": 0, "running": running})


# -- on a cluster ----------------------------------------------------------------------------------


@dataclass
class RayExecutor(StageExecutor):
    """Has items trained by worker groups. `tally` also has `seconds_to_first_stage`, once a group started."""

    session: RaySession = field(default_factory=RaySession)
    broker: Any = field(default=None, init=False)
    counts: dict[str, int] = field(default_factory=lambda: {"trained": 0, "failed": 0}, init=False)
    last_counts: dict[str, int] = field(default_factory=dict, init=False)  # as the broker gave them
    resumed: int = field(default=0, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __enter__(self) -> Self:
        self.start_time = time.perf_counter()
        return super().__enter__()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.broker and kind is None:
            self._add_counts(ray.get(self.broker.status.remote()))
            self.tally |= self.counts
        super().__exit__(kind)

    def start(self) -> Any:
        """Start Ray, the broker and the worker groups, unless they run already; return the broker."""
        if self.broker is None:
            self.display.phase("starting Ray")
            self.stack.enter_context(self.session.connected(self.study))
            self.broker = Broker.remote(  # type: ignore[attr-defined]
                self.store,
                self.study.workers.max_retries,
                self.budget,
                LeaseOwner.this_process(),
                MetricsExporter.of(self.study, self.out),
            )
            self.stack.callback(self._end_broker)  # Ray may outlive the study
            self.groups = self.stack.enter_context(
                WorkerGroupManager(
                    self.study, self.store, self.broker, self.out / "ray", self._on_status, self.session.warm
                )
            )
            self.display.phase("starting workers")
        return self.broker

    def _end_broker(self) -> None:
        with contextlib.suppress(Exception):  # Ray may be gone
            ray.kill(self.broker)

    def interrupt(self) -> None:
        super().interrupt()
        if self.broker:
            ray.get(self.broker.pause.remote(), timeout=BROKER_TIMEOUT_S)

    def resume(self, budget: BudgetTracker) -> None:
        super().resume(budget)
        if self.broker:
            self.resumed += 1
            ray.get(self.broker.resume.remote(budget, self.resumed))

    def check(self) -> None:
        """Raise ClusterError where no worker group can run; the broker may know before the manager does."""
        if self.broker:
            status: dict[str, Any] = ray.get(self.broker.status.remote())
            if reason := self.groups.failure or status["closed"]:
                raise ClusterError(reason)

    def _execute_missing(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        errors = run_chains(chains, self.start(), lambda item: self.display.item_finished())
        if self.interrupted:
            return
        self.errors += errors
        self.budget_exhausted |= is_budget_exhausted(errors)
        for line in dict.fromkeys(
            error_records.format_error_record(error) for error in errors if error.get("location")
        ):
            self.display.say(f"failed: {line}")
        self.check()

    def _on_status(self, status: dict[str, Any]) -> None:
        """Show the broker's status; called a few times a second."""
        self._add_counts(status)
        if (
            status["resumed"] != self.resumed and not self.interrupted
        ):  # it was restarted with the first budget
            self.broker.resume.remote(self.budget, self.resumed)
        self.display.update(status | self.counts)
        if status["running"]:
            self.tally.setdefault("seconds_to_first_stage", time.perf_counter() - self.start_time)

    def _add_counts(self, status: dict[str, Any]) -> None:
        """Add what the broker's counts grew by; those of a restarted broker begin again at 0."""
        with self.lock:
            for name in self.counts:
                now, before = status.get(name, 0), self.last_counts.get(name, 0)
                self.counts[name] += now - before if now >= before else now
                self.last_counts[name] = now
