"""Changes as server-sent events: one message for each study whose card has changed.

    id: 4f2a-17        the server's own name, and a number that grows by one
    event: study       data: the study's card;  `gone`: {name};  `reset`: all cards follow

The newest KEPT messages are kept. A browser that lost its connection says which one it had last, and gets the
ones after it; where that is too long ago, or another server answers, it gets `reset` and every card.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from dgg_ray.service.service import Service

EVERY_S = 1.0
QUIET_S = 15.0  # without a message, until a comment shows that the connection lives
KEPT = 10_000


class Broadcast:
    """Compares the cards with those before, and hands what changed to all who watch."""

    def __init__(self, service: Service) -> None:
        self.service, self.name, self.number = service, uuid.uuid4().hex[:8], 0
        self.cards: dict[str, str] = {}
        self.messages: deque[tuple[int, str, bytes]] = deque(maxlen=KEPT)  # (number, study, as sent)
        self.news = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self.task:
            self.task.cancel()

    async def _watch(self) -> None:
        while True:
            cards = await run_in_threadpool(self._serialized)
            if cards is not None and self._add_changes(cards):
                async with self.news:
                    self.news.notify_all()
            await asyncio.sleep(EVERY_S)

    def _serialized(self) -> dict[str, str] | None:
        try:
            return {card["name"]: json.dumps(card) for card in self.service.cards()}
        except Exception:  # the store may answer again at the next look
            return None

    def _add_changes(self, cards: dict[str, str]) -> bool:
        before = self.number
        for name, text in cards.items():
            if self.cards.get(name) != text:
                self._add("study", name, text)
        for name in self.cards.keys() - cards.keys():
            self._add("gone", name, json.dumps({"name": name}))
        self.cards = cards
        return self.number > before

    def _add(self, kind: str, study: str, data: str) -> None:
        self.number += 1
        self.messages.append((self.number, study, self.message(self.number, kind, data)))

    def message(self, number: int, kind: str, data: str) -> bytes:
        return f"id: {self.name}-{number}\nevent: {kind}\ndata: {data}\n\n".encode()

    async def follow(self, last: str = "", study: str = "") -> AsyncIterator[bytes]:
        """Yield messages as they come. last: id of the last one that the reader had. study: "" is all."""
        name, _, number = last.partition("-")
        oldest = self.messages[0][0] if self.messages else self.number + 1
        seen = int(number) if name == self.name and number.isdecimal() else -1
        if not oldest - 1 <= seen <= self.number:
            seen = self.number
            yield self.message(seen, "reset", "{}")
            for card, text in list(self.cards.items()):
                if study in ("", card):
                    yield self.message(seen, "study", text)
        while True:
            fresh = [m for m in self.messages if m[0] > seen] if seen < self.number else []
            seen = self.number
            wanted = b"".join(text for _, name, text in fresh if study in ("", name))
            if wanted:
                yield wanted
            try:
                async with asyncio.timeout(QUIET_S), self.news:
                    while self.number == seen:
                        await self.news.wait()
            except TimeoutError:
                yield b": still here\n\n"
