"""Stages are trained and evaluated: on a learner of one weight, with every number worked out by hand."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from dgg_ray.core.errors import NonFiniteError
from dgg_ray.core.stage import WorkItem, untouched_stage
from dgg_ray.core.strategy import Strategy, replay_sample
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.joint import Joint
from dgg_ray.strategies.replay import Replay
from dgg_ray.training.batches import shuffled_batches
from dgg_ray.training.loop import loss_curve


def theta(world, stage):
    world.runner.load_finished(stage)
    return world.learner.theta.item()


def test_a_stage_starts_where_its_parent_ended(world):
    # rate 0.5, one step each: 0 → 0.5·1 = 0.5 → 0.5 + 0.5·(4 - 0.5) = 2.25
    first, second = world.stages_of("ones", "fours", learning_rate=0.5)
    world.runner.run(WorkItem(first))
    world.runner.run(WorkItem(second))
    assert theta(world, first) == 0.5
    assert theta(world, second) == 2.25


def test_missing_parents_are_trained_first(world):
    stages = world.stages_of("ones", "fours", "nines", learning_rate=0.5)
    world.runner.run(WorkItem(stages[-1]))
    assert world.learner.begun == ["ones", "fours", "nines"] or set(world.learner.begun) == {
        "ones",
        "fours",
        "nines",
    }
    assert theta(world, stages[-1]) == pytest.approx(2.25 + 0.5 * (9 - 2.25))
    assert all(world.store.record(stage) for stage in stages)


def test_a_stored_stage_is_not_trained_again(world):
    item = WorkItem(world.stages_of("ones")[0], (world.evaluation("ones"),))
    world.runner.run(item)
    taught = len(world.learner.taught)
    world.runner.run(item)
    assert len(world.learner.taught) == taught


def test_later_evaluations_need_no_training(world):
    (stage,) = world.stages_of("ones")  # rate 1: θ = 1 after one step
    world.runner.run(WorkItem(stage, (world.evaluation("ones"),)))
    taught = len(world.learner.taught)
    world.runner.run(
        WorkItem(
            stage,
            (world.evaluation("ones"), world.evaluation("fours"), world.evaluation("ones", "validation")),
        )
    )

    scores = {(c["task"], c["split"]): c["score"] for c in world.store.score_entries(stage).values()}
    assert scores == {("ones", "test"): 1.0, ("fours", "test"): 0.0, ("ones", "validation"): 1.0}
    assert len(world.learner.taught) == taught


def test_the_base_model_is_evaluated_without_training(world):
    base = untouched_stage("model")
    world.runner.run(WorkItem(base, (world.evaluation("ones"),)))
    assert [c["score"] for c in world.store.score_entries(base).values()] == [0.0]
    assert world.learner.taught == []


def test_guidance_pulls_halfway_back(world):
    # rate 0.5, two epochs of one batch. First task, answers 1: θ = 0 → 0.5 → 0.75 = θ*.
    # Second, answers 4: step 0: d = 0, θ = 0.75 + 0.5 · 3.25 = 2.375
    #                    step 1: g = -1.625, d = 1.625 = ĝ: they cancel, θ stays
    first, second = world.stages_of("ones", "fours", strategy=DGG(alpha=1.0), learning_rate=0.5, epochs=2)
    world.runner.run(WorkItem(first))
    assert theta(world, first) == 0.75
    world.runner.run(WorkItem(second))
    assert theta(world, second) == 2.375


def test_replay_trains_on_old_examples_among_the_new(world):
    first, second = world.stages_of("fours", "ones", strategy=Replay(buffer=2))
    world.runner.run(WorkItem(first))
    world.learner.taught.clear()
    world.runner.run(WorkItem(second))
    shown = sorted(world.learner.taught)
    assert len(shown) == 2 + 2
    assert [name for name in shown if name.startswith("ones")] == ["ones-train-0", "ones-train-1"]


def test_a_larger_buffer_contains_every_smaller_one(world):
    ids = [[e.id for e in replay_sample(world.tasks["fours"], m, seed=5)] for m in (0, 1, 2, 3, 99)]
    assert [len(i) for i in ids] == [0, 1, 2, 3, 3]
    assert all(large[: len(small)] == small for small, large in pairwise(ids))


def test_joint_trains_all_tasks_in_one_stage(world):
    (stage,) = world.stages_of("ones", "fours", "nines", strategy=Joint(), learning_rate=1.0)
    world.runner.run(WorkItem(stage))
    assert theta(world, stage) == pytest.approx((1 + 1 + 4 + 4 + 4 + 9) / 6)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own(world):
    (stage,) = world.stages_of("fours", epochs=4, batch_size=2)
    batches = list(shuffled_batches(world.tasks["fours"].examples["train"], stage))
    assert [len(batch) for batch in batches] == [2, 1] * 4
    epochs = [[e.id for b in batches[i : i + 2] for e in b] for i in range(0, 8, 2)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_non_finite_loss_ends_the_stage_with_its_step(world):
    # rate 1e30: θ overflows float32 in the second step
    (stage,) = world.stages_of("nines", learning_rate=1e30, epochs=3)
    with pytest.raises(
        NonFiniteError, match=r"step \d of 3 while training nines; lower training.learning_rate"
    ):
        world.runner.run(WorkItem(stage))
    assert world.store.record(stage) is None


def test_weights_that_overflow_in_the_last_step_are_not_published(world):
    (stage,) = world.stages_of("nines", learning_rate=1e38)  # one step; the loss before it is finite

    def overflow(batch, step, edit, hooks):
        world.learner.theta.fill_(float("inf"))
        return 1.0

    world.learner.step = overflow
    with pytest.raises(NonFiniteError, match="last step of nines"):
        world.runner.run(WorkItem(stage))
    assert world.store.record(stage) is None


def test_a_damaged_parent_is_trained_again_first(world):
    first, second = world.stages_of("ones", "fours", learning_rate=0.5)
    world.runner.run(WorkItem(first))
    (world.store.open(first) / "adapter" / "theta.safetensors").write_bytes(b"noise")
    with pytest.warns(UserWarning, match="is damaged"):
        world.runner.run(WorkItem(second))
    assert theta(world, second) == 2.25


@dataclass(frozen=True)
class Remembering(Strategy):
    """Counts the tasks seen, from stage to stage."""

    def load_state(self, state):
        self.memory.update(state)

    def state(self):
        return {"seen": self.memory.get("seen", torch.zeros(1)) + 1}


def test_a_strategys_state_reaches_the_next_stage_through_the_store(world):
    stages = world.stages_of("ones", "fours", "nines", strategy=Remembering())
    for stage in stages:
        world.runner.run(WorkItem(stage))
    from safetensors.torch import load_file

    states = [load_file(world.store.open(s) / "strategy.safetensors")["seen"].item() for s in stages]
    assert states == [1.0, 2.0, 3.0]


def test_on_step_is_called_after_every_step(world):
    calls = []
    world.runner.on_step = lambda stage, done, steps: calls.append((stage.task, done, steps))
    (stage,) = world.stages_of("fours", batch_size=2, epochs=2)
    world.runner.run(WorkItem(stage))
    assert calls == [("fours", i, 4) for i in (1, 2, 3, 4)]


def test_stages_and_evaluations_are_stored_with_their_origin(world):
    world.runner.origin = {"study": "toy", "workers": "1xcpu1-auto"}
    (stage,) = world.stages_of("ones")
    world.runner.run(WorkItem(stage, (world.evaluation("ones"),)))
    for record in (world.store.record(stage), *world.store.evaluation_records(stage.key)):
        assert (record["study"], record["workers"]) == ("toy", "1xcpu1-auto")
        assert record["bytes"] > 0


def test_a_stage_is_stored_with_its_loss_curve(world):
    # rate 0.5, two epochs of a batch of answers 1: θ = 0 → 0.5 → 0.75; the loss (θ - 1)²/2 is 1/8, then 1/32
    (stage,) = world.stages_of("ones", learning_rate=0.5, epochs=2)
    world.runner.run(WorkItem(stage))
    assert world.store.record(stage)["loss"]["curve"] == pytest.approx([1 / 8, 1 / 32])


def test_a_long_loss_curve_is_reduced_to_means_over_equal_spans():
    assert loss_curve([6.0, 2.0, 3.0, 1.0, 0.0], points=2) == [4.0, pytest.approx(4 / 3, rel=1e-3)]
    assert loss_curve([0.123456, 2.0], points=9) == [0.1235, 2.0]
    assert len(loss_curve([1.0] * 12_345)) == 200
    assert loss_curve([]) == []
