"""Methods in a file of one's own, as the documentation has them."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_samples import flat
from toy_world import World

from dgg_ray.core import plugins
from dgg_ray.core.errors import StageError
from dgg_ray.core.stage import WorkItem
from dgg_ray.core.strategy import StageContext
from dgg_ray.strategies.ewc import EWC
from dgg_ray.strategies.finetune import Finetune

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """Save the page's code that defines a class as a file; return its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def save(name: str):
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        (text,) = [block for block in blocks if f"class {name}(" in block]
        file = f"documented_{name.lower()}"
        (tmp_path / f"{file}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(file)

    return save


def test_the_ewc_of_the_documentation_is_a_plugin_and_trains_as_the_shipped_one(own_world, documented):
    own = plugins.find("strategies", f"{documented('MyEWC').__name__}:MyEWC")(strength=300.0)
    mine, shipped = own_world.train(own), own_world.train(EWC(strength=300.0))
    assert mine[0].key == shipped[0].key  # the first task is trained once for both
    ours, theirs = flat(own_world.files(mine[1]).values()), flat(own_world.files(shipped[1]).values())
    assert torch.allclose(ours, theirs, atol=1e-6)
    plain = flat(own_world.files(mine[0]).values())
    assert not torch.allclose(ours, plain, atol=1e-4)


# -- Memory Aware Synapses -------------------------------------------------------------------------


def test_the_documented_sensitivity_is_the_mean_size_of_finite_differences(own_world, tasks, documented):
    (stage,) = own_world.train(Finetune(), order=("words",))
    context, fact = own_world.loaded(stage), documented("Sensitivity").Sensitivity(samples=2)
    sensitivity = context.fact(fact, "words")["values"]
    number = max(range(len(sensitivity)), key=lambda i: float(sensitivity[i].max()))
    index = int(sensitivity[number].argmax())
    parameters = context.parameters()

    def squared_norm(example, shift):
        moved = [p.clone() for p in parameters]
        moved[number].view(-1)[index] += shift
        inputs = own_world.learner.inputs_of([own_world.learner.encode(example)])
        with torch.no_grad(), context.at(moved):
            own_world.learner.peft.eval()
            logits, _ = own_world.learner.loss.answer_logits(inputs.pop("labels"), inputs)
        return float(logits.double().square().sum())

    examples = tasks["words"].examples["train"][:2]
    slopes = [(squared_norm(e, 1e-3) - squared_norm(e, -1e-3)) / 2e-3 for e in examples]
    assert float(sensitivity[number].view(-1)[index]) == pytest.approx(sum(map(abs, slopes)) / 2, rel=0.02)


def test_a_mean_of_squared_gradients_of_the_loss_is_the_fisher_information(own_world, tasks):
    (stage,) = own_world.train(Finetune(), order=("words",))
    context, examples = own_world.loaded(stage), tasks["words"].examples["train"][:3]
    fisher = flat(context.mean_squared_gradient(examples))
    assert torch.allclose(flat(context.mean_of_gradients(examples, torch.square)), fisher, rtol=1e-5)


def test_a_gradient_is_of_one_number_that_depends_on_the_weights(own_world, tasks):
    (stage,) = own_world.train(Finetune(), order=("words",))
    context, examples = own_world.loaded(stage), tasks["words"].examples["train"][:1]
    for of in (lambda outputs: outputs.logits, lambda outputs: outputs.logits.detach().sum()):
        with pytest.raises(StageError, match=r"^context.mean_of_gradients: of must return"):
            context.mean_of_gradients(examples, torch.abs, of)
    assert own_world.learner.loss.hooked is None


def test_what_needs_whole_weights_is_refused_on_zero3(own_world, tasks, monkeypatch):
    (stage,) = own_world.train(Finetune(), order=("words",))
    context, examples = own_world.loaded(stage), tasks["words"].examples["train"][:1]
    parameters = context.parameters()
    questions = [
        context.parameters,
        lambda: context.gradient(examples),
        lambda: context.mean_squared_gradient(examples),
        lambda: context.mean_of_gradients(examples, torch.abs),
        lambda: context.at(parameters),
        lambda: context.question_logits(examples, parameters),
        lambda: context.input_products(examples, []),
    ]
    monkeypatch.setattr(own_world.learner, "zero", 3)
    for question in questions:
        with pytest.raises(StageError, match=r"declare it: needs = Needs\(engines=WHOLE_WEIGHTS\)"):
            question()
    context.at(None)  # the base weights alone are whole on every engine


# -- Synaptic Intelligence -------------------------------------------------------------------------


class WholeTensors(StageContext):
    """The context of a process that holds all weights, as far as the method asks for it."""

    def __init__(self, *ignored):
        pass

    def shard(self, tensors):
        return [tensor.clone() for tensor in tensors]


WholeTensors.__abstractmethods__ = frozenset()


def test_the_documented_synaptic_intelligence_trains_as_worked_out_by_hand(tmp_path, documented):
    world = World(tmp_path / "stages")
    runner = replace(world.runner, make_context=WholeTensors)
    strategy = documented("SI").SI(strength=0.25, damping=0.75)
    stages = world.stages_of("ones", "fours", strategy=strategy, learning_rate=0.5, epochs=2)
    for stage in stages:
        runner.run(WorkItem(stage))
    # ones:  θ 0 → 0.5 → 0.75, g = -1, -0.5; path = 1 · 0.5 + 0.5 · 0.25 = 0.625; Ω = 0.625 / (0.75² + 0.75)
    omega = 0.625 / (0.75**2 + 0.75)
    # fours: step 0 starts at θ* = 0.75, where nothing pulls: θ = 0.75 + 0.5 · 3.25 = 2.375
    #        step 1: g = -1.625 + 2 · 0.25 · Ω · 1.625
    theta = 2.375 + 0.5 * (1.625 - 0.5 * omega * 1.625)
    runner.load_finished(stages[-1])
    assert world.learner.theta.item() == pytest.approx(theta)


# -- a LoRA per task, chosen by its questions ------------------------------------------------------


def test_the_documented_route_answers_with_the_lora_of_the_nearest_questions(own_world, tasks, documented):
    order = ("words", "digits", "shapes")
    strategy = plugins.find("strategies", f"{documented('Nearest').__name__}:Nearest")()
    stages = own_world.train(strategy, order)
    assert stages[0].key == own_world.stages(Finetune(), order)[0].key
    slots = {task: [row["slot"] for row in own_world.evaluate(stages[-1], task)] for task in order}
    assert slots["words"] == [0] * 4  # nothing else asks for a sign
    context = own_world.loaded(stages[-1], strategy, steps=0)
    means = [context.features(tasks[task].examples["train"], "model")[1].mean(0).tolist() for task in order]
    for task in order:
        _, questions = context.features(tasks[task].examples["test"], "model")
        for question, slot in zip(questions.tolist(), slots[task], strict=True):
            distances = [sum((a - b) ** 2 for a, b in zip(question, mean, strict=True)) for mean in means]
            assert slot == distances.index(min(distances))
