"""What a study found, in sentences: what to use, how sure that is, and what is not known."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray.analysis import hardware_drift
from dgg_ray.analysis.agreement import agreement_sentences, unsearched_sentences
from dgg_ray.analysis.optimism import (
    constraint_sentences,
    optimism_sentences,
    progress,
    same_sentences,
    warning,
)
from dgg_ray.analysis.order_sensitivity import order_sentences
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    blocks_of,
    chosen,
    compare,
    compared,
    final_split,
    final_table,
    headline,
    printed,
)
from dgg_ray.analysis.verdict import IN_WORDS, SHOWN, Verdict, verdict
from dgg_ray.core import blame
from dgg_ray.stats.formats import difference_text, percent, these_text
from dgg_ray.stats.intervals import FEWEST

__all__ = ["SHOWN", "Verdict", "answer", "verdict"]


def answer(results: Results) -> list[str]:
    """What to use, how it scores, what must be known beside that, what it was compared with."""
    said = verdict(results)
    return [said.headline, *said.support, *notices(results), *failures(results), *details(results)]


def notices(results: Results) -> list[str]:
    """What a reader must not miss: limits of the choice, of the study so far, of machines and budget."""
    machines = hardware_drift.warning(results.machines)
    return [*warning(results), *progress(results), *machines, *unspent(results)]


def details(results: Results) -> list[str]:
    """What the choice was compared with, and what is uncertain; nothing before there is a choice."""
    if chosen(results) is None:
        return []
    split, limits = final_split(results), notices(results)
    return [
        *unsearched_sentences(results),
        *comparison_sentences(results, split),
        *same_sentences(results, printed(results)),
        *agreement_sentences(results),
        *constraint_sentences(results),
        *optimism_sentences(results),
        *order_sentences(results, split),
        *(line for line in hardware_drift.sentences(results.machines) if line not in limits),
    ]


def comparison_sentences(results: Results, split: str) -> list[str]:
    """The paired difference to each baseline, over other orders and on these; and what would narrow it."""
    metric = headline(results)
    rows = compare(results, split)
    rows = rows[rows["metric"] == metric].set_index("label")
    mine = rows[rows["setting"] == chosen(results)]
    if mine.empty or np.isnan((own := mine.iloc[0])["score"]):
        return []
    found, others = [], rows.drop(index=own.name)
    if own["n"] < FEWEST:
        blocks = f"{own['n']} independent block{'s' * int(own['n'] != 1)}"
        found.append(f"No interval can be given over {blocks}. {more(results)}.")
    if split != "test":
        warning = (
            ": settings were chosen on this split, so the score is optimistic" if results.parameters else ""
        )
        found.append(f"The test split has not been evaluated{warning}.")
    if others.empty:
        found.append("It was compared with no other strategy: this study has no baselines.")
    found += [against(label, row, SHOWN.get(metric, metric)) for label, row in others.iterrows()]
    return found + on_these_orders(rows, own)


def more(results: Results) -> str:
    """Advice for narrower intervals."""
    if results.terms.held_out:
        return "A larger protocol.held_out brings more"
    return "Add orders that begin with other tasks, seeds where there is one order, or protocol.held_out"


def against(label: object, row: pd.Series, metric: str) -> str:
    """One baseline: the paired difference, and whether the study can tell the two apart."""
    baseline = IN_WORDS.get(str(label), label)
    if not row["pairs"]:
        return f"Against {baseline}: not compared, the two share no finished block."
    text = f"Against {baseline} ({percent(row['score'])} %) the difference in {metric} is "
    text += f"{difference_text(row)} points"
    if np.isnan(row["p"]):
        return f"{text}: no test is possible."
    text += f", paired over {row['pairs']} independent blocks, {p_text(row['p_adjusted'])}"
    text += " for all at once" * bool(row["p_adjusted"] != row["p"])
    return f"{text}: {'not ' if row['p_adjusted'] >= 0.05 else ''}significant."


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def on_these_orders(rows: pd.DataFrame, own: pd.Series) -> list[str]:
    """The same numbers as the field reports them: seeds as replicates, other orders left out of account."""
    if np.isnan(own["these_low"]):
        return []
    gaps = [
        f"{IN_WORDS.get(str(label), label)} {these_text(row, True)}"
        for label, row in rows.iterrows()
        if not np.isnan(row["difference_these_low"])
    ]
    text = f"On these orders alone, over seeds: {these_text(own)}"
    return [text + (f"; differences to {', '.join(gaps)}." if gaps else ".")]


def blocks_in_words(results: Results) -> str:
    """`4 held-out orders with a seed each`, `2 orders with 3 seeds` or `with 3 seeds each, of their own`"""
    table = final_table(results, final_split(results))
    own = table[table["setting"] == chosen(results)]
    orders, seeds = own["order"].nunique(), own["seed"].nunique()
    held_out = "held-out " if results.terms.held_out else ""
    of_orders = f"{orders} {held_out}order{'s' * (orders != 1)}"
    if seeds == orders == len(own):
        return f"{of_orders} with a seed each" if orders > 1 else f"{of_orders} with one seed"
    if seeds == len(own) and orders > 1:  # no two orders share a seed
        each = set(own.groupby("order").size())
        count = f"{each.pop()} seeds each" if len(each) == 1 else f"{seeds} seeds in all"
        return f"{of_orders} with {count}, of their own"
    return f"{of_orders} with {seeds} seed{'s' * (seeds != 1)}"


def blocks_sentence(results: Results, split: str) -> str:
    """On which blocks the methods are compared; that they are the same only where every method has all."""
    table, blocks = final_table(results, split).dropna(subset="faa"), blocks_in_words(results)
    first, *others = (
        set(blocks_of(table[table["setting"] == setting])) for setting in compared(results).values()
    )
    if all(finished == first for finished in others):
        return f"All methods were trained and evaluated on the same blocks: {blocks}, {split} split."
    return (
        f"Not every method has finished every block ({blocks}, {split} split): a difference is over those "
        "that both have."
    )


def failures(results: Results) -> list[str]:
    """That stages are missing, where some are."""
    count = len(results.failures)
    if not count:
        return []
    which = ", ".join(sorted({f"{f['error']} while learning {f['trained_task']}" for f in results.failures}))
    many = count > 1
    which = f"{count} stage{'s' if many else ''} failed ({which})"
    lines = dict.fromkeys(blame.line(f) for f in results.failures if f.get("place"))
    return [f"{which}; runs that needed {'them' if many else 'it'} are not counted.", *lines]


def unspent(results: Results) -> list[str]:
    """That the budget ended the study, where it did."""
    refused = results.spending.refused
    if not refused:
        return []
    stages = f"{refused} stage{'s were' if refused > 1 else ' was'} not started"
    budget = f"The budget of {results.spending.budget} would be exceeded: {stages}."
    return [budget, "With a larger budget the same command goes on."]
