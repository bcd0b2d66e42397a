"""EWC, LwF, A-GEM, GEM and EMA against their formulas, on the embedded model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from marked import first_quick
from method_samples import flat, same

from dgg_ray.core import rng
from dgg_ray.core.interfaces import ShardedTensors, StepHooks
from dgg_ray.core.stage import WorkItem
from dgg_ray.strategies import gem
from dgg_ray.strategies.a_gem import AGEM, project
from dgg_ray.strategies.ema import EMA
from dgg_ray.strategies.ewc import EWC, Fisher
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.gem import GEM
from dgg_ray.strategies.l2sp import L2SP
from dgg_ray.strategies.lwf import LwF
from dgg_ray.training import facts

OFF = [EWC(strength=0.0), LwF(strength=0.0), AGEM(buffer=0), GEM(buffer=0), EMA(decay=0.0)]
ON = [
    EWC(strength=1e4, fisher_samples=4),
    EWC(strength=1e4, fisher_samples=4, mode="online", decay=0.5),
    LwF(),
    AGEM(buffer=4, reference_examples=3),
    GEM(buffer=4, reference_examples=3, margin=0.1),
    EMA(decay=0.5),
]


def named(strategy):
    return type(strategy).__name__ + (f"-{strategy.mode}" if isinstance(strategy, EWC) else "")


@pytest.mark.parametrize("strategy", OFF, ids=named)
@pytest.mark.whole
def test_strength_zero_is_fine_tuning_and_shares_its_stages(world, own_world, strategy):
    keys = [stage.key for stage in world.stages(strategy)]
    assert keys == [stage.key for stage in world.stages(Finetune())]
    trained, plain = own_world.train(strategy)[-1], world.train(Finetune())[-1]
    assert same(own_world.files(trained), world.files(plain))


@pytest.mark.parametrize("strategy", ON, ids=named)
def test_the_first_stage_is_plain_and_the_second_differs(world, strategy):
    plain, own = world.stages(Finetune()), world.stages(strategy)
    assert own[0].key == plain[0].key
    assert own[1].key != plain[1].key
    own, plain = world.train(strategy), world.train(Finetune())
    assert not same(world.files(own[1]), world.files(plain[1]))


@pytest.mark.parametrize("strategy", first_quick(ON), ids=named)
@pytest.mark.whole
def test_an_interrupted_stage_ends_with_the_same_bytes(world, strategy):
    assert world.ends_the_same_when_interrupted(strategy)


# -- EWC -------------------------------------------------------------------------------------------


def test_the_fisher_information_is_the_mean_of_squared_finite_differences(world, tasks):
    (stage,) = world.train(Finetune(), order=("words",))
    context = world.loaded(stage)
    (fisher,) = [flat(context.fact(Fisher(samples=2), "words")["fisher"])]
    parameters = context.parameters()
    train = tasks["words"].examples["train"]
    drawn = [train[i] for i in rng.permutation(16, 0, "words", "fisher")[:2]]
    position = int(fisher.argmax())
    sizes = np.cumsum([p.numel() for p in parameters])
    number = int(np.searchsorted(sizes, position, side="right"))
    index = position - (sizes[number - 1] if number else 0)

    def loss_of(example, shift):
        moved = [p.clone() for p in parameters]
        moved[number].view(-1)[index] += shift
        encoded = world.learner.encode(example)
        with torch.no_grad(), context.at(moved):
            world.learner.peft.eval()
            return float(world.learner.loss(**world.learner.inputs_of([encoded]))) / len(encoded.answer)

    slopes = [(loss_of(e, 1e-3) - loss_of(e, -1e-3)) / 2e-3 for e in drawn]
    assert float(fisher[position]) == pytest.approx(np.mean(np.square(slopes)), rel=0.02)


def test_a_fact_is_computed_once_for_ten_who_ask_and_is_the_same_again(own_world, monkeypatch):
    (stage,) = own_world.train(Finetune(), order=("words",))
    calls = []
    real = Fisher.compute
    monkeypatch.setattr(Fisher, "compute", lambda *args: calls.append(1) or real(*args))
    first = [own_world.loaded(stage).fact(Fisher(samples=2), "words")["fisher"] for _ in range(10)][-1]
    assert len(calls) == 1
    for name in own_world.store.backend.list_names("facts/"):
        own_world.store.backend.remove(name)
    assert torch.equal(flat(first), flat(own_world.loaded(stage).fact(Fisher(samples=2), "words")["fisher"]))
    assert len(calls) == 2


@pytest.mark.whole
def test_an_earlier_stage_whose_adapter_was_removed_is_trained_again(own_world):
    strategy, order = EWC(strength=10.0, fisher_samples=2), ("words", "digits", "shapes")
    stages = own_world.train(strategy, order)
    whole = own_world.files(stages[2])
    own_world.store.remove_adapter(stages[0].key)
    own_world.store.discard(stages[2].key)
    with pytest.warns(UserWarning, match="lost its adapter"):
        own_world.runner().run(WorkItem(stages[2]))
    assert same(whole, own_world.files(stages[2]))


def test_facts_about_data_belong_to_a_precision_and_to_no_setting_of_the_stage(world):
    (stage,) = world.stages(Finetune(), order=("words",))

    def owner(**changes):
        return facts.owner_of_data(replace(stage, training=replace(stage.training, **changes)))

    assert owner(learning_rate=0.5) == owner() != owner(precision="bf16")


def test_a_damaged_fact_is_computed_again(own_world):
    (stage,) = own_world.train(Finetune(), order=("words",))
    first = flat(own_world.loaded(stage).fact(Fisher(samples=2), "words")["fisher"])
    (name,) = own_world.store.backend.list_names("facts/")
    data = bytearray(own_world.store.backend.read(name))
    data[-1] ^= 1
    own_world.store.backend.write(name, bytes(data))
    assert torch.equal(first, flat(own_world.loaded(stage).fact(Fisher(samples=2), "words")["fisher"]))


def test_a_mean_over_examples_of_squares_is_at_least_the_square_of_their_mean(world, tasks):
    (stage,) = world.train(Finetune(), order=("words",))
    context, examples = world.loaded(stage), tasks["words"].examples["train"][:4]
    each = flat(context.mean_squared_gradient(examples))
    one_by_one = [flat(context.gradient([example])) for example in examples]
    assert torch.allclose(each, torch.stack(one_by_one).square().mean(0), rtol=1e-4, atol=1e-12)
    assert (each >= torch.stack(one_by_one).mean(0).square() - 1e-12).all()


@pytest.mark.parametrize("mode", ["per_task", "online"])
def test_with_equal_fisher_information_everywhere_ewc_is_l2sp(own_world, monkeypatch, mode):
    def ones(self, context, task):
        return {"fisher": [torch.ones_like(p) for p in context.parameters()]}

    monkeypatch.setattr(Fisher, "compute", ones)
    ewc = own_world.train(EWC(strength=0.3, mode=mode))
    l2sp = own_world.train(L2SP(strength=0.3))
    ours, theirs = flat(own_world.files(ewc[1]).values()), flat(own_world.files(l2sp[1]).values())
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_online_fisher_information_decays_by_gamma_per_task(own_world, monkeypatch):
    sizes = {"words": 1.0, "digits": 10.0}

    def constant(self, context, task):
        return {"fisher": [torch.full_like(p, sizes[task.name]) for p in context.parameters()]}

    monkeypatch.setattr(Fisher, "compute", constant)
    strategy = EWC(strength=1.0, mode="online", decay=0.5)
    seen = []
    monkeypatch.setattr(EWC, "edit_gradient", lambda self, *args: seen.append(self.cache["terms"]))
    own_world.train(strategy, order=("words", "digits", "shapes"))
    ((fisher, _),) = seen[-1]
    assert {float(f.unique()) for f in fisher} == {10.0 + 0.5 * 1.0}


# -- LwF -------------------------------------------------------------------------------------------


def test_a_teacher_equal_to_the_student_adds_no_gradient(world, tasks):
    stages = world.train(Finetune(), order=("words",))
    context = world.loaded(stages[0])
    strategy = LwF(strength=1.0)
    strategy.cache["teacher"] = context.weights_after("words")
    batch = tasks["digits"].examples["train"][:4]
    with_lwf = gradient_of(world, batch, strategy.edit_loss)
    world.loaded(stages[0])
    plain = gradient_of(world, batch, None)
    assert (with_lwf - plain).norm() <= 1e-5 * plain.norm()


def test_the_distillation_is_the_kl_divergence_at_answer_positions(world, tasks):
    stages = world.train(Finetune(), order=("words",))
    context = world.loaded(stages[0])
    teacher = [w + 0.01 for w in context.weights_after("words")]
    strategy = LwF(strength=0.7, temperature=3.0)
    strategy.cache["teacher"] = teacher
    seen = {}

    def hook(loss, outputs):
        seen.update(loss=loss, edited=strategy.edit_loss(loss, outputs), outputs=outputs)
        return seen["edited"]

    batch = tasks["digits"].examples["train"][:3]
    gradient_of(world, batch, hook)
    outputs = seen["outputs"]
    answers = [token for e in batch for token in world.learner.encode(e).answer]
    assert outputs.targets.tolist() == answers  # so nothing after an answer has a part in it
    assert outputs.tokens_per_example == len(answers) / 3
    p = torch.softmax(outputs.logits_at(teacher) / 3, -1)
    q = torch.softmax(outputs.logits.detach() / 3, -1)
    kl = (p * (p.log() - q.log())).sum()
    assert float((seen["edited"] - seen["loss"]).detach()) == pytest.approx(0.7 * 9 * float(kl), rel=1e-4)


def gradient_of(world, batch, hook):
    copies = []

    def take(weights, gradients, step):
        copies.extend(g.clone() for g in gradients)

    world.learner.step(batch, 0, take, StepHooks(hook))
    return flat(copies)


# -- A-GEM and GEM ---------------------------------------------------------------------------------


def tensors(*rows):
    return ShardedTensors([torch.tensor(row, dtype=torch.float32) for row in rows])


def test_after_a_conflict_the_gradient_is_orthogonal_to_the_reference():
    g, reference = tensors([1.0, 2.0], [3.0]), tensors([-1.0, 0.0], [-1.0])
    project(g, g, reference)  # ⟨g, r⟩ = -4, ⟨r, r⟩ = 2: g + 2 r
    assert flat(g).tolist() == [-1.0, 2.0, 1.0]
    assert float(g.inner(g, reference)) == pytest.approx(0.0, abs=1e-6)


def test_without_a_conflict_the_gradient_stays():
    g, reference = tensors([1.0, 2.0], [3.0]), tensors([1.0, 0.0], [1.0])
    project(g, g, reference)
    assert flat(g).tolist() == [1.0, 2.0, 3.0]


def test_gem_with_one_task_and_no_margin_is_a_gem():
    g, reference = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.0, -1.0])
    v = gem.dual(np.array([[reference @ reference]]), np.array([g @ reference]), 0.0, ridge=0.0)
    assert (g + v[0] * reference).tolist() == pytest.approx([-1.0, 2.0, 1.0])


def test_gem_finds_the_nearest_gradient_that_no_task_objects_to():
    draw = np.random.default_rng(0)
    for _ in range(20):
        G, g = draw.normal(size=(3, 8)), draw.normal(size=8)
        v = gem.dual(G @ G.T, G @ g, 0.0, ridge=0.0)
        new = g + v @ G
        assert (v >= 0).all()
        assert (G @ new >= -1e-8).all()
        assert v * (G @ new) == pytest.approx(np.zeros(3), abs=1e-8)  # complementary: the KKT conditions


def test_a_margin_bounds_the_dual_from_below():
    G, g = np.eye(2), np.array([-1.0, 5.0])
    assert gem.dual(G @ G.T, G @ g, 0.5, ridge=0.0).tolist() == pytest.approx([1.0, 0.5])


def test_the_reference_gradient_is_that_of_the_remembered_examples(world, tasks):
    stages = world.train(Finetune(), order=("words",))
    context, examples = world.loaded(stages[0]), tasks["words"].examples["train"][:3]
    reference = flat(context.gradient(examples))
    assert (reference - gradient_of(world, examples, None)).norm() <= 1e-5 * reference.norm()


# -- EMA -------------------------------------------------------------------------------------------


def test_the_stage_ends_at_the_average_of_its_iterates(own_world, monkeypatch):
    iterates = []
    real = EMA.after_step

    def after_step(self, weights, step):
        iterates.append(flat(weights).clone())
        real(self, weights, step)

    monkeypatch.setattr(EMA, "after_step", after_step)
    stages = own_world.train(EMA(decay=0.75))
    start = flat(own_world.loaded(stages[0]).weights_after("words"))
    average = start
    for iterate in iterates:
        average = 0.75 * average + 0.25 * iterate
    end = flat(own_world.loaded(stages[1]).weights_after("digits"))
    assert torch.allclose(end, average, atol=1e-6)
    assert not torch.allclose(end, iterates[-1], atol=1e-4)
