"""Messages about what changes: whoever watches sees each change once, also after a lost connection."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest

from dgg_ray.service import stream
from dgg_ray.service.stream import Broadcast


class Cards:
    """A service of which only the cards are asked for."""

    def __init__(self, **states):
        self.states = states

    def cards(self):
        return [{"name": name, "state": state} for name, state in self.states.items()]


def change(broadcast, **states):
    """Let cards change, as one look at the service sees it."""
    broadcast.service.states |= states
    assert broadcast._add_changes(broadcast._serialized())


def read(message: bytes) -> list[tuple[str, str, dict]]:
    """(id, event, data) of each event of a message."""
    events = [
        dict(line.split(": ", 1) for line in text.splitlines())
        for text in message.decode().split("\n\n")
        if text
    ]
    return [(event["id"], event["event"], json.loads(event["data"])) for event in events]


async def first(broadcast, count, last="", study=""):
    """The first events that a reader gets."""
    found = []
    async with aclosing(broadcast.follow(last, study)) as messages:
        async for message in messages:
            found += read(message)
            if len(found) >= count:
                return found


def test_a_new_reader_gets_every_card_and_a_known_one_what_changed_since():
    broadcast = Broadcast(Cards(a="queued", b="queued"))
    change(broadcast)
    events = asyncio.run(first(broadcast, 3))
    assert [(kind, data.get("name")) for _, kind, data in events] == [
        ("reset", None),
        ("study", "a"),
        ("study", "b"),
    ]
    last = events[-1][0]
    change(broadcast, b="running")
    change(broadcast, b="finished")
    events = asyncio.run(first(broadcast, 2, last))
    assert [data["state"] for *_, data in events] == ["running", "finished"]
    assert [kind for _, kind, _ in asyncio.run(first(broadcast, 3, "other-1"))] == ["reset", "study", "study"]


def test_a_reader_of_one_study_gets_no_others():
    broadcast = Broadcast(Cards(a="queued", b="queued"))
    change(broadcast)
    last = f"{broadcast.name}-{broadcast.number}"
    change(broadcast, a="running")
    change(broadcast, b="running")
    ((_, _, card),) = asyncio.run(first(broadcast, 1, last, "b"))
    assert card == {"name": "b", "state": "running"}


def test_a_reader_that_missed_more_than_is_kept_begins_anew(monkeypatch):
    broadcast = Broadcast(Cards(a="0"))
    change(broadcast)
    last = f"{broadcast.name}-{broadcast.number}"
    for i in range(stream.KEPT + 1):
        change(broadcast, a=str(i + 1))
    assert [kind for _, kind, _ in asyncio.run(first(broadcast, 2, last))] == ["reset", "study"]


def test_readers_wait_for_news_hear_that_the_server_lives_and_may_leave_at_any_moment(monkeypatch):
    monkeypatch.setattr(stream, "QUIET_S", 0.01)
    broadcast = Broadcast(Cards(a="queued"))
    change(broadcast)
    last = f"{broadcast.name}-{broadcast.number}"

    async def scenario():
        async with aclosing(broadcast.follow(last)) as messages:
            assert await anext(messages) == b": still here\n\n"
        monkeypatch.setattr(stream, "QUIET_S", 60.0)
        waiting = [asyncio.create_task(first(broadcast, 1, last)) for _ in range(10)]
        for turns in range(5):  # some leave before they wait, some while they do
            waiting[turns].cancel()
            await asyncio.sleep(0)
        change(broadcast, a="running")
        async with broadcast.news:
            broadcast.news.notify_all()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found[:5]] == [asyncio.CancelledError] * 5
        assert all(one[0][2]["state"] == "running" for one in found[5:])

    problems = []

    async def watched():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        await scenario()

    asyncio.run(watched())
    assert not problems


@pytest.mark.parametrize("last", ["", "x", "x-1", "-", f"{2**70}-{2**70}"])
def test_an_id_of_no_message_begins_anew(last):
    broadcast = Broadcast(Cards(a="queued"))
    change(broadcast)
    assert [kind for _, kind, _ in asyncio.run(first(broadcast, 2, last))] == ["reset", "study"]
