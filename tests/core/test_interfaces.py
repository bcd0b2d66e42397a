"""The contract of every strategy; strategies are found by their files."""

import json
import random
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from functools import cached_property
from itertools import combinations
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from annotated_types import Ge, Le
from safetensors.torch import load_file
from stage_samples import Far, Near, Pulled
from toy_world import OneWeight, World, task_of

from dgg_ray.core import plugins, rng
from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import ShardedTensors
from dgg_ray.core.stage import WorkItem
from dgg_ray.core.strategy import ReplayStrategy, Strategy, uses
from dgg_ray.strategies.dgg import DGG
from dgg_ray.strategies.finetune import Finetune
from dgg_ray.strategies.replay import Replay

EARLIER = ("fours",)


def every(name: str) -> list[Strategy]:
    """A strategy at its defaults, and with every number among its settings at 0."""
    cls = plugins.find("strategies", name)
    numbers = {f.name: 0 for f in fields(cls) if isinstance(f.default, int | float) and f.default is not True}
    return [cls(), cls(**numbers)]


STRATEGIES = [strategy for name in plugins.names("strategies") for strategy in every(name)]
# Those whose hooks ask for no model; the others are tested with one, in tests/strategies.
WITHOUT_MODEL = [
    name
    for name in plugins.names("strategies")
    if not any(uses(every(name)[0], hook) for hook in ("prepare", "edit_loss", "layout", "route"))
]


def without_model(strategy: Strategy) -> bool:
    return plugins.plugin_name(strategy) in WITHOUT_MODEL


def edited(strategy: Strategy, earlier, step=0):
    """What the strategy makes of a gradient some way from where the task began."""
    strategy = replace(strategy)
    strategy.begin_task([torch.tensor([1.0, -2.0])], "nines", earlier, 0)
    gradients = [torch.tensor([0.5, 0.25])]
    strategy.edit_gradient([torch.tensor([3.0, 1.0])], gradients, step)
    return gradients[0].tolist()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_an_effect_is_json_and_reproducible(strategy):
    effect = strategy.effect("nines", EARLIER)
    assert json.loads(json.dumps(effect)) == effect == replace(strategy).effect("nines", EARLIER)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_an_empty_effect_means_plain_fine_tuning(strategy, world):
    for earlier in ((), EARLIER):
        if strategy.effect("nines", earlier) == {}:
            old = [world.tasks[name] for name in earlier]
            fresh = world.tasks["nines"].examples["train"]
            assert strategy.examples(fresh, old, seed=0) == list(fresh)
            if without_model(strategy):
                assert all(edited(strategy, earlier, step) == [0.5, 0.25] for step in range(20))
            assert strategy.state() == {}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_stage_trains_on_all_examples_of_its_new_task(strategy, world):
    fresh, old = world.tasks["nines"].examples["train"], [world.tasks["fours"]]
    assert set(fresh) <= set(strategy.examples(fresh, old, seed=0))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_strategy_counts_the_examples_that_it_replays(strategy, world):
    fresh, old = world.tasks["nines"].examples["train"], world.tasks["fours"]
    sizes = {"fours": len(old.examples["train"])}
    count = len(strategy.examples(fresh, [old], seed=0)) - len(fresh)
    assert sum(strategy.replayed_examples(sizes).values()) == count
    assert sum(strategy.replayed_examples({}).values()) == 0


def test_dgg_is_simulated_with_its_alpha_and_its_buffer():
    strategy = DGG(alpha={"nines": 0.3}, buffer=7)
    assert strategy.protection("nines", EARLIER) == (0.3, 7)
    assert strategy.protection("fours", ("nines",)) == (0.0, 7)
    assert DGG(gate="always", alpha=0.1).protection("nines", EARLIER) == (1.0, 0)
    assert Replay(buffer=7).protection("nines", EARLIER) == (0.0, 7)
    assert Finetune().protection("nines", EARLIER) == (0.0, 0)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_a_strategy_is_frozen_and_remembers_nothing_of_another_stage(strategy):
    begun = replace(strategy)
    begun.begin_task([torch.ones(2)], "nines", EARLIER, 0)
    assert replace(begun).memory == {}
    for f in fields(strategy):
        with pytest.raises(FrozenInstanceError):
            setattr(strategy, f.name, 1)


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if without_model(s)], ids=repr)
def test_edits_are_in_place_and_finite_at_the_anchor(strategy):
    strategy = replace(strategy)
    at = ShardedTensors([torch.tensor([1.0, -2.0]), torch.zeros(3)])
    strategy.begin_task(at, "nines", EARLIER, 0)
    gradients = ShardedTensors([torch.zeros(2), torch.zeros(3)])
    ids = [id(g) for g in gradients]
    for step in range(10):
        strategy.edit_gradient(at, gradients, step)
    assert [id(g) for g in gradients] == ids
    assert all(g.isfinite().all() for g in gradients)


# -- equal effects are equal work, and others are not ----------------------------------------------


class TwoWeights(OneWeight):
    """As OneWeight, with a second tensor that has another optimum: norms of one and of all differ."""

    def start(self, setup):
        super().start(setup)
        self.theta = self.theta if self.theta.numel() == 3 else torch.zeros(3)

    def weights(self):
        return ShardedTensors([self.theta[:1], self.theta[1:]])

    def step(self, batch, step, edit, hooks=None):
        self.taught += [example.id for example in batch]
        a = sum(float(example.answer) for example in batch) / len(batch)
        gradient = self.theta - torch.tensor([a, -a / 2, 2.0])
        edit(self.weights(), ShardedTensors([gradient[:1], gradient[1:]]), step)
        self.theta -= self.rate * gradient
        if hooks and hooks.after:
            hooks.after(self.weights(), step)
        return float(gradient.square().sum())


def values_of(hint: Any, default: Any) -> list[Any]:
    """Some values of a field, by its annotation."""
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)
        low = max((b.ge for b in bounds if isinstance(b, Ge)), default=-9)
        high = min((b.le for b in bounds if isinstance(b, Le)), default=9)
    else:
        low, high = -9, 9
    if hint is bool:
        return [True, False]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if hint in (int, float):
        return [hint(v) for v in dict.fromkeys([low, 1, 2, 0.25, 0.75]) if low <= v <= high and hint(v) == v]
    if get_origin(hint) in (Union, UnionType):
        return [value for part in get_args(hint) for value in values_of(part, default)]
    if get_origin(hint) is Mapping:
        return [{"fours": value} for value in values_of(get_args(hint)[1], default)]
    return [default]


def settings_of(cls: type[Strategy]) -> list[Strategy]:
    """A strategy at some setting, and at every other value of every single field."""
    hints = get_type_hints(cls, include_extras=True)
    base = cls(**{f.name: values_of(hints[f.name], f.default)[-1] for f in fields(cls)})
    if "alpha" in hints:
        base = replace(base, alpha=0.5)
    found = [
        base,
        *(replace(base, **{f.name: v}) for f in fields(cls) for v in values_of(hints[f.name], f.default)),
    ]
    if "gate" in hints:
        found += [replace(s, gate="bernoulli", scale=scale) for s in found for scale in (True, False)]
    return list({repr(s): s for s in found}.values())


def learned(strategy: Strategy, folder) -> tuple[list[Any], list[list[float]]]:
    """(Effects, weights) of the stages of two tasks."""
    world = World(folder)
    world.tasks = {t.name: t for t in (task_of("ones", 1, 2, 3), task_of("fours", 4, 8, 6, 2))}
    world.runner.learner, world.runner.tasks = TwoWeights(), world.tasks
    effects, ends = [], []
    for stage in world.stages_of(
        "ones", "fours", strategy=strategy, batch_size=1, epochs=6, learning_rate=0.25
    ):
        world.runner.run(WorkItem(stage))
        effects.append(stage.effect)
        ends.append(world.runner.learner.theta.tolist())
    return effects, ends


@pytest.mark.parametrize("name", WITHOUT_MODEL)
@pytest.mark.whole
def test_settings_of_equal_effect_end_with_equal_weights_and_others_do_not(name, tmp_path):
    found = [
        (s, learned(s, tmp_path / str(i)))
        for i, s in enumerate(settings_of(plugins.find("strategies", name)))
    ]
    for (a, (effects, ends)), (b, (effects_of_b, ends_of_b)) in combinations(found, 2):
        for t in range(len(effects)):
            same = effects[: t + 1] == effects_of_b[: t + 1]
            assert (ends[t] == ends_of_b[t]) == same, f"{a} and {b}, stage {t + 1}"


@pytest.mark.whole
def test_equal_effects_of_two_strategies_end_with_equal_weights(tmp_path):
    strategies = [s for n in WITHOUT_MODEL for s in settings_of(plugins.find("strategies", n))]
    ends: dict[str, set[str]] = {}
    for i, strategy in enumerate(s for s in strategies if not s.simultaneous):
        effects, weights = learned(strategy, tmp_path / str(i))
        for t in range(len(effects)):
            ends.setdefault(json.dumps(effects[: t + 1]), set()).add(json.dumps(weights[t]))
    assert {effects for effects, different in ends.items() if len(different) > 1} == set()


# -- a strategy of the user's own inherits no claim ------------------------------------------------


@dataclass(frozen=True)
class Weak(Replay):
    """Keys nothing itself, and pulls at what replay leaves alone."""

    strength: float = 0.0

    def edit_gradient(self, weights, gradients, step):
        for g in gradients:
            g += self.strength


class Doubled:
    """No strategy; mixed into one."""

    def edit_gradient(self, weights, gradients, step):
        for g in gradients:
            g *= 2


class Mixed(Doubled, Replay):
    pass


class MixedBehind(Replay, Doubled, Strategy):
    pass


class Attribute(DGG):
    capped = 0.5


@dataclass(frozen=True)
class Own(ReplayStrategy):
    """Says all that it needs itself."""

    strength: float = 0.0

    def effect(self, task, earlier):
        return self.replay_effect(earlier) | {"strength": self.strength}


@dataclass(frozen=True)
class Heir(Own):
    decay: float = 0.0


@dataclass(frozen=True)
class Liar(Replay):
    strength: float = 0.0

    def effect(self, task, earlier):  # as in a copy of replay.py
        return self.replay_effect(earlier)


def key(world, strategy, *order):
    return world.stages_of(*(order or ("ones", "fours")), strategy=strategy)[-1].key


@pytest.mark.parametrize("cls", [Weak, Own, Heir])
def test_every_setting_of_a_subclass_is_part_of_the_key(world, cls):
    settings = [cls(buffer=2, strength=s) for s in (0.0, 0.1, 1000.0)] + [
        cls(buffer=1),
        Replay(buffer=2),
        Finetune(),
    ]
    settings += [Heir(buffer=2, decay=0.5)] * (cls is Heir)
    assert len({key(world, s) for s in settings}) == len(settings)


def test_a_field_that_an_inherited_effect_ignores_is_part_of_the_key(world):
    assert key(world, Heir(strength=1.0, decay=0.1)) != key(world, Heir(strength=1.0, decay=0.2))


@pytest.mark.parametrize(
    ("mine", "base"),
    [
        (Weak(buffer=2), Replay(buffer=2)),
        (Mixed(buffer=2), Replay(buffer=2)),
        (MixedBehind(buffer=2), Replay(buffer=2)),
        (Attribute(alpha=0.5), DGG(alpha=0.5)),
        (Attribute(alpha=0.0), Finetune()),
        (Liar(buffer=2), Replay(buffer=2)),
    ],
)
def test_a_subclass_of_a_built_in_strategy_shares_no_stage_with_it(world, mine, base):
    assert key(world, mine) != key(world, base)
    assert key(world, mine, "ones") != key(world, base, "ones")


def test_subclasses_of_equal_name_share_no_stage(world):
    def make(by):
        class EWC(Replay):
            def edit_gradient(self, weights, gradients, step):
                gradients[0] += by

        EWC.__qualname__ = f"EWC{by}"
        return EWC(buffer=2)

    assert key(world, make(1)) != key(world, make(2))


@dataclass(frozen=True)
class Remembers(Strategy):
    """Keeps how often it was told of a task, from the first one on."""

    def begin_task(self, weights, task, earlier, seed):
        self.memory["count"] = torch.tensor([1.0 + self.memory.get("before", 0.0)])

    def state(self):
        return {"count": self.memory["count"]}

    def load_state(self, state):
        self.memory["before"] = float(state["count"])


def test_a_strategys_state_is_kept_from_the_first_task_on(world):
    for stage in world.stages_of("ones", strategy=Finetune()):  # the store has the plain first stage already
        world.runner.run(WorkItem(stage))
    stages = world.stages_of("ones", "fours", "nines", strategy=Remembers())
    for stage in stages:
        world.runner.run(WorkItem(stage))
    kept = [load_file(world.store.open(stage) / "strategy.safetensors") for stage in stages]
    assert [state["count"].item() for state in kept] == [1.0, 2.0, 3.0]


@dataclass(frozen=True)
class Starts(Strategy):
    """Says that its first stage is plain; were it not, the gradient would be doubled."""

    starts_plain = True

    def edit_gradient(self, weights, gradients, step):
        for g in gradients:
            g *= 2


class StartsToo(Starts):
    pass


def test_a_first_stage_that_is_declared_plain_is_plain(world):
    assert key(world, Starts(), "ones") == key(world, Finetune(), "ones")
    assert key(world, Starts()) != key(world, Finetune())
    (stage,) = world.stages_of("ones", strategy=Starts(), learning_rate=0.25)
    world.runner.run(WorkItem(stage))
    assert world.learner.theta.item() == 0.25  # one step from 0 towards 1


def test_a_subclass_does_not_inherit_the_declaration_of_a_plain_first_stage(world):
    assert key(world, StartsToo(), "ones") != key(world, Finetune(), "ones")


# -- draws -----------------------------------------------------------------------------------------


def test_draws_are_a_function_of_seed_task_purpose_and_step():
    base = rng.uniform(0, "words", "gate", 3)
    assert base == rng.uniform(0, "words", "gate", 3)
    others = [
        (1, "words", "gate", 3),
        (0, "digits", "gate", 3),
        (0, "words", "replay", 3),
        (0, "words", "gate", 4),
    ]
    assert len({base, *(rng.uniform(*other) for other in others)}) == 5


def test_draws_do_not_change_between_versions_and_machines():
    assert [round(rng.uniform(0, "words", "gate", step), 12) for step in range(3)] == DRAWS


def test_draws_are_uniform():
    values = [rng.uniform(5, "t", "p", step) for step in range(4000)]
    tenths = torch.histc(torch.tensor(values), bins=10, min=0, max=1)
    # chi-squared with 9 degrees of freedom: 27.9 is exceeded once in a thousand
    assert ((tenths - 400) ** 2 / 400).sum() < 27.9


DRAWS = [0.023687477467, 0.144275121445, 0.708230508695]


def test_nested_settings_are_keyed_by_their_class_too(world):
    assert key(world, Pulled(Near(2.0))) != key(world, Pulled(Far(2.0)))
    assert key(world, Pulled(Near(2.0))) == key(world, Pulled(Near(2.0)))


# -- where a strategy remembers --------------------------------------------------------------------


@dataclass(frozen=True)
class Keeps(Strategy):
    """Remembers the task in several places, one at a time."""

    where: str
    seen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        vars(self).update(kept={"at": torch.zeros(1)}, numbers=random.Random(0))

    def begin_task(self, weights, task, earlier, seed):
        if self.where == "setting":
            self.seen[task] = 1
        elif self.where == "attribute":
            self.__dict__["anchor"] = weights[0].clone()
        elif self.where == "attribute made before":
            self.kept["anchor"] = weights[0].clone()
        elif self.where == "tensor made before":
            self.kept["at"] += 1
        elif self.where == "numbers drawn":
            self.numbers.random()
        elif self.where == "computed and filled":
            self.filled["anchor"] = weights[0].clone()
        elif self.where == "computed too early":
            self.memory["start"] = 1.0
            self.of_memory  # noqa: B018
            self.memory["start"] = 2.0
        elif self.where == "object":
            self.memory["tasks"] = {task}
        elif self.where == "number as a key":
            self.memory["steps"] = {0: task}
        else:
            self.memory.update(anchor=[weights[0].clone()], pair=(1, 2), low=float("nan"), names={"a": None})

    def edit_gradient(self, weights, gradients, step):
        if self.where == "setting at the end":
            self.seen["step"] = step
        elif self.where == "attribute at the end":
            self.__dict__["velocity"] = gradients[0].clone()
        elif self.where == "computed and filled at the end":
            self.filled["velocity"] = gradients[0].clone()
        elif self.where == "memory":
            self.of_memory  # noqa: B018
        self.computed  # noqa: B018

    @cached_property
    def computed(self):
        numbers = torch.tensor([1.0, float("nan")])
        return {"three": 3, "tensor": numbers, "of": [random.Random(1)], "function": lambda: numbers}

    @cached_property
    def of_memory(self):
        return self.memory.get("start", 0.0)

    @cached_property
    def filled(self):
        return {}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("setting", "strategy Keeps changed its settings \\(seen\\) in begin_task"),
        ("setting at the end", "strategy Keeps changed its settings \\(seen\\) during training"),
        ("attribute", "strategy Keeps set anchor in begin_task; put what is remembered within a stage into"),
        ("attribute made before", "strategy Keeps set kept in begin_task; put what is remembered"),
        ("tensor made before", "strategy Keeps set kept in begin_task; put what is remembered"),
        ("numbers drawn", "strategy Keeps set numbers in begin_task; put what is remembered"),
        ("computed and filled", "strategy Keeps set filled in begin_task; put what is remembered"),
        ("computed too early", "strategy Keeps set of_memory in begin_task; put what is remembered"),
        ("attribute at the end", "strategy Keeps set velocity during training; put what is remembered"),
        (
            "computed and filled at the end",
            "strategy Keeps set filled during training; put what is remembered",
        ),
        ("object", "memory\\['tasks'\\] must be a JSON value, .* found set"),
        ("number as a key", "memory\\['steps'\\] must be a JSON value, .* found dict"),
    ],
)
def test_state_outside_the_memory_ends_the_stage(world, where, said):
    strategy = Keeps(where)
    (stage,) = world.stages_of("ones", strategy=strategy)
    with pytest.raises(StageError, match=said):
        world.runner.run(WorkItem(stage))
    assert strategy.seen == {}
    assert world.store.record(stage) is None


@dataclass(frozen=True)
class TakesUp(Strategy):
    """Keeps what the parent's state said as an attribute, as `load_state` is called in every stage."""

    late: bool = False

    def load_state(self, state):
        self.__dict__["before"] = state["count"]

    def begin_task(self, weights, task, earlier, seed):
        if self.late and earlier:
            self.before.add_(1)

    def state(self):
        return {"count": vars(self).get("before", torch.zeros(1)) + 1}


def test_an_attribute_set_by_load_state_may_stay_but_not_change(world):
    _, second = world.stages_of("ones", "fours", strategy=TakesUp())
    world.runner.run(WorkItem(second))
    assert load_file(world.store.open(second) / "strategy.safetensors")["count"].item() == 2
    changing = world.stages_of("ones", "fours", strategy=TakesUp(late=True))
    with pytest.raises(StageError, match="TakesUp set before in begin_task"):
        world.runner.run(WorkItem(changing[1]))


def test_everything_that_a_checkpoint_can_hold_may_be_in_the_memory(world):
    (stage,) = world.stages_of("ones", strategy=Keeps("memory"))
    world.runner.run(WorkItem(stage))
    assert world.store.record(stage)
