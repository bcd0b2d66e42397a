"""Stored stages and evaluations that are no longer used because a plug-in was edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.storage.stage_store import StageStore


def describe_unused_work(study: Study, store: StageStore) -> list[str]:
    """Return a sentence for each plug-in of the study that changed after something in the store was made.

    The store is not read for a study that has no plug-ins of the user's own.
    """
    if all(code == "" or code.startswith("version") for code in study.data.source_hashes.values()):
        return []
    stages, evaluations = Counter[str](), Counter[str]()
    for record, evaluation_records in store.finished():
        stages.update(changed_plugins(study, record))
        for evaluation in evaluation_records:
            for plugin in changed_plugins(study, evaluation):
                scored = sum(scorer_of(study, entry) == plugin for entry in evaluation["scores"])
                evaluations[plugin] += scored
    return [*sentences(stages, "stage", "trained"), *sentences(evaluations, "evaluation", "scored")]


def changed_plugins(study: Study, record: Mapping[str, Any]) -> list[str]:
    """Return the plug-ins whose source is not what it was when the record was written."""
    hashes = study.data.source_hashes
    return [plugin for plugin, code in record.get("code", {}).items() if hashes.get(plugin, code) != code]


def scorer_of(study: Study, entry: Mapping[str, Any]) -> str:
    task = study.data.tasks.get(entry["task"])
    return f"scorers/{task.scorer}" if task else ""


def sentences(counts: Mapping[str, int], noun: str, verb: str) -> Iterator[str]:
    for plugin, count in counts.items():
        made = f"{count} {noun}s were {verb}; they are" if count > 1 else f"{count} {noun} was {verb}; it is"
        yield f"{plugins.describe_plugin(plugin)} changed since {made} not used."
