"""How much of the objective each searched setting explains: functional ANOVA over the settings judged.

Hutter, Hoos & Leyton-Brown, ICML 2014: a random forest is fitted to (values, objective), and a knob's
importance is the share of the forest's variance over the whole space that the knob explains by itself. It
says nothing of the direction, and from few settings it is a hint: the forest then explains noise as well.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution


def importance(
    settings: pd.DataFrame, objective: Sequence[float], parameters: Sequence[str], seed: int = 0
) -> Mapping[str, float]:
    """Knob → its share of the objective's variance, in [0, 1], highest first.

    settings: one row per setting, a column per knob. Empty where there are not more settings than knobs
    that vary, or where all settings did equally well: there is nothing to be shared out.
    """
    spaces = {
        parameter: space(settings[parameter]) for parameter in parameters if settings[parameter].nunique() > 1
    }
    if len(settings) <= len(spaces) or pd.Series(objective).nunique() < 2 or not spaces:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for row, value in zip(settings[list(spaces)].to_dict("records"), objective, strict=True):
        params = {
            parameter: row[parameter] if isinstance(row[parameter], str | bool) else float(row[parameter])
            for parameter in spaces
        }
        study.add_trial(optuna.create_trial(params=params, distributions=spaces, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {parameter: float(share) for parameter, share in found.items()}


def space(values: pd.Series) -> BaseDistribution:
    """What the values were drawn from, as far as they tell: words are choices, numbers a range."""
    if all(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(sorted(set(values)))
    return FloatDistribution(float(values.min()), float(values.max()))
