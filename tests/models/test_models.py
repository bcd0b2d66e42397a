"""Every architecture: loaded from a folder, trained for a stage, asked, saved, taken up again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_models as tiny
import torch

from dgg_ray.core import plugins
from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import Adapter, Example, StageSetup, StepHooks, Training
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training import features
from dgg_ray.training.learner import PeftLearner

pytestmark = pytest.mark.whole
ADAPTER = Adapter(rank=2)
TRAINING = Training(batch_size=4, micro_batch_size=2, learning_rate=2e-2, schedule="constant", warmup=0.0)
# model, architecture, settings: a single file's and the auto classes'
MODELS = {
    "llava_1_5": (tiny.llava, {}),
    "qwen2_5_vl": (tiny.qwen2_5_vl, {}),
    "smolvlm": (tiny.smolvlm, {}),
    "smolvlm in parts": (tiny.smolvlm, {"image_splitting": True}),
    "auto": (tiny.llava, {}),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    torch.set_num_threads(1)
    build, settings = MODELS[request.param]
    folder = build(tmp_path_factory.mktemp("model") / "tiny")
    kind = plugins.find("models", request.param.partition(" ")[0])
    model = kind(str(folder), dtype="float32", **settings)
    assert model.faults() == []
    return model, PeftLearner(model)


def examples(count=8):
    """Pictures of two sizes, and one without."""
    draw = np.random.default_rng(0)
    shapes = [(40, 56, 3), (64, 32, 3)]
    made = [
        Example(str(i), "What is it?", ("one", "two")[i % 2], draw.integers(0, 255, shapes[i % 2], np.uint8))
        for i in range(count)
    ]
    return [*made[:-1], replace(made[-1], image=None)]


def begin(learner, parent=None, done=0, **training):
    learner.start(StageSetup(ADAPTER, replace(TRAINING, **training), 12, 0, "words", parent))


def test_a_stage_is_trained_evaluated_and_resumed(case, tmp_path):
    _, learner = case
    begin(learner)
    strategy = DGG(alpha=0.5)
    strategy.begin_task(learner.weights(), "words", ("digits",), 0)
    losses = [learner.step(examples()[:4], k, strategy.edit_gradient) for k in range(12)]
    assert losses[-1] < 0.95 * losses[0]
    answers = learner.answer(examples(), 4)
    assert len(answers) == 8
    learner.gather()
    learner.save(tmp_path / "adapter")
    end = [w.detach().clone() for w in learner.weights()]
    begin(learner)
    assert not all(torch.equal(a, b) for a, b in zip(learner.weights(), end, strict=True))
    begin(learner, parent=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(learner.weights(), end, strict=True))
    assert learner.answer(examples(), 4) == answers


def test_answers_do_not_depend_on_the_rest_of_their_batch(case):
    _, learner = case
    begin(learner)
    assert learner.answer(examples(), 3) == [learner.answer([e], 3)[0] for e in examples()]


def test_the_loss_of_a_batch_is_the_mean_over_its_examples(case):
    _, learner = case
    begin(learner)
    batch = [learner.encode(e) for e in examples()]
    with torch.no_grad():
        together = learner.engine.loss(**learner.encode.collate(batch))
        alone = sum(learner.engine.loss(**learner.encode.collate([e])) for e in batch)
    assert together.item() == pytest.approx(alone.item(), rel=1e-4)


def test_the_answer_follows_the_prompt_as_the_template_writes_it(case):
    _, learner = case
    end = learner.tokenizer.eos_token
    answer = learner.tokenizer.decode(learner.encode(examples()[0]).answer)
    assert answer == learner.encode.answer_prefix + "one" + end
    whole = learner.encode._prompt("What is it?", True, "one").rstrip().removesuffix(end)
    assert whole == learner.encode._prompt("What is it?", True) + answer.removesuffix(end)


def test_only_the_language_model_is_adapted(case):
    _, learner = case
    begin(learner)
    names = [n for n, p in learner.peft.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * sum(
        "layers" in n and n.endswith("q_proj.lora_A.default.weight") for n in names
    )
    assert not any(part in name for name in names for part in ("vision", "visual", "projector", "connector"))


def test_the_projector_is_trained_at_its_own_rate_when_asked_for(case, tmp_path):
    _, learner = case
    begin(learner, projector_learning_rate=1e-3)
    names = {id(p): n for n, p in learner.peft.named_parameters()}
    start = {names[id(p)]: p.detach().clone() for p in learner.weights()}
    projector = [n for n in start if "lora_" not in n]
    assert projector
    assert [g["lr"] for g in learner.engine.optimizer.param_groups] == [2e-2, 1e-3]
    for k in range(2):
        learner.step(examples()[:4], k, lambda weights, gradients, step: None)
    learner.step([examples()[-1]], 2, lambda weights, gradients, step: None)  # no picture: it is passed by
    now = {n: p for n, p in learner.peft.named_parameters() if n in start}
    moved = {n: (now[n] - start[n]).abs().max().item() for n in projector}
    assert all(0 < size <= 3.1e-3 for size in moved.values())  # AdamW moves by the rate at most
    learner.gather()
    learner.save(tmp_path / "adapter")
    answers = learner.answer(examples(), 3)
    begin(learner, projector_learning_rate=1e-3)
    assert all(torch.equal(p, start[names[id(p)]]) for p in learner.weights() if id(p) in names)
    begin(learner, parent=tmp_path, projector_learning_rate=1e-3)
    assert learner.answer(examples(), 3) == answers
    begin(learner)


def test_a_trained_projector_is_fp32_on_a_base_of_16_bits_in_a_fresh_worker_too(case, tmp_path):
    model, _ = case
    ends, training = [], {"projector_learning_rate": 1e-5, "precision": "bf16"}
    warm = PeftLearner(replace(model, dtype="bfloat16"))
    begin(warm, **training)
    warm.step(examples()[:4], 0, lambda weights, gradients, step: None)
    warm.gather()
    warm.save(tmp_path / "adapter")
    for learner in (warm, PeftLearner(replace(model, dtype="bfloat16"))):
        begin(learner, parent=tmp_path, **training)
        assert {w.dtype for w in learner.weights()} == {torch.float32}
        learner.step(examples()[:4], 0, lambda weights, gradients, step: None)
        ends.append([w.detach().clone() for w in learner.weights()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_remains_of_a_failed_step_do_not_reach_the_next_stage(case):
    def broken(weights, gradients, step):
        raise RuntimeError("out of memory")

    _, learner = case
    ends = []
    for before in (False, True):
        begin(learner)
        if before:
            with pytest.raises(RuntimeError):
                learner.step(examples()[4:8], 0, broken)
            begin(learner)
        learner.step(examples()[:4], 0, lambda weights, gradients, step: None)
        ends.append([w.detach().clone() for w in learner.weights()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_checkpointed_activations_give_the_same_step(case):
    _, learner = case
    ends = []
    for checkpointing in (False, True):
        begin(learner, gradient_checkpointing=checkpointing)
        for k in range(3):
            learner.step(examples()[:4], k, lambda weights, gradients, step: None)
        ends.append([w.detach().clone() for w in learner.weights()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))
    begin(learner)


# -- bad folders -----------------------------------------------------------------------------------


def said(model) -> str:
    return " | ".join(f"{path}: {rule}, {found}" for path, rule, found in model.faults())


def test_a_folder_of_another_architecture_names_auto(tmp_path):
    folder = str(tiny.smolvlm(tmp_path / "tiny"))
    rule = said(plugins.find("models", "llava_1_5")(folder))
    assert "must hold a LlavaForConditionalGeneration; for others there is the model `auto`" in rule
    assert "Idefics3ForConditionalGeneration" in rule


def test_a_model_without_vision_is_a_fault(tmp_path):
    folder = tiny.smolvlm(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert "must hold a model that takes images" in said(plugins.find("models", "auto")(str(folder)))


def test_a_folder_without_processor_or_template_is_a_fault(tmp_path):
    folder = tiny.qwen2_5_vl(tmp_path / "tiny")
    for file in [*folder.glob("*processor_config.json"), *folder.glob("chat_template*")]:
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rules = said(plugins.find("models", "auto")(str(folder)))
    assert "must hold *processor_config.json" in rules
    assert "must hold a chat template" in rules


def test_four_bits_need_bitsandbytes(tmp_path, monkeypatch):
    folder = str(tiny.llava(tmp_path / "tiny"))
    monkeypatch.setattr("dgg_ray.models._pretrained.find_spec", lambda name: None)
    assert "four_bit: needs bitsandbytes" in said(plugins.find("models", "llava_1_5")(folder, four_bit=True))


def test_a_folder_below_home_is_found(tmp_path, monkeypatch):
    tiny.llava(tmp_path / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = plugins.find("models", "llava_1_5")("~/tiny", dtype="float32")
    assert model.faults() == []
    assert model.load()[1].image_token == "<image>"


def test_every_setting_that_changes_the_images_or_weights_changes_the_fingerprint(tmp_path):
    folder = tiny.llava(tmp_path / "tiny")
    variants = [("auto", {}), ("llava_1_5", {}), ("llava_1_5", {"dtype": "float32"}), ("smolvlm", {})]
    variants += [
        ("smolvlm", {"image_splitting": True}),
        ("qwen2_5_vl", {}),
        ("qwen2_5_vl", {"max_pixels": 1}),
    ]
    variants += [("llava_1_5", {"four_bit": True})]
    made = [plugins.find("models", name)(str(folder), **settings) for name, settings in variants]
    assert len({model.fingerprint() for model in made}) == len(variants)
    (tmp_path / "other").mkdir()
    other = shutil.copytree(folder, tmp_path / "other" / "tiny")
    assert plugins.find("models", "auto")(str(other)).fingerprint() == made[0].fingerprint()
    (tmp_path / "merges").mkdir()
    words = shutil.copytree(folder, tmp_path / "merges" / "tiny")
    (words / "merges.txt").write_text("other words")
    assert plugins.find("models", "auto")(str(words)).fingerprint() != made[0].fingerprint()


def test_auto_reports_a_missing_image_processor(tmp_path):
    folder = tiny.qwen2_5_vl(tmp_path / "tiny")
    with pytest.raises((StageError, ImportError, ValueError), match=r"processor|[Tt]orchvision"):
        plugins.find("models", "auto")(str(folder)).load()


def test_a_look_at_other_weights_reuses_what_the_language_model_saw(case):
    model, learner = case
    begin(learner)
    batch, found, runs = examples()[-4:], [], []
    draws = torch.Generator().manual_seed(0)
    weights = [p.detach() + 0.1 * torch.randn(p.shape, generator=draws) for p in learner.engine.parameters]

    def look(loss, outputs):
        found.append(outputs.logits_at(weights))
        return loss

    whole = learner.base.model.register_forward_hook(lambda *_: runs.append(1))
    learner.step(batch, 0, lambda *_: None, StepHooks(look))
    whole.remove()
    assert len(runs) == (2 if model.plain_head else 4)  # of two micro-batches
    begin(learner)
    for i, logits in enumerate(found):
        inputs = learner.inputs_of([learner.encode(example) for example in batch[2 * i : 2 * i + 2]])
        wanted = learner.loss.logits_at(weights, inputs.pop("labels"), inputs)
        assert torch.allclose(logits, wanted, atol=1e-4)


@pytest.mark.parametrize("side", ["image", "question"])
def test_features_of_a_batch_are_those_of_its_examples(case, side):
    _, learner = case
    begin(learner)
    together = features.extract(learner, examples(), "model", side)
    alone = []
    for example in examples():
        learner.features.clear()
        alone.append(features.extract(learner, [example], "model", side))
    assert torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-4)
    assert together[:-1].any(1).all()
    assert together[-1].any() == (side == "question")  # the last one has no image


def test_a_projector_that_was_trained_is_not_in_the_base_of_an_adapter_of_another_rank(case):
    _, learner = case

    def projector_at(rank):
        learner.start(StageSetup(Adapter(rank), replace(TRAINING, projector_learning_rate=1e-2), 4, 0, "a"))
        return [
            p.detach().clone()
            for n, p in zip(learner.names, learner.weights(), strict=True)
            if "lora_" not in n
        ]

    untouched = projector_at(2)
    learner.step(examples()[:4], 0, lambda weights, gradients, step: None)
    assert all(torch.equal(a, b) for a, b in zip(untouched, projector_at(3), strict=True))
