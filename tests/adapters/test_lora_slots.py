"""The layout with one LoRA per task, against dense products and against PEFT's own sums of adapters."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from method_samples import ORDER, TRAINING, MethodWorld, make_learner, make_tasks, same
from peft import PeftModel
from safetensors.torch import load_file

from dgg_ray.adapters._lora_layers import decoder_layer_of, factor_indices, lora_modules
from dgg_ray.adapters._slot_sum import Frozen, SlotSum
from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.core.interfaces import Adapter, StageSetup
from dgg_ray.core.strategy import Strategy
from dgg_ray.models import embedded
from dgg_ray.strategies.finetune import Finetune


@dataclass(frozen=True)
class Slots(Strategy):
    """A fresh LoRA for each task on the frozen ones of the earlier tasks, and nothing else."""

    def layout(self):
        return LoraSlots()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return MethodWorld(make_learner(), make_tasks(), tmp_path_factory.mktemp("slots") / "store")


@pytest.fixture(scope="module")
def stages(world):
    """Three tasks, trained one after another."""
    return world.train(Slots(), ORDER)


def load(world, stage, layout=None, steps=0):
    """The learner with a finished stage, to answer or, with steps, to train another task on it."""
    folder = world.store.open(stage)
    layout = layout or LoraSlots()
    world.learner.start(StageSetup(stage.adapter, TRAINING, steps, 0, "another", folder, layout))
    world.learner.peft.eval()
    return lora_modules(world.learner.peft), layout


def logits(world, examples, route=None, training=False):
    """Logits (n, V) of the answer tokens."""
    learner = world.learner
    inputs = learner.inputs_of([learner.encode(example) for example in examples])
    learner.layout.set_route(route)
    learner.peft.train(training)
    with torch.no_grad():
        found = learner.loss.answer_logits(inputs.pop("labels"), inputs)[0]
    learner.layout.set_route(None)
    learner.peft.eval()
    return found


@contextmanager
def merged(world, modules, product):
    """In the block, W + s · product(module) stands for each layer, without any adapter."""
    weights = {module.name: module.layer.base_layer.weight for module in modules}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for module in modules:
        weights[module.name].data += module.scale * product(module).detach()
    try:
        with world.learner.loss.at(None):
            yield
    finally:
        for name, weight in weights.items():
            weight.data.copy_(before[name])


def slot_products(layout, module):
    """B_k A_k of every slot of a layer, the newest last."""
    rank = module.a.weight.shape[0]
    a, b = layout.frozen(module.name)
    a, b = torch.cat([a, module.a.weight]), torch.cat([b, module.b.weight], 1)
    return [b[:, i : i + rank] @ a[i : i + rank] for i in range(0, len(a), rank)]


def mixed_examples(world):
    return [world.tasks[name].examples["test"][i] for i, name in enumerate(ORDER)]


def test_one_slot_is_plain_lora_byte_by_byte(world):
    (plain,) = world.train(Finetune(), ORDER[:1])
    (slot,) = world.train(Slots(), ORDER[:1])
    assert plain.key != slot.key
    assert same(world.files(plain), world.files(slot))


def test_slots_of_weight_one_are_their_merged_sum(world, stages):
    modules, layout = load(world, stages[-1])
    examples = mixed_examples(world)
    ours = logits(world, examples)
    assert len(slot_products(layout, modules[0])) == 3
    with merged(world, modules, lambda module: sum(slot_products(layout, module))):
        theirs = logits(world, examples)
    assert torch.allclose(ours, theirs, atol=1e-4)
    with merged(world, modules, lambda module: sum(slot_products(layout, module)[1:])):
        assert not torch.allclose(ours, logits(world, examples), atol=1e-2)


def test_peft_puts_the_stored_adapters_together_to_the_same_model(world, stages):
    base, _ = embedded.Embedded().load()
    folders = [world.store.open(stage) / "adapter" for stage in stages]
    peft = PeftModel.from_pretrained(base, folders[0], adapter_name=ORDER[0])
    for name, folder in zip(ORDER[1:], folders[1:], strict=True):
        peft.load_adapter(folder, adapter_name=name)
    peft.add_weighted_adapter(list(ORDER), [1.0] * 3, "all", combination_type="cat")
    peft.set_adapter("all")
    load(world, stages[-1])
    examples = mixed_examples(world)
    ours = logits(world, examples)
    learner = world.learner
    inputs = learner.inputs_of([learner.encode(example) for example in examples])
    is_answer = inputs.pop("labels")[:, 1:] != -100
    with torch.no_grad():
        theirs = peft.eval()(**inputs).logits[:, :-1][is_answer]
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_new_slot_is_drawn_for_its_task_and_adds_nothing_yet(world, stages):
    first = load_file(world.store.open(stages[0]) / "adapter" / "adapter_model.safetensors")
    modules, _ = load(world, stages[0])
    before = logits(world, mixed_examples(world))
    modules, _ = load(world, stages[0], steps=4)
    drawn = [module.a.weight.detach().clone() for module in modules]
    assert torch.allclose(before, logits(world, mixed_examples(world)), atol=1e-5)
    world.learner.draw_weights(0)  # what the first task of this seed starts from
    for module, a in zip(modules, drawn, strict=True):
        assert not module.b.weight.any()
        assert not torch.allclose(a, module.a.weight, atol=1e-3)
        assert not torch.allclose(a, first[f"{module.name}.lora_A.weight"], atol=1e-3)
    assert len({tuple(a.flatten()[:4].tolist()) for a in drawn}) == len(drawn)


def test_a_mixed_batch_equals_batches_of_one_through_every_new_token(world, stages):
    modules, layout = load(world, stages[-1])
    for module in modules:  # after two steps, slots are too weak to change an answer
        module.b.weight.data *= 4
        layout.frozen(module.name)[1].mul_(4)
    examples = mixed_examples(world)
    route = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.2, 0.8], [0.0, 2.0, 0.0]])

    def scores(rows):
        learner = world.learner
        inputs = learner.inputs_of([learner.encode(examples[i]) for i in rows], prompts_only=True)
        layout.set_route(route[rows])
        output = learner.peft.generate(
            **inputs,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        layout.set_route(None)
        return torch.stack(output.logits, 1)  # (N, new tokens, V)

    together = scores([0, 1, 2])
    assert together.shape[1] == 5
    for i in range(3):
        assert torch.allclose(together[i], scores([i])[0], atol=1e-3)
    route = route.roll(1, 0)
    for i in range(3):  # each route matters, at the last token as at the first
        assert (together[i] - scores([i])[0]).abs().amax(-1).min() > 0.05


def test_a_route_weighs_the_products_of_each_example(world, stages):
    modules, layout = load(world, stages[-1])
    examples = mixed_examples(world)[:1]
    weights = [0.5, 0.0, 3.0]
    ours = logits(world, examples, torch.tensor([weights]))

    def product(module):
        return sum(w * p for w, p in zip(weights, slot_products(layout, module), strict=True))

    with merged(world, modules, product):
        assert torch.allclose(ours, logits(world, examples), atol=1e-4)


def test_layers_that_are_not_routed_keep_weight_one(world, stages):
    modules, layout = load(world, stages[-1], LoraSlots(routed_layers=1))
    last = max(decoder_layer_of(module.name) for module in modules)
    examples = mixed_examples(world)[:1]
    ours = logits(world, examples, torch.tensor([[0.0, 1.0, 0.0]]))

    def product(module):
        products = slot_products(layout, module)
        return products[1] if decoder_layer_of(module.name) == last else sum(products)

    with merged(world, modules, product):
        assert torch.allclose(ours, logits(world, examples), atol=1e-4)


def test_a_factorwise_merge_has_cross_terms_in_evaluation_alone(world, stages):
    modules, layout = load(world, stages[-1], LoraSlots(merge="factorwise", routed_layers=1))
    last = max(decoder_layer_of(module.name) for module in modules)
    examples = mixed_examples(world)
    ours, in_training = logits(world, examples), logits(world, examples, training=True)

    def product(module):
        if decoder_layer_of(module.name) == last:  # it is routed
            return sum(slot_products(layout, module))
        rank = module.a.weight.shape[0]
        a, b = layout.frozen(module.name)
        a, b = torch.cat([a, module.a.weight]), torch.cat([b, module.b.weight], 1)
        return sum(b.split(rank, 1)) @ sum(a.split(rank))

    with merged(world, modules, product):
        assert torch.allclose(ours, logits(world, examples), atol=1e-4)
    with merged(world, modules, lambda module: sum(slot_products(layout, module))):
        assert torch.allclose(in_training, logits(world, examples), atol=1e-4)
    assert not torch.allclose(ours, in_training, atol=1e-2)


def test_the_new_slot_can_be_trained_alone(world, stages):
    modules, layout = load(world, stages[-1], LoraSlots(in_training="current"))
    examples = mixed_examples(world)
    alone, all_slots = logits(world, examples, training=True), logits(world, examples)
    with merged(world, modules, lambda module: slot_products(layout, module)[-1]):
        assert torch.allclose(alone, logits(world, examples), atol=1e-4)
    with merged(world, modules, lambda module: sum(slot_products(layout, module))):
        assert torch.allclose(all_slots, logits(world, examples), atol=1e-4)


def test_frozen_slots_are_not_trained_and_never_change(world, stages):
    own = [load_file(world.store.open(stage) / "adapter" / "adapter_model.safetensors") for stage in stages]
    frozen = load_file(world.store.open(stages[-1]) / "adapter" / "layout.safetensors")
    assert frozen
    for name, tensor in frozen.items():
        layer, _, factor = name.rpartition(".frozen_")
        earlier = [weights[f"{layer}.lora_{factor}.weight"] for weights in own[:-1]]
        assert torch.equal(tensor, torch.cat(earlier, 0 if factor == "A" else 1))
    modules, layout = load(world, stages[-1], steps=4)
    assert len(factor_indices(world.learner.names)) == len(modules)
    assert len(world.learner.names) == 2 * len(modules)
    before = {name: tensor.clone() for name, tensor in layout.frozen_tensors().items()}
    world.learner.step(world.tasks["words"].examples["train"][:4], 0, lambda *_: None)
    for name, tensor in layout.frozen_tensors().items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, before[name])


def test_a_reloaded_stage_answers_as_it_did_when_it_was_trained(world, stages):
    examples = mixed_examples(world)
    stage = stages[-1]
    load(world, stage)
    reloaded = logits(world, examples)
    world.store.discard(stage.key)
    world.runner().train(stage)
    assert torch.equal(logits(world, examples), reloaded)


def test_a_stored_budget_divides_the_rank_by_the_tasks(world, tmp_path):
    stored = replace(world, folder=tmp_path, adapter=Adapter(rank=7, budget="stored"))
    trainable = replace(stored, adapter=Adapter(rank=7, budget="trainable"))
    stages = stored.stages(Slots(), ORDER)
    assert [stage.adapter.rank for stage in stages] == [2, 2, 2]
    assert [stage.adapter.scale for stage in stages] == [2.0, 2.0, 2.0]
    assert [stage.adapter.rank for stage in trainable.stages(Slots(), ORDER)] == [7, 7, 7]
    assert LoraSlots().rank_for(2, 3, "stored") == 0  # too small: nothing is left to train


def test_taking_the_layout_off_leaves_plain_lora(world, stages):
    load(world, stages[-1])
    examples = mixed_examples(world)
    all_slots = logits(world, examples)
    modules, _ = load(world, stages[-1], steps=0)
    world.learner.layout.detach()
    with_own = logits(world, examples)
    assert not torch.allclose(all_slots, with_own, atol=1e-2)
    with merged(world, modules, lambda module: module.b.weight @ module.a.weight):
        assert torch.allclose(with_own, logits(world, examples), atol=1e-4)


def slot_sum(x, result, a, b, frozen):
    """The formula that SlotSum computes in fewer passes."""
    hidden = x @ torch.cat([frozen.a, a]).T
    hidden = hidden if frozen.columns is None else hidden * frozen.columns
    return result + frozen.scale * hidden @ torch.cat([frozen.b, b], 1).T


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("x_has_gradient", [True, False])
def test_the_sum_of_slots_has_the_gradients_of_its_formula(routed, x_has_gradient):
    draws = torch.Generator().manual_seed(0)

    def draw(*shape, gradient=False):
        return torch.randn(shape, generator=draws, dtype=torch.float64).requires_grad_(gradient)

    x, result = draw(2, 3, 4, gradient=x_has_gradient), draw(2, 3, 5, gradient=True)
    own = draw(2, 4, gradient=True), draw(5, 2, gradient=True)
    frozen = Frozen(draw(4, 4), draw(5, 4), draw(2, 1, 6) if routed else None, 1.5)  # two slots
    tensors = (x, result, *own)
    assert torch.allclose(SlotSum.apply(*tensors, frozen), slot_sum(*tensors, frozen))
    assert torch.autograd.gradcheck(lambda *tensors: SlotSum.apply(*tensors, frozen), tensors)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_sum_of_slots_on_bf16_weights_keeps_their_type_and_fp32_gradients(autocast):
    draws = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=draws)

    # PEFT casts x to the type of A before it.
    x, result = draw(7, 4).requires_grad_(), draw(7, 5).bfloat16()
    frozen = Frozen(draw(4, 4), draw(5, 4), None, 2.0)
    own = draw(2, 4).requires_grad_(), draw(5, 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = SlotSum.apply(x, result, *own, frozen)
    assert found.dtype == torch.bfloat16
    wanted = slot_sum(x, result.float(), *own, frozen)
    assert (found.float() - wanted).norm() < 0.01 * wanted.norm()
    found, wanted = (
        torch.autograd.grad(value.float().square().sum(), (x, *own)) for value in (found, wanted)
    )
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.02 * exact.norm()
