"""Interfaces of all plug-ins, and the data types that plug-ins exchange.

A plug-in is one file in the folder of its kind. The file's name is the plug-in's name in a study.

    folder       the file defines                                            in the study
    readers/     a subclass of Reader                                        tasks: - reader: NAME
    scorers/     a function score(predictions, examples) -> Score            tasks: - scorer: NAME
    models/      a subclass of Model                                         model: name: NAME
    strategies/  a subclass of Strategy (strategy.py)                        strategy: name: NAME
    adapters/    subclasses of AdapterLayout                                 a strategy's `layout`
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
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from annotated_types import Ge, Gt, Le, MinLen

from dgg_ray.core.errors import STRICT, StageError

if TYPE_CHECKING:  # drivers, brokers and waiting trials handle strategies without loading torch
    from torch import Tensor

SPLITS = ("train", "validation", "test")
ADAPTER_FILE = "adapter_model.safetensors"  # in a stage's folder adapter/; PEFT's name for it
LAYOUT_FILE = "layout.safetensors"  # beside it: what a layout trains or keeps besides PEFT's weights
ROUNDING = 1e-9  # rounding error allowed when a mean is checked against [0, 1]
Split = Literal["train", "validation", "test"]
AnswerStyle = Literal["yes_no", "multiple_choice", "sentence"]
STYLES: tuple[AnswerStyle, ...] = ("yes_no", "multiple_choice", "sentence")


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
class AnswerStyles:
    """A share of a task's training examples, asked and answered in other styles (readers/_answer_styles.py).

    share: share of the training examples that are rewritten; SEFE takes 0.2, and 0 rewrites none. A larger
        share keeps the choice of a smaller one.
    styles: the styles, which take turns as far as the answers allow: `yes_no` asks whether an answer is
        right, `multiple_choice` offers it among three wrong ones, and `sentence` asks for a whole sentence.
    seed: the seed by which examples and wrong answers are drawn.
    """

    __pydantic_config__ = STRICT

    share: Annotated[float, Ge(0), Le(1)]
    styles: Annotated[tuple[AnswerStyle, ...], MinLen(1)] = STYLES
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Reader(ABC):
    """Source of a task's examples. Subclasses add their settings as fields.

    answer_styles: rewrites a share of the training examples in other styles of answer, after they were read;
        None leaves them as they are.
    """

    __pydantic_config__ = STRICT

    answer_styles: AnswerStyles | None = field(default=None, kw_only=True)

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
    budget: what `rank` measures for strategies whose adapter grows with the tasks: `trainable`, the rank that
        each stage trains, or `stored`, the rank of all tasks together. Either makes methods comparable.
    """

    __pydantic_config__ = STRICT

    rank: Annotated[int, Ge(1), Le(1024)] = 8
    alpha: Annotated[float, Gt(0)] | None = None
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.0
    targets: Literal["all"] | tuple[str, ...] = "all"
    budget: Literal["trainable", "stored"] = "trainable"

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return (self.alpha or 2 * self.rank) / self.rank

    def with_rank(self, rank: int) -> Adapter:
        """Return the adapter at another rank and the same scale."""
        alpha = None if self.alpha is None else self.alpha * rank / self.rank
        return self if rank == self.rank else replace(self, rank=rank, alpha=alpha)


@dataclass(frozen=True)
class Training:
    """The optimisation of one stage.

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
    """The inputs with which a learner begins a stage.

    steps: optimizer steps of the whole stage; 0 where the learner only answers.
    seed, task: they name the stage's random streams.
    parent: folder with the parent stage's files; None starts from weights that are drawn from the seed.
        Where the learner only answers, the folder of the finished stage itself.
    layout: how the adapter's weights are laid out; None is plain LoRA.
    """

    adapter: Adapter
    training: Training
    steps: int
    seed: int
    task: str
    parent: Path | None = None
    layout: AdapterLayout | None = None


@dataclass(frozen=True)
class AdapterLayout:
    """The layout of the trained weights on the language model's linear layers. This is plain LoRA.

    Subclasses, one file each in adapters/, build on the PEFT LoRA called `default`: they add parts to its
    layers, or change what they compute. Settings are fields, which a strategy gives. All else that a layout
    knows of the model is in `parts`, which `attach` fills and `detach` empties.
    """

    __pydantic_config__ = STRICT

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The facts that the layout keeps about the model that it is attached to."""
        return {}

    def rank_for(self, rank: int, tasks: int, budget: str) -> int:
        """Return the rank of the LoRA that a stage trains; 0 where the budget is too small.

        rank, budget: the study's (see `Adapter`). tasks: number of tasks of a sequence.
        """
        return rank

    def stored_copies(self, earlier: int) -> int:
        """Bound what a stage after so many earlier tasks stores, in units of the LoRA that it trains."""
        return 1

    def attach(self, model: Any, setup: StageSetup) -> None:
        """Prepare the mounted PEFT model, whose default LoRA is drawn or loaded already.

        New trainable parameters must have `lora_` in their names, and be registered on modules of the model.
        Only trained parameters are stored; those that are frozen here and count belong into `frozen_tensors`.
        """

    def detach(self) -> None:
        """Undo `attach`, so that another layout can use the mounted LoRA."""

    def before_forward(self, inputs: Mapping[str, Tensor], prompts: Sequence[tuple[int, int]]) -> None:
        """Look at a batch's inputs right before the model gets them.

        prompts: columns of each row's prompt, from the first one that may be replaced (see
            `extra_prompt_tokens`) to the one after its last.
        """

    def switch(self, on: bool) -> None:
        """Switch everything that the layout adds on or off; PEFT switches its LoRA off itself."""

    def set_route(self, weights: Tensor | None) -> None:
        """Set the slots' weights (N, K) for the next N examples; None is the layout's own choice."""

    @property
    def extra_prompt_tokens(self) -> int:
        """Number of placeholder tokens that each prompt gets for the layout's own vectors."""
        return 0

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Tensors to store beside what the stage trained, by names without `lora_`; `attach` reads them."""
        return {}


@dataclass(frozen=True, eq=False)
class LossOutputs:
    """The forward pass of a micro-batch, at its n answer tokens.

    logits: (n, V), of the token at each position. targets: (n,) token ids. rows: (n,) example of each token.
    examples: the micro-batch's.
    tokens_per_example: answer tokens of the global batch over its number of examples.
    logits_at: gives the logits (n, V) of the same inputs at other whole weights, in evaluation mode and
        without a gradient; None is the untouched base model. Not on ZeRO-3.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    examples: Sequence[Example]
    tokens_per_example: float
    logits_at: Callable[[Sequence[Tensor] | None], Tensor]


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

    def step(
        self, batch: Sequence[Example], step: int, edit: GradientHook, hooks: StepHooks | None = None
    ) -> float:
        """Take one optimizer step on the mean loss over the batch's answer tokens; return that loss.

        `edit` sees the gradient of the whole batch, after accumulation and reduction.
        """
        ...

    def answer(
        self, examples: Sequence[Example], max_new_tokens: int, route: Tensor | None = None
    ) -> list[str]:
        """Greedy answers, in the examples' order. route: weights (N, K) of a layout's slots per example."""
        ...

    def gather_list(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Whole tensors on the CPU from shards that are parallel to `weights`. Every rank calls it."""
        ...

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of the adapter: {trainable in this stage, stored with it}."""
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

    def inner(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """⟨a, b⟩ in fp64, over all trained weights as one vector. a, b: sharded like these tensors."""
        products = [(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]
        return self.total(sum(products[1:], products[0]))


class StepHooks(NamedTuple):
    """Further hooks of a training step; None is not called.

    loss: (loss, outputs) → loss, for each micro-batch. after: (weights, step) → None, after the update.
    route: examples → weights of a layout's slots, for each micro-batch.
    """

    loss: Callable[[Tensor, LossOutputs], Tensor] | None = None
    after: Callable[[ShardedTensors, int], None] | None = None
    route: Callable[[Sequence[Example]], Tensor | None] | None = None


GradientHook: TypeAlias = "Callable[[ShardedTensors, ShardedTensors, int], None]"
"""(weights, gradients, step) → None: changes the gradients in place."""
