"""All that can be added: a task's reader, a scorer, a model, a strategy; and what they exchange.

A plug-in is one file in the folder of its kind; the file's name is the name in the study.

    folder       what the file defines                                     study
    tasks/       a subclass of Reader                                      tasks: - reader: NAME
    scorers/     score(predictions, examples) -> Score                     tasks: - scorer: NAME
    models/      a subclass of Model                                       model: name: NAME
    strategies/  a subclass of Strategy                                    strategy: name: NAME
    metrics/     a function ScoreMatrix -> Value, named as its file       search: objective: NAME
    plots/       draw(results) -> Figure                                   -

A metric's file may say what its values can be, `RANGE = (0.0, 1.0)`: intervals do not go beyond.

It may also stand in a module of your own: `name: package.module:Class` (or `:function`), looked for in the
folder of the study's file, in the working folder, and wherever Python looks.

A scorer's file may also define `ready()`, what is missing here as a sentence; `remarks(examples)`, counts and
sentences of what it cannot use, for `plan`; and VERSION, raised when it judges answers otherwise than before.

Settings are dataclass fields with `annotated_types` bounds; the study file is checked against them. What a
plug-in of yours does is keyed by its source (sources.py): edited, its stages are trained anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from annotated_types import Ge, Gt, Le

from dgg_ray.core import draws, file_hashes
from dgg_ray.core.errors import STRICT, StageError
from dgg_ray.core.hashing import digest as digest  # for plug-ins, which find all they need here
from dgg_ray.core.scores import ScoreMatrix as ScoreMatrix
from dgg_ray.core.scores import Value as Value
from dgg_ray.core.scores import mean as mean

if TYPE_CHECKING:  # a driver, a broker and a waiting trial know strategies, and need no torch to do so
    from torch import Tensor

SPLITS = ("train", "validation", "test")
ROUNDING = 1e-9  # by which a mean may miss the range of what it is the mean of
Split = Literal["train", "validation", "test"]


# -- data ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Example:
    """A question about a picture and its answer.

    question: as the model sees it, without an image token.
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

    digests: for each split a hash of its content (questions, answers, pictures), 64 hex digits.
    scorer: the name of the file in scorers/ that judges its answers.
    warnings: what is allowed and yet should be known, such as examples in both train and test.
    """

    name: str
    examples: Mapping[str, Sequence[Example]]
    digests: Mapping[str, str]
    scorer: str = "exact_match"
    warnings: tuple[str, ...] = ()


class Score(NamedTuple):
    """value: of the whole set, in [0, 1]; each: per example, in [0, 1], for resampling."""

    value: float
    each: tuple[float, ...]

    def checked(self, scorer: str, examples: int) -> Score:
        """Itself; StageError where it cannot be a score of so many examples."""
        wrong = [score for score in (self.value, *self.each) if not -ROUNDING <= score <= 1 + ROUNDING]
        if wrong or len(self.each) != examples:
            found = (
                f"{wrong[0]} among its scores" if wrong else f"{len(self.each)} scores of {examples} examples"
            )
            raise StageError(
                f"scorer `{scorer}` must give a score from 0 to 1 for each example, gave {found}"
            )
        return self


@dataclass(frozen=True)
class Reader(ABC):
    """Where a task's examples come from. Subclasses add their settings as fields."""

    __pydantic_config__ = STRICT

    @abstractmethod
    def read(self, name: str) -> Task:
        """The task called `name`.

        Raises StudyError with every fault found, each with its file, for data that break a rule.
        """


# -- what a stage is learned with ------------------------------------------------------------------


@dataclass(frozen=True)
class Model(ABC):
    """A vision-language model in the Hugging Face form. Subclasses add their settings as fields."""

    __pydantic_config__ = STRICT
    plain_head: ClassVar[bool] = False
    """Logits are `lm_head` of the last hidden state and no more: it may run on answers alone."""

    @abstractmethod
    def load(self) -> tuple[Any, Any]:
        """(model, processor): a `*ForConditionalGeneration` in evaluation mode and its processor."""

    def at_hand(self) -> bool:
        """Whether `processor` and `context` can be asked on this machine, with no download."""
        return False

    def processor(self) -> Any:
        """The processor as `load` gives it, without the weights."""
        raise NotImplementedError

    def context(self) -> int:
        """Tokens that the model has positions for, prompt and answer together; 0 is not known."""
        return 0

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the weights and the processor, 64 hex digits; it enters every stage key."""

    def faults(self) -> list[tuple[str, str, str]]:
        """What is wrong with the files it needs, as (setting, rule, found); nothing is loaded."""
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

    epochs: number of times that a stage sees its examples.
    batch_size: number of examples behind one optimizer step, over all workers and micro-batches.
    micro_batch_size: number of examples per forward pass on one worker; None is as many as there are.
        Gradients accumulate up to batch_size.
    learning_rate: largest learning rate of AdamW.
    schedule: how the rate falls after the warm-up: not at all, in a line, or as half a cosine, to 0.
    warmup: share of the steps over which the rate rises from 0; a part of a step is a whole one.
    weight_decay: AdamW's decoupled weight decay.
    betas: AdamW's decay rates of its two moments.
    precision: numbers that are computed with: `fp32`, or `bf16` autocast with the LoRA weights kept in fp32.
    clip_norm: largest L2 norm of the gradient over all trainable tensors; it is scaled down to that
        after the strategy's edit, right before AdamW. None, the default, is no clipping.
    projector_learning_rate: train the projector between vision tower and language model too, at this
        rate (MCITlib: 2e-5); None leaves it frozen.
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


class Learner(Protocol):
    """One model being trained: what the loop and the strategies may ask of it."""

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
        """Fresh optimizer, and weights from a finished stage's adapter or, without one, from the seed.

        With a `snapshot`, go on from it instead, `done` of the `steps` behind; returns the strategy's
        memory that was in it.
        """
        ...

    def weights(self) -> Pieces:
        """The trainable tensors, the values that the optimizer updates; always in the same order."""
        ...

    def step(self, batch: Sequence[Example], step: int, edit: GradientEdit) -> float:
        """One optimizer step on the mean loss over the batch's answer tokens; returns that loss.

        `edit` sees the gradient of the whole batch, after accumulation and reduction."""
        ...

    def answer(self, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
        """Greedy answers, in order."""
        ...

    def gather(self) -> None:
        """Make ready what `save` writes; every process that learns together calls it."""
        ...

    def save(self, folder: Path) -> None:
        """A PEFT checkpoint. One process calls it, after all called `gather`."""
        ...

    def snapshot(self, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weights, optimizer and a strategy's memory, whole, by name. Every process calls it."""
        ...


class Pieces(list["Tensor"]):
    """The trainable tensors, or this process's piece of each where several share them.

    total: adds a tensor up over those that hold the pieces; the identity where one holds all. Norms
        need it, what is done element by element does not.
    """

    def __init__(
        self, tensors: Iterable[Tensor] = (), total: Callable[[Tensor], Tensor] = lambda values: values
    ) -> None:
        super().__init__(tensors)
        self.total = total


GradientEdit: TypeAlias = "Callable[[Pieces, Pieces, int], None]"
"""(weights, gradients, step) → None: changes the gradients in place."""


# -- strategies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strategy:
    """What is done against forgetting. Settings are fields; every hook is a no-op by default.

    Each stage has a new instance. What it remembers between `begin_task` and the last step lives in
    `self.memory` alone: JSON values, tensors, and lists of tensors that run along the weights. A
    stage that goes on in its middle gets its memory back, and no `begin_task`.
    """

    __pydantic_config__ = STRICT
    simultaneous: ClassVar[bool] = False
    """All tasks of an order are learned at once, in one stage: an upper reference, not a sequence."""
    starts_plain: ClassVar[bool] = False
    """The first task of an order is plain fine-tuning: no hook is called for it, and its stage is shared
    with every other strategy that says so. It holds for the class that says it, and for no subclass."""

    @cached_property
    def memory(self) -> dict[str, Any]:
        return {}

    def effect(self, task: str, earlier: Sequence[str]) -> dict[str, Any]:
        """Values that set this apart within its class when `task` is learned after `earlier`, as JSON.

        It enters the stage key: settings with an equal effect share the stage, so two that would train
        differently must differ here. Every field, unless the class itself says less; see `effect_of`.
        A file or a folder is what it holds.
        """
        return {f.name: setting_for_key(getattr(self, f.name)) for f in fields(self)}

    def examples(self, fresh: Sequence[Example], earlier: Sequence[Task], seed: int) -> list[Example]:
        """What the stage trains on: the new task's examples, and what is kept of earlier ones."""
        return list(fresh)

    def begin_task(self, weights: Pieces, task: str, earlier: Sequence[str], seed: int) -> None:
        """Called once the weights are in place, before the first step."""

    def edit_gradient(self, weights: Pieces, gradients: Pieces, step: int) -> None:
        """Change `gradients` in place, right before the optimizer's step."""

    def state(self) -> dict[str, Tensor]:
        """What the next stage needs beside the weights; kept as safetensors with the stage."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what the parent stage's `state` gave."""


def effect_of(strategy: Strategy, task: str, earlier: Sequence[str], code: str) -> dict[str, Any]:
    """The strategy's part of a stage key; {} is plain fine-tuning, {"buffer": n} plain replay.

    Only a class whose source is as it was shipped may say so, and only for itself: a subclass may do
    anything, and inherits no claim. Of any other the class and its source are in the key, whatever it says.

    code: of the class's source (sources.code_of), empty where it is as shipped.
    """
    cls = type(strategy)
    if cls is Strategy or plain_first(strategy, earlier):
        return {}
    says = "effect" in vars(cls)
    effect = strategy.effect(task, earlier) if says else Strategy.effect(strategy, task, earlier)
    # No field can be called `class`; an effect of one's own may say it.
    named = [f"{cls.__module__}:{cls.__qualname__}", code, *([effect["class"]] if "class" in effect else [])]
    return effect if says and not code else {**effect, "class": named}


def setting_for_key(value: Any) -> Any:
    """A setting as a key has it: a file or a folder by what it holds, wherever it lies; settings in it with
    their class."""
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
        return file_hashes.content(value, unread=())
    return file_hashes.content_of_file(value) if value.is_file() else str(value)


def plain_first(strategy: Strategy, earlier: Sequence[str]) -> bool:
    """Whether the stage is the plain beginning of an order that the strategy's own class speaks of."""
    return not earlier and bool(vars(type(strategy)).get("starts_plain"))


@dataclass(frozen=True)
class Rehearsal(Strategy):
    """A strategy with a replay buffer beside it.

    buffer: number of training examples kept of each finished task and replayed; 0 is none.
    """

    buffer: Annotated[int, Ge(0)] = 0

    def replayed(self, earlier: Sequence[str]) -> dict[str, Any]:
        """The effect of the buffer alone."""
        return {"buffer": self.buffer} if earlier and self.buffer else {}

    def examples(self, fresh: Sequence[Example], earlier: Sequence[Task], seed: int) -> list[Example]:
        """The union T_t ∪ M, as DGG's loss has it: concatenated here, shuffled by the loop."""
        kept = [example for task in earlier for example in replay_sample(task, self.buffer, seed)]
        return [*fresh, *kept]


def replay_sample(task: Task, size: int, seed: int) -> list[Example]:
    """`size` training examples of a finished task, uniform without replacement.

    The first `size` of one fixed permutation: a larger buffer holds every smaller one, so that
    buffers of different sizes are compared on nested samples.
    """
    train = task.examples["train"]
    order = draws.permutation(len(train), seed, task.name, "replay")
    return [train[i] for i in order[:size]]
