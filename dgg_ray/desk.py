"""The desk's book-keeping: who needs what, which fleet has it, what was lost. No Ray, no waiting, no threads.

    need(work)  →  in the store: answered at once;  asked for already: joined;  else: queued
    take(fleet) →  the work that waits longest
    done(fleet) →  whoever needs it is answered

What the desk knows can be lost: the store is the truth, and whoever needs a stage asks again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dgg_ray.budget import Purse
from dgg_ray.errors import describe
from dgg_ray.stages import Exam, StageStore, Work

FURTHER = 0.05  # of a stage's steps; a loss after so much more of them than ever before is not counted


@dataclass
class Order:
    """Work that somebody waits for. exams: all that were asked for.

    held: it waits for the budget, until what is in training has ended.
    elsewhere: another driver that has it; empty where none does.
    losses: fleets lost over it; reached: the step that the furthest of them had come to.
    """

    asked: Work
    exams: dict[str, Exam] = field(default_factory=dict)
    held: bool = False
    elsewhere: str = ""
    fleet: str | None = None
    losses: int = 0
    reached: int = 0
    started: float = 0.0
    steps: tuple[int, int] = (0, 0)

    @property
    def work(self) -> Work:
        return replace(self.asked, exams=tuple(self.exams.values()))

    @property
    def free(self) -> bool:
        return self.fleet is None and not self.elsewhere

    def lose(self, blamed: bool = True) -> None:
        """Its fleet is gone. A stage that gets further each time is not what ends its fleets."""
        done, steps = self.steps
        self.losses += blamed and done <= self.reached + FURTHER * steps
        self.fleet, self.reached, self.steps = None, max(self.reached, done), (0, 0)


class Desk:
    """The queue.

    look: whether the purse may look into the store; else somebody looks for it beforehand.
    """

    def __init__(
        self, store: StageStore, retries: int = 2, purse: Purse | None = None, look: bool = True
    ) -> None:
        self.store = store
        self.retries, self.look = retries, look
        self.purse = purse or Purse()
        self.purse.begin()
        self.orders: dict[str, Order] = {}  # by the work's key; dicts keep the order of asking
        self.out: dict[str, Order] = {}  # those that fleets have
        self.later: dict[str, dict[str, Exam]] = {}  # exams asked for while their stage was out
        self.failed: dict[str, dict[str, str]] = {}  # not tried twice in one run
        self.refused: dict[str, dict[str, str]] = {}  # by `take`, and not told yet
        self.holding = False  # whether any of them is held
        self.counts: Counter[str] = Counter()
        self.bill: Callable[[Work, float], None] = lambda work, seconds: None  # told what each order took

    def need(self, work: Work) -> str:
        """`ready`, `failed`, `joined`, `queued`, or `over`: the budget has nothing for it."""
        self.counts["asked"] += 1
        return self.known(work) or self.enter(work, self.store.has(work))

    def known(self, work: Work) -> str:
        """`failed`, `joined`, or nothing: the store has to be asked."""
        if work.key in self.failed:
            return "failed"
        if (order := self.orders.get(work.key)) is None:
            return ""
        wanted = {exam.key: exam for exam in work.exams}
        if order.fleet is None:
            order.exams |= wanted
        elif not wanted.keys() <= order.exams.keys():
            self.later.setdefault(work.key, {}).update(wanted)
        return "joined"

    def enter(self, work: Work, there: bool) -> str:
        """Queue it, unless the store has it. Somebody else may have asked since the store was looked into."""
        if there:
            return "ready"
        if found := self.known(work):
            return found
        if self.purse.verdict(work, self.running, self.look) == "over":
            return "over"
        self.orders[work.key] = Order(work, {exam.key: exam for exam in work.exams})
        return "queued"

    def take(self, fleet: str) -> Work | None:
        """The work that waits longest; None when none waits, or the budget makes it wait."""
        while (order := self.next) is not None:
            key, verdict = order.asked.key, self.purse.verdict(order.work, self.running, self.look)
            if verdict == "go":
                self.assign(key, fleet)
                return order.work
            if verdict == "wait":
                order.held = self.holding = True
                return None
            self.refused[key] = describe(self.purse.refusal(order.work))
            del self.orders[key]
        return None

    @property
    def next(self) -> Order | None:
        """What the next fleet gets, if the budget has something for it."""
        return next((order for order in self.orders.values() if order.free), None)

    def assign(self, key: str, fleet: str) -> None:
        order = self.out[key] = self.orders[key]
        order.fleet, order.elsewhere, order.started, order.steps = fleet, "", time.time(), (0, 0)

    def heard(self, fleet: str, key: str, steps: tuple[int, int]) -> bool:
        """The fleet says that it has this; whether that is news, as after a restart of the desk."""
        order = self.orders.get(key)
        news = order is not None and order.fleet is None
        if news:
            self.assign(key, fleet)
        if order and order.fleet == fleet:
            order.steps = steps
        return news

    def of(self, fleet: str) -> list[str]:
        """Keys of what the fleet has."""
        return [key for key, order in self.out.items() if order.fleet == fleet]

    def put_back(self, key: str, elsewhere: str = "") -> None:
        """It was not begun after all; `elsewhere`: another driver has it."""
        self.out.pop(key, None)
        if order := self.orders.get(key):
            order.fleet, order.elsewhere = None, elsewhere

    def answered(self, key: str) -> None:
        """Another driver left the store with it."""
        self.later.pop(key, None)
        del self.orders[key]

    def settle(self, order: Order, in_vain: bool, measured: Sequence[Any] | None = None) -> None:
        """What an order took is on the bill, and others may start again."""
        self.bill(order.asked, time.time() - order.started)
        if in_vain:
            self.purse.lose(time.time() - order.started)
        else:
            self.purse.finished(order.work, measured)
        if self.holding:
            for other in self.orders.values():
                other.held = False
            self.holding = False

    def done(
        self,
        fleet: str,
        key: str,
        learned: bool,
        error: dict[str, str] | None,
        measured: Sequence[Any] | None = None,
        unread: bool = False,
    ) -> bool:
        """Close the order; False when exams asked for meanwhile put it back into the queue.

        measured: what the purse read of it, if it was; unread: the store could not be read, so that it
            counts as what is lost does.
        """
        order = self.out.get(key)
        if order is None or order.fleet != fleet:
            return True  # it was taken from a fleet believed lost; the store holds the result all the same
        del self.orders[key], self.out[key]
        self.settle(order, error is not None or unread, measured)
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

    def lost(self, fleet: str, blamed: bool = True) -> list[Work]:
        """Put the fleet's work back; what was lost too often is given up and returned.

        blamed: whether it may be the work that ends its fleets.
        """
        given_up = []
        for key in self.of(fleet):
            order = self.out.pop(key)
            self.settle(order, in_vain=True)
            order.lose(blamed)
            self.counts["lost"] += 1
            if order.losses > self.retries:
                given_up.append(order.work)
                del self.orders[key]
        return given_up

    @property
    def waiting(self) -> int:
        """What a fleet could take."""
        return sum(order.free and not order.held for order in self.orders.values())

    @property
    def elsewhere(self) -> list[Work]:
        """What other drivers have."""
        return [order.work for order in self.orders.values() if order.elsewhere]

    @property
    def running(self) -> Iterator[Work]:
        """What fleets have; looked up by a purse that asks, as most do not."""
        return (order.work for order in self.out.values())
