"""What a study found, in sentences: what to use, how sure that is, and what is not known."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray import blame, drift
from dgg_ray.agreement import agreement_sentences, unsearched_sentences
from dgg_ray.formats import difference_text, these_text
from dgg_ray.intervals import FEWEST
from dgg_ray.optimism import (
    constraint_sentences,
    optimism_sentences,
    progress,
    same_sentences,
    warning,
)
from dgg_ray.outcomes import Results, chosen, compare, final_split, headline, percent, printed
from dgg_ray.robustness import order_sentences
from dgg_ray.verdict import IN_WORDS, SHOWN, Verdict, verdict

__all__ = ["SHOWN", "Verdict", "answer", "verdict"]


def answer(results: Results) -> list[str]:
    """The report's opening: what to use, how it scores, what it was compared with, and what is uncertain."""
    said = verdict(results)
    opening = [said.headline, *said.support]
    if said.status == "nothing judged" and not said.support and chosen(results) is None:
        return opening + warning(results) + progress(results) + failures(results) + unspent(results)
    split = final_split(results)
    return [
        *opening,
        *unsearched_sentences(results),
        *warning(results),
        *progress(results),
        *comparison_sentences(results, split),
        *same_sentences(results, printed(results)),
        *agreement_sentences(results),
        *constraint_sentences(results),
        *optimism_sentences(results),
        *order_sentences(results, split),
        *drift.sentences(results.machines),
        *failures(results),
        *unspent(results),
    ]


def comparison_sentences(results: Results, split: str) -> list[str]:
    """The paired difference to each rival, over other orders and on these; and what would narrow it."""
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
        warning = ": settings were chosen on this split, so the score is optimistic" if results.knobs else ""
        found.append(f"The test split has not been evaluated{warning}.")
    if others.empty:
        found.append("It was compared with no other strategy: this study has no baselines.")
    found += [against(label, row, SHOWN.get(metric, metric)) for label, row in others.iterrows()]
    return found + on_these_orders(rows, own)


def more(results: Results) -> str:
    """What would narrow the intervals."""
    if results.terms.held_out:
        return "A larger protocol.held_out brings more"
    return "Add orders that begin with other tasks, seeds where there is one order, or protocol.held_out"


def against(label: object, row: pd.Series, metric: str) -> str:
    """One rival: the paired difference, and whether the study can tell the two apart."""
    rival = IN_WORDS.get(str(label), label)
    if not row["pairs"]:
        return f"Against {rival}: not compared, the two share no finished block."
    text = f"Against {rival} ({percent(row['score'])} %) the difference in {metric} is "
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


def failures(results: Results) -> list[str]:
    """That stages are missing, where some are."""
    count = len(results.failures)
    if not count:
        return []
    which = ", ".join(sorted({f"{f['error']} while learning {f['learned']}" for f in results.failures}))
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
