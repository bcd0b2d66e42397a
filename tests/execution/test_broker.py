"""The desk: a stage asked for by ten is trained once, and none is forgotten."""

import asyncio
import time
from dataclasses import replace

import pytest

from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import Purse
from dgg_ray.execution.broker import Broker, Desk
from dgg_ray.storage.leases import Holder
from dgg_ray.storage.stage_store import StageStore


@pytest.fixture()
def desk(world):
    return Desk(world.store, max_retries=1)


def work_items(world, *orders):
    return [WorkItem(world.path(*order)[-1], (world.evaluation(order[-1]),)) for order in orders]


def finish(world, desk, group, item):
    world.shop.obtain(item)
    return desk.done(group, item.stage.key, learned=True, error=None)


def test_a_stage_asked_for_by_ten_is_handed_out_once(world, desk):
    (item,) = work_items(world, ["ones"])
    answers = [desk.need(item) for _ in range(10)]
    assert answers == ["queued"] + ["joined"] * 9
    assert desk.take("a") == item
    assert desk.take("b") is None
    assert finish(world, desk, "a", item)
    assert desk.need(item) == "ready"
    assert desk.counts["trained"] == 1


def test_work_is_handed_out_in_the_order_of_asking(world, desk):
    one, four, nine = work_items(world, ["ones"], ["fours"], ["nines"])
    for item in (four, nine, one):
        desk.need(item)
    assert [desk.take("a"), desk.take("b"), desk.take("c")] == [four, nine, one]


def test_exams_asked_for_while_it_waits_join_the_work(world, desk):
    (stage,) = world.path("ones")
    desk.need(WorkItem(stage, (world.evaluation("ones"),)))
    desk.need(WorkItem(stage, (world.evaluation("fours"),)))
    assert {evaluation.task for evaluation in desk.take("a").evaluations} == {"ones", "fours"}


def test_exams_asked_for_while_it_is_trained_come_after_it(world, desk):
    (stage,) = world.path("ones")
    first, more = WorkItem(stage, (world.evaluation("ones"),)), WorkItem(stage, (world.evaluation("fours"),))
    desk.need(first)
    desk.take("a")
    assert desk.need(more) == "joined"
    assert finish(world, desk, "a", first) is False
    assert desk.take("a") == more
    assert finish(world, desk, "a", more) is True


def test_a_lost_fleets_work_is_taken_by_another(world, desk):
    (item,) = work_items(world, ["ones"])
    desk.need(item)
    desk.take("a")
    assert desk.lost("a") == []
    assert desk.take("b") == item


def test_what_is_lost_too_often_is_given_up(world, desk):
    (item,) = work_items(world, ["ones"])
    desk.need(item)
    for _ in range(2):  # the first try and one retry
        desk.take("a")
        given_up = desk.lost("a")
    assert given_up == [item]
    assert desk.take("b") is None


def test_another_fleets_loss_changes_nothing(world, desk):
    (item,) = work_items(world, ["ones"])
    desk.need(item)
    desk.take("a")
    desk.lost("b")
    assert desk.take("b") is None


def test_a_fleet_believed_lost_that_finishes_does_no_harm(world, desk):
    (item,) = work_items(world, ["ones"])
    desk.need(item)
    desk.take("a")
    desk.lost("a")
    desk.take("b")
    assert finish(world, desk, "a", item) is True
    assert desk.need(item) == "joined"  # b still has it
    assert finish(world, desk, "b", item)
    assert desk.need(item) == "ready"


@pytest.fixture
def broker(world):
    """The actor's class without Ray around it."""
    return Broker.__ray_metadata__.modified_class(world.store, max_retries=1)


async def asked(broker, item):
    """Who needs it, once it is queued."""
    before, asker = broker.desk.waiting, asyncio.create_task(broker.need(item))
    while broker.desk.waiting == before:
        await asyncio.sleep(0.001)
    return asker


def test_a_closed_broker_lets_nobody_wait(world, broker):
    one, four = work_items(world, ["ones"], ["fours"])

    async def scene():
        waiting = asyncio.create_task(broker.need(one))
        await asyncio.sleep(0)
        await broker.close("no workers")
        return await waiting, await broker.need(four), await broker.take("a", patience_s=60)

    first, later, item = asyncio.run(scene())
    assert first == later
    assert later["error"]["message"] == "no workers"
    assert item == []


def test_a_worker_killed_while_it_waits_is_handed_nothing(world, broker):
    (item,) = work_items(world, ["ones"])

    async def scene():
        ghost = asyncio.create_task(broker.take("a", patience_s=60))
        await asyncio.sleep(0)
        await broker.lost("a")  # its workers began anew
        assert await ghost == []
        asker = asyncio.create_task(broker.need(item))
        assert await broker.take("a", patience_s=60) == [item]
        world.shop.obtain(item)
        await broker.done("a", (item.stage.key, True, None, 1.0))
        return await asker

    assert asyncio.run(scene())["ok"]


def test_a_fleet_that_asks_for_more_says_what_it_has_done(world, broker):
    one, four = work_items(world, ["ones"], ["fours"])

    async def scene():
        askers = [await asked(broker, item) for item in (one, four)]
        assert await broker.take("a", 60) == [one]
        world.shop.obtain(one)
        ended = [(one.key, True, None, 1.0)]
        assert await broker.take("a", 60, ended) == [four]
        assert await broker.take("a", 60, ended) == [four]  # the answer was lost and the call made again
        assert await broker.take("a", 0.01, [(four.key, False, {"error": "NotFinite"}, 1.0)]) == []
        return [await asker for asker in askers]

    good, bad = asyncio.run(scene())
    assert good["ok"]
    assert bad["error"] == {"error": "NotFinite"}
    assert broker.desk.counts["trained"] == 1


@pytest.mark.parametrize("learned", [True, False])
def test_what_a_fleet_says_to_a_broker_that_was_restarted_does_no_harm(world, broker, learned):
    one, four = work_items(world, ["ones"], ["fours"])
    if learned:
        world.shop.obtain(one)
    error = None if learned else {"error": "NotFinite"}

    async def scene():
        asker = asyncio.create_task(broker.need(four))
        assert await broker.take("a", 60, [(one.key, learned, error, 1.0)]) == [four]
        again = asyncio.create_task(broker.need(one))  # who needed it asks again
        await asyncio.sleep(0.1)
        asker.cancel()
        if learned:
            return await again
        again.cancel()
        return {"ok": await broker.take("b", 60) == [one]}  # that it failed is forgotten

    assert asyncio.run(scene())["ok"]


def test_a_call_of_a_fleets_earlier_life_takes_nothing_from_its_later_one(world, broker, monkeypatch):
    """It waited for the store; meanwhile the workers were replaced and have something else."""
    one, four = work_items(world, ["ones"], ["fours"])
    monkeypatch.setattr(Purse, "measured", lambda *_: time.sleep(0.3) or [])

    async def scene():
        askers = [await asked(broker, item) for item in (one, four)]
        await broker.take("a", 60)
        world.shop.obtain(one)
        late = asyncio.create_task(broker.take("a", 60, [(one.key, True, None, 1.0)]))
        await asyncio.sleep(0.1)
        broker.lives["a"] += 1
        broker.desk.assign(four.key, "a")
        assert await late == []
        for asker in askers:
            asker.cancel()
        return broker.desk.of("a")

    assert asyncio.run(scene()) == [four.key]


def test_everybody_who_asked_is_answered(world, broker):
    (item,) = work_items(world, ["ones"])

    async def scene():
        askers = [asyncio.create_task(broker.need(item)) for _ in range(5)]
        assert await broker.take("a", patience_s=60) == [item]
        askers[0].cancel()  # one that gives up takes the others' answer away from nobody
        await broker.done("a", (item.stage.key, False, {"error": "NotFinite"}, 1.0))
        return [await asker for asker in askers[1:]]

    assert [answer["error"]["error"] for answer in asyncio.run(scene())] == ["NotFinite"] * 4


def test_a_failure_answers_all_who_wait_and_is_counted(world, desk):
    (item,) = work_items(world, ["ones"])
    desk.need(item)
    desk.take("a")
    assert desk.done("a", item.stage.key, learned=False, error={"error": "NotFinite"})
    assert desk.waiting == 0
    assert desk.need(item) == "failed"  # not tried again in this run
    assert (desk.counts["failed"], desk.counts["trained"]) == (1, 0)


# -- what is not the stage's fault -----------------------------------------------------------------


def test_a_loss_after_which_the_stage_had_got_further_is_not_counted(world, desk):
    (item,) = work_items(world, ["ones"])
    desk.need(item)
    for done in (40, 80, 80):  # of 100 steps, kept by snapshots; the third gets no further
        desk.take("a")
        desk.heard("a", item.key, (done, 100))
        assert desk.lost("a") == []
    desk.take("a")
    desk.heard("a", item.key, (81, 100))
    assert desk.lost("a") == [item]  # the second that counts, one retry allowed


def test_a_stage_given_up_keeps_why_its_worker_was_ended(world, broker):
    (item,) = work_items(world, ["ones"])
    cause = {"error": "Stuck", "message": "nothing moved", "traceback": "in sleep"}

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        for _ in range(2):
            await broker.take("a", patience_s=60)
            await broker.lost("a", cause)
        return await asker

    assert asyncio.run(scene())["error"] == cause
    assert world.store.failure(item.stage)["traceback"] == "in sleep"


def test_a_store_that_fails_again_and_again_ends_the_study_with_its_error(world, monkeypatch):
    monkeypatch.setattr("dgg_ray.execution.work_queue.AILMENT_S", 0.0)
    broker = Broker.__ray_metadata__.modified_class(world.store, max_retries=100)
    (item,) = work_items(world, ["ones"])
    full = {"error": "StoreError", "message": "no space left", "traceback": ""}

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        while not broker.closed:
            assert await broker.take("a", patience_s=60) == [item]
            await broker.unwell("a", full)
        return await asker

    assert "5 stages in a row" in asyncio.run(scene())["error"]["message"]
    assert broker.reason.endswith("StoreError: no space left")


def test_fleets_that_run_into_one_outage_end_nothing_and_set_nothing_aside(world):
    broker = Broker.__ray_metadata__.modified_class(world.store, max_retries=0)
    many = work_items(world, ["ones"], ["fours"], ["nines"])

    async def scene():
        askers = [asyncio.create_task(broker.need(item)) for item in many]
        for _ in range(4):
            for group in "abc":
                await broker.take(group, patience_s=60)
            for group in "abc":
                await broker.unwell(group, {"error": "StoreError", "message": "full", "traceback": ""})
        status = await broker.status()
        for asker in askers:
            asker.cancel()
        return status

    status = asyncio.run(scene())
    assert (status["closed"], status["waiting"], status["unwell"]) == ("", 3, 12)
    assert "failed" not in status


def test_an_error_of_a_fleet_believed_lost_is_not_told_while_another_is_at_the_stage(world, broker):
    (item,) = work_items(world, ["ones"])

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        await broker.take("a", patience_s=60)
        await broker.lost("a")
        await broker.take("b", patience_s=60)
        await broker.done("a", (item.key, False, {"error": "NotFinite"}, 1.0))
        await asyncio.sleep(0)
        assert not asker.done()
        world.shop.obtain(item)
        await broker.done("b", (item.key, True, None, 1.0))
        return await asker

    assert asyncio.run(scene())["ok"]


def test_a_stage_that_ends_its_processes_is_set_aside_with_what_they_ended_with(world, broker):
    cause = {"error": "ValueError", "message": "no such shape", "traceback": "in scorer"}
    (item,) = work_items(world, ["ones"])

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        for _ in range(2):
            await broker.take("a", patience_s=60)
            await broker.blame("a", item.key, cause)
            await broker.lost("a")  # its new workers know of no reason
        return await asker

    assert asyncio.run(scene())["error"] == cause
    assert world.store.failure(item.stage)["traceback"] == "in scorer"


@pytest.mark.parametrize("replaced", [True, False])
def test_a_fleet_whose_workers_died_gives_its_work_back_even_if_no_others_come(
    world, broker, monkeypatch, replaced
):
    monkeypatch.setattr("dgg_ray.execution.broker.NEW_LIFE_S", 0.1)
    (item,) = work_items(world, ["ones"])

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        await broker.take("a", patience_s=60)
        death = asyncio.create_task(broker.orphaned("a"))
        await asyncio.sleep(0.01)
        if replaced:
            await broker.lost("a")
            assert await broker.take("a", patience_s=60) == [item]
            await death
            assert broker.desk.of("a") == [item.key]  # the new workers keep it
        else:
            assert await broker.take("b", patience_s=60) == [item]
        assert broker.desk.counts["lost"] == 1
        asker.cancel()

    asyncio.run(scene())


# -- a handful of works that take no time ----------------------------------------------------------


def quick(desk, work_items, each):
    """The desk, after a first work that took so long; the others wait."""
    for item in work_items:
        desk.need(item)
    first = desk.take("a")
    assert desk.take("a") is None  # how long works take is not known yet
    desk.done("a", first.key, learned=True, error=None, seconds=each)
    return desk


def hand(desk, group):
    return list(iter(lambda: desk.take(group), None))


@pytest.mark.parametrize(
    ("each", "expected"), [(0.2, 1), (0.1, 1), (0.05, 2), (0.03, 4), (0.01, 10), (0.001, 20)]
)
def test_a_fleet_is_given_what_takes_a_tenth_of_a_second_and_never_more_than_twenty(
    world, desk, each, expected
):
    many = [WorkItem(world.path("ones", seed=seed)[0]) for seed in range(30)]
    assert hand(quick(desk, many, each), "a") == many[1 : 1 + expected]


def test_one_work_that_takes_long_ends_handfuls(world, desk):
    many = [WorkItem(world.path("ones", seed=seed)[0]) for seed in range(30)]
    quick(desk, many, 0.001)
    desk.done("a", desk.take("a").key, learned=True, error=None, seconds=8.0)
    assert len(hand(desk, "a")) == 1


def test_whatever_of_a_handful_is_not_begun_after_a_beat_goes_to_others_and_other_drivers(world, two):
    """Two beats over one work are a beat's time at it, longer than a handful lasts."""
    first, second = two
    one, four, nine, more = work_items(world, ["ones"], ["fours"], ["nines"], ["fours", "ones"])

    async def scene():
        askers = [await asked(first, item) for item in (one, four, nine, more)]
        first.desk.usual = 0.001
        assert await first.take("a", 60) == [one, four, nine, more]
        failed = {"error": "NotFinite"}
        ended = [(one.key, False, failed, 0.001)]
        await first.tick("a", four.key, (1, 100), ended)
        assert await first.take("b", 0.01) == []
        await first.tick("a", four.key, (2, 100), ended)
        assert (await askers[0])["error"] == failed  # told long before the handful is over
        assert first.desk.of("a") == [four.key]
        await asyncio.sleep(0.2)  # claims may be given back by threads
        assert first.claims.held == {four.key}
        other = asyncio.create_task(second.need(more))
        assert await second.take("c", 60) == [more]
        assert await first.take("b", 60) == [nine]
        for asker in (*askers[1:], other):
            asker.cancel()

    asyncio.run(scene())


def test_a_claim_that_fails_leaves_nothing_of_a_handful_with_a_fleet_that_did_not_get_it(
    world, broker, monkeypatch
):
    many, lease = work_items(world, ["ones"], ["fours"], ["nines"]), StageStore.lease

    async def scene():
        askers = [await asked(broker, item) for item in many]
        broker.desk.usual = 0.001

        def failing(store, key, holder):
            if key == many[1].key:
                raise OSError("no answer")
            return lease(store, key, holder)

        monkeypatch.setattr(StageStore, "lease", failing)
        with pytest.raises(OSError, match="no answer"):
            await broker.take("a", 60)
        assert broker.desk.of("a") == []
        await asyncio.sleep(0.2)
        assert broker.claims.held == set()
        monkeypatch.setattr(StageStore, "lease", lease)
        await broker.lost("a")  # blamed for nothing
        assert await broker.take("a", 60) == many
        for asker in askers:
            asker.cancel()

    asyncio.run(scene())


def test_who_is_lost_with_a_handful_puts_the_blame_on_none_of_it_until_each_was_alone(world, desk):
    bills = []
    quick(desk, work_items(world, ["ones"], ["fours"], ["nines"]), 0.001)
    desk.bill = lambda item, seconds: bills.append(seconds)
    four, nine = hand(desk, "a")
    desk.out[four.key].started = desk.out[nine.key].started = time.time() - 3.0
    assert desk.lost("a") == []
    assert sum(bills) == pytest.approx(3.0, abs=0.1)  # they were not at both all the time
    assert hand(desk, "a") == [four]
    assert hand(desk, "b") == [nine]
    assert (desk.lost("a"), desk.max_retries) == ([], 1)
    assert hand(desk, "a") == [four]
    assert desk.lost("a") == [four]  # lost twice by itself
    desk.done("b", nine.key, learned=True, error=None)
    assert desk.counts["failed"] == 0


def test_a_fleet_that_ends_over_one_of_a_handful_leaves_the_rest_to_others(world, broker):
    many = work_items(world, ["ones"], ["fours"], ["nines"])
    cause = {"error": "ValueError", "message": "no such shape", "traceback": ""}

    async def scene():
        askers = [await asked(broker, item) for item in many]
        broker.desk.usual = 0.001
        assert await broker.take("a", 60) == many
        world.shop.obtain(many[0])
        await broker.blame("a", many[1].key, cause, [(many[0].key, True, None, 0.001)])
        assert (await askers[0])["ok"]
        assert await broker.take("b", 60) == [many[2]]
        await broker.lost("a")
        assert await broker.take("a", 60) == [many[1]]
        await broker.lost("a")
        return await askers[1]

    assert asyncio.run(scene())["error"] == cause


def test_a_status_counts_one_stage_a_fleet_as_running(world, broker):
    async def scene():
        askers = [await asked(broker, item) for item in work_items(world, ["ones"], ["fours"], ["nines"])]
        broker.desk.usual = 0.001
        await broker.take("a", 60)
        for asker in askers:
            asker.cancel()
        return await broker.status()

    status = asyncio.run(scene())
    assert [row["fleet"] for row in status["running"]] == ["a"]
    assert status["waiting"] == 2


# -- a broker that was restarted knows nothing -----------------------------------------------------


def test_a_fleet_that_says_what_it_has_keeps_it(world, broker):
    """The order was queued again by who needs it; it is handed to nobody else."""
    (item,) = work_items(world, ["ones"])
    broker.ready_at = time.monotonic() + 0.2  # as after a restart

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        other = asyncio.create_task(broker.take("b", patience_s=0.4))
        await asyncio.sleep(0.1)
        await broker.tick("a", item.key, (3, 8))
        assert [r["fleet"] for r in (await broker.status())["running"]] == ["a"]
        assert await other == []
        world.shop.obtain(item)
        await broker.done("a", (item.key, True, None, 1.0))
        return await asker

    assert asyncio.run(scene())["ok"]
    assert broker.desk.counts["trained"] == 1


def test_a_fleet_that_asks_has_nothing_whatever_was_said_of_it(world, broker):
    (item,) = work_items(world, ["ones"])

    async def scene():
        asker = asyncio.create_task(broker.need(item))
        await asyncio.sleep(0.1)
        await broker.tick("a", item.key, (1, 8))  # late, of an earlier life
        assert await broker.take("a", patience_s=60) == [item]
        asker.cancel()

    asyncio.run(scene())


# -- two drivers on one store ----------------------------------------------------------------------


@pytest.fixture
def two(world, monkeypatch):
    monkeypatch.setattr("dgg_ray.execution.broker.LOOK_S", 0.05)
    here = Holder.here()
    new = Broker.__ray_metadata__.modified_class
    return [new(world.store, 1, None, replace(here, id=name)) for name in ("first", "second")]


def test_a_stage_that_another_driver_has_is_waited_for_and_not_done_again(world, two):
    first, second = two
    one, four = work_items(world, ["ones"], ["fours"])

    async def scene():
        askers = [asyncio.create_task(broker.need(one)) for broker in two]
        assert await first.take("a", patience_s=60) == [one]
        assert await second.take("b", patience_s=0.1) == []
        assert (await second.status())["waiting"] == 0  # no fleet is started for it
        more = asyncio.create_task(second.need(four))
        assert await second.take("b", patience_s=60) == [four]  # what is free goes on
        world.shop.obtain(one)
        await first.done("a", (one.key, True, None, 1.0))
        answers = [await asyncio.wait_for(asker, 5) for asker in askers]
        more.cancel()
        return answers

    assert [answer["ok"] for answer in asyncio.run(scene())] == [True, True]
    assert second.desk.counts["trained"] == 0


def test_a_stage_that_another_driver_gives_back_is_done_here(world, two):
    first, second = two
    (one,) = work_items(world, ["ones"])

    async def scene():
        askers = [asyncio.create_task(broker.need(one)) for broker in two]
        await first.take("a", patience_s=60)
        taking = asyncio.create_task(second.take("b", patience_s=5))
        await asyncio.sleep(0.1)
        assert not taking.done()
        await first.lost("a")
        assert await taking == [one]
        for asker in askers:
            asker.cancel()

    asyncio.run(scene())


def test_exams_that_only_one_driver_wants_are_sat_after_the_other_is_done(world, two):
    first, second = two
    (stage,) = world.path("ones")
    mine, more = WorkItem(stage, (world.evaluation("ones"),)), WorkItem(stage, (world.evaluation("fours"),))

    async def scene():
        askers = [asyncio.create_task(b.need(w)) for b, w in zip(two, (mine, more), strict=True)]
        await first.take("a", patience_s=60)
        taking = asyncio.create_task(second.take("b", patience_s=5))
        await asyncio.sleep(0.1)
        world.shop.obtain(mine)
        await first.done("a", (stage.key, True, None, 1.0))
        assert await taking == [more]
        world.shop.obtain(more)
        await second.done("b", (stage.key, False, None, 1.0))
        return [await asker for asker in askers]

    assert all(answer["ok"] for answer in asyncio.run(scene()))
    assert world.learner.taught == ["ones-train-0", "ones-train-1"]  # once


def test_a_slow_store_keeps_nobody_else_waiting(world, monkeypatch):
    """Every look into the store takes 0.3 s; ten askers and a status do not take three."""

    class Slow(StageStore):
        def has(self, item):
            time.sleep(0.3)
            return super().has(item)

    broker = Broker.__ray_metadata__.modified_class(Slow(world.store.folder), 1)

    async def scene():
        asked = [
            asyncio.create_task(broker.need(w)) for w in work_items(world, ["ones"], ["fours"], ["nines"])
        ]
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await broker.status()
        quick = time.monotonic() - began
        for asker in asked:
            asker.cancel()
        return quick

    assert asyncio.run(scene()) < 0.2
