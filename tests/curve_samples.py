"""Results of runs given as score matrices."""

import pandas as pd

from dgg_ray.analysis.results import CELL_COLUMNS, Results

PARAMETERS = ("strategy.alpha.b", "strategy.alpha.c", "strategy.buffer")

A = (0.8,)  # R's first row

STAGES = ["task", "alpha", "new", "old", "earlier", "tasks", "block", "alike", "peers"]


def results_of_runs(*runs, parameters=PARAMETERS, baselines=None) -> Results:
    """Return results of runs: (setting, order, seed, values of the search parameters, R)."""
    rows = [
        [setting, "replay" if setting == "rp" else "dgg", " > ".join(order), seed, t, order[t], order[i],
         "validation", score, 10, 0.0, *values]
        for setting, order, seed, values, R in runs
        for t, scores in enumerate(R)
        for i, score in enumerate(scores)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*CELL_COLUMNS, *parameters])
    evaluated = tuple(dict.fromkeys(run[0] for run in runs if run[0] not in (baselines or {}).values()))
    return Results(
        "small",
        "",
        table,
        parameters,
        ("faa",),
        None,
        baselines or {},
        [],
        pd.DataFrame(),
        evaluated=evaluated,
    )
