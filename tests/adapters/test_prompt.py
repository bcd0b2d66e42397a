"""Prompt vectors: where they stand, what of them is trained, what a stage keeps."""

import pytest
import torch
from method_samples import MethodWorld, make_learner, make_tasks, same

from dgg_ray.core.interfaces import Adapter, StageSetup
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.modal_prompt import ModalPrompt

ORDER = ("words", "digits", "shapes")
STRATEGY = ModalPrompt(prompt_tokens=3, sets=2)
EMBEDDING = "base_model.model.model.language_model.embed_tokens"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return MethodWorld(make_learner(), make_tasks(), tmp_path_factory.mktemp("prompts") / "store")


@pytest.fixture(scope="module")
def stages(world):
    return world.train(STRATEGY, ORDER)


def tensor(world, stage, name):
    return world.files(stage)[f"layout.safetensors/{EMBEDDING}.{name}"]


def test_earlier_sets_are_unchanged_and_in_the_files_of_later_stages(world, stages):
    frozen = [tensor(world, stage, "frozen_prompts") for stage in stages[1:]]
    own = [tensor(world, stage, "lora_prompt") for stage in stages]
    assert torch.equal(frozen[0], torch.stack(own[:1]))
    assert torch.equal(frozen[1], torch.stack(own[:2]))
    assert not torch.equal(own[0], own[1])


def test_a_frozen_prototype_is_the_mean_of_the_head_over_the_trained_rows(world, stages):
    read = {name: tensor(world, stages[0], f"lora_prompt_head.{name}") for name in ("0.weight", "0.bias")}
    last = {name: tensor(world, stages[0], f"lora_prompt_head.{name}") for name in ("2.weight", "2.bias")}
    hidden = tensor(world, stages[0], "lora_prompt") @ read["0.weight"].T + read["0.bias"]
    expected = (hidden * hidden.sigmoid() @ last["2.weight"].T + last["2.bias"]).mean(0)
    for stage in stages[1:]:
        assert torch.allclose(tensor(world, stage, "frozen_prototypes")[0], expected, atol=1e-6)


def test_a_stage_stores_no_lora_and_trains_rows_and_head_alone(world, stages):
    assert all("layout.safetensors/" in name for name in world.files(stages[2]))
    context = world.loaded(stages[2], STRATEGY)
    with context.at(None):  # the LoRA is switched off, and on again
        pass
    trained = {n for n, p in world.learner.peft.named_parameters() if p.requires_grad}
    assert trained == set(context.names)
    assert all("lora_prompt" in name for name in trained)
    before = {n: p.detach().clone() for n, p in world.learner.peft.named_parameters()}
    frozen = [t.clone() for t in world.learner.layout.frozen_tensors().values()]
    gradients = []
    world.learner.step(
        world.tasks["words"].examples["train"][:4], 0, lambda w, g, s: gradients.extend(t.norm() for t in g)
    )
    assert gradients[0] > 0  # of the rows; the head has no part in plain fine-tuning
    moved = {n for n, p in world.learner.peft.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {f"{EMBEDDING}.lora_prompt"}
    assert all(map(torch.equal, frozen, world.learner.layout.frozen_tensors().values()))


@pytest.fixture(scope="module")
def plain(world):
    """Plain LoRA of rank 1, which shares its layers with the layout's LoRA at zero."""
    return MethodWorld(world.learner, world.tasks, world.folder.with_name("plain"), Adapter(rank=1))


def test_the_lora_is_at_zero_whatever_was_trained_before(world, stages, plain):
    plain.loaded(plain.train(Finetune(), order=("words",))[0])
    b = [p for n, p in world.learner.peft.named_parameters() if ".lora_B." in n]
    assert all(p.any() for p in b)
    world.loaded(stages[0], STRATEGY, steps=0)
    assert b[0] is next(p for n, p in world.learner.peft.named_parameters() if ".lora_B." in n)
    assert not any(p.any() for p in b)


def test_after_it_is_taken_off_plain_lora_trains_as_before(world, stages, plain):
    expected = plain.files(plain.train(Finetune())[1])
    for stage in plain.stages(Finetune()):
        plain.store.discard(stage.key)
    world.loaded(stages[2], STRATEGY)
    assert same(expected, plain.files(plain.train(Finetune())[1]))
    assert not any("lora_prompt" in name for name, _ in world.learner.peft.named_parameters())


def embedded(world, examples, weights, prompts_only=True):
    """What the language model gets: (input ids, embeddings) of the examples."""
    learner, seen = world.learner, []
    learner.peft.eval()
    layer = learner.layout.parts["embedding"]
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    inputs = learner.inputs_of([learner.encode(e) for e in examples], prompts_only)
    inputs.pop("labels", None)
    learner.layout.set_route(weights)
    with torch.no_grad():
        learner.peft(**inputs)
    learner.layout.set_route(None)
    hook.remove()
    return inputs["input_ids"], seen[0]


@pytest.mark.parametrize("prompts_only", [True, False])
def test_each_example_gets_its_own_sets_after_the_first_token_with_the_largest_weight_last(
    world, stages, prompts_only
):
    world.loaded(stages[2], STRATEGY, steps=0)
    learner, layout = world.learner, world.learner.layout
    examples = [world.tasks[t].examples["test"][0] for t in ORDER]  # prompts of different lengths
    weights = torch.tensor([[0.1, 0.9, 0.5], [0.7, -0.2, 0.1], [0.0, 0.2, 0.3]])
    ids, vectors = embedded(world, examples, weights, prompts_only)
    sets = layout.prompts().detach()
    assert layout.extra_prompt_tokens == 6
    for row, (example, chosen) in enumerate(zip(examples, [(2, 1), (2, 0), (1, 2)], strict=True)):
        encoded = learner.encode(example)
        start = ids.shape[1] - len(encoded.prompt) - 6 if prompts_only else 0
        first = start + learner.encode.placeholders_start(encoded)
        expected = torch.cat([sets[chosen[0]], sets[chosen[1]]])
        assert torch.equal(vectors[row, first : first + 6], expected)
        others = [c for c in range(ids.shape[1]) if not first <= c < first + 6]
        table = layout.parts["embedding"].weight
        assert torch.equal(vectors[row, others], table[ids[row, others]])
        prompt = [*ids[row, start:first].tolist(), *ids[row, first + 6 :].tolist()]
        assert prompt[: len(encoded.prompt)] == encoded.prompt


def test_without_weights_the_newest_sets_are_inserted_and_switched_off_none(world, stages):
    world.loaded(stages[2], STRATEGY, steps=0)
    layout, example = world.learner.layout, world.tasks["words"].examples["test"][0]
    first = world.learner.encode.placeholders_start(world.learner.encode(example))
    _, vectors = embedded(world, [example], None)
    assert torch.equal(vectors[0, first : first + 6], layout.prompts().detach()[1:].flatten(0, 1))
    layout.switch(False)
    ids, vectors = embedded(world, [example], None)
    layout.switch(True)
    assert torch.equal(vectors[0], layout.parts["embedding"].weight[ids[0]])


def test_a_set_is_drawn_from_the_embedding_matrix_anew_for_each_task(world):
    rows = {}
    for task in ORDER[:2]:
        world.learner.start(
            StageSetup(world.adapter.with_rank(1), world.training, 2, 0, task, None, STRATEGY.layout())
        )
        rows[task] = world.learner.layout.prompts()[0].detach().clone()
        table = world.learner.layout.parts["embedding"].weight
        assert all(any(torch.equal(row, known) for known in table) for row in rows[task])
    assert not torch.equal(rows["words"], rows["digits"])


def test_a_mixed_batch_is_answered_as_batches_of_one_and_decoding_keeps_the_sets(world, stages):
    world.loaded(stages[2], STRATEGY, steps=0)
    examples = [world.tasks[t].examples["test"][i] for i in (0, 1) for t in ORDER]
    weights = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    together = world.learner.answer(examples, 8, weights)
    alone = [world.learner.answer([e], 8, w[None])[0] for e, w in zip(examples, weights, strict=True)]
    assert together == alone
