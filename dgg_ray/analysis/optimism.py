"""How far what the search saw can be trusted: its score's optimism, its constraints, race and audit.

The winner was picked for its score on some blocks and a split, so that score is too good. The gap to the
test score on the final blocks has two parts:

    seen − test, final  =  (seen − same split, final)  +  (same split, final − test, final)
                                   choice                             split

What the search saw is one known number, and what is not known is what new orders and seeds would give. So
on held-out blocks the gap's interval is that of the final mean, turned round: Student's t over blocks that
took no part in the choice, which holds whatever was chosen. To add the spread over the search's blocks, as
Welch's interval does, would count luck that has already happened. Without held-out blocks the final mean
is not independent of the choice, so only the second part, paired within blocks, has an interval.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dgg_ray.analysis.results import Audited, Results, Searched
from dgg_ray.analysis.run_table import BLOCK, chosen, final_split, headline, listing, mean_over, runs
from dgg_ray.config.sections import Constraint
from dgg_ray.search.objective import gap_range, range_of
from dgg_ray.stats.formats import CI, interval_text, percent, points_text, signed
from dgg_ray.stats.intervals import (
    ANYWHERE,
    FEWEST,
    Difference,
    Interval,
    mean_interval,
    paired_difference,
    ways_of,
)


class Optimism(NamedTuple):
    """seen: the winner's mean where it was chosen; test: on test, on the final blocks.

    total, choice, split: the gap and its parts, in [-1, 1]; split is None where settings were chosen on test.
    """

    seen: float
    test: Interval
    total: Interval
    choice: Interval
    split: Difference | None


def optimism(results: Results) -> Optimism | None:
    """None where nothing was searched, or the winner has no test score on the final blocks."""
    terms, on = results.terms, results.terms.selection_split
    if results.search is None or chosen(results) is None:
        return None
    seen = scores(results, on, terms.chosen_on).mean()
    again, test = scores(results, on, terms.compared_on), scores(results, "test", terms.compared_on)
    if np.isnan(seen) or test.empty or again.empty:
        return None
    metric = headline(results)
    parts, scale = (again - test).dropna(), range_of(metric)
    return Optimism(
        float(seen),
        mean_over(test, scale),
        below(float(seen), mean_over(test, scale), terms.held_out),
        below(float(seen), mean_over(again, scale), terms.held_out),
        None if on == "test" else of_gaps(parts, gap_range(metric), clusters=ways_of((*parts.index,))),
    )


def of_gaps(
    gaps: ArrayLike,
    within: tuple[float, float],
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Difference:
    """The mean of differences, and the test of 0; no bound lies beyond what they can be."""
    return paired_difference(gaps, np.zeros(len(np.asarray(gaps))), level, clusters, within)


def below(seen: float, of: Interval, independent: bool) -> Interval:
    """How far a mean lies below a known number."""
    low, high = (seen - of.high, seen - of.low) if independent else (np.nan, np.nan)
    return Interval(seen - of.mean, low, high, of.n, tuple(seen - value for value in of.values))


def scores(results: Results, split: str, blocks: tuple[tuple[str, int], ...], metric: str = "") -> pd.Series:
    """The winner's score in each of these blocks that it finished."""
    return of_setting(results, chosen(results), split, blocks, metric or headline(results))


def of_setting(
    results: Results, setting: str | None, split: str, blocks: tuple[tuple[str, int], ...], metric: str
) -> pd.Series:
    table = runs(results, split)
    mine = table[table["setting"] == setting].set_index(BLOCK)[metric].astype(float)
    return mine[mine.index.isin(list(blocks))].dropna()


# -- in words --------------------------------------------------------------------------------------


def warning(results: Results) -> list[str]:
    """That settings were chosen on the test split; the report prints it in bold."""
    if results.terms.selection_split != "test" or results.search is None:
        return []
    return [
        "Settings were chosen on the test split (protocol.selection_split: test): its examples are not unseen, so "
        "scores on it are optimistic" + (", on new blocks too." if results.terms.held_out else ".")
    ]


def progress(results: Results) -> list[str]:
    """How far the search is, while it is not over."""
    search = results.search
    if search is None or search.finished:
        return []
    judged, given_up = len(search.of("judged")), len(search.of("given up"))
    if search.count is not None:
        text = f"{judged + given_up} of about {search.count} settings are judged"
        return [f"The search is not over: {text}{f', {given_up} of them pruned' if given_up else ''}."]
    places = {level.place for level in search.levels}
    if len(places) < search.tasks - 1:
        return [
            f"The search is not over: settings are decided for {len(places)} of {search.tasks - 1} places of "
            "the orders after the first, and none has been run to the end."
        ]
    return ["The search is not over: every place is decided once, the choice is being revised and audited."]


def optimism_sentences(results: Results) -> list[str]:
    """The gap, its two parts, and whether the comparison is independent of the choice."""
    found, terms = optimism(results), results.terms
    if found is None:
        return []
    blocks = f"{len(terms.chosen_on)} block{'s' * (len(terms.chosen_on) > 1)}"
    text = (
        f"On the {blocks} and the {terms.selection_split} split on which it was chosen it scored "
        f"{percent(found.seen)} %, {over(found.total)} than on test on the final blocks"
    )
    if found.split is not None:
        text += f": {part(found.choice)} of choice and {part(found.split)} of split"
    same = set(terms.compared_on) <= set(terms.chosen_on)
    if terms.held_out:
        end = "The final blocks took no part in the choice."
    elif same:
        end = "The final blocks are those of the choice, so the comparison is not independent of it."
    else:
        end = "The final blocks have the orders of the choice, so the comparison is not independent of it."
    advice = "" if terms.held_out else " Set protocol.held_out for one that is."
    return [f"{text}. {end}{advice}"]


def over(gap: Interval) -> str:
    """`2.8 points (95 % CI 0.4 to 5.2) higher`, or the points alone where there is no interval."""
    sign = 1 if gap.mean >= 0 else -1
    points = f"{percent(sign * gap.mean)} points" if np.isnan(gap.low) else points_text(gap, sign)
    return f"{points} {'higher' if sign > 0 else 'lower'}"


def part(gap: Interval | Difference) -> str:
    return signed(gap.mean) if np.isnan(gap.low) else interval_text(*gap[:3], gap.n, form=signed)


def constraint_sentences(results: Results) -> list[str]:
    """Whether the winner keeps the search's constraints, where it was chosen and on the final blocks."""
    search, setting = results.search, chosen(results)
    mine = next((c for c in search.of("judged") if c.setting == setting), None) if search else None
    if search is None or mine is None or not search.constraints:
        return []
    found = []
    if not search.feasible():
        found.append(
            "No setting judged satisfies all constraints; the one that breaks them least was chosen."
        )
    margins = np.array(mine.rows)[:, len(search.objective) :]
    for text, margin in zip(search.constraints, margins.T, strict=True):
        constraint = Constraint.parse(text)
        assert constraint is not None
        seen = kept_by(margin, constraint, shared(results, len(margin)))
        said = f"{results.terms.selection_split} where it was chosen: {verdict(seen)}"
        found.append(f"Constraint {text}: {said}; {on_final(results, constraint)}.")
    return found


def kept_by(margin: ArrayLike, constraint: Constraint, clusters: ArrayLike) -> Interval | Difference:
    """By how much a constraint is kept on average; no bound lies beyond what the margin can be."""
    of = gap_range if constraint.baseline else range_of
    low, high = (end - constraint.bound for end in of(constraint.metric))
    if constraint.baseline:
        return of_gaps(margin, (low, high), clusters=clusters)
    return mean_interval(margin, clusters=clusters, within=(low, high))


def on_final(results: Results, constraint: Constraint) -> str:
    """Of one constraint."""
    split, blocks = final_split(results), results.terms.compared_on
    margin = scores(results, split, blocks, constraint.metric) - constraint.bound
    if constraint.baseline:
        if constraint.baseline not in results.baselines:
            return (
                f"on the final blocks it cannot be checked, {constraint.baseline} is not among the baselines"
            )
        baseline = results.baselines[constraint.baseline]
        margin = (margin - of_setting(results, baseline, split, blocks, constraint.metric)).dropna()
    if margin.empty:
        return "on the final blocks it is not known yet"
    kept = kept_by(margin, constraint, ways_of(tuple(margin.index)))
    return f"{split} on the final blocks: {verdict(kept)}"


def verdict(margin: Interval | Difference) -> str:
    """`kept by 1.2 points (95 % CI -0.3 to 2.7)`"""
    sign = 1 if margin.mean >= 0 else -1
    said = f"{'kept' if sign > 0 else 'broken'} by {points_text(margin, sign)}"
    return said + (", which could be either" if margin.low < 0 < margin.high else "")


def same_sentences(results: Results, words: dict[str, str]) -> list[str]:
    """Rivals that are not compared: the winner itself, or not known yet. words: label → as it is printed."""
    setting, found = chosen(results), []
    if setting is None:
        return []
    same = [words.get(label, label) for label, baseline in results.baselines.items() if baseline == setting]
    waiting = [words.get(label, label) for label in results.terms.baselines if label not in results.baselines]
    if same:
        found.append(f"The setting chosen is itself {listing(same)}: there is nothing to compare.")
    if waiting:
        found.append(f"Not compared yet, as their settings are not known: {listing(waiting)}.")
    return found


def race_sentences(search: Searched) -> list[str]:
    """How many settings were given up, how early, and what that saved."""
    gone = search.of("given up")
    if not gone:
        return []
    after = np.mean([len(c.rows) + c.tasks / search.tasks for c in gone])
    return [
        f"{len(gone)} of {len(search.candidates)} settings were pruned, after {after:.1f} of "
        f"{search.blocks} blocks on average; that saved about {search.saved} stages."
    ]


def audit_sentences(results: Results) -> list[str]:
    """How many branches that were dropped looked better than what was kept, and whether luck can do that."""
    found = results.search.audited if results.search else ()
    if not found:
        return []
    better = [a for a in found if a.better]
    count = f"{len(better) or 'none'} of them looked better than the best that was kept"
    gaps = np.mean([a.gaps for a in found], axis=0)
    average = of_gaps(gaps, gap_range(*results.objective), clusters=shared(results, len(gaps)))
    said = [
        f"Audit: {len(found)} of the branches that were dropped on the way were finished, and {count}. On "
        f"average they ended {away(average)}, on the blocks on which settings were chosen: there what was "
        "kept is the luckiest, so these differences lean towards it."
    ]
    if better:
        said += [*luck(results, better), "What was audited counts among the settings judged."]
    return said


def luck(results: Results, better: Sequence[Audited]) -> Iterator[str]:
    """Whether the choice was wrong, of the branches that looked better."""
    audited = len(results.search.audited) if results.search else 0
    within = gap_range(*results.objective)
    leads = [lead(a.gaps, audited, shared(results, len(a.gaps)), within) for a in better]
    sure = [i for i, of in enumerate(leads) if wrong(of, audited)]
    best = max(sure or range(len(better)), key=lambda i: leads[i].mean)
    of = leads[best]
    ci = f"{CI}of all {audited} at once " if audited > 1 else CI
    dropped = f"dropped at task {better[best].place} of the orders, ended {away(of, ci)}"
    if np.isnan(of.low):
        few = "equal differences" if of.n >= FEWEST else "two independent blocks"
        if of.n < 2:
            few = "one block" if len(better[best].gaps) < 2 else "blocks that all begin alike"
        yield f"The best of them, {dropped}: it looked better, and {few} cannot tell that from luck."
    elif not sure:
        yield f"The best of them, {dropped}: it looked better, which may be luck."
    else:
        yield (
            f"For {len(sure)} of them that is more than luck: there the choice task by task was wrong. "
            f"The best, {dropped}."
        )
    yield from unseen(results, better[best])


def unseen(results: Results, branch: Audited) -> Iterator[str]:
    """The same difference on held-out blocks, where the comparison has both: there luck has no part."""
    terms, split = results.terms, final_split(results)
    if not terms.held_out:
        return
    mine, kept = (
        sum(of_setting(results, setting, split, terms.compared_on, m) for m in results.objective)
        for setting in (branch.setting, branch.kept)
    )
    gaps = (mine - kept).dropna() / len(results.objective)
    if len(gaps):
        of = of_gaps(gaps, gap_range(*results.objective), clusters=ways_of(tuple(gaps.index)))
        yield (
            f"On the {split} split of {of.n} held-out block{'s' * (of.n > 1)}, which took no part in the "
            f"choice, it ended {away(of)}."
        )


def lead(
    gaps: Sequence[float],
    audited: int,
    clusters: ArrayLike | None = None,
    within: tuple[float, float] = ANYWHERE,
) -> Difference:
    """Mean gap over the blocks; its interval holds for all audited branches at once (Bonferroni)."""
    return of_gaps(gaps, within, 1 - 0.05 / audited, clusters)


def shared(results: Results, count: int) -> tuple[tuple[int, int], ...]:
    """Clusters of the first blocks on which settings were chosen."""
    return ways_of(results.terms.chosen_on[:count])


def wrong(of: Difference, audited: int) -> bool:
    """Whether it lies above 0 beyond luck. Not where the blocks are alike to the last digit: coarse scores
    can be that by chance, and nothing can be tested."""
    return of.mean > 0 and of.p < 0.05 / audited


def away(gap: Interval | Difference, ci: str = CI) -> str:
    """`1.2 points (95 % CI 0.3 to 2.1) below it`"""
    sign = 1 if gap.mean >= 0 else -1
    return f"{points_text(gap, sign, ci)} {'above' if sign > 0 else 'below'} it"
