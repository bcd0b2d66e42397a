"""The baseline `curve_optimum`: the setting read off the curves of α, from everything that a search saw."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from dgg_ray.config.sections import Value
from dgg_ray.config.setting_paths import value_at
from dgg_ray.config.study import Setting
from dgg_ray.search.alpha_curve import Runs, Tradeoff, fitted, stages_of
from dgg_ray.search.base import SearchMethod
from dgg_ray.search.space import parameter_paths


def curve_optimum(search: SearchMethod) -> Setting | None:
    """The winner with each task's α at the best of its curve; None until the search ends.

    Only the search's own stages count: what the comparison evaluates later does not change what is compared.
    """
    winner = search.winner()
    if winner is None or not search.finished:
        return None
    best = {
        f"{path}.{curve.task}": float(curve.alpha[curve.points()["best"]][0])
        for path in (f"strategy.{name}" for name in search.study.strategy.per_task)
        for curve in search_curves(search, path)
    }
    as_tried: dict[tuple[str, Value], Value] = {
        item: item[1] for query in search.proposed for item in query.setting.items()
    }  # 0 and 0.0 are equal but give different keys
    return {**winner, **{k: as_tried.get((k, a), a) for k, a in best.items() if k in winner}}


def search_curves(search: SearchMethod, path: str) -> list[Tradeoff]:
    """Fit the curves of a per-task setting to the runs that the search has evidence of, task by task.

    path: the setting's dotted path, such as `strategy.alpha`.
    """
    parameters = parameter_paths(search.study, search.search)
    return fitted(stages_of(evaluated_runs(search), parameters, search.study.task_names, path))


def evaluated_runs(search: SearchMethod) -> Iterator[Runs]:
    """Yield the runs that the search has evidence of, finished or not."""
    study, paths, found, values = search.study, parameter_paths(search.study, search.search), [], []
    for number, evidence in search.answers.items():
        if evidence is None:
            continue
        query = search.proposed[number]
        at = study.at(query.setting)
        blocks = study.blocks if query.block is None else study.blocks[query.block :][:1]
        for block, scores in zip(blocks, evidence.scores, strict=True):
            found.append((*block, scores.R[None]))
            values.append([value_at(at, path) for path in paths])
    table = pd.DataFrame(values, columns=list(paths))  # one type for each: 0 and 0.0 are one value
    columns = {path: table[path].to_numpy() for path in paths}
    for i, (order, seed, R) in enumerate(found):
        yield Runs(order, R, [seed], {path: column[i : i + 1] for path, column in columns.items()})
