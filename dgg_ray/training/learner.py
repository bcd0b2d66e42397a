"""A model, its LoRA adapter and its optimizer.

A step is the same on every engine (engines.py). First comes the gradient of the mean loss over all answer
tokens of the *global* batch, however the batch is split into micro-batches and workers:

    L = Σ_n Σ_j -log p(y_nj | x_n, y_n<j)  /  Σ_n |y_n|        in nats per answer token

Then the strategy edits the gradient, then it is clipped if `clip_norm` is set, then AdamW takes its step.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import get_scheduler

from dgg_ray.core import rng
from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import (
    ADAPTER_FILE,
    LAYOUT_FILE,
    Adapter,
    AdapterLayout,
    Example,
    GradientHook,
    Model,
    ShardedTensors,
    StageSetup,
    StepHooks,
    Training,
)
from dgg_ray.models._architecture import checkpoint_activations, language_linears, projector_of
from dgg_ray.training.answer_loss import AnswerLoss, HookedBatch
from dgg_ray.training.checkpoints import is_tensor_list
from dgg_ray.training.encoding import Encoded, Encoder
from dgg_ray.training.engines import ADAMW_STATE, Engine, ReplicatedEngine, ZeroEngine
from dgg_ray.training.kept_model import LoadedModel

ANSWERS_PER_BATCH = 128  # examples per call of generate


class PeftLearner:
    """The `Learner` of real models; the base model stays loaded from stage to stage.

    zero: stage of DeepSpeed's ZeRO, 1 to 3; 0 trains without it.
    offload: with ZeRO, keep the optimizer state on the CPU.
    on_answers: called after each batch of answers.
    loaded: the model, if it is in memory already, on the device.
    """

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        zero: int = 0,
        offload: bool = False,
        on_answers: Callable[[], None] = lambda: None,
        loaded: LoadedModel | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.loaded = loaded or LoadedModel.load(model, self.device)
        self.base, self.processor = self.loaded.base, self.loaded.processor
        self.plain_head = model.plain_head
        self.name = str(getattr(model, "path", type(model).__module__))
        self.tokenizer = self.processor.tokenizer
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.zero, self.offload, self.on_answers = zero, offload, on_answers
        self.engine: Engine | None = None
        self.peft: Any = None
        self.mounted: tuple[Adapter, bool] | None = None  # (adapter, whether the projector is trained)
        self.layout = AdapterLayout()
        # (encoder, image or question, id of an example) → (example, features)
        self.features: dict[tuple[str, str, int], Any] = {}
        self.checkpointing_activations = False
        self.encode = Encoder(self.processor, self.device)

    # -- the Learner protocol ----------------------------------------------------------------------

    def start(self, setup: StageSetup) -> None:
        parameters, optimizer = self.mount_stage(setup)
        self.start_engine(setup, parameters, optimizer)

    def resume(self, setup: StageSetup, done: int, checkpoint: Mapping[str, Tensor]) -> dict[str, Any]:
        parameters, optimizer = self.mount_stage(setup)
        for parameter, value in zip(parameters, tensor_list(checkpoint, "weights"), strict=True):
            parameter.data.copy_(value)
        engine = self.start_engine(setup, parameters, optimizer)
        engine.load_optimizer_state({name: tensor_list(checkpoint, name) for name in ADAMW_STATE}, done)
        self.schedule.last_epoch = done - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no optimizer step before": another process took the steps
            self.schedule.step()
        return self.memory_tensors(checkpoint)

    def weights(self) -> ShardedTensors:
        assert self.engine
        return self.engine.weights

    def step(
        self, batch: Sequence[Example], step: int, edit: GradientHook, hooks: StepHooks | None = None
    ) -> float:
        assert self.engine
        hooks = hooks or StepHooks()
        self.peft.train()
        torch.manual_seed(rng.integer(self.seed, self.task, f"dropout {self.rank}", step))
        encoded = [self.encode(example) for example in batch]
        tokens = sum(len(e.answer) for e in encoded)
        loss = torch.zeros((), device=self.device)
        micro_batches = self.micro_batches(encoded)
        for number, (micro_batch, weight) in enumerate(micro_batches, start=1):
            inputs, examples = self.inputs_of(micro_batch), [e.example for e in micro_batch]
            if hooks.route:
                with torch.no_grad():
                    weights = hooks.route(examples)
                self.layout.set_route(None if weights is None else weights.to(self.device))
            if hooks.loss:
                self.loss.hooked = HookedBatch(hooks.loss, examples, tokens / len(batch))
            loss += self.engine.backward(inputs, weight / tokens, last=number == len(micro_batches))
        self.loss.hooked = None
        self.layout.set_route(None)

        def gradient_hook(weights: ShardedTensors, gradients: ShardedTensors) -> None:
            edit(weights, gradients, step)
            if self.training.clip_norm:
                clip(gradients, self.training.clip_norm)

        after = hooks.after
        self.engine.step(gradient_hook, after and (lambda weights: after(weights, step)))
        self.schedule.step()
        if self.world_size > 1:
            dist.all_reduce(loss)
        return float(loss)

    def micro_batches(self, batch: list[Encoded]) -> list[tuple[list[Encoded], float]]:
        """This process's share of a batch as (micro-batch, weight), equally many in every process.

        A process with a smaller share repeats an example with weight 0, because each forward pass may wait
        for the other processes. All other weights are 1.
        """
        share = batch[self.rank :: self.world_size]
        largest_share = ceil(len(batch) / self.world_size)
        size = self.training.micro_batch_size or largest_share
        micro_batches = [(share[i : i + size], 1.0) for i in range(0, len(share), size)]
        missing = ceil(largest_share / size) - len(micro_batches)
        return micro_batches + [(batch[:1], 0.0)] * missing

    def inputs_of(self, encoded: Sequence[Encoded], prompts_only: bool = False) -> dict[str, Tensor]:
        """A batch as the model takes it; the layout sees it before the model does."""
        if count := self.layout.extra_prompt_tokens:
            encoded = [self.encode.with_placeholders(e, count) for e in encoded]
        inputs = self.encode.collate(encoded, prompts_only)
        width, prompts = inputs["input_ids"].shape[1], []
        for e in encoded:
            first = width - len(e.prompt) if prompts_only else 0
            prompts.append((first + self.encode.placeholders_start(e), first + len(e.prompt)))
        self.layout.before_forward(inputs, prompts)
        return inputs

    def answer(
        self, examples: Sequence[Example], max_new_tokens: int, route: Tensor | None = None
    ) -> list[str]:
        self.peft.eval()
        share = [self.encode(example) for example in examples[self.rank :: self.world_size]]
        sharded = self.zero == 3  # each forward pass gathers the base model from all processes
        answers_per_rank = ceil(len(examples) / self.world_size) if sharded else len(share)
        answers: list[str] = []
        for first in range(0, answers_per_rank, ANSWERS_PER_BATCH):
            batch = share[first : first + ANSWERS_PER_BATCH]
            inputs = self.inputs_of(batch or [self.encode(examples[0])], prompts_only=True)
            if route is not None:
                rows = route[self.rank :: self.world_size][first : first + len(batch)] if batch else route[:1]
                self.layout.set_route(rows.to(self.device))
            with torch.inference_mode(not sharded), torch.no_grad(), self.autocast():
                ids = self.peft.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=self.tokenizer.eos_token_id,
                    synced_gpus=sharded,
                )
            new_ids = ids[: len(batch), inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
            answers += [text.strip() for text in texts]
            self.on_answers()
        self.layout.set_route(None)
        if self.world_size == 1:
            return answers
        answers_of_ranks: list[Any] = [None] * self.world_size
        dist.all_gather_object(answers_of_ranks, answers)
        in_order = [""] * len(examples)
        for rank, answers_of_rank in enumerate(answers_of_ranks):
            in_order[rank :: self.world_size] = answers_of_rank
        return in_order

    def gather(self) -> None:
        assert self.engine
        values = self.engine.gather(self.engine.weights)
        self.gathered = dict(zip(self.names, values, strict=True))

    def gather_list(self, shards: Sequence[Tensor]) -> list[Tensor]:
        assert self.engine
        return self.engine.gather(shards)

    def parameter_counts(self) -> dict[str, int]:
        trainable = sum(value.numel() for value in self.gathered.values())
        frozen = sum(tensor.numel() for tensor in self.layout.frozen_tensors().values())
        return {"trainable": trainable, "stored": trainable + frozen}

    def checkpoint_tensors(self, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        assert self.engine
        tensors = {f"memory.{name}": v.cpu() for name, v in memory.items() if isinstance(v, Tensor)}
        lists = {"weights": self.engine.weights, **self.engine.optimizer_state()}
        lists |= {f"memory.{name}": value for name, value in memory.items() if is_tensor_list(value)}
        for name, shards in lists.items():
            tensors |= {f"{name}.{i}": tensor for i, tensor in enumerate(self.engine.gather(shards))}
        return tensors

    def save(self, folder: Path) -> None:
        # To save embedding layers, PEFT would look the base model up on the hub and compare vocabularies.
        of_peft = {name: value for name, value in self.gathered.items() if is_of_peft(name)}
        self.peft.save_pretrained(folder, state_dict=of_peft, save_embedding_layers=False)
        own = {name: value for name, value in self.gathered.items() if not is_of_peft(name)}
        own |= {name: tensor.cpu().contiguous() for name, tensor in self.layout.frozen_tensors().items()}
        if own:
            save_file(own, folder / LAYOUT_FILE)

    def release(self) -> LoadedModel:
        """Take everything off the base model that stages put on it, and return it.

        The learner must not be used any more.
        """
        if self.engine:
            self.engine.close()
        self.layout.detach()
        if self.peft is not None:
            if self.checkpointing_activations:
                checkpoint_activations(self.peft.get_base_model(), False)
            self.base = unload(self.peft)
        self.engine = self.peft = self.mounted = None
        self.base.requires_grad_(False).eval()
        return self.loaded

    # -- parts of a stage's setup ------------------------------------------------------------------

    def mount_stage(self, setup: StageSetup) -> tuple[list[nn.Parameter], torch.optim.AdamW]:
        """Put the stage's adapter on the base model, and make its parameter list and optimizer."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if self.engine:
            self.engine.close()
        self.training, self.seed, self.task = setup.training, setup.seed, setup.task
        self.layout.detach()
        self.mount(setup.adapter, setup.training)
        if setup.parent is None:
            self.draw_weights(setup.seed)
        else:
            file = setup.parent / "adapter" / ADAPTER_FILE
            set_peft_model_state_dict(self.peft, load_file(file))
        self.layout = setup.layout or AdapterLayout()
        for _, lora in self.default_lora():
            lora.requires_grad_(True)  # whatever an earlier layout left behind
        self.layout.attach(self.peft, setup)
        self.refuse_lost_weights()
        return self.make_optimizer()

    def default_lora(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of PEFT's LoRA `default`, with their names."""
        assert self.peft is not None
        for name, value in self.peft.named_parameters():
            if name.endswith(("lora_A.default.weight", "lora_B.default.weight")):
                yield name, value

    def refuse_lost_weights(self) -> None:
        """Raise StageError where the layout freezes weights that count and does not store them."""
        lora = dict(self.default_lora())
        if self.layout.frozen_tensors():
            return
        for name, value in lora.items():
            b = lora[name.replace("lora_A", "lora_B")]
            counts = b.requires_grad or bool(b.detach().any())
            if not value.requires_grad and counts:
                raise StageError(
                    f"{type(self.layout).__name__}.attach freezes {name}; only trained weights are stored, "
                    "so the next stage would have another: return it from frozen_tensors, read it in attach"
                )

    def start_engine(
        self, setup: StageSetup, parameters: list[nn.Parameter], optimizer: torch.optim.AdamW
    ) -> Engine:
        """Wrap the loss, parameters and optimizer in an engine, and make the learning-rate schedule."""
        self.loss = loss = AnswerLoss(self.peft, self.plain_head, self.autocast, self.layout, parameters)
        if self.zero:
            engine = ZeroEngine(loss, parameters, optimizer, self.zero, self.offload, str(self.device))
        else:
            # Without steps, the workers only answer, and DDP is not needed.
            engine = ReplicatedEngine(loss, parameters, optimizer, self.world_size if setup.steps else 1)
        self.engine = engine
        training = setup.training
        warmup = ceil(training.warmup * setup.steps)  # rounded up, as in transformers and LLaVA
        name = "constant_with_warmup" if training.schedule == "constant" else training.schedule
        self.schedule = get_scheduler(name, optimizer, warmup, setup.steps)
        return engine

    def make_optimizer(self) -> tuple[list[nn.Parameter], torch.optim.AdamW]:
        """The trainable parameters, LoRA's first and then a trained projector's, and AdamW for them."""
        training = self.training
        named = sorted((n, p) for n, p in self.peft.named_parameters() if p.requires_grad)
        named.sort(key=lambda item: "lora_" not in item[0])  # a stable sort
        self.names = [name for name, _ in named]
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

    def memory_tensors(self, checkpoint: Mapping[str, Tensor]) -> dict[str, Any]:
        """The tensors of a strategy's memory from a checkpoint; lists are sharded for this process."""
        assert self.engine
        memory: dict[str, Any] = {}
        for full_name, tensor in checkpoint.items():
            kind, _, rest = full_name.partition(".")
            name, _, index = rest.partition(".")
            if kind != "memory" or name in memory:
                continue
            if index:
                memory[name] = self.engine.shard(tensor_list(checkpoint, f"memory.{name}"))
            else:
                memory[name] = tensor.to(self.device)
        return memory

    def mount(self, adapter: Adapter, training: Training) -> None:
        """Put LoRA layers of this shape on the base model; layers of the same shape are reused."""
        train_projector = training.projector_learning_rate is not None
        # ZeRO-3 leaves the last stage's layers sharded, so new ones are made.
        if self.mounted != (adapter, train_projector) or self.zero == 3:
            if self.peft is not None:
                self.base = unload(self.peft)
            config = LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha or 2 * adapter.rank,  # type: ignore[arg-type]
                lora_dropout=adapter.dropout,
                target_modules=language_linears(self.base, adapter.targets),
                modules_to_save=[projector_of(self.base)] if train_projector else None,
                bias="none",
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the tied output head, which is no target
                self.peft = get_peft_model(self.base, config)
            for layer in self.peft.modules():
                if isinstance(layer, ModulesToSaveWrapper):  # trained weights are fp32 on any base model
                    layer.modules_to_save["default"].float()
            self.peft.peft_config["default"].base_model_name_or_path = self.name
            self.mounted = (adapter, train_projector)
        if training.gradient_checkpointing != self.checkpointing_activations:
            self.checkpointing_activations = training.gradient_checkpointing
            checkpoint_activations(self.peft.get_base_model(), training.gradient_checkpointing)

    def draw_weights(self, seed: int) -> None:
        """Draw A Kaiming-uniform and set B to zero, as PEFT does; they depend on the seed and on no task.

        A trained projector starts with the base model's weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.integer(seed, "", "adapter"))
            for layer in self.peft.modules():
                if isinstance(layer, LoraLayer):
                    layer.reset_lora_parameters("default", init_lora_weights=True)
                elif isinstance(layer, ModulesToSaveWrapper):
                    layer.modules_to_save["default"].load_state_dict(layer.original_module.state_dict())

    def autocast(self) -> Any:
        """The context that computes with the stage's precision."""
        if self.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def unload(peft: Any) -> Any:
    """The base model without its adapter. PEFT itself would leave the trained projector in it."""
    for layer in peft.modules():
        if isinstance(layer, ModulesToSaveWrapper):
            layer.modules_to_save["default"] = layer.original_module
    return peft.unload()


def is_of_peft(name: str) -> bool:
    """Return whether PEFT stores a trained parameter of that name itself."""
    return ".lora_A." in name or ".lora_B." in name or "lora_" not in name


def stored_name(name: str) -> str:
    """The name under which a stage stores a trained parameter: PEFT leaves out the adapter's name."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def tensor_list(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The list of tensors that is stored under the keys name.0, name.1, …"""
    length = sum(key.startswith(f"{name}.") for key in tensors)
    return [tensors[f"{name}.{i}"] for i in range(length)]


def clip(gradients: ShardedTensors, max_norm: float) -> None:
    """Scale the gradients down, in place, so that their norm over all tensors is at most `max_norm`."""
    squares = torch.stack(torch._foreach_norm(list(gradients))).square()
    norm = gradients.total(squares).sum().sqrt()
    torch._foreach_mul_(list(gradients), (max_norm / norm).clamp(max=1.0))


def silence_libraries() -> None:
    """Switch off progress bars and advice about defaults: every worker of a group would print them."""
    if not torch.cuda.is_available():  # PEFT imports DeepSpeed, which would report its search for a GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ("transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
