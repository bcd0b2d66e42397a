"""Make the embedded model: a vocabulary, a tiny LLaVA, and weights that can see.

    python scripts/pretrain_embedded.py [--see STEPS] [--say STEPS] [--seed N] [--workers N]

It learns from the exercises in embedded_exercises.py, which share no question with the embedded
tasks: the tasks are new to the model, but what they need to be seen is in its features, so that a
small LoRA adapter on the language model learns each alone. First the vision tower learns to see,
patch by patch, with heads that are thrown away; then projector and language model learn to say it.
Writes the folder that dgg_ray/models/embedded.py loads, and PRETRAINING.md with what it can do.
"""

from __future__ import annotations

import argparse
import math
import string
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from embedded_exercises import COMMON, EXERCISES, PAINTS, QUARTERS, SAID, THINGS, Drawn, glance, mixture
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dgg_ray.core.rng import make_rng
from dgg_ray.models import embedded as home
from dgg_ray.readers import embedded as tasks
from dgg_ray.readers.embedded import SIDE

DATE = "2026-11-22"
PATCHES, VOCABULARY = 16, 900
BATCH = 64  # pictures behind one step of the pre-training
Loss = Callable[[int, int, int], Tensor]  # of seed, step, pictures
TEMPLATE = (  # LLaVA 1.5's, with role marks that are one token each
    "{% for message in messages %}{{ message['role'].upper() + ':' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ ' <image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '</s>' }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SUFFIX = (
    "Answer the question using a single word or phrase. "
    "Answer with the option's letter from the given choices directly."
)

# -- vocabulary and model --------------------------------------------------------------------------


def build_processor(seed: int) -> LlavaProcessor:
    """A byte-level BPE in which common words and all answers are one token."""
    texts = [f"{question} {answer}" for _, question, answer in mixture(seed, "vocabulary", 0, 2000)]
    words = [*SAID, *string.ascii_letters, *string.digits]
    asked = [form for forms in tasks.PHRASINGS.values() for form in forms]
    asked += [SUFFIX, "highest lowest triangle's circles squares triangles stars crosses"]
    texts += 80 * [f" {word}" for word in words] + 40 * asked
    texts += 10 * [word.capitalize() for word in COMMON]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = ["<pad>", "</s>", AddedToken("<image>", lstrip=True, rstrip=True), "<unk>"]
    marks += [AddedToken("USER:", rstrip=True), AddedToken("ASSISTANT:", lstrip=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIDE, patch_size=8, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES, vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    with (
        torch.no_grad()
    ):  # the usual initial weights are for wide models: in a narrow one attention starts flat
        for name, weight in model.named_parameters():
            if "position_embedding" in name:
                weight.normal_(0, 0.2)
            elif ("language_model" in name or "projector" in name) and weight.ndim == 2:
                weight *= 4
            elif "vision_tower" in name and weight.ndim == 2:
                weight *= 1.5
    return model


# -- training --------------------------------------------------------------------------------------


def tensors(processor: LlavaProcessor, drawn: list[Drawn]) -> dict[str, torch.Tensor]:
    """The model's arguments; labels are -100 but on the answer and the end mark."""
    tokenizer = processor.tokenizer
    prompts = [f"USER: {'<image>' * PATCHES}\n{question} ASSISTANT:" for _, question, _ in drawn]
    wholes = [f"{prompt} {answer}</s>" for prompt, (_, _, answer) in zip(prompts, drawn, strict=True)]
    batch = tokenizer(
        wholes, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in zip(labels, tokenizer(prompts)["input_ids"], strict=True):
        row[: len(prompt)] = -100
    return {**batch, "labels": labels, "pixel_values": normalised([image for image, *_ in drawn])}


def normalised(pictures: Sequence[np.ndarray]) -> Tensor:
    """(B, 3, 32, 32) in [-1, 1], as the processor makes it."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def score(model, processor: LlavaProcessor, drawn: list[Drawn]) -> float:
    """Share of answers that greedy decoding gets exactly right, in [0, 1]."""
    batch = tensors(processor, drawn)
    guesses = model(**batch).logits[:, :-1].argmax(-1)
    right = (guesses == batch["labels"][:, 1:]) | (batch["labels"][:, 1:] == -100)
    return right.all(1).float().mean().item()


class Glance(nn.Module):
    """Says for each patch what is on it. Thrown away after it has taught the tower to see.

    Through the language model alone the tower learns the same some hundred times more slowly.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(THINGS), len(PAINTS), QUARTERS]
        self.say = nn.Linear(width, sum(self.sizes))

    def loss(self, tower, seed: int, step: int, count: int) -> Tensor:
        rng = make_rng(seed, "pretraining", "see", step)
        pictures, labels = zip(*(glance(rng) for _ in range(count)), strict=True)
        said = self.say(tower(normalised(pictures)).last_hidden_state[:, 1:])  # (B, 16, all kinds)
        kinds = zip(said.split(self.sizes, -1), torch.tensor(np.stack(labels)).unbind(-1), strict=True)
        return sum(
            nn.functional.cross_entropy(
                guess.flatten(0, 1), label.flatten(), ignore_index=-1, reduction="sum"
            )
            for guess, label in kinds
        ) / (count * PATCHES)


def fit(name: str, weights: list[nn.Parameter], peak: float, steps: int, seed: int, loss_of: Loss) -> None:
    """AdamW on batches of BATCH that the processes of the group share; all end with equal weights."""
    rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    optimizer = torch.optim.AdamW(weights, peak, betas=(0.9, 0.98), weight_decay=0.02)
    rise, fall = 0.05 * steps + 1, 0.6 * steps
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / rise, (steps - k) / fall, 1))
    start, mean = time.monotonic(), 0.0
    for step in range(steps):
        loss = loss_of(seed, step * workers + rank, BATCH // workers)
        loss.backward()
        average(weights, workers)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        mean += (loss.item() - mean) * max(0.01, 1 / (step + 1))
        if rank == 0 and step % 250 == 249:
            print(f"{name} {step + 1}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)


def answer_loss(model, processor: LlavaProcessor, seed: int, step: int, count: int) -> Tensor:
    return model(**tensors(processor, mixture(seed, "say", step, count))).loss


def average(weights: list[nn.Parameter], workers: int) -> None:
    """Each gradient becomes its mean over the processes, in one exchange."""
    whole = torch.cat(
        [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]
    )
    torch.distributed.all_reduce(whole)
    for weight, part in zip(weights, whole.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight) / workers


def pretrain(rank: int, workers: int, see: int, say: int, seed: int, meeting: str) -> None:
    """One of `workers` processes with a thread each: faster here than one process with many threads."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}/point", rank=rank, world_size=workers
    )
    torch.manual_seed(seed)
    processor = build_processor(seed)
    model = build_model(processor.tokenizer).train()
    tower = model.model.vision_tower
    heads = Glance(tower.config.hidden_size)
    fit("see", [*tower.parameters(), *heads.parameters()], 1.5e-3, see, seed, partial(heads.loss, tower))
    tower.requires_grad_(False)
    saying = [weight for weight in model.parameters() if weight.requires_grad]
    fit("say", saying, 2e-3, say, seed, partial(answer_loss, model, processor))
    if rank == 0:
        model.save_pretrained(home.FOLDER)
        processor.save_pretrained(home.FOLDER)
    torch.distributed.destroy_process_group()


# -- what it can do --------------------------------------------------------------------------------


def held_out(model, processor: LlavaProcessor, seed: int) -> dict[str, float]:
    """Each exercise's score on 200 pictures that were not trained on."""
    return {kind.__name__: score(model, processor, mixture(seed, "test", 0, 200, kind)) for kind in EXERCISES}


def drawn_of(task: str, split: str) -> list[Drawn]:
    return [(e.image, e.question, e.answer) for e in tasks.Embedded().read(task).examples[split]]


def alone(task: str, rank: int = 8, rate: float = 5e-3, epochs: int = 3) -> tuple[float, float]:
    """The test score after plain LoRA on one task alone, as a study trains it, and seconds on one thread."""
    torch.manual_seed(0)
    model, processor = home.Embedded().load()
    layers = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)).train()
    train, size, start = drawn_of(task, "train"), 16, time.monotonic()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, steps = torch.optim.AdamW(weights, rate, weight_decay=0), epochs * math.ceil(len(train) / size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = make_rng(0, task, "order", epoch).permutation(len(train))
        for first in range(0, len(train), size):
            model(**tensors(processor, [train[i] for i in order[first : first + size]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            cosine.step()
    seconds = time.monotonic() - start
    return score(model.eval(), processor, drawn_of(task, "test")), seconds


def card(seed: int, steps: str, minutes: float) -> str:
    """The text of PRETRAINING.md."""
    torch.set_num_threads(1)
    model, processor = home.Embedded().load()
    size = sum(weight.numel() for weight in model.parameters())
    lines = [
        "# What the embedded model is, and what it can do\n",
        f"A LLaVA with {size:,} weights, made by `python scripts/pretrain_embedded.py {steps} --seed {seed}`",
        f"in {minutes:.0f} minutes on 2 CPU cores, {DATE}. Scores are shares of answers that greedy",
        "decoding gets exactly right, in [0, 1].\n",
        "| exercise of the pre-training | 200 held-out pictures |\n|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in held_out(model, processor, seed).items()),
        "\n| embedded task | untouched | after LoRA on it alone | seconds, one thread |\n|---|---|---|---|",
    ]
    for task in tasks.TASKS:
        value, seconds = alone(task)
        untouched = score(model, processor, drawn_of(task, "test"))
        lines.append(f"| {task} | {untouched:.2f} | {value:.2f} | {seconds:.1f} |")
    lines.append("\nLoRA: rank 8, alpha 16, rate 0.005 with cosine, 3 epochs of 300 examples, batches of 16.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--see", type=int, default=800, help="steps in which the tower learns alone")
    parser.add_argument("--say", type=int, default=3500, help="steps in which the language model learns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options, start = parser.parse_args(), time.monotonic()
    home.FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (options.workers, options.see, options.say, options.seed, meeting)
        torch.multiprocessing.spawn(pretrain, arguments, options.workers)
    minutes = (time.monotonic() - start) / 60
    text = card(options.seed, f"--see {options.see} --say {options.say}", minutes)
    (home.FOLDER / "PRETRAINING.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
