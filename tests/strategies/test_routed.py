"""DISCO and HiDe: one slot for each task, weighed for each example by the tasks' prototypes."""

from dataclasses import replace

import pytest
import tiny_clip
import torch
import yaml
from marked import first_quick
from method_samples import ORDER

from dgg_ray import load_study
from dgg_ray.adapters.lora_slots import LoraSlots
from dgg_ray.core import rng
from dgg_ray.core.errors import StudyError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.strategy import bind_context
from dgg_ray.models import embedded
from dgg_ray.strategies._prototypes import Prototypes
from dgg_ray.strategies.disco import DISCO
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.hide import HiDe

ALL = [DISCO(), HiDe(), HiDe(merge="factorwise", top="argmax")]
TASK_OF_SLOT = dict(enumerate(ORDER))


def named(strategy):
    return f"{type(strategy).__name__}-{getattr(strategy, 'merge', '')}"


def prepared(world, stage, strategy):
    """The strategy as it routes after a stage, with the learner at the stage's end."""
    strategy = replace(strategy)
    bind_context(strategy, world.loaded(stage, strategy, steps=0))
    strategy.prepare()
    return strategy


def questions_of(world, *tasks):
    return [example for task in tasks for example in world.tasks[task].examples["test"]]


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_one_task_is_plain_lora_and_shares_its_stage(world, strategy):
    (plain,) = world.train(Finetune(), order=("words",))
    (own,) = world.stages(strategy, order=("words",))
    assert own.key == plain.key
    assert "slot" not in world.evaluate(own, "words")[0]


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_a_slot_is_trained_as_if_it_were_alone(world, strategy):
    """Training does not see the earlier slots, so their weights do not matter to the new one."""
    first, second = world.train(strategy)
    trained = world.files(second)
    parent = world.files(first)
    own = [name for name in trained if "adapter_model" in name]
    frozen = [name for name in trained if "layout" in name]
    assert len(frozen) == len(own)
    kept = sorted(trained[name].float().sum().item() for name in frozen)
    assert kept == pytest.approx(sorted(parent[name].float().sum().item() for name in own))
    assert any(not torch.equal(trained[name], parent[name]) for name in own)


@pytest.mark.parametrize("strategy", first_quick(ALL), ids=named)
@pytest.mark.whole
def test_an_interrupted_stage_ends_with_the_same_bytes(world, strategy):
    assert world.ends_the_same_when_interrupted(strategy)


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_the_chosen_slot_stands_beside_each_prediction_and_only_trained_tasks_are_chosen(world, strategy):
    stages = world.train(strategy, ORDER)
    for task in ORDER:  # tasks as unlike as these are told apart for most examples
        slots = [TASK_OF_SLOT[row["slot"]] for row in world.evaluate(stages[2], task)]
        assert slots.count(task) >= 3
    assert {row["slot"] for row in world.evaluate(stages[1], "shapes")} <= {0, 1}


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_weights_are_of_the_trained_tasks_alone_and_sum_to_one(world, strategy):
    stages = world.train(strategy, ORDER)
    for stage in stages[1:]:
        weights = prepared(world, stage, strategy).route(questions_of(world, *ORDER))
        assert weights.shape == (12, len(stage.earlier) + 1)
        assert torch.allclose(weights.sum(1), torch.ones(12))
        assert (weights >= 0).all()


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_a_mixed_batch_is_answered_as_batches_of_one(world, strategy):
    stages = world.train(strategy, ORDER)
    route = prepared(world, stages[-1], strategy).route
    examples = questions_of(world, *ORDER)
    assert torch.equal(route(examples), torch.cat([route([example]) for example in examples]))
    assert logits(world, examples, route(examples)) == pytest.approx(
        [row for e in examples for row in logits(world, [e], route([e]))], abs=1e-3
    )


def logits(world, examples, weights):
    """The largest logits of each example's first answer token, routed."""
    learner = world.learner
    learner.peft.eval()
    inputs = learner.inputs_of([learner.encode(e) for e in examples], prompts_only=True)
    learner.layout.set_route(weights)
    with torch.no_grad():
        found = learner.peft(**inputs).logits[:, -1].max(1).values
    learner.layout.set_route(None)
    return found.tolist()


def test_an_answer_keeps_its_route_through_decoding(world):
    strategy = DISCO()
    stages = world.train(strategy, ORDER)
    examples = questions_of(world, "shapes")
    world.loaded(stages[-1], strategy, steps=0)
    alone = [token_logits(world, examples, torch.eye(3)[[slot] * 4]) for slot in range(3)]
    mixed = token_logits(world, examples, torch.eye(3)[[0, 1, 2, 0]])
    for row, slot in enumerate((0, 1, 2, 0)):
        assert torch.allclose(mixed[row], alone[slot][row], atol=1e-4)
    assert all(not torch.allclose(alone[a][:, 2], alone[b][:, 2], atol=1e-2) for a, b in ((0, 1), (1, 2)))
    world.loaded(stages[-1], steps=0)  # as a plain LoRA, the stage is its newest slot
    assert torch.allclose(token_logits(world, examples, None), alone[2], atol=1e-4)


def token_logits(world, examples, weights):
    """Logits (N, 3, V) of the first three tokens of answers."""
    learner = world.learner
    learner.peft.eval()
    inputs = learner.inputs_of([learner.encode(e) for e in examples], prompts_only=True)
    learner.layout.set_route(weights)
    with torch.no_grad():
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        found = learner.peft.generate(
            **inputs, **options, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
    learner.layout.set_route(None)
    return torch.stack(found.logits, 1)


@pytest.mark.parametrize("strategy", ALL, ids=named)
def test_a_stage_that_is_loaded_again_answers_the_same(world, strategy):
    stages = world.train(strategy, ORDER)
    first = world.evaluate(stages[-1], "shapes")
    world.loaded(stages[0])  # other weights in between
    assert world.evaluate(stages[-1], "shapes", "again") == first


def test_a_prototype_is_the_mean_of_a_seeded_sample_whatever_the_process_count(world):
    stages = world.train(DISCO(), order=("words",))
    context = world.loaded(stages[0])
    fact = context.fact(Prototypes("model", 5), "words")
    train = world.tasks["words"].examples["train"]
    drawn = [train[i] for i in rng.permutation(16, 0, "words", "prototypes")[:5]]
    images, texts = zip(*(context.features([example], "model") for example in drawn), strict=True)
    assert torch.allclose(fact["image"], torch.cat(images).mean(0), atol=1e-6)
    assert torch.allclose(fact["text"], torch.cat(texts).mean(0), atol=1e-6)


def test_settings_without_a_part_in_the_answers_share_their_stages(world):
    def key(strategy):
        return world.stages(strategy)[1].key

    assert key(HiDe(top="argmax", temperature=0.3)) == key(HiDe(top="argmax"))
    different = [
        DISCO(), DISCO(temperature=0.3), DISCO(prototype_examples=4), DISCO(buffer=2), HiDe(),
        HiDe(top="argmax"), HiDe(merge="factorwise"), HiDe(routed_layers=2), HiDe(temperature=0.3),
    ]  # fmt: skip
    assert len({key(strategy) for strategy in different}) == len(different)


def test_scores_are_the_mean_of_both_cosines_and_one_of_text(world):
    hide, disco = HiDe(temperature=0.5), DISCO(temperature=0.5)
    images, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])

    class Context:
        def image_features(self, examples, encoder):
            return images

        def question_features(self, examples, encoder):
            return texts

    for strategy in (hide, disco):
        bind_context(strategy, Context())
        strategy.cache["prototypes"] = {
            "image": torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
            "text": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        }
    example = Example("a", "?", "b")
    # cos(image) = 0.6, 0; cos(question) = 1, 0
    assert torch.allclose(hide.route([example]), (torch.tensor([[0.8, 0.0]]) / 0.5).softmax(1))
    assert torch.allclose(disco.route([example]), (torch.tensor([[1.0, 0.0]]) / 0.5).softmax(1))
    argmax = HiDe(top="argmax")
    bind_context(argmax, Context())
    argmax.cache.update(hide.cache)
    assert argmax.route([example]).tolist() == [[1.0, 0.0]]


def test_hide_routes_the_last_layer_and_merges_the_others():
    assert DISCO().layout() == LoraSlots("current", 0, "exact")
    assert HiDe(merge="factorwise").layout() == LoraSlots("current", 1, "factorwise")


@pytest.mark.whole
def test_with_clip_the_key_follows_the_content_of_the_folder(world, tmp_path):
    def key(folder):
        return world.stages(DISCO(encoder=str(folder)))[1].key

    here = tiny_clip.clip(tmp_path / "clip")
    there = tiny_clip.clip(tmp_path / "moved")
    assert key(here) == key(there)
    (there / "processor_config.json").write_text("{}")
    assert key(here) != key(there)


@pytest.mark.whole
def test_with_clip_a_prototype_has_the_size_of_its_features(world, tmp_path):
    strategy = DISCO(encoder=str(tiny_clip.clip(tmp_path / "clip")))
    stages = world.train(strategy)
    assert "slot" in world.evaluate(stages[1], "words")[0]
    ready = prepared(world, stages[1], strategy)
    ready.route(world.tasks["words"].examples["test"][:1])
    assert ready.cache["prototypes"]["text"].shape == (2, 8)


# -- faults ----------------------------------------------------------------------------------------


STUDY = """
name: routed
model: embedded
tasks: [{name: words, reader: embedded}, {name: digits, reader: embedded}]
strategy:
  name: disco
  encoder: ENCODER
orders: [[words, digits]]
seeds: [0]
"""


def fault_of(encoder):
    with pytest.raises(StudyError) as caught:
        load_study(yaml.safe_load(STUDY.replace("ENCODER", str(encoder))))
    (fault,) = caught.value.faults
    return fault.path, fault.rule


def test_a_missing_encoder_is_a_fault_before_anything_starts(tmp_path):
    assert fault_of(tmp_path / "nowhere") == ("strategy.encoder", "no such folder")
    path, rule = fault_of("openai/clip")
    assert path == "strategy.encoder"
    assert "a hub name with its commit" in rule


def test_a_folder_of_another_model_is_a_fault():
    path, rule = fault_of(embedded.FOLDER)
    assert path == "strategy.encoder"
    assert rule == "must hold a CLIP model: its config.json must have model_type clip"


def test_a_hub_name_with_its_commit_and_a_clip_model_are_no_fault(tmp_path):
    assert DISCO(encoder="openai/clip@" + "0a" * 20).faults() == []
    assert HiDe(encoder=str(tiny_clip.clip(tmp_path / "clip"))).faults() == []
