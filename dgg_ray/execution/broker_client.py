"""What those who need stages and the broker say to each other.

    follow(asker, chains)  →  the broker sees to every chain's works, one after another, all chains at once
    told(asker, known)     →  what was answered after the first `known` answers, once there is something
    forget(asker)          →  nobody listens any more, and nothing further is asked for

A call for each of ten thousand stages would take Ray longer than the broker. Each call may be made again: a
second `follow` changes nothing, and an asker that the broker does not know, as it was restarted, is told None
and has what is left of its chains followed anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import ray

from dgg_ray.core.errors import OverBudget
from dgg_ray.core.stage import WorkItem

TOGETHER_S = 0.05  # more may be answered until then, and is told in one; the chains go on meanwhile
Answer = dict[str, Any]  # {"ok": bool, "error": …}
Told = list[tuple[int, Answer | Exception]]  # the chain's number, and what became of its next work


@dataclass
class Asker:
    """told: answers that it is not known to have heard, after `heard` others."""

    told: Told = field(default_factory=list)
    heard: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Askers:
    """The broker's half. need: waits until the store has a work, or it failed."""

    def __init__(self, need: Callable[[WorkItem], Awaitable[Answer]]) -> None:
        self.need = need
        self.known: dict[str, Asker] = {}

    def follow(self, name: str, chains: Mapping[int, Sequence[WorkItem]]) -> None:
        if name in self.known:
            return
        asker = self.known[name] = Asker()
        asker.tasks = [asyncio.create_task(self._walk(asker, n, chain)) for n, chain in chains.items()]

    async def told(self, name: str, known: int) -> Told | None:
        if (asker := self.known.get(name)) is None:
            return None
        if known > asker.heard:  # else an earlier call came again
            del asker.told[: known - asker.heard]
            asker.heard = known
        while not asker.told and self.known.get(name) is asker:
            asker.news.clear()
            await asker.news.wait()
            await asyncio.sleep(TOGETHER_S)
        return list(asker.told)

    def forget(self, name: str) -> None:
        if asker := self.known.pop(name, None):
            asker.news.set()  # a call that came again may wait still
            for task in asker.tasks:
                task.cancel()

    async def _walk(self, asker: Asker, number: int, chain: Sequence[WorkItem]) -> None:
        for item in chain:
            try:
                answer = await self.need(item)
            except Exception as problem:  # the store's, as a rule: it is the asker's to raise
                answer = problem
            asker.told.append((number, answer))
            asker.news.set()
            if isinstance(answer, Exception) or not answer["ok"]:
                return


def walk(
    chains: Sequence[Sequence[WorkItem]],
    broker: Any,
    finished: Callable[[WorkItem], None] = lambda item: None,
) -> list[dict[str, str]]:
    """Have every chain's works done, each chain one after another, all chains at once.

    Returns the errors of chains that ended early; the other chains go on.
    """
    left = {number: list(chain) for number, chain in enumerate(chains) if chain}
    errors: list[dict[str, str]] = []
    while left:
        name, known = uuid4().hex, 0
        ray.get(broker.follow.remote(name, left))
        try:
            while left and (told := ray.get(broker.told.remote(name, known))) is not None:
                known += len(told)
                for number, answer in told:
                    if isinstance(answer, Exception):
                        raise answer
                    item, *rest = left.pop(number)
                    if not answer["ok"]:
                        errors.append(answer["error"])
                        continue
                    if rest:
                        left[number] = rest
                    finished(item)
        finally:
            broker.forget.remote(name)
    return errors


def over(errors: Sequence[dict[str, str]]) -> bool:
    """Whether the budget ended one of the chains."""
    return any(error["error"] == OverBudget.__name__ for error in errors)
