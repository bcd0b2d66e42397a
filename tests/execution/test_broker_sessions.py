"""A client's session: each chain in its order, all chains at once, whatever becomes of the broker."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from dgg_ray.core.errors import StoreError
from dgg_ray.execution import broker as broker_module
from dgg_ray.execution import client_sessions
from dgg_ray.execution.broker import run_chains
from dgg_ray.execution.client_sessions import ClientSessions

OK = {"ok": True}
FAILED = {"ok": False, "error": {"error": "NonFiniteError", "message": "nan"}}


class FakeBroker:
    """Sessions with an event loop in a thread, and calls as of an actor.

    answers: by item, in place of OK.
    dies_at: the item after whose request, before the answer, the broker is restarted and knows nothing.
    """

    def __init__(self, answers=None, dies_at=""):
        self.answers, self.dies_at, self.requested, self.deaths = answers or {}, dies_at, [], 0
        self.loop = asyncio.new_event_loop()
        self.sessions = ClientSessions(self.request)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.open_session = SimpleNamespace(remote=lambda *args: self.run(self._open_session(*args)))
        self.next_answers = SimpleNamespace(remote=lambda *args: self.run(self._next_answers(*args)))
        self.close_session = SimpleNamespace(
            remote=lambda client: self.loop.call_soon_threadsafe(self.sessions.close, client)
        )

    async def request(self, item):
        await asyncio.sleep(0.001)
        self.requested.append(item)
        if item == self.dies_at:
            self.dies_at, self.deaths = "", self.deaths + 1
            for client in list(self.sessions.by_client):
                self.sessions.close(client)
            await asyncio.sleep(1)  # cancelled here
        answer = self.answers.get(item, OK)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _open_session(self, *args):
        self.sessions.open(*args)
        self.sessions.open(*args)  # the answer was lost: Ray calls again

    async def _next_answers(self, client, known):
        session = self.sessions.by_client.get(client)
        call = asyncio.ensure_future(self.sessions.next_answers(client, known))
        while not call.done() and self.sessions.by_client.get(client) is session:
            await asyncio.sleep(0.001)
        if not call.done():  # the broker died meanwhile: Ray calls again
            call.cancel()
            return await self.sessions.next_answers(client, known)
        await self.sessions.next_answers(client, 0)  # an earlier call, repeated
        return call.result()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    monkeypatch.setattr(client_sessions, "ANSWERS_TOGETHER_S", 0)
    monkeypatch.setattr(broker_module, "ray", SimpleNamespace(get=lambda future: future.result(timeout=10)))


CHAINS = [["a1", "a2", "a3"], ["b1", "b2"], [], ["c1"]]


def test_each_chain_is_requested_in_its_order_and_all_at_once():
    broker, finished = FakeBroker(), []
    assert run_chains(CHAINS, broker, finished.append) == []
    assert sorted(broker.requested) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert set(broker.requested[:3]) == {"a1", "b1", "c1"}
    assert broker.requested[-1] == "a3"
    assert sorted(finished) == sorted(broker.requested)
    assert finished.index("a1") < finished.index("a2") < finished.index("a3")


def test_a_failure_ends_its_chain_and_no_other():
    broker, finished = FakeBroker({"a2": FAILED}), []
    assert run_chains(CHAINS, broker, finished.append) == [FAILED["error"]]
    assert sorted(finished) == ["a1", "b1", "b2", "c1"]
    assert "a3" not in broker.requested


def test_an_error_of_the_store_is_raised_in_the_client():
    with pytest.raises(StoreError, match="no answer"):
        run_chains(CHAINS, FakeBroker({"b2": StoreError("no answer")}))


@pytest.mark.parametrize("dies_at", ["a1", "b1", "c1", "a2", "b2", "a3"])
def test_a_restarted_broker_gets_what_is_left(dies_at):
    broker, finished = FakeBroker(dies_at=dies_at), []
    assert run_chains(CHAINS, broker, finished.append) == []
    assert broker.deaths == 1
    assert sorted(finished) == ["a1", "a2", "a3", "b1", "b2", "c1"]  # each once
    assert broker.requested.count("a1") <= 2
    assert len(broker.requested) <= 9  # at most what was open in each chain was requested again


def test_confirmed_answers_and_closed_sessions_are_not_kept():
    broker, sessions = FakeBroker(), []
    run_chains(
        [[str(n) for n in range(50)]],
        broker,
        lambda item: sessions.extend(broker.sessions.by_client.values()),
    )
    assert sessions[-1].confirmed >= 49 - len(sessions[-1].answers)
    assert len(sessions[-1].answers) < 50
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), broker.loop).result()
    assert broker.sessions.by_client == {}


def test_the_chains_of_a_closed_session_are_not_continued():
    broker = FakeBroker({"b1": StoreError("no answer")})
    with pytest.raises(StoreError):
        run_chains([[f"a{n}" for n in range(1000)], ["b1"]], broker)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), broker.loop).result()
    count = len(broker.requested)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), broker.loop).result()
    assert len(broker.requested) == count < 900


def test_a_repeated_call_does_not_wait_once_the_session_is_closed():
    broker = FakeBroker()

    async def scenario():
        broker.sessions.open("x", {0: ["never"]})
        repeated = asyncio.ensure_future(broker.sessions.next_answers("x", 0))
        await asyncio.sleep(0)
        broker.sessions.close("x")
        return await asyncio.wait_for(repeated, 5)

    assert broker.run(scenario()).result(timeout=10) == []


def test_empty_chains_open_no_session():
    assert run_chains([[], []], None) == []
