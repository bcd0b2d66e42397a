"""The work queue: an item requested by ten clients is trained once, and none is forgotten."""

import time

import pytest

from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.work_queue import ItemResult, WorkQueue


@pytest.fixture()
def queue(world):
    return WorkQueue(world.store, max_retries=1)


def items_of(world, *orders):
    return [WorkItem(world.stages_of(*order)[-1], (world.evaluation(order[-1]),)) for order in orders]


def finish(world, queue, group, item):
    world.runner.run(item)
    return queue.finish(group, ItemResult(item.stage.key, trained=True))


def test_an_item_requested_ten_times_is_assigned_once(world, queue):
    (item,) = items_of(world, ["ones"])
    states = [queue.request(item) for _ in range(10)]
    assert states == ["queued"] + ["joined"] * 9
    assert queue.dequeue("a") == item
    assert queue.dequeue("b") is None
    assert finish(world, queue, "a", item)
    assert queue.request(item) == "stored"
    assert queue.counts["trained"] == 1


def test_items_are_assigned_in_the_order_of_their_requests(world, queue):
    one, four, nine = items_of(world, ["ones"], ["fours"], ["nines"])
    for item in (four, nine, one):
        queue.request(item)
    assert [queue.dequeue("a"), queue.dequeue("b"), queue.dequeue("c")] == [four, nine, one]


def test_evaluations_requested_while_the_item_waits_are_added_to_it(world, queue):
    (stage,) = world.stages_of("ones")
    queue.request(WorkItem(stage, (world.evaluation("ones"),)))
    queue.request(WorkItem(stage, (world.evaluation("fours"),)))
    assert {evaluation.task for evaluation in queue.dequeue("a").evaluations} == {"ones", "fours"}


def test_evaluations_requested_while_the_stage_is_trained_follow_it(world, queue):
    (stage,) = world.stages_of("ones")
    first, more = WorkItem(stage, (world.evaluation("ones"),)), WorkItem(stage, (world.evaluation("fours"),))
    queue.request(first)
    queue.dequeue("a")
    assert queue.request(more) == "joined"
    assert finish(world, queue, "a", first) is False
    assert queue.dequeue("a") == more
    assert finish(world, queue, "a", more) is True


def test_the_item_of_a_lost_group_is_assigned_to_another(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    assert queue.group_lost("a") == []
    assert queue.dequeue("b") == item


def test_an_item_that_is_lost_too_often_is_given_up(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    for _ in range(2):  # the first try and one retry
        queue.dequeue("a")
        given_up = queue.group_lost("a")
    assert given_up == [item]
    assert queue.dequeue("b") is None


def test_the_loss_of_another_group_changes_nothing(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    queue.group_lost("b")
    assert queue.dequeue("b") is None


def test_a_group_believed_lost_that_finishes_does_no_harm(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    queue.group_lost("a")
    queue.dequeue("b")
    assert finish(world, queue, "a", item) is True
    assert queue.request(item) == "joined"  # b still has it
    assert finish(world, queue, "b", item)
    assert queue.request(item) == "stored"


def test_a_failure_closes_the_entry_and_is_counted(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    assert queue.finish("a", ItemResult(item.stage.key, False, {"error": "NonFiniteError"}))
    assert queue.waiting == 0
    assert queue.request(item) == "failed"  # not tried again in this run
    assert (queue.counts["failed"], queue.counts["trained"]) == (1, 0)


def test_a_loss_after_which_the_stage_had_got_further_is_not_counted(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    for done in (40, 80, 80):  # of 100 steps, kept by mid-stage checkpoints; the third gets no further
        queue.dequeue("a")
        queue.heartbeat("a", item.key, (done, 100))
        assert queue.group_lost("a") == []
    queue.dequeue("a")
    queue.heartbeat("a", item.key, (81, 100))
    assert queue.group_lost("a") == [item]  # the second loss that counts, one retry allowed


def test_the_seconds_of_a_lost_item_are_charged(world, queue):
    charged = []
    queue.on_time_spent = lambda item, seconds: charged.append(seconds)
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    queue.assigned[item.key].started = time.time() - 3.0
    queue.group_lost("a")
    assert charged == [pytest.approx(3.0, abs=0.1)]


def test_a_status_lists_the_items_in_training_and_counts_those_that_wait(world, queue):
    items = items_of(world, ["ones"], ["fours"], ["nines"])
    for item in items:
        queue.request(item)
    queue.dequeue("a")
    queue.heartbeat("a", items[0].key, (3, 8))
    status = queue.status()
    assert status["running"] == [{"stage": str(items[0]), "group": "a", "steps": (3, 8)}]
    assert status["waiting"] == 2


def test_when_requests_are_dropped_what_a_group_has_is_finished_and_the_rest_leaves_the_queue(world, queue):
    one, four, nine = items_of(world, ["ones"], ["fours"], ["nines"])
    for item in (one, four, nine):
        queue.request(item)
    assert queue.dequeue("a") == one
    assert queue.drop_requests() == [four.key, nine.key]
    assert queue.dequeue("b") is None
    assert queue.request(nine) == "queued"
    assert finish(world, queue, "a", one)
    assert queue.counts["trained"] == 1
    assert queue.dequeue("b") == nine


@pytest.mark.parametrize("requested_again", [False, True])
def test_an_item_that_nobody_requests_any_more_is_not_assigned_again(world, queue, requested_again):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    queue.drop_requests()
    if requested_again:
        assert queue.request(item) == "joined"
    assert queue.group_lost("a") == []
    assert queue.dequeue("b") == (item if requested_again else None)


def test_an_abandoned_item_that_another_driver_has_leaves_the_queue(world, queue):
    (item,) = items_of(world, ["ones"])
    queue.request(item)
    queue.dequeue("a")
    queue.drop_requests()
    queue.requeue(item.key, leased_by="another driver")
    assert queue.entries == {}
