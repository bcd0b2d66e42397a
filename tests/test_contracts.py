"""What every strategy has promised; strategies are found by their files."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from dgg_ray import draws, plugins
from dgg_ray.contracts import Pieces, Strategy

EARLIER = ("fours",)


def every(name: str) -> list[Strategy]:
    """A strategy at its defaults, and with every number among its settings at 0."""
    cls = plugins.find("strategies", name)
    numbers = {f.name: 0 for f in fields(cls) if isinstance(f.default, int | float) and f.default is not True}
    return [cls(), cls(**numbers)]


STRATEGIES = [strategy for name in plugins.names("strategies") for strategy in every(name)]


def edited(strategy: Strategy, earlier, step=0):
    """What the strategy makes of a gradient some way from where the task began."""
    strategy = replace(strategy)
    strategy.begin_task([torch.tensor([1.0, -2.0])], "nines", earlier, 0)
    gradients = [torch.tensor([0.5, 0.25])]
    strategy.edit_gradient([torch.tensor([3.0, 1.0])], gradients, step)
    return gradients[0].tolist()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_an_effect_is_json_and_the_same_again(strategy):
    effect = strategy.effect("nines", EARLIER)
    assert json.loads(json.dumps(effect)) == effect == replace(strategy).effect("nines", EARLIER)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_where_the_effect_is_nothing_training_is_plain_fine_tuning(strategy, world):
    for earlier in ((), EARLIER):
        if strategy.effect("nines", earlier) == {}:
            old = [world.tasks[name] for name in earlier]
            fresh = world.tasks["nines"].examples["train"]
            assert strategy.examples(fresh, old, seed=0) == list(fresh)
            assert all(edited(strategy, earlier, step) == [0.5, 0.25] for step in range(20))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_first_task_of_an_order_is_plain_fine_tuning(strategy):
    assert strategy.effect("nines", ()) == {}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_the_new_tasks_examples_are_all_there(strategy, world):
    fresh, old = world.tasks["nines"].examples["train"], [world.tasks["fours"]]
    assert set(fresh) <= set(strategy.examples(fresh, old, seed=0))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_strategy_is_frozen_and_remembers_nothing_of_another_stage(strategy):
    begun = replace(strategy)
    begun.begin_task([torch.ones(2)], "nines", EARLIER, 0)
    assert replace(begun).memory == {}
    for f in fields(strategy):
        with pytest.raises(FrozenInstanceError):
            setattr(strategy, f.name, 1)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_edits_are_in_place_and_finite_at_the_anchor(strategy):
    strategy = replace(strategy)
    at = Pieces([torch.tensor([1.0, -2.0]), torch.zeros(3)])
    strategy.begin_task(at, "nines", EARLIER, 0)
    gradients = Pieces([torch.zeros(2), torch.zeros(3)])
    ids = [id(g) for g in gradients]
    for step in range(10):
        strategy.edit_gradient(at, gradients, step)
    assert [id(g) for g in gradients] == ids
    assert all(g.isfinite().all() for g in gradients)


def test_draws_are_a_function_of_seed_task_purpose_and_step():
    base = draws.uniform(0, "words", "gate", 3)
    assert base == draws.uniform(0, "words", "gate", 3)
    others = [
        (1, "words", "gate", 3),
        (0, "digits", "gate", 3),
        (0, "words", "replay", 3),
        (0, "words", "gate", 4),
    ]
    assert len({base, *(draws.uniform(*other) for other in others)}) == 5


def test_draws_do_not_change_between_versions_and_machines():
    assert [round(draws.uniform(0, "words", "gate", step), 12) for step in range(3)] == DRAWS


def test_draws_are_uniform():
    values = [draws.uniform(5, "t", "p", step) for step in range(4000)]
    tenths = torch.histc(torch.tensor(values), bins=10, min=0, max=1)
    # chi-squared with 9 degrees of freedom: 27.9 is exceeded once in a thousand
    assert ((tenths - 400) ** 2 / 400).sum() < 27.9


DRAWS = [0.023687477467, 0.144275121445, 0.708230508695]
