"""The branches of a stagewise search that can be stopped: what of it is still being tried, and from where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dgg_ray.api import Outcome
from dgg_ray.config.decisions import is_part
from dgg_ray.config.sections import name_of
from dgg_ray.config.study import Setting
from dgg_ray.planning.study_control import StudyState
from dgg_ray.search.stagewise import Stagewise
from dgg_ray.storage.store_view import view_of


def open_branches(outcome: Outcome) -> list[dict[str, Any]]:
    """The states from which an unfinished stagewise search trains something now: {values, text, waiting}.

    values: what all of the branch shares, as `branches/stop` takes it; text: the same in words. waiting: the
    number of settings in it that have no result yet. Branches come before those that continue from them;
    other searches have none.
    """
    archive, found = outcome.results.archive, outcome.results.search
    if archive is None or found is None or found.finished or found.method != "stagewise":
        return []
    search = StudyState(archive.study, view_of(archive.store)).comparison.search
    assert isinstance(search, Stagewise)
    answered = search.answers.keys() | search.stopped.keys()
    waiting = [query.setting for number, query in enumerate(search.proposed) if number not in answered]
    of_all = [path for path, parameter in search.parameters.items() if not parameter.per_task]
    shared = [{path: setting[path] for path in of_all if path in setting} for setting in waiting]
    states = distinct([*shared, *(query.setting for query in search.proposed)])
    branches = [
        {"values": values, "text": text_of(values), "waiting": sum(is_part(values, s) for s in waiting)}
        for values in states
    ]
    return sorted((branch for branch in branches if branch["values"] and branch["waiting"]), key=order)


def distinct(settings: Iterable[Setting]) -> list[Setting]:
    return list({tuple(sorted(setting.items())): setting for setting in settings}.values())


def text_of(values: Setting) -> str:
    """The values in words: `α for words = 0.3, buffer = 20`."""
    return ", ".join(
        f"{name_of(path)} = {format(value, 'g') if isinstance(value, float) else value}"
        for path, value in values.items()
    )


def order(branch: dict[str, Any]) -> list[tuple[str, str]]:
    """Sort a branch right behind the one that it continues."""
    return [(path, str(value)) for path, value in branch["values"].items()]
