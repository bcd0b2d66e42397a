"""The seven questions that the report answers, each with a table or a figure and a few sentences."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dgg_ray.analysis import next_steps, order_sensitivity
from dgg_ray.analysis.agreement import trades, undecided_alphas, unsearched
from dgg_ray.analysis.disparity import disparity, overall
from dgg_ray.analysis.examples import FALL, answers, confusions, lost, sample, shown
from dgg_ray.analysis.front import front
from dgg_ray.analysis.optimism import audit_sentences, of_gaps, race_sentences
from dgg_ray.analysis.per_task import most_forgotten, per_task
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen,
    compare,
    compared,
    final_split,
    headline,
    listing,
    own_label,
    settings,
    text_of,
)
from dgg_ray.analysis.standings import judged
from dgg_ray.analysis.verdict import SHOWN, verdict
from dgg_ray.config.sections import name_of
from dgg_ray.core.fence import Fence
from dgg_ray.report.answer import blocks_sentence, details
from dgg_ray.report.figures.stability_plasticity import AXES, constant, settings_as_points
from dgg_ray.report.parts import Drawn, Gallery, Part, Row, Section, Table, Text, Wrong, fold, text
from dgg_ray.report.thumbnails import thumbnail
from dgg_ray.search.objective import gap_range
from dgg_ray.stats.formats import interval_text, percent, signed, these_text
from dgg_ray.stats.intervals import ways_of

EXAMPLES = 20
CONFUSED = 10
Figures = Mapping[str, Drawn]


def sections(results: Results, figures: Figures, fence: Fence) -> list[Section]:
    """Those that have something to say, in their order; one that fails is named by the fence."""
    made = [
        fence.tried(f"the section “{title}”", Section(name, title, short), make, results, figures, fence)
        for name, (title, short, make) in QUESTIONS.items()
    ]
    return [
        Section(name, title, short, content.sentences, content.parts)
        for content, (name, (title, short, _)) in zip(made, QUESTIONS.items(), strict=True)
        if content
    ]


def content(sentences: Sequence[str], *parts: Part | Sequence[Part] | None) -> Section:
    """The content below a question's title; absent parts are left out."""
    flat: list[Part] = []
    for part in parts:
        flat += [part] if isinstance(part, Part) else list(part or ())
    return Section("", "", "", sentences, flat)


# -- 1: what should I use ----------------------------------------------------------------------------


def use(results: Results, figures: Figures, fence: Fence) -> Section:
    found = verdict(results)
    rest = fence.tried("more about this choice", [], details, results)
    return content(
        [found.headline, *found.support[:3]],
        fence.tried("the table of values", None, values, results),
        fold("More about this choice", text(rest)),
        fold(
            "What more computing would change",
            text(fence.tried("what more computing would change", [], next_steps.sentences, results), True),
        ),
    )


def values(results: Results) -> Table | None:
    """The chosen value of each search parameter, and how sure it is."""
    setting = chosen(results)
    if setting is None or not results.parameters or setting not in settings(results).index:
        return None
    own, doubts, idle = settings(results).loc[setting], undecided_alphas(results), unsearched(results)
    rows = [
        Row(
            [
                name_of(parameter),
                text_of(own[parameter]),
                "not searched" if parameter in idle else doubts.get(parameter, ""),
            ]
        )
        for parameter in results.parameters
    ]
    head = ["search parameter", "value", "how sure"]
    if not any(row.cells[2] for row in rows):
        head, rows = head[:2], [Row(row.cells[:2]) for row in rows]
    caption = "The setting that scored highest where settings were chosen."
    return Table(caption, head, rows, "settings.csv", frozenset({0, 2}))


# -- 2: how does it compare --------------------------------------------------------------------------


def comparison(results: Results, figures: Figures, fence: Fence) -> Section:
    split, metric = final_split(results), headline(results)
    table = compare(results, split)
    if table["score"].isna().all():
        return content([])
    if table["label"].nunique() < 2:
        said = ["It was compared with no other method: the study has no baselines (protocol.baselines)."]
    else:
        said = [
            blocks_sentence(results, split),
            f"The second line of a cell is {own_label(results)} minus this method, paired over these "
            "blocks; where its interval holds 0 the study cannot tell the two apart.",
        ]
    shown_metrics = [m for m in SHOWN if not table[table["metric"] == m]["score"].isna().all()]
    if metric not in shown_metrics:
        shown_metrics.insert(0, metric)
    return content(
        said,
        comparison_table(results, table, shown_metrics, split),
        figures.get("forest"),
        fold("On these orders alone, over seeds", these_orders(results, table, metric, split)),
    )


def comparison_table(results: Results, table: pd.DataFrame, metrics: Sequence[str], split: str) -> Table:
    """Method × metric, with intervals, and the paired difference as a second line."""
    rows = []
    for label, group in table.groupby("label", sort=False):
        cells = {row["metric"]: row for row in group.to_dict("records")}
        own = group["setting"].iloc[0] == chosen(results)
        row = [(score(cells[m]), gap(cells[m], m == headline(results))) for m in metrics]
        adjusted = cells[headline(results)]["p_adjusted"]
        p = "" if np.isnan(adjusted) else "< 0.001" if adjusted < 0.001 else f"{adjusted:.3f}"
        rows.append(Row([str(label), *row, p], "best" if own else ""))
    head = ["method", *(SHOWN.get(m, m.replace("_", " ")) for m in metrics), "p"]
    name = SHOWN.get(headline(results), headline(results))
    caption = (
        f"{split.capitalize()} split, in percent, mean (95 % interval over other orders and seeds). "
        f"Differences in {name} have intervals, and p values (Bonferroni), that hold for all methods at "
        "once, joint training, the reference, apart; those in other metrics are single ones. "
        "FAA: final score over all questions. Stability: final "
        "score on the tasks before the last. Plasticity: score on a task right after learning it, but for "
        "the first. BWT: change of earlier tasks since they were learned."
    )
    return Table(caption, head, rows, "comparison.csv")


def score(row: Mapping[str, Any]) -> str:
    """`65.6 (55.6 to 75.7)`"""
    return interval_text(row["score"], row["low"], row["high"], row["n"], row["values"], ci="")


def gap(row: Mapping[str, Any], at_once: bool) -> str:
    """The paired difference as a second line, empty for the chosen setting itself.

    at_once: with the interval that holds for all methods at once, as the verdict has it.
    """
    if np.isnan(row["difference"]):
        return ""
    low, high = (row[f"{'at_once' if at_once else 'difference'}_{end}"] for end in ("low", "high"))
    return interval_text(row["difference"], low, high, row["pairs"], row["difference_values"], signed, ci="")


def these_orders(results: Results, table: pd.DataFrame, metric: str, split: str) -> Table | None:
    """The headline metric with seeds as the replicates, as much of the literature reports it."""
    mine = table[(table["metric"] == metric) & table["these_low"].notna()]
    if chosen(results) not in set(mine["setting"]):
        return None
    rows = [
        Row(
            [str(row["label"]), these_text(row), "" if np.isnan(row["difference"]) else these_text(row, True)]
        )
        for row in mine.to_dict("records")
    ]
    caption = (
        f"{split.capitalize()} split, in percent, with 95 % intervals over the seeds of the orders that were "
        "run. They say nothing of other orders."
    )
    return Table(
        caption,
        ["method", SHOWN.get(metric, metric), f"{own_label(results)} minus this"],
        rows,
        "comparison.csv",
    )


# -- 3: per task -------------------------------------------------------------------------------------


def tasks(results: Results, figures: Figures, fence: Fence) -> Section:
    split = final_split(results)
    table = per_task(results, split)
    if table.empty:
        return content(["No run of the comparison is finished, so no task can be judged yet."])
    label = next(iter(compared(results)))
    worst, said = most_forgotten(table, label), []
    if worst is not None:
        said.append(forgotten_in_words(label, worst))
        others = table[(table["task"] == worst["task"]) & (table["label"] != label)].dropna(
            subset="forgotten"
        )
        if len(others):
            each = [f"{row['label']} {percent(row['forgotten'])}" for row in others.to_dict("records")]
            said.append(f"Of {worst['task']} the other methods forget, in points: {listing(each)}.")
    return content(
        said,
        figures.get("per_task"),
        task_table(table, label, split),
        figures.get("score_matrix"),
        fold("The mean score along the sequence", figures.get("learning_along")),
    )


def forgotten_in_words(label: str, row: pd.Series) -> str:
    if row["forgotten"] <= 0:
        return f"{label} forgets no task: every one ends at least as high as it was, on average."
    return (
        f"On average {label} forgets {row['task']} most: where other tasks follow it, it ends "
        f"{percent(row['forgotten'])} points below its best score."
    )


def task_table(table: pd.DataFrame, label: str, split: str) -> Table:
    """A row per task: the first method in full, the final score of the others."""
    others = [other for other in dict.fromkeys(table["label"]) if other != label]
    known = table.set_index(["label", "task"])
    rows = []
    for task in sorted(table["task"].unique()):
        mine = known.loc[(label, task)] if (label, task) in known.index else None
        own = ["–"] * 3 if mine is None else [percent(mine[part]) for part in ("learned", "forgotten")]
        if mine is not None:
            bounds = (mine["final"], mine["final_low"], mine["final_high"], mine["final_n"])
            own.insert(1, interval_text(*bounds, mine["final_values"], ci=""))
        finals = [known["final"].get((other, task), np.nan) for other in others]
        rows.append(Row([str(task), *own, *map(percent, finals)]))
    caption = (
        f"{split.capitalize()} split, in percent. Learned: score right after learning the task. Final: "
        "score at the end (95 % interval). Forgotten: fall from its best score, over the blocks in which "
        f"other tasks follow it. These are of {label}; "
        f"{'the last columns have' if others else 'there are no'} final scores of the other methods."
    )
    head = ["task", *(f"{label}: learned", "final", "forgotten"), *others]
    return Table(caption, head, rows, "per_task.csv")


# -- 4: what does stability cost ---------------------------------------------------------------------


def stability(results: Results, figures: Figures, fence: Fence) -> Section:
    figure, by_task = figures.get("stability_plasticity"), figures.get("alpha_effect")
    curves = fence.tried("what α trades", [], trades, results)
    said = []
    if figure is not None:
        count = len(results.terms.chosen_on)
        where = f"{count} block{'s' * (count != 1)} of the search" if count else "all blocks"
        said = fence.tried("what a constant α trades", [], along, results)
        said.append(f"Settings stand where they were judged: {results.terms.selection_split} split, {where}.")
        if results.terms.held_out:
            said.append(
                "Methods with a name stand where they were compared, on the held-out blocks, here by the "
                "same split; the comparison above is on the test split."
            )
    table = None
    if curves:
        caption = (
            f"{results.terms.selection_split.capitalize()} split, in points, from the lowest α tried to the "
            "highest, with 95 % bands of one α against another; monotone curves through every stage that "
            "trained the task after another one, compared within blocks (order so far, seed). Highest: of "
            "the mean final score, if later stages keep differences in proportion."
        )
        rows = [Row(list(row.values())) for row, _ in curves]
        table = Table(caption, list(curves[0][0]), rows, "figures/alpha_effect.csv")
    return content(
        said,
        figure,
        by_task,
        fold("What each task's α trades, in numbers", text([line for _, line in curves]), table),
    )


def along(results: Results) -> list[str]:
    """The trade of one α for all tasks, from the lowest tried to the highest; on the longest curve."""
    lines = constant(results, settings_as_points(results))
    if not lines:
        return []
    of = max(lines, key=lambda others: len(lines[others]))
    (low, before), *_, (high, after) = lines[of]
    gaps = (after - before).dropna()
    clusters = ways_of(tuple(gaps.index))
    changes = [
        f"{axis} by {interval_text(*change[:3], change.n, change.values, signed, unit=' points')}"
        for axis in AXES
        for change in [of_gaps(gaps[axis], gap_range(axis), clusters=clusters)]
    ]
    return [
        f"With one α for all tasks{f' ({of})' if of else ''}, α = {text_of(high)} in place of {text_of(low)} "
        f"changes {listing(changes)}, over the blocks that both were judged on."
    ] * bool(len(gaps))


# -- 5: does the order matter ------------------------------------------------------------------------


def order(results: Results, figures: Figures, fence: Fence) -> Section:
    split = final_split(results)
    every = order_sensitivity.sentences(results)
    spread = spread_table(disparity(results, split), overall(results, split), split)
    return content(
        every[:2],
        figures.get("order_spread"),
        fold("By task and by method, in numbers", text(every[2:]), spread),
        fold("What a place in the order does", figures.get("order_effects")),
        fold("How each order ranks the methods", figures.get("order_ranks")),
    )


def spread_table(by_task: pd.DataFrame, faa: pd.DataFrame, split: str) -> Table | None:
    """A row per task, for the disparities and for FAA; a column per method."""
    if by_task.empty:
        return None
    cells = {
        (row["label"], row["task"]): (
            f"OPD {percent(row['opd'])}" if np.isnan(row["lowest"]) else extent(row),
            f"expected {percent(row['expected'])}{bounds(row, 'low', 'high')}",
        )
        for row in by_task.to_dict("records")
    }
    for row in faa.to_dict("records"):
        cells[row["label"], "FAA"] = extent(row), f"sd {percent(row['sd'])}{bounds(row, 'sd_low', 'sd_high')}"
    labels = list(dict.fromkeys(by_task["label"]))
    names = {"AOPD": "mean over tasks (AOPD)", "MOPD": "largest (MOPD)"}
    tasks = [*sorted(by_task["task"].unique(), key=["FAA", "MOPD", "AOPD"].count), "FAA"]
    rows = [
        Row(
            [names.get(task, task), *(cells.get((label, task), "–") for label in labels)],
            "sum" if task == "AOPD" else "",
        )
        for task in tasks
    ]
    caption = (
        f"{split.capitalize()} split, in percent: each task's lowest and highest final score over the "
        "orders, averaged over seeds. Their distance is the order-normalised performance disparity (OPD; "
        "Yoon et al., ICLR 2020), which seed noise makes too large. Expected: of as many orders that share "
        "no stage, from the standard deviation, with its 95 % interval over clusters of orders that share a "
        "first stage (the same first task and seed)."
    )
    return Table(caption, ["task", *labels], rows, "robustness_tasks.csv")


def extent(row: Mapping[str, Any]) -> str:
    """`41.0 to 62.5`."""
    return f"{percent(row['lowest'])} to {percent(row['highest'])}"


def bounds(row: Mapping[str, Any], low: str, high: str) -> str:
    """` (12.0 to 34.5)`, or nothing where there is no interval."""
    return "" if np.isnan(row[low]) else f" ({percent(row[low])} to {percent(row[high])})"


# -- 6: how was it chosen ----------------------------------------------------------------------------


def choice(results: Results, figures: Figures, fence: Fence) -> Section:
    search, losses = results.search, fold("The training loss of every stage", figures.get("training_loss"))
    if search is None:
        return content(["Nothing was searched: the setting is the study's own."], losses)
    judged_count, terms = len(search.of("judged")), results.terms
    said = [
        f"The search ({search.method}) proposed {len(search.candidates)} settings and judged {judged_count} "
        f"of them by {listing([SHOWN.get(name, name.replace('_', ' ')) for name in search.objective])} on "
        f"{len(terms.chosen_on)} block{'s' * (len(terms.chosen_on) != 1)} of the {terms.selection_split} split."
    ]
    said += fence.tried("how many settings were pruned", [], race_sentences, search)
    audit = fence.tried("the audit of the search", [], audit_sentences, results)
    return content(
        [*said, *audit[:1]][:3],
        figures.get("search"),
        fold("More about the audit", text(audit[1:])),
        fold("Which search parameters matter", figures.get("importance")),
        fold("The Pareto set", figures.get("pareto"), fence.tried("the Pareto set", None, pareto, results)),
        losses,
    )


def pareto(results: Results) -> Table | None:
    """The Pareto set of several objectives, by the first of them."""
    search = results.search
    if search is None or len(search.objective) < 2:
        return None
    known = {row["setting"]: row for row in judged(results).to_dict("records")}
    rows = [
        Row(
            [row["setting"]]
            + [text_of(row[parameter]) for parameter in results.parameters]
            + [with_interval(row, name) for name in search.objective],
            "best" if row["setting"] == chosen(results) else "",
        )
        for row in (known[c.setting] for c in front(search) if c.setting in known)
    ]
    caption = (
        "Settings that no other one equals or exceeds in every objective, constraints kept. "
        f"{results.terms.selection_split.capitalize()} split, in percent, over the blocks of the search."
    )
    head = [
        "setting",
        *map(name_of, results.parameters),
        *(name.replace("_", " ") for name in search.objective),
    ]
    return Table(caption, head, rows, "figures/pareto.csv") if rows else None


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """`71.2 (69.8 to 72.6)` of a metric in a row of `judged`."""
    found = (row[f"{metric}{end}"] for end in ("", "_low", "_high", "_n"))
    return interval_text(*found, row[f"{metric}_values"], ci="")


# -- 7: what does the model get wrong ----------------------------------------------------------------


def wrong(results: Results, figures: Figures, fence: Fence) -> Section:
    setting, split = chosen(results), final_split(results)
    if setting is None or results.archive is None:
        return content([])
    every = answers(results, split, setting)
    if every.empty:
        return content([])
    found = lost(results, split, setting)
    some, note = shown(results, sample(found, EXAMPLES), split)
    runs = len(every.drop_duplicates(["order", "seed"]))
    questions = len(every.drop_duplicates(["task", "id"]))
    said = [
        f"Of {questions} questions of the {split} split, {len(found)} were answered right after their task "
        f"was learned and wrong at the end, in at least one of {runs} run{'s' * (runs != 1)} of "
        f"{own_label(results)}."
    ]
    if len(found) > len(some):
        said.append(f"Here are {len(some)} of them, drawn at random, of each task in proportion.")
    if (found["of"] < runs).any():
        said.append(
            "On a card, a run in which the task came last does not count: nothing was trained after it."
        )
    if note:
        said.append(note)
    if every["score"].between(0.001, 0.999).any():
        said[0] = said[0][:-1] + f" (where answers are graded: their score fell by {FALL:g} or more)."
    gallery = Gallery([example(one, fence) for one in some]) if some else None
    return content(said, gallery, confused(results, split, setting))


def example(one: Any, fence: Fence) -> Wrong:
    picture, side = "", 0
    if one.example is not None and one.example.image is not None:
        picture, side = fence.tried("pictures of examples", ("", 0), thumbnail, one.example.image)
    row = one.row
    often = f"lost in {row['runs']} of {row['of']} runs" if row["of"] > 1 else ""
    return Wrong(row["task"], one.question, row["answer"], row["before"], row["after"], often, picture, side)


def confused(results: Results, split: str, setting: str) -> Table | None:
    table = confusions(results, split, setting).head(CONFUSED)
    if table.empty:
        return None
    rows = [
        Row([row["task"], row["answer"], row["after"] or "(nothing)", f"{row['times']} of {row['of']}"])
        for row in table.to_dict("records")
    ]
    caption = "The most frequent wrong answers at the end, over the same runs."
    return Table(caption, ["task", "right answer", "given instead", "times"], rows, "", frozenset({0, 1, 2}))


Make = Callable[[Results, Figures, Fence], Section]
QUESTIONS: dict[str, tuple[str, str, Make]] = {
    "use": ("What should I use, and how sure is that?", "What to use", use),
    "compare": ("How does it compare?", "Comparison", comparison),
    "tasks": ("What happens to each task?", "Per task", tasks),
    "stability": ("What does stability cost?", "Stability and plasticity", stability),
    "order": ("Does the order of the tasks matter?", "Order", order),
    "choice": ("How was the setting chosen?", "Search and training", choice),
    "wrong": ("What does the model get wrong?", "Wrong answers", wrong),
}
__all__ = ["QUESTIONS", "Section", "Text", "sections"]
