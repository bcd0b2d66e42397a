"""What the search recommends beside what the curves say, α by α; and which settings it chose no value of.

The search judges whole runs by its objective, the curves (alpha_curves.py) judge the stage that has the α by
what it does for the mean final score. They may differ by luck, and where later stages treat what an α saved
unlike the rest. So each task's recommended α is held against the best of its curve, with the band of their
difference: paired within blocks, of these two alone.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dgg_ray.analysis.alpha_curves import points_of, sentences, span, summary, tradeoffs
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import alphas, chosen, listing, once, settings, text_of
from dgg_ray.config.sections import ALPHA, name_of
from dgg_ray.search.alpha_curve import Tradeoff, band
from dgg_ray.stats.monotone_fit import half_width

FINAL_SCORES = {"faa", "average_accuracy"}  # means of the final scores, which the curves serve


class Stand(NamedTuple):
    """A task's recommended α, the best of its curve, and how far below it the recommended one lies there.

    below: (difference, low, high) of the mean final score, in [-1, 1]. Without a band where fewer than 2
        clusters of blocks compare them, all nan where the recommended α lies beyond what was compared.
    """

    task: str
    used: float
    best: float
    below: tuple[float, float, float]

    @property
    def agrees(self) -> bool:
        return self.below[0] == 0

    @property
    def open(self) -> bool:
        """Whether the two cannot be told apart; without a band nothing can."""
        return not self.below[1] > 0


@once
def stands(results: Results) -> list[Stand]:
    """One for each task with a curve whose α the search chose; none before anything is recommended."""
    setting, columns = chosen(results), alphas(results)
    if setting is None or setting not in settings(results).index:
        return []
    values = settings(results).loc[setting]
    searched = [t for t in tradeoffs(results) if columns[t.task] not in unsearched(results)]
    return [stand(found, float(values[columns[found.task]])) for found in searched]


def stand(found: Tradeoff, used: float) -> Stand:
    rows = found.points()
    best = int(np.flatnonzero(rows["best"])[0])
    share = np.array([np.interp(used, found.alpha, one, np.nan, np.nan) for one in np.eye(len(rows))])
    of_draws = found.fit.draws @ found.counts()
    there = np.append(np.flatnonzero(share), best)
    half = float(half_width(of_draws[:, best] - of_draws @ share, found.fit.blocks[there].min()))
    gap = abs(float(share @ rows["gain"]))
    return Stand(found.task, used, float(found.alpha[best]), (gap, *band(gap, half)))


@once
def unsearched(results: Results) -> tuple[str, ...]:
    """Searched settings of which no value was chosen: those of a task that is first in every order.

    There α does nothing, and `stagewise` begins with the second task. All settings have a value all the
    same: the study's own, or whatever the sampler drew.
    """
    openings = {order.split(" > ")[0] for order, _ in results.terms.chosen_on}
    if results.search is None or len(openings) != 1:
        return ()
    paths = results.search.parameters if results.search.method == "stagewise" else (ALPHA,)
    idle = {f"{path}.{task}" for path in paths for task in openings}
    return tuple(parameter for parameter in results.parameters if parameter in idle)


@once
def undecided_alphas(results: Results) -> dict[str, str]:
    """Column of a task's searched α → which values cannot be told apart, of tasks where some cannot.

    Where the chosen α is worse than all of these, that the curve is higher there.
    """
    found, columns = {}, alphas(results)
    worse = {one.task for one in stands(results) if not one.open}
    for one in tradeoffs(results):
        rows, column = one.points(), columns[one.task]
        if column == ALPHA or rows["open"].sum() < 2:
            continue
        if one.task in worse:
            found[column] = f"the curve is higher {span(rows).replace('=', 'at')}"
        else:
            found[column] = f"{span(rows).removeprefix('= ')} cannot be told apart"
    return found


# -- in words --------------------------------------------------------------------------------------


def unsearched_sentences(results: Results) -> list[str]:
    """That these were not searched, and where the values that they have act all the same."""
    found, said = unsearched(results), []
    for parameter in found:
        task = parameter.rpartition(".")[2]
        why = ", where α does nothing" if parameter == f"{ALPHA}.{task}" else ""
        text = f"{name_of(parameter)} was not searched: {task} is first in every order of the search{why}."
        if any(not order.startswith(f"{task} > ") for order, _ in results.terms.compared_on):
            value = text_of(settings(results).loc[chosen(results), parameter])
            text += f" On final blocks that begin with another task it is {value}, which nothing chose."
        said.append(text)
    return said


def agreement_sentences(results: Results) -> list[str]:
    """Whether the recommended α are the best of the curves; for each that is not, by how much."""
    found = stands(results)
    if not found:
        return []
    apart = [one for one in found if not one.agrees]
    if not apart:
        return ["By the curves of what α trades, the mean final score is highest at these α."]
    said = "; ".join(f"for {one.task} at α = {text_of(one.best)}, {beside(one)}" for one in apart)
    rest = f" For {listing([one.task for one in found if one.agrees])} they agree." if found != apart else ""
    text = f"By the curves of what α trades, the mean final score is highest elsewhere: {said}.{rest}"
    if not FINAL_SCORES & set(results.objective):
        text += f" The search served {' and '.join(results.objective)}."
    return [text]


def beside(one: Stand) -> str:
    """`0.4 points (95 % CI −0.2 to 1.0) above the chosen 0.3: they cannot be told apart`"""
    if np.isnan(one.below[0]):
        return f"which no block compares with the chosen {text_of(one.used)}"
    return f"{points_of(one.below)} above the chosen {text_of(one.used)}{verdict(one)}"


def verdict(one: Stand) -> str:
    if np.isnan(one.below[1]):
        return ", in too few independent blocks to tell them apart"
    return f": they {'cannot' if one.open else 'can'} be told apart"


def trades(results: Results) -> list[tuple[dict[str, str], str]]:
    """Each curve's row in the report, and what is said of it."""
    return [
        (summary(found), " ".join([*sentences(found), *recommended(results, found.task)]))
        for found in tradeoffs(results)
    ]


def recommended(results: Results, task: str) -> list[str]:
    """Which α of the task is, beside what its curve says."""
    if alphas(results)[task] in unsearched(results):
        return [f"The search chose no α for it: {task} is first in every order of the search."]
    one = next((one for one in stands(results) if one.task == task), None)
    if one is None:
        return []
    if one.agrees:
        words = " too" if one.used == one.best else ", as good by this curve"
        return [f"Chosen was α = {text_of(one.used)}{words}."]
    if np.isnan(one.below[0]):
        return [f"Chosen was α = {text_of(one.used)}, which no block compares with that one."]
    return [f"Chosen was α = {text_of(one.used)}, by this curve {points_of(one.below)} lower{verdict(one)}."]
