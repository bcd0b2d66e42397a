"""Tests that need a GPU; skipped where there is none."""

from dataclasses import replace

import pytest
import torch
import two_processes as two

from dgg_ray.core.interfaces import StageSetup
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.training.learner import PeftLearner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA can use"),
]


def trained_weights(device: str, **training) -> list[torch.Tensor]:
    learner, strategy = PeftLearner(Model(), device), replace(two.STRATEGY)
    learner.start(StageSetup(two.ADAPTER, replace(two.TRAINING, **training), two.STEPS, 0, "words"))
    strategy.begin_task(learner.weights(), "words", ("digits",), 0)
    for step, batch in enumerate(two.batches()):
        learner.step(batch, step, strategy.edit_gradient)
    return [w.detach().cpu() for w in learner.weights()]


def test_guided_steps_on_a_gpu_equal_those_on_a_cpu():
    torch.backends.cuda.matmul.allow_tf32 = False
    on_gpu, on_cpu = (torch.cat([w.flatten() for w in trained_weights(device)]) for device in ("cuda", "cpu"))
    assert (on_gpu - on_cpu).norm() <= 1e-4 * on_cpu.norm()


def test_guidance_never_waits_for_the_gpu():
    learner, strategy = PeftLearner(Model(), "cuda"), replace(two.STRATEGY, alpha=1.0)
    learner.start(StageSetup(two.ADAPTER, two.TRAINING, two.STEPS, 0, "words"))
    strategy.begin_task(learner.weights(), "words", ("digits",), 0)
    gradients = type(learner.weights())(torch.randn_like(w) for w in learner.weights())
    torch.cuda.set_sync_debug_mode("error")
    try:
        strategy.edit_gradient(learner.weights(), gradients, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bf16_keeps_the_lora_weights_in_fp32():
    assert {w.dtype for w in trained_weights("cuda", precision="bf16")} == {torch.float32}
