"""Chains of stages, asked for from afar: each in its order, all at once, whatever becomes of the broker."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from dgg_ray.core.errors import StoreError
from dgg_ray.execution import broker_client
from dgg_ray.execution.broker_client import Askers, walk

OK = {"ok": True}
FAILED = {"ok": False, "error": {"error": "NotFinite", "message": "nan"}}


class Broker:
    """Its event loop in a thread, and calls as of an actor. answers: of works, in place of OK.

    dies: after that work, not told yet, it is restarted, and knows nothing.
    """

    def __init__(self, answers=None, dies=""):
        self.answers, self.dies, self.asked, self.deaths = answers or {}, dies, [], 0
        self.loop = asyncio.new_event_loop()
        self.askers = Askers(self.need)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.follow = SimpleNamespace(remote=lambda *given: self.run(self._follow(*given)))
        self.told = SimpleNamespace(remote=lambda *given: self.run(self._told(*given)))
        self.forget = SimpleNamespace(remote=lambda name: self.loop.call_soon_threadsafe(self._forget, name))

    async def need(self, item):
        await asyncio.sleep(0.001)
        self.asked.append(item)
        if item == self.dies:
            self.dies, self.deaths = "", self.deaths + 1
            for name in list(self.askers.known):
                self._forget(name)
            await asyncio.sleep(1)  # from which it is cancelled
        answer = self.answers.get(item, OK)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _follow(self, *given):
        self.askers.follow(*given)
        self.askers.follow(*given)  # the answer was lost: Ray calls again

    async def _told(self, name, known):
        asker = self.askers.known.get(name)
        telling = asyncio.ensure_future(self.askers.told(name, known))
        while not telling.done() and self.askers.known.get(name) is asker:
            await asyncio.sleep(0.001)
        if not telling.done():  # it died meanwhile: Ray calls again
            telling.cancel()
            return await self.askers.told(name, known)
        await self.askers.told(name, 0)  # an earlier call, once more
        return telling.result()

    def _forget(self, name):
        self.askers.forget(name)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


@pytest.fixture(autouse=True)
def got(monkeypatch):
    monkeypatch.setattr(broker_client, "TOGETHER_S", 0)
    monkeypatch.setattr(broker_client, "ray", SimpleNamespace(get=lambda future: future.result(timeout=10)))


CHAINS = [["a1", "a2", "a3"], ["b1", "b2"], [], ["c1"]]


def test_each_chain_is_walked_in_its_order_and_all_at_once():
    broker, done = Broker(), []
    assert walk(CHAINS, broker, done.append) == []
    assert sorted(broker.asked) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert set(broker.asked[:3]) == {"a1", "b1", "c1"}
    assert broker.asked[-1] == "a3"
    assert sorted(done) == sorted(broker.asked)
    assert done.index("a1") < done.index("a2") < done.index("a3")


def test_a_failure_ends_its_chain_and_no_other():
    broker, done = Broker({"a2": FAILED}), []
    assert walk(CHAINS, broker, done.append) == [FAILED["error"]]
    assert sorted(done) == ["a1", "b1", "b2", "c1"]
    assert "a3" not in broker.asked


def test_what_the_store_raises_is_raised_where_it_was_asked():
    with pytest.raises(StoreError, match="no answer"):
        walk(CHAINS, Broker({"b2": StoreError("no answer")}))


@pytest.mark.parametrize("dies", ["a1", "b1", "c1", "a2", "b2", "a3"])
def test_a_broker_that_was_restarted_is_told_what_is_left(dies):
    broker, done = Broker(dies=dies), []
    assert walk(CHAINS, broker, done.append) == []
    assert broker.deaths == 1
    assert sorted(done) == ["a1", "a2", "a3", "b1", "b2", "c1"]  # each once
    assert broker.asked.count("a1") <= 2
    assert len(broker.asked) <= 9  # at most what was open in each chain was asked for again


def test_what_was_heard_is_not_kept_and_who_has_ended_is_forgotten():
    broker, kept = Broker(), []
    walk([[str(n) for n in range(50)]], broker, lambda item: kept.extend(broker.askers.known.values()))
    assert kept[-1].heard >= 49 - len(kept[-1].told)
    assert len(kept[-1].told) < 50
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), broker.loop).result()
    assert broker.askers.known == {}


def test_chains_to_which_nobody_listens_any_more_are_not_walked_on():
    broker = Broker({"b1": StoreError("no answer")})
    with pytest.raises(StoreError):
        walk([[f"a{n}" for n in range(1000)], ["b1"]], broker)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), broker.loop).result()
    count = len(broker.asked)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), broker.loop).result()
    assert len(broker.asked) == count < 900


def test_a_call_that_came_again_does_not_wait_for_what_nobody_tells():
    broker = Broker()

    async def scene():
        broker.askers.follow("x", {0: ["never"]})
        again = asyncio.ensure_future(broker.askers.told("x", 0))
        await asyncio.sleep(0)
        broker.askers.forget("x")
        return await asyncio.wait_for(again, 5)

    assert broker.run(scene()).result(timeout=10) == []


def test_nothing_to_ask_asks_nothing():
    assert walk([[], []], None) == []
