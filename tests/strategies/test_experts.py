"""Methods with experts, branches and expert modules, on the embedded model."""

from dataclasses import replace

import pytest
from method_samples import same

from dgg_ray.core.interfaces import Adapter
from dgg_ray.strategies.cl_moe import CLMoE
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.moe_lora import MoELoRA

ALL = [MoELoRA(experts=2)]


def named(strategy):
    return type(strategy).__name__


@pytest.fixture
def world(world):
    return replace(world, adapter=Adapter(rank=4))


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_an_interrupted_stage_ends_with_the_same_bytes(world, strategy):
    stages = world.train(strategy)
    whole = world.files(stages[-1])
    world.store.discard(stages[-1].key)
    world.interrupted(stages[-1], after=1)
    world.train(strategy)
    assert same(whole, world.files(stages[-1]))


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_a_stage_answers_alike_after_training_and_from_the_store(world, strategy):
    from dgg_ray.core.stage import Evaluation, WorkItem

    stages = world.stages(strategy)
    world.runner().run(WorkItem(stages[0]))
    right_away = Evaluation("words", "test", "right away")
    world.runner().run(WorkItem(stages[1], (right_away,)))
    ((_, folder),) = world.store.stored_answers(stages[1], ["right away"])
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    world.train(Finetune(), order=("shapes",))  # another layout on the same learner
    assert world.evaluate(stages[1], "words") == rows


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_a_mixed_batch_is_answered_as_batches_of_one(world, tasks, strategy):
    stages = world.train(strategy)
    runner, learner = world.runner(), world.learner
    examples = [e for name in ("words", "digits") for e in tasks[name].examples["test"]]
    runner.load_finished(stages[-1])
    weights = runner.router(stages[-1])(examples)
    together = learner.answer(examples, 8, weights)
    alone = [
        learner.answer([e], 8, None if weights is None else weights[i : i + 1])[0]
        for i, e in enumerate(examples)
    ]
    assert together == alone


# -- MoELoRA ---------------------------------------------------------------------------------------


def test_experts_and_routers_move_in_both_tasks(world):
    first, second = (world.files(stage) for stage in world.train(MoELoRA(experts=2)))
    assert first.keys() == second.keys()
    assert all((first[name] != second[name]).any() for name in first)


def test_what_tables_call_cl_moe_is_moe_lora_with_six_experts(world):
    world = replace(world, adapter=Adapter(rank=7))
    keys = [stage.key for stage in world.stages(CLMoE())]
    assert keys == [stage.key for stage in world.stages(MoELoRA(experts=6))]
    assert keys != [stage.key for stage in world.stages(MoELoRA(experts=3))]
    assert world.stages(CLMoE())[0].adapter.rank == 6
    plain = replace(world, adapter=Adapter(rank=6)).stages(Finetune())
    assert keys[0] != plain[0].key
