"""Stages in their middle: stopped, gone on with, and nothing left behind."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgg_ray.core.errors import NotFinite, OtherVersion
from dgg_ray.core.stage import WorkItem
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training import checkpoints
from dgg_ray.training.checkpoints import ASK_S, NOTICE_S, Rhythm


class Taken(Exception):
    """The machine is taken away."""


def place(world, stage):
    return world.store.folder / checkpoints.name_of(stage)


def stages(world):
    """Two tasks, six steps each; the second guided, so that it has an anchor to remember."""
    return world.path("ones", "fours", strategy=DGG(alpha=1.0), learning_rate=0.3, epochs=6)


def stop_at(world, step):
    def tick(stage, done, steps):
        if stage.earlier and done == step:
            raise Taken

    world.shop.tick = tick


def theta(world, stage):
    folder = world.store.open(stage)
    return load_file(folder / "adapter" / "theta.safetensors")["theta"].item()


@pytest.fixture()
def undisturbed(tmp_path_factory):
    from toy_world import World

    world = World(tmp_path_factory.mktemp("undisturbed"))
    _, second = stages(world)
    world.shop.obtain(WorkItem(second))
    return world


def test_a_stopped_stage_goes_on_where_its_snapshot_was(world, undisturbed):
    first, second = stages(world)
    world.shop.obtain(WorkItem(first))
    before = len(world.learner.taught)
    world.shop.rhythm = Rhythm(steps=2)
    stop_at(world, 5)
    with pytest.raises(Taken):
        world.shop.obtain(WorkItem(second))
    world.shop.tick = lambda *_: None
    world.shop.obtain(WorkItem(second))

    # three examples a step: five steps, then from the snapshot after four the fifth again and the sixth
    assert len(world.learner.taught) - before == 3 * (5 + 2)
    assert theta(world, second) == theta(undisturbed, second)
    mine, theirs = (w.store.record(second) for w in (world, undisturbed))
    assert mine["loss"] == theirs["loss"]
    assert mine["cost"]["steps"] == theirs["cost"]["steps"] == 6


def test_the_anchor_is_where_the_stage_started_not_where_it_went_on(world, undisturbed):
    first, second = stages(world)
    world.shop.obtain(WorkItem(first))
    start = theta(world, first)
    world.shop.rhythm = Rhythm(steps=1)
    stop_at(world, 3)
    with pytest.raises(Taken):
        world.shop.obtain(WorkItem(second))
    taken = checkpoints.read(world.store, second)
    assert taken.tensors["anchor"].item() == pytest.approx(start)
    assert taken.tensors["theta"].item() != pytest.approx(start)
    assert taken.memory == {"task": "fours", "seed": 0}
    assert len(taken.losses) == 3


def test_a_snapshot_is_removed_when_its_stage_is_published(world):
    _, second = stages(world)
    world.shop.rhythm = Rhythm(steps=1)
    world.shop.obtain(WorkItem(second))
    assert list((world.store.folder / "inflight").iterdir()) == []


def test_a_snapshot_on_the_way_to_a_broken_loss_is_removed_with_the_failure(world):
    (stage,) = world.path("nines", epochs=3)
    world.shop.rhythm = Rhythm(steps=1)
    losses = iter([1.0, 1.0, float("nan")])
    world.learner.step = lambda batch, step, edit: next(losses)
    kept = []
    world.shop.tick = lambda *_: kept.append(place(world, stage).exists())
    with pytest.raises(NotFinite):
        world.shop.obtain(WorkItem(stage))
    assert kept == [True, True]
    assert not place(world, stage).exists()  # it would lead there again


def test_what_was_left_of_a_finished_stage_is_swept_up(world):
    first, second = stages(world)
    world.shop.obtain(WorkItem(first))
    for stage in (first, second):
        file = place(world, stage)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    world.store.sweep()
    assert not place(world, first).exists()
    assert place(world, second).exists()  # that one is still wanted


def test_a_snapshot_that_is_cut_off_is_as_none(world, undisturbed):
    first, second = stages(world)
    world.shop.obtain(WorkItem(first))
    file = place(world, second)
    file.parent.mkdir()
    file.write_bytes(b"\x10\x00")
    world.shop.obtain(WorkItem(second))
    assert theta(world, second) == theta(undisturbed, second)


def test_a_snapshot_of_another_version_says_what_to_do(world):
    first, second = stages(world)
    world.shop.obtain(WorkItem(first))
    file = place(world, second)
    file.parent.mkdir()
    save_file({"theta": torch.zeros(1)}, file, {"about": json.dumps({"version": "0.7"})})
    with pytest.raises(OtherVersion, match=r"layout 0\.7.*remove it to learn the stage from its start"):
        world.shop.obtain(WorkItem(second))


def test_a_snapshot_that_cannot_be_written_does_not_end_the_stage(world, undisturbed, monkeypatch):
    _, second = stages(world)
    world.shop.rhythm = Rhythm(steps=2)
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.warns(UserWarning, match=r"goes on without a snapshot: cannot write .*disk full"):
        world.shop.obtain(WorkItem(second))
    assert theta(world, second) == theta(undisturbed, second)


def test_who_sees_another_snapshot_than_the_lead_does_not_go_on(world):
    first, second = stages(world)
    world.shop.obtain(WorkItem(first))
    world.shop.lead = lambda compute: [0.5] if (found := compute()) == [] else found
    with pytest.raises(RuntimeError, match="a snapshot of 0 steps here, 1 at the lead"):
        world.shop.learn(second)


def test_a_memory_may_hold_plain_lists():
    assert checkpoints.plain({"seen": [1, 2], "none": [], "anchor": [torch.zeros(1)], "b": 1}) == {
        "seen": [1, 2],
        "none": [],
        "b": 1,
    }


def test_on_a_notice_it_is_kept_at_once_and_not_on_every_step(world):
    _, second = stages(world)
    kept = []
    clock = iter(range(1000))  # one second a look
    world.shop.rhythm = Rhythm(notice=lambda: True, clock=lambda: float(next(clock)))
    world.shop.tick = lambda stage, done, steps: kept.append((stage.task, done, place(world, stage).exists()))
    world.shop.obtain(WorkItem(second))
    assert kept[0] == ("ones", 1, True)


def test_when_a_snapshot_is_due():
    now = [0.0]
    rhythm = Rhythm(steps=100, minutes=10, notice=lambda: False, clock=lambda: now[0])
    rhythm.begin(0)
    assert rhythm.verdict(100) == "due"
    assert rhythm.verdict(1) == "ask"
    assert rhythm.verdict(2) == ""  # it was asked for a moment ago
    now[0] = ASK_S
    assert rhythm.verdict(3) == "ask"
    now[0] = 600.0
    assert rhythm.verdict(4) == "due"
    rhythm.kept(4)
    assert rhythm.verdict(5) == ""
    now[0] = 600.0 + NOTICE_S
    assert rhythm.verdict(6) == "ask"
    assert Rhythm().verdict(10**9) == ""
