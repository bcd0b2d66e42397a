"""Which setting to use, in one sentence that says no more than its evidence, and what that rests on."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dgg_ray.analysis.agreement import undecided_alphas, unsearched
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    alphas,
    chosen,
    compare,
    final_split,
    final_table,
    headline,
    listing,
    once,
    runs,
    settings,
    text_of,
)
from dgg_ray.config.sections import name_of
from dgg_ray.search.objective import range_of, simplicity
from dgg_ray.stats.formats import at_once, ci_of, interval_text, percent, points_text

SHOWN = {"faa": "FAA", "stability": "stability", "plasticity": "plasticity", "backward_transfer": "BWT"}
IN_WORDS = {
    "finetune": "plain fine-tuning",
    "replay": "replay with the same buffer",
    "joint": "joint training on all tasks at once",
}
PLAIN = {"finetune": 0, "replay": 1}  # the simplest strategies, which others are measured by
FLOOR, CEILING = 0.10, 0.99  # of scores in [0, 1]: beyond them settings cannot differ by much


class Verdict(NamedTuple):
    """The verdict: the setting to use, no bolder than its evidence. Page and console open with it.

    headline: one sentence; support: at most three more.
    status: `clear` where it beats every simpler baseline beyond doubt, `within noise` where it does not,
        `beaten` where a baseline, simpler or not, beats it so, `floor` or `ceiling` where scores are too low or
        too high to tell, `not compared` without a simpler baseline, or before all of them have a block in
        common with it, `nothing judged` before there is a score.
    """

    headline: str
    support: list[str]
    status: str


@once
def verdict(results: Results) -> Verdict:
    """Which setting to use: the recommended one only where it beats all simpler baselines beyond doubt.

    That is, where the interval of every difference lies above 0, all baselines at once (Bonferroni). joint is an
    upper reference and no baseline. Raises ResultsError for a study without a finished stage.
    """
    split = final_split(results)
    runs(results, split)
    setting = chosen(results)
    if setting is None or setting not in settings(results).index:
        return Verdict(
            "No setting has been judged on all its orders and seeds yet, so none is recommended.",
            [],
            "nothing judged",
        )
    metric = headline(results)
    rows = compare(results, split)
    rows = rows[rows["metric"] == metric].set_index("label")
    own = rows[rows["setting"] == setting].iloc[0]
    ours = described(results, setting)
    if np.isnan(own["score"]):
        text = f"{ours} has no finished run on the {split} split"
        if results.search is not None:
            text = f"{ours} scored highest where settings were chosen, and has no finished run on {split}"
        text += "." if results.failures else " yet."
        return Verdict(f"Nothing can be recommended yet: {text}", [], "nothing judged")
    if limit := end_of_scale(results, rows, metric, split):
        return limit
    simpler = rows[[is_simpler(results, other, setting) for other in rows["setting"]]]
    waiting, baselines = simpler[simpler["pairs"] == 0], simpler[simpler["pairs"] > 0]
    unbeaten = baselines[~(baselines["at_once_low"] > 0)]
    score = f"On the {split} split its {SHOWN.get(metric, metric)} is {of_score(own)}."
    support = [score, *scope(results, split), *reference(rows)]
    if (above := above_it(results, rows)) is not None:
        return beaten(results, above, ours, support)
    if simpler.empty:
        text = f"No setting was shown to be the one to use: {ours} has no simpler baseline in this study."
        return Verdict(text, support, "not compared")
    if unbeaten.empty:
        return over_simpler(results, ours, baselines, waiting, support)
    simplest = min(unbeaten["setting"], key=lambda other: simplicity_of(results, other))
    label = unbeaten.index[unbeaten["setting"] == simplest][0]
    text = f"No setting was shown to beat {in_words(label)}: the difference is {of_gap(unbeaten.loc[label])}"
    text += f", and the simplest setting within noise is {described(results, simplest)}."
    return Verdict(text, [f"{introduced(results, ours)} {score}", *support[1:]][:3], "within noise")


def over_simpler(
    results: Results, ours: str, behind: pd.DataFrame, waiting: pd.DataFrame, support: list[str]
) -> Verdict:
    """The verdict where every simpler baseline that was compared is beaten; waiting: those that were not."""
    score, *rest = support
    gaps = listing([f"{in_words(label)} by {of_gap(row)}" for label, row in behind.iterrows()])
    said = [score, *([f"It beats {gaps}."] if gaps else []), *rest][:3]
    if waiting.empty:
        return Verdict(f"{begin(results)} {ours}.", said, "clear")
    names = listing([in_words(label) for label in waiting.index])
    have = "has" if len(waiting) == 1 else "have"
    return Verdict(
        f"Not compared yet: {names} {have} no finished block in common with {ours}.", said, "not compared"
    )


def above_it(results: Results, rows: pd.DataFrame) -> pd.Series | None:
    """The row of the highest baseline that beats the chosen setting beyond doubt; joint is none."""
    above = rows[(rows["at_once_high"] < 0) & (rows["setting"] != results.baselines.get("joint"))]
    return above.loc[above["score"].idxmax()] if len(above) else None


def beaten(results: Results, above: pd.Series, ours: str, support: list[str]) -> Verdict:
    """The verdict where some baseline is better beyond doubt."""
    better = in_words(above.name)
    so_far = "So far " if results.search and not results.search.finished else ""
    text = f"{so_far}{better} beats {ours} by {of_gap(above, -1)}."
    return Verdict(text[0].upper() + text[1:], support[:3], "beaten")


def introduced(results: Results, ours: str) -> str:
    """How the setting that is spoken of came to be it."""
    if not results.parameters:  # nothing was searched
        return f"The study's own setting is {ours}."
    return f"Highest where settings were chosen was {ours}."


def begin(results: Results) -> str:
    return "So far the best is" if results.search and not results.search.finished else "Use"


def in_words(label: object) -> str:
    return IN_WORDS.get(str(label), str(label))


def of_score(row: pd.Series) -> str:
    """`65.6 % (95 % CI 55.6 to 75.7, 4 independent blocks)`"""
    blocks = f", {int(row['n'])} independent blocks"
    return interval_text(
        row["score"], row["low"], row["high"], row["n"], row["values"], unit=" %", extra=blocks
    )


def of_gap(row: pd.Series, sign: float = 1) -> str:
    """`6.4 points (95 % CI −10.0 to 23.1)`; of several baselines the bounds hold for all at once. sign -1 turns
    the gap round."""
    return points_text(at_once(row), sign, ci_of(row))


def reference(rows: pd.DataFrame) -> list[str]:
    """The score of joint training, where it was run."""
    if "joint" not in rows.index or np.isnan(rows.loc["joint", "score"]):
        return []
    return [
        f"Joint training on all tasks at once, the upper reference, reaches {of_score(rows.loc['joint'])}."
    ]


def scope(results: Results, split: str) -> list[str]:
    """Caveat where one seed serves all orders."""
    own = final_table(results, split)
    own = own[own["setting"] == chosen(results)]
    seeds = sorted(own["seed"].unique())
    if own["order"].nunique() > 1 and len(seeds) == 1:
        return [f"One seed ({seeds[0]}) serves all orders: the intervals speak of other orders at that seed."]
    return []


def end_of_scale(results: Results, rows: pd.DataFrame, metric: str, split: str) -> Verdict | None:
    """The verdict where scores are so low or so high that settings cannot differ by much."""
    scores = rows["score"].dropna()
    if range_of(metric) != (0.0, 1.0) or scores.empty:
        return None
    name = SHOWN.get(metric, metric)
    if scores.max() < FLOOR:
        which = in_words(scores.idxmax())
        text = f"This study cannot tell which setting to use: even {which} reaches only "
        text += f"{percent(scores.max())} % {name} on {split}."
        why = "What is hardly learned cannot be forgotten: check the data, the scorer and the training first."
        return Verdict(text, [why], "floor")
    if scores.min() >= CEILING:
        text = "This study cannot tell which setting to use: every setting compared reaches at least "
        text += f"{percent(scores.min())} % {name} on {split}."
        why = "Nothing is forgotten that a setting could keep: longer sequences or harder tasks would tell."
        return Verdict(text, [why], "ceiling")
    return None


def described(results: Results, setting: str) -> str:
    """`dgg with α for words = 0.3 (0.1 to 1 cannot be told apart), buffer = 30`"""
    values = settings(results).loc[setting]
    skipped = unsearched(results) if setting == chosen(results) else ()
    doubts = undecided_alphas(results) if setting == chosen(results) else {}
    each = [doubts.get(column) for column in alphas(results).values() if column not in skipped]
    shared = each[0] if len(each) > 1 and len(set(each)) == 1 else None
    if shared:  # said once
        doubts = {}
    parts = [
        f"{name_of(parameter)} = {text_of(values[parameter])}"
        + (f" ({doubts[parameter]})" if parameter in doubts else "")
        for parameter in results.parameters
        if parameter not in skipped and text_of(values[parameter]) != "–"
    ]
    text = str(values["strategy"]) + (f" with {', '.join(parts)}" if parts else "")
    return f"{text} (of each α, {shared})" if shared else text


def is_simpler(results: Results, setting: str, than: str) -> bool:
    """Whether a compared setting is a simpler one. A joint run is none, it is another way to train; nor is
    one of which no stage was trained yet."""
    if setting == results.baselines.get("joint") or setting not in settings(results).index:
        return False
    return simplicity_of(results, setting) < simplicity_of(results, than)


def simplicity_of(results: Results, setting: str) -> tuple[Any, ...]:
    """Lower is simpler: fine-tuning, then replay, then all others by `preference.simplicity`."""
    values = settings(results).loc[setting]
    return PLAIN.get(str(values["strategy"]), len(PLAIN)), *simplicity(
        values[list(results.parameters)].to_dict()
    )
