"""The searches of baselines that are tuned: a fair comparison gives every method a budget of its own.

A baseline is tuned on the blocks of the study's search, on the same split, by the same objective and under
the same constraints. What it does not search it takes from the recommended setting, as far as that is not the
strategy's own: adapter, training and buffer. Its own settings are those that the study fixes, else its
defaults. The setting without any searched value is tried first, so tuning never ends below it there.
"""

from __future__ import annotations

from dataclasses import replace

from dgg_ray.config.search_space import has_setting, searched_values
from dgg_ray.config.sections import STRATEGY_NAME, Search, TunedBaseline
from dgg_ray.config.setting_paths import value_at
from dgg_ray.config.study import Setting, Study
from dgg_ray.search.optuna_search import OptunaSearch

SHARED = "strategy.buffer"  # means the same in every strategy that has it


def tuned_search(study: Study, baseline: TunedBaseline, winner: Setting) -> OptunaSearch:
    """Make the search of a baseline. winner: the recommended setting; {} in a study that searches nothing."""
    fixed = fixed_values(baseline, winner)
    values = list(searched_values(baseline.search, study.task_names))
    default = study.at(fixed)
    first = {value.path: value_at(default, value.path) for value in values}
    search = replace(
        study.search or Search({}),
        space=baseline.search,
        method=baseline.method,
        trials=baseline.trials,
        stages=None,
        warm_start_from=(),
    )
    name, data = f"{study.name}: {baseline.title}", replace(study.data, warm_starts=())
    tuned = replace(study, name=name, search=search, data=data)
    return OptunaSearch(tuned, fixed=fixed, first=first)


def fixed_values(baseline: TunedBaseline, winner: Setting) -> Setting:
    """The strategy, and the values that all settings of a baseline's search share."""
    kept = {
        path: value
        for path, value in winner.items()
        if (not path.startswith("strategy.") or (path == SHARED and has_setting(baseline.name, path)))
        and path not in baseline.search
    }
    return {STRATEGY_NAME: baseline.name, **kept, **baseline.settings}
