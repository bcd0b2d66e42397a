"""The broker: every request is answered, whatever becomes of worker groups, other drivers and the broker."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from dgg_ray.core.errors import OverBudgetError
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution.broker import Broker
from dgg_ray.execution.work_queue import ItemResult
from dgg_ray.storage.leases import LeaseOwner
from dgg_ray.storage.stage_store import StageStore

NON_FINITE = {"error": "NonFiniteError", "message": "nan", "traceback": ""}


def new_broker(*args, **kwargs):
    """The actor's class without Ray around it."""
    return Broker.__ray_metadata__.modified_class(*args, **kwargs)


@pytest.fixture
def broker(world):
    return new_broker(world.store, max_retries=1)


def items_of(world, *orders):
    return [WorkItem(world.stages_of(*order)[-1], (world.evaluation(order[-1]),)) for order in orders]


async def queued(broker, item):
    """A request for the item, once it is queued."""
    before, request = broker.queue.waiting, asyncio.create_task(broker.request(item))
    while broker.queue.waiting == before:
        await asyncio.sleep(0.001)
    return request


def test_a_closed_broker_lets_nobody_wait(world, broker):
    one, four = items_of(world, ["ones"], ["fours"])

    async def scenario():
        waiting = asyncio.create_task(broker.request(one))
        await asyncio.sleep(0)
        await broker.close("no workers")
        return await waiting, await broker.request(four), await broker.next_item("a", idle_timeout_s=60)

    first, later, item = asyncio.run(scenario())
    assert first == later
    assert later["error"]["message"] == "no workers"
    assert item is None


def test_a_worker_killed_while_it_waits_is_assigned_nothing(world, broker):
    (item,) = items_of(world, ["ones"])

    async def scenario():
        dead_worker = asyncio.create_task(broker.next_item("a", idle_timeout_s=60))
        await asyncio.sleep(0)
        await broker.group_lost("a")  # its workers were replaced
        assert await dead_worker is None
        request = asyncio.create_task(broker.request(item))
        assert await broker.next_item("a", idle_timeout_s=60) == item
        world.runner.run(item)
        await broker.finish("a", ItemResult(item.key, True, None, 1.0))
        return await request

    assert asyncio.run(scenario())["ok"]


def test_a_group_reports_its_last_item_when_it_asks_for_the_next(world, broker):
    one, four = items_of(world, ["ones"], ["fours"])

    async def scenario():
        requests = [await queued(broker, item) for item in (one, four)]
        assert await broker.next_item("a", 60) == one
        world.runner.run(one)
        finished = ItemResult(one.key, True, None, 1.0)
        assert await broker.next_item("a", 60, finished) == four
        assert await broker.next_item("a", 60, finished) == four  # the answer was lost, and Ray called again
        assert await broker.next_item("a", 0.01, ItemResult(four.key, False, NON_FINITE, 1.0)) is None
        return [await request for request in requests]

    good, bad = asyncio.run(scenario())
    assert good["ok"]
    assert bad["error"] == NON_FINITE
    assert broker.queue.counts["trained"] == 1


@pytest.mark.parametrize("trained", [True, False])
def test_a_result_that_reaches_a_restarted_broker_does_no_harm(world, broker, trained):
    one, four = items_of(world, ["ones"], ["fours"])
    if trained:
        world.runner.run(one)
    error = None if trained else NON_FINITE

    async def scenario():
        request = asyncio.create_task(broker.request(four))
        assert await broker.next_item("a", 60, ItemResult(one.key, trained, error, 1.0)) == four
        repeated = asyncio.create_task(broker.request(one))  # by the client that still needs it
        await asyncio.sleep(0.1)
        request.cancel()
        if trained:
            return await repeated
        repeated.cancel()
        return {"ok": await broker.next_item("b", 60) == one}  # the failure is forgotten

    assert asyncio.run(scenario())["ok"]


def test_a_call_of_a_groups_earlier_workers_takes_nothing_from_the_later_ones(world, broker, monkeypatch):
    """The call waits for the store; meanwhile the workers are replaced and get another item."""
    one, four = items_of(world, ["ones"], ["fours"])
    reading, replaced = threading.Event(), threading.Event()

    def read_item(*_):
        reading.set()
        assert replaced.wait(60)
        return []

    monkeypatch.setattr(BudgetTracker, "read_item", read_item)

    async def scenario():
        requests = [await queued(broker, item) for item in (one, four)]
        await broker.next_item("a", 60)
        world.runner.run(one)
        late = asyncio.create_task(broker.next_item("a", 60, ItemResult(one.key, True, None, 1.0)))
        assert await asyncio.to_thread(reading.wait, 60)
        broker.incarnations["a"] += 1
        broker.queue.assign(four.key, "a")
        replaced.set()
        assert await late is None
        for request in requests:
            request.cancel()
        return broker.queue.keys_of("a")

    assert asyncio.run(scenario()) == [four.key]


def test_everyone_who_requested_an_item_is_answered(world, broker):
    (item,) = items_of(world, ["ones"])

    async def scenario():
        requests = [asyncio.create_task(broker.request(item)) for _ in range(5)]
        assert await broker.next_item("a", idle_timeout_s=60) == item
        requests[0].cancel()  # a request that is cancelled takes the answer from nobody
        await broker.finish("a", ItemResult(item.key, False, NON_FINITE, 1.0))
        return [await request for request in requests[1:]]

    assert [answer["error"]["error"] for answer in asyncio.run(scenario())] == ["NonFiniteError"] * 4


# -- failures and losses ---------------------------------------------------------------------------


def test_a_stage_that_is_given_up_keeps_the_error_that_ended_its_workers(world, broker):
    (item,) = items_of(world, ["ones"])
    cause = {"error": "Stuck", "message": "nothing moved", "traceback": "in sleep"}

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        for _ in range(2):
            await broker.next_item("a", idle_timeout_s=60)
            await broker.group_lost("a", cause)
        return await request

    assert asyncio.run(scenario())["error"] == cause
    assert world.store.failure(item.stage)["traceback"] == "in sleep"


def test_a_store_that_fails_again_and_again_ends_the_study_with_its_error(world, monkeypatch):
    monkeypatch.setattr("dgg_ray.execution.work_queue.OUTAGE_S", 0.0)
    broker = new_broker(world.store, max_retries=100)
    (item,) = items_of(world, ["ones"])
    full = {"error": "StoreError", "message": "no space left", "traceback": ""}

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        while not broker.closed:
            assert await broker.next_item("a", idle_timeout_s=60) == item
            await broker.infrastructure_failed("a", full)
        return await request

    assert "5 infrastructure failures in a row" in asyncio.run(scenario())["error"]["message"]
    assert broker.reason.endswith("StoreError: no space left")


def test_groups_that_fail_in_one_outage_end_nothing_and_give_nothing_up(world):
    broker = new_broker(world.store, max_retries=0)
    items = items_of(world, ["ones"], ["fours"], ["nines"])

    async def scenario():
        requests = [asyncio.create_task(broker.request(item)) for item in items]
        for _ in range(4):
            for group in "abc":
                await broker.next_item(group, idle_timeout_s=60)
            for group in "abc":
                full = {"error": "StoreError", "message": "full", "traceback": ""}
                await broker.infrastructure_failed(group, full)
        status = await broker.status()
        for request in requests:
            request.cancel()
        return status

    status = asyncio.run(scenario())
    assert (status["closed"], status["waiting"], status["infrastructure_failures"]) == ("", 3, 12)
    assert "failed" not in status


def test_an_error_of_a_group_believed_lost_is_ignored_while_another_has_the_item(world, broker):
    (item,) = items_of(world, ["ones"])

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        await broker.next_item("a", idle_timeout_s=60)
        await broker.group_lost("a")
        await broker.next_item("b", idle_timeout_s=60)
        await broker.finish("a", ItemResult(item.key, False, NON_FINITE, 1.0))
        await asyncio.sleep(0)
        assert not request.done()
        world.runner.run(item)
        await broker.finish("b", ItemResult(item.key, True, None, 1.0))
        return await request

    assert asyncio.run(scenario())["ok"]


def test_a_stage_that_ends_its_processes_is_given_up_with_their_error(world, broker):
    cause = {"error": "ValueError", "message": "no such shape", "traceback": "in scorer"}
    (item,) = items_of(world, ["ones"])

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        for _ in range(2):
            await broker.next_item("a", idle_timeout_s=60)
            await broker.report_failure("a", item.key, cause)
            await broker.group_lost("a")  # the new workers know no cause
        return await request

    assert asyncio.run(scenario())["error"] == cause
    assert world.store.failure(item.stage)["traceback"] == "in scorer"


def test_a_failure_that_a_retry_would_repeat_is_answered_at_once(world, broker):
    (item,) = items_of(world, ["ones"])

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        await broker.next_item("a", idle_timeout_s=60)
        await broker.report_failure("a", item.key, NON_FINITE, ItemResult(item.key, False, NON_FINITE, 1.0))
        return await request

    assert asyncio.run(scenario())["error"] == NON_FINITE
    assert broker.queue.keys_of("a") == []


@pytest.mark.parametrize("replaced", [True, False])
def test_a_group_whose_workers_died_gives_its_item_back_even_if_no_others_come(
    world, broker, monkeypatch, replaced
):
    monkeypatch.setattr("dgg_ray.execution.broker.REPLACEMENT_S", 0.1)
    (item,) = items_of(world, ["ones"])

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        await broker.next_item("a", idle_timeout_s=60)
        death = asyncio.create_task(broker.workers_died("a"))
        await asyncio.sleep(0.01)
        if replaced:
            await broker.group_lost("a")
            assert await broker.next_item("a", idle_timeout_s=60) == item
            await death
            assert broker.queue.keys_of("a") == [item.key]  # the new workers keep it
        else:
            assert await broker.next_item("b", idle_timeout_s=60) == item
        assert broker.queue.counts["lost"] == 1
        request.cancel()

    asyncio.run(scenario())


def test_an_item_whose_lease_cannot_be_acquired_is_not_left_with_the_group(world, broker, monkeypatch):
    (item,) = items_of(world, ["ones"])
    acquire = StageStore.acquire_lease

    def fail(*_):
        raise OSError("no answer")

    async def scenario():
        request = await queued(broker, item)
        monkeypatch.setattr(StageStore, "acquire_lease", fail)
        with pytest.raises(OSError, match="no answer"):
            await broker.next_item("a", 60)
        assert broker.queue.keys_of("a") == []
        assert broker.leases.held == set()
        monkeypatch.setattr(StageStore, "acquire_lease", acquire)
        assert await broker.next_item("a", 60) == item
        request.cancel()

    asyncio.run(scenario())


# -- a restarted broker knows nothing --------------------------------------------------------------


def test_a_group_whose_heartbeat_names_an_item_keeps_it(world, broker):
    """The client that needs the item has queued it again; it is assigned to nobody else."""
    (item,) = items_of(world, ["ones"])
    broker.ready_at = time.monotonic() + 60  # as after a restart

    async def scenario():
        request = await queued(broker, item)
        other = asyncio.create_task(broker.next_item("b", idle_timeout_s=0.4))
        await asyncio.sleep(0.1)
        await broker.heartbeat("a", item.key, (3, 8))
        broker.ready_at = 0.0
        assert [row["group"] for row in (await broker.status())["running"]] == ["a"]
        assert await other is None
        world.runner.run(item)
        await broker.finish("a", ItemResult(item.key, True, None, 1.0))
        return await request

    assert asyncio.run(scenario())["ok"]
    assert broker.queue.counts["trained"] == 1


def test_a_group_that_asks_for_an_item_has_none_whatever_a_late_heartbeat_says(world, broker):
    (item,) = items_of(world, ["ones"])

    async def scenario():
        request = asyncio.create_task(broker.request(item))
        await asyncio.sleep(0.1)
        await broker.heartbeat("a", item.key, (1, 8))  # late, of earlier workers
        assert await broker.next_item("a", idle_timeout_s=60) == item
        request.cancel()

    asyncio.run(scenario())


def test_a_heartbeat_that_comes_while_the_group_waits_for_an_item_blocks_nothing(world, broker):
    (item,) = items_of(world, ["ones"])
    broker.ready_at = time.monotonic() + 0.3

    async def scenario():
        request = await queued(broker, item)
        waiting = asyncio.create_task(broker.next_item("a", idle_timeout_s=60))
        await asyncio.sleep(0.1)
        await broker.heartbeat("a", item.key, (1, 8))  # late, of earlier workers
        assert await waiting == item
        request.cancel()

    asyncio.run(scenario())


def test_a_failed_lease_of_a_lost_group_takes_the_item_from_nobody_else(world, broker, monkeypatch):
    """Otherwise a third group would be assigned an item that the second one trains."""
    (item,) = items_of(world, ["ones"])
    lost, calls = threading.Event(), []

    def acquire(key):
        calls.append(key)
        if len(calls) == 1:
            lost.wait(60)
            raise OSError("the store is out of reach")

    monkeypatch.setattr(broker.leases, "acquire", acquire)

    async def scenario():
        request = await queued(broker, item)
        first = asyncio.create_task(broker.next_item("a", idle_timeout_s=60))
        while not calls:
            await asyncio.sleep(0.001)
        await broker.group_lost("a")
        assert await broker.next_item("b", idle_timeout_s=60) == item
        lost.set()
        with pytest.raises(OSError, match="out of reach"):
            await first
        request.cancel()

    asyncio.run(scenario())
    assert broker.queue.keys_of("b") == [item.key]


def test_a_lease_that_is_acquired_while_the_broker_closes_is_released(world, broker, monkeypatch):
    (item,) = items_of(world, ["ones"])
    closed, acquiring, acquire = threading.Event(), threading.Event(), broker.leases.acquire

    def acquire_late(key):
        acquiring.set()
        closed.wait(60)
        return acquire(key)

    monkeypatch.setattr(broker.leases, "acquire", acquire_late)

    async def scenario():
        request = await queued(broker, item)
        group = asyncio.create_task(broker.next_item("a", idle_timeout_s=60))
        await asyncio.to_thread(acquiring.wait, 60)
        await broker.close("stopped")
        closed.set()
        assert await group is None
        assert not (await request)["ok"]

    asyncio.run(scenario())
    broker.leases.pool.shutdown()
    assert not broker.leases.held


def test_an_item_that_the_budget_refuses_keeps_no_lease(world, monkeypatch):
    """The driver may hold it since the item was put back into the queue; others may still afford it."""
    budget = BudgetTracker()
    broker = new_broker(world.store, 1, budget)
    (item,) = items_of(world, ["ones"])

    async def scenario():
        request = await queued(broker, item)
        assert broker.leases.acquire(item.key) is None
        monkeypatch.setattr(budget, "decide", lambda *_: "reject")
        monkeypatch.setattr(budget, "refusal", lambda item: OverBudgetError(f"no budget for {item}"))
        assert await broker.next_item("a", idle_timeout_s=0.1) is None
        assert (await request)["error"]["error"] == "OverBudgetError"

    asyncio.run(scenario())
    broker.leases.pool.shutdown()
    assert not broker.leases.held


# -- two drivers on one store ----------------------------------------------------------------------


@pytest.fixture
def two_brokers(world, monkeypatch):
    monkeypatch.setattr("dgg_ray.execution.broker.POLL_S", 0.05)
    here = LeaseOwner.this_process()
    return [new_broker(world.store, 1, None, replace(here, id=name)) for name in ("first", "second")]


def test_a_stage_that_another_driver_has_is_waited_for_and_not_trained_again(world, two_brokers):
    first, second = two_brokers
    one, four = items_of(world, ["ones"], ["fours"])

    async def scenario():
        requests = [asyncio.create_task(broker.request(one)) for broker in two_brokers]
        assert await first.next_item("a", idle_timeout_s=60) == one
        assert await second.next_item("b", idle_timeout_s=0.1) is None
        assert (await second.status())["waiting"] == 0  # no group is started for it
        more = asyncio.create_task(second.request(four))
        assert await second.next_item("b", idle_timeout_s=60) == four  # other items go on
        world.runner.run(one)
        await first.finish("a", ItemResult(one.key, True, None, 1.0))
        answers = [await asyncio.wait_for(request, 5) for request in requests]
        more.cancel()
        return answers

    assert [answer["ok"] for answer in asyncio.run(scenario())] == [True, True]
    assert second.queue.counts["trained"] == 0


def test_a_stage_that_another_driver_gives_back_is_trained_here(world, two_brokers):
    first, second = two_brokers
    (one,) = items_of(world, ["ones"])

    async def scenario():
        requests = [asyncio.create_task(broker.request(one)) for broker in two_brokers]
        await first.next_item("a", idle_timeout_s=60)
        waiting = asyncio.create_task(second.next_item("b", idle_timeout_s=5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await first.group_lost("a")
        assert await waiting == one
        for request in requests:
            request.cancel()

    asyncio.run(scenario())


def test_evaluations_that_only_one_driver_wants_follow_when_the_other_is_done(world, two_brokers):
    first, second = two_brokers
    (stage,) = world.stages_of("ones")
    ones, fours = WorkItem(stage, (world.evaluation("ones"),)), WorkItem(stage, (world.evaluation("fours"),))

    async def scenario():
        requests = [asyncio.create_task(first.request(ones)), asyncio.create_task(second.request(fours))]
        await first.next_item("a", idle_timeout_s=60)
        waiting = asyncio.create_task(second.next_item("b", idle_timeout_s=5))
        await asyncio.sleep(0.1)
        world.runner.run(ones)
        await first.finish("a", ItemResult(stage.key, True, None, 1.0))
        assert await waiting == fours
        world.runner.run(fours)
        await second.finish("b", ItemResult(stage.key, False, None, 1.0))
        return [await request for request in requests]

    assert all(answer["ok"] for answer in asyncio.run(scenario()))
    assert world.learner.taught == ["ones-train-0", "ones-train-1"]  # once


def test_a_slow_store_keeps_nobody_else_waiting(world):
    """No look into the store ends before a status was given."""
    given, in_time = threading.Event(), []

    class SlowStore(StageStore):
        def has(self, item):
            in_time.append(given.wait(20))
            return super().has(item)

    broker = new_broker(SlowStore(world.store.backend), 1)

    async def scenario():
        requests = [
            asyncio.create_task(broker.request(item))
            for item in items_of(world, ["ones"], ["fours"], ["nines"])
        ]
        await asyncio.sleep(0.01)
        await broker.status()
        given.set()
        while len(in_time) < len(requests):
            await asyncio.sleep(0.001)
        for request in requests:
            request.cancel()

    asyncio.run(scenario())
    assert in_time == [True] * 3


class Spent:
    """A limit that counts the items that it is told of. stored: what the store holds when it is read."""

    lost = 0.0

    def __init__(self, stored):
        self.stored, self.items = stored, []

    def reload(self):
        self.items = list(self.stored)

    def decide(self, item, running=(), may_read=True):
        return "admit"

    def read_item(self, item):
        return item

    def record_finished(self, item, reading):
        if reading not in self.items:
            self.items.append(reading)


def test_a_paused_broker_ends_requests_lets_groups_finish_and_goes_on_with_another_budget(world, broker):
    one, four, nine = items_of(world, ["ones"], ["fours"], ["nines"])
    stored, budget = [], Spent([])
    budget.stored = stored

    async def scenario():
        requests = [await queued(broker, item) for item in (one, four)]
        assert await broker.next_item("a", 60) == one
        await broker.pause()
        ended = [await request for request in requests] + [await broker.request(nine)]
        world.runner.run(one)
        assert await broker.next_item("a", 0.01, ItemResult(one.key, True, None, 1.0)) is None
        await broker.resume(BudgetTracker([budget]), 1)
        status = await broker.status()
        again = asyncio.create_task(broker.request(nine))
        assert await broker.next_item("a", 60) == nine
        again.cancel()
        return ended, status

    ended, status = asyncio.run(scenario())
    assert [answer["error"]["error"] for answer in ended] == ["Paused"] * 3
    assert (status["trained"], status["waiting"], status["resumed"]) == (1, 0, 1)
    assert budget.items == [one]  # it was finished after the pause, and the store was read without it
