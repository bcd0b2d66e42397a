"""The setting that is read off the curves of what α trades, of all that a search saw."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray import plugins
from dgg_ray.conduct import Terms
from dgg_ray.curves import tradeoffs
from dgg_ray.outcomes import ALPHA, CELL, Results
from dgg_ray.results import value_at
from dgg_ray.search import Method
from dgg_ray.space import space
from dgg_ray.study import Setting, Value


def read_off(search: Method) -> Setting | None:
    """The winner, with the α at the best of its curve for each task that has one; None until the search ends.

    Of the search's own stages alone: what the comparison learns later does not change what is compared.
    """
    winner = search.winner()
    if winner is None or not search.finished:
        return None
    best = {
        f"{ALPHA}.{found.task}": float(found.alpha[found.points()["best"]][0])
        for found in tradeoffs(seen(search))
    }
    as_tried: dict[tuple[str, Value], Value] = {
        item: item[1] for probe in search.proposed for item in probe.setting.items()
    }  # 0 and 0.0 are equal, and have keys of their own
    return {**winner, **{k: as_tried.get((k, a), a) for k, a in best.items() if k in winner}}


def seen(search: Method) -> Results:
    """What the search was told, as results: a cell for each exam, whole runs or not."""
    study, on = search.study, search.study.protocol.select_on
    knobs, rows = tuple(space(study, search.search)), []
    for number, evidence in search.told.items():
        if evidence is None:
            continue
        probe, at = search.proposed[number], study.at(search.proposed[number].setting)
        blocks = study.blocks if probe.block is None else study.blocks[probe.block :][:1]
        values = [value_at(at, knob) for knob in knobs]
        for (order, seed), scores in zip(blocks, evidence.scores, strict=True):
            run = [at.id, plugins.name_of(at.strategy), " > ".join(order), seed]
            for t, i in np.argwhere(np.isfinite(scores.R)).tolist():
                cell = [t, order[t], order[i], on, scores.R[t, i], scores.sizes[i], 0.0]
                rows.append([*run, *cell, *values])
    table = pd.DataFrame(rows, columns=[*CELL, *knobs])
    return Results(
        study.name,
        "",
        table,
        knobs,
        tuple(search.search.objective),
        recommended=None,
        rivals={},
        failures=[],
        costs=pd.DataFrame(),
        terms=Terms(select_on=on),
    )
