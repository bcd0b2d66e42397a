"""Worker groups between two studies: who gets them, and when they end. Without Ray."""

import asyncio
import contextlib
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError

from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study, StudyData
from dgg_ray.core.errors import ClusterError
from dgg_ray.core.interfaces import Adapter
from dgg_ray.execution import cluster, warm_groups
from dgg_ray.execution.session import RaySession
from dgg_ray.execution.warm_groups import GroupPool, WarmGroups, group_kind, run_assignments, undo_changes
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.readers.embedded import Embedded
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.finetune import Finetune

STUDY = Study(
    "toy", Model(), {"digits": Embedded(), "words": Embedded()}, DGG(), data=StudyData(fingerprint="a")
)


# -- the pool --------------------------------------------------------------------------------------


class Actor:
    """A broker that keeps its calls."""

    def __init__(self):
        self.calls = []
        for name in ("close", "workers_died"):
            setattr(self, name, SimpleNamespace(remote=self.call(name)))

    def call(self, name):
        async def remote(*arguments):
            self.calls.append((name, *arguments))

        return remote


def new_pool(keep_warm_s=60.0):
    """The actor's class without Ray around it."""
    return GroupPool.__ray_metadata__.modified_class(keep_warm_s)


def assignment(group="group-001"):
    return {"group": group, "broker": Actor()}


async def parked(pool, *members, kind="k"):
    """Let these groups wait, one after another."""
    tasks = {}
    for member in members:
        await pool.add(member, kind, assignment())
        tasks[member] = asyncio.create_task(pool.park(member))
        while member not in await pool.waiting():
            await asyncio.sleep(0)
    return tasks


@pytest.fixture(autouse=True)
def demand(monkeypatch):
    """Answers of the cluster to whether somebody waits for machines; then never."""
    answers = []
    monkeypatch.setattr(warm_groups, "DEMAND_CHECK_S", 0.01)
    monkeypatch.setattr(cluster, "is_short_of_machines", lambda: answers.pop(0) if answers else False)
    return answers


def test_a_study_gets_the_groups_of_its_kind_the_latest_first():
    async def play():
        pool = new_pool()
        tasks = await parked(pool, "one", "two") | await parked(pool, "other", kind="l")
        new = assignment("group-007")
        assert await pool.take("k", [new]) == ["two"]
        assert await tasks["two"] is True
        assert await pool.current("two") == new | {"group_id": "two"}
        assert await pool.waiting() == ["one", "other"]
        assert await pool.take("k", [assignment(), assignment()]) == ["one"]
        assert await pool.take("k", [assignment()]) == []
        assert not tasks["other"].done()
        await pool.release()
        assert await tasks["other"] is False

    asyncio.run(play())


def test_a_group_that_waits_has_forgotten_its_study_and_ends_after_its_time():
    async def play():
        pool = new_pool(keep_warm_s=0.05)
        tasks = await parked(pool, "one")
        assert await pool.current("one") is None
        assert await tasks["one"] is False
        assert await pool.waiting() == await pool.take("k", [assignment()]) == []

    asyncio.run(play())


@pytest.mark.parametrize(("answers", "stays"), [([True, True], False), ([True, False, True, False], True)])
def test_groups_end_once_somebody_waits_for_machines_for_two_checks(demand, answers, stays):
    async def play():
        pool = new_pool()
        demand.extend(answers)
        tasks = await parked(pool, "one", "two")
        while demand and await pool.waiting():
            await asyncio.sleep(0.01)
        assert demand == []  # all answers were waited for
        await asyncio.sleep(0.05)
        assert await pool.waiting() == (["one", "two"] if stays else [])
        await pool.release()
        assert [await task for task in tasks.values()] == [False, False]

    asyncio.run(play())


def test_a_cluster_that_does_not_answer_ends_nothing(monkeypatch):
    calls = []

    def fail():
        calls.append(1)
        raise OSError("no answer")

    async def play():
        pool = new_pool()
        await parked(pool, "one")
        while len(calls) < 3:
            await asyncio.sleep(0.01)
        assert await pool.waiting() == ["one"]
        await pool.release()

    monkeypatch.setattr(cluster, "is_short_of_machines", fail)
    asyncio.run(play())


def test_a_group_that_dies_while_it_waits_is_given_to_no_study():
    async def play():
        pool = new_pool()
        tasks = await parked(pool, "one")
        await pool.workers_died("one")
        assert await pool.waiting() == []
        assert await tasks["one"] is False
        assert await pool.take("k", [assignment()]) == []
        assert await pool.current("one") is None  # its new workers end

    asyncio.run(play())


def test_the_death_of_a_group_at_work_is_told_to_the_broker_of_its_present_study():
    async def play():
        pool, first, second = new_pool(), assignment("group-001"), assignment("group-004")
        await pool.add("one", "k", first)
        task = asyncio.create_task(pool.park("one"))
        await asyncio.sleep(0)
        await pool.take("k", [second])
        assert await task
        await pool.workers_died("one")
        await pool.refuse("one", "another version")
        assert first["broker"].calls == []
        assert second["broker"].calls == [("workers_died", "group-004"), ("close", "another version")]
        assert await pool.current("one")  # new workers go on with the study

    asyncio.run(play())


def test_workers_that_ask_before_the_driver_added_their_group_wait():
    async def play():
        pool, new = new_pool(), assignment()
        asked = asyncio.create_task(pool.current("one"))
        await asyncio.sleep(0.02)
        assert not asked.done()
        await pool.add("one", "k", new)
        assert await asked is new

    asyncio.run(play())


# -- the driver ------------------------------------------------------------------------------------


def test_groups_are_of_one_kind_if_hardware_engine_and_model_agree():
    kind = group_kind(STUDY)
    same = replace(
        STUDY,
        name="other",
        readers={"charts": Embedded()},
        strategy=Finetune(),
        adapter=Adapter(rank=2),
        seeds=(4,),
    )
    assert group_kind(same) == group_kind(replace(same, workers=Workers(groups=3, idle_timeout_s=1))) == kind
    others = [
        {"group_size": 2},
        {"cpus": 2},
        {"gpus": 1},
        {"threads": 2},
        {"engine": "zero2"},
        {"offload": True},
    ]
    studies = [replace(STUDY, workers=Workers(**workers)) for workers in others]
    studies.append(replace(STUDY, data=StudyData(fingerprint="b")))
    assert len({kind, *map(group_kind, studies)}) == 1 + len(studies)


def test_groups_that_imported_other_plugins_of_the_user_are_of_another_kind(monkeypatch):
    hashes = {"mine:One": "1"}
    monkeypatch.setattr(Study, "outside_plugins", property(lambda self: [("strategies", n) for n in hashes]))
    monkeypatch.setattr(Study, "source_hash", lambda self, kind, name: hashes[name])
    kinds = {group_kind(STUDY)}
    hashes["mine:One"] = "2"  # edited
    kinds.add(group_kind(STUDY))
    hashes["mine:Two"] = "3"
    kinds.add(group_kind(STUDY))
    assert len(kinds) == 3


class DeadPool:
    """Every call finds the actor dead."""

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: ActorDiedError())


def raise_errors(answer, timeout=None):
    if isinstance(answer, Exception):
        raise answer
    return answer


def test_a_dead_pool_is_replaced_and_its_groups_are_not_counted_on(monkeypatch):
    pools = [DeadPool(), SimpleNamespace(waiting=SimpleNamespace(remote=lambda: ["one"]))]
    monkeypatch.setattr(WarmGroups, "_new_pool", lambda self: pools.pop(0))
    monkeypatch.setattr(warm_groups.ray, "get", raise_errors)
    groups = WarmGroups(60.0)
    groups.members = {"task": "one"}
    assert groups.take("k", [assignment()]) == []
    assert groups.waiting(["task"]) == ["task"]


def test_a_study_leaves_idle_groups_and_ends_those_at_work(monkeypatch):
    cancelled, monotonic = [], iter(range(100))
    pool = SimpleNamespace(waiting=SimpleNamespace(remote=lambda: ["a"]))
    monkeypatch.setattr(WarmGroups, "_new_pool", lambda self: pool)
    monkeypatch.setattr(warm_groups.ray, "get", raise_errors)
    monkeypatch.setattr(warm_groups.ray, "cancel", cancelled.append)
    monkeypatch.setattr(warm_groups.ray, "wait", lambda tasks, **_: ([t for t in tasks if t == "ended"], []))
    monkeypatch.setattr(warm_groups.time, "monotonic", lambda: next(monotonic))
    groups = WarmGroups(60.0)
    groups.members = {"idle": "a", "at work": "b", "ended": "c"}
    groups.end_study(["idle", "at work", "ended"])
    assert (cancelled, groups.members) == (["at work"], {"idle": "a"})


# -- a worker --------------------------------------------------------------------------------------


def test_a_worker_whose_pool_is_dead_ends(monkeypatch):
    monkeypatch.setattr(warm_groups.ray, "get", raise_errors)
    run_assignments(DeadPool(), "one", lambda study: pytest.fail("there is no study"))


def test_a_study_leaves_no_random_state_and_no_warning_filter_in_the_process():
    draw = lambda: (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: E731
    with undo_changes():
        first, filters = draw(), list(warnings.filters)
        warnings.simplefilter("always")
    with undo_changes():
        assert draw() == first
        assert list(warnings.filters) == filters


# -- the session -----------------------------------------------------------------------------------


@pytest.fixture
def ray_starts(monkeypatch):
    """The cores with which Ray was started; None where it was stopped."""
    starts = []

    @contextlib.contextmanager
    def started(cores, address=None):
        starts.append(cores)
        yield
        starts.append(None)

    monkeypatch.setattr(cluster, "started", started)
    monkeypatch.setattr(cluster, "check_resources", lambda study: None)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("ray.is_initialized", lambda: bool(starts) and starts[-1] is not None)
    monkeypatch.setattr(WarmGroups, "_new_pool", lambda self: DeadPool())
    monkeypatch.setattr("ray.kill", lambda actor: None)
    return starts


def test_a_session_starts_ray_for_the_first_study_and_stops_it_at_its_end(ray_starts):
    with RaySession() as session:
        assert ray_starts == []
        for name in ("first", "second"):
            with session.connected(replace(STUDY, name=name)):
                assert session.warm
        assert ray_starts == [2]
    assert ray_starts == [2, None]


def test_without_a_block_ray_and_the_groups_end_with_the_study(ray_starts):
    session = RaySession()
    with session.connected(STUDY):
        assert session.warm is None
    assert ray_starts == [2, None]


def test_ray_is_started_again_for_more_cores_and_for_other_folders_of_plugins(ray_starts, monkeypatch):
    with RaySession() as session:
        for groups in (1, 5, 3):
            with session.connected(replace(STUDY, workers=Workers(groups=groups))):
                pass
        assert ray_starts == [2, None, 5]
        monkeypatch.setattr(cluster, "plugin_environment", lambda: {"PYTHONPATH": "/new"})
        with session.connected(STUDY):
            pass
        assert ray_starts == [2, None, 5, None, 2]


def test_a_session_runs_one_study_at_a_time(ray_starts):
    with RaySession() as session, session.connected(STUDY):
        with (
            pytest.raises(ClusterError, match="late: the session runs another study"),
            session.connected(replace(STUDY, name="late")),
        ):
            pass
        assert ray_starts == [2]


@pytest.mark.parametrize("seconds", [-1, 1201])
def test_groups_wait_for_twenty_minutes_at_most(seconds):
    with pytest.raises(ValueError, match="from 0 to 1200 seconds"):
        RaySession(keep_warm_s=seconds)
