"""The learner on the embedded model: gradients, determinism, checkpoints that PEFT reads."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import Adapter, AdapterLayout, StageSetup, Training
from dgg_ray.models import embedded
from dgg_ray.models.llava_1_5 import Llava15
from dgg_ray.readers.embedded import Embedded
from dgg_ray.strategies.dgg import DGG

ADAPTER, TRAINING = (
    Adapter(rank=2),
    Training(batch_size=8, learning_rate=1e-2, schedule="constant", warmup=0.0),
)


def no_edit(weights, gradients, step):
    """Leave the gradients as they are."""


@pytest.fixture(scope="module")
def learner():
    from dgg_ray.training.learner import PeftLearner  # late, as PEFT in the tests: it takes seconds

    torch.set_num_threads(1)
    return PeftLearner(embedded.Embedded())


@pytest.fixture(scope="module")
def examples():
    return Embedded(train=32, validation=10, test=10).read("words").examples["train"]


def start(learner, adapter=ADAPTER, parent=None, seed=0, **training):
    learner.start(StageSetup(adapter, replace(TRAINING, **training), 4, seed, "words", parent))
    return [w.detach().clone() for w in learner.weights()]


def trained(learner, examples, edit=no_edit, steps=4, **setup):
    start(learner, **setup)
    losses = [learner.step(examples[8 * i : 8 * i + 8], i, edit) for i in range(steps)]
    return [w.detach().clone() for w in learner.weights()], losses


def gradient(learner, examples, **training):
    """The gradient that a strategy sees in the first step."""
    copies = []
    start(learner, **training)
    learner.step(examples, 0, lambda weights, gradients, step: copies.extend(g.clone() for g in gradients))
    return torch.cat([g.flatten() for g in copies])


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_only_the_language_model_is_adapted(learner):
    start(learner)
    names = [n for n, p in learner.peft.named_parameters() if p.requires_grad]
    assert len(names) == 3 * 7 * 2  # layers × linears × (A, B)
    assert all("language_model" in n and "lora_" in n for n in names)


def test_the_loss_is_the_mean_over_answer_tokens(learner, examples):
    start(learner)
    batch = examples[:5]
    encoded = [learner.encode(e) for e in batch]
    with torch.no_grad():
        inputs = learner.encode.collate(encoded)
        logits = learner.peft(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    logp, nats, tokens = torch.log_softmax(logits.float(), -1), 0.0, 0
    for row, e in enumerate(encoded):
        for j, token in enumerate(e.answer):
            nats -= logp[row, len(e.prompt) + j - 1, token].item()
            tokens += 1
    assert learner.step(batch, 0, no_edit) == pytest.approx(nats / tokens, rel=1e-4)


def test_micro_batches_add_up_to_the_gradient_of_the_batch(learner, examples):
    whole = gradient(learner, examples[:8])
    parts = gradient(learner, examples[:8], micro_batch_size=3)
    assert (whole - parts).norm() <= 1e-5 * whole.norm()


def test_the_same_run_gives_the_same_bytes(learner, examples):
    first, losses = trained(learner, examples, adapter=Adapter(rank=2, dropout=0.3))
    trained(learner, examples, adapter=Adapter(rank=4))  # another shape in between
    again, losses_again = trained(learner, examples, adapter=Adapter(rank=2, dropout=0.3))
    assert equal(first, again)
    assert losses == losses_again


def test_another_seed_gives_other_start_weights(learner):
    a, b = start(learner, seed=1), start(learner, seed=2)
    assert not equal(a, b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if not x.any())  # B is zero for both


def test_alpha_zero_without_a_buffer_is_fine_tuning_bit_for_bit(learner, examples):
    dgg = DGG(alpha=0.0)
    dgg.begin_task(start(learner), "words", ("digits",), 0)
    assert equal(trained(learner, examples, dgg.edit_gradient)[0], trained(learner, examples)[0])


def test_guidance_keeps_the_weights_nearer_to_their_start(learner, examples):
    initial = start(learner)

    def distance(alpha):
        dgg = DGG(alpha=alpha)
        dgg.begin_task(initial, "words", ("digits",), 0)
        end, _ = trained(learner, examples, dgg.edit_gradient)
        return sum((e - s).square().sum() for e, s in zip(end, initial, strict=True)).sqrt().item()

    assert distance(1.0) < distance(0.0)


def test_the_strategy_edits_the_gradient_that_the_optimizer_uses(learner, examples):
    def stop(weights, gradients, step):
        for g in gradients:
            g.zero_()

    initial = start(learner)
    end, _ = trained(learner, examples, stop)
    assert equal(initial, end)


def test_a_saved_adapter_can_be_loaded_by_peft(learner, examples, tmp_path):
    trained(learner, examples)
    answers = learner.answer(examples[:10], 4)
    learner.gather()
    learner.save(tmp_path / "adapter")

    model, _ = embedded.Embedded().load()
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    inputs = learner.encode.collate([learner.encode(e) for e in examples[:10]], prompts_only=True)
    ids = loaded.generate(
        **inputs, max_new_tokens=4, do_sample=False, pad_token_id=learner.tokenizer.pad_token_id
    )
    new = learner.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [a.strip() for a in new] == answers


def test_a_stage_starts_exactly_from_a_saved_adapter(learner, examples, tmp_path):
    end, _ = trained(learner, examples)
    learner.gather()
    learner.save(tmp_path / "adapter")
    start(learner, adapter=Adapter(rank=4))  # another shape in between
    assert equal(start(learner, parent=tmp_path), end)


def test_answers_do_not_depend_on_their_batch(learner, examples):
    trained(learner, examples)
    together = learner.answer(examples[:6], 4)
    alone = [learner.answer([e], 4)[0] for e in examples[:6]]
    assert together == alone


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5]),
        ("cosine", [0.0, 0.5, 1.0, 0.5]),  # (1 + cos(π/2)) / 2
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(learner, examples, schedule, rates):
    start(learner, schedule=schedule, warmup=0.5, learning_rate=1e-2)
    seen = []
    for step in range(4):
        seen.append(learner.engine.optimizer.param_groups[0]["lr"] / 1e-2)
        learner.step(examples[:2], step, no_edit)
    assert seen == pytest.approx(rates)


@pytest.mark.parametrize(
    ("steps", "warmup", "rising"), [(10, 0.03, 1), (34, 0.03, 2), (100, 0.03, 3), (4, 0, 0)]
)
def test_the_number_of_warm_up_steps_is_rounded_up(learner, steps, warmup, rising):
    training = replace(TRAINING, warmup=warmup, learning_rate=1.0)
    learner.start(StageSetup(ADAPTER, training, steps, 0, "words"))
    rates = [learner.schedule.lr_lambdas[0](step) for step in range(steps)]
    assert sum(rate < 1 for rate in rates) == rising


def test_clipping_comes_after_the_edit_and_bounds_the_whole_gradient(learner, examples):
    def huge(weights, gradients, step):
        for g in gradients:
            g.fill_(3.0)

    start(learner, clip_norm=0.5)
    taken = []
    learner.engine.optimizer.register_step_pre_hook(
        lambda *_: taken.extend(p.grad.clone() for p in learner.weights())
    )
    learner.step(examples[:4], 0, huge)
    assert torch.cat([g.flatten() for g in taken]).norm().item() == pytest.approx(0.5, rel=1e-5)
    start(learner)


def test_text_only_examples_are_trained_and_answered(learner, examples):
    text = [replace(e, image=None) for e in examples[:4]]
    start(learner)
    assert np.isfinite(learner.step([*text, *examples[4:8]], 0, no_edit))
    assert np.isfinite(learner.step(text, 1, no_edit))
    assert len(learner.answer(text, 4)) == 4


class FrozenA(AdapterLayout):
    """Trains B alone, and forgets to store A."""

    def attach(self, model, setup):
        for name, value in model.named_parameters():
            if "lora_A" in name:
                value.requires_grad_(False)


class StoredA(FrozenA):
    """Trains B alone, and stores A."""

    def attach(self, model, setup):
        super().attach(model, setup)
        self.parts["a"] = {name: value for name, value in model.named_parameters() if "lora_A" in name}

    def frozen_tensors(self):
        return {name.replace("lora_A", "frozen_a"): value.detach() for name, value in self.parts["a"].items()}


def test_a_layout_that_would_lose_weights_is_refused(learner):
    setup = StageSetup(ADAPTER, TRAINING, 4, 0, "words", None)
    with pytest.raises(StageError, match=r"FrozenA.attach freezes .*lora_A.*: return it from frozen_tensors"):
        learner.start(replace(setup, layout=FrozenA()))
    learner.start(replace(setup, layout=StoredA()))
    assert all("lora_B" in name for name in learner.names)
    learner.start(setup)  # and the next stage trains A again, which nobody had set free
    assert sum("lora_A" in name for name in learner.names) == len(learner.names) / 2


def test_an_unknown_target_is_refused_with_the_existing_ones(learner):
    with pytest.raises(StageError, match=r"qproj not found.*q_proj"):
        start(learner, adapter=Adapter(targets=("qproj",)))


def test_only_the_chosen_targets_are_adapted(learner):
    start(learner, adapter=Adapter(targets=("q_proj", "v_proj")))
    names = [n for n, p in learner.peft.named_parameters() if p.requires_grad]
    assert len(names) == 3 * 2 * 2
    start(learner)


def test_bf16_keeps_the_lora_weights_in_fp32(learner, examples):
    weights, losses = trained(learner, examples, precision="bf16")
    assert {w.dtype for w in weights} == {torch.float32}
    assert np.isfinite(losses).all()


def test_a_llava_in_a_folder_gives_the_answers_of_the_embedded_one(examples, tmp_path, learner):
    folder = tmp_path / "llava"
    shutil.copytree(embedded.FOLDER, folder)
    model = Llava15(str(folder), dtype="float32")
    assert model.faults() == []
    other = type(learner)(model)
    start(other)
    start(learner)
    assert other.answer(examples[:5], 4) == learner.answer(examples[:5], 4)


def test_an_incomplete_model_folder_is_a_fault(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    said = " | ".join(rule for _, rule, _ in Llava15(str(tmp_path)).faults())
    assert "pickles, which are never read" in said
    assert "tokenizer_config.json" in said
    assert Llava15(str(tmp_path / "none")).faults()[0][1] == "no such folder"
    assert "is required for a hub name" in Llava15("llava-hf/llava-1.5-7b-hf").faults()[0][1]
    assert Llava15("llava-hf/llava-1.5-7b-hf", revision="0" * 40).faults() == []


def test_the_fingerprint_changes_with_the_weights_and_the_settings(tmp_path):
    folder = tmp_path / "llava"
    shutil.copytree(embedded.FOLDER, folder)
    before = Llava15(str(folder)).fingerprint()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "model.safetensors").write_bytes(b"other weights")
    assert Llava15(str(other)).fingerprint() != before
    assert Llava15(str(folder), dtype="float32").fingerprint() != before
