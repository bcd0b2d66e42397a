"""The parameters of a search, and the strategies that each belongs to where `strategy.name` is searched too.

    space: {strategy.name: [dgg, l2sp], strategy.buffer: [30, 90], strategy.dgg.alpha: [0.1, 0.3]}

A setting has one strategy, `strategy.name`, and the parameters of this strategy alone. In a setting they have
the paths that they have in a study: `strategy.dgg.alpha` of the space is `strategy.alpha` of a setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

from dgg_ray.config.sections import STRATEGY_NAME, SearchParameter, Value
from dgg_ray.core import plugins

Parameters = Mapping[str, SearchParameter]  # as in `search.space`


class SearchedValue(NamedTuple):
    """One value that a search proposes.

    key: its name in the space, with the task's name if it is per task.
    path: dotted path of the value in a setting.
    strategies: those whose settings have it; None where every setting does.
    """

    key: str
    path: str
    parameter: SearchParameter
    strategies: tuple[str, ...] | None = None


def searched_strategies(space: Parameters) -> tuple[str, ...]:
    """The strategies that are searched; none where `strategy.name` is not."""
    parameter = space.get(STRATEGY_NAME)
    return tuple(str(name) for name in parameter.values or ()) if parameter else ()


def searched_values(space: Parameters, tasks: Sequence[str]) -> Iterator[SearchedValue]:
    """Yield every value that a search of the space proposes, the strategy first."""
    names = searched_strategies(space)
    for key, parameter in sorted(space.items(), key=lambda item: item[0] != STRATEGY_NAME):
        path, strategies = owners(key, names)
        for end in [f".{task}" for task in tasks] if parameter.per_task else [""]:
            yield SearchedValue(f"{key}{end}", f"{path}{end}", parameter, strategies)


def owners(key: str, names: Sequence[str]) -> tuple[str, tuple[str, ...] | None]:
    """Return a parameter's path in a setting, and the searched strategies that have it; None for all."""
    if not names or not key.startswith("strategy.") or key == STRATEGY_NAME:
        return key, None
    if prefixes := [name for name in names if key.startswith(f"strategy.{name}.")]:
        owner = max(prefixes, key=len)
        return f"strategy.{key.removeprefix(f'strategy.{owner}.')}", (owner,)
    having = tuple(name for name in names if has_setting(name, key))
    return key, None if having == tuple(names) else having


LINE = 7  # values of a range with which `stage_model` begins


def has_setting(strategy: str, path: str) -> bool:
    """Return whether a strategy has the setting of a path such as `strategy.buffer`."""
    return path.split(".")[1] in (f.name for f in fields(plugins.find("strategies", strategy)))


def largest_values(space: Parameters, tasks: Sequence[str]) -> list[dict[str, Value]]:
    """The setting with the largest number of every parameter, for each strategy that is searched."""
    values = list(searched_values(space, tasks))
    corners = []
    for name in searched_strategies(space) or ("",):
        own = [v for v in values if v.path != STRATEGY_NAME and (not v.strategies or name in v.strategies)]
        chosen: dict[str, Value] = {STRATEGY_NAME: name} if name else {}
        corners.append(chosen | {v.path: v.parameter.largest for v in own})
    return corners
