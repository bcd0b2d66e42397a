"""ModalPrompt: guidance, the choice of sets, the terms of the loss."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from method_samples import ORDER, same, with_training
from torch.nn.functional import cosine_similarity

from dgg_ray.adapters.prompt import Prompt
from dgg_ray.core.interfaces import StepHooks
from dgg_ray.core.strategy import bind_context
from dgg_ray.strategies.modal_prompt import ModalPrompt

STRATEGY = ModalPrompt(prompt_tokens=3, sets=2)


def prepared(world, stage, steps):
    """The strategy after a stage, to train on or to answer."""
    strategy = replace(STRATEGY)
    bind_context(strategy, world.loaded(stage, strategy, steps))
    strategy.prepare()
    return strategy


def test_an_interrupted_stage_ends_with_the_same_bytes(world):
    stages = world.train(STRATEGY, ORDER)
    whole = world.files(stages[-1])
    world.store.discard(stages[-1].key)
    world.interrupted(stages[-1], after=1)
    world.train(STRATEGY, ORDER)
    assert same(whole, world.files(stages[-1]))


def test_the_first_stage_is_its_own_and_settings_have_keys_of_their_own(world):
    different = [
        STRATEGY, ModalPrompt(prompt_tokens=4, sets=2), ModalPrompt(prompt_tokens=3, sets=3),
        replace(STRATEGY, alignment=0.5),
    ]  # fmt: skip
    keys = [world.stages(strategy)[0].key for strategy in different]
    assert len(set(keys)) == len(different)


def test_the_chosen_set_stands_beside_each_prediction_and_a_loaded_stage_answers_the_same(world):
    stages = world.train(STRATEGY, ORDER)
    first = world.evaluate(stages[2], "shapes")
    assert {row["slot"] for row in first} <= {0, 1, 2}
    assert {row["slot"] for row in world.evaluate(stages[0], "shapes")} == {0}
    for name, _ in list(world.store._evaluation_manifests(stages[2].key)):
        world.store.backend.remove(name)
    world.loaded(stages[0])
    assert world.evaluate(stages[2], "shapes") == first


def test_guidance_is_the_mean_of_both_cosines_and_the_same_for_batches_of_one(world, tasks):
    stages = world.train(STRATEGY, ORDER)
    strategy = prepared(world, stages[2], steps=0)
    examples = [tasks[t].examples["test"][0] for t in ORDER]
    images, texts = strategy.context.features(examples, "model")
    prototypes = world.learner.layout.prototypes().detach()
    guidance = strategy.route(examples)
    for n in range(3):
        for k in range(3):
            both = [float(cosine_similarity(f[n], prototypes[k], dim=0)) for f in (images, texts)]
            assert float(guidance[n, k]) == pytest.approx(sum(both) / 2, abs=1e-5)
    assert torch.allclose(guidance, torch.cat([strategy.route([e]) for e in examples]), atol=1e-6)


def test_in_training_the_newest_set_stands_nearest_and_the_best_earlier_one_before_it(world, monkeypatch):
    seen = []
    real = Prompt.set_route
    monkeypatch.setattr(Prompt, "set_route", lambda self, w: (seen.append(w), real(self, w))[1])
    world = with_training(world, world.folder.with_name("micro"), micro_batch_size=3)
    stages = world.train(STRATEGY, ORDER)
    routes = [w for w in seen if w is not None and w.shape[1] == 3]
    assert [len(w) for w in routes] == [3, 3, 2] * 2  # each micro-batch of two steps has its own
    assert all((w.argmax(1) == 2).all() for w in routes)
    assert len({tuple(row) for w in routes for row in w[:, :2].tolist()}) > 2  # and each example
    assert seen[-1] is None
    assert stages[2].earlier == ("words", "digits")


def test_the_loss_adds_one_minus_each_cosine_per_example(world, tasks):
    (stage,) = world.train(STRATEGY, order=("words",))
    strategy = prepared(world, stage, steps=4)
    seen = {}

    def hook(loss, outputs):
        seen.update(before=loss.detach(), after=strategy.edit_loss(loss, outputs), outputs=outputs)
        return seen["after"]

    batch, used = tasks["words"].examples["train"][:3], []
    world.learner.step(batch, 0, lambda w, g, s: used.extend(bool(t.any()) for t in g), StepHooks(hook))
    assert used == [True] * 5  # rows and head: several processes wait for the gradient of each
    world.loaded(stage, STRATEGY)  # before the step
    prototype = world.learner.layout.prototypes()[-1].detach()
    images, texts = strategy.context.features(batch, "model")
    expected = sum((1 - cosine_similarity(f, prototype[None])).sum() for f in (images, texts))
    tokens = len(seen["outputs"].targets) / 3
    assert float(seen["after"].detach() - seen["before"]) == pytest.approx(float(expected) * tokens, rel=1e-4)


def test_alignment_moves_the_prototype_towards_the_tasks_examples(world, tasks):
    def similarity(strategy):
        (stage,) = world.train(strategy, order=("words",))
        context = world.loaded(stage, strategy, steps=0)
        prototype = world.learner.layout.prototypes()[-1:].detach()
        sides = context.features(tasks["words"].examples["test"], "model")
        return float(sum(cosine_similarity(side, prototype).mean() for side in sides))

    assert similarity(STRATEGY) > similarity(replace(STRATEGY, alignment=0.0)) + 0.02


def test_with_clip_a_prototype_has_the_size_of_its_features(world, tmp_path):
    folder = tiny_models.clip(tmp_path / "clip")
    strategy = replace(STRATEGY, encoder=str(folder))
    assert strategy.faults() == []
    stages = world.train(strategy)
    files = world.files(stages[1])
    (prototypes,) = [t for name, t in files.items() if name.endswith("frozen_prototypes")]
    assert prototypes.shape == (1, 8)
    assert world.evaluate(stages[1], "words")[0]["slot"] in (0, 1)


def test_an_encoder_that_is_not_there_or_of_unknown_size_is_a_fault(tmp_path):
    ((setting, rule, _),) = ModalPrompt(encoder=str(tmp_path / "nowhere")).faults()
    assert (setting, rule) == ("encoder", "no such folder")
    ((setting, rule, _),) = ModalPrompt(encoder="openai/clip@" + "0a" * 20).faults()
    assert (setting, rule.split(":")[0]) == ("encoder", "must be `model` or a folder")
