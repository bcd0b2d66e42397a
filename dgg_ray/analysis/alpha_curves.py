"""Curves of α: what a task's α trades, and whether the search's choice agrees, with sentences on both.

`search/alpha_curve.py` defines the curves. This file fits them to a study's results, and compares them with
the α that the search chose.

The two may disagree. The search evaluates complete runs by its objective. A curve evaluates the stage that
has the α, by what it does for the mean final score. They can differ by chance, or because later stages forget
the tasks of this stage at different rates. So each chosen α is compared with the best α of its curve. The
band of their difference is paired within blocks and holds for these two values alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    ScoredRun,
    alpha_columns,
    cached,
    chosen_setting,
    evaluated_tasks,
    format_value,
    scored_runs,
    searched_settings,
    setting_values,
)
from dgg_ray.config.sections import ALPHA, name_of
from dgg_ray.core.phrases import join_names
from dgg_ray.search.alpha_curve import AFFORDABLE, Runs, Tradeoff, band, fitted, stages_of
from dgg_ray.stats.formats import format_interval_suffix, format_percent
from dgg_ray.stats.monotone_fit import band_half_width

FINAL_SCORES = {"faa", "average_accuracy"}  # means of the final scores, which the curves are about
Gap = tuple[float, float, float]  # a difference in [-1, 1] with the bounds of its band: mean, low, high


# -- curves ----------------------------------------------------------------------------------------


@cached
def tradeoffs(results: Results) -> list[Tradeoff]:
    """Fit the curves of every task with two or more values of α that some block compares, sorted by task."""
    return fitted(observed_stages(results))


def observed_stages(results: Results) -> pd.DataFrame:
    """Return the stages that trained a task with a searched α, one row each (`alpha_curve.stages_of`).

    They come from all runs of searched settings, on the split on which settings were chosen.
    """
    values = settings_with_anchor(results)
    columns = {str(column): values[column].to_numpy() for column in values}
    by_order: dict[tuple[str, ...], list[ScoredRun]] = {}
    for run in scored_runs(results, results.setup.selection_split):
        if run.setting in values.index and not run.together:
            by_order.setdefault(run.tasks, []).append(run)
    groups = []
    for order, runs in by_order.items():
        rows = values.index.get_indexer(pd.Index([run.setting for run in runs]))
        R, seeds = np.array([run.scores.R for run in runs]), [run.seed for run in runs]
        groups.append(Runs(order, R, seeds, {name: column[rows] for name, column in columns.items()}))
    return stages_of(groups, results.parameters, evaluated_tasks(results))


def settings_with_anchor(results: Results) -> pd.DataFrame:
    """Return the searched settings and replay with their values; replay is DGG at α = 0."""
    known, guidance = setting_values(results), set(alpha_columns(results).values())
    values = known.loc[searched_settings(results).index]
    replay = results.baselines.get("replay")
    if replay in known.index and replay not in values.index:
        anchor = known.loc[[replay]].astype(dict.fromkeys(guidance, float))
        values = pd.concat([values, anchor.fillna(dict.fromkeys(guidance, 0.0))])
    return values


def tradeoff_sentences(tradeoff: Tradeoff) -> list[str]:
    """Describe one task's curves: the best α, what the extremes trade, and which values were not tried."""
    points = tradeoff.points()
    best = points[points["best"]].iloc[0]
    low, high = format_value(tradeoff.alpha[0]), format_value(tradeoff.alpha[-1])
    new, old = tradeoff.difference(0, -1).values()
    sentences = [
        f"For {tradeoff.task}, the curve of the mean final score is highest at "
        f"α = {format_value(best['alpha'])}; {describe_undecided(points)}.",
        f"Compared with α = {low}, α = {high} costs {format_points(new, -1)} on the new task and saves "
        f"{format_points(old)} on the old ones.",
    ]
    if tradeoff.beginning and not points["gain_low"].isna().all():
        before = tradeoff.beginning.rpartition(" > ")[0]
        sentences.append(
            f"It was tried after {before} alone: the bands hold for this beginning, not for others."
        )
    missing = [format_value(a) for a, tried in zip((0, 1), tradeoff.anchors, strict=True) if not tried]
    if missing:
        verb = "was" if len(missing) == 1 else "were"
        sentences.append(
            f"α = {' and '.join(missing)} {verb} not tried, so nothing is known beyond {low} and {high}."
        )
    return sentences


def describe_undecided(points: pd.DataFrame) -> str:
    """Say which values of α cannot be distinguished from the best one."""
    others = ~points["best"]
    if points.loc[others, "gain_low"].isna().all():
        return "too few independent blocks of order and seed tried the others to distinguish them from it"
    if not points.loc[others, "open"].any():
        return "every other α tried is worse"
    if points["open"].all():
        return "no other α tried can be distinguished from it"
    return f"α {format_alpha_range(points)} cannot be distinguished"


def format_alpha_range(points: pd.DataFrame) -> str:
    """Format the undecided values of α: `from 0.1 to 0.3`, or a list where a worse one lies between them."""
    rows = np.flatnonzero(points["open"])
    values = [format_value(alpha) for alpha in points.loc[points["open"], "alpha"]]
    contiguous = len(rows) > 1 and len(rows) == rows[-1] - rows[0] + 1
    return f"from {values[0]} to {values[-1]}" if contiguous else f"= {', '.join(values)}"


def format_points(gap: Gap, sign: int = 1) -> str:
    """Format a gap: `12.1 points (95 % CI 9.0 to 15.2)`; sign -1 turns a change into a loss."""
    mean, *bounds = (sign * value for value in gap)
    return f"{format_percent(mean)} points{format_interval_suffix(min(bounds), max(bounds))}"


def tradeoff_summary(tradeoff: Tradeoff) -> dict[str, str]:
    """Return one task's row of the report's table, column → text."""
    points = tradeoff.points()
    new, old = tradeoff.difference(0, -1).values()
    return {
        "task": tradeoff.task,
        "curve highest at α": format_value(tradeoff.alpha[points["best"]][0]),
        "not distinguishable": format_alpha_range(points).removeprefix("= "),
        "new task loses": format_points(new, -1).replace(" points", ""),
        "old tasks keep": format_points(old).replace(" points", ""),
        f"α at ≤ {format_percent(AFFORDABLE, 0)} points lost": f"{tradeoff.at_least():.2g}",
        "stages (blocks)": f"{len(tradeoff.stages)} ({points['blocks'].max()})",
    }


# -- the chosen values against the curves ----------------------------------------------------------


class CurveAgreement(NamedTuple):
    """A task's chosen α, the best α of its curve, and the gap between them on that curve.

    gap: how far the mean final score at the chosen α lies below the best. It has no band where fewer than two
        clusters of blocks compare the two. It is nan where the chosen α lies outside the values compared.
    """

    task: str
    chosen_alpha: float
    best_alpha: float
    gap: Gap

    @property
    def agrees(self) -> bool:
        """Return whether the chosen α is as good as the best of the curve."""
        return self.gap[0] == 0

    @property
    def is_undecided(self) -> bool:
        """Return whether the two cannot be distinguished; without a band nothing can be."""
        return not self.gap[1] > 0


@cached
def curve_agreements(results: Results) -> list[CurveAgreement]:
    """Compare each α that the search chose with its curve; empty before a setting is chosen."""
    setting, columns = chosen_setting(results), alpha_columns(results)
    if setting is None or setting not in setting_values(results).index:
        return []
    values = cast(pd.Series, setting_values(results).loc[setting])
    return [
        compare_with_curve(tradeoff, float(values[columns[tradeoff.task]]))
        for tradeoff in tradeoffs(results)
        if columns[tradeoff.task] not in unsearched_parameters(results)
    ]


def compare_with_curve(tradeoff: Tradeoff, chosen_alpha: float) -> CurveAgreement:
    """Compare one chosen α with the best of its curve; between tried values the curve is interpolated."""
    points = tradeoff.points()
    best = int(np.flatnonzero(points["best"])[0])
    weights = np.array(
        [np.interp(chosen_alpha, tradeoff.alpha, unit, np.nan, np.nan) for unit in np.eye(len(points))]
    )
    draws = tradeoff.fit.resamples @ tradeoff.counts()
    compared = np.append(np.flatnonzero(weights), best)
    blocks = tradeoff.fit.blocks[compared].min()
    half_width = float(band_half_width(draws[:, best] - draws @ weights, blocks))
    difference = abs(float(weights @ points["gain"]))
    gap = (difference, *band(difference, half_width))
    return CurveAgreement(tradeoff.task, chosen_alpha, float(tradeoff.alpha[best]), gap)


@cached
def unsearched_parameters(results: Results) -> tuple[str, ...]:
    """Return the parameters of which no value was chosen: those of a task that is first in every order.

    There α has no effect, and `stagewise` begins with the second task. Every setting has a value
    nevertheless: the study's own, or whatever the sampler drew.
    """
    first_tasks = {order.split(" > ")[0] for order, _ in results.setup.search_blocks}
    if results.search is None or len(first_tasks) != 1:
        return ()
    paths = results.search.per_task_parameters if results.search.method == "stagewise" else (ALPHA,)
    without_effect = {f"{path}.{task}" for path in paths for task in first_tasks}
    return tuple(parameter for parameter in results.parameters if parameter in without_effect)


@cached
def undecided_alphas(results: Results) -> dict[str, str]:
    """Map the column of a task's α to the values that cannot be distinguished, for tasks with such values.

    Where the chosen α is worse than all of these, the text says where the curve is higher.
    """
    columns, undecided = alpha_columns(results), {}
    worse_tasks = {a.task for a in curve_agreements(results) if not a.is_undecided}
    for tradeoff in tradeoffs(results):
        points, column = tradeoff.points(), columns[tradeoff.task]
        if column == ALPHA or points["open"].sum() < 2:
            continue
        values = format_alpha_range(points)
        if tradeoff.task in worse_tasks:
            undecided[column] = f"the curve is higher {values.replace('=', 'at')}"
        else:
            undecided[column] = f"{values.removeprefix('= ')} cannot be distinguished"
    return undecided


# -- the chosen values in words --------------------------------------------------------------------


def unsearched_sentences(results: Results) -> list[str]:
    """Name the parameters that were not searched, and the blocks on which their values act nevertheless."""
    sentences = []
    for parameter in unsearched_parameters(results):
        task = parameter.rpartition(".")[2]
        reason = ", where α has no effect" if parameter == f"{ALPHA}.{task}" else ""
        text = f"{name_of(parameter)} was not searched: {task} is first in every order of the search{reason}."
        if any(not order.startswith(f"{task} > ") for order, _ in results.setup.final_blocks):
            value = format_value(setting_values(results).loc[cast(str, chosen_setting(results)), parameter])
            text += f" On final blocks that begin with another task its value is {value}, "
            text += "which the search did not choose."
        sentences.append(text)
    return sentences


def curve_agreement_sentences(results: Results) -> list[str]:
    """Say whether the chosen α are the best of the curves, and by how much each of the others falls short."""
    agreements = curve_agreements(results)
    if not agreements:
        return []
    worse = [agreement for agreement in agreements if not agreement.agrees]
    if not worse:
        return ["The curves of α agree with the choice: the mean final score is highest at these α."]
    gaps = "; ".join(f"for {a.task} at α = {format_value(a.best_alpha)}, {describe_gap(a)}" for a in worse)
    text = f"By the curves of α, the mean final score is highest at other values: {gaps}."
    if agreeing := [agreement.task for agreement in agreements if agreement.agrees]:
        text += f" For {join_names(agreeing)} curve and choice agree."
    if not FINAL_SCORES & set(results.objective):
        text += f" The objective of the search was {' and '.join(results.objective)}."
    return [text]


def describe_gap(agreement: CurveAgreement) -> str:
    """Describe a gap: `0.4 points (95 % CI −0.2 to 1.0) above the chosen 0.3: not significant`."""
    chosen = f"the chosen {format_value(agreement.chosen_alpha)}"
    if math.isnan(agreement.gap[0]):
        return f"which no block compares with {chosen}"
    return f"{format_points(agreement.gap)} above {chosen}{gap_conclusion(agreement)}"


def gap_conclusion(agreement: CurveAgreement) -> str:
    """Say whether a gap is significant, as the end of a clause."""
    if math.isnan(agreement.gap[1]):
        return ", with too few independent blocks for a test"
    return ": not significant" if agreement.is_undecided else ": significant"


def tradeoff_rows(results: Results) -> list[tuple[dict[str, str], str]]:
    """Return each curve's row of the report's table, and the sentences about it."""
    return [
        (
            tradeoff_summary(tradeoff),
            " ".join([*tradeoff_sentences(tradeoff), *chosen_alpha_sentences(results, tradeoff.task)]),
        )
        for tradeoff in tradeoffs(results)
    ]


def chosen_alpha_sentences(results: Results, task: str) -> list[str]:
    """Say which α was chosen for a task, and how it compares with the best of the curve."""
    if alpha_columns(results)[task] in unsearched_parameters(results):
        return [f"The search chose no α for it: {task} is first in every order of the search."]
    agreement = next((a for a in curve_agreements(results) if a.task == task), None)
    if agreement is None:
        return []
    chosen = f"The search chose α = {format_value(agreement.chosen_alpha)}"
    if agreement.agrees:
        same = agreement.chosen_alpha == agreement.best_alpha
        return [f"{chosen} too." if same else f"{chosen}, which is as good by this curve."]
    if math.isnan(agreement.gap[0]):
        return [f"{chosen}, which no block compares with that one."]
    return [f"{chosen}, by this curve {format_points(agreement.gap)} lower{gap_conclusion(agreement)}."]
