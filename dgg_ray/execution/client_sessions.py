"""The broker's side of its clients' sessions: each requests chains of work items and fetches the answers.

A client opens one session for all its chains, because a call for each of thousands of items would take Ray
longer than the broker. Ray repeats calls after a restart of the actor, so every call may come twice.

    open(client, chains)            → every chain's items are requested, all chains at once
    next_answers(client, known)     → the answers after the first `known`, once there are any; None where the
                                      broker was restarted and does not know the client
    close(client)                   → nothing more is requested for the client
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgg_ray.core.stage import WorkItem

ANSWERS_TOGETHER_S = 0.05  # answers that come within this time are sent in one reply

Answer = dict[str, Any]  # {"ok": bool, "error": {error, message, traceback}}
Answers = list[tuple[int, Answer | Exception]]  # (number of the chain, answer for its next item)


@dataclass
class ClientSession:
    """answers: those that the client has not confirmed; confirmed: how many it has received before."""

    answers: Answers = field(default_factory=list)
    confirmed: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class ClientSessions:
    """The broker's side of `run_chains`. request: waits until an item is stored or has failed."""

    def __init__(self, request: Callable[[WorkItem], Awaitable[Answer]]) -> None:
        self.request = request
        self.by_client: dict[str, ClientSession] = {}

    def open(self, client: str, chains: Mapping[int, Sequence[WorkItem]]) -> None:
        if client in self.by_client:
            return
        session = self.by_client[client] = ClientSession()
        for number, chain in chains.items():
            session.tasks.append(asyncio.create_task(self._request_chain(session, number, chain)))

    async def next_answers(self, client: str, known: int) -> Answers | None:
        if (session := self.by_client.get(client)) is None:
            return None
        if known > session.confirmed:  # otherwise an earlier call was repeated
            del session.answers[: known - session.confirmed]
            session.confirmed = known
        while not session.answers and self.by_client.get(client) is session:
            session.news.clear()
            await session.news.wait()
            await asyncio.sleep(ANSWERS_TOGETHER_S)
        return list(session.answers)

    def close(self, client: str) -> None:
        if session := self.by_client.pop(client, None):
            session.news.set()  # a repeated call may still wait
            for task in session.tasks:
                task.cancel()

    async def _request_chain(self, session: ClientSession, number: int, chain: Sequence[WorkItem]) -> None:
        for item in chain:
            try:
                answer = await self.request(item)
            except Exception as problem:  # usually the store's; the client raises it
                answer = problem
            session.answers.append((number, answer))
            session.news.set()
            if isinstance(answer, Exception) or not answer["ok"]:
                return
