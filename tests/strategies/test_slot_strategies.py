"""Strategies with one LoRA per task and no routing, against their formulas, on the embedded model."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from marked import first_quick
from method_samples import ORDER, answer_logits, flat, same, with_training

from dgg_ray.adapters._lora_layers import factor_indices
from dgg_ray.core.interfaces import ShardedTensors, StepHooks
from dgg_ray.core.strategy import bind_context
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.hpa import HPA
from dgg_ray.strategies.llava_c import LlavaC, consolidated
from dgg_ray.strategies.o_lora import OLoRA
from dgg_ray.strategies.octopus import Octopus
from dgg_ray.strategies.reg_lora import KeyElements, RegLoRA, key_slope

# A strategy, and settings each of which trains otherwise than it.
VARIANTS = [
    (
        OLoRA(norm=0.1),
        [{"orthogonality": 0.1}, {"norm": 0.0}, {"penalty": "square"}, {"forward": "current_only"}],
    ),
    (RegLoRA(), [{"strength": 10.0}, {"share": 0.01}]),
    (
        Octopus(gradient_examples=4),
        [{"first_share": 0.25}, {"orthogonality": 9.0}, {"norm": 1.0}, {"gradient_examples": 3}],
    ),
    (LlavaC(), [{"consistency": 10.0}, {"energy": 0.5}, {"scale": 0.5}]),
]
STRATEGIES = [*(strategy for strategy, _ in VARIANTS), HPA()]


def named(value):
    return type(value).__name__


@pytest.mark.parametrize("strategy", first_quick(STRATEGIES), ids=named)
@pytest.mark.whole
def test_an_interrupted_stage_ends_with_the_same_bytes(world, strategy):
    assert world.ends_the_same_when_interrupted(strategy)


def variants(strategy, changes):
    return [strategy, *(replace(strategy, **change) for change in changes)]


@pytest.mark.parametrize(("strategy", "changes"), VARIANTS, ids=named)
def test_settings_that_train_differently_have_other_keys(world, strategy, changes):
    keys = {world.stages(variant)[-1].key for variant in variants(strategy, changes)}
    assert len(keys) == 1 + len(changes)


@pytest.mark.whole
@pytest.mark.parametrize(("strategy", "changes"), VARIANTS, ids=named)
def test_settings_of_other_keys_end_with_other_weights(world, strategy, changes):
    ends = [world.files(world.train(variant)[-1]) for variant in variants(strategy, changes)]
    assert not any(same(a, b) for a, b in combinations(ends, 2))


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s.starts_plain], ids=named)
def test_the_first_stage_is_plain_lora_and_becomes_the_frozen_slot(world, strategy):
    first, second = world.train(strategy)
    assert first.key == world.stages(Finetune())[0].key
    plain, frozen = world.files(first), world.files(second)
    assert not any("frozen" in name for name in plain)
    slots = [name for name in frozen if ".frozen_" in name]
    assert len(slots) == len(plain)
    for name in slots:
        layer, factor = name.removeprefix("layout.safetensors/").split(".frozen_")
        assert torch.equal(frozen[name], plain[f"adapter_model.safetensors/{layer}.lora_{factor}.weight"])


@pytest.mark.whole
def test_without_penalties_a_fresh_lora_is_trained_on_the_frozen_sum(world):
    o_lora, reg_lora = OLoRA(orthogonality=0.0), RegLoRA(strength=0.0)
    ends = [world.train(s, ORDER)[-1] for s in (o_lora, reg_lora)]
    assert same(world.files(ends[0]), world.files(ends[1]))
    penalised = world.train(OLoRA(), ORDER)[-1]
    assert not same(world.files(ends[0]), world.files(penalised))
    squared = replace(o_lora, penalty="square")  # a form of nothing: no stage is trained anew
    assert world.stages(squared, ORDER)[-1].key == world.stages(o_lora, ORDER)[-1].key


# -- O-LoRA and RegLoRA ----------------------------------------------------------------------------


def second_stage(world, strategy, scale=0.1):
    """The strategy's context at the start of a second task, with a slot whose B is not 0 any more."""
    stage = world.train(Finetune(), order=("words",))[0]
    context = world.loaded(stage, strategy)
    generator = torch.Generator().manual_seed(0)
    for p in context.parameters():
        p.add_(torch.randn(p.shape, generator=generator), alpha=scale)
    bind_context(strategy, context)
    return context


def penalty_gradient(strategy, context):
    """What the strategy adds to a gradient of 0."""
    weights = ShardedTensors(context.parameters())
    gradients = ShardedTensors(torch.zeros_like(p) for p in weights)
    strategy.edit_gradient(weights, gradients, 0)
    return list(gradients)


def autograd(context, penalty):
    """The gradient of penalty(theta) at the present weights."""
    theta = [p.clone().requires_grad_() for p in context.parameters()]
    found = torch.autograd.grad(penalty(theta), theta, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(theta, found, strict=True)]


@pytest.mark.parametrize("power", [1, 2])
def test_o_lora_adds_the_gradient_of_its_penalties(world, power):
    strategy = OLoRA(orthogonality=0.3, norm=0.7, penalty="abs" if power == 1 else "square")
    context = second_stage(world, strategy)
    layers = factor_indices(context.names)

    def penalty(theta):
        overlaps = [
            (context.layout.frozen(name)[0] @ theta[a].T).abs() ** power for name, (a, _) in layers.items()
        ]
        return 0.3 * sum(overlap.sum() for overlap in overlaps) + 0.7 * sum(p.norm() for p in theta)

    ours, theirs = flat(penalty_gradient(strategy, context)), flat(autograd(context, penalty))
    assert theirs.norm() > 1
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_orthogonal_slots_have_no_penalty_and_a_zero_b_has_no_norm(world):
    strategy = OLoRA(orthogonality=0.3)
    context = second_stage(world, strategy)
    theta = context.parameters()
    for name, (a, b) in factor_indices(context.names).items():
        half = theta[a].shape[1] // 2
        context.layout.frozen(name)[0][:, :half] = 0
        theta[a][:, half:] = 0
        theta[b].zero_()
    assert not flat(penalty_gradient(strategy, context)).any()
    grown = flat(penalty_gradient(bound(OLoRA(orthogonality=0.0, norm=2.0), context), context))
    assert grown.norm().item() == pytest.approx(2 * len(factor_indices(context.names)) ** 0.5, rel=1e-4)


def bound(strategy, context):
    bind_context(strategy, context)
    return strategy


def test_the_key_elements_are_the_largest_of_the_tasks_own_product(world):
    first, second = world.train(RegLoRA(share=0.05))
    for stage in (first, second):
        context = world.loaded(stage, RegLoRA())
        elements = context.fact(KeyElements(0.05), stage.task)["elements"]
        own = context.weights_after(stage.task)
        for (a, b), chosen in zip(factor_indices(context.names).values(), elements, strict=True):
            size = (own[b] @ own[a]).abs().flatten()
            assert len(chosen.unique()) == len(chosen) == int(0.05 * size.numel())
            others = torch.ones_like(size, dtype=torch.bool)
            others[chosen.long()] = False
            assert size[chosen.long()].min() >= size[others].max() > 0


def test_the_slope_counts_an_element_as_often_as_tasks_chose_it():
    product = torch.tensor([[2.0, -3.0, 0.5], [-1.0, 4.0, 5.0]])
    slope = key_slope(product, torch.tensor([1, 4, 1, 3], dtype=torch.int32))
    assert slope.tolist() == [[0.0, -0.5, 0.0], [-0.25, 0.25, 0.0]]


@pytest.mark.parametrize("count_duplicates", [True, False])
def test_reg_lora_adds_the_gradient_of_its_penalty(world, count_duplicates):
    strategy = RegLoRA(strength=3.0, share=0.1, count_duplicates=count_duplicates)
    context = second_stage(world, strategy)
    context.earlier = ("words", "words")  # two tasks that chose the same elements …
    strategy.prepare()
    if count_duplicates:  # … and one of them a single one more
        strategy.cache["key"] = [torch.cat([k, k[:1]]) for k in strategy.cache["key"]]
    layers = factor_indices(context.names)
    key = [k.long() for k in strategy.cache["key"]]
    size = int(0.1 * 96 * 96)
    assert len(
        key[list(layers).index("base_model.model.model.language_model.layers.0.self_attn.q_proj")]
    ) == (2 * size + 1 if count_duplicates else size)

    def penalty(theta):
        means = [
            (theta[b] @ theta[a]).flatten()[k].abs().mean()
            for (a, b), k in zip(layers.values(), key, strict=True)
        ]
        return 3.0 * sum(means) / len(means)

    ours, theirs = flat(penalty_gradient(strategy, context)), flat(autograd(context, penalty))
    assert theirs.norm() > 0.01
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


# -- Octopus ---------------------------------------------------------------------------------------


def recorded(monkeypatch, cls):
    """The weights, and what the strategy adds to the gradients, in each step of the following stages."""
    steps, real = [], cls.edit_gradient

    def edit_gradient(self, weights, gradients, step):
        before = flat(gradients).clone()
        real(self, weights, gradients, step)
        steps.append((flat(weights).clone(), flat(gradients) - before))

    monkeypatch.setattr(cls, "edit_gradient", edit_gradient)
    return steps


def test_the_two_phases_split_the_examples(world):
    examples = list(range(21))
    first, second = Octopus(first_share=0.4).phases(examples, 0)
    assert (len(first), len(second)) == (8, 13)
    assert sorted(first + second) == examples
    assert first != Octopus(first_share=0.4).phases(examples, 1)[0]
    nothing, everything = Octopus(first_share=0.0).phases(examples, 0)
    assert (len(nothing), len(everything)) == (0, 21)


def test_phase_one_is_free_and_starts_where_the_last_phase_one_ended(own_world, monkeypatch):
    steps = recorded(monkeypatch, Octopus)
    first, second = own_world.train(Octopus(gradient_examples=4, start="previous"))
    assert [bool(added.any()) for _, added in steps] == [False, True, False, True]  # two steps per task
    starts = [weights for weights, _ in steps]
    for stage, phase_two, next_start in ((first, starts[1], starts[2]), (second, starts[3], None)):
        files = own_world.files(stage)
        count = sum(name.startswith("strategy") for name in files)
        state = flat(files[f"strategy.safetensors/first.{i}"] for i in range(count))
        assert torch.equal(state, phase_two)
        if next_start is not None:
            assert torch.equal(state, next_start)
            assert not torch.equal(state, flat(own_world.loaded(stage).weights_after(stage.task)))


def test_a_fresh_phase_one_adds_nothing_at_its_start(own_world, monkeypatch):
    steps = recorded(monkeypatch, Octopus)
    first, second = own_world.train(Octopus(gradient_examples=4))
    assert not any(name.startswith("strategy") for name in own_world.files(first))  # nothing is handed on
    model = own_world.loaded(second)
    start = steps[2][0]  # phase 1 of the second task
    for name, weights in zip(model.names, cut_as(start, model.parameters()), strict=True):
        assert bool(weights.any()) == ("lora_A" in name)  # B = 0, so the update is 0


def cut_as(vector, tensors):
    """The vector in pieces of the tensors' shapes."""
    pieces = vector.split([t.numel() for t in tensors])
    return [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]


@pytest.mark.parametrize("slots", [1, 2])
def test_the_product_with_gradients_at_old_weights_is_that_of_whole_weights(world, slots):
    strategy = Octopus()
    stages = world.train(OLoRA(), ORDER[:2])
    context = bound_at(world, strategy, stages[-1])
    context.earlier = ORDER[:2]
    theta = context.parameters()
    generator = torch.Generator().manual_seed(0)
    for p in theta:
        p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    examples = world.tasks["shapes"].examples["train"][:3]
    along, slope = strategy._along(theta, examples, slots)

    learner, layout = world.learner, context.layout
    linears = [layout.linear(name) for name in factor_indices(context.names)]
    whole = [linear.layer.base_layer.weight for linear in linears]
    pairs = list(factor_indices(context.names).values())
    old = [torch.zeros_like(p) if i in {b for _, b in pairs} else p for i, p in enumerate(theta)]
    encoded = [learner.encode(example) for example in examples]
    learner.peft.eval()
    for weight in whole:
        weight.requires_grad_()
    with context.at(old), layout.first_slots(slots):
        loss = learner.loss(**learner.inputs_of(encoded)) / sum(len(e.answer) for e in encoded)
        G = torch.autograd.grad(loss, whole)
    for weight in whole:
        weight.requires_grad_(False)

    def product(theta):
        update = [linear.scale * theta[b] @ theta[a] for linear, (a, b) in zip(linears, pairs, strict=True)]
        return sum((g * d).sum() for g, d in zip(G, update, strict=True))

    assert abs(along) > 1e-3
    assert along == pytest.approx(float(product(theta)), rel=1e-3)
    ours, theirs = flat(slope), flat(autograd(context, product))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def bound_at(world, strategy, stage):
    """A context of the learner at the end of a stage, with a new slot, for a strategy to ask."""
    return bound(strategy, world.loaded(stage, strategy)).context


def test_octopus_adds_the_gradients_of_both_penalties(own_world, monkeypatch):
    strategy = Octopus(orthogonality=3.0, norm=0.5, points="all")
    context = second_stage(own_world, strategy)
    context.earlier = ("a", "b")
    strategy.memory["first"] = []
    slope = [torch.full_like(p, 0.1) for p in context.parameters()]
    asked = []
    monkeypatch.setattr(
        Octopus, "_along", lambda self, theta, examples, slots: asked.append(slots) or (slots, slope)
    )
    scales = {name: context.layout.linear(name).scale for name in factor_indices(context.names)}

    def norm(theta):
        pairs = factor_indices(context.names).items()
        return 0.5 / 2 * sum((scales[name] * theta[b] @ theta[a]).square().sum() for name, (a, b) in pairs)

    ours = flat(penalty_gradient(strategy, context))
    theirs = flat(autograd(context, norm)) + 3.0 * (2 * 1 + 2 * 2) * flat(slope)
    assert asked == [1, 2]
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    last = replace(strategy, points="last")
    last.memory["first"] = []
    penalty_gradient(bound(last, context), context)
    assert asked == [1, 2, 2]


def test_points_matter_from_the_third_task_on(world):
    a, b = (world.stages(Octopus(points=points), ORDER) for points in ("last", "all"))
    assert [x.key == y.key for x, y in zip(a, b, strict=True)] == [True, True, False]


# -- LLaVA-c ---------------------------------------------------------------------------------------


def random_factors(rank=4, d_in=12, d_out=9):
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, generator=generator) for shape in ((rank, d_in), (d_out, rank)))
    return A, B


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9, 1.0])
def test_the_leading_singular_directions_are_kept_and_scaled(energy):
    A, B = random_factors()
    U, sigma, Vt = torch.linalg.svd(B @ A)
    held = [float(sigma[:k].square().sum() / sigma.square().sum()) for k in range(1, 5)]
    k = 1 + sum(h < energy - 1e-6 for h in held)
    new_A, new_B = consolidated(A, B, energy, 0.5)
    assert torch.allclose(new_B @ new_A, 0.5 * (U[:, :k] * sigma[:k]) @ Vt[:k], atol=1e-5)
    assert int(new_A.any(1).sum()) == int(new_B.any(0).sum()) == k


def test_an_update_of_zero_or_of_too_large_a_rank_stays():
    A, B = random_factors()
    new_A, new_B = consolidated(A, torch.zeros_like(B), 0.9, 1.0)
    assert not (new_B @ new_A).any()
    A, B = random_factors(rank=20)
    new_A, new_B = consolidated(A, B, 1.0, 1.0)
    assert new_A.shape == A.shape
    assert torch.allclose(new_B @ new_A, B @ A, atol=1e-4)


@pytest.mark.whole
def test_the_consolidated_update_is_what_the_stage_stores_and_answers_with(own_world, monkeypatch):
    ends, real = [], LlavaC.end_task

    def end_task(self, weights):
        ends.append([theta.detach().clone() for theta in weights])
        real(self, weights)

    monkeypatch.setattr(LlavaC, "end_task", end_task)
    strategy = LlavaC(energy=0.8, scale=0.5)
    stage = own_world.train(strategy)[-1]
    in_memory = answer_logits(own_world)
    own_world.learner.start(own_world.runner().setup_of(stage, 0, own_world.store.open(stage)))
    assert torch.equal(in_memory, answer_logits(own_world))
    layers = factor_indices(own_world.learner.names)
    stored = own_world.loaded(stage, strategy).weights_after(stage.task)
    for a, b in layers.values():
        A, B = consolidated(ends[-1][a], ends[-1][b], 0.8, 0.5)
        assert torch.equal(stored[a], A)
        assert torch.equal(stored[b], B)


def loss_terms(world, strategy, batch):
    """(What the strategy adds to the loss of each micro-batch, tokens per example, the gradient)."""
    added, gradient, tokens = [], [], []

    def hook(loss, outputs):
        edited = strategy.edit_loss(loss, outputs)
        added.append(float(edited.detach() - loss.detach()))
        tokens.append(outputs.tokens_per_example)
        return edited

    take = lambda weights, gradients, step: gradient.extend(g.clone() for g in gradients)  # noqa: E731
    world.learner.step(batch, 0, take, StepHooks(hook))
    return added, tokens[0], flat(gradient)


def test_consistency_is_the_divergence_on_questions_without_their_images(world):
    strategy = LlavaC(consistency=0.7)
    context = second_stage(world, strategy)
    strategy.prepare()
    batch = [world.tasks[name].examples["train"][0] for name in ORDER]
    learner = world.learner

    def of_one(example, weights):
        ids = learner.encode(replace(example, image=None)).prompt
        with torch.no_grad(), context.at(weights):
            learner.peft.eval()
            return learner.peft(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    zero = [torch.zeros_like(p) for p in context.parameters()]
    expected = 0.0
    for example in batch:
        old, new = of_one(example, zero), of_one(example, context.parameters())
        expected += float((old.exp() * (old - new)).sum(-1).mean())
    added, tokens_per_example, _ = loss_terms(world, strategy, batch)
    assert expected > 0.1
    assert sum(added) == pytest.approx(0.7 * tokens_per_example * expected, rel=1e-3)


def test_a_stage_begins_without_any_inconsistency(world):
    strategy = LlavaC()
    context = second_stage(world, strategy)
    strategy.prepare()
    for _, b in factor_indices(context.names).values():
        context.parameters()[b].zero_()
    batch = world.tasks["digits"].examples["train"][:4]
    added, _, with_term = loss_terms(world, strategy, batch)
    assert sum(added) == pytest.approx(0, abs=1e-4)
    second_stage(world, strategy)
    for _, b in factor_indices(context.names).values():
        context.parameters()[b].zero_()
    _, _, plain = loss_terms(world, LlavaC(consistency=0.0), batch)
    assert (with_term - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.whole
def test_micro_batches_add_up_to_the_same_loss_and_gradient(world):
    found = []
    for size in (None, 1):
        changed = with_training(world, world.folder, micro_batch_size=size)
        strategy = LlavaC(consistency=0.7)
        second_stage(changed, strategy)
        strategy.prepare()
        batch = [changed.tasks[name].examples["train"][0] for name in ORDER]
        added, _, gradient = loss_terms(changed, strategy, batch)
        assert len(added) == (3 if size else 1)
        found.append((sum(added), gradient))
    (a, g), (b, h) = found
    assert a == pytest.approx(b, rel=1e-4)
    assert (g - h).norm() < 1e-4 * g.norm()
