"""Stored work that is not used any more because a plug-in was edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.storage.stage_store import StageStore


def sentences(study: Study, store: StageStore) -> list[str]:
    """One for each plug-in of the study that is not what it was when something in the store was made.

    A study without plug-ins of the user's own does not look into the store."""
    if all(code == "" or code.startswith("version") for code in study.codes.values()):
        return []
    stages, scores = Counter[str](), Counter[str]()
    for record, sittings in store.finished():
        stages.update(changed(study, record))
        for sitting in sittings:
            for plugin in changed(study, sitting):
                scores[plugin] += sum(scorer(study, cell) == plugin for cell in sitting["cells"])
    return [
        *(
            f"{plugins.named(p)} changed since {were(n, 'stage')} trained; {used(n)}"
            for p, n in stages.items()
        ),
        *(
            f"{plugins.named(p)} changed since {were(n, 'evaluation')} scored; {used(n)}"
            for p, n in scores.items()
        ),
    ]


def changed(study: Study, record: Mapping[str, Any]) -> list[str]:
    return [p for p, code in record.get("code", {}).items() if study.codes.get(p, code) != code]


def scorer(study: Study, cell: Mapping[str, Any]) -> str:
    task = study.tasks.get(cell["task"])
    return f"scorers/{task.scorer}" if task else ""


def were(count: int, what: str) -> str:
    return f"{count} {what}{'s were' if count > 1 else ' was'}"


def used(count: int) -> str:
    return "they are not used." if count > 1 else "it is not used."
