"""The setting that is read off the curves of what α trades, of all that a search saw."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from dgg_ray.config.sections import ALPHA, Value
from dgg_ray.config.study import Setting, value_at
from dgg_ray.search.alpha_curve import Runs, Tradeoff, fitted, stages_of
from dgg_ray.search.base import Method
from dgg_ray.search.space import space


def read_off(search: Method) -> Setting | None:
    """The winner, with the α at the best of its curve for each task that has one; None until the search ends.

    Of the search's own stages alone: what the comparison learns later does not change what is compared.
    """
    winner = search.winner()
    if winner is None or not search.finished:
        return None
    best = {
        f"{ALPHA}.{found.task}": float(found.alpha[found.points()["best"]][0]) for found in curves_of(search)
    }
    as_tried: dict[tuple[str, Value], Value] = {
        item: item[1] for query in search.proposed for item in query.setting.items()
    }  # 0 and 0.0 are equal, and have keys of their own
    return {**winner, **{k: as_tried.get((k, a), a) for k, a in best.items() if k in winner}}


def curves_of(search: Method) -> list[Tradeoff]:
    """The curves of what the search was told, task by task."""
    return fitted(stages_of(seen(search), (*space(search.study, search.search),), search.study.names))


def seen(search: Method) -> Iterator[Runs]:
    """The runs that the search was told of, whole or not, one by one."""
    study, paths, found, values = search.study, (*space(search.study, search.search),), [], []
    for number, evidence in search.told.items():
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
