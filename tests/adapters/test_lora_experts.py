"""Token-routed experts against the dense formula, on layers of the embedded model."""

import pytest
import torch
from method_samples import MethodWorld, flat, make_learner, make_tasks

from dgg_ray.adapters._lora_layers import lora_modules
from dgg_ray.adapters.lora_experts import LoraExperts
from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import Adapter, AdapterLayout, StageSetup


@pytest.fixture(scope="module")
def learner():
    return make_learner()


@pytest.fixture(scope="module")
def tasks():
    return make_tasks()


@pytest.fixture
def world(learner, tasks, tmp_path):
    return MethodWorld(learner, tasks, tmp_path / "store")


def started(world, layout, rank=4, seed=0, dropout=0.0):
    """The learner at the start of a first stage."""
    adapter = Adapter(rank=rank, dropout=dropout)
    world.learner.start(StageSetup(adapter, world.training, 4, seed, "words", None, layout))
    return lora_modules(world.learner.peft)


def fill(parameters):
    """Give every trained tensor values of its own, so that nothing is 0."""
    draws = torch.Generator().manual_seed(1)
    for p in parameters:
        p.data.copy_(torch.randn(p.shape, generator=draws) * 0.2)


def loss_and_gradient(world, examples):
    learner = world.learner
    inputs = learner.inputs_of([learner.encode(e) for e in examples])
    learner.peft.eval()
    loss = learner.loss(**inputs)
    return loss.detach(), torch.autograd.grad(loss, learner.loss.trained)


def test_the_output_is_the_dense_sum_over_experts(world):
    module = started(world, LoraExperts(2))[0]
    fill(world.learner.loss.trained)
    layer = module.layer.eval()
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(2))
    y = layer.base_layer(x)
    for n in range(3):
        for s in range(5):
            logits = layer.lora_router.weight @ x[n, s]
            gates = logits.exp() / logits.exp().sum()
            for e in range(2):
                a, b = module.a.weight[2 * e : 2 * e + 2], module.b.weight[:, 2 * e : 2 * e + 2]
                y[n, s] += 2.0 * gates[e] * (b @ (a @ x[n, s]))  # alpha / r of all experts is 2
    assert torch.allclose(layer(x), y, atol=1e-5)


def test_the_router_reads_the_input_before_dropout(world):
    module = started(world, LoraExperts(2), dropout=0.5)[0]
    fill(world.learner.loss.trained)
    layer = module.layer.train()
    x = torch.ones(1, 64, layer.in_features)
    seen = []
    hook = module.b.register_forward_pre_hook(lambda b, inputs: seen.append(inputs[0]))
    drop = layer.lora_dropout["default"].register_forward_hook(lambda d, i, out: seen.append(out))
    layer(x)
    hook.remove()
    drop.remove()
    dropped, hidden = seen
    assert (dropped == 0).any()
    gates = (x @ layer.lora_router.weight.T).softmax(-1).repeat_interleave(2, dim=-1)
    assert torch.allclose(hidden, gates * (dropped @ module.a.weight.T), atol=1e-5)


def test_one_expert_is_lora_with_the_same_weights(world, tasks):
    batch = tasks["words"].examples["train"][:4]
    started(world, LoraExperts(1))
    fill(world.learner.loss.trained)
    names = world.learner.names
    values = dict(zip(names, [p.detach().clone() for p in world.learner.loss.trained], strict=True))
    loss, gradient = loss_and_gradient(world, batch)
    for name, g in zip(names, gradient, strict=True):
        if "router" in name:
            assert not g.any()  # one gate is 1 whatever the router says
    started(world, None)
    for name, p in zip(world.learner.names, world.learner.loss.trained, strict=True):
        p.data.copy_(values[name])
    plain_loss, plain = loss_and_gradient(world, batch)
    assert torch.equal(loss, plain_loss)
    own = [g for name, g in zip(names, gradient, strict=True) if "router" not in name]
    assert torch.equal(flat(own), flat(plain))


def test_a_token_is_routed_by_itself_whatever_else_is_in_the_batch(world):
    module = started(world, LoraExperts(4))[0]
    fill(world.learner.loss.trained)
    layer = module.layer.eval()
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(2))
    whole = layer(x)
    for n in range(3):
        for s in range(5):
            assert torch.allclose(layer(x[n : n + 1, s : s + 1])[0, 0], whole[n, s], atol=1e-5)


def test_the_router_gets_a_gradient(world, tasks):
    started(world, LoraExperts(2))
    fill(world.learner.loss.trained)
    _, gradient = loss_and_gradient(world, tasks["words"].examples["train"][:4])
    routers = [g for name, g in zip(world.learner.names, gradient, strict=True) if "lora_router" in name]
    modules = lora_modules(world.learner.peft)
    assert len(routers) == len(modules)
    assert all(g.any() for g in routers)


def test_the_first_weights_are_those_of_the_released_code_and_drawn_from_the_seed(world):
    modules = started(world, LoraExperts(4), rank=8)
    first = [p.detach().clone() for p in world.learner.loss.trained]
    a = flat([module.a.weight.detach() for module in modules])
    assert float(a.std()) == pytest.approx(0.01, rel=0.05)
    assert not flat([module.b.weight.detach() for module in modules]).any()
    for module in modules:
        router = module.layer.lora_router.weight.detach()
        bound = module.layer.in_features**-0.5
        assert 0.9 * bound < float(router.max()) <= bound
        assert -bound <= float(router.min()) < -0.9 * bound
    alike = [m for m in modules if m.a.weight.shape == modules[0].a.weight.shape]
    assert not torch.equal(alike[0].a.weight, alike[1].a.weight)
    started(world, LoraExperts(4), rank=8)
    assert torch.equal(flat(first), flat([p.detach() for p in world.learner.loss.trained]))
    started(world, LoraExperts(4), rank=8, seed=1)
    assert not torch.equal(flat(first), flat([p.detach() for p in world.learner.loss.trained]))


def test_parameters_are_those_of_a_lora_and_a_router_for_each_layer(world):
    modules = started(world, LoraExperts(2))
    world.learner.gather()
    widths = [(m.layer.in_features, m.layer.out_features) for m in modules]
    expected = sum(4 * (d_in + d_out) + 2 * d_in for d_in, d_out in widths)
    assert world.learner.parameter_counts() == {"trainable": expected, "stored": expected}


def test_the_rank_is_rounded_down_to_a_multiple_of_the_experts(world):
    ranks = [LoraExperts(6).rank_for(rank, 3, "trainable") for rank in (96, 17, 6, 5)]
    assert ranks == [96, 12, 6, 0]
    with pytest.raises(StageError, match=r"adapter\.rank is 4, which 3 experts"):
        started(world, LoraExperts(3))
    world.learner.layout = AdapterLayout()


def test_experts_that_were_detached_leave_a_plain_lora(world, tasks):
    batch = tasks["words"].examples["train"][:4]
    started(world, None)
    plain, _ = loss_and_gradient(world, batch)
    started(world, LoraExperts(2))
    modules = started(world, None)
    assert not any("router" in name for name, _ in world.learner.peft.named_parameters())
    assert not modules[0].a._forward_hooks
    assert torch.equal(loss_and_gradient(world, batch)[0], plain)


def test_an_expert_is_counted_for_each_token_that_has_it_among_its_largest_gates(world, tasks):
    module = started(world, layout := LoraExperts(4))[0]
    fill(world.learner.loss.trained)
    layer = module.layer.eval()
    x = torch.randn(2, 7, layer.in_features, generator=torch.Generator().manual_seed(2))
    with layout.counting(top=2) as counts:
        layer(x)
    layer(x)  # no longer counted
    logits = (x @ layer.lora_router.weight.T).reshape(14, 4).tolist()
    expected = [0] * 4
    for row in logits:
        for e in sorted(range(4), key=lambda e: -row[e])[:2]:
            expected[e] += 1
    assert counts[module.name].tolist() == expected
    assert sum(expected) == 28


def test_a_route_mixes_the_gates_of_a_task_with_those_of_the_token(world):
    module = started(world, layout := LoraExperts(2, token_share=0.25))[0]
    fill(world.learner.loss.trained)
    layer = module.layer.eval()
    table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    layout.set_task_gates([table] * len(layout.module_names))
    x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(2))
    layout.set_route(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    routed = layer(x)
    layout.set_route(None)
    own = (x @ layer.lora_router.weight.T).softmax(-1)
    gates = 0.25 * own + 0.75 * torch.stack([table[1], table[0]])[:, None]
    hidden = (x @ module.a.weight.T) * gates.repeat_interleave(2, dim=-1)
    assert torch.allclose(routed, layer.base_layer(x) + 2.0 * hidden @ module.b.weight.T, atol=1e-5)
    assert not torch.allclose(routed, layer(x), atol=1e-3)
