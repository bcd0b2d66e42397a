"""Interrupted stages are resumed from their checkpoint, and nothing is left behind."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgg_ray.core.errors import IncompatibleCheckpointError, NonFiniteError, StageError
from dgg_ray.core.stage import WorkItem
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training import checkpoints
from dgg_ray.training.checkpoints import AFTER_NOTICE_S, ASK_EVERY_S, CheckpointPolicy


class PreemptedError(Exception):
    """The machine is taken away."""


def checkpoint_file(world, stage):
    return world.store.backend.root / checkpoints.object_name(stage)


def stages(world):
    """Two tasks, six steps each; the second guided, so that it has an anchor to remember."""
    return world.stages_of("ones", "fours", strategy=DGG(alpha=1.0), learning_rate=0.3, epochs=6)


def stop_at(world, step):
    def on_step(stage, done, steps):
        if stage.earlier and done == step:
            raise PreemptedError

    world.runner.on_step = on_step


def theta(world, stage):
    folder = world.store.open(stage)
    return load_file(folder / "adapter" / "theta.safetensors")["theta"].item()


@pytest.fixture()
def uninterrupted(tmp_path_factory):
    from toy_world import World

    world = World(tmp_path_factory.mktemp("uninterrupted"))
    _, second = stages(world)
    world.runner.run(WorkItem(second))
    return world


def test_an_interrupted_stage_is_resumed_from_its_checkpoint(world, uninterrupted):
    first, second = stages(world)
    world.runner.run(WorkItem(first))
    before = len(world.learner.taught)
    world.runner.checkpoint_policy = CheckpointPolicy(steps=2)
    stop_at(world, 5)
    with pytest.raises(PreemptedError):
        world.runner.run(WorkItem(second))
    world.runner.on_step = lambda *_: None
    world.runner.run(WorkItem(second))

    # three examples a step: five steps, then the fifth again and the sixth, from the checkpoint after four
    assert len(world.learner.taught) - before == 3 * (5 + 2)
    assert theta(world, second) == theta(uninterrupted, second)
    resumed, whole = (w.store.record(second) for w in (world, uninterrupted))
    assert resumed["loss"] == whole["loss"]
    assert resumed["cost"]["steps"] == whole["cost"]["steps"] == 6


def test_the_anchor_is_where_the_stage_started_not_where_it_was_resumed(world, uninterrupted):
    first, second = stages(world)
    world.runner.run(WorkItem(first))
    start = theta(world, first)
    world.runner.checkpoint_policy = CheckpointPolicy(steps=1)
    stop_at(world, 3)
    with pytest.raises(PreemptedError):
        world.runner.run(WorkItem(second))
    checkpoint = checkpoints.read(world.store, second)
    assert checkpoint.tensors["anchor"].item() == pytest.approx(start)
    assert checkpoint.tensors["theta"].item() != pytest.approx(start)
    assert checkpoint.memory == {"task": "fours", "seed": 0}
    assert len(checkpoint.losses) == 3


def test_a_checkpoint_is_removed_when_its_stage_is_published(world):
    _, second = stages(world)
    world.runner.checkpoint_policy = CheckpointPolicy(steps=1)
    world.runner.run(WorkItem(second))
    assert list((world.store.backend.root / "checkpoints").iterdir()) == []


def test_a_checkpoint_before_a_non_finite_loss_is_removed_with_the_failure(world):
    (stage,) = world.stages_of("nines", epochs=3)
    world.runner.checkpoint_policy = CheckpointPolicy(steps=1)
    losses = iter([1.0, 1.0, float("nan")])
    world.learner.step = lambda batch, step, edit, hooks: next(losses)
    exists = []
    world.runner.on_step = lambda *_: exists.append(checkpoint_file(world, stage).exists())
    with pytest.raises(NonFiniteError):
        world.runner.run(WorkItem(stage))
    assert exists == [True, True]
    assert not checkpoint_file(world, stage).exists()  # resuming from it would give the same error


def test_sweep_removes_the_checkpoint_of_a_finished_stage_only(world):
    first, second = stages(world)
    world.runner.run(WorkItem(first))
    for stage in (first, second):
        file = checkpoint_file(world, stage)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    world.store.sweep()
    assert not checkpoint_file(world, first).exists()
    assert checkpoint_file(world, second).exists()  # its stage is not finished


def test_a_truncated_checkpoint_is_ignored(world, uninterrupted):
    first, second = stages(world)
    world.runner.run(WorkItem(first))
    file = checkpoint_file(world, second)
    file.parent.mkdir()
    file.write_bytes(b"\x10\x00")
    world.runner.run(WorkItem(second))
    assert theta(world, second) == theta(uninterrupted, second)


def test_a_checkpoint_of_another_version_is_refused_with_advice(world):
    first, second = stages(world)
    world.runner.run(WorkItem(first))
    file = checkpoint_file(world, second)
    file.parent.mkdir()
    save_file({"theta": torch.zeros(1)}, file, {"about": json.dumps({"version": "0.7"})})
    with pytest.raises(
        IncompatibleCheckpointError, match=r"layout 0\.7.*Remove it to train the stage from its start"
    ):
        world.runner.run(WorkItem(second))


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_stage(world, uninterrupted, monkeypatch):
    _, second = stages(world)
    world.runner.checkpoint_policy = CheckpointPolicy(steps=2)
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.warns(UserWarning, match=r"continues without a checkpoint: cannot write .*disk full"):
        world.runner.run(WorkItem(second))
    assert theta(world, second) == theta(uninterrupted, second)


def test_a_worker_that_sees_another_checkpoint_than_rank_0_does_not_train(world):
    first, second = stages(world)
    world.runner.run(WorkItem(first))

    def one_loss_on_rank0(function, *arguments):
        result = function(*arguments)
        return [0.5] if result == [] else result

    world.runner.on_rank0 = one_loss_on_rank0
    with pytest.raises(RuntimeError, match="this worker sees a checkpoint of 0 steps, rank 0 one of 1"):
        world.runner.train(second)


def test_a_memory_that_no_checkpoint_can_hold_is_named():
    with pytest.raises(StageError, match=r"memory\['logits'\] must be a JSON value, a tensor .* found dict"):
        checkpoints.plain_values({"b": 1, "logits": {"x": torch.zeros(1)}})


def test_a_memory_may_contain_lists_of_plain_values():
    assert checkpoints.plain_values({"seen": [1, 2], "none": [], "anchor": [torch.zeros(1)], "b": 1}) == {
        "seen": [1, 2],
        "none": [],
        "b": 1,
    }


def test_a_preemption_notice_writes_a_checkpoint_at_once(world):
    _, second = stages(world)
    steps = []
    clock = iter(range(1000))  # one second per reading
    world.runner.checkpoint_policy = CheckpointPolicy(notice=lambda: True, clock=lambda: float(next(clock)))
    world.runner.on_step = lambda stage, done, total: steps.append(
        (stage.task, done, checkpoint_file(world, stage).exists())
    )
    world.runner.run(WorkItem(second))
    assert steps[0] == ("ones", 1, True)


def test_a_checkpoint_is_due_after_steps_minutes_or_a_notice():
    now = [0.0]
    policy = CheckpointPolicy(steps=100, minutes=10, notice=lambda: False, clock=lambda: now[0])
    policy.begin(0)
    assert policy.decide(100) == "write"
    assert policy.decide(1) == "ask"
    assert policy.decide(2) == "skip"  # the last question was a moment ago
    now[0] = ASK_EVERY_S
    assert policy.decide(3) == "ask"
    now[0] = 600.0
    assert policy.decide(4) == "write"
    policy.written(4)
    assert policy.decide(5) == "skip"
    now[0] = 600.0 + AFTER_NOTICE_S
    assert policy.decide(6) == "ask"
    assert CheckpointPolicy().decide(10**9) == "skip"
