"""The interface of strategies: what a continual-learning method may do, and what it may ask for.

A stage calls a strategy's hooks in this order.

    load_state               what the parent stage handed on
    examples, phases         which examples the stage trains on, in which parts
    prepare                  at every start and every resume; loads what can be computed or read again
    begin_task               at the start alone; fills `memory`
    for every step
        training_route       for every micro-batch, before the forward pass
        edit_loss            for every micro-batch, after it
        edit_gradient        once, after accumulation and reduction, before clipping
        after_step           once, after the optimizer's update
    end_task                 edits the weights before they are published
    state                    what the next stage gets besides the weights
    load_state, prepare, route    at every evaluation after the stage

`Strategy.context` answers the questions of the hooks: gradients and outputs at other weights, the weights at
the end of earlier tasks, and facts. A `Fact` is what a method must know of a finished task, as a function of
its stage and data or of its data alone. It is computed when it is first asked for, stored under a hash of
what it depends on, and shared by all strategies and settings that ask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from annotated_types import Ge

from dgg_ray.core import file_hashes, rng
from dgg_ray.core.errors import STRICT, StageError
from dgg_ray.core.interfaces import AdapterLayout, Example, LossOutputs, ShardedTensors, Task

if TYPE_CHECKING:  # drivers, brokers and waiting trials handle strategies without loading torch
    from torch import Tensor

ENGINES = ("auto", "zero1", "zero2", "zero3", "simulated")
WHOLE_WEIGHTS = ("auto", "zero1", "zero2", "simulated")  # where each process holds every weight whole
MEMORY_ADVICE = (
    "put what is remembered within a stage into self.memory, and what the next stage needs into state()"
)
Values: TypeAlias = "Mapping[str, Any]"  # tensors, and lists with one tensor per trained weight


@dataclass(frozen=True)
class Needs:
    """The needs of a strategy beside the new task's examples; plans and checks ask for them.

    earlier_stages: whether it asks for weights of earlier tasks, or for facts of their stages.
    old_data: whether it reads examples of earlier tasks in training, beyond those that `examples` returns.
    engines: the values of workers.engine on which it can train. WHOLE_WEIGHTS is all but zero3, for a method
        that asks its context for what is not possible on ZeRO-3.
    step_cost: time of a training step in units of plain fine-tuning's, for forecasts.
    fact_values: values for each trained weight that facts keep of every finished stage, for forecasts.
    """

    earlier_stages: bool = False
    old_data: bool = False
    engines: tuple[str, ...] = ENGINES
    step_cost: float = 1.0
    fact_values: int = 0


@dataclass(frozen=True)
class Fact(ABC):
    """Knowledge of a finished task that a method needs. Its settings are fields.

    of: `stage`: computed from the task's examples at the weights that its stage ended with, not on ZeRO-3;
        `data`: from the examples and the untouched base model alone, in the stage's precision.
    version: raised when the same settings would give other values than before.
    """

    of: ClassVar[Literal["stage", "data"]] = "stage"
    version: ClassVar[int] = 1

    @abstractmethod
    def compute(self, context: StageContext, task: Task) -> Values:
        """Compute the values. The model is in evaluation mode; for a fact of a stage, at the stage's end.

        Lists are parallel to the weights, and whole on every process. Every process of a group calls it.
        """


class StageContext(ABC):
    """The values that a strategy's hooks may ask for, on every engine in `Needs.engines`.

    task, earlier: the task that is trained, or was trained last; the tasks before it, in their order.
    seed: the run's. steps: optimizer steps of the stage. layout: where the trained weights are.
    names: of the trained weights, parallel to them.
    """

    task: str
    earlier: tuple[str, ...]
    seed: int
    steps: int
    layout: AdapterLayout
    names: Sequence[str]

    @abstractmethod
    def examples(self, task: str) -> Sequence[Example]:
        """Training examples of the stage's task, or of an earlier one for a strategy that needs old data."""

    @abstractmethod
    def weights_after(self, task: str) -> list[Tensor]:
        """The weights at the end of an earlier task's stage, whole, on this device.

        Under a layout with slots, they are those of the slot that was trained on the task.
        """

    @abstractmethod
    def fact(self, fact: Fact, task: str) -> Values:
        """A fact of an earlier task or, at an evaluation, of the last one; on this device."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """The present trained weights, whole; not on ZeRO-3."""

    @abstractmethod
    def shard(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of this process's shards of whole tensors that are parallel to the weights."""

    @abstractmethod
    def gradient(self, examples: Sequence[Example], weights: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Gradient of the mean loss per answer token over `examples`, whole, in evaluation mode.

        It is one for all examples; `mean_of_gradients` looks at each example's own, and at other functions.

        weights: whole tensors at which it is taken; None is the present weights. Not on ZeRO-3.
        """

    @abstractmethod
    def mean_squared_gradient(self, examples: Sequence[Example]) -> list[Tensor]:
        """Mean over examples of the squared gradient of each example's own mean loss per answer token.

        Not on ZeRO-3.
        """

    @abstractmethod
    def mean_of_gradients(
        self,
        examples: Sequence[Example],
        each: Callable[[Tensor], Tensor],
        of: Callable[[LossOutputs], Tensor] | None = None,
    ) -> list[Tensor]:
        """Mean over examples of `each`, applied to every tensor of an example's own gradient; whole.

        Not on ZeRO-3.

        each: such as torch.abs. of: what the gradient is of, a tensor of shape () of the forward pass of one
            example, in evaluation mode; None is its mean loss per answer token.
        """

    @abstractmethod
    def losses(self, examples: Sequence[Example]) -> Tensor:
        """Mean loss per answer token of each example (N,), in evaluation mode, in nats.

        Each example has a forward pass of its own, so that layouts can watch it without padding, and every
        process runs all of them. They can be differentiated where gradients are switched on.
        """

    @abstractmethod
    def at(self, weights: Sequence[Tensor] | None) -> AbstractContextManager[None]:
        """In the block, the model has these whole weights, or its base weights alone for None; not on ZeRO-3.

        No gradient of the block is kept.
        """

    @abstractmethod
    def question_logits(
        self, examples: Sequence[Example], weights: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, V) at all tokens of the questions alone, without image or answer; each one's row (n,).

        For plain LoRA and slots: layouts that look at prompts (`before_forward`) do not see the questions.

        weights: whole tensors to look at, in evaluation mode and without a gradient; None is the present
            weights as they are trained. Not on ZeRO-3.
        """

    @abstractmethod
    def input_products(self, examples: Sequence[Example], layers: Sequence[str]) -> list[Tensor]:
        """XᵀX / n (d_in, d_in) of each of these modules, fp32, whole, at the present weights.

        X: (n, d_in), the module's inputs at all tokens of the examples, questions and answers. Not on ZeRO-3.
        """

    @abstractmethod
    def embedding_products(self, examples: Sequence[Example]) -> Tensor:
        """XᵀX / n (H, H) of the untouched language model's input embeddings, fp32, whole.

        X: (n, H), all tokens of the examples' prompts; those of images come from the projector.
        """

    @abstractmethod
    def image_features(self, examples: Sequence[Example], encoder: str) -> Tensor:
        """A frozen encoder's features (N, F) of the images, up to rounding; fp32, on this device.

        encoder: `model` is the untouched base model: the mean of its projected image tokens. Else a CLIP
            model, see storage/encoders.py: its projected image embedding. A missing image has features 0.
        """

    @abstractmethod
    def question_features(self, examples: Sequence[Example], encoder: str) -> Tensor:
        """A frozen encoder's features (N, G) of the questions, up to rounding; fp32, on this device.

        encoder: `model` is the untouched base model: the mean of its last hidden states of the question
            alone. Else a CLIP model: its projected text embedding.
        """

    def features(self, examples: Sequence[Example], encoder: str) -> tuple[Tensor, Tensor]:
        """The features of the images and of the questions."""
        return self.image_features(examples, encoder), self.question_features(examples, encoder)


class Protection(NamedTuple):
    """The strength of a strategy's protection of earlier tasks, as the simulated learner understands it.

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
    `self.cache` is for what `load_state` and `prepare` load: a resumed stage calls them again. `self.context`
    answers questions (see `StageContext`).
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
    needs: ClassVar[Needs] = Needs()
    known_from: ClassVar[Literal["released code", "published formula", "abstract", ""]] = ""
    """The source from which the method is known. Reports print it beside the name."""

    @cached_property
    def memory(self) -> dict[str, Any]:
        return {}

    @cached_property
    def context(self) -> StageContext:
        raise StageError(
            f"{type(self).__name__}.context can be used from `prepare` on, in a stage that trains or answers"
        )

    @cached_property
    def cache(self) -> dict[str, Any]:
        return {}

    def faults(self) -> list[tuple[str, str, str]]:
        """List the faults of files that settings name as (setting, rule, value found); nothing is loaded."""
        return []

    def layout(self) -> AdapterLayout | None:
        """Return how the trained weights are laid out, a plug-in of adapters/; None is plain LoRA."""
        return None

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

    def prepare(self) -> None:
        """Load what the other hooks need and the context can give again.

        Called at the start of a stage, at each resume of it, and before it is evaluated. Put it into
        `self.cache`, which no checkpoint holds.
        """

    def begin_task(self, weights: ShardedTensors, task: str, earlier: Sequence[str], seed: int) -> None:
        """Prepare for a task. Called when the weights are loaded, before the first step."""

    def begin_phase(self, phase: int, weights: ShardedTensors) -> None:
        """Begin phase 1, 2, … of a stage whose `phases` returned several; phase 0 has `begin_task`."""

    def phases(self, examples: Sequence[Example], seed: int) -> list[Sequence[Example]]:
        """Split the stage's examples into parts that are trained one after another, on one schedule."""
        return [examples]

    def edit_loss(self, loss: Tensor, outputs: LossOutputs) -> Tensor:
        """Return the loss of a micro-batch to descend on: a sum over answer tokens, in nats.

        It is divided by the number of answer tokens of the global batch. A term of one value per example is
        scaled by `outputs.tokens_per_example`. Only a class that defines this hook pays for it.

        loss: summed negative log-likelihood of the micro-batch's answer tokens.
        """
        return loss

    def training_route(self, examples: Sequence[Example]) -> Tensor | None:
        """Return the weights (N, K) of a layout's slots for a micro-batch; None is the layout's own choice.

        They are as in `route`. Called before each micro-batch, in each process with its own examples. Only a
        class that defines this hook is asked.
        """
        return None

    def edit_gradient(self, weights: ShardedTensors, gradients: ShardedTensors, step: int) -> None:
        """Change `gradients` in place, right before the optimizer's step."""

    def after_step(self, weights: ShardedTensors, step: int) -> None:
        """Change `weights` in place, right after the optimizer's step."""

    def end_task(self, weights: ShardedTensors) -> None:
        """Change `weights` in place after the last step; what they then are is published and evaluated."""

    def route(self, examples: Sequence[Example]) -> Tensor | None:
        """Return the weights (N, K) of a layout's slots for each example; None is the layout's own choice.

        The K columns are the tasks trained so far, in their order: `context.earlier`, then `context.task`.
        Called before each batch of answers; the weights hold for all tokens of the answer.
        """
        return None

    def state(self) -> dict[str, Tensor | list[Tensor]]:
        """Return what the next stage needs besides the weights; it is stored as safetensors.

        A list is parallel to the weights, and sharded as they are; other tensors are equal on all processes.
        """
        return {}

    def load_state(self, state: dict[str, Tensor | list[Tensor]]) -> None:
        """Load the `state` of the parent stage. Lists come whole; `context.shard` cuts them in `prepare`.

        Called before `prepare`, also after a resume; at an evaluation with the stage's own state. Not called
        where nothing was handed on, as in a run's first stage.
        """

    def replayed_examples(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Count the examples of earlier tasks that `examples` adds, by task, for plans and costs.

        sizes: number of training examples of each earlier task.
        """
        return {}

    def protection(self, task: str, earlier: Sequence[str]) -> Protection:
        """The protection of `earlier` tasks while `task` is trained, for simulated studies alone."""
        return Protection()


def uses(strategy: Strategy, hook: str) -> bool:
    """Return whether the strategy's class defines a hook itself."""
    return getattr(type(strategy), hook) is not getattr(Strategy, hook)


def bind_context(strategy: Strategy, context: StageContext) -> None:
    """Give an instance the context of the stage that it serves."""
    object.__setattr__(strategy, "context", context)  # strategies are frozen dataclasses


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
    if not isinstance(effect, Mapping):
        raise TypeError(f"{cls.__name__}.effect must return a dict, not {effect!r}")
    if layout := strategy.layout():
        effect = {**effect, "adapter": setting_for_key(layout)}
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
    return nested_sample(task.examples["train"], task.name, size, seed)


def remembered(context: StageContext, task: str, size: int) -> list[Example]:
    """The sample of an earlier task that replay would mix in."""
    return nested_sample(context.examples(task), task, size, context.seed)


def nested_sample(examples: Sequence[Example], task: str, size: int, seed: int) -> list[Example]:
    """The first `size` examples in the order in which a task's examples are remembered."""
    order = rng.permutation(len(examples), seed, task, "replay")
    return [examples[i] for i in order[:size]]
