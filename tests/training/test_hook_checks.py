"""A hook that gives back the wrong thing is named, in place of what torch would say of it later or never."""

from dataclasses import dataclass

import pytest
import torch

from dgg_ray.core.errors import NonFiniteError, StageError
from dgg_ray.core.interfaces import Example
from dgg_ray.core.stage import WorkItem
from dgg_ray.core.strategy import Fact, Strategy
from dgg_ray.plugin import LoraSlots
from dgg_ray.training import hook_checks


@dataclass(frozen=True)
class Own(Strategy):
    """A method; each test defines some of its hooks anew."""


def with_hooks(**hooks) -> Strategy:
    """A strategy of a class of its own with these hooks, each a function without `self`."""
    methods = {name: lambda self, *a, hook=hook: hook(*a) for name, hook in hooks.items()}
    return dataclass(frozen=True)(type("Mine", (Own,), {"__module__": __name__, **methods}))()


def message_of(world, strategy, evaluate=False) -> str:
    """What the error says that ends the first stage of the strategy."""
    (stage,) = world.stages_of("ones", strategy=strategy)
    with pytest.raises(StageError) as error:
        world.runner.run(WorkItem(stage, (world.evaluation("ones"),) if evaluate else ()))
    return str(error.value)


@pytest.mark.parametrize(
    ("hook", "function", "message"),
    [
        ("examples", lambda fresh, earlier, seed: None, "a list of at least 1 example; it returned None"),
        (
            "examples",
            lambda fresh, earlier, seed: [],
            "a list of at least 1 example; it returned a list of 0",
        ),
        ("phases", lambda examples, seed: None, "list of examples of each phase; it returned None"),
        (
            "phases",
            lambda examples, seed: examples,
            "list of examples of each phase; it returned a list of 2",
        ),
        (
            "phases",
            lambda examples, seed: [[], []],
            "list of examples of each phase; it returned a list of 2",
        ),
        ("edit_gradient", lambda w, g, step: [t * 2 for t in g], "nothing, and change the tensors in place"),
        ("end_task", lambda w: w[0] * 2, "nothing, and change the tensors in place"),
        ("after_step", lambda w, step: 3.0, "it returned a value of type float"),
        ("state", lambda: None, "a dict of tensors and lists of tensors; it returned None"),
        ("state", lambda: {"omega": 3.0}, "also as 'omega'; it returned a value of type float"),
        ("state", lambda: {"omega.1": torch.ones(1)}, "by names without dots, not 'omega.1'"),
        ("state", lambda: {"omega": [torch.ones(1)] * 2}, "each of the 1 weights, of its shape"),
        ("state", lambda: {"omega": [torch.ones(3)]}, "each of the 1 weights, of its shape"),
    ],
)
def test_a_wrong_result_is_named_with_its_hook(world, hook, function, message):
    said = message_of(world, with_hooks(**{hook: function}))
    assert said.startswith(f"strategy Mine: {hook} must return ")
    assert message in said


@pytest.mark.parametrize("hook", ["edit_gradient", "after_step", "end_task"])
def test_tensors_that_take_the_place_of_others_in_the_list_are_refused(world, hook):
    def replace_tensors(*lists):
        lists[0][:] = [tensor * 2 for tensor in lists[0]]

    def add_a_tensor(*lists):
        lists[0].append(torch.ones(1))

    for function in (replace_tensors, add_a_tensor):
        said = message_of(world, with_hooks(**{hook: function}))
        assert said.startswith(f"strategy Mine: {hook} must change tensors in place")


def test_a_hook_that_returns_the_list_that_it_changed_in_place_is_accepted(world):
    def halve(weights, gradients, step):
        gradients[0] *= 0.5
        return gradients

    (stage,) = world.stages_of("ones", strategy=with_hooks(edit_gradient=halve))
    world.runner.run(WorkItem(stage))
    assert world.learner.theta.item() == 0.5  # rate 1, gradient -1: half of the way to 1


def test_a_cache_that_is_filled_in_begin_task_is_refused(world):
    @dataclass(frozen=True)
    class Caching(Strategy):
        def begin_task(self, weights, task, earlier, seed):
            self.cache["anchor"] = 1

    assert "put anchor into self.cache in begin_task" in message_of(world, Caching())


def test_a_cache_that_is_filled_in_prepare_may_be_read_in_begin_task(world):
    @dataclass(frozen=True)
    class Caching(Strategy):
        def prepare(self):
            self.cache["anchor"] = 1

        def begin_task(self, weights, task, earlier, seed):
            self.memory["twice"] = 2 * self.cache["anchor"]

    (stage,) = world.stages_of("ones", strategy=Caching())
    world.runner.run(WorkItem(stage))
    assert world.store.record(stage)


def test_training_that_diverges_names_the_hooks_that_may_be_the_cause(world):
    def break_gradient(weights, gradients, step):
        gradients[0] /= 0

    (stage,) = world.stages_of("ones", strategy=with_hooks(edit_gradient=break_gradient))
    with pytest.raises(NonFiniteError, match=r"; or the cause is edit_gradient of Mine$"):
        world.runner.run(WorkItem(stage))


# -- routes ----------------------------------------------------------------------------------------

EXAMPLES = [Example(str(i), "how much?", "1") for i in range(4)]


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (torch.ones(4), "a tensor of shape (4,)"),
        (torch.ones(4, 3), "a tensor of shape (4, 3)"),
        (torch.ones(1, 2), "a tensor of shape (1, 2)"),
        (torch.full((4, 2), float("nan")), "a tensor of shape (4, 2)"),
        ([0, 1, 0, 1], "a list of 4"),
    ],
)
def test_a_route_has_a_row_for_each_example_and_a_column_for_each_task_so_far(weights, found):
    strategy = with_hooks(route=lambda examples: weights, layout=LoraSlots)
    with pytest.raises(StageError) as error:
        hook_checks.route_hook(strategy, "route", tasks=2)(EXAMPLES)
    assert "route must return finite weights of shape (4, 2)" in str(error.value)
    assert str(error.value).endswith(f"it returned {found}")


def test_a_route_of_the_right_shape_passes_as_it_is():
    weights = torch.eye(4, 2)
    strategy = with_hooks(route=lambda examples: weights, layout=LoraSlots)
    assert hook_checks.route_hook(strategy, "route", tasks=2)(EXAMPLES) is weights


def test_a_route_without_slots_ends_the_evaluation(world):
    said = message_of(world, with_hooks(route=lambda examples: torch.ones(len(examples), 1)), evaluate=True)
    assert "route must return None, because the layout has no slots" in said


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda loss: None, "must return a tensor of shape (); it returned None"),
        (lambda loss: 1.0, "must return a tensor of shape (); it returned a value of type float"),
        (
            lambda loss: loss + torch.ones(3),
            "must return a tensor of shape (); it returned a tensor of shape (3,)",
        ),
        (lambda loss: loss.detach(), "what it returned has no gradient"),
    ],
)
def test_a_loss_is_one_number_with_a_gradient(edit, message):
    loss = torch.tensor(2.0, requires_grad=True) * 1
    hook = hook_checks.loss_hook(with_hooks(edit_loss=lambda loss, outputs: edit(loss)))
    with pytest.raises(StageError) as error:
        hook(loss, None)  # type: ignore[arg-type]
    assert str(error.value).startswith("strategy Mine: edit_loss ")
    assert message in str(error.value)


# -- facts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Empty(Fact):
    def compute(self, context, task):
        return {}


@pytest.mark.parametrize("values", [None, {"mean": 1.0}, {"mean": [1.0]}, {"a.b": torch.ones(1)}])
def test_a_fact_must_compute_tensors(values):
    with pytest.raises(StageError, match=r"^fact Empty: compute must return a dict of tensors"):
        hook_checks.check_values(Empty(), "compute", values)


def test_only_one_tensor_for_each_weight_can_be_cut_to_shards():
    hook_checks.check_whole([torch.ones(1)], [torch.ones(1)])
    with pytest.raises(StageError, match="each of the 2 trained weights; it got 1"):
        hook_checks.check_whole([torch.ones(1)], [torch.ones(1)] * 2)
