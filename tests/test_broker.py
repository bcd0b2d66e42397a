"""The desk: a stage asked for by ten is trained once, and none is forgotten."""

import asyncio

import pytest

from dgg_ray.broker import Broker, Desk
from dgg_ray.stages import Work


@pytest.fixture()
def desk(world):
    return Desk(world.store, retries=1)


def works(world, *orders):
    return [Work(world.path(*order)[-1], (world.exam(order[-1]),)) for order in orders]


def finish(world, desk, fleet, work):
    world.shop.obtain(work)
    return desk.done(fleet, work.stage.key, learned=True, error=None)


def test_a_stage_asked_for_by_ten_is_handed_out_once(world, desk):
    (work,) = works(world, ["ones"])
    answers = [desk.need(work) for _ in range(10)]
    assert answers == ["queued"] + ["joined"] * 9
    assert desk.take("a") == work
    assert desk.take("b") is None
    assert finish(world, desk, "a", work)
    assert desk.need(work) == "ready"
    assert desk.counts["trained"] == 1


def test_work_is_handed_out_in_the_order_of_asking(world, desk):
    one, four, nine = works(world, ["ones"], ["fours"], ["nines"])
    for work in (four, nine, one):
        desk.need(work)
    assert [desk.take("a"), desk.take("b"), desk.take("c")] == [four, nine, one]


def test_exams_asked_for_while_it_waits_join_the_work(world, desk):
    (stage,) = world.path("ones")
    desk.need(Work(stage, (world.exam("ones"),)))
    desk.need(Work(stage, (world.exam("fours"),)))
    assert {exam.task for exam in desk.take("a").exams} == {"ones", "fours"}


def test_exams_asked_for_while_it_is_trained_come_after_it(world, desk):
    (stage,) = world.path("ones")
    first, more = Work(stage, (world.exam("ones"),)), Work(stage, (world.exam("fours"),))
    desk.need(first)
    desk.take("a")
    assert desk.need(more) == "joined"
    assert finish(world, desk, "a", first) is False
    assert desk.take("a") == more
    assert finish(world, desk, "a", more) is True


def test_a_lost_fleets_work_is_taken_by_another(world, desk):
    (work,) = works(world, ["ones"])
    desk.need(work)
    desk.take("a")
    assert desk.lost("a") == []
    assert desk.take("b") == work


def test_what_is_lost_too_often_is_given_up(world, desk):
    (work,) = works(world, ["ones"])
    desk.need(work)
    for _ in range(2):  # the first try and one retry
        desk.take("a")
        given_up = desk.lost("a")
    assert given_up == [work]
    assert desk.take("b") is None


def test_another_fleets_loss_changes_nothing(world, desk):
    (work,) = works(world, ["ones"])
    desk.need(work)
    desk.take("a")
    desk.lost("b")
    assert desk.take("b") is None


def test_a_fleet_believed_lost_that_finishes_does_no_harm(world, desk):
    (work,) = works(world, ["ones"])
    desk.need(work)
    desk.take("a")
    desk.lost("a")
    desk.take("b")
    assert finish(world, desk, "a", work) is True
    assert desk.need(work) == "joined"  # b still has it
    assert finish(world, desk, "b", work)
    assert desk.need(work) == "ready"


@pytest.fixture
def broker(world):
    """The actor's class without Ray around it."""
    return Broker.__ray_metadata__.modified_class(world.store, retries=1)


def test_a_closed_broker_lets_nobody_wait(world, broker):
    one, four = works(world, ["ones"], ["fours"])

    async def scene():
        waiting = asyncio.create_task(broker.need(one))
        await asyncio.sleep(0)
        await broker.close("no workers")
        return await waiting, await broker.need(four), await broker.take("a", patience_s=60)

    first, later, work = asyncio.run(scene())
    assert first == later
    assert later["error"]["message"] == "no workers"
    assert work is None


def test_a_worker_killed_while_it_waits_is_handed_nothing(world, broker):
    (work,) = works(world, ["ones"])

    async def scene():
        ghost = asyncio.create_task(broker.take("a", patience_s=60))
        await asyncio.sleep(0)
        await broker.lost("a")  # its workers began anew
        assert await ghost is None
        asker = asyncio.create_task(broker.need(work))
        assert await broker.take("a", patience_s=60) == work
        world.shop.obtain(work)
        await broker.done("a", work.stage.key, learned=True, error=None)
        return await asker

    assert asyncio.run(scene())["ok"]


def test_everybody_who_asked_is_answered(world, broker):
    (work,) = works(world, ["ones"])

    async def scene():
        askers = [asyncio.create_task(broker.need(work)) for _ in range(5)]
        assert await broker.take("a", patience_s=60) == work
        askers[0].cancel()  # one that gives up takes the others' answer away from nobody
        await broker.done("a", work.stage.key, learned=False, error={"error": "NotFinite"})
        return [await asker for asker in askers[1:]]

    assert [answer["error"]["error"] for answer in asyncio.run(scene())] == ["NotFinite"] * 4


def test_a_failure_answers_all_who_wait_and_is_counted(world, desk):
    (work,) = works(world, ["ones"])
    desk.need(work)
    desk.take("a")
    assert desk.done("a", work.stage.key, learned=False, error={"error": "NotFinite"})
    assert desk.waiting == 0
    assert desk.need(work) == "failed"  # not tried again in this run
    assert (desk.counts["failed"], desk.counts["trained"]) == (1, 0)
