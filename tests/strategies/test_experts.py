"""Methods with experts, branches and expert modules, on the embedded model."""

from dataclasses import replace

import pytest
import torch
from marked import first_quick
from method_samples import ORDER, flat, same

from dgg_ray.core.interfaces import Adapter
from dgg_ray.strategies.branch_lora import BranchLoRA
from dgg_ray.strategies.cl_moe import CLMoE
from dgg_ray.strategies.cl_moe_like import CLMoELike
from dgg_ray.strategies.d_mole import DMoLE, LayerScores
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.moe_lora import MoELoRA

CL_MOE = CLMoELike(experts=2, top_experts=1, counted_examples=4, prototype_examples=8)
BRANCHES = BranchLoRA(branches=4, top_branches=1, watched_examples=4, prototype_examples=8)
D_MOLE = DMoLE(scored_examples=2, recogniser_epochs=200)
ALL = [MoELoRA(experts=2), CL_MOE, BRANCHES, D_MOLE]


def named(strategy):
    return type(strategy).__name__


@pytest.fixture
def world(world):
    return replace(world, adapter=Adapter(rank=4))


@pytest.fixture
def own_world(own_world):
    return replace(own_world, adapter=Adapter(rank=4))


@pytest.mark.parametrize("strategy", first_quick(ALL), ids=named)
def test_an_interrupted_stage_ends_with_the_same_bytes(world, strategy):
    assert world.ends_the_same_when_interrupted(strategy, ORDER[:2])


@pytest.mark.parametrize("strategy", first_quick(ALL), ids=named)
def test_a_stage_answers_alike_after_training_and_from_the_store(own_world, strategy):
    from dgg_ray.core.stage import Evaluation, WorkItem

    stages = own_world.stages(strategy)
    own_world.runner().run(WorkItem(stages[0]))
    right_away = Evaluation("words", "test", "right away")
    own_world.runner().run(WorkItem(stages[1], (right_away,)))
    ((_, folder),) = own_world.store.stored_answers(stages[1], ["right away"])
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    own_world.train(Finetune(), order=("shapes",))  # another layout on the same learner
    assert own_world.evaluate(stages[1], "words") == rows


@pytest.mark.parametrize("strategy", ALL, ids=named)
@pytest.mark.whole
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


# -- CL-MoE as described ---------------------------------------------------------------------------


def test_a_merge_moves_experts_towards_the_old_ones_and_leaves_the_routers(own_world, monkeypatch):
    without = replace(CL_MOE, old_share=0.0, old_share_specific=0.0)
    halves = torch.tensor([0.25, 1.0])
    monkeypatch.setattr(CLMoELike, "old_shares", lambda self, before, counts: halves.expand(counts.shape))
    first, second = own_world.train(CL_MOE)
    old, merged = own_world.files(first), own_world.files(second)
    monkeypatch.setattr(CLMoELike, "old_shares", lambda self, before, counts: 0 * halves.expand(counts.shape))
    trained = own_world.files(own_world.train(without)[1])
    for name, new in trained.items():
        if "counts" in name:
            continue
        expected = new.clone()
        if "lora_A" in name:  # rank 4 of two experts: rows 0 and 1, rows 2 and 3
            expected[:2] = 0.25 * old[name][:2] + 0.75 * new[:2]
            expected[2:] = old[name][2:]
        elif "lora_B" in name:
            expected[:, :2] = 0.25 * old[name][:, :2] + 0.75 * new[:, :2]
            expected[:, 2:] = old[name][:, 2:]
        assert torch.allclose(merged[name], expected, atol=1e-7), name
        assert ("router" in name) == torch.equal(merged[name], new)


def test_an_old_share_of_one_restores_the_old_experts(world):
    first, second = world.train(replace(CL_MOE, old_share=1.0, old_share_specific=1.0))
    old, merged = world.files(first), world.files(second)
    experts = [name for name in old if "lora_A" in name or "lora_B" in name]
    assert experts
    assert all(torch.equal(old[name], merged[name]) for name in experts)
    assert any(not torch.equal(old[name], merged[name]) for name in old if "router" in name)


def test_an_expert_is_specific_if_the_new_task_alone_uses_it():
    strategy = CLMoELike(experts=3, top_experts=1, old_share=0.7, old_share_specific=0.3)
    before = torch.tensor([[[9, 1, 0], [1, 5, 1]], [[0, 7, 0], [2, 8, 2]]])  # two tasks, two layers
    counts = torch.tensor([[0, 0, 4], [0, 6, 0]])
    shares = strategy.old_shares(before, counts)
    assert torch.allclose(shares, torch.tensor([[0.7, 0.7, 0.3], [0.7, 0.7, 0.7]]))


def test_a_tasks_counts_cover_every_token_of_its_examples(world, tasks):
    first, second = world.train(CL_MOE)
    (one,), two = (world.files(s)["strategy.safetensors/counts"] for s in (first, second))
    assert torch.equal(two[0], one)
    layers = len({name for name in world.files(first) if "router" in name})
    assert one.shape == (layers, 2)
    assert len(set(one.sum(1).tolist())) == 1  # every layer sees the same tokens


def test_an_example_gets_the_gates_of_the_task_whose_features_are_nearest(world, tasks):
    stages = world.train(CL_MOE)
    for k, task in enumerate(("words", "digits")):
        rows = world.evaluate(stages[1], task)
        assert [row["slot"] for row in rows] == [k] * 4
    world.runner().load_finished(stages[1])
    world.runner().router(stages[1])
    counts = world.files(stages[1])["strategy.safetensors/counts"].float()
    layout = world.learner.layout
    for number, name in enumerate(layout.module_names):
        expected = counts[:, number] / counts[:, number].sum(1, keepdim=True)
        assert torch.equal(layout.parts["task_gates"][name], expected)


def test_the_losses_of_examples_are_those_of_the_model_one_by_one(world, tasks):
    (stage,) = world.train(Finetune(), order=("words",))
    context, examples = world.loaded(stage), tasks["words"].examples["train"][:3]
    losses = context.losses(examples)
    parameters = world.learner.loss.trained
    found = torch.autograd.grad(losses[1], parameters)
    tokens = [len(world.learner.encode(e).answer) for e in examples]
    assert torch.allclose(flat(found), flat(context.gradient(examples[1:2])), atol=1e-6)
    with torch.no_grad():
        together = world.learner.loss(**world.learner.inputs_of([world.learner.encode(e) for e in examples]))
    assert float(losses.detach() @ torch.tensor(tokens, dtype=torch.float32)) == pytest.approx(
        float(together), rel=1e-5
    )


# -- BranchLoRA ------------------------------------------------------------------------------------


def test_a_frozen_branch_stays_as_it_was_and_every_task_has_a_router(world):
    stages = world.train(BRANCHES, order=("words", "digits", "shapes"))
    first, second, third = (world.files(stage) for stage in stages)
    layers = [name.removesuffix(".routers") for name in third if name.endswith(".routers")]
    assert layers
    for layer in layers:
        (frozen,) = first[f"{layer}.frozen"].nonzero()[:, 0].tolist()
        as_trained = first[f"{layer}.lora_branches.{frozen}"]
        for later in (second, third):
            assert torch.equal(later[f"{layer}.branch_{frozen}"], as_trained)
            assert f"{layer}.lora_branches.{frozen}" not in later
        assert (third[f"{layer}.frozen"] >= second[f"{layer}.frozen"]).all()
        routers = [files[f"{layer}.lora_router.weight"] for files in (first, second, third)]
        assert torch.equal(third[f"{layer}.routers"], torch.stack(routers[:2]))
        assert not torch.equal(routers[0], routers[1])


def test_an_example_has_the_router_of_the_task_whose_keys_are_most_similar(world, tasks):
    stages = world.train(BRANCHES)
    for k, task in enumerate(("words", "digits")):
        assert [row["slot"] for row in world.evaluate(stages[1], task)] == [k] * 4


# -- D-MoLE ----------------------------------------------------------------------------------------


def test_half_of_the_layers_get_an_expert_of_double_rank(world):
    stages = world.train(D_MOLE)
    assert stages[0].adapter.rank == 8
    chosen = []
    for stage in stages:
        b = {name: t for name, t in world.files(stage).items() if name.endswith("lora_B.weight")}
        with_expert = {name for name, t in b.items() if t.any()}
        assert len(with_expert) == int(len(b) / 2 + 0.5)
        chosen.append(with_expert)
    frozen = {name: t for name, t in world.files(stages[1]).items() if name.endswith("frozen_B")}
    assert sum(bool(t.any()) for t in frozen.values()) == len(chosen[0])


def test_a_layers_score_is_the_norm_of_the_gradient_of_its_frozen_weight(world, tasks):
    stages = world.train(D_MOLE)
    context = world.loaded(stages[0], D_MOLE)
    names = context.layout.module_names
    scores = context.fact(LayerScores(tuple(names), 2), "words")["scores"]
    train = tasks["words"].examples["train"]
    from dgg_ray.core import rng

    drawn = [train[i] for i in rng.permutation(16, 0, "words", "layer scores")[:2]]
    weights = [world.learner.peft.get_submodule(name).base_layer.weight.requires_grad_() for name in names]
    with torch.enable_grad(), context.at(None):
        found = torch.autograd.grad(context.losses(drawn).sum(), weights)
    for weight in weights:
        weight.requires_grad_(False)
    assert torch.allclose(scores, torch.stack([g.norm() for g in found]), rtol=1e-4)


def test_an_example_that_no_task_recognises_is_answered_by_the_base_model(world, tasks):
    stages = world.train(D_MOLE)
    for k, task in enumerate(("words", "digits")):
        assert {row["slot"] for row in world.evaluate(stages[1], task)} <= {k, -1}
    rows = world.evaluate(stages[1], "shapes")  # not trained
    assert [row["slot"] for row in rows] == [-1] * 4
    examples = tasks["shapes"].examples["test"]
    world.runner().load_finished(stages[1])
    with world.learner.peft.disable_adapter():
        world.learner.layout.switch(False)
        base = world.learner.answer(examples, 8)
        world.learner.layout.switch(True)
    assert [row["prediction"] for row in rows] == base
    route = world.runner().router(stages[1])(tasks["digits"].examples["train"])
    assert (route[:, 1] == 1).sum() >= 14  # a quantile of 0.99 leaves out the worst one


def test_in_training_the_nearest_earlier_slot_helps_the_examples_that_it_recognises(own_world, monkeypatch):
    def alone(self, examples, tasks):
        return torch.zeros(len(examples), len(tasks))

    def together(self, examples, tasks):
        return torch.ones(len(examples), len(tasks))

    files = []
    for recognised in (alone, together):
        monkeypatch.setattr(DMoLE, "recognised", recognised)
        stages = own_world.train(D_MOLE)
        files.append(own_world.files(stages[1]))
        own_world.store.discard(stages[1].key)
    assert not same(*files)
