"""Branches against the dense formula, on layers of the embedded model."""

import pytest
import torch
from method_samples import MethodWorld, make_learner, make_tasks

from dgg_ray.adapters._lora_layers import lora_modules
from dgg_ray.adapters.lora_branches import LoraBranches
from dgg_ray.core.interfaces import Adapter, StageSetup


@pytest.fixture(scope="module")
def learner():
    return make_learner()


@pytest.fixture(scope="module")
def tasks():
    return make_tasks()


@pytest.fixture
def world(learner, tasks, tmp_path):
    return MethodWorld(learner, tasks, tmp_path / "store")


def started(world, layout):
    """The layers at the start of a first stage, with values that are not 0."""
    adapter = Adapter(rank=layout.rank_for(8, 2, "trainable"))
    world.learner.start(StageSetup(adapter, world.training, 4, 0, "words", None, layout))
    draws = torch.Generator().manual_seed(1)
    for p in world.learner.loss.trained:
        p.data.copy_(torch.randn(p.shape, generator=draws) * 0.2)
    return lora_modules(world.learner.peft)


@pytest.mark.parametrize("routed", [False, True])
def test_the_output_is_the_dense_sum_over_the_chosen_branches(world, routed):
    module = started(world, layout := LoraBranches(branches=4, top=2))[0]
    layer = module.layer.eval()
    x = torch.randn(3, 6, layer.in_features, generator=torch.Generator().manual_seed(2))
    prompts = [(0, 4), (1, 5), (2, 3)]
    layout.before_forward({"input_ids": torch.zeros(3, 6)}, prompts)
    routers = [layer.lora_router.weight] * 3
    if routed:  # the first example by the router of an earlier task
        layout.parts["routers"][module.name] = routers[0].detach()[None] * -1
        layout.set_route(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
        routers[0] = -routers[0]
    y = layer.base_layer(x)
    for n, (first, end) in enumerate(prompts):
        logits = routers[n] @ x[n, first:end].mean(0)
        best = sorted(range(4), key=lambda i: -logits.tolist()[i])[:2]
        exps = logits[best].exp()
        for i, share in zip(best, exps / exps.sum(), strict=True):
            y[n] += 2.0 * share * x[n] @ module.a.weight.T @ layer.lora_branches[i].T
    assert torch.allclose(layer(x), y, atol=1e-5)
    later = torch.randn(3, 1, layer.in_features, generator=torch.Generator().manual_seed(3))
    of_prompt = layout.parts["kept"][module.name]
    written = layer(later)  # a token of the answer has the weights of its prompt
    hidden = (later @ module.a.weight.T)[:, :, None] * of_prompt[:, None, :, None]
    added = 2.0 * hidden.flatten(2) @ torch.cat(list(layer.lora_branches), 1).T
    assert torch.allclose(written, layer.base_layer(later) + added, atol=1e-5)


def test_the_answer_has_no_part_in_the_choice(world, tasks):
    module = started(world, layout := LoraBranches(branches=4, top=2))[-1]
    learner, example = world.learner, tasks["words"].examples["train"][0]
    learner.peft.eval()
    with torch.no_grad():
        learner.loss(**learner.inputs_of([learner.encode(example)]))
        with_answer = layout.parts["kept"][module.name]
        inputs = learner.inputs_of([learner.encode(example)], prompts_only=True)
        learner.peft(**inputs)
    assert torch.allclose(layout.parts["kept"][module.name], with_answer, atol=1e-5)


def test_router_branches_and_a_get_a_gradient(world, tasks):
    started(world, LoraBranches(branches=2, top=2))
    learner = world.learner
    learner.peft.eval()
    loss = learner.loss(
        **learner.inputs_of([learner.encode(e) for e in tasks["words"].examples["train"][:4]])
    )
    found = torch.autograd.grad(loss, learner.loss.trained)
    assert all(g.any() for g in found)
    kinds = {name.split(".lora_")[1].split(".")[0] for name in learner.names}
    assert kinds == {"A", "branches", "router"}


def test_the_most_used_branches_are_frozen_and_some_are_always_left(world):
    name = started(world, layout := LoraBranches(branches=4, top=1))[0].name
    for usage, frozen in [
        ([0.1, 3.0, 2.0, 0.0], [1]),
        ([0.1, 3.0, 2.0, 0.0], [1]),  # the same again: nothing new is frozen
        ([5.0, 0.0, 0.0, 0.0], [0, 1]),
        ([0.0, 0.0, 0.0, 1.0], [0, 1, 3]),
        ([0.0, 0.0, 1.0, 0.0], [0, 1, 3]),  # the last one stays
    ]:
        layout.freeze({name: torch.tensor(usage)})
        assert layout.parts["freeze_next"][name].nonzero()[:, 0].tolist() == frozen


def test_parameters_of_a_large_model_are_as_many_as_the_notes_say():
    """LLaVA-1.5 7B: 222 M numbers with its projector, at rank 128 and eight branches."""
    layout, hidden, wide = LoraBranches(), 4096, 11008
    rank = layout.rank_for(128, 8, "trainable")
    linears = [(hidden, hidden)] * 4 + [(hidden, wide)] * 2 + [(wide, hidden)]
    adapter = 32 * sum(rank * d_in + 8 * rank * d_out + 8 * d_in for d_in, d_out in linears)
    projector = 1024 * hidden + hidden + hidden * hidden + hidden
    assert round((adapter + projector) / 1e6) == 222


def test_parameters_are_those_of_a_shared_a_all_branches_and_a_router(world):
    modules = started(world, LoraBranches(branches=4, top=1))
    world.learner.gather()
    widths = [(m.layer.in_features, m.layer.out_features) for m in modules]
    expected = sum(2 * d_in + 4 * 2 * d_out + 4 * d_in for d_in, d_out in widths)
    assert world.learner.parameter_counts()["trainable"] == expected
