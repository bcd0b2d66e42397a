"""The broker: an actor that assigns work items to worker groups, each item once for all who request it.

    client          run_chains(chains, broker)    → requests each chain's items one after another
    worker group    next_item(group, …)           → the oldest item that no other driver has
                    heartbeat(group, …)           → "the group is still at this item"
                    finish(group, result)         → everyone who requested the item gets the answer

Clients are trials and the driver. `WorkQueue` (work_queue.py) is the bookkeeping. The lease keeper
(lease_keeper.py) makes other drivers on the same store leave an assigned item alone. The store is read in
threads: it may be slow, and no answer may wait for another.

A broker that Ray restarted knows nothing. Clients then request again what is still missing, and heartbeats
tell which group has which item.

A client opens one session for all its chains (client_sessions.py).

When the driver has to decide anew what is needed, it pauses the broker: all requests end, and only the items
that groups have are finished. Then clients request what is needed now.

    pause()                         → every request is answered with an error, until
    resume(budget)                  → the broker takes requests again
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import ray

from dgg_ray.core import event_log
from dgg_ray.core.errors import OverBudgetError, error_record
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution.client_sessions import Answer, Answers, ClientSessions
from dgg_ray.execution.cluster import ON_HEAD, is_restarted_actor
from dgg_ray.execution.prometheus import MetricsExporter
from dgg_ray.execution.work_queue import MAX_OUTAGES, ItemResult, OutageCounter, WorkQueue
from dgg_ray.storage.lease_keeper import POLL_S, LeaseKeeper
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.stage_store import StageStore

GRACE_S = 3.0  # after a restart: all groups send a heartbeat before anything is assigned
REPLACEMENT_S = 20.0  # by then a group's dead workers are usually replaced, if there is a machine for them
STORE_THREADS = 16
PAUSED = {"error": "Paused", "message": "what is needed is decided anew", "traceback": ""}


@ray.remote(  # pyright: ignore
    num_cpus=0,
    resources=ON_HEAD,
    max_restarts=-1,
    max_task_retries=-1,
    max_concurrency=10_000,  # every call that waits, of clients and of groups, occupies a slot
)
class Broker:
    """The work queue as an actor whose calls wait for their answers."""

    def __init__(
        self,
        store: StageStore,
        max_retries: int,
        budget: BudgetTracker | None = None,
        lease_owner: LeaseOwner | None = None,
        metrics: MetricsExporter | None = None,
    ) -> None:
        self.store, self.metrics = store, metrics
        self.queue = WorkQueue(store, max_retries, budget, may_read=False)
        if metrics:
            metrics.start()
            self.queue.on_time_spent = metrics.observe
        self.leases = LeaseKeeper(store, lease_owner)
        self.threads = ThreadPoolExecutor(STORE_THREADS, "store")
        self.sessions = ClientSessions(self.request)
        self.answers: dict[str, asyncio.Future[Answer]] = {}
        self.news = asyncio.Condition()
        self.closed = self.paused = False
        self.resumed = 0  # how often the driver had resumed it, by the driver's count; 0 after a restart
        self.finished_meanwhile: list[WorkItem] | None = None  # while the next budget is read
        self.reason = ""  # for which it was closed
        self.phase = ""  # of a worker group's start, before its first stage
        self.incarnations: Counter[str] = Counter()  # by group: how often its workers started or died
        self.outages = OutageCounter()
        self.failure_causes: dict[str, dict[str, str]] = {}  # by item key: the error that ended its group
        self.leasing: set[str] = set()  # items that groups have and whose lease is not acquired yet
        self.tasks: set[asyncio.Task[Any]] = set()
        self.refreshing, self.resuming = asyncio.Lock(), asyncio.Lock()
        self.ready_at = time.monotonic() + GRACE_S * is_restarted_actor()
        self.lease_watch: asyncio.Task[None] | None = None

    # -- clients: trials and the driver ------------------------------------------------------------

    async def open_session(self, client: str, chains: Mapping[int, Sequence[WorkItem]]) -> None:
        self.sessions.open(client, chains)

    async def next_answers(self, client: str, known: int) -> Answers | None:
        return await self.sessions.next_answers(client, known)

    async def close_session(self, client: str) -> None:
        self.sessions.close(client)

    async def request(self, item: WorkItem) -> Answer:
        """Wait until the store has everything that the item asks for, or the item has failed."""
        while not self.paused:
            state = self.queue.known_state(item)
            if state is None:
                stored = await self._is_stored(item)
                await self._refresh_disk_use(item)
                if self.paused:
                    break
                state = self.queue.enqueue(item, stored)
            if state == "stored":
                return {"ok": True}
            if self.closed:
                return {"ok": False, "error": closed_error(self.reason)}
            if state == "failed":
                return {"ok": False, "error": self.queue.failed[item.key]}
            if state == "over budget":
                return {"ok": False, "error": error_record(self.queue.budget.refusal(item))}
            answer = self.answers.setdefault(item.key, asyncio.get_running_loop().create_future())
            await self._notify()
            # Shielded: a request that is cancelled must not cancel the answer to the others.
            result = await asyncio.shield(answer)
            if not result["ok"] or await self._is_stored(item):
                return result
        return {"ok": False, "error": PAUSED}

    # -- worker groups -----------------------------------------------------------------------------

    async def next_item(
        self, group: str, idle_timeout_s: float, finished: ItemResult | None = None
    ) -> WorkItem | None:
        """Assign a work item to the group; None after the timeout, or once the broker is closed.

        finished: the result of the group's previous item.
        """
        deadline, incarnation = time.monotonic() + idle_timeout_s, self.incarnations[group]
        if finished:
            await self.finish(group, finished)
        # A worker that was killed while it waits here must not be assigned an item that nobody would train.
        while self._can_assign(group, incarnation):
            self._return_items(self.queue.keys_of(group))  # a group that asks for work has none
            if entry := self.queue.next_entry:
                await self._refresh_disk_use(entry.item)
                if not self._can_assign(group, incarnation):
                    break
            now = time.monotonic()
            item = self.queue.dequeue(group) if now >= self.ready_at else None
            self._answer_refused()
            if item:
                if await self._acquire_lease(group, item) and self._can_assign(group, incarnation):
                    event_log.log_event("assigned", item, group=group)
                    return item
            elif now >= deadline:
                return None
            else:
                await self._wait_for_news(
                    (min(deadline, self.ready_at) if now < self.ready_at else deadline) - now
                )
        return None

    async def heartbeat(self, group: str, key: str, steps: tuple[int, int]) -> None:
        """Record that the group has the item and how far it is: (steps done, steps in total)."""
        self.phase = ""
        self.queue.heartbeat(group, key, steps)
        is_group_s_item = key in self.queue.keys_of(group)
        if not is_group_s_item or key in self.leases.held or key in self.leasing or self.closed:
            return
        self.leasing.add(key)  # as after a restart; the store may not answer at once
        try:
            if await self._lease_holder(key) is not None:
                await asyncio.sleep(POLL_S)
        except Exception as problem:
            event_log.log_error("lease not renewed", error_record(problem), level=logging.WARNING, key=key)
            await asyncio.sleep(POLL_S)
        finally:
            self.leasing.discard(key)
        if self.closed or key not in self.queue.assigned:  # it ended meanwhile
            self.leases.release(key)

    async def finish(self, group: str, result: ItemResult) -> None:
        """Record the end of an item and answer everyone who requested it."""
        had_item = result.key in self.queue.keys_of(group)
        if result.error and not had_item:
            return  # the group was believed lost, and another one tries the item again
        readings, unreadable = None, False
        if result.error is None:
            self.outages.reset()
            if had_item:
                item = self.queue.assigned[result.key].item
                if self.finished_meanwhile is not None:
                    self.finished_meanwhile.append(item)
                try:
                    readings = await self._in_thread(self.queue.budget.read_item, item)
                except Exception as problem:  # the item is finished all the same
                    unreadable = True
                    event_log.log_error("cost not read", error_record(problem), item, logging.WARNING)
        if self.queue.finish(group, result, readings, unreadable):
            self._answer(result.key, {"ok": result.error is None, "error": result.error})
            if had_item:
                self.leases.release(result.key)
        await self._notify()  # other items may be available now, or fit the budget

    async def group_lost(self, group: str, cause: dict[str, str] | None = None, blamed: bool = True) -> None:
        """Requeue the items of a group whose workers are gone or were replaced.

        cause: the error that ended them, if known. blamed: whether the items may be the cause.
        """
        self.incarnations[group] += 1
        keys = self.queue.keys_of(group)
        for key in keys:
            requested = self.queue.assigned[key].requested
            event_log.log_event("worker group lost", requested, logging.WARNING, group=group)
        for item in self.queue.group_lost(group, blamed):
            error = cause or self.failure_causes.get(item.key) or self._worker_lost_error(item)
            self.queue.fail(item.key, error)
            task = asyncio.create_task(self._store_failure(item, error))
            self.tasks.add(task)  # the event loop itself keeps only a weak reference
            task.add_done_callback(self.tasks.discard)
        for key in keys:
            self.leases.release(key)
        await self._notify()

    async def report_failure(
        self, group: str, key: str, cause: dict[str, str], result: ItemResult | None = None
    ) -> None:
        """Note the error that is about to end the group.

        result: given where a retry would end in the same way, so that the item has failed.
        """
        self.failure_causes[key] = cause
        if result:
            await self.finish(group, result)

    async def workers_died(self, group: str) -> None:
        """Requeue the group's items unless its workers are replaced soon; new workers may know the cause."""
        incarnation = self.incarnations[group]
        await asyncio.sleep(REPLACEMENT_S)
        if self.incarnations[group] == incarnation:
            await self.group_lost(group)

    async def set_phase(self, phase: str) -> None:
        """Note what a starting worker group is doing, in words for the display."""
        self.phase = phase

    async def infrastructure_failed(self, group: str, cause: dict[str, str]) -> None:
        """Record that the group ends over an error that is not its stage's fault, such as a full disk."""
        self.queue.counts["infrastructure_failures"] += 1
        await self.group_lost(group, cause, blamed=False)
        self.outages.record_failure()
        if self.outages.should_give_up:
            await self.close(
                f"{MAX_OUTAGES} infrastructure failures in a row, and no stage was finished between them; "
                f"the last: {cause['error']}: {cause['message']}"
            )

    # -- the driver --------------------------------------------------------------------------------

    async def close(self, reason: str = "") -> None:
        """Assign nothing more, and answer every request that waits with the reason."""
        self.closed, self.reason = True, self.reason or reason
        await self._notify()
        for key in list(self.answers):
            self._answer(key, {"ok": False, "error": closed_error(self.reason)})
        await asyncio.to_thread(self.leases.close)

    async def pause(self) -> None:
        """End all requests; the items that groups have are finished, and nothing else is started."""
        self.paused = True
        self.finished_meanwhile = self.finished_meanwhile or []
        for key in self.queue.drop_requests():
            self.leases.release(key)  # it may be held since the item was put back into the queue
        for key in list(self.answers):
            self._answer(key, {"ok": False, "error": PAUSED})

    async def resume(self, budget: BudgetTracker, count: int) -> None:
        """Take requests again, within the budget of the study now.

        count: how often the driver has resumed it.
        """
        async with self.resuming:
            if self.resumed == count and not self.paused:
                return  # a repeated call
            self.finished_meanwhile = self.finished_meanwhile or []
            await self._in_thread(budget.reload)
            while self.finished_meanwhile:  # after the budget was read
                item = self.finished_meanwhile.pop()
                budget.record_finished(item, await self._in_thread(budget.read_item, item))
            budget.take_losses(self.queue.budget)
            self.finished_meanwhile, self.queue.budget = None, budget
            self.paused, self.resumed = False, count

    async def status(self) -> dict[str, Any]:
        """The queue's status, with `closed`: the reason, or empty, and the `phase` of the start-up."""
        status = {
            **self.queue.status(),
            "closed": self.reason,
            "phase": self.phase,
            "resumed": self.resumed,
        }
        if self.metrics:
            self.metrics.export(status)
        return status

    # -- internals ---------------------------------------------------------------------------------

    def _can_assign(self, group: str, incarnation: int) -> bool:
        return not self.closed and self.incarnations[group] == incarnation

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    async def _is_stored(self, item: WorkItem) -> bool:
        return await self._in_thread(self.store.has, item)

    async def _lease_holder(self, key: str) -> LeaseOwner | None:
        """Acquire the lease; the other driver that has it, or None where it is ours now."""
        return await asyncio.wrap_future(self.leases.pool.submit(self.leases.acquire, key))

    async def _refresh_disk_use(self, item: WorkItem) -> None:
        """Measure the store's size where the budget needs it to decide about the item."""
        budget = self.queue.budget
        if not budget.outdated_limits(item, self.queue.running):
            return
        async with self.refreshing:  # one measurement serves all who wait here
            for limit in budget.outdated_limits(item, self.queue.running):
                try:
                    limit.set_usage(await asyncio.to_thread(limit.measure_usage))
                except Exception as problem:  # the last known size must do
                    event_log.log_error("cost not read", error_record(problem), item, logging.WARNING)
                    limit.next_measurement = time.monotonic() + POLL_S

    def _worker_lost_error(self, item: WorkItem) -> dict[str, str]:
        message = (
            f"the worker died {self.queue.max_retries + 1} times while it trained {item}; see the workers' "
            "logs: often memory ran out"
        )
        return {"error": "WorkerLost", "message": message, "traceback": ""}

    async def _store_failure(self, item: WorkItem, error: dict[str, str]) -> None:
        """Record the error in the store and answer the requests."""
        try:
            if not item.profile:
                await self._in_thread(self.store.record_failure, item.stage, error)
        except Exception as problem:  # this run knows it all the same
            event_log.log_error("failure not stored", error_record(problem), item, logging.WARNING)
        self._answer(item.key, {"ok": False, "error": error})

    async def _acquire_lease(self, group: str, item: WorkItem) -> bool:
        """Acquire the lease of an item that the group was just assigned; False if another driver has it.

        Meanwhile the group may be lost, and the item assigned to another one, which must keep it.
        """
        try:
            other = await self._lease_holder(item.key)
        except BaseException:
            if item.key in self.queue.keys_of(group):
                self.queue.requeue(item.key)
            raise
        if other is None:
            if self.closed or item.key not in self.queue.assigned:
                self.leases.release(item.key)
        elif item.key in self.queue.keys_of(group):
            self.queue.requeue(item.key, leased_by=str(other))
            self.lease_watch = self.lease_watch or asyncio.create_task(self._watch_leases())
        return other is None

    async def _watch_leases(self) -> None:
        """See now and then whether items that other drivers have are finished or given back."""
        while (leased := self.queue.leased_elsewhere) and not self.closed:
            await asyncio.sleep(POLL_S)
            for item in leased:
                try:
                    stored = await self._is_stored(item)
                    free = not stored and await self._lease_holder(item.key) is None
                except Exception:  # the store is out of reach now
                    break
                if item.key not in {other.key for other in self.queue.leased_elsewhere}:
                    # A heartbeat said meanwhile that one of our own groups has it, and it may be finished.
                    if free and item.key not in self.queue.assigned:
                        self.leases.release(item.key)
                    continue
                if stored:
                    self.queue.remove_stored(item.key)
                    self._answer(item.key, {"ok": True})
                elif free:
                    self.queue.requeue(item.key)
            await self._notify()
        self.lease_watch = None

    def _return_items(self, keys: Sequence[str]) -> None:
        """Return items that were not started to every group and every driver."""
        for key in keys:
            self.queue.requeue(key)
            self.leases.release(key)

    def _answer_refused(self) -> None:
        while self.queue.refused:
            key, error = self.queue.refused.popitem()
            self.leases.release(key)  # it may be held since the item was put back into the queue
            event_log.log_error("refused", error, level=logging.WARNING)
            self._answer(key, {"ok": False, "error": error})

    def _answer(self, key: str, answer: Answer) -> None:
        if (future := self.answers.pop(key, None)) and not future.done():
            future.set_result(answer)

    async def _notify(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def _wait_for_news(self, seconds: float) -> None:
        async with self.news:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), seconds)


def closed_error(reason: str) -> dict[str, str]:
    return {"error": "Closed", "message": reason, "traceback": ""}


# -- clients ---------------------------------------------------------------------------------------


def run_chains(
    chains: Sequence[Sequence[WorkItem]],
    broker: Any,
    on_finished: Callable[[WorkItem], None] = lambda item: None,
) -> list[dict[str, str]]:
    """Have the broker see to every chain's items, one after another, all chains at once.

    Returns the errors of the chains that ended early; the other chains go on.
    """
    remaining = {number: list(chain) for number, chain in enumerate(chains) if chain}
    errors: list[dict[str, str]] = []
    while remaining:
        client, known = uuid4().hex, 0
        ray.get(broker.open_session.remote(client, remaining))
        try:
            while remaining and (answers := ray.get(broker.next_answers.remote(client, known))) is not None:
                known += len(answers)
                for number, answer in answers:
                    if isinstance(answer, Exception):
                        raise answer
                    item, *rest = remaining.pop(number)
                    if not answer["ok"]:
                        errors.append(answer["error"])
                        continue
                    if rest:
                        remaining[number] = rest
                    on_finished(item)
        finally:
            broker.close_session.remote(client)
    return errors


def is_budget_exhausted(errors: Sequence[dict[str, str]]) -> bool:
    """Return whether the budget ended one of the chains."""
    return any(error["error"] == OverBudgetError.__name__ for error in errors)
