"""ModalPrompt: guidance, the choice of sets, the terms of the loss. Fwd-Prompt: subspaces and projections."""

from dataclasses import replace

import pytest
import tiny_clip
import torch
from marked import first_quick
from method_samples import ORDER, with_training
from torch.nn.functional import cosine_similarity

from dgg_ray.adapters.prompt import Prompt
from dgg_ray.core.interfaces import ShardedTensors, StepHooks
from dgg_ray.core.strategy import bind_context
from dgg_ray.strategies.fwd_prompt import FwdPrompt, grown
from dgg_ray.strategies.modal_prompt import ModalPrompt

STRATEGY = ModalPrompt(prompt_tokens=3, sets=2)
PROJECTED = FwdPrompt(prompt_tokens=3, pretrained_energy=0.7, task_examples=8)


def prepared(world, stage, steps, strategy=STRATEGY):
    """The strategy after a stage, to train on or to answer."""
    strategy = replace(strategy)
    bind_context(strategy, world.loaded(stage, strategy, steps))
    strategy.prepare()
    return strategy


@pytest.mark.parametrize("strategy", first_quick([STRATEGY, PROJECTED]), ids=["modal_prompt", "fwd_prompt"])
@pytest.mark.whole
def test_an_interrupted_stage_ends_with_the_same_bytes(world, strategy):
    assert world.ends_the_same_when_interrupted(strategy)


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
    world.loaded(stages[0])
    assert world.evaluate(stages[2], "shapes", "again") == first


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


def test_in_training_the_newest_set_stands_nearest_and_the_best_earlier_one_before_it(own_world, monkeypatch):
    seen = []
    real = Prompt.set_route
    monkeypatch.setattr(Prompt, "set_route", lambda self, w: (seen.append(w), real(self, w))[1])
    world = with_training(own_world, own_world.folder, micro_batch_size=3)
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


@pytest.mark.whole
def test_with_clip_a_prototype_has_the_size_of_its_features(world, tmp_path):
    folder = tiny_clip.clip(tmp_path / "clip")
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


# -- Fwd-Prompt ------------------------------------------------------------------------------------


def rows(world, stage):
    """The prompt (rows, H) that a stage ended with; it is all that the stage stores."""
    (prompt,) = world.files(stage).values()
    return prompt


def projecting(world, stages, **settings):
    """The strategy that trains the last of the stages, from the end of the one before it.

    Returns it with Q (H, q), and with QU (H, u).
    """
    strategy = replace(PROJECTED, **settings)
    context = world.loaded(stages[-2], strategy)
    context.stage, context.task, context.earlier = stages[-1], stages[-1].task, stages[-1].earlier
    bind_context(strategy, context)
    strategy.prepare()
    strategy.begin_task(world.learner.weights(), context.task, context.earlier, 0)
    pretrained = strategy.cache["pretrained"]
    return strategy, pretrained, pretrained @ strategy.cache["earlier"]


def outside(rows, pretrained, earlier):
    """Shares of the rows' norm: along earlier tasks, and outside the pre-trained space."""
    left = rows - rows @ pretrained @ pretrained.T
    return float((rows @ earlier).norm() / rows.norm()), float(left.norm() / rows.norm())


def orthonormal(basis):
    return torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)


def test_a_basis_grows_by_the_fewest_directions_that_hold_the_share():
    moments, nothing = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), torch.zeros(4, 0)
    for energy, count in [(0.0, 0), (0.3, 1), (0.4, 1), (0.5, 2), (0.7, 2), (0.9, 3), (1.0, 4)]:
        basis = grown(nothing, moments, energy)
        assert basis.shape == (4, count)
        assert torch.allclose(basis.abs(), torch.eye(4)[:, :count], atol=1e-6)
    fourth = torch.eye(4)[:, 3:]  # holds 1 of 10 already
    assert torch.equal(grown(fourth, moments, 0.1), fourth)
    expected = torch.eye(4)[:, [3, 0]]
    assert torch.allclose(grown(fourth, moments, 0.5).abs(), expected, atol=1e-6)  # 1 + 4
    assert grown(fourth, moments, 0.51).shape == (4, 3)
    assert orthonormal(grown(fourth, moments, 1.0))


def test_embedding_products_are_those_of_the_prompts_tokens_without_the_layouts_vectors(world, tasks):
    (stage,) = world.train(PROJECTED, order=("words",))
    context, learner = world.loaded(stage, PROJECTED), world.learner
    model, projected = learner.peft.get_base_model(), []
    projector = next(m for n, m in model.named_modules() if n.endswith("multi_modal_projector"))
    table = learner.layout.parts["embedding"].weight.detach()
    examples = [tasks[name].examples["train"][0] for name in ORDER]
    ids = torch.tensor([token for e in examples for token in learner.encode(e).prompt])
    hook = projector.register_forward_hook(lambda module, inputs, output: projected.append(output[0]))
    found = context.embedding_products(examples)
    hook.remove()
    is_image = ids == model.config.image_token_id
    images = torch.cat(projected)
    assert len(images) == is_image.sum() > 0
    x = torch.cat([table[ids[~is_image]], images])
    assert torch.allclose(found, x.T @ x / len(ids), rtol=1e-4, atol=1e-3)

    texts = [replace(e, image=None) for e in examples]
    x = table[[token for e in texts for token in learner.encode(e).prompt]]
    assert torch.allclose(context.embedding_products(texts), x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.whole
def test_the_earlier_tasks_basis_grows_holds_its_share_and_stays_orthonormal(world):
    stages, bases = world.train(PROJECTED, ORDER), []
    for n in (2, 3):
        strategy, pretrained, earlier = projecting(world, stages[:n], task_examples=16)
        assert orthonormal(pretrained)
        assert orthonormal(earlier)
        for task in ORDER[: n - 1]:
            examples = world.tasks[task].examples["train"]
            found = strategy.context.embedding_products(examples)
            inside = (pretrained.T @ found @ pretrained).trace()
            assert (earlier.T @ found @ earlier).trace() > 0.8999 * inside
        bases.append(earlier)
    first, both = bases
    assert 0 < first.shape[1] < both.shape[1] < pretrained.shape[1]
    assert torch.allclose(both @ both.T @ first, first, atol=1e-5)


def test_the_projected_gradient_is_off_earlier_tasks_and_inside_the_pretrained_space(world, tasks):
    strategy, *spaces = projecting(world, world.train(PROJECTED, ORDER))
    seen = []

    def edit(weights, gradients, step):
        seen.append(gradients[0].clone())
        strategy.edit_gradient(weights, gradients, step)
        seen.append(gradients[0].clone())

    world.learner.step(tasks["shapes"].examples["train"][:4], 0, edit)
    before, after = seen
    assert min(outside(before, *spaces)) > 0.1
    assert max(outside(after, *spaces)) < 1e-5
    assert 0.1 < after.norm() / before.norm() < 1
    # the nearest one in the subspace: what was taken off is orthogonal to what is left
    assert abs(float(((before - after) * after).sum())) < 1e-5 * float(before.norm() ** 2)


@pytest.mark.whole
def test_the_update_stays_in_the_subspace_although_adamw_rescales_it(own_world, monkeypatch):
    world = with_training(own_world, own_world.folder, weight_decay=0.1)
    stages = world.train(PROJECTED, ORDER)
    _, *spaces = projecting(world, stages)
    moved = rows(world, stages[2]) - rows(world, stages[1])
    assert moved.abs().max() > 1e-3
    assert max(outside(moved, *spaces)) < 1e-4
    world.store.discard(stages[2].key)
    monkeypatch.setattr(FwdPrompt, "after_step", lambda self, weights, step: None)
    world.train(PROJECTED, ORDER)
    assert min(outside(rows(world, stages[2]) - rows(world, stages[1]), *spaces)) > 0.05


def test_each_step_projects_its_own_update(world, tasks):
    strategy, pretrained, earlier = projecting(world, world.train(PROJECTED, ORDER))
    seen = []

    def after(weights, step):
        raw = weights[0].detach().clone()
        strategy.after_step(weights, step)
        seen.append((raw, weights[0].detach().clone()))

    for step in range(2):
        batch = tasks["shapes"].examples["train"][4 * step :][:4]
        world.learner.step(batch, step, strategy.edit_gradient, StepHooks(after=after))
    before, (raw, now) = seen[0][1], seen[1]
    projector = pretrained @ pretrained.T - earlier @ earlier.T
    assert torch.allclose(now, before + (raw - before) @ projector, atol=1e-6)
    assert not torch.allclose(now, raw, atol=1e-4)


def test_a_process_with_a_part_of_the_prompt_projects_the_whole(world):
    strategy, *_ = projecting(world, world.train(PROJECTED, ORDER[:2]))
    whole = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    expected = strategy._projected(whole).flatten()
    for part in (slice(0, 100), slice(100, 288)):
        strategy.cache["own"] = torch.arange(288)[part]

        def total(own, part=part):
            assert torch.equal(own[part], whole.flatten()[part])
            assert own.count_nonzero() == len(own[part])
            return whole.flatten()

        gradients = ShardedTensors([whole.flatten()[part].clone()], total=total)
        strategy.edit_gradient(gradients, gradients, 0)
        assert torch.equal(gradients[0], expected[part])


def test_where_earlier_tasks_fill_the_pretrained_space_the_prompt_stays(world):
    strategy = replace(PROJECTED, pretrained_energy=0.05, task_energy=1.0)
    first, second = (rows(world, stage) for stage in world.train(strategy))
    assert torch.allclose(first, second, atol=1e-6)
    free = replace(strategy, task_energy=0.0)
    assert not torch.allclose(first, rows(world, world.train(free)[1]), atol=1e-3)


def test_a_trained_projector_is_left_alone(world, tasks):
    world = with_training(world, world.folder, projector_learning_rate=1e-3)
    strategy, *spaces = projecting(world, world.train(PROJECTED, ORDER[:2]))
    seen = []

    def edit(weights, gradients, step):
        seen.append([g.clone() for g in gradients])
        strategy.edit_gradient(weights, gradients, step)
        seen.append([g.clone() for g in gradients])

    world.learner.step(tasks["shapes"].examples["train"][:4], 0, edit)
    for name, before, after in zip(strategy.context.names, *seen, strict=True):
        assert torch.equal(before, after) != name.endswith("lora_prompt")
        if name.endswith("lora_prompt"):
            assert max(outside(after, *spaces)) < 1e-5


def test_all_tasks_train_one_prompt_and_a_loaded_stage_answers_the_same(world):
    stages = world.train(PROJECTED, ORDER)
    assert {rows(world, stage).shape for stage in stages} == {(3, 96)}
    world.loaded(stages[0], PROJECTED)  # the second stage begins where the first one ended
    assert torch.equal(world.learner.weights()[0].detach(), rows(world, stages[0]))
    first = world.evaluate(stages[2], "shapes")
    world.loaded(stages[0])
    assert world.evaluate(stages[2], "shapes", "again") == first


def test_settings_that_train_the_same_share_a_stage_and_others_do_not(world):
    different = [
        PROJECTED, replace(PROJECTED, pretrained_energy=0.8), replace(PROJECTED, task_energy=0.8),
        replace(PROJECTED, task_examples=9), replace(PROJECTED, prompt_tokens=4),
        replace(PROJECTED, buffer=2),
    ]  # fmt: skip
    first, second = ([world.stages(strategy)[n].key for strategy in different] for n in (0, 1))
    assert len(set(second)) == len(different)
    assert len(set(first)) == 3  # rows and the pre-trained space alone
    unused = replace(PROJECTED, task_energy=0.0)
    assert world.stages(unused)[1].key == world.stages(replace(unused, task_examples=9))[1].key
