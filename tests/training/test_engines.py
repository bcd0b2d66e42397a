"""The same steps on every engine: plain, DDP and ZeRO agree with each other and with float64."""

import shutil
from dataclasses import replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import pytest
import torch
import two_processes as two
from safetensors.torch import load_file

from dgg_ray.core import rng
from dgg_ray.core.interfaces import StageSetup
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training.learner import PeftLearner

ZERO = ("zero1", "zero2", "zero3", "zero2-offload") if find_spec("deepspeed") else ()
TWO_PROCESSES = ("ddp", *ZERO)
BF16 = ("ddp-bf16", "zero2-bf16") if ZERO else ("ddp-bf16",)


pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one_process")
    for name in ("plain", "plain-bf16"):
        two.run(PeftLearner(Model()), folder, name)
    return folder


@pytest.fixture(scope="module")
def two_processes(one_process, tmp_path_factory) -> Path:
    """Results of two processes, for every engine; started once."""
    folder = tmp_path_factory.mktemp("two_processes")
    shutil.copy(one_process / two.CHECKPOINT_OF_ONE, folder)
    two.start_two(two.__file__, folder, [*TWO_PROCESSES, *BF16])
    return folder


def vector(tensors) -> torch.Tensor:
    values = [tensors[name].double().flatten() for name in sorted(tensors)]
    return torch.cat(values)


def relative_distance(a, b) -> float:
    """‖a - b‖ / ‖b‖ over all tensors."""
    return ((vector(a) - vector(b)).norm() / vector(b).norm()).item()


def reference() -> dict[str, torch.Tensor]:
    """The same steps in float64 on whole batches, with AdamW and DGG written from their formulas."""
    learner = PeftLearner(Model())
    learner.start(StageSetup(two.ADAPTER, two.TRAINING, two.STEPS, 0, "words"))
    names = {n: p for n, p in learner.peft.named_parameters() if p.requires_grad}
    learner.peft.double()
    theta = {n: p.detach().clone() for n, p in names.items()}
    anchor = {n: t.clone() for n, t in theta.items()}
    m, v = ({n: torch.zeros_like(t) for n, t in theta.items()} for _ in range(2))
    t, (b1, b2) = two.TRAINING, two.TRAINING.betas
    warmup = ceil(t.warmup * two.STEPS)
    for k, batch in enumerate(two.batches()):
        inputs = learner.encode.collate([learner.encode(e) for e in batch])
        inputs["pixel_values"] = inputs["pixel_values"].double()
        labels = inputs.pop("labels")[:, 1:]
        logp = learner.peft(**inputs).logits[:, :-1].log_softmax(-1)
        picked = logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        loss = -(picked * (labels >= 0)).sum() / (labels >= 0).sum()
        g = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
        if rng.uniform(0, "words", "gate", k) < two.STRATEGY.alpha:
            d = {n: theta[n] - anchor[n] for n in theta}
            size = vector(d).norm()
            factor = min(1.0, (vector(g).norm() / size).item()) if size > 0 else 0.0
            g = {n: g[n] + factor * d[n] for n in g}
        norm = vector(g).norm().item()
        g = {n: x * min(1.0, t.clip_norm / norm) for n, x in g.items()}
        turn = torch.tensor(torch.pi * (k - warmup) / (two.STEPS - warmup), dtype=torch.float64)
        rate = t.learning_rate * (k / warmup if k < warmup else 0.5 * (1 + torch.cos(turn).item()))
        for n, p in names.items():
            m[n] = b1 * m[n] + (1 - b1) * g[n]
            v[n] = b2 * v[n] + (1 - b2) * g[n] ** 2
            update = (m[n] / (1 - b1 ** (k + 1))) / ((v[n] / (1 - b2 ** (k + 1))).sqrt() + 1e-8)
            theta[n] = theta[n] - rate * update
            p.data.copy_(theta[n])
    return theta


def test_one_process_equals_the_formulas_in_float64(one_process):
    weights, results = two.load(one_process, "plain")
    assert relative_distance(weights, reference()) <= 1e-4
    assert results["losses"][-1] < results["losses"][0]


@pytest.mark.parametrize("engine", TWO_PROCESSES)
def test_two_processes_equal_one(engine, one_process, two_processes):
    (weights, results), (weights_of_two, results_of_two) = (
        two.load(one_process, "plain"),
        two.load(two_processes, engine),
    )
    assert relative_distance(weights_of_two, weights) <= 1e-5
    assert results_of_two["losses"] == pytest.approx(results["losses"], rel=1e-4)
    assert results_of_two["answers"] == results["answers"]


@pytest.mark.parametrize("engine", BF16)
def test_bf16_is_on_on_every_engine(engine, one_process, two_processes):
    fp32, bf16 = (load_file(one_process / f"{name}.safetensors") for name in ("plain", "plain-bf16"))
    bf16_of_two = load_file(two_processes / f"{engine}.safetensors")
    rounding = relative_distance(bf16, fp32)  # the effect of rounding to 8 bits
    assert {t.dtype for t in bf16_of_two.values()} == {torch.float32}
    assert 0.5 * rounding <= relative_distance(bf16_of_two, fp32) <= 2 * rounding
    assert relative_distance(bf16_of_two, bf16) <= 2 * rounding


@pytest.mark.parametrize("engine", TWO_PROCESSES)
def test_every_process_draws_the_same_gates(engine, one_process, two_processes):
    gates = [rank["gates"] for rank in two.load(two_processes, engine)[1]["ranks"]]
    dgg = replace(two.STRATEGY)
    dgg.memory.update(task="words", seed=0)
    assert gates == 2 * [[dgg.is_open(step) for step in range(two.STEPS)]]
    assert 0 < sum(gates[0]) < two.STEPS


@pytest.mark.parametrize("engine", TWO_PROCESSES)
def test_the_anchor_is_the_start_and_one_copy_of_a_process_s_shard(engine, one_process, two_processes):
    results = two.load(two_processes, engine)[1]
    total = vector(two.load(one_process, "plain")[0]).numel()
    elements = [rank["elements"] for rank in results["ranks"]]
    assert all(anchor == weights for anchor, weights in elements)
    assert sum(weights for _, weights in elements) == (2 * total if engine == "ddp" else total)
    anchor = load_file(two_processes / f"{engine}-anchor.safetensors")
    start = load_file(one_process / "plain-anchor.safetensors")
    assert all(torch.equal(anchor[n], start[n]) for n in start)


def test_alpha_zero_without_a_buffer_is_fine_tuning_bit_for_bit(one_process, two_processes):
    assert two.load(one_process, "plain")[1]["alpha_0_is_finetune"]
    assert all(two.load(two_processes, engine)[1]["alpha_0_is_finetune"] for engine in TWO_PROCESSES)


def test_a_resumed_stage_ends_with_the_same_bytes(one_process, two_processes):
    for folder, engine in ((one_process, "plain"), (two_processes, "ddp")):
        weights, results = two.load(folder, engine)
        resumed = load_file(folder / f"{engine}-after-break.safetensors")
        assert all(torch.equal(weights[n], resumed[n]) for n in weights)
        assert results["losses_after_break"] == results["losses"][two.BREAK :]


@pytest.mark.parametrize("engine", ZERO)
def test_with_zero_a_resumed_stage_ends_within_rounding(engine, two_processes):
    resumed = load_file(two_processes / f"{engine}-after-break.safetensors")
    assert relative_distance(resumed, two.load(two_processes, engine)[0]) <= 1e-5


@pytest.mark.parametrize("engine", TWO_PROCESSES)
def test_two_processes_resume_from_the_checkpoint_of_one(engine, one_process, two_processes):
    resumed = load_file(two_processes / f"{engine}-resumed-from-one.safetensors")
    assert relative_distance(resumed, two.load(one_process, "plain")[0]) <= 1e-5


def test_guidance_changes_the_trained_weights(one_process):
    learner = PeftLearner(Model())
    learner.start(StageSetup(two.ADAPTER, two.training_of(learner), two.STEPS, 0, "words"))
    for k, batch in enumerate(two.batches()):
        learner.step(batch, k, DGG(alpha=0.0).edit_gradient)
    learner.gather()
    assert relative_distance(learner.gathered, two.load(one_process, "plain")[0]) > 1e-3
