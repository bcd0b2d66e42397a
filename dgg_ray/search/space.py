"""The search space: dotted paths of settings, and the distribution that each is drawn from.

Where `strategy.name` is searched, a setting lies in the space of its strategy. Optuna knows a value by its
name in the study file, because strategies may have settings of one name with other values.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dgg_ray.config.search_space import SearchedValue, searched_strategies, searched_values
from dgg_ray.config.sections import STRATEGY_NAME, Search, SearchParameter, Value
from dgg_ray.core import rng

if TYPE_CHECKING:
    from dgg_ray.config.study import Setting, Study

Space = Mapping[str, BaseDistribution]


def search_space(study: Study, search: Search, strategy: Any = None) -> dict[str, BaseDistribution]:
    """Dotted path → its distribution; a per-task parameter has one path for each task.

    strategy: the searched strategy whose settings lie in this space; None where none is searched.
    """
    return {
        value.path: distribution_of(value.parameter)
        for value in searched_values(search.space, study.task_names)
        if belongs_to(value, strategy)
    }


def belongs_to(value: SearchedValue, strategy: Any) -> bool:
    """Return whether the settings of a strategy have a searched value."""
    return value.strategies is None or strategy in value.strategies


def parameter_paths(study: Study, search: Search) -> tuple[str, ...]:
    """Dotted paths of all values that the settings of a search have, whichever strategy they belong to."""
    return tuple(dict.fromkeys(value.path for value in searched_values(search.space, study.task_names)))


def distribution_of(parameter: SearchParameter) -> BaseDistribution:
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    assert parameter.low is not None
    assert parameter.high is not None
    if isinstance(parameter.low, int) and isinstance(parameter.high, int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def all_combinations(space: Space, seed: int) -> list[Setting]:
    """List every combination of listed values, shuffled, so that any first part is a fair sample."""
    return shuffled(combinations(space), seed)


def grid_settings(study: Study, search: Search) -> list[Setting]:
    """List the settings of a grid, shuffled: of each searched strategy with its own values."""
    settings: list[Setting] = []
    for name in searched_strategies(search.space) or (None,):
        space = search_space(study, search, name)
        if name is not None:
            space[STRATEGY_NAME] = CategoricalDistribution([name])
        settings += combinations(space)
    return shuffled(settings, search.seed)


def combinations(space: Space) -> list[Setting]:
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    found: list[Any] = [dict(zip(space, values, strict=True)) for values in product(*choices)]
    return found


def shuffled(settings: list[Setting], seed: int) -> list[Setting]:
    return [settings[i] for i in rng.permutation(len(settings), seed, "", "grid")]


def value_list(parameter: SearchParameter, count: int) -> list[Value]:
    """The values of a list; of a range, `count` evenly spaced values."""
    if parameter.values is not None:
        return list(parameter.values)
    assert parameter.low is not None
    assert parameter.high is not None
    spaced = np.geomspace if parameter.log else np.linspace
    points = spaced(parameter.low, parameter.high, count).tolist()
    whole = isinstance(parameter.low, int) and isinstance(parameter.high, int)
    return list(dict.fromkeys(round(p) for p in points)) if whole else points


def contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False
