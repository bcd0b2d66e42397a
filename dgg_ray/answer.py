"""What a study found, in sentences: what to use, how sure that is, and what is not known."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd

from dgg_ray import drift
from dgg_ray.agreement import agreement_sentences, unsearched, unsearched_sentences
from dgg_ray.optimism import (
    constraint_sentences,
    optimism_sentences,
    progress,
    same_sentences,
    warning,
)
from dgg_ray.outcomes import (
    Results,
    chosen,
    compare,
    final_split,
    headline,
    name_of,
    percent,
    printed,
    runs,
    settings,
    signed,
    text_of,
)
from dgg_ray.robustness import order_sentences

SHOWN = {"faa": "FAA", "stability": "stability", "plasticity": "plasticity", "backward_transfer": "BWT"}
FEW = 3  # blocks; t(0.975) is 12.7 for two of them, 4.3 for three, and below 3.2 from then on
IN_WORDS = {"replay": "replay at the same buffer", "joint": "joint training on all tasks at once"}


def answer(results: Results) -> list[str]:
    """The report's opening: what to use, how it scores, what it was compared with, and what is uncertain."""
    split = final_split(results)
    runs(results, split)  # raises for an empty study
    setting = chosen(results)
    known = settings(results)
    if setting is None or setting not in known.index:
        sentences = ["No setting has been judged on all its orders and seeds yet, so none is recommended."]
        return sentences + warning(results) + progress(results) + failures(results) + unspent(results)
    return [
        recommendation(results, known.loc[setting]),
        *unsearched_sentences(results),
        *warning(results),
        *progress(results),
        *score_sentences(results, split),
        *same_sentences(results, printed(results)),
        *agreement_sentences(results),
        *constraint_sentences(results),
        *optimism_sentences(results),
        *order_sentences(results, split),
        *drift.sentences(results.machines),
        *failures(results),
        *unspent(results),
    ]


def recommendation(results: Results, values: pd.Series) -> str:
    """What to use, every value that was chosen by its name."""
    found = [knob for knob in results.knobs if knob not in unsearched(results)]
    parts = [f"{name_of(knob)} = {text_of(values[knob])}" for knob in found]
    verb = "Use" if results.knobs else "One setting was run, nothing was searched:"
    if results.search and not results.search.finished:
        verb = "So far the best is"
    return f"{verb} {values['strategy']}" + (f" with {', '.join(parts)}." if parts else ".")


def score_sentences(results: Results, split: str) -> list[str]:
    """Its score with its interval, and the paired difference to each rival."""
    metric = headline(results)
    rows = compare(results, split)
    rows = rows[rows["metric"] == metric].set_index("label")
    own = rows[rows["setting"] == chosen(results)].iloc[0]
    if np.isnan(own["score"]):
        return [f"No run of it has been finished on the {split} split, so it has no score yet."]
    name = SHOWN.get(metric, metric)
    text = f"On the {split} split its {name} is {percent(own['score'])} %"
    if own["n"] < 2:
        sentences = [f"{text}, from one independent block: no interval can be given. {more(results)}."]
    else:
        interval = f"{percent(own['low'])} to {percent(own['high'])}"
        sentences = [
            f"{text} (95 % interval {interval}, over {own['n']} independent blocks of order and seed)."
        ]
    if 2 <= own["n"] <= FEW:
        sentences.append(f"{own['n']} independent blocks make wide intervals. {more(results)}.")
    if split != "test":
        warning = ": settings were chosen on this split, so the score is optimistic" if results.knobs else ""
        sentences.append(f"The test split has not been examined{warning}.")
    gaps = [against(label, row, name) for label, row in rows.drop(index=own.name).iterrows()]
    return sentences + (gaps or ["It was compared with no other strategy: this study has no rivals."])


def more(results: Results) -> str:
    """What would narrow the intervals."""
    if results.terms.held_out:
        return "A larger protocol.held_out narrows them"
    return "Add orders that begin with other tasks, seeds where there is one order, or protocol.held_out"


def against(label: object, row: pd.Series, metric: str) -> str:
    """One rival: the paired difference, and whether the study can tell the two apart."""
    rival = IN_WORDS.get(str(label), label)
    if not row["pairs"]:
        return f"Against {rival}: not compared, the two share no finished block."
    gap = row["difference"]
    text = f"Against {rival} ({percent(row['score'])} %) it is {percent(abs(gap))} points "
    text += f"{'higher' if gap >= 0 else 'lower'} in {metric}"
    if row["pairs"] < 2:
        return f"{text}, on one independent block: no interval can be given."
    text += f" (95 % interval {signed(row['difference_low'])} to {signed(row['difference_high'])}, "
    if np.isnan(row["p"]):
        return f"{text}{row['pairs']} pairs, all with the same difference: no test is possible)."
    p = "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.3f}"
    text += f"paired over {row['pairs']} independent blocks, {p})"
    if row["difference_low"] <= 0 <= row["difference_high"]:
        return f"{text}. The interval includes 0: this study cannot tell the two apart."
    return f"{text}."


def failures(results: Results) -> list[str]:
    """That stages are missing, where some are."""
    count = len(results.failures)
    if not count:
        return []
    which = ", ".join(sorted({f"{f['error']} while learning {f['learned']}" for f in results.failures}))
    many = count > 1
    which = f"{count} stage{'s' if many else ''} failed ({which})"
    return [f"{which}; runs that needed {'them' if many else 'it'} are not counted."]


def unspent(results: Results) -> list[str]:
    """That the budget ended the study, where it did."""
    refused = results.spending.refused
    if not refused:
        return []
    stages = f"{refused} stage{'s were' if refused > 1 else ' was'} not started"
    budget = f"The budget of {results.spending.budget} would be exceeded: {stages}."
    return [budget, "With a larger budget the same command goes on."]
