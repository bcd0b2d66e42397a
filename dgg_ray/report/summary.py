"""A study's findings in sentences: which setting to use, how certain that is, and what is unknown."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray.analysis import hardware_drift
from dgg_ray.analysis.alpha_curves import curve_agreement_sentences, unsearched_sentences
from dgg_ray.analysis.comparison_tables import blocks_of_rows, compare
from dgg_ray.analysis.decision_sentences import decision_sentences
from dgg_ray.analysis.optimism import (
    constraint_sentences,
    optimism_sentences,
    search_progress,
    selection_split_warning,
    uncompared_sentences,
)
from dgg_ray.analysis.order_sentences import order_sentences
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen_setting,
    final_split,
    final_table,
    headline_metric,
    printed_labels,
    settings_by_label,
)
from dgg_ray.analysis.tuning import tuning_sentences
from dgg_ray.analysis.verdict import BASELINE_NAMES, METRIC_LABELS, verdict
from dgg_ray.core import error_records
from dgg_ray.core.phrases import plural
from dgg_ray.stats.formats import (
    format_on_fixed_orders,
    format_p_value,
    format_paired_difference,
    format_percent,
)
from dgg_ray.stats.intervals import MIN_CLUSTERS

MOST_ERRORS = 5  # that a summary quotes


def summary_sentences(results: Results) -> list[str]:
    """List the verdict, its limits and the comparison behind it, a sentence each."""
    finding = verdict(results)
    return [
        finding.headline,
        *finding.support,
        *notice_sentences(results),
        *failure_sentences(results),
        *detail_sentences(results),
    ]


def notice_sentences(results: Results) -> list[str]:
    """List what a reader must not miss: the choice of settings, an open or cut search, drift, the budget."""
    machines = hardware_drift.drift_warnings(results.hardware)
    return [
        *selection_split_warning(results),
        *search_progress(results),
        *decision_sentences(results),
        *machines,
        *budget_sentences(results),
    ]


def detail_sentences(results: Results) -> list[str]:
    """List the comparison and what is uncertain about it; nothing before a setting has been chosen."""
    if chosen_setting(results) is None:
        return []
    split, notices = final_split(results), notice_sentences(results)
    return [
        *unsearched_sentences(results),
        *tuning_sentences(results),
        *comparison_sentences(results, split),
        *uncompared_sentences(results, printed_labels(results)),
        *curve_agreement_sentences(results),
        *constraint_sentences(results),
        *optimism_sentences(results),
        *order_sentences(results, split),
        *(line for line in hardware_drift.drift_sentences(results.hardware) if line not in notices),
    ]


def comparison_sentences(results: Results, split: str) -> list[str]:
    """Give the paired difference to each baseline, over other orders and on these orders alone."""
    metric = headline_metric(results)
    rows = compare(results, split)
    rows = rows[rows["metric"] == metric].set_index("label")
    own_rows = rows[rows["setting"] == chosen_setting(results)]
    if own_rows.empty or np.isnan((own := own_rows.iloc[0])["score"]):
        return []
    sentences, others = [], rows.drop(index=own.name)
    if own["n"] < MIN_CLUSTERS:
        few = "is only 1 independent block" if own["n"] == 1 else f"are only {own['n']} independent blocks"
        sentences.append(
            f"No interval can be given: there {few}, and {MIN_CLUSTERS} are needed. "
            f"{advice_for_narrower_intervals(results)}"
        )
    if split != "test":
        sentences.append("The test split has not been evaluated.")
        if results.parameters:
            sentences.append(f"Settings were chosen on the {split} split, so the score is optimistic.")
    if others.empty:
        sentences.append("The setting was compared with no other strategy: this study has no baselines.")
    sentences += [
        baseline_sentence(label, row, METRIC_LABELS.get(metric, metric)) for label, row in others.iterrows()
    ]
    return sentences + fixed_order_sentences(rows, own, METRIC_LABELS.get(metric, metric))


def advice_for_narrower_intervals(results: Results) -> str:
    """Say how to add independent blocks to the study."""
    if results.setup.held_out:
        return "Increase protocol.held_out to add blocks."
    return (
        "To add blocks, add orders that begin with other tasks, seeds if there is only one order, or "
        "held-out blocks (protocol.held_out)."
    )


def baseline_sentence(label: object, row: pd.Series, metric: str) -> str:
    """Give the paired difference to one baseline, and whether it is significant."""
    baseline = BASELINE_NAMES.get(str(label), label)
    if not row["pairs"]:
        return f"Not compared with {baseline}: the two have no finished block in common."
    text = f"Compared with {baseline} ({format_percent(row['score'])} %), the difference in {metric} is "
    text += format_paired_difference(row, " points")
    if np.isnan(row["p"]):
        return f"{text}: no test is possible."
    p_value = format_p_value(row["p_adjusted"], "p")
    if row["p_adjusted"] != row["p"]:
        p_value += ", adjusted for all comparisons"
    significant = "significant" if row["p_adjusted"] < 0.05 else "not significant"
    return f"{text}, paired over {row['pairs']} independent blocks: {significant} ({p_value})."


def fixed_order_sentences(rows: pd.DataFrame, own: pd.Series, metric: str) -> list[str]:
    """Give the same numbers for the orders that were run, with seeds as the replicates, as is common."""
    if np.isnan(own["fixed_orders_low"]):
        return []
    gaps = [
        f"{format_on_fixed_orders(row, True, ' points')} to {BASELINE_NAMES.get(str(label), label)}"
        for label, row in rows.iterrows()
        if not np.isnan(row["difference_fixed_orders_low"])
    ]
    text = f"On these orders alone, over seeds, {metric} is {format_on_fixed_orders(own, unit=' %')}"
    if gaps:
        text += f"; the differences are {', '.join(gaps)}"
    return [f"{text}."]


def describe_blocks(results: Results) -> str:
    """Count the orders and seeds behind the final comparison.

    `4 held-out orders with one seed each`, `2 orders with 3 seeds` (shared by both orders), or
    `2 orders with 3 seeds each, none shared`.
    """
    table = final_table(results, final_split(results))
    own = table[table["setting"] == chosen_setting(results)]
    orders, seeds = own["order"].nunique(), own["seed"].nunique()
    held_out = "held-out " if results.setup.held_out else ""
    of_orders = f"{orders} {held_out}order{'s' * (orders != 1)}"
    if seeds == orders == len(own):
        return f"{of_orders} with one seed each" if orders > 1 else f"{of_orders} with one seed"
    if seeds == len(own) and orders > 1:  # no two orders share a seed
        each = set(own.groupby("order").size())
        count = f"{each.pop()} seeds each" if len(each) == 1 else f"{seeds} seeds in all"
        return f"{of_orders} with {count}, none shared"
    return f"{of_orders} with {seeds} seed{'s' * (seeds != 1)}"


def blocks_sentence(results: Results, split: str) -> str:
    """Say on which blocks the methods are compared, and whether every method has finished all of them."""
    table, blocks = final_table(results, split).dropna(subset="faa"), describe_blocks(results)
    first, *others = (
        set(blocks_of_rows(table[table["setting"] == setting]))
        for setting in settings_by_label(results).values()
    )
    if all(finished == first for finished in others):
        return f"All methods were trained and evaluated on the same blocks: {blocks}, {split} split."
    return (
        f"Not every method has finished every block ({blocks}, {split} split). A difference covers the "
        "blocks that both methods have finished."
    )


def failure_sentences(results: Results) -> list[str]:
    """Say which stages failed; nothing where none did."""
    count = len(results.failures)
    if not count:
        return []
    errors = ", ".join(sorted({f"{f['error']} while training {f['trained_task']}" for f in results.failures}))
    stages, them = ("1 stage", "it") if count == 1 else (f"{count} stages", "them")
    lines = list(
        dict.fromkeys(error_records.format_error_record(f) for f in results.failures if f.get("message"))
    )
    if left := lines[MOST_ERRORS:]:
        lines[MOST_ERRORS:] = [f"… and {plural(len(left), 'other error')}; the end of the report lists all"]
    return [f"{stages} failed ({errors}). Runs that needed {them} are not counted.", *lines]


def budget_sentences(results: Results) -> list[str]:
    """Say how many stages the budget did not allow; nothing where it allowed all."""
    refused = results.spending.refused
    if not refused:
        return []
    stages = f"{refused} stage{'s were' if refused > 1 else ' was'} not started"
    return [
        f"The budget of {results.spending.budget} would be exceeded, so {stages}.",
        "Run the same command with a larger budget to continue.",
    ]
