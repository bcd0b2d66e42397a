"""The look at other weights in a loss hook: what it repeats of the forward pass, and what it may reuse."""

import pytest
import torch
from method_samples import make_learner, make_tasks

from dgg_ray.adapters.prompt import Prompt
from dgg_ray.core.interfaces import Adapter, StageSetup, StepHooks, Training
from dgg_ray.training.answer_loss import is_behind_frozen_parts

TRAINING = Training(batch_size=2, learning_rate=1e-2, schedule="constant", warmup=0.0)


@pytest.fixture(scope="module")
def learner():
    return make_learner()


@pytest.fixture(scope="module")
def batch():
    return make_tasks()["shapes"].examples["train"][:2]


def start(learner, layout=None, **training):
    options = vars(TRAINING) | training
    learner.start(StageSetup(Adapter(rank=2), Training(**options), 1, 0, "shapes", None, layout))


def look(learner, batch, weights):
    """Logits at other weights in a step's loss hook, and how often the vision tower ran in the step."""
    found, calls = [], []
    tower = learner.base.get_submodule("model.vision_tower")
    hook = tower.register_forward_hook(lambda *_: calls.append(1))

    def at_weights(loss, outputs):
        found.append(outputs.logits_at(weights))
        return loss

    learner.step(batch, 0, lambda *_: None, StepHooks(at_weights))
    hook.remove()
    return found[0], len(calls)


def from_the_inputs(learner, batch, weights):
    """The same logits by a forward pass of their own."""
    inputs = learner.inputs_of([learner.encode(example) for example in batch])
    return learner.loss.logits_at(weights, inputs.pop("labels"), inputs)


def other_weights(learner):
    draws = torch.Generator().manual_seed(0)
    return [p.detach() + 0.1 * torch.randn(p.shape, generator=draws) for p in learner.engine.parameters]


@pytest.mark.parametrize("of", ["other weights", "the base model"])
def test_a_look_at_other_weights_runs_the_vision_tower_no_second_time(learner, batch, of):
    start(learner)
    weights = other_weights(learner) if of == "other weights" else None
    found, calls = look(learner, batch, weights)
    assert calls == 1
    assert torch.allclose(found, from_the_inputs(learner, batch, weights), atol=1e-5)
    another = None if weights else other_weights(learner)
    assert not torch.allclose(found, from_the_inputs(learner, batch, another), atol=1e-2)


def test_a_trained_projector_makes_other_image_tokens_at_other_weights(learner, batch):
    start(learner, projector_learning_rate=1e-3)
    weights = other_weights(learner)
    found, calls = look(learner, batch, weights)
    assert calls == 2
    assert torch.allclose(found, from_the_inputs(learner, batch, weights), atol=1e-5)


def test_vectors_among_the_embeddings_are_other_ones_at_other_weights(learner, batch):
    start(learner, Prompt(rows=3))
    weights = other_weights(learner)
    found, calls = look(learner, batch, weights)
    assert calls == 2
    assert torch.allclose(found, from_the_inputs(learner, batch, weights), atol=1e-5)


def test_nothing_is_reused_where_the_vision_tower_has_dropout(learner, monkeypatch):
    start(learner)
    assert is_behind_frozen_parts(learner.peft, learner.engine.parameters)
    monkeypatch.setattr(learner.base.config.text_config, "attention_dropout", 0.1)  # is that of each pass
    assert is_behind_frozen_parts(learner.peft, learner.engine.parameters)
    monkeypatch.setattr(learner.base.config.vision_config, "attention_dropout", 0.1)
    assert not is_behind_frozen_parts(learner.peft, learner.engine.parameters)


def test_a_look_leaves_every_part_in_the_mode_that_it_had(learner, batch):
    start(learner)
    modes = []

    def in_hook(loss, outputs):
        before = [part.training for part in learner.peft.modules()]
        outputs.logits_at(None)
        modes.append((before, [part.training for part in learner.peft.modules()]))
        return loss

    learner.step(batch, 0, lambda *_: None, StepHooks(in_hook))
    ((before, after),) = modes
    assert before == after
    assert any(before)
