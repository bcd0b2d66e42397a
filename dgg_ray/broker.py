"""Who trains what. Trials ask, fleets take; a stage asked for by ten trials is trained once.

    need(work)  →  in the store: answered at once;  asked for already: joined;  else: queued
    take(fleet) →  the work that waits longest
    done(fleet) →  whoever needs it is answered

`Desk` is the book-keeping, in plain Python; `Broker` is the Ray actor around it. What the desk knows
can be lost: the store is the truth, and whoever needs a stage asks again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from dgg_ray.budget import Purse
from dgg_ray.cluster import ON_HEAD
from dgg_ray.errors import OverBudget, describe
from dgg_ray.stages import Exam, StageStore, Work

Answer = dict[str, Any]  # {"ok": bool, "error": …}


@dataclass
class Order:
    """Work that somebody waits for. exams: all that were asked for; losses: fleets lost over it.

    held: it waits for the budget, until what is in training has ended.
    """

    asked: Work
    exams: dict[str, Exam] = field(default_factory=dict)
    held: bool = False
    fleet: str | None = None
    losses: int = 0
    started: float = 0.0
    steps: tuple[int, int] = (0, 0)

    @property
    def work(self) -> Work:
        return replace(self.asked, exams=tuple(self.exams.values()))


class Desk:
    """The queue's book-keeping: no Ray, no waiting, no clock but for what it shows."""

    def __init__(self, store: StageStore, retries: int = 2, purse: Purse | None = None) -> None:
        self.store = store
        self.retries = retries
        self.purse = purse or Purse()
        self.purse.begin()
        self.orders: dict[str, Order] = {}  # by the work's key; dicts keep the order of asking
        self.later: dict[str, dict[str, Exam]] = {}  # exams asked for while their stage was out
        self.failed: dict[str, dict[str, str]] = {}  # not tried twice in one run
        self.refused: dict[str, dict[str, str]] = {}  # by `take`, and not told yet
        self.counts: Counter[str] = Counter()

    def need(self, work: Work) -> str:
        """`ready`, `failed`, `joined`, `queued`, or `over`: the budget has nothing for it."""
        self.counts["asked"] += 1
        key = work.key
        if key in self.failed:
            return "failed"
        order = self.orders.get(key)
        wanted = {exam.key: exam for exam in work.exams}
        if order is None:
            if self.store.has(work):
                return "ready"
            if self.purse.verdict(work, self.running) == "over":
                return "over"
            self.orders[key] = Order(work, wanted)
            return "queued"
        if order.fleet is None:
            order.exams |= wanted
        elif not wanted.keys() <= order.exams.keys():
            self.later.setdefault(key, {}).update(wanted)
        return "joined"

    def take(self, fleet: str) -> Work | None:
        """The work that waits longest; None when none waits, or the budget makes it wait."""
        for key, order in list(self.orders.items()):
            if order.fleet is None:
                verdict = self.purse.verdict(order.work, self.running)
                if verdict == "go":
                    order.fleet, order.started, order.steps = fleet, time.time(), (0, 0)
                    return order.work
                if verdict == "wait":
                    order.held = True
                    return None
                self.refused[key] = describe(self.purse.refusal(order.work))
                del self.orders[key]
        return None

    def settle(self, order: Order, in_vain: bool) -> None:
        """What an order took is on the bill, and others may start again."""
        if in_vain:
            self.purse.lose(time.time() - order.started)
        else:
            self.purse.finished(order.work)
        for other in self.orders.values():
            other.held = False

    def done(self, fleet: str, key: str, learned: bool, error: dict[str, str] | None) -> bool:
        """Close the order; False when exams asked for meanwhile put it back into the queue."""
        order = self.orders.get(key)
        if order is None or order.fleet != fleet:
            return True  # it was taken from a fleet believed lost; the store holds the result all the same
        del self.orders[key]
        self.settle(order, in_vain=error is not None)
        self.counts["trained"] += learned
        later = self.later.pop(key, None)
        if error:
            self.fail(key, error)
        elif later:
            self.orders[key] = Order(order.asked, later)
            return False
        return True

    def fail(self, key: str, error: dict[str, str]) -> None:
        self.failed[key] = error
        self.counts["failed"] += 1

    def lost(self, fleet: str) -> list[Work]:
        """Put the fleet's work back; what was lost too often is given up and returned."""
        given_up = []
        for key, order in list(self.orders.items()):
            if order.fleet == fleet:
                self.settle(order, in_vain=True)
                order.fleet = None
                order.losses += 1
                self.counts["lost"] += 1
                if order.losses > self.retries:
                    given_up.append(order.work)
                    del self.orders[key]
        return given_up

    @property
    def waiting(self) -> int:
        """What a fleet could take."""
        return sum(order.fleet is None and not order.held for order in self.orders.values())

    @property
    def running(self) -> Iterator[Work]:
        """What fleets have; looked up by a purse that asks, as most do not."""
        return (order.work for order in self.orders.values() if order.fleet)


@ray.remote(  # pyright: ignore
    num_cpus=0,
    resources=ON_HEAD,
    max_restarts=-1,
    max_task_retries=-1,
    max_concurrency=100_000,  # every open `need` holds a place; Ray's default, 1000, could shut out `done`
)
class Broker:
    """The desk, as an actor that can be waited for."""

    def __init__(self, store: StageStore, retries: int, purse: Purse | None = None) -> None:
        self.desk = Desk(store, retries, purse)
        self.answers: dict[str, asyncio.Future[Answer]] = {}
        self.news = asyncio.Condition()
        self.closed = False
        self.reason = ""  # why it was closed
        self.lives: Counter[str] = Counter()  # how often a fleet's workers began

    async def need(self, work: Work) -> Answer:
        """Wait until the store has it, or until it failed."""
        while True:
            key, found = work.key, self.desk.need(work)
            if found == "ready":
                return {"ok": True}
            if self.closed:
                return {"ok": False, "error": closing(self.reason)}
            if found == "failed":
                return {"ok": False, "error": self.desk.failed[key]}
            if found == "over":
                return {"ok": False, "error": describe(self.desk.purse.refusal(work))}
            answer = self.answers.setdefault(key, asyncio.get_running_loop().create_future())
            async with self.news:
                self.news.notify_all()
            # Shielded: one asker that is cancelled must not cancel the others' answer.
            result = await asyncio.shield(answer)
            if not result["ok"] or self.desk.store.has(work):
                return result

    async def take(self, fleet: str, patience_s: float) -> Work | None:
        """Work for the fleet; None when none came for that long, or when the study is over."""
        deadline, life = time.monotonic() + patience_s, self.lives[fleet]
        # A worker killed while it waits here must not be handed work that nobody then does.
        while not self.closed and self.lives[fleet] == life:
            work = self.desk.take(fleet)
            while self.desk.refused:
                key, error = self.desk.refused.popitem()
                self._answer(key, {"ok": False, "error": error})
            if work:
                return work
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            async with self.news:
                try:
                    await asyncio.wait_for(self.news.wait(), left)
                except TimeoutError:
                    return None
        return None

    async def done(self, fleet: str, key: str, learned: bool, error: dict[str, str] | None) -> None:
        if self.desk.done(fleet, key, learned, error):
            self._answer(key, {"ok": error is None, "error": error})
        async with self.news:  # there may be more to do, or money for it
            self.news.notify_all()

    async def lost(self, fleet: str) -> None:
        """The fleet's workers began anew, or are gone: what they had is to be taken again."""
        self.lives[fleet] += 1
        for work in self.desk.lost(fleet):
            error = {
                "error": "WorkerLost",
                "message": f"the worker died {self.desk.retries + 1} times while learning {work}; "
                "see the workers' logs, often memory ran out",
                "traceback": "",
            }
            self.desk.fail(work.key, error)
            self._answer(work.key, {"ok": False, "error": error})
            if not work.probe:
                self.desk.store.fail(work.stage, error)
        async with self.news:
            self.news.notify_all()

    async def tick(self, key: str, steps: tuple[int, int]) -> None:
        if order := self.desk.orders.get(key):
            order.steps = steps

    async def close(self, reason: str = "") -> None:
        """End the fleets; whoever still waits is told why."""
        self.closed, self.reason = True, self.reason or reason
        async with self.news:
            self.news.notify_all()
        for key in list(self.answers):
            self._answer(key, {"ok": False, "error": closing(self.reason)})

    async def status(self) -> dict[str, Any]:
        """Counts, and what is in training."""
        out = [o for o in self.desk.orders.values() if o.fleet]
        shown = [{"stage": str(o.asked), "fleet": o.fleet, "steps": o.steps} for o in out]
        return {**self.desk.counts, "waiting": self.desk.waiting, "running": shown, "closed": self.reason}

    def _answer(self, key: str, answer: Answer) -> None:
        if (future := self.answers.pop(key, None)) and not future.done():
            future.set_result(answer)


def closing(reason: str) -> dict[str, str]:
    return {"error": "Closed", "message": reason, "traceback": ""}


def walk(
    chains: Sequence[Sequence[Work]],
    need: Callable[[Work], ray.ObjectRef],
    finished: Callable[[Work], None] = lambda work: None,
) -> list[dict[str, str]]:
    """Ask for every chain's works, each chain one after another, all chains at once.

    Returns the errors of chains that ended early; the other chains go on.
    """
    places = {need(chain[0]): (chain, 0) for chain in chains if chain}
    errors = []
    while places:
        (ref,), _ = ray.wait(list(places), num_returns=1)
        chain, i = places.pop(ref)
        answer = ray.get(ref)
        if not answer["ok"]:
            errors.append(answer["error"])
            continue
        finished(chain[i])
        if i + 1 < len(chain):
            places[need(chain[i + 1])] = (chain, i + 1)
    return errors


def over(errors: Sequence[dict[str, str]]) -> bool:
    """Whether the budget ended one of the chains."""
    return any(error["error"] == OverBudget.__name__ for error in errors)
