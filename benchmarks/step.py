"""The cost of guidance: a DGG step against a plain LoRA step on the same batches, in one run.

    python benchmarks/step.py                       the embedded model on one CPU thread
    python benchmarks/step.py --model 7b --gpu      LLaVA-1.5-7B's config, random weights, bf16, one GPU

Rounds of plain steps and of guided steps alternate, so that both meet the same load. α is 1: every step is
guided, where a study guides a share of the steps. The benchmark prints the median ratio over the rounds; the
time of guidance alone against that of its minimal memory traffic (read θ, θ* and g, write g); examples and
tokens per second for training and evaluations; and the share of the machine's matrix rate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dgg_ray.core.interfaces import Adapter, Model, ShardedTensors, StageSetup, Training
from dgg_ray.models.embedded import Embedded
from dgg_ray.readers.embedded import Embedded as Tasks
from dgg_ray.strategies.dgg import DGG, add_guidance
from dgg_ray.training.learner import PeftLearner


@dataclass(frozen=True)
class Random7B(Model):
    """LLaVA-1.5-7B with random weights: as fast and as large as the real model."""

    plain_head = True
    layers: int = 32
    hidden: int = 4096

    def load(self) -> tuple[Any, Any]:
        from transformers import (
            CLIPImageProcessorPil,
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
            LlavaProcessor,
        )

        _, embedded = Embedded().load()
        words = embedded.tokenizer
        vision = CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14, projection_dim=768,
        )  # fmt: skip
        text = LlamaConfig(
            vocab_size=32064, hidden_size=self.hidden, intermediate_size=self.hidden * 43 // 16,
            num_hidden_layers=self.layers, num_attention_heads=32, max_position_embeddings=4096,
            bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        )  # fmt: skip
        config = LlavaConfig(
            vision_config=vision, text_config=text, vision_feature_layer=-2, image_seq_length=576,
            image_token_index=words.convert_tokens_to_ids("<image>"),
        )  # fmt: skip
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlavaForConditionalGeneration(config)
        torch.set_default_dtype(before)
        size = {"shortest_edge": 336}
        images = CLIPImageProcessorPil(size=size, crop_size={"height": 336, "width": 336})
        processor = LlavaProcessor(
            images, words, patch_size=14, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=embedded.chat_template,
        )  # fmt: skip
        return model.eval(), processor

    def fingerprint(self) -> str:
        return "random"


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median(run: Callable[[], Any], device: torch.device, times: int) -> float:
    return statistics.median(seconds(run, device) for _ in range(times))


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of one large matrix product in that precision."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype if precision == "bf16" else torch.float32)
    return 2 * side**3 / median(lambda: a @ a, device, 9)


def copy_rate(device: torch.device, bytes_: int) -> float:
    """Return the bytes/s, read and written, of a copy as large as the weights."""
    a = torch.randn(max(bytes_ // 4, 1), device=device)
    b = torch.empty_like(a)
    return 2 * bytes_ / median(lambda: b.copy_(a), device, 21)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["embedded", "7b"], default="embedded")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="steps of one kind in a round")
    parser.add_argument(
        "--layers", type=int, default=32, help="layers of the 7b model; fewer for a quick try"
    )
    parser.add_argument("--hidden", type=int, default=4096)
    o = parser.parse_args()

    torch.manual_seed(0)
    if not o.gpu:
        torch.set_num_threads(1)
    small = o.model == "embedded"
    model: Model = Embedded() if small else Random7B(o.layers, o.hidden)
    learner = PeftLearner(model, "cuda" if o.gpu else "cpu")
    device = learner.device
    precision = "bf16" if o.gpu else "fp32"
    adapter = Adapter(rank=o.rank or (8 if small else 48))
    training = Training(
        batch_size=o.batch, micro_batch_size=o.micro, learning_rate=1e-4, schedule="constant",
        precision=precision, gradient_checkpointing=not small,
    )  # fmt: skip
    examples = Tasks(train=max(o.batch, 32), validation=32, test=32).read("words").examples
    batch = examples["train"][: o.batch]

    learner.start(StageSetup(adapter, training, 10**6, 0, "words"))
    dgg = DGG(alpha=1.0)
    dgg.begin_task(learner.weights(), "words", ("digits",), 0)
    edits = {"plain": lambda weights, gradients, step: None, "guided": dgg.edit_gradient}
    step = iter(range(10**6))

    def run_steps(kind: str) -> None:
        for _ in range(o.steps):
            learner.step(batch, next(step), edits[kind])

    for kind in edits:
        run_steps(kind)  # warm-up
    times: dict[str, list[float]] = {kind: [] for kind in edits}
    for number in range(o.rounds):
        for kind in sorted(edits, reverse=number % 2 == 0):  # the first kind alternates too
            times[kind].append(seconds(partial(run_steps, kind), device) / o.steps)
    ratios = [g / p for g, p in zip(times["guided"], times["plain"], strict=True)]
    plain, ratio = statistics.median(times["plain"]), statistics.median(ratios)

    weights = ShardedTensors(w.detach().clone() for w in learner.weights())
    anchor, gradients = ([torch.randn_like(w) for w in weights] for _ in range(2))
    alone = median(lambda: add_guidance(weights, anchor, ShardedTensors(gradients)), device, 51)
    bytes_ = 4 * sum(w.numel() * w.element_size() for w in weights)
    minimum = bytes_ / copy_rate(device, bytes_ // 4)

    with FlopCounterMode(display=False) as counter:
        learner.step(batch, next(step), edits["plain"])
    tokens = sum(len(e.prompt) + len(e.answer) for e in map(learner.encode, batch))
    learner.answer(examples["test"], 4)
    evaluations = median(lambda: learner.answer(examples["test"], 4), device, 3)
    rate = matrix_rate(device, precision)
    spread = sorted(ratios)
    print(f"model                    {o.model}, rank {adapter.rank}, batch {o.batch}, {precision}, {device}")
    print(f"device                   {torch.cuda.get_device_name() if o.gpu else 'CPU, one thread'}")
    print(f"trainable                {sum(w.numel() for w in weights):,} in {len(weights)} tensors")
    print(f"plain step               {1e3 * plain:.2f} ms  ({o.batch / plain:.0f} examples/s, "
          f"{tokens / plain:.0f} tokens/s)")  # fmt: skip
    print(f"guided / plain           {ratio:.4f}  (rounds: {spread[len(spread) // 10]:.4f} to "
          f"{spread[-1 - len(spread) // 10]:.4f}, first to ninth decile)")  # fmt: skip
    print(f"guidance alone           {1e3 * alone:.3f} ms, {alone / plain:.2%} of a step")
    print(f"its minimal traffic      {bytes_ / 1e6:.1f} MB, {1e3 * minimum:.3f} ms: {minimum / alone:.0%}")
    print(f"evaluations              {len(examples['test']) / evaluations:.0f} examples/s at 4 new tokens")
    print(f"matrix rate              {rate / 1e9:.0f} GFLOP/s; a step reaches "
          f"{counter.get_total_flops() / plain / rate:.0%} of it")  # fmt: skip
    if o.gpu:
        print(f"peak memory              {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
