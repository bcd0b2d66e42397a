"""The same steps on every engine: plain, DDP and ZeRO agree with each other and with float64."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import pytest
import torch
import two_processes as two
from safetensors.torch import load_file

from dgg_ray.core import draws
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training.learner import PeftLearner

ZERO = ("zero1", "zero2", "zero3", "zero2-offload") if find_spec("deepspeed") else ()
SHARED = ("ddp", *ZERO)
BF16 = ("ddp-bf16", "zero2-bf16") if ZERO else ("ddp-bf16",)


pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plain")
    for name in ("plain", "plain-bf16"):
        two.results(PeftLearner(Model()), folder, name)
    return folder


@pytest.fixture(scope="module")
def shared(plain, tmp_path_factory) -> Path:
    """Results of two processes, for every engine; started once."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(plain / two.ALONE, folder)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    quiet = {"PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder)}
    processes = []
    for rank in range(2):
        environment = os.environ | meeting | quiet | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, two.__file__, str(folder), *SHARED, *BF16]
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "0.log").read_text()[-3000:]
    return folder


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def vector(tensors) -> torch.Tensor:
    values = [tensors[name].double().flatten() for name in sorted(tensors)]
    return torch.cat(values)


def apart(a, b) -> float:
    """‖a - b‖ / ‖b‖ over all tensors."""
    return ((vector(a) - vector(b)).norm() / vector(b).norm()).item()


def reference() -> dict[str, torch.Tensor]:
    """The same steps in float64 on whole batches, AdamW and DGG written from their formulas."""
    learner = PeftLearner(Model())
    learner.begin(two.ADAPTER, two.TRAINING, two.STEPS, 0, "words", None)
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
        if draws.uniform(0, "words", "gate", k) < two.STRATEGY.alpha:
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


def test_one_process_equals_the_formulas_in_float64(plain):
    weights, said = two.load(plain, "plain")
    assert apart(weights, reference()) <= 1e-4
    assert said["losses"][-1] < said["losses"][0]


@pytest.mark.parametrize("engine", SHARED)
def test_two_processes_equal_one(engine, plain, shared):
    (one, said), (both, heard) = two.load(plain, "plain"), two.load(shared, engine)
    assert apart(both, one) <= 1e-5
    assert heard["losses"] == pytest.approx(said["losses"], rel=1e-4)
    assert heard["answers"] == said["answers"]


@pytest.mark.parametrize("engine", BF16)
def test_bf16_is_on_on_every_engine(engine, plain, shared):
    exact, rounded = (load_file(plain / f"{name}.safetensors") for name in ("plain", "plain-bf16"))
    both = load_file(shared / f"{engine}.safetensors")
    far = apart(rounded, exact)  # what rounding to 8 bits does
    assert {t.dtype for t in both.values()} == {torch.float32}
    assert 0.5 * far <= apart(both, exact) <= 2 * far
    assert apart(both, rounded) <= 2 * far


@pytest.mark.parametrize("engine", SHARED)
def test_every_process_draws_the_same_gates(engine, plain, shared):
    draws_of = [share["gates"] for share in two.load(shared, engine)[1]["shares"]]
    dgg = replace(two.STRATEGY)
    dgg.memory.update(task="words", seed=0)
    assert draws_of == 2 * [[dgg.opens(step) for step in range(two.STEPS)]]
    assert 0 < sum(draws_of[0]) < two.STEPS


@pytest.mark.parametrize("engine", SHARED)
def test_the_anchor_is_the_start_and_one_copy_of_what_a_process_holds(engine, plain, shared):
    said = two.load(shared, engine)[1]
    whole = vector(two.load(plain, "plain")[0]).numel()
    held = [share["held"] for share in said["shares"]]
    assert all(anchor == weights for anchor, weights in held)
    assert sum(weights for _, weights in held) == (2 * whole if engine == "ddp" else whole)
    anchor = load_file(shared / f"{engine}-anchor.safetensors")
    started = load_file(plain / "plain-anchor.safetensors")
    assert all(torch.equal(anchor[n], started[n]) for n in started)


def test_alpha_zero_without_a_buffer_is_fine_tuning_bit_for_bit(plain, shared):
    assert two.load(plain, "plain")[1]["same"]
    assert all(two.load(shared, engine)[1]["same"] for engine in SHARED)


def test_a_stage_that_goes_on_in_its_middle_ends_with_the_same_bytes(plain, shared):
    for folder, engine in ((plain, "plain"), (shared, "ddp")):
        whole, said = two.load(folder, engine)
        broken = load_file(folder / f"{engine}-broken.safetensors")
        assert all(torch.equal(whole[n], broken[n]) for n in whole)
        assert said["halves"] == said["losses"][two.BREAK :]


@pytest.mark.parametrize("engine", ZERO)
def test_with_zero_it_ends_within_rounding(engine, shared):
    broken = load_file(shared / f"{engine}-broken.safetensors")
    assert apart(broken, two.load(shared, engine)[0]) <= 1e-5


@pytest.mark.parametrize("engine", SHARED)
def test_two_processes_finish_what_one_began(engine, plain, shared):
    taken_up = load_file(shared / f"{engine}-taken-up.safetensors")
    assert apart(taken_up, two.load(plain, "plain")[0]) <= 1e-5


def test_guidance_changes_what_is_learned(plain):
    learner = PeftLearner(Model())
    learner.begin(two.ADAPTER, two.learning(learner), two.STEPS, 0, "words", None)
    for k, batch in enumerate(two.batches()):
        learner.step(batch, k, DGG(alpha=0.0).edit_gradient)
    learner.gather()
    assert apart(learner.gathered, two.load(plain, "plain")[0]) > 1e-3
