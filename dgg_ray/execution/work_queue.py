"""The desk's book-keeping: who needs what, which fleet has it, what was lost. No Ray, no waiting, no threads.

    need(work)  →  in the store: answered at once;  asked for already: joined;  else: queued
    take(fleet) →  the work that waits longest; more of it, as long as the fleet has next to nothing to do
    done(fleet) →  whoever needs it is answered

What the desk knows can be lost: the store is the truth, and whoever needs a stage asks again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from dgg_ray.core.errors import describe
from dgg_ray.core.stage import Evaluation, WorkItem
from dgg_ray.cost.budget import Purse
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.setup import HANDFUL_S

# A work's key, whether its stage was learned, its error, and for how many seconds its fleet was at it.
Ended = tuple[str, bool, dict[str, str] | None, float]

HANDFUL = 20  # works that a fleet has at once at most
MEMORY = 8  # works; one that took long ends handfuls for about as many
AILMENTS, AILMENT_S = (
    5,
    60.0,
)  # so many, each so long after the one before, nothing finished: it will not pass
FURTHER = 0.05  # of a stage's steps; a loss after so much more of them than ever before is not counted


@dataclass
class Order:
    """Work that somebody waits for. exams: all that were asked for.

    held: it waits for the budget, until what is in training has ended.
    elsewhere: another driver that has it; empty where none does.
    losses: fleets lost over it; reached: the step that the furthest of them had come to.
    alone: a fleet was lost that had others too; whose fault it was shows when it is handed out by itself.
    beats: how often its fleet said that it is at it.
    """

    asked: WorkItem
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    held: bool = False
    elsewhere: str = ""
    group: str | None = None
    losses: int = 0
    reached: int = 0
    alone: bool = False
    started: float = 0.0
    steps: tuple[int, int] = (0, 0)
    beats: int = 0

    @property
    def item(self) -> WorkItem:
        return replace(self.asked, evaluations=tuple(self.evaluations.values()))

    @property
    def free(self) -> bool:
        return self.group is None and not self.elsewhere

    def lose(self, blamed: bool = True) -> None:
        """Its fleet is gone. A stage that gets further each time is not what ends its fleets."""
        done, steps = self.steps
        self.losses += blamed and done <= self.reached + FURTHER * steps
        self.group, self.reached, self.steps = None, max(self.reached, done), (0, 0)


class Ailments:
    """What goes wrong and is no stage's fault, as a full disk."""

    def __init__(self) -> None:
        self.count, self.last = 0, -AILMENT_S

    def last_for_ever(self) -> bool:
        """Count one more, unless it is of the same outage as the one before; whether they will not pass."""
        if (now := time.monotonic()) - self.last >= AILMENT_S:
            self.count, self.last = self.count + 1, now
            return self.count >= AILMENTS
        return False


class Desk:
    """The queue.

    look: whether the purse may look into the store; else somebody looks for it beforehand.
    """

    def __init__(
        self, store: StageStore, max_retries: int = 2, purse: Purse | None = None, look: bool = True
    ) -> None:
        self.store = store
        self.max_retries, self.look = max_retries, look
        self.purse = purse or Purse()
        self.purse.begin()
        self.orders: dict[str, Order] = {}  # by the work's key; dicts keep the order of asking
        self.out: dict[str, Order] = {}  # those that fleets have
        self.later: dict[str, dict[str, Evaluation]] = {}  # exams asked for while their stage was out
        self.failed: dict[str, dict[str, str]] = {}  # not tried twice in one run
        self.refused: dict[str, dict[str, str]] = {}  # by `take`, and not told yet
        self.holding = False  # whether any of them is held
        self.usual = inf  # seconds that a work takes, of late
        self.counts: Counter[str] = Counter()
        self.bill: Callable[[WorkItem, float], None] = lambda item, seconds: None  # told what each order took

    def need(self, item: WorkItem) -> str:
        """`ready`, `failed`, `joined`, `queued`, or `over`: the budget has nothing for it."""
        self.counts["asked"] += 1
        return self.known(item) or self.enter(item, self.store.has(item))

    def known(self, item: WorkItem) -> str:
        """`failed`, `joined`, or nothing: the store has to be asked."""
        if item.key in self.failed:
            return "failed"
        if (order := self.orders.get(item.key)) is None:
            return ""
        wanted = {evaluation.key: evaluation for evaluation in item.evaluations}
        if order.group is None:
            order.evaluations |= wanted
        elif not wanted.keys() <= order.evaluations.keys():
            self.later.setdefault(item.key, {}).update(wanted)
        return "joined"

    def enter(self, item: WorkItem, there: bool) -> str:
        """Queue it, unless the store has it. Somebody else may have asked since the store was looked into."""
        if there:
            return "ready"
        if found := self.known(item):
            return found
        if self.purse.verdict(item, self.running, self.look) == "over":
            return "over"
        self.orders[item.key] = Order(item, {evaluation.key: evaluation for evaluation in item.evaluations})
        return "queued"

    def take(self, group: str) -> WorkItem | None:
        """The work that waits longest.

        None when none waits, the fleet has enough, or the budget makes it wait.
        """
        while (order := self.next) is not None and self._room(group, order):
            key, verdict = order.asked.key, self.purse.verdict(order.item, self.running, self.look)
            if verdict == "go":
                self.assign(key, group)
                return order.item
            if verdict == "wait":
                order.held = self.holding = True
                return None
            self.refused[key] = describe(self.purse.refusal(order.item))
            del self.orders[key]
        return None

    @property
    def next(self) -> Order | None:
        """What the next fleet gets, if the budget has something for it."""
        return next((order for order in self.orders.values() if order.free), None)

    def assign(self, key: str, group: str) -> None:
        order = self.out[key] = self.orders[key]
        order.group, order.elsewhere, order.started = group, "", time.time()
        order.steps, order.beats = (0, 0), 0

    def heard(self, group: str, key: str, steps: tuple[int, int]) -> bool:
        """The fleet says that it is at this; whether that is news, as after a restart of the desk."""
        order = self.orders.get(key)
        news = order is not None and order.group is None
        if news:
            self.assign(key, group)
        if order and order.group == group:
            order.steps, order.beats = steps, order.beats + 1
        return news

    def of(self, group: str) -> list[str]:
        """Keys of what the fleet has."""
        return [key for key, order in self.out.items() if order.group == group]

    def put_back(self, key: str, elsewhere: str = "") -> None:
        """It was not begun after all; `elsewhere`: another driver has it."""
        self.out.pop(key, None)
        if order := self.orders.get(key):
            order.group, order.elsewhere = None, elsewhere

    def beside(self, group: str, key: str) -> list[str]:
        """What else the fleet has; it will not begin that if it `lingers` at this."""
        return [other for other in self.of(group) if other != key]

    def lingers(self, group: str, key: str) -> bool:
        """Whether the fleet is at this for longer than a handful lasts."""
        order = self.out.get(key)
        return order is not None and order.group == group and order.beats > 1

    def answered(self, key: str) -> None:
        """Another driver left the store with it."""
        self.later.pop(key, None)
        del self.orders[key]

    def settle(
        self, order: Order, seconds: float, in_vain: bool, measured: Sequence[Any] | None = None
    ) -> None:
        """What an order took is on the bill, and others may start again."""
        self.bill(order.asked, seconds)
        if in_vain:
            self.purse.lose(seconds)
        else:
            self.purse.finished(order.item, measured)
        if self.holding:
            for other in self.orders.values():
                other.held = False
            self.holding = False

    def done(
        self,
        group: str,
        key: str,
        learned: bool,
        error: dict[str, str] | None,
        seconds: float | None = None,
        measured: Sequence[Any] | None = None,
        unread: bool = False,
    ) -> bool:
        """Close the order; False when exams asked for meanwhile put it back into the queue.

        seconds: that the fleet was at it; else since it was handed out.
        measured: what the purse read of it, if it was; unread: the store could not be read, so that it
            counts as what is lost does.
        """
        order = self.out.get(key)
        if order is None or order.group != group:
            return True  # it was taken from a fleet believed lost; the store holds the result all the same
        del self.orders[key], self.out[key]
        seconds = time.time() - order.started if seconds is None else seconds
        self.usual = seconds if self.usual == inf else self.usual + (seconds - self.usual) / MEMORY
        self.settle(order, seconds, error is not None or unread, measured)
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

    def lost(self, group: str, blamed: bool = True) -> list[WorkItem]:
        """Put the fleet's work back; what was lost too often is given up and returned.

        blamed: whether it may be the work that ends its fleets.
        """
        given_up, had = [], self.of(group)
        for key in had:
            order = self.out.pop(key)
            self.settle(order, (time.time() - order.started) / len(had), in_vain=True)
            order.alone |= blamed and len(had) > 1
            order.lose(blamed and len(had) == 1)
            self.counts["lost"] += 1
            if order.losses > self.max_retries:
                given_up.append(order.item)
                del self.orders[key]
        return given_up

    def _room(self, group: str, order: Order) -> bool:
        """Whether the fleet may have this beside what it has."""
        if not (had := self.of(group)):
            return True
        apart = order.alone or self.out[had[0]].alone
        return not apart and len(had) < min(HANDFUL, HANDFUL_S / max(self.usual, 1e-9))

    @property
    def waiting(self) -> int:
        """What a fleet could take."""
        return sum(order.free and not order.held for order in self.orders.values())

    @property
    def begun(self) -> list[Order]:
        """What fleets are at: the first of what each has."""
        return list({order.group: order for order in reversed(self.out.values())}.values())[::-1]

    def status(self) -> dict[str, Any]:
        """Counts, and what fleets are at; the rest of their handfuls counts among what waits."""
        shown = [{"stage": str(o.asked), "fleet": o.group, "steps": o.steps} for o in self.begun]
        waiting = self.waiting + len(self.out) - len(shown)
        counts = {"waiting": waiting, "elsewhere": len(self.elsewhere)}
        return {**self.counts, **counts, "running": shown}

    @property
    def elsewhere(self) -> list[WorkItem]:
        """What other drivers have."""
        return [order.item for order in self.orders.values() if order.elsewhere]

    @property
    def running(self) -> Iterator[WorkItem]:
        """What fleets have; looked up by a purse that asks, as most do not."""
        return (order.item for order in self.out.values())
