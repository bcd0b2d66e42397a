"""Interfaces of all plug-ins, and the data types that plug-ins exchange.

A plug-in is one file in the folder of its kind. The file's name is the plug-in's name in a study.

    folder       the file defines                                            in the study
    readers/     a subclass of Reader                                        tasks: - reader: NAME
    scorers/     a function score(predictions, examples) -> Score            tasks: - scorer: NAME
    models/      a subclass of Model                                         model: name: NAME
    strategies/  a subclass of Strategy                                      strategy: name: NAME
    metrics/     a function ScoreMatrix -> MetricValue, named as its file    search: objective: NAME

A plug-in may also stand in a package of your own, under an entry point or as `name: package.module:Class`;
core/plugins.py finds all of them. Outside this package, import these interfaces from `dgg_ray.plugin`.

A metric's module may declare the range of its values, `RANGE = (0.0, 1.0)`: intervals do not go beyond it.
A scorer's module may also define

    ready() -> str                          why the scorer cannot run on this machine; empty if it can
    remarks(examples) -> [(count, text)]    examples that the scorer cannot use, for `dgg-ray plan`
    VERSION: int                            raised when the scorer gives other scores than before

Settings are dataclass fields with `annotated_types` bounds; the study file is checked against them. A plug-in
of your own enters the keys by its source (core/sources.py): after an edit its stages are trained anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from annotated_types import Ge, Gt, Le

from dgg_ray.core import file_hashes, rng
from dgg_ray.core.errors import STRICT, StageError

if TYPE_CHECKING:  # drivers, brokers and waiting trials handle strategies without loading torch
    from torch import Tensor

SPLITS = ("train", "validation", "test")
ROUNDING = 1e-9  # rounding error allowed when a mean is checked against [0, 1]
Split = Literal["train", "validation", "test"]


# -- data ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Example:
    """A question about an image and its answer.

    question: the text that the model sees, without an image token.
    image: a file, pixels (H, W, 3) uint8, or None for text only.
    references: all accepted answers where there are several (captions); else empty.
    choices: the options offered, in their order (A, B, …); else empty.
    """

    id: str
    question: str
    answer: str
    image: Path | np.ndarray | None = None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """A named dataset with `train`, `validation`, `test` examples and a scorer.

    digests: for each split a hash of its content (questions, answers, images), 64 hex digits. A reader of
        your own may leave them out: they are computed from the examples.
    scorer: name of the scorer that scores the model's answers.
    warnings: remarks on data that are allowed but questionable, such as examples in both train and test.
    """

    name: str
    examples: Mapping[str, Sequence[Example]]
    digests: Mapping[str, str] = field(default_factory=dict)
    scorer: str = "exact_match"
    warnings: tuple[str, ...] = ()


class Score(NamedTuple):
    """Scores of a set of answers. value: of the whole set, in [0, 1]; each: per example, in [0, 1]."""

    value: float
    each: tuple[float, ...]

    def checked(self, scorer: str, examples: int) -> Score:
        """Return the score itself; StageError where it is no valid score of so many examples."""
        invalid = [score for score in (self.value, *self.each) if not -ROUNDING <= score <= 1 + ROUNDING]
        if not invalid and len(self.each) == examples:
            return self
        returned = (
            f"{invalid[0]} among its scores" if invalid else f"{len(self.each)} scores of {examples} examples"
        )
        raise StageError(f"scorer `{scorer}` must give a score from 0 to 1 for each example, gave {returned}")


@dataclass(frozen=True)
class Reader(ABC):
    """Source of a task's examples. Subclasses add their settings as fields."""

    __pydantic_config__ = STRICT

    @abstractmethod
    def read(self, name: str) -> Task:
        """Read the task called `name`.

        Raises StudyError with every fault of the data, each with its file.
        """


# -- models and training ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Model(ABC):
    """A vision-language model in the Hugging Face form. Subclasses add their settings as fields."""

    __pydantic_config__ = STRICT
    plain_head: ClassVar[bool] = False
    """Logits are `lm_head` of the last hidden state and nothing else: the head may run on answers alone."""

    @abstractmethod
    def load(self) -> tuple[Any, Any]:
        """Load (model, processor): a `*ForConditionalGeneration` in evaluation mode and its processor."""

    def has_local_files(self) -> bool:
        """Return whether `processor` and `context_length` work on this machine without a download."""
        return False

    def skeleton(self) -> Any:
        """Return the model without weights, to look at its layers; None where its files are not here."""
        return None

    def processor(self) -> Any:
        """Load the processor alone, as `load` gives it, without the weights."""
        raise NotImplementedError

    def context_length(self) -> int:
        """Length of the model's context in tokens, prompt and answer together; 0 where it is unknown."""
        return 0

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the weights and the processor, 64 hex digits; it enters every stage key."""

    def faults(self) -> list[tuple[str, str, str]]:
        """List the faults of the model's files as (setting, rule, value found); nothing is loaded."""
        return []


@dataclass(frozen=True)
class Adapter:
    """LoRA (Hu et al., ICLR 2022, arXiv:2106.09685): W + alpha/rank · B·A on linear layers.

    rank: number of columns of B and rows of A; a larger one can learn more and takes more memory.
    alpha: numerator of the scale; None is 2 · rank, as LLaVA and MCITlib set it.
    dropout: share of the adapter's inputs that is dropped in training.
    targets: names of linear layers of the language model, or `all` of them; the vision tower,
        the projector and the output head stay frozen.
    """

    __pydantic_config__ = STRICT

    rank: Annotated[int, Ge(1), Le(1024)] = 8
    alpha: Annotated[float, Gt(0)] | None = None
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.0
    targets: Literal["all"] | tuple[str, ...] = "all"


@dataclass(frozen=True)
class Training:
    """How one stage is optimised.

    epochs: number of passes over the stage's examples.
    batch_size: number of examples behind one optimizer step, over all workers and micro-batches.
    micro_batch_size: number of examples per forward pass on one worker; None is a worker's whole share.
        Gradients accumulate up to batch_size.
    learning_rate: largest learning rate of AdamW.
    schedule: how the rate falls after the warm-up: not at all, in a line, or as half a cosine, to 0.
    warmup: share of the steps over which the rate rises from 0, rounded up to whole steps.
    weight_decay: AdamW's decoupled weight decay.
    betas: AdamW's decay rates of the gradient's running mean and running square.
    precision: number type of the computation: `fp32`, or `bf16` autocast with the LoRA weights kept in fp32.
    clip_norm: largest L2 norm of the gradient over all trainable tensors; a larger gradient is scaled down
        after the strategy's edit, right before AdamW. None, the default, is no clipping.
    projector_learning_rate: learning rate of the projector between vision tower and language model
        (MCITlib: 2e-5); None leaves the projector frozen.
    gradient_checkpointing: whether activations are computed twice, which takes less memory and more time.
    """

    __pydantic_config__ = STRICT

    epochs: Annotated[int, Ge(1)] = 1
    batch_size: Annotated[int, Ge(1)] = 64
    micro_batch_size: Annotated[int, Ge(1)] | None = None
    learning_rate: Annotated[float, Gt(0)] = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[float, Ge(0), Le(1)] = 0.03
    weight_decay: Annotated[float, Ge(0)] = 0.0
    betas: tuple[Annotated[float, Ge(0), Le(1)], Annotated[float, Ge(0), Le(1)]] = (0.9, 0.999)
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: Annotated[float, Gt(0)] | None = None
    projector_learning_rate: Annotated[float, Gt(0)] | None = None
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class StageSetup:
    """What a learner needs to begin a stage.

    steps: optimizer steps of the whole stage; 0 where the learner only answers.
    seed, task: they name the stage's random streams.
    parent: folder with the parent stage's files; None starts from weights that are drawn from the seed.
    """

    adapter: Adapter
    training: Training
    steps: int
    seed: int
    task: str
    parent: Path | None = None


class Learner(Protocol):
    """One model in training: what the training loop and the strategies may ask of it."""

    def start(self, setup: StageSetup) -> None:
        """Begin a stage: a fresh optimizer, and weights from the parent's adapter or from the seed."""
        ...

    def resume(self, setup: StageSetup, done: int, checkpoint: Mapping[str, Tensor]) -> dict[str, Any]:
        """Continue a stage after `done` steps, and return the tensors of the strategy's memory.

        checkpoint: what `checkpoint_tensors` returned after these steps.
        """
        ...

    def weights(self) -> ShardedTensors:
        """The trainable tensors that the optimizer updates, always in the same order."""
        ...

    def step(self, batch: Sequence[Example], step: int, edit: GradientHook) -> float:
        """Take one optimizer step on the mean loss over the batch's answer tokens; return that loss.

        `edit` sees the gradient of the whole batch, after accumulation and reduction.
        """
        ...

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """Greedy answers, in the examples' order."""
        ...

    def gather(self) -> None:
        """Collect the weights that `save` writes. Every rank of a group calls it."""
        ...

    def save(self, folder: Path) -> None:
        """Write a PEFT checkpoint. One rank calls it, after all have called `gather`."""
        ...

    def checkpoint_tensors(self, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weights, optimizer state and the tensors of a strategy's memory, unsharded, by name.

        Every rank of a group calls it.
        """
        ...


class ShardedTensors(list["Tensor"]):
    """The trainable tensors, or this process's shard of each where several processes share them.

    total: sums a tensor over all shards; the identity where one process holds everything. Norms need it,
        element-wise operations do not.
    """

    def __init__(
        self, tensors: Iterable[Tensor] = (), total: Callable[[Tensor], Tensor] = lambda values: values
    ) -> None:
        super().__init__(tensors)
        self.total = total


GradientHook: TypeAlias = "Callable[[ShardedTensors, ShardedTensors, int], None]"
"""(weights, gradients, step) → None: changes the gradients in place."""


# -- strategies ------------------------------------------------------------------------------------


class Protection(NamedTuple):
    """How strongly a strategy protects earlier tasks, as the simulated learner understands it.

    pull: share of the steps that pull the weights towards the old optimum, in [0, 1]; DGG's α.
    buffer: number of replayed examples of each earlier task.
    """

    pull: float = 0.0
    buffer: int = 0


@dataclass(frozen=True)
class Strategy:
    """A continual-learning method. Settings are fields; every hook does nothing by default.

    Each stage has a new instance. `self.memory` is the only place for what the instance remembers between
    `begin_task` and the last step. It holds JSON values, tensors, and lists of tensors parallel to the
    weights. A stage that resumes from a mid-stage checkpoint gets its memory back, and no `begin_task`.
    """

    __pydantic_config__ = STRICT
    simultaneous: ClassVar[bool] = False
    """All tasks of an order are trained at once, in one stage: an upper reference, not a sequence."""
    starts_plain: ClassVar[bool] = False
    """The first task of an order is plain fine-tuning: no hook is called for it, and every other strategy
    that declares the same shares its stage. The declaration holds for its own class, not for subclasses."""
    per_task: ClassVar[Mapping[str, float]] = {}
    """Settings whose value may differ per task: {task: value}. Each is named with its value for the tasks
    that such a mapping leaves out. Searches and curves vary them from the second task of an order on."""

    @cached_property
    def memory(self) -> dict[str, Any]:
        return {}

    def effect(self, task: str, earlier: Sequence[str]) -> dict[str, Any]:
        """Return the JSON values that set this instance apart within its class, for `task` after `earlier`.

        They enter the stage key: settings with an equal effect share the stage, so two settings that train
        differently must differ here. The default is every field; see `effect_of`. A file or a folder counts
        by its content.
        """
        return {f.name: setting_for_key(getattr(self, f.name)) for f in fields(self)}

    def examples(self, fresh: Sequence[Example], earlier: Sequence[Task], seed: int) -> list[Example]:
        """Choose the stage's training examples from the new task's examples and the earlier tasks."""
        return list(fresh)

    def begin_task(self, weights: ShardedTensors, task: str, earlier: Sequence[str], seed: int) -> None:
        """Prepare for a task. Called when the weights are loaded, before the first step."""

    def edit_gradient(self, weights: ShardedTensors, gradients: ShardedTensors, step: int) -> None:
        """Change `gradients` in place, right before the optimizer's step."""

    def state(self) -> dict[str, Tensor]:
        """Return what the next stage needs besides the weights; it is stored as safetensors."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the `state` of the parent stage."""

    def replayed_examples(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Count the examples of earlier tasks that `examples` adds, by task, for plans and costs.

        sizes: number of training examples of each earlier task.
        """
        return {}

    def protection(self, task: str, earlier: Sequence[str]) -> Protection:
        """How strongly `earlier` tasks are protected while `task` is trained, for simulated studies alone."""
        return Protection()


def task_mappings(strategy: Strategy) -> dict[str, Mapping[str, Any]]:
    """Return the strategy's settings that are given per task: setting → {task: value}."""
    values = {name: getattr(strategy, name) for name in strategy.per_task}
    return {name: value for name, value in values.items() if isinstance(value, Mapping)}


def effect_of(strategy: Strategy, task: str, earlier: Sequence[str], code: str) -> dict[str, Any]:
    """Return the strategy's part of a stage key; {} is plain fine-tuning, {"buffer": n} plain replay.

    Only a class as shipped may claim these, and only for itself: a subclass may do anything and inherits no
    claim. For any other class, the class and its source are in the key, whatever its `effect` returns.

    code: digest of the class's source (sources.source_digest); empty where the source is as shipped.
    """
    cls = type(strategy)
    if cls is Strategy or plain_first(strategy, earlier):
        return {}
    has_own_effect = "effect" in vars(cls)
    effect = strategy.effect(task, earlier) if has_own_effect else Strategy.effect(strategy, task, earlier)
    if has_own_effect and not code:
        return effect
    # No field can be called `class`, but a user's own effect may contain that key.
    identity = [f"{cls.__module__}:{cls.__qualname__}", code]
    if "class" in effect:
        identity.append(effect["class"])
    return {**effect, "class": identity}


def setting_for_key(value: Any) -> Any:
    """Convert a setting to JSON for a key. Files and folders count by content, nested settings by class."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__qualname__} | {
            f.name: setting_for_key(getattr(value, f.name)) for f in fields(value)
        }
    if isinstance(value, Mapping):
        return {key: setting_for_key(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [setting_for_key(inner) for inner in value]
    if not isinstance(value, Path):
        return value
    if value.is_dir():
        return file_hashes.hash_folder(value, ignored=())
    return file_hashes.hash_file(value) if value.is_file() else str(value)


def plain_first(strategy: Strategy, earlier: Sequence[str]) -> bool:
    """Return whether a stage is an order's first one and the strategy's own class declares `starts_plain`."""
    return not earlier and bool(vars(type(strategy)).get("starts_plain"))


@dataclass(frozen=True)
class ReplayStrategy(Strategy):
    """Base class of strategies with a replay buffer.

    buffer: number of training examples kept of each finished task and replayed; 0 is none.
    """

    buffer: Annotated[int, Ge(0)] = 0

    def replay_effect(self, earlier: Sequence[str]) -> dict[str, Any]:
        """Return the effect of the buffer alone."""
        return {"buffer": self.buffer} if earlier and self.buffer else {}

    def examples(self, fresh: Sequence[Example], earlier: Sequence[Task], seed: int) -> list[Example]:
        """Return the union T_t ∪ M of DGG's loss; the training loop shuffles it."""
        replayed = [example for task in earlier for example in replay_sample(task, self.buffer, seed)]
        return [*fresh, *replayed]

    def replayed_examples(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        return {task: min(self.buffer, size) for task, size in sizes.items()}

    def protection(self, task: str, earlier: Sequence[str]) -> Protection:
        return Protection(buffer=self.buffer)


def replay_sample(task: Task, size: int, seed: int) -> list[Example]:
    """Draw `size` training examples of a finished task, uniformly without replacement.

    The sample is the beginning of one fixed permutation. A larger buffer therefore contains every smaller
    one, and buffers of different sizes are compared on nested samples.
    """
    train = task.examples["train"]
    order = rng.permutation(len(train), seed, task.name, "replay")
    return [train[i] for i in order[:size]]
