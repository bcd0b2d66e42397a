"""What is searched, and Optuna, which proposes in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import create_trial

from dgg_ray.config.sections import Search, SearchParameter, Value
from dgg_ray.core import draws

if TYPE_CHECKING:
    from dgg_ray.config.study import Known, Setting, Study

optuna.logging.set_verbosity(optuna.logging.WARNING)
Space = Mapping[str, BaseDistribution]


def space(study: Study, search: Search) -> dict[str, BaseDistribution]:
    """Dotted path → what it is drawn from; a knob that is per task is one path for each task."""
    paths: dict[str, BaseDistribution] = {}
    for path, parameter in search.space.items():
        for dotted in [f"{path}.{name}" for name in study.names] if parameter.per_task else [path]:
            paths[dotted] = distribution(parameter)
    return paths


def distribution(parameter: SearchParameter) -> BaseDistribution:
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    assert parameter.low is not None
    assert parameter.high is not None
    if isinstance(parameter.low, int) and isinstance(parameter.high, int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def grid(space: Space, seed: int) -> list[Setting]:
    """Every combination of listed values, shuffled, so that the first part of them is a fair sample."""
    choices = [d.choices for d in space.values() if isinstance(d, CategoricalDistribution)]
    combinations: list[Any] = [dict(zip(space, values, strict=True)) for values in product(*choices)]
    return [combinations[i] for i in draws.permutation(len(combinations), seed, "", "grid")]


def listed(parameter: SearchParameter, count: int) -> list[Value]:
    """The values of a list; of a range, `count` at even distances."""
    if parameter.values is not None:
        return list(parameter.values)
    assert parameter.low is not None
    assert parameter.high is not None
    spaced = np.geomspace if parameter.log else np.linspace
    points = spaced(parameter.low, parameter.high, count).tolist()
    whole = isinstance(parameter.low, int) and isinstance(parameter.high, int)
    return list(dict.fromkeys(round(p) for p in points)) if whole else points


def optuna_study(study: Study, search: Search) -> optuna.Study:
    """In memory, where nothing can come in between."""
    return optuna.create_study(
        study_name=study.name,
        sampler=sampler(search),
        directions=[StudyDirection.MAXIMIZE] * len(search.objective),
    )


def sampler(search: Search) -> optuna.samplers.BaseSampler:
    if search.method in ("random", "grid"):  # a grid's settings are queued, nothing is sampled
        return optuna.samplers.RandomSampler(seed=search.seed)
    limits: Any = (lambda trial: trial.user_attrs.get("excess", [0.0])) if search.constraints else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # constraints_func: its heir is new in Optuna 5
        if search.method == "nsga2":
            size = max(4, search.trials // 4)
            return optuna.samplers.NSGAIISampler(
                population_size=size, seed=search.seed, constraints_func=limits
            )
        startup = max(4, search.trials // 3)  # Optuna's default, 10, is all of a small study
        return optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=startup, constraints_func=limits)


def warm_start(study: optuna.Study, space: Space, warm: Sequence[Known]) -> None:
    """Tell Optuna what older studies found, best first, and what to try first.

    That is all of a study that this one goes on from, whose stages are there, and three of others. What a
    setting does not say, such as the values of a new task, is sampled.
    """
    for known in (*(k for k in warm if k.depth), *[k for k in warm if not k.depth][:3]):
        study.enqueue_trial(dict(known.setting), skip_if_exists=True)
    for setting, of, _ in warm:
        if len(setting) == len(space) and of:
            study.add_trial(create_trial(params=dict(setting), distributions=dict(space), values=list(of)))


def contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def propose(
    space: Space, seed: int, count: int, known: Sequence[Setting], first: Sequence[Setting] = ()
) -> list[Setting]:
    """`count` different settings of a small space that are not known yet, by TPE; fewer if there are no more.

    known: settings judged so far, best first; first: settings to begin with. Where all combinations are no
    more than asked for, it is all of them.
    """
    if all(isinstance(d, CategoricalDistribution) for d in space.values()):
        every = [s for s in grid(space, seed) if s not in known]
        if len(every) <= count:
            return every
    found: list[Setting] = []
    for setting in first:
        found += [setting] if setting not in known and setting not in found and len(found) < count else []
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0 if known else 1000),
        direction=StudyDirection.MAXIMIZE,
    )
    for i, setting in enumerate(reversed(known)):
        # Ranks in place of values: constraints and several objectives are in them.
        study.add_trial(create_trial(params=dict(setting), distributions=dict(space), value=float(i)))
    for _ in range(20 * count):
        if len(found) >= count:
            break
        setting = study.ask(dict(space)).params
        if setting not in known and setting not in found:
            found.append(setting)
    return found
