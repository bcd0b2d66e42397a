"""The share of the objective that each search parameter explains: functional ANOVA over evaluated settings.

Hutter, Hoos & Leyton-Brown, ICML 2014: a random forest is fitted to (values, objective). A parameter's
importance is the share of the forest's variance over the whole space that this parameter explains alone. It
does not show the direction of the effect. From few settings it is only a hint, because the forest then
explains noise as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution


def parameter_importance(
    settings: pd.DataFrame, objective: Sequence[float], parameters: Sequence[str], seed: int = 0
) -> Mapping[str, float]:
    """Map each parameter to its share of the objective's variance, in [0, 1], highest first.

    It is empty where there are no more settings than parameters that vary, or where all settings score alike.

    settings: one row per setting, with a column per parameter.
    """
    distributions = {
        parameter: value_distribution(settings[parameter])
        for parameter in parameters
        if settings[parameter].nunique() > 1
    }
    if len(settings) <= len(distributions) or pd.Series(objective).nunique() < 2 or not distributions:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for row, value in zip(settings[list(distributions)].to_dict("records"), objective, strict=True):
        params = {
            parameter: row[parameter] if isinstance(row[parameter], str | bool) else float(row[parameter])
            for parameter in distributions
        }
        trial = optuna.create_trial(params=params, distributions=distributions, value=float(value))
        study.add_trial(trial)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {parameter: float(share) for parameter, share in shares.items()}


def value_distribution(values: pd.Series) -> BaseDistribution:
    """Infer the distribution that values were drawn from: words are choices, numbers a range."""
    if all(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(sorted(set(values)))
    return FloatDistribution(float(values.min()), float(values.max()))
