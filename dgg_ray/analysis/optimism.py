"""Trust in the search's own scores, in sentences: the winner's optimism, constraints, pruning, the audit.

The winner was chosen because its score was high on some blocks and one split, so that score is too high on
average. Its gap to the test score on the final blocks has two parts:

    search score − test, final  =  (search score − same split, final)  +  (same split, final − test, final)
                                                choice                                split

The search score is one known number. The uncertainty is about the scores on new orders and seeds. So on
held-out blocks the interval of the gap is that of the final mean, with its sign reversed: Student's t over
blocks that took no part in the choice, which holds whatever was chosen. Adding the spread over the search's
blocks, as Welch's interval does, would count chance that has already been realised. Without held-out blocks
the final mean is not independent of the choice. Then only the second part, paired within blocks, has an
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dgg_ray.analysis.comparison_tables import interval_of_scores, mean_gap
from dgg_ray.analysis.results import AuditedState, BlockName, Results, SearchSummary
from dgg_ray.analysis.run_table import BLOCK, chosen_setting, final_split, headline_metric, runs
from dgg_ray.config.sections import Constraint
from dgg_ray.core.phrases import join_names, plural
from dgg_ray.search.objective import difference_range, metric_range
from dgg_ray.stats.formats import (
    CI,
    EstimateStyle,
    format_difference,
    format_interval_suffix,
    format_percent,
    format_signed,
)
from dgg_ray.stats.intervals import (
    MIN_CLUSTERS,
    UNBOUNDED,
    Difference,
    Interval,
    mean_interval,
    two_way_clusters,
)

SIGNED = EstimateStyle(format_signed)


class Optimism(NamedTuple):
    """The excess of the winner's score in the search over its final score, in two parts.

    search_score: the winner's mean on the blocks and the split on which it was chosen.
    gap, choice_part, split_part: the gap and its parts, in [-1, 1]. `split_part` is None where settings were
        chosen on test.
    """

    search_score: float
    gap: Interval
    choice_part: Interval
    split_part: Difference | None


def optimism(results: Results) -> Optimism | None:
    """Measure the optimism of the winner's score.

    It is None where nothing was searched, or where the winner has no test score on the final blocks yet.
    """
    setup = results.setup
    if results.search is None or chosen_setting(results) is None:
        return None
    search_score = chosen_scores(results, setup.selection_split, setup.search_blocks).mean()
    final = chosen_scores(results, setup.selection_split, setup.final_blocks)
    final_test = chosen_scores(results, "test", setup.final_blocks)
    if np.isnan(search_score) or final_test.empty or final.empty:
        return None
    metric = headline_metric(results)
    scale, split_gaps = metric_range(metric), (final - final_test).dropna()
    split_part = None
    if setup.selection_split != "test":
        split_part = mean_gap(
            split_gaps, difference_range(metric), clusters=two_way_clusters((*split_gaps.index,))
        )
    return Optimism(
        float(search_score),
        gap_below(float(search_score), interval_of_scores(final_test, scale), setup.held_out),
        gap_below(float(search_score), interval_of_scores(final, scale), setup.held_out),
        split_part,
    )


def gap_below(known: float, mean: Interval, independent: bool) -> Interval:
    """Return how far a mean lies below a known number; the interval is nan unless the two are independent."""
    low, high = (known - mean.high, known - mean.low) if independent else (np.nan, np.nan)
    return Interval(known - mean.mean, low, high, mean.n, tuple(known - value for value in mean.values))


def chosen_scores(results: Results, split: str, blocks: tuple[BlockName, ...], metric: str = "") -> pd.Series:
    """Return the winner's score on each finished one of these blocks, by default in the headline metric."""
    return setting_scores(results, chosen_setting(results), split, blocks, metric or headline_metric(results))


def setting_scores(
    results: Results, setting: str | None, split: str, blocks: tuple[BlockName, ...], metric: str
) -> pd.Series:
    """Return a setting's score on each of these blocks that it finished, indexed by block."""
    table = runs(results, split)
    scores = table[table["setting"] == setting].set_index(BLOCK)[metric].astype(float)
    return scores[scores.index.isin(list(blocks))].dropna()


# -- the choice in words ---------------------------------------------------------------------------


def selection_split_warning(results: Results) -> list[str]:
    """Warn that settings were chosen on the test split; the report prints it in bold."""
    if results.setup.selection_split != "test" or results.search is None:
        return []
    new_blocks = ", on new blocks too" if results.setup.held_out else ""
    return [
        "Settings were chosen on the test split (protocol.selection_split: test). Its examples are not "
        f"unseen, so scores on it are optimistic{new_blocks}."
    ]


def search_progress(results: Results) -> list[str]:
    """Say how far the search is, while it is running."""
    search = results.search
    if search is None or search.finished:
        return []
    pruned = len(search.in_state("pruned"))
    if search.expected_settings is not None:
        finished = len(search.in_state("evaluated")) + pruned
        text = f"{finished} of about {search.expected_settings} settings are finished"
        return [f"The search is not over: {text}{f', {pruned} of them pruned' if pruned else ''}."]
    depths = {depth_summary.depth for depth_summary in search.depths}
    if len(depths) < search.tasks - 1:
        return [
            f"The search is not over: settings are decided for {len(depths)} of {search.tasks - 1} "
            "positions in the orders after the first, and none has been run to the end."
        ]
    return [
        "The search is not over: every position is decided once, and the choice is being refined and audited."
    ]


def optimism_sentences(results: Results) -> list[str]:
    """State the optimism of the winner's score, its two parts, and whether the comparison is independent."""
    measured, setup = optimism(results), results.setup
    if measured is None:
        return []
    blocks = plural(len(setup.search_blocks), "block")
    text = (
        f"Where it was chosen ({blocks}, {setup.selection_split} split) the setting scored "
        f"{format_percent(measured.search_score)} %, {describe_excess(measured.gap)} than on test on the "
        "final blocks"
    )
    if measured.split_part is not None:
        text += f": {format_part(measured.choice_part)} from the choice and "
        text += f"{format_part(measured.split_part)} from the split"
    if setup.held_out:
        return [f"{text}. The final blocks took no part in the choice."]
    if set(setup.final_blocks) <= set(setup.search_blocks):
        reason = "The final blocks are those of the choice"
    else:
        reason = "The final blocks have the orders of the choice"
    return [
        f"{text}. {reason}, so the comparison is not independent of it. Set protocol.held_out for an "
        "independent one."
    ]


def describe_excess(gap: Interval) -> str:
    """Describe a gap: `2.8 points (95 % CI 0.4 to 5.2) higher`, without the interval where there is none."""
    sign = 1 if gap.mean >= 0 else -1
    points = (
        f"{format_percent(sign * gap.mean)} points" if np.isnan(gap.low) else format_difference(gap, sign)
    )
    return f"{points} {'higher' if sign > 0 else 'lower'}"


def format_part(gap: Interval | Difference) -> str:
    """Format a part of the gap in points: `+1.8 (95 % CI +0.4 to +3.2)`."""
    return f"{format_signed(gap.mean)}{format_interval_suffix(gap.low, gap.high, SIGNED)}"


def uncompared_sentences(results: Results, printed: dict[str, str]) -> list[str]:
    """Name the baselines that are not compared: the winner itself, or those whose settings are not known yet.

    printed: label → the words that are printed for it.
    """
    chosen = chosen_setting(results)
    if chosen is None:
        return []
    sentences = []
    identical = [
        printed.get(label, label) for label, setting in results.baselines.items() if setting == chosen
    ]
    unknown = [
        printed.get(label, label) for label in results.setup.baselines if label not in results.baselines
    ]
    if identical:
        sentences.append(
            f"The chosen setting is itself {join_names(identical)}, so that comparison is left out."
        )
    if unknown:
        sentences.append(f"Not compared yet, because their settings are not known: {join_names(unknown)}.")
    return sentences


def pruning_sentences(search: SearchSummary) -> list[str]:
    """Say how many settings were pruned, how early, and how many stages that saved."""
    pruned = search.in_state("pruned")
    if not pruned:
        return []
    blocks = np.mean([len(c.block_values) + c.tasks_in_next_block / search.tasks for c in pruned])
    return [
        f"{len(pruned)} of {len(search.candidates)} settings were pruned, after {blocks:.1f} of "
        f"{search.blocks} blocks on average; that saved about {search.stages_saved} stages."
    ]


# -- constraints -----------------------------------------------------------------------------------


def constraint_sentences(results: Results) -> list[str]:
    """Say whether the winner meets the search's constraints, where it was chosen and on the final blocks."""
    search, chosen = results.search, chosen_setting(results)
    if search is None or not search.constraints:
        return []
    winner = next((c for c in search.in_state("evaluated") if c.setting == chosen), None)
    if winner is None:
        return []
    sentences = []
    if not search.feasible():
        sentences.append(
            "No evaluated setting meets all constraints; the one that violates them least was chosen."
        )
    margins = np.array(winner.block_values)[:, len(search.objective) :]
    for text, margin in zip(search.constraints, margins.T, strict=True):
        constraint = Constraint.parse(text)
        assert constraint is not None
        in_search = constraint_margin(margin, constraint, selection_clusters(results, len(margin)))
        sentences.append(
            f"Constraint {text}: {results.setup.selection_split} where the setting was chosen: "
            f"{describe_margin(in_search)}; {describe_final_margin(results, constraint)}."
        )
    return sentences


def constraint_margin(
    margin: ArrayLike, constraint: Constraint, clusters: ArrayLike
) -> Interval | Difference:
    """Return the mean margin of a constraint, positive where it is met; no bound exceeds its range."""
    if constraint.baseline:
        low, high = (end - constraint.bound for end in difference_range(constraint.metric))
        return mean_gap(margin, (low, high), clusters=clusters)
    low, high = (end - constraint.bound for end in metric_range(constraint.metric))
    return mean_interval(margin, clusters=clusters, within=(low, high))


def describe_final_margin(results: Results, constraint: Constraint) -> str:
    """Say whether the winner meets one constraint on the final blocks."""
    split, blocks = final_split(results), results.setup.final_blocks
    margin = chosen_scores(results, split, blocks, constraint.metric) - constraint.bound
    if constraint.baseline:
        if constraint.baseline not in results.baselines:
            return (
                f"on the final blocks it cannot be checked, because {constraint.baseline} is not among the "
                "baselines"
            )
        baseline = results.baselines[constraint.baseline]
        margin = (margin - setting_scores(results, baseline, split, blocks, constraint.metric)).dropna()
    if margin.empty:
        return "on the final blocks it is not known yet"
    final_margin = constraint_margin(margin, constraint, two_way_clusters(tuple(margin.index)))
    return f"{split} on the final blocks: {describe_margin(final_margin)}"


def describe_margin(margin: Interval | Difference) -> str:
    """Describe a margin: `met by 1.2 points (95 % CI −0.3 to 2.7), which is not significant`."""
    sign = 1 if margin.mean >= 0 else -1
    text = f"{'met' if sign > 0 else 'violated'} by {format_difference(margin, sign)}"
    return text + (", which is not significant" if margin.low < 0 < margin.high else "")


# -- the audit -------------------------------------------------------------------------------------


def audit_sentences(results: Results) -> list[str]:
    """Say how many dropped branches ended above the best one kept, and whether chance explains it."""
    audited = results.search.audited_states if results.search else ()
    if not audited:
        return []
    better = [state for state in audited if state.preferred]
    gaps = np.mean([state.block_gaps for state in audited], axis=0)
    average = mean_gap(
        gaps, difference_range(*results.objective), clusters=selection_clusters(results, len(gaps))
    )
    sentences = [
        f"Audit: {len(audited)} of the branches that the search dropped were run to the end, and "
        f"{len(better) or 'none'} of them looked better than the best that was kept. On average they ended "
        f"{describe_distance(average)}, on the blocks on which settings were chosen. There the best that "
        "was kept profits most from chance, so these differences are biased in its favour."
    ]
    if better:
        sentences += luck_sentences(results, better)
        sentences.append("Audited settings count among the settings evaluated.")
    return sentences


def luck_sentences(results: Results, better: Sequence[AuditedState]) -> list[str]:
    """Say whether the branches that looked better show that the choice was wrong."""
    audited = len(results.search.audited_states) if results.search else 0
    within = difference_range(*results.objective)
    leads = [
        audit_lead(state.block_gaps, audited, selection_clusters(results, len(state.block_gaps)), within)
        for state in better
    ]
    significant = [i for i, lead in enumerate(leads) if is_significant_lead(lead, audited)]
    best = max(significant or range(len(better)), key=lambda i: leads[i].mean)
    lead, state = leads[best], better[best]
    interval_name = f"{CI}of all {audited} at once " if audited > 1 else CI
    branch = f"dropped at task {state.depth} of the orders, ended {describe_distance(lead, interval_name)}"
    if np.isnan(lead.low):
        reason = untestable_reason(lead, blocks=len(state.block_gaps))
        sentence = f"The best of them, {branch}. It looked better, but {reason} cannot rule out chance."
    elif not significant:
        sentence = f"The best of them, {branch}. It looked better, which may be chance."
    else:
        sentence = (
            f"For {len(significant)} of them that is more than chance: there the choice task by task was "
            f"probably wrong. The best, {branch}."
        )
    return [sentence, *held_out_sentences(results, state)]


def untestable_reason(lead: Difference, blocks: int) -> str:
    """Name the blocks or differences for which a lead has no interval."""
    if lead.n < 2:
        return "one block" if blocks < 2 else "blocks that all begin alike"
    return "equal differences" if lead.n >= MIN_CLUSTERS else "two independent blocks"


def held_out_sentences(results: Results, state: AuditedState) -> list[str]:
    """Give the same difference on held-out blocks, where the choice had no influence, if both ran there."""
    setup, split = results.setup, final_split(results)
    if not setup.held_out:
        return []
    audited_scores, kept_scores = (
        cast(
            pd.Series,
            sum(setting_scores(results, setting, split, setup.final_blocks, m) for m in results.objective),
        )
        for setting in (state.setting, state.best_kept)
    )
    gaps = (audited_scores - kept_scores).dropna() / len(results.objective)
    if gaps.empty:
        return []
    lead = mean_gap(gaps, difference_range(*results.objective), clusters=two_way_clusters(tuple(gaps.index)))
    return [
        f"On the {split} split of {plural(lead.n, 'held-out block')}, which took no part in the choice, it "
        f"ended {describe_distance(lead)}."
    ]


def audit_lead(
    gaps: Sequence[float],
    audited: int,
    clusters: ArrayLike | None = None,
    within: tuple[float, float] = UNBOUNDED,
) -> Difference:
    """Return the mean gap over blocks; its interval holds for all audited branches at once (Bonferroni)."""
    return mean_gap(gaps, within, 1 - 0.05 / audited, clusters)


def selection_clusters(results: Results, count: int) -> tuple[tuple[int, int], ...]:
    """Return the clusters of the first `count` blocks on which settings were chosen."""
    return two_way_clusters(results.setup.search_blocks[:count])


def is_significant_lead(lead: Difference, audited: int) -> bool:
    """Return whether a lead is significantly above 0.

    It is not where all blocks have the same gap: coarse scores can coincide by chance, and nothing can be
    tested.
    """
    return lead.mean > 0 and lead.p < 0.05 / audited


def describe_distance(gap: Interval | Difference, interval_name: str = CI) -> str:
    """Describe a gap to the best that was kept: `1.2 points (95 % CI 0.3 to 2.1) below it`."""
    sign = 1 if gap.mean >= 0 else -1
    return f"{format_difference(gap, sign, interval_name)} {'above' if sign > 0 else 'below'} it"
