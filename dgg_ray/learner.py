"""A model, its LoRA adapter and its optimizer, on one engine.

Engines here: `plain`, one process; and `ddp`, the same code where torch.distributed is running.
Both compute the same step: the gradient of the mean loss over all answer tokens of the *global*
batch, however it is cut into micro-batches and workers.

    L = Σ_n Σ_j -log p(y_nj | x_n, y_n<j)  /  Σ_n |y_n|        in nats per answer token

Strategies' gradient edits come through one door, a hook right before the optimizer's update: they
see the gradient after accumulation and reduction.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from dgg_ray import draws
from dgg_ray.contracts import Adapter, Example, GradientEdit, Model, Training
from dgg_ray.errors import StageError

IGNORE = -100
ANSWERS_PER_BATCH = 128  # examples behind one call of generate
KEPT_PIXELS_BYTES = 2 << 30  # prepared pictures kept by a worker between stages


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example as the model takes it. prompt, answer: token ids; inputs: pixel values and the like."""

    prompt: list[int]
    answer: list[int]
    inputs: dict[str, Tensor]


class PeftLearner:
    """The `Learner` of real models; the base model stays loaded from stage to stage."""

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self.device = torch.device(device)
        base, self.processor = model.load()
        self.base = base.to(self.device).requires_grad_(False).eval()
        self.name = str(getattr(model, "path", type(model).__module__))
        self.tokenizer = self.processor.tokenizer
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.peft: Any = None
        self.mounted: Adapter | None = None
        self.encodings: dict[int, tuple[Example, Encoded]] = {}
        self.kept_bytes = 0

    # -- Learner -----------------------------------------------------------------------------------

    def begin(
        self, adapter: Adapter, training: Training, steps: int, seed: int, task: str, parent: Path | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.mount(adapter)
        if parent is None:
            self.draw_weights(seed)
        else:
            set_peft_model_state_dict(self.peft, load_file(parent / "adapter" / "adapter_model.safetensors"))
        self.training, self.seed, self.task = training, seed, task
        named = [(n, p) for n, p in self.peft.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in sorted(named)]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            foreach=True,
        )
        warmup = round(training.warmup * steps)
        schedule = "constant_with_warmup" if training.schedule == "constant" else training.schedule
        self.schedule = get_scheduler(schedule, self.optimizer, warmup, steps)
        self.edit: GradientEdit = lambda weights, gradients, step: None
        self.steps_done = 0
        self.optimizer.register_step_pre_hook(self.apply_edit)
        loss = AnswerLoss(self.peft)
        self.loss = DistributedDataParallel(loss) if self.world > 1 and steps else loss

    def weights(self) -> list[Tensor]:
        return self.parameters

    def step(self, batch: Sequence[Example], step: int, edit: GradientEdit) -> float:
        self.peft.train()
        torch.manual_seed(draws.integer(self.seed, self.task, f"dropout {self.rank}", step))
        encoded = [self.encode(example) for example in batch]
        tokens = sum(len(e.answer) for e in encoded)
        own = encoded[self.rank :: self.world] or encoded[:1]  # DDP needs a pass from every rank
        weight = 1.0 if len(encoded) > self.rank else 0.0
        size = self.training.micro_batch_size or len(own)
        micro_batches = [own[i : i + size] for i in range(0, len(own), size)]
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micro_batches, start=1):
            wait = number < len(micro_batches) and self.world > 1
            with self.loss.no_sync() if wait else nullcontext(), self.autocast():  # type: ignore[union-attr]
                nats = self.loss(**self.collate(micro)) * (weight / tokens)
            # DDP averages over ranks; the global batch's gradient is their sum.
            (nats * self.world).backward()
            total += nats.detach()
        self.edit, self.steps_done = edit, step
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.world > 1:
            dist.all_reduce(total)
        return float(total)

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        self.peft.eval()
        own = [self.encode(example) for example in examples[self.rank :: self.world]]
        answers: list[str] = []
        for first in range(0, len(own), ANSWERS_PER_BATCH):
            inputs = self.collate(own[first : first + ANSWERS_PER_BATCH], ask=True)
            with torch.inference_mode(), self.autocast():
                ids = self.peft.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            new = ids[:, inputs["input_ids"].shape[1] :]
            answers += [a.strip() for a in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        if self.world == 1:
            return answers
        shares: list[Any] = [None] * self.world
        dist.all_gather_object(shares, answers)
        whole = [""] * len(examples)
        for rank, share in enumerate(shares):
            whole[rank :: self.world] = share
        return whole

    def save(self, folder: Path) -> None:
        # No look-up of the base model on a hub, which PEFT does to see whether its vocabulary changed.
        self.peft.save_pretrained(folder, save_embedding_layers=False)

    # -- its parts ---------------------------------------------------------------------------------

    def mount(self, adapter: Adapter) -> None:
        """Put LoRA layers of this shape on the base model; kept while the shape stays."""
        if self.mounted == adapter:
            return
        if self.peft is not None:
            self.base = self.peft.unload()
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha or 2 * adapter.rank,  # type: ignore[arg-type]
            lora_dropout=adapter.dropout,
            target_modules=language_linears(self.base, adapter.targets),
            bias="none",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the tied output head, which is no target
            self.peft = get_peft_model(self.base, config)
        self.peft.peft_config["default"].base_model_name_or_path = self.name
        self.mounted = adapter

    def draw_weights(self, seed: int) -> None:
        """A Kaiming-uniform, B zero, as PEFT draws them, from the seed alone: equal for all tasks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.integer(seed, "", "adapter"))
            for layer in self.peft.modules():
                if isinstance(layer, LoraLayer):
                    layer.reset_lora_parameters("default", init_lora_weights=True)

    def apply_edit(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        assert len(gradients) == len(self.parameters), "every LoRA tensor has a gradient"
        with torch.no_grad():
            self.edit(self.parameters, gradients, self.steps_done)

    def autocast(self) -> Any:
        if self.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def encode(self, example: Example) -> Encoded:
        """Token ids and pixels; each example is prepared once while the worker lives."""
        if kept := self.encodings.get(id(example)):
            return kept[1]
        content: list[dict[str, str]] = [{"type": "text", "text": example.question}]
        if example.image is not None:
            content.insert(0, {"type": "image"})
        turns = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        images = None if example.image is None else picture(example)
        inputs = dict(self.processor(text=text, images=images, return_tensors="pt"))
        prompt = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        answer = self.tokenizer(" " + example.answer, add_special_tokens=False)["input_ids"]
        encoded = Encoded(prompt, [*answer, self.tokenizer.eos_token_id], inputs)
        size = sum(t.numel() * t.element_size() for t in inputs.values())
        if self.kept_bytes + size <= KEPT_PIXELS_BYTES:
            self.kept_bytes += size
            self.encodings[id(example)] = (example, encoded)  # holding the example keeps its id unique
        return encoded

    def collate(self, batch: Sequence[Encoded], ask: bool = False) -> dict[str, Tensor]:
        """Padded to the longest: on the right with answers and labels, on the left to `ask`."""
        rows = [e.prompt if ask else e.prompt + e.answer for e in batch]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)  # (B, S)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORE)
        for i, (row, e) in enumerate(zip(rows, batch, strict=True)):
            place = slice(width - len(row), width) if ask else slice(0, len(row))
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
            labels[i, len(e.prompt) : len(row)] = torch.tensor(row[len(e.prompt) :], dtype=ids.dtype)
        tensors = {"input_ids": ids, "attention_mask": mask} | ({} if ask else {"labels": labels})
        for name in {name for e in batch for name in e.inputs}:
            tensors[name] = torch.cat([e.inputs[name] for e in batch if name in e.inputs])
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


class AnswerLoss(nn.Module):
    """Summed negative log-likelihood of the answer tokens, in nats.

    The output head runs on the answers' positions only: they are a few of hundreds.
    """

    def __init__(self, peft: nn.Module) -> None:
        super().__init__()
        self.peft = peft

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        model = self.peft.get_base_model()  # type: ignore[operator]
        hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (B, S, H)
        wanted = labels[:, 1:] != IGNORE  # position s predicts token s + 1
        logits = model.lm_head(hidden[:, :-1][wanted])  # (answer tokens, V)
        return nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum")


def language_linears(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the language model's linear layers called by one of `targets`, or of all of them.

    Full names, because `q_proj` alone would match the vision tower's layers too.
    """
    linears = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and "vision" not in name
        and "lm_head" not in name
        # LLaVA and Qwen call it language_model, Idefics3 text_model.
        and ("language_model" in name or "text_model" in name)
    }
    chosen = [n for n, last in linears.items() if targets == "all" or last in targets]
    if unknown := [] if targets == "all" else sorted(set(targets) - set(linears.values())):
        raise StageError(
            f"adapter.targets: {', '.join(unknown)} not found in the language model, "
            f"which has {', '.join(sorted(set(linears.values())))}"
        )
    return chosen


def picture(example: Example) -> Image.Image:
    """The example's image, RGB."""
    if isinstance(example.image, np.ndarray):
        return Image.fromarray(example.image)
    with Image.open(example.image) as image:  # type: ignore[arg-type]
        return image.convert("RGB")


def quieten() -> None:
    """One process of many: no progress bars, no advice about defaults."""
    for name in ("transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
