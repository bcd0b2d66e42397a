"""The search space: dotted paths of settings, and the distribution that each is drawn from."""

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

from dgg_ray.config.sections import Search, SearchParameter, Value
from dgg_ray.core import rng

if TYPE_CHECKING:
    from dgg_ray.config.study import Setting, Study

Space = Mapping[str, BaseDistribution]


def search_space(study: Study, search: Search) -> dict[str, BaseDistribution]:
    """Dotted path → its distribution; a per-task parameter has one path for each task."""
    paths: dict[str, BaseDistribution] = {}
    for path, parameter in search.space.items():
        for dotted in [f"{path}.{name}" for name in study.task_names] if parameter.per_task else [path]:
            paths[dotted] = distribution_of(parameter)
    return paths


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
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    combinations: list[Any] = [dict(zip(space, values, strict=True)) for values in product(*choices)]
    return [combinations[i] for i in rng.permutation(len(combinations), seed, "", "grid")]


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
