"""Decisions of people about a study, in sentences: which settings or branches, when, and who."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import format_value
from dgg_ray.config.decisions import Decision, pinned_label
from dgg_ray.config.sections import Budget, Value, name_of
from dgg_ray.core.phrases import join_names, plural


def decision_sentences(results: Results) -> list[str]:
    """Say what was decided by hand, in the order of the decisions, and whether that cut the search short."""
    return [*(decision_sentence(results, decision) for decision in results.decisions), *cut(results)]


def cut(results: Results) -> Iterator[str]:
    """Say that a search in which settings were stopped is not complete."""
    search = results.search
    if search is not None and search.stopped:
        count = plural(search.stopped, "setting or state" if search.depths else "setting")
        verb = "was" if search.stopped == 1 else "were"
        yield f"The search is not complete: {count} {verb} stopped by hand before the evaluation was over."


def decision_sentence(results: Results, decision: Decision) -> str:
    """Say one decision: `ada stopped setting 1a2b3c4d (buffer = 10) on 2026-07-30 at 14:03 UTC …`."""
    at = datetime.fromtimestamp(decision.at, UTC).strftime("on %Y-%m-%d at %H:%M UTC")
    values = join_names(describe_values(decision.values))
    if decision.kind == "budget":
        return f"{decision.by} set the budget to {Budget(**decision.limits)} {at}."
    if decision.kind == "stop_branch":
        return f"{decision.by} stopped the branch with {values} {at}: nothing of it was trained any more."
    labels = [label for label, setting in results.baselines.items() if setting == decision.setting]
    labels = [label for label in labels if label != pinned_label(decision.setting)]
    details = values or join_names(labels)
    setting = f"setting {decision.setting}{f' ({details})' if details else ''}"
    if decision.kind == "unpin":
        return f"{decision.by} unpinned {setting} {at}."
    if decision.kind == "pin":
        return f"{decision.by} pinned {setting} {at}: {consequence_of_pin(results, decision.setting)}."
    whole = decision.setting in results.evaluated
    outcome = "it remains a candidate, as it was evaluated on all blocks" if whole else "it was no candidate"
    if labels:
        outcome = "it is compared on the blocks that it had finished"
    return f"{decision.by} stopped {setting} {at}: {outcome}."


def consequence_of_pin(results: Results, setting: str) -> str:
    """Say what came of a pin as things stand."""
    if setting == results.recommended:
        return "it is the chosen setting"
    if pinned_label(setting) in results.baselines:
        return f"it stands in the comparison as {pinned_label(setting)!r}"
    return "it was to be evaluated to the end"


def describe_values(values: Mapping[str, Value]) -> list[str]:
    """Describe searched values: `α for words = 0.3`."""
    return [f"{name_of(path)} = {format_value(value)}" for path, value in values.items()]
