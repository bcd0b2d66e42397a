"""What further work would most likely change, with what it would take; estimates, the largest first.

Each step has a gain in points of the headline metric:

    search      expected true score of the best of all settings minus that of the best of those judged, if
                the ones left are like them: r s · (d(n + m) - d(n)) / 2, s the standard deviation of their
                means, r the share of s² that lies between settings rather than being luck of the blocks, and
                d(n) the expected range of n normal values (Tippett 1925)
    blocks      half width of the headline difference's interval now, minus that after as many more blocks
                as an hour affords: t(f) e - t(f+k) e √(n/(n+k)), e the error of the paired differences so
                far and f its degrees of freedom (intervals.py), of n clusters; further blocks are others
    α           none is given, and the step comes last. What it adds to know the best of a few α hangs on how
                far they lie apart, which so few do not tell: estimates were off by factors of 0.4 to 1.7

Said against realised in simulations, of the search: 1.0 over studies in which 30 to 90 % of the variance lies
between settings, 0.7 to 1.3 at each of these; where it is 10 %, twice too much of very little
(test_next_steps.py). What is not known yet at all, a recommendation, a comparison or an interval, comes
before all of these.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from math import inf, nan
from typing import NamedTuple

import numpy as np

from dgg_ray.analysis.alpha_curves import tradeoffs
from dgg_ray.analysis.results import Hours, Results
from dgg_ray.analysis.run_table import (
    BLOCK,
    chosen,
    compared,
    family_of,
    final_split,
    final_table,
    headline,
    listing,
    text_of,
)
from dgg_ray.search.alpha_curve import Tradeoff
from dgg_ray.search.pruning import by_cluster
from dgg_ray.stats.formats import percent, signed
from dgg_ray.stats.intervals import FEWEST, clusters_of, expected_range, half_of, standard_error, ways_of
from dgg_ray.stats.power import needed

MOST = 3  # steps that are listed
SEEN = 0.0005  # of a score: what would change less is not seen in numbers with one digit of a percent
HOUR = 1.0
SEEDS = (
    "protocol.final_seeds in place of held_out compares on the search's own orders, on any number of seeds, "
    "and says nothing of others."
)
OTHERS = ", of orders that begin with other tasks"  # seeds of the same orders do not count as further ones
BEFOREHAND = (
    "Decide on their number beforehand: an interval that is looked at again and again until it excludes 0 "
    "does so too often."
)


class Step(NamedTuple):
    """gain: in the unit of scores, infinite where something is not known at all, 0 where it is not estimated;
    text: what, and why."""

    gain: float
    text: str


def sentences(results: Results) -> list[str]:
    """The steps with the largest expected change, the largest first; empty for a study without a stage.

    What goes beyond the study is left out where nothing would be seen of it."""
    if results.table.empty:
        return []
    blocks = [step for step in more_blocks(results) if step.gain >= SEEN]
    found = [*unfinished(results), *blocks, *more_alphas(results)]
    return [step.text for step in sorted(found, key=lambda step: -step.gain)[:MOST]]


def unfinished(results: Results) -> list[Step]:
    """What the study itself still has to do."""
    found = []
    (search, search_hours), (compare, compare_hours) = results.ahead.search, results.ahead.comparison
    if search:
        gain, share = best_of_all(results)
        text = f"Finish the search: about {search} stages are left, {taking(search_hours)}."
        if gain < SEEN and share == 0:
            text += " So far no difference between the settings judged could be told from luck."
        elif gain < SEEN:
            text += " The settings left are expected to add less than 0.1 points."
        elif np.isfinite(gain):
            text += f" If the settings left are like those judged, the best of all is {percent(gain)} points "
            text += "better, after shrinking for luck."
        else:
            text += " Until then no setting is chosen, or too few blocks are judged to tell settings' "
            text += "differences from luck."
        found.append(Step(gain, text))
    if compare:
        text = f"Finish the comparison: {compare} stages are left, {taking(compare_hours)}."
        found.append(
            Step(inf, text + " Until then the chosen setting and its baselines are not all compared.")
        )
    return found


def best_of_all(results: Results) -> tuple[float, float]:
    """(Gain of judging the settings that are left, `skill`'s share); infinite and nan where nothing tells."""
    search = results.search
    if search is None or search.count is None:
        return inf, nan
    table = np.array([[row[0] for row in c.rows] for c in search.feasible()])
    clusters = clusters_of(results.terms.chosen_on) or range(table.shape[-1])
    share, spread = skill(by_cluster(table, clusters)[0]) if len(table) > 2 else (np.nan, np.nan)
    if np.isnan(share):
        return inf, nan
    over = sum(c.state != "open" for c in search.candidates)
    more = max(search.count - over, 0)
    return share * spread * (expected_range(over + more) - expected_range(over)) / 2, share


def skill(table: np.ndarray) -> tuple[float, float]:
    """(Share of the variance of the settings' means that lies between settings, these means' deviation).

    table: (settings, clusters of blocks). 1 - 1/F of the two-way analysis of variance, at least 0; nan for
    fewer than 2 clusters. Where all means are equal there is nothing to share.
    """
    n, count = table.shape
    if count < 2:
        return float("nan"), float("nan")
    means = table.mean(axis=1)
    rest = table - means[:, None] - table.mean(axis=0) + table.mean()
    within = float((rest**2).sum()) / ((n - 1) * (count - 1))
    between = count * float(means.var(ddof=1))
    return (max(0.0, 1 - within / between) if between else 0.0), float(means.std(ddof=1))


def more_blocks(results: Results) -> list[Step]:
    """Blocks for the difference to the baseline that is nearest, in units of its error."""
    family = family_of(results, final_split(results))
    gaps_to = differences(results, headline(results))
    known = {
        label: (gaps, *standard_error(gaps, np.array(shared))) for label, (gaps, shared) in gaps_to.items()
    }
    found = {label: of for label, of in known.items() if of[1] > 1e-12}
    if not found:
        return []
    label = min(found, key=lambda label: abs(float(found[label][0].mean())) / found[label][1])
    gaps, error, freedom, n = found[label]
    mean, spread = float(gaps.mean()), error * n**0.5
    hours = results.ahead.block
    k = max(1, int(HOUR / hours[0])) if hours and hours[0] > 0 else 1
    room = inf if results.ahead.room is None else results.ahead.room
    k = min(k, 9 * n, room or k)  # beyond ten times the blocks nothing is gained by saying more
    level = 1 - 0.05 / family  # of all baselines at once, as the verdict has it
    now, then = half_of(error, freedom, level), half_of(spread / (n + k) ** 0.5, freedom + k, level)
    enough = needed(mean, spread) if mean else None
    seeds_of: dict[int, set[str]] = {}
    for order, seed in results.terms.compared_on:
        seeds_of.setdefault(seed, set()).add(order)
    alone = results.terms.held_out or all(len(orders) < 2 for orders in seeds_of.values())
    others = "" if alone else OTHERS
    ci = "95 %" if family < 2 else "simultaneous 95 %"
    so_far = f"{label} ({signed(mean)} points over {n} independent blocks)"
    change = f"narrows from ±{percent(now)} to about ±{percent(then)}"
    if n < FEWEST:
        now, change = inf, f"can be given then, of about ±{percent(then)}"
    text = (
        f"Compare on {k} more block{'s' * (k > 1)}{others}, {taking(times(hours, k))}: the {ci} interval of "
        f"the difference to {so_far} {change}."
    )
    if room == 0:
        text = f"Compare with {so_far} on more seeds: no order is left for a further block. {SEEDS}"
    if enough is not None and enough > n:
        text += " To see a true difference of that size with 80 % power takes "
        text += f"{enough} independent blocks in all."
    if enough is not None and enough > n + room > n:
        text += f" The search left orders for {room} more. {SEEDS}"
    return [Step(now - then, f"{text} {BEFOREHAND}")]


def differences(results: Results, metric: str) -> dict[str, tuple[np.ndarray, tuple[tuple[int, int], ...]]]:
    """Label → the chosen setting minus this baseline, on each final block that both finished, and their
    clusters (`intervals.ways_of`); baselines without such a block are left out.

    Without joint training: it is a reference from above, nobody asks how sure its lead is."""
    table = final_table(results, final_split(results))
    table = table[~table["together"].astype(bool)]
    scores = {s: group.set_index(BLOCK)[metric].astype(float) for s, group in table.groupby("setting")}
    ours = scores.get(chosen(results))
    if ours is None:
        return {}
    labels = {label: s for label, s in compared(results).items() if s in scores and s != chosen(results)}
    gaps = {label: (ours - scores[s]).dropna() for label, s in labels.items()}
    return {label: (gap.to_numpy(), ways_of(tuple(gap.index))) for label, gap in gaps.items() if len(gap)}


def more_alphas(results: Results) -> list[Step]:
    """The task whose α can be told apart least."""
    found = [pair for tradeoff in tradeoffs(results) if (pair := undecided(results, tradeoff))]
    return [max(found, key=lambda pair: pair[0])[1]] if found else []


def undecided(results: Results, tradeoff: Tradeoff) -> tuple[float, Step] | None:
    """(How far the bands reach above the best, which α of a task to try on further blocks); None where the
    best is known, or no band reaches where it would be seen."""
    rows = tradeoff.points()
    other = rows[rows["open"] & ~rows["best"] & (rows["gain_high"] >= SEEN)]
    if other.empty:
        return None
    best = text_of(rows.loc[rows["best"], "alpha"].iloc[0])
    values = sorted(other["alpha"])
    shown = listing([*map(text_of, values)])
    stages = len(values) + 1
    hours = times(results.ahead.stage, -(-stages // results.ahead.groups))
    text = (
        f"Try α = {shown} for {tradeoff.task} beside {best} on another order or seed, {taking(hours)} "
        f"({stages} stages, if their beginning is there): they cannot be told apart."
    )
    return float(other["gain_high"].max()), Step(0.0, text)


def times(hours: Hours | None, count: int) -> Hours | None:
    return (hours[0] * count, hours[1] * count, hours[2] * count) if hours else None


def taking(hours: Hours | None) -> str:
    """`about 2.1 hours (95 %: 1.8 to 2.4)`"""
    if hours is None:
        return "of unknown length (nothing was measured on such workers; `dgg-ray profile` does it)"
    units = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}
    unit, factor = next((u for u in units.items() if hours[0] * u[1] >= 1), ("seconds", 3600.0))
    mean, low, high = (f"{hour * factor:.2g}" for hour in hours)
    return f"about {mean} {unit} (95 %: {low} to {high})"
