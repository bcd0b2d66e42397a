"""Make the embedded model: a vocabulary, a tiny LLaVA, and its pre-trained weights.

    python scripts/pretrain_embedded.py [--see STEPS] [--say STEPS] [--seed N] [--workers N]

The model is pre-trained on the exercises in embedded_exercises.py, which share no question with the embedded
tasks. So the tasks are new to the model, but its features show what they need, and a small LoRA adapter on
the language model learns each task alone. First the vision tower is trained to classify each patch, with
heads that are discarded. Then projector and language model are trained to answer. The script writes the
folder that dgg_ray/models/embedded.py loads, and PRETRAINING.md with the model's scores.
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
from embedded_exercises import (
    COMMON,
    EXERCISES,
    PAINTS,
    QUARTERS,
    SAID,
    THINGS,
    Sample,
    draw_patches,
    mixture,
)
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
BATCH = 64  # images of one step of the pre-training
Loss = Callable[[int, int, int], Tensor]  # of seed, step, number of images
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
    """Return a processor with a byte-level BPE in which common words and all answers are one token."""
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
    image_processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor, tokenizer, patch_size=8, vision_feature_select_strategy="default",
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
    # The usual initial weights suit wide models; in a narrow one attention would start flat.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position_embedding" in name:
                weight.normal_(0, 0.2)
            elif ("language_model" in name or "projector" in name) and weight.ndim == 2:
                weight *= 4
            elif "vision_tower" in name and weight.ndim == 2:
                weight *= 1.5
    return model


# -- training --------------------------------------------------------------------------------------


def model_inputs(processor: LlavaProcessor, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Return the model's arguments; labels are -100 except on the answer and the end token."""
    tokenizer = processor.tokenizer
    prompts = [f"USER: {'<image>' * PATCHES}\n{question} ASSISTANT:" for _, question, _ in samples]
    texts = [f"{prompt} {answer}</s>" for prompt, (_, _, answer) in zip(prompts, samples, strict=True)]
    batch = tokenizer(
        texts, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in zip(labels, tokenizer(prompts)["input_ids"], strict=True):
        row[: len(prompt)] = -100
    return {**batch, "labels": labels, "pixel_values": normalize([image for image, *_ in samples])}


def normalize(images: Sequence[np.ndarray]) -> Tensor:
    """Return (B, 3, 32, 32) in [-1, 1], as the processor does."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def score(model, processor: LlavaProcessor, samples: list[Sample]) -> float:
    """Return the share of answers that greedy decoding gets exactly right, in [0, 1]."""
    batch = model_inputs(processor, samples)
    guesses = model(**batch).logits[:, :-1].argmax(-1)
    right = (guesses == batch["labels"][:, 1:]) | (batch["labels"][:, 1:] == -100)
    return right.all(1).float().mean().item()


class PatchHeads(nn.Module):
    """Classifies each patch: its thing, colour and fill. Discarded after the vision tower is trained.

    Trained through the language model alone, the tower learns the same about a hundred times more slowly.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(THINGS), len(PAINTS), QUARTERS]
        self.classify = nn.Linear(width, sum(self.sizes))

    def loss(self, tower, seed: int, step: int, count: int) -> Tensor:
        rng = make_rng(seed, "pretraining", "see", step)
        images, labels = zip(*(draw_patches(rng) for _ in range(count)), strict=True)
        logits = self.classify(tower(normalize(images)).last_hidden_state[:, 1:])  # (B, 16, all classes)
        kinds = zip(logits.split(self.sizes, -1), torch.tensor(np.stack(labels)).unbind(-1), strict=True)
        return sum(
            nn.functional.cross_entropy(
                kind_logits.flatten(0, 1), label.flatten(), ignore_index=-1, reduction="sum"
            )
            for kind_logits, label in kinds
        ) / (count * PATCHES)


def fit(name: str, weights: list[nn.Parameter], peak: float, steps: int, seed: int, loss_of: Loss) -> None:
    """Train with AdamW on batches of BATCH that the processes share; all processes end with equal weights."""
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
    return model(**model_inputs(processor, mixture(seed, "say", step, count))).loss


def average(weights: list[nn.Parameter], workers: int) -> None:
    """Average each gradient over the processes, in one all-reduce."""
    whole = torch.cat(
        [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]
    )
    torch.distributed.all_reduce(whole)
    for weight, part in zip(weights, whole.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight) / workers


def pretrain(rank: int, workers: int, see: int, say: int, seed: int, meeting: str) -> None:
    """Run one of `workers` processes with one thread each, which is faster here than many threads."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}/point", rank=rank, world_size=workers
    )
    torch.manual_seed(seed)
    processor = build_processor(seed)
    model = build_model(processor.tokenizer).train()
    tower = model.model.vision_tower
    heads = PatchHeads(tower.config.hidden_size)
    fit("see", [*tower.parameters(), *heads.parameters()], 1.5e-3, see, seed, partial(heads.loss, tower))
    tower.requires_grad_(False)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    fit("say", trainable, 2e-3, say, seed, partial(answer_loss, model, processor))
    if rank == 0:
        model.save_pretrained(home.FOLDER)
        processor.save_pretrained(home.FOLDER)
    torch.distributed.destroy_process_group()


# -- scores ---------------------------------------------------------------------------------------


def held_out(model, processor: LlavaProcessor, seed: int) -> dict[str, float]:
    """Return each exercise's score on 200 held-out images."""
    return {kind.__name__: score(model, processor, mixture(seed, "test", 0, 200, kind)) for kind in EXERCISES}


def task_samples(task: str, split: str) -> list[Sample]:
    return [(e.image, e.question, e.answer) for e in tasks.Embedded().read(task).examples[split]]


def train_alone(task: str, rank: int = 8, rate: float = 5e-3, epochs: int = 3) -> tuple[float, float]:
    """Return the test score after plain LoRA on one task alone, as a study trains it, and the seconds."""
    torch.manual_seed(0)
    model, processor = home.Embedded().load()
    layers = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)).train()
    train, size, start = task_samples(task, "train"), 16, time.monotonic()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, steps = torch.optim.AdamW(weights, rate, weight_decay=0), epochs * math.ceil(len(train) / size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = make_rng(0, task, "order", epoch).permutation(len(train))
        for first in range(0, len(train), size):
            model(**model_inputs(processor, [train[i] for i in order[first : first + size]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            cosine.step()
    seconds = time.monotonic() - start
    return score(model.eval(), processor, task_samples(task, "test")), seconds


def card(seed: int, steps: str, minutes: float) -> str:
    """Return the text of PRETRAINING.md."""
    torch.set_num_threads(1)
    model, processor = home.Embedded().load()
    size = sum(weight.numel() for weight in model.parameters())
    lines = [
        "# The embedded model and its scores\n",
        f"A LLaVA with {size:,} weights, made by `python scripts/pretrain_embedded.py {steps} --seed {seed}`",
        f"in {minutes:.0f} minutes on 2 CPU cores, {DATE}. Scores are shares of answers that greedy",
        "decoding gets exactly right, in [0, 1].\n",
        "| exercise of the pre-training | 200 held-out images |\n|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in held_out(model, processor, seed).items()),
        "\n| embedded task | untouched | after LoRA on it alone | seconds, one thread |\n|---|---|---|---|",
    ]
    for task in tasks.TASKS:
        value, seconds = train_alone(task)
        untouched = score(model, processor, task_samples(task, "test"))
        lines.append(f"| {task} | {untouched:.2f} | {value:.2f} | {seconds:.1f} |")
    lines.append("\nLoRA: rank 8, alpha 16, rate 0.005 with cosine, 3 epochs of 300 examples, batches of 16.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--see", type=int, default=800, help="training steps of the vision tower")
    parser.add_argument(
        "--say", type=int, default=3500, help="training steps of projector and language model"
    )
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
