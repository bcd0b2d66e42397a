"""Which α to use, task by task, as a study's results have it: the curves of alpha_curve.py, in words."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import Run, alphas, once, searched, settings, tasks_of, text_of, walk
from dgg_ray.search.alpha_curve import AFFORDABLE, Runs, Tradeoff, fitted, stages_of
from dgg_ray.stats.formats import CI, percent


@once
def tradeoffs(results: Results) -> list[Tradeoff]:
    """The curves of every task whose α was tried at two values or more that a block connects; by task."""
    return fitted(observed(results))


def observed(results: Results) -> pd.DataFrame:
    """Stages that learned a task with a searched α (alphacurves.stages_of), of all runs of searched settings.

    On the split on which settings were chosen.
    """
    values = anchored(results)
    known = {column: values[column].to_numpy() for column in values}
    runs = [
        r
        for r in walk(results, results.terms.selection_split)
        if r.setting in values.index and not r.together
    ]
    of_order: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        of_order.setdefault(run.tasks, []).append(run)

    def together(order: tuple[str, ...], some: list[Run]) -> Runs:
        rows = values.index.get_indexer([run.setting for run in some])
        R, seeds = np.array([run.scores.R for run in some]), [run.seed for run in some]
        return Runs(order, R, seeds, {column: column_values[rows] for column, column_values in known.items()})

    groups = (together(order, some) for order, some in of_order.items())
    return stages_of(groups, results.parameters, tasks_of(results))


def anchored(results: Results) -> pd.DataFrame:
    """The settings tried, and replay, which is DGG at α = 0, with their values; a row each, by setting."""
    known, guidance = settings(results), set(alphas(results).values())
    values = known.loc[searched(results).index]
    if (replay := results.baselines.get("replay")) in known.index and replay not in values.index:
        anchor = known.loc[[replay]].astype(dict.fromkeys(guidance, float))
        values = pd.concat([values, anchor.fillna(dict.fromkeys(guidance, 0.0))])
    return values


# -- in words --------------------------------------------------------------------------------------


def sentences(found: Tradeoff) -> list[str]:
    """Which α to use for a task, which others do as well, what the extremes trade, and what was not tried."""
    rows = found.points()
    best = rows[rows["best"]].iloc[0]
    low, high = text_of(found.alpha[0]), text_of(found.alpha[-1])
    new, old = found.difference(0, -1).values()
    missing = [text_of(a) for a, there in zip((0, 1), found.anchors, strict=True) if not there]
    said = [
        f"For {found.task}, the curve of the mean final score is highest at α = {text_of(best['alpha'])}; "
        f"{undecided(rows)}.",
        f"Against α = {low}, α = {high} costs {points_of(new, -1)} of the new task and saves "
        f"{points_of(old)} of the old ones.",
    ]
    if found.beginning and not rows["gain_low"].isna().all():
        before = found.beginning.rpartition(" > ")[0]
        said.append(f"It was tried after {before} alone: the bands are of this beginning, not of others.")
    if missing:
        verb = "was" if len(missing) == 1 else "were"
        said.append(f"α = {' and '.join(missing)} {verb} not tried: nothing is said beyond {low} and {high}.")
    return said


def undecided(rows: pd.DataFrame) -> str:
    """Which α cannot be told apart from the best one."""
    others = ~rows["best"]
    if rows.loc[others, "gain_low"].isna().all():
        return (
            "the others were tried in too few independent blocks of order and seed to be told apart from it"
        )
    if not rows.loc[others, "open"].any():
        return "every other α tried is worse"
    if rows["open"].all():
        return "no α tried can be told apart from it"
    return f"α {span(rows)} cannot be told apart"


def span(rows: pd.DataFrame) -> str:
    """The α that cannot be told apart: `from 0.1 to 0.3`, or a list where a worse one lies between them."""
    places, values = np.flatnonzero(rows["open"]), [text_of(a) for a in rows.loc[rows["open"], "alpha"]]
    gapless = len(places) > 1 and len(places) == places[-1] - places[0] + 1
    return f"from {values[0]} to {values[-1]}" if gapless else f"= {', '.join(values)}"


def points_of(gap: tuple[float, float, float], sign: int = 1) -> str:
    """`12.1 points (95 % CI 9.0 to 15.2)`; `sign` -1 turns a change into a loss."""
    value, *ends = (sign * x for x in gap)
    words = f"{percent(value)} points"
    return words if np.isnan(ends).any() else f"{words} ({CI}{percent(min(ends))} to {percent(max(ends))})"


def summary(found: Tradeoff) -> dict[str, str]:
    """One task's row in the report, column → text."""
    rows = found.points()
    new, old = found.difference(0, -1).values()
    return {
        "task": found.task,
        "curve highest at α": text_of(found.alpha[rows["best"]][0]),
        "cannot be told apart": span(rows).removeprefix("= "),
        "new task loses": points_of(new, -1).replace(" points", ""),
        "old tasks keep": points_of(old).replace(" points", ""),
        f"α at ≤ {percent(AFFORDABLE, 0)} points lost": f"{found.at_least():.2g}",
        "stages (blocks)": f"{len(found.stages)} ({rows['blocks'].max()})",
    }
