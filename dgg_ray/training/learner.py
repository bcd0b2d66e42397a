"""A model, its LoRA adapter and its optimizer.

Whatever the engine (engines.py), a step is the same: the gradient of the mean loss over all answer
tokens of the *global* batch, however it is cut into micro-batches and workers,

    L = Σ_n Σ_j -log p(y_nj | x_n, y_n<j)  /  Σ_n |y_n|        in nats per answer token

then the strategy's edit, then clipping where it was asked for, then AdamW.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import get_scheduler

from dgg_ray.core import draws
from dgg_ray.core.interfaces import Adapter, Example, GradientEdit, Model, Pieces, Training
from dgg_ray.models._architecture import checkpoint_activations, language_linears, projector_of
from dgg_ray.training.checkpoints import is_tensors
from dgg_ray.training.encoding import IGNORE, Encoded, Encoder
from dgg_ray.training.engines import MOMENTS, Engine, Whole, Zero

ANSWERS_PER_BATCH = 128  # examples behind one call of generate


class PeftLearner:
    """The `Learner` of real models; the base model stays loaded from stage to stage.

    zero: stage of DeepSpeed's ZeRO, 1 to 3; 0 is none.
    offload: with ZeRO, keep the optimizer's memory on the CPU.
    """

    def __init__(self, model: Model, device: str = "cpu", zero: int = 0, offload: bool = False) -> None:
        self.device = torch.device(device)
        base, self.processor = model.load()
        placed = getattr(base, "is_loaded_in_4bit", False)  # it cannot be moved
        self.base = (base if placed else base.to(self.device)).requires_grad_(False).eval()
        self.plain_head = model.plain_head
        self.name = str(getattr(model, "path", type(model).__module__))
        self.tokenizer = self.processor.tokenizer
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.zero, self.offload = zero, offload
        self.engine: Engine | None = None
        self.peft: Any = None
        self.mounted: tuple[Adapter, bool] | None = None
        self.checkpointing = False
        self.encode = Encoder(self.processor, self.device)
        self.alive: Callable[[], None] = lambda: None  # called after each batch of answers

    # -- Learner -----------------------------------------------------------------------------------

    def begin(
        self,
        adapter: Adapter,
        training: Training,
        steps: int,
        seed: int,
        task: str,
        parent: Path | None,
        done: int = 0,
        snapshot: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if self.engine:
            self.engine.close()
        self.training, self.seed, self.task = training, seed, task
        self.mount(adapter, training)
        if parent is None:
            self.draw_weights(seed)
        else:
            set_peft_model_state_dict(self.peft, load_file(parent / "adapter" / "adapter_model.safetensors"))
        parameters, optimizer = self.optimizer()
        if snapshot:
            for parameter, value in zip(parameters, along(snapshot, "weights"), strict=True):
                parameter.data.copy_(value)
        loss = AnswerLoss(self.peft, self.plain_head, self.autocast)
        if self.zero:
            self.engine = Zero(loss, parameters, optimizer, self.zero, self.offload, str(self.device))
        else:
            self.engine = Whole(loss, parameters, optimizer, self.world if steps else 1)
        warmup = ceil(training.warmup * steps)  # as transformers, and with it LLaVA, counts
        name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
        self.schedule = get_scheduler(name, optimizer, warmup, steps)
        if not snapshot:
            return {}
        self.engine.resume({moment: along(snapshot, moment) for moment in MOMENTS}, done)
        self.schedule.last_epoch = done - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no step was taken before: it was, by another process
            self.schedule.step()
        return self.recalled(snapshot)

    def weights(self) -> Pieces:
        assert self.engine
        return self.engine.weights

    def step(self, batch: Sequence[Example], step: int, edit: GradientEdit) -> float:
        assert self.engine
        self.peft.train()
        torch.manual_seed(draws.integer(self.seed, self.task, f"dropout {self.rank}", step))
        encoded = [self.encode(example) for example in batch]
        tokens = sum(len(e.answer) for e in encoded)
        total = torch.zeros((), device=self.device)
        micro_batches = self.micro_batches(encoded)
        for number, (micro, weight) in enumerate(micro_batches, start=1):
            inputs = self.encode.collate(micro)
            total += self.engine.backward(inputs, weight / tokens, last=number == len(micro_batches))

        def door(weights: Pieces, gradients: Pieces) -> None:
            edit(weights, gradients, step)
            if self.training.clip_norm:
                clip(gradients, self.training.clip_norm)

        self.engine.step(door)
        self.schedule.step()
        if self.world > 1:
            dist.all_reduce(total)
        return float(total)

    def micro_batches(self, batch: list[Encoded]) -> list[tuple[list[Encoded], float]]:
        """This process's share of a batch, in parts with their weights: 1, or 0 for one that only keeps
        step with processes that have more. All have equally many: each pass may wait for the others."""
        own, most = batch[self.rank :: self.world], -(-len(batch) // self.world)
        size = self.training.micro_batch_size or most
        parts = [(own[i : i + size], 1.0) for i in range(0, len(own), size)]
        return parts + [(batch[:1], 0.0)] * (-(-most // size) - len(parts))

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        self.peft.eval()
        own = [self.encode(example) for example in examples[self.rank :: self.world]]
        sharded = self.zero == 3  # a pass gathers the base model from all processes
        most = -(-len(examples) // self.world) if sharded else len(own)
        answers: list[str] = []
        for first in range(0, most, ANSWERS_PER_BATCH):
            batch = own[first : first + ANSWERS_PER_BATCH]
            inputs = self.encode.collate(batch or [self.encode(examples[0])], ask=True)
            with torch.inference_mode(not sharded), torch.no_grad(), self.autocast():
                ids = self.peft.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=self.tokenizer.eos_token_id,
                    synced_gpus=sharded,
                )
            new = ids[: len(batch), inputs["input_ids"].shape[1] :]
            answers += [a.strip() for a in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
            self.alive()
        if self.world == 1:
            return answers
        shares: list[Any] = [None] * self.world
        dist.all_gather_object(shares, answers)
        whole = [""] * len(examples)
        for rank, share in enumerate(shares):
            whole[rank :: self.world] = share
        return whole

    def gather(self) -> None:
        assert self.engine
        values = self.engine.whole(self.engine.weights)
        names = {id(p): n for n, p in self.peft.named_parameters()}
        self.gathered = {names[id(p)]: v for p, v in zip(self.engine.parameters, values, strict=True)}

    def snapshot(self, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        assert self.engine
        along = {"weights": self.engine.weights, **self.engine.moments()}
        along |= {f"memory.{name}": value for name, value in memory.items() if is_tensors(value)}
        taken = {f"memory.{name}": v.cpu() for name, v in memory.items() if isinstance(v, Tensor)}
        for name, pieces in along.items():
            taken |= {f"{name}.{i}": t for i, t in enumerate(self.engine.whole(pieces))}
        return taken

    def save(self, folder: Path) -> None:
        # No look-up of the base model on a hub, which PEFT does to see whether its vocabulary changed.
        self.peft.save_pretrained(folder, state_dict=self.gathered, save_embedding_layers=False)

    # -- its parts ---------------------------------------------------------------------------------

    def optimizer(self) -> tuple[list[nn.Parameter], torch.optim.AdamW]:
        """The trainable parameters, LoRA's and then the projector's where it is trained, and AdamW."""
        training = self.training
        named = sorted((n, p) for n, p in self.peft.named_parameters() if p.requires_grad)
        lora, projector = ([p for n, p in named if ("lora_" in n) == wanted] for wanted in (True, False))
        groups: list[dict[str, Any]] = [{"params": lora}]
        groups += [{"params": projector, "lr": training.projector_learning_rate}] if projector else []
        return lora + projector, torch.optim.AdamW(
            groups,
            lr=training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            foreach=True,
        )

    def recalled(self, snapshot: Mapping[str, Tensor]) -> dict[str, Any]:
        """A strategy's memory out of a snapshot, in this process's pieces."""
        assert self.engine
        memory: dict[str, Any] = {}
        for name in snapshot:
            kind, _, rest = name.partition(".")
            key, _, place = rest.partition(".")
            if kind == "memory" and key not in memory:
                value = self.engine.cut(along(snapshot, f"memory.{key}")) if place else snapshot[name]
                memory[key] = value if place else value.to(self.device)  # type: ignore[union-attr]
        return memory

    def mount(self, adapter: Adapter, training: Training) -> None:
        """Put LoRA layers of this shape on the base model; kept while the shape stays."""
        projector = training.projector_learning_rate is not None
        # ZeRO-3 leaves the layers of the last stage in pieces: they are made anew.
        if self.mounted != (adapter, projector) or self.zero == 3:
            if self.peft is not None:
                self.base = self.peft.unload()
            config = LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha or 2 * adapter.rank,  # type: ignore[arg-type]
                lora_dropout=adapter.dropout,
                target_modules=language_linears(self.base, adapter.targets),
                modules_to_save=[projector_of(self.base)] if projector else None,
                bias="none",
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the tied output head, which is no target
                self.peft = get_peft_model(self.base, config)
            for layer in self.peft.modules():
                if isinstance(layer, ModulesToSaveWrapper):  # what is trained is fp32, whatever the base is
                    layer.modules_to_save["default"].float()
            self.peft.peft_config["default"].base_model_name_or_path = self.name
            self.mounted = (adapter, projector)
        if training.gradient_checkpointing != self.checkpointing:
            self.checkpointing = training.gradient_checkpointing
            checkpoint_activations(self.peft.get_base_model(), self.checkpointing)

    def draw_weights(self, seed: int) -> None:
        """A Kaiming-uniform, B zero, as PEFT draws them, from the seed alone: equal for all tasks.

        A projector that is trained starts as the base model has it.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.integer(seed, "", "adapter"))
            for layer in self.peft.modules():
                if isinstance(layer, LoraLayer):
                    layer.reset_lora_parameters("default", init_lora_weights=True)
                elif isinstance(layer, ModulesToSaveWrapper):
                    trained, given = layer.modules_to_save["default"], layer.original_module
                    trained.load_state_dict(given.state_dict())

    def autocast(self) -> Any:
        if self.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class AnswerLoss(nn.Module):
    """Summed negative log-likelihood of the answer tokens, in nats.

    plain_head: run the output head on the answers' positions only: they are a few of hundreds.
    autocast: entered in here and not around: DeepSpeed switches off what it finds around a module.
    """

    def __init__(self, peft: nn.Module, plain_head: bool, autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.peft, self.plain_head, self.autocast = peft, plain_head, autocast

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        model = self.peft.get_base_model()  # type: ignore[operator]
        wanted = labels[:, 1:] != IGNORE  # position s predicts token s + 1
        with self.autocast():
            if self.plain_head:
                hidden = model.model(**inputs, use_cache=False).last_hidden_state  # (B, S, H)
                logits = model.lm_head(hidden[:, :-1][wanted])  # (answer tokens, V)
            else:
                logits = model(**inputs, use_cache=False).logits[:, :-1][wanted]
        return nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="sum")


def along(snapshot: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """A list of tensors out of a snapshot, where they are called name.0, name.1, …"""
    return [snapshot[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in snapshot))]


def clip(gradients: Pieces, most: float) -> None:
    """Scale the gradients down, in place, so that their norm over all tensors is `most` or less."""
    squares = torch.stack(torch._foreach_norm(list(gradients))).square()
    norm = gradients.total(squares).sum().sqrt()
    torch._foreach_mul_(list(gradients), (most / norm).clamp(max=1.0))


def quieten() -> None:
    """One process of many: no progress bars, no advice about defaults."""
    if not torch.cuda.is_available():  # PEFT imports DeepSpeed, which would say that it looks for one
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ("transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
