"""Check what a strategy's hooks give back: a StageError names the hook that gave something else.

Without these checks torch would raise far from the hook, or nothing would, and the stage would be published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import AdapterLayout, Example, LossOutputs, ShardedTensors, Task
from dgg_ray.core.stage import Stage
from dgg_ray.core.strategy import Fact, Strategy, uses

EDITING_HOOKS = ("edit_loss", "edit_gradient", "after_step", "end_task")
OUR_LAYOUTS = "dgg_ray.adapters."  # under these, a route has one column for each task trained so far


def returned_error(owner: object, hook: str, wanted: str, found: object) -> StageError:
    """The error of a hook, or of a fact's `compute`, that returned the wrong thing."""
    kind = "fact" if isinstance(owner, Fact) else "strategy"
    return StageError(
        f"{kind} {type(owner).__name__}: {hook} must return {wanted}; it returned {describe_value(found)}"
    )


def describe_value(value: object) -> str:
    """A value in a few words.

    >>> describe_value([1, 2]), describe_value(None), describe_value(0.5)
    ('a list of 2', 'None', 'a value of type float')
    """
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"


# -- examples --------------------------------------------------------------------------------------


def chosen_examples(
    strategy: Strategy, fresh: Sequence[Example], earlier: Sequence[Task], seed: int
) -> list[Example]:
    """The stage's examples, as `Strategy.examples` chooses them."""
    chosen = strategy.examples(fresh, earlier, seed)
    if not is_sequence_of_examples(chosen) or not chosen:
        raise returned_error(strategy, "examples", "a list of at least 1 example", chosen)
    return chosen


def phases_of(strategy: Strategy, examples: Sequence[Example], seed: int) -> list[Sequence[Example]]:
    """The stage's phases, as `Strategy.phases` splits the examples."""
    phases = strategy.phases(examples, seed)
    if (
        not isinstance(phases, list | tuple)
        or not all(map(is_sequence_of_examples, phases))
        or not any(phases)
    ):
        raise returned_error(strategy, "phases", "a list with the list of examples of each phase", phases)
    return list(phases)


def is_sequence_of_examples(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(example, Example) for example in value)


# -- training --------------------------------------------------------------------------------------


def begin_task(strategy: Strategy, weights: ShardedTensors, stage: Stage) -> None:
    """Call `Strategy.begin_task`; an error where it fills the cache, which it would not after a resume."""
    prepared = set(strategy.cache)
    strategy.begin_task(weights, stage.task, stage.earlier, stage.seed)
    if added := sorted(map(str, strategy.cache.keys() - prepared)):
        raise StageError(
            f"strategy {type(strategy).__name__} put {', '.join(added)} into self.cache in begin_task, which "
            f"a resumed stage does not call; put it into self.memory, or fill the cache in prepare"
        )


def loss_hook(strategy: Strategy) -> Callable[[Tensor, LossOutputs], Tensor]:
    """`Strategy.edit_loss`, with its result checked."""

    def edit_loss(loss: Tensor, outputs: LossOutputs) -> Tensor:
        edited = strategy.edit_loss(loss, outputs)
        return differentiable(f"strategy {type(strategy).__name__}: edit_loss", edited, loss)

    return edit_loss


def function_of_outputs(of: Callable[[LossOutputs], Tensor]) -> Callable[[Tensor, LossOutputs], Tensor]:
    """The loss hook that gives `of`, a function of the forward pass, in place of the loss."""
    return lambda loss, outputs: differentiable("context.mean_of_gradients: of", of(outputs), loss)


def differentiable(source: str, value: object, loss: Tensor) -> Tensor:
    """The value that a hook gave for a loss; StageError unless it is one number with a gradient."""
    if not isinstance(value, Tensor) or value.dim():
        raise StageError(f"{source} must return a tensor of shape (); it returned {describe_value(value)}")
    if loss.requires_grad and not value.requires_grad:
        raise StageError(
            f"{source} must return a value that depends on the weights; what it returned has no gradient"
        )
    return value


def in_place(strategy: Strategy, hook: str) -> Callable[..., None]:
    """A hook that changes tensors in place; StageError where it returns others or puts them into a list."""
    method: Callable[..., Any] = getattr(strategy, hook)

    def edit(*arguments: Any) -> None:
        lists = [argument for argument in arguments if isinstance(argument, ShardedTensors)]
        before = [list(tensors) for tensors in lists]
        returned = method(*arguments)
        if returned is not None and not any(returned is argument for argument in arguments):
            wanted = "nothing, and change the tensors in place, as in `g += …`"
            raise returned_error(strategy, hook, wanted, returned)
        if [list(map(id, tensors)) for tensors in before] != [list(map(id, tensors)) for tensors in lists]:
            raise StageError(
                f"strategy {type(strategy).__name__}: {hook} must change tensors in place, as in `g += …` or "
                f"`g.copy_(…)`; it put other tensors into the list, which nobody reads"
            )

    return edit


def route_hook(strategy: Strategy, hook: str, tasks: int) -> Callable[[Sequence[Example]], Tensor | None]:
    """`Strategy.route` or `training_route`, with its result checked.

    tasks: number of tasks trained so far, with the present one.
    """
    layout = strategy.layout()

    def route(examples: Sequence[Example]) -> Tensor | None:
        weights = getattr(strategy, hook)(examples)
        if weights is None:
            return None
        if layout is None or type(layout).set_route is AdapterLayout.set_route:
            wanted = "None, because the layout has no slots: `layout` may return one that has, as LoraSlots()"
            raise returned_error(strategy, hook, wanted, weights)
        columns = tasks if type(layout).set_route.__module__.startswith(OUR_LAYOUTS) else None
        if not is_route(weights, len(examples), columns):
            shape = f"({len(examples)}, {'K' if columns is None else columns})"
            wanted = f"finite weights of shape {shape}: a row for each example and a column for each slot"
            raise returned_error(strategy, hook, wanted, weights)
        return weights

    return route


def other_cause(strategy: Strategy) -> str:
    """The end of a message on a training that diverged: the hooks that edited it; "" where there are none."""
    hooks = [hook for hook in EDITING_HOOKS if uses(strategy, hook)]
    return f"; or the cause is {' or '.join(hooks)} of {type(strategy).__name__}" if hooks else ""


def is_route(weights: object, rows: int, columns: int | None) -> bool:
    """Return whether these are finite weights, in a tensor with so many rows and, unless None, columns."""
    if not isinstance(weights, Tensor) or weights.dim() != 2 or len(weights) != rows:
        return False
    return columns in (None, weights.shape[1]) and bool(weights.isfinite().all())


# -- what is handed on -----------------------------------------------------------------------------


def state_of(strategy: Strategy, weights: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
    """The strategy's `state`, whose lists are parallel to the weights."""
    state = strategy.state()
    check_values(strategy, "state", state)
    for name, value in state.items():
        if not isinstance(value, Tensor) and [t.shape for t in value] != [w.shape for w in weights]:
            wanted = f"a list {name!r} with one tensor for each of the {len(weights)} weights, of its shape"
            raise returned_error(strategy, "state", wanted, value)
    return {name: value if isinstance(value, Tensor) else list(value) for name, value in state.items()}


def check_values(owner: Strategy | Fact, hook: str, values: Any) -> None:
    """Raise StageError unless these are tensors, or lists of tensors, by names without dots."""
    wanted = "a dict of tensors and lists of tensors"
    if not isinstance(values, Mapping):
        raise returned_error(owner, hook, wanted, values)
    for name, value in values.items():
        if not isinstance(name, str) or "." in name:
            raise returned_error(owner, hook, f"{wanted} by names without dots, not {name!r}", values)
        if not isinstance(value, Tensor) and not is_list_of_tensors(value):
            raise returned_error(owner, hook, f"{wanted}, also as {name!r}", value)


def is_list_of_tensors(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(tensor, Tensor) for tensor in value)


def check_whole(tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raise StageError unless there is one tensor for each trained weight."""
    if len(tensors) != len(weights):
        raise StageError(
            f"context.shard takes a list with one whole tensor for each of the {len(weights)} trained "
            f"weights; it got {len(tensors)}"
        )
