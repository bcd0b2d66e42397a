"""Who trains what. Trials ask, fleets take; a stage asked for by ten trials is trained once.

    need(work)  →  in the store: answered at once;  asked for already: joined;  else: queued;
                   from afar whole chains at once (broker_client.py)
    take(fleet) →  the work that waits longest, once no other driver on the same store has it; a handful
                   where each takes no time;  whoever needs what the fleet had before is answered

`Desk` (work_queue.py) is the book-keeping, `Claims` (lease_keeper.py) what other drivers see of it; `Broker`
is the Ray actor around them. The store is asked in threads where it may be slow: nobody waits for another's
answer.
Restarted, the broker knows nothing: whoever needs a stage asks again, and fleets in the middle of one say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from dgg_ray.core import event_log
from dgg_ray.core.errors import describe
from dgg_ray.core.quick import Quick
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import Purse
from dgg_ray.execution.broker_client import Answer, Askers, Told
from dgg_ray.execution.cluster import ON_HEAD, restarted
from dgg_ray.execution.prometheus import Watch
from dgg_ray.execution.work_queue import AILMENTS, Ailments, Desk, Ended
from dgg_ray.storage.lease_keeper import LOOK_S, Claims
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.stage_store import StageStore

GRACE_S = 3.0  # after a restart: time for all fleets to say what they have, before anything is handed out
NEW_LIFE_S = 20.0  # in which a fleet's workers are usually replaced, where there is a machine for them
THREADS = 16  # for looks at a store that is slow


@ray.remote(  # pyright: ignore
    num_cpus=0,
    resources=ON_HEAD,
    max_restarts=-1,
    max_task_retries=-1,
    max_concurrency=10_000,  # every asker and every fleet that waits holds a place
)
class Broker:
    """The desk, as an actor that can be waited for."""

    def __init__(
        self,
        store: StageStore,
        max_retries: int,
        purse: Purse | None = None,
        holder: Holder | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.store, self.desk, self.watch = store, Desk(store, max_retries, purse, look=False), watch
        if watch:
            watch.begin()
            self.desk.bill = watch.bill
        self.claims = Claims(store, holder)
        self.threads = Quick(store.objects.near, THREADS, "store")
        self.askers = Askers(self.need)
        self.answers: dict[str, asyncio.Future[Answer]] = {}
        self.news = asyncio.Condition()
        self.closed = False
        self.reason = ""  # why it was closed
        self.phase = ""  # of a worker group's start, before its first stage
        self.lives: Counter[str] = Counter()  # how often a fleet's workers began
        self.ailments = Ailments()
        self.causes: dict[str, dict[str, str]] = {}  # with what a fleet ended over it, by key
        self.claiming: set[str] = set()  # what fleets have and is not claimed yet
        self.tasks: set[asyncio.Task[Any]] = set()
        self.sizing = asyncio.Lock()
        self.ready_at = time.monotonic() + GRACE_S * restarted()
        self.looking: asyncio.Task[None] | None = None

    async def follow(self, asker: str, chains: Mapping[int, Sequence[WorkItem]]) -> None:
        self.askers.follow(asker, chains)

    async def told(self, asker: str, known: int) -> Told | None:
        return await self.askers.told(asker, known)

    async def forget(self, asker: str) -> None:
        self.askers.forget(asker)

    async def need(self, item: WorkItem) -> Answer:
        """Wait until the store has it, or until it failed."""
        key = item.key
        self.desk.counts["asked"] += 1
        while True:
            if not (found := self.desk.known(item)):
                there = await self._there(item)
                await self._sized(item)
                found = self.desk.enter(item, there)
            if found == "ready":
                return {"ok": True}
            if self.closed:
                return {"ok": False, "error": closing(self.reason)}
            if found == "failed":
                return {"ok": False, "error": self.desk.failed[key]}
            if found == "over":
                return {"ok": False, "error": describe(self.desk.purse.refusal(item))}
            answer = self.answers.setdefault(key, asyncio.get_running_loop().create_future())
            await self._tell()
            # Shielded: one asker that is cancelled must not cancel the others' answer.
            result = await asyncio.shield(answer)
            if not result["ok"] or await self._there(item):
                return result

    async def take(self, group: str, patience_s: float, ended: Sequence[Ended] = ()) -> list[WorkItem]:
        """Work for the fleet, which says what it ended; nothing when none came so long, or all is over."""
        deadline, life, mine = time.monotonic() + patience_s, self.lives[group], list[WorkItem]()
        await self.done(group, *ended)
        if self.lives[group] == life:
            self._back(self.desk.of(group))  # who asks has nothing
        # A worker killed while it waits here must not be handed work that nobody then does.
        while not self.closed and self.lives[group] == life:
            if order := self.desk.next:
                await self._sized(order.item)
                if self.closed or self.lives[group] != life:
                    break
            now = time.monotonic()
            item = self.desk.take(group) if now >= self.ready_at else None
            while self.desk.refused:
                key, error = self.desk.refused.popitem()
                event_log.trouble("refused", error, level=logging.WARNING)
                self._answer(key, {"ok": False, "error": error})
            if item:
                try:
                    mine += [item] if await self._ours(item) else []
                except BaseException:
                    self._back([other.key for other in mine if self.lives[group] == life])
                    raise
            elif mine:
                for item in mine:
                    event_log.event("taken", item, group=group)
                return mine
            elif now >= deadline:
                return []
            else:
                until = min(deadline, self.ready_at) if now < self.ready_at else deadline
                async with self.news:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.news.wait(), until - now)
        return []

    async def done(self, group: str, *ended: Ended) -> None:
        """What became of what the fleet had."""
        for key, learned, error, seconds in ended:
            mine = key in self.desk.of(group)
            if error and not mine:
                continue  # of a fleet believed lost: another tries it, or will
            measured, unread = None, False
            if error is None:
                self.ailments.count = 0
            if mine and not error:
                item = self.desk.out[key].item
                try:
                    measured = await self.threads(self.desk.purse.measured, item)
                except Exception as problem:  # it is done all the same
                    unread = True
                    event_log.trouble("not read", describe(problem), item, logging.WARNING)
            if self.desk.done(group, key, learned, error, seconds, measured, unread):
                self._answer(key, {"ok": error is None, "error": error})
                if mine:
                    self.claims.drop(key)
        if ended:
            await self._tell()  # there may be more to do, or money for it

    async def lost(self, group: str, cause: dict[str, str] | None = None, blamed: bool = True) -> None:
        """The fleet's workers began anew, or are gone: what they had is to be taken again.

        blamed: whether that may be the fault of what they had.
        """
        self.lives[group] += 1
        had = self.desk.of(group)
        for key in had:
            event_log.event("lost", self.desk.out[key].asked, logging.WARNING, group=group)
        for item in self.desk.lost(group, blamed):
            error = (
                cause
                or self.causes.get(item.key)
                or {
                    "error": "WorkerLost",
                    "message": f"the worker died {self.desk.max_retries + 1} times while learning {item}; "
                    "see the workers' logs, often memory ran out",
                    "traceback": "",
                }
            )
            self.desk.fail(item.key, error)
            task = asyncio.create_task(self._set_aside(item, error))
            self.tasks.add(task)  # nobody waits for it, and it must not be forgotten
            task.add_done_callback(self.tasks.discard)
        for key in had:
            self.claims.drop(key)
        await self._tell()

    async def blame(self, group: str, key: str, cause: dict[str, str], ended: Sequence[Ended] = ()) -> None:
        """The fleet ends with this soon, over this work; ended: others, of the same handful."""
        self.causes[key] = cause
        await self.done(group, *ended)
        self._back(self.desk.beside(group, key))
        await self._tell()

    async def orphaned(self, group: str) -> None:
        """The fleet's workers died. New ones come soon, and may know why; or late, or never."""
        life = self.lives[group]
        await asyncio.sleep(NEW_LIFE_S)
        if self.lives[group] == life:
            await self.lost(group)

    async def set_phase(self, phase: str) -> None:
        """Note what a worker group that starts is at, in words."""
        self.phase = phase

    async def unwell(self, group: str, cause: dict[str, str], ended: Sequence[Ended] = ()) -> None:
        """The fleet ends over something that is not its stage's fault, as a full disk."""
        await self.done(group, *ended)
        self.desk.counts["unwell"] += 1
        await self.lost(group, cause, blamed=False)
        if self.ailments.last_for_ever():
            why = f"{cause['error']}: {cause['message']}"
            await self.close(f"{AILMENTS} stages in a row could not be done and are not at fault; {why}")

    async def tick(self, group: str, key: str, steps: tuple[int, int], ended: Sequence[Ended] = ()) -> None:
        """The fleet is at this, came so far with it, and ended others of the same handful before."""
        self.phase = ""
        await self.done(group, *ended)
        self.desk.heard(group, key, steps)
        if self.desk.lingers(group, key) and (rest := self.desk.beside(group, key)):
            self._back(rest)
            await self._tell()
        if key not in self.desk.of(group) or key in self.claims.held or key in self.claiming or self.closed:
            return
        self.claiming.add(key)  # as after a restart; the store may not answer at once
        try:
            if await self._claimed(key) is not None:
                await asyncio.sleep(LOOK_S)
        except Exception as problem:
            event_log.trouble("claim not kept", describe(problem), level=logging.WARNING, key=key)
            await asyncio.sleep(LOOK_S)
        finally:
            self.claiming.discard(key)
        if key not in self.desk.out:  # it ended meanwhile
            self.claims.drop(key)

    async def close(self, reason: str = "") -> None:
        """End the fleets; whoever still waits is told why."""
        self.closed, self.reason = True, self.reason or reason
        await self._tell()
        for key in list(self.answers):
            self._answer(key, {"ok": False, "error": closing(self.reason)})
        await asyncio.to_thread(self.claims.close)

    async def status(self) -> dict[str, Any]:
        """Counts, what is in training, and what another driver has."""
        found = {**self.desk.status(), "closed": self.reason, "phase": self.phase}
        if self.watch:
            self.watch.show(found)
        return found

    async def _there(self, item: WorkItem) -> bool:
        return await self.threads(self.store.has, item)

    async def _claimed(self, key: str) -> Holder | None:
        """Who else has it; None where it is ours now."""
        return await self.claims.pool(self.claims.take, key)

    async def _sized(self, item: WorkItem) -> None:
        """Have the purse know enough of the store to decide about the work."""
        purse = self.desk.purse
        if not purse.unsure(item, self.desk.running):
            return
        async with self.sizing:  # one look at a time tells all
            for disk in purse.unsure(item, self.desk.running):
                try:
                    disk.saw(*await asyncio.to_thread(disk.size))
                except Exception as problem:  # what is known must do
                    event_log.trouble("not read", describe(problem), item, logging.WARNING)
                    disk.next_look = time.monotonic() + LOOK_S

    async def _set_aside(self, item: WorkItem, error: dict[str, str]) -> None:
        """Keep why it was given up, and tell."""
        try:
            if not item.profile:
                await self.threads(self.store.fail, item.stage, error)
        except Exception as problem:  # this run knows it all the same
            event_log.trouble("not kept", describe(problem), item, logging.WARNING)
        self._answer(item.key, {"ok": False, "error": error})

    async def _ours(self, item: WorkItem) -> bool:
        """Whether the work, which was just taken, is this driver's to do."""
        try:
            other = await self._claimed(item.key)
        except BaseException:
            self.desk.put_back(item.key)
            raise
        if other is not None:
            self.desk.put_back(item.key, elsewhere=str(other))
            self.looking = self.looking or asyncio.create_task(self._look())
        elif item.key not in self.desk.out:  # it was lost meanwhile, before it was claimed
            self.claims.drop(item.key)
        return other is None

    async def _look(self) -> None:
        """Now and then, whether work that other drivers have is done, or theirs no more."""
        while (elsewhere := self.desk.elsewhere) and not self.closed:
            await asyncio.sleep(LOOK_S)
            for item in elsewhere:
                try:
                    there = await self._there(item)
                    free = not there and await self._claimed(item.key) is None
                except Exception:  # the store cannot be reached now
                    break
                if item.key not in {other.key for other in self.desk.elsewhere}:
                    continue  # one of our own fleets said meanwhile that it has it
                if there:
                    self.desk.answered(item.key)
                    self._answer(item.key, {"ok": True})
                elif free:
                    self.desk.put_back(item.key)
            await self._tell()
        self.looking = None

    def _back(self, keys: Sequence[str]) -> None:
        """They were not begun: any fleet may have them, and any driver's."""
        for key in keys:
            self.desk.put_back(key)
            self.claims.drop(key)

    async def _tell(self) -> None:
        async with self.news:
            self.news.notify_all()

    def _answer(self, key: str, answer: Answer) -> None:
        if (future := self.answers.pop(key, None)) and not future.done():
            future.set_result(answer)


def closing(reason: str) -> dict[str, str]:
    return {"error": "Closed", "message": reason, "traceback": ""}
