"""The tuning of a comparison's methods: the number of settings tried for each."""

from __future__ import annotations

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen_label,
    chosen_setting,
    format_value,
    printed_labels,
    setting_values,
)
from dgg_ray.config.sections import name_of
from dgg_ray.core.phrases import join_names, plural


def settings_tried(results: Results, label: str) -> int | None:
    """Return the number of settings tried for a method, by its printed label; None without parameters."""
    if label == chosen_label(results):
        return results.tuning.chosen
    printed = printed_labels(results)
    return next((n for name, n in results.tuning.baselines.items() if printed.get(name, name) == label), None)


def describe_tuning(tried: int | None, own: bool = False) -> str:
    """Describe how a method was tuned: `tuned on 12 settings` or `default setting`; empty for None.

    own: whether it is the study's own setting, which is no default.
    """
    if tried is None:
        return ""
    untuned = "the study's own setting" if own else "default setting"
    return f"tuned on {plural(tried, 'setting')}" if tried else untuned


def tuned_values(results: Results, label: str) -> str:
    """Give the values that the search of a tuned baseline chose; empty for any other label."""
    paths, setting = results.tuning.parameters.get(label, ()), results.baselines.get(label)
    values = setting_values(results)
    if setting is None or setting not in values.index:
        return ""
    return ", ".join(f"{name_of(path)} = {format_value(values.loc[setting][path])}" for path in paths)


def tuning_sentences(results: Results) -> list[str]:
    """Say whether the methods of the comparison were tuned on different numbers of settings."""
    chosen, own = results.tuning.chosen, chosen_setting(results)
    if chosen is None or own is None:
        return []
    others = {
        label: tried
        for label, tried in results.tuning.baselines.items()
        if tried != chosen and results.baselines.get(label, "") not in (own, "")
    }
    if not others:
        return []
    unequal = [f"{label} {short(tried)}" for label, tried in others.items()]
    return [
        f"The methods were not tuned alike: {chosen_label(results)} {short(chosen)}, {join_names(unequal)}."
    ]


def short(tried: int) -> str:
    return f"on {plural(tried, 'setting')}" if tried else "not at all"
