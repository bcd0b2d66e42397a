"""The seven sections of the page: each answers a question with a few sentences, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dgg_ray.analysis import next_steps, order_sentences
from dgg_ray.analysis.alpha_curves import tradeoff_rows, undecided_alphas, unsearched_parameters
from dgg_ray.analysis.comparison_tables import compare, mean_gap, settings_table, shown_difference
from dgg_ray.analysis.optimism import audit_sentences, pruning_sentences
from dgg_ray.analysis.order_sensitivity import faa_spread, task_disparity
from dgg_ray.analysis.per_task import most_forgotten, per_task
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen_label,
    chosen_setting,
    final_split,
    format_value,
    headline_metric,
    setting_values,
    settings_by_label,
)
from dgg_ray.analysis.search_summary import pareto_front
from dgg_ray.analysis.tuning import tuned_values, tuning_sentences
from dgg_ray.analysis.verdict import METRIC_LABELS, compared_metrics, metric_label, verdict
from dgg_ray.config.sections import STRATEGY_NAME, name_of
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.phrases import join_names
from dgg_ray.report.figures.stability_plasticity import AXES, constant_alpha_curves, settings_as_points
from dgg_ray.report.outside_tasks import outside_sentences, outside_table
from dgg_ray.report.page_elements import (
    FigureImage,
    Section,
    SectionContent,
    Table,
    TableRow,
    collapsible,
    paragraphs,
    section_content,
)
from dgg_ray.report.summary import blocks_sentence, detail_sentences
from dgg_ray.report.wrong_answers import wrong_answers_section
from dgg_ray.search.objective import difference_range
from dgg_ray.stats.formats import (
    UNLABELLED,
    UNLABELLED_SIGNED,
    EstimateStyle,
    format_estimate,
    format_on_fixed_orders,
    format_p_value,
    format_percent,
    format_signed,
    score_interval,
)
from dgg_ray.stats.intervals import Interval, two_way_clusters

Figures = Mapping[str, FigureImage]  # by name


def build_sections(results: Results, figures: Figures, optional: OptionalOutputs) -> list[Section]:
    """Build the sections that have content, in the page's order; `optional` names those that fail."""
    sections = []
    for spec in SECTIONS:
        content = optional.value_or(
            f"the section “{spec.title}”", SectionContent(), spec.build, results, figures, optional
        )
        if content:
            sections.append(
                Section(spec.anchor, spec.title, spec.short_title, content.sentences, content.elements)
            )
    return sections


# -- 1: which setting to use ---------------------------------------------------------------------------


def use_section(results: Results, figures: Figures, optional: OptionalOutputs) -> SectionContent:
    """Give the verdict, the chosen values and their certainty, and what more computing would change."""
    finding = verdict(results)
    details = optional.value_or("more about this choice", [], detail_sentences, results)
    next_step_lines = optional.value_or(
        "what more computing would change", [], next_steps.next_step_sentences, results
    )
    return section_content(
        [finding.headline, *finding.support[:3]],
        optional.value_or("the table of chosen values", None, chosen_values_table, results),
        collapsible("More about this choice", paragraphs(details)),
        collapsible("What more computing would change", paragraphs(next_step_lines, numbered=True)),
    )


def chosen_values_table(results: Results) -> Table | None:
    """List the chosen value of each search parameter, and which other values are as good."""
    setting = chosen_setting(results)
    if setting is None or not results.parameters or setting not in setting_values(results).index:
        return None
    values = setting_values(results).loc[setting]
    undecided, unsearched = undecided_alphas(results), unsearched_parameters(results)
    rows = []
    for parameter in results.parameters:
        if STRATEGY_NAME in values and format_value(values[parameter]) == "–":
            continue  # a setting of another strategy
        certainty = "not searched" if parameter in unsearched else undecided.get(parameter, "")
        rows.append(TableRow([name_of(parameter), format_value(values[parameter]), certainty]))
    header = ["search parameter", "value", "certainty"]
    if not any(row.cells[2] for row in rows):
        header, rows = header[:2], [TableRow(row.cells[:2]) for row in rows]
    caption = "The setting that was chosen on the blocks of the search."
    return Table(caption, header, rows, "settings.csv", frozenset({0, 2}))


# -- 2: comparison with other methods ------------------------------------------------------------------


def comparison_section(results: Results, figures: Figures, optional: OptionalOutputs) -> SectionContent:
    """Compare the chosen setting with the other methods, on other orders and on these alone."""
    split, metric = final_split(results), headline_metric(results)
    table = compare(results, split)
    if table["score"].isna().all():
        return SectionContent()
    if table["label"].nunique() < 2:
        sentences = ["The setting was compared with no other method: the study has no protocol.baselines."]
    else:
        sentences = [
            blocks_sentence(results, split),
            f"The second line of a cell is the score of {chosen_label(results)} minus that of this method, "
            "paired over these blocks. A difference whose interval contains 0 is not significant.",
            *tuning_sentences(results),
        ]
    metrics = compared_metrics(results, table)
    return section_content(
        sentences,
        comparison_table(results, table, metrics, split),
        figures.get("forest"),
        collapsible("On these orders alone, over seeds", fixed_orders_table(results, table, metric, split)),
    )


def comparison_table(results: Results, table: pd.DataFrame, metrics: Sequence[str], split: str) -> Table:
    """Show each method in each metric, with intervals; paired differences are second lines."""
    rows = []
    main_metric, tunable = headline_metric(results), table["tuning"].any()
    for label, group in table.groupby("label", sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        is_chosen = group["setting"].iloc[0] == chosen_setting(results)
        cells = [
            (
                format_estimate(score_interval(by_metric[m]), UNLABELLED),
                difference_line(by_metric[m], simultaneous=m == main_metric),
            )
            for m in metrics
        ]
        p_value = format_p_value(by_metric[main_metric]["p_adjusted"])
        tuning = [(group["tuning"].iloc[0], tuned_values(results, str(label)))] if tunable else []
        rows.append(TableRow([str(label), *tuning, *cells, p_value], "best" if is_chosen else ""))
    header = ["method", *(["tuning"] if tunable else []), *map(metric_label, metrics), "p"]
    caption = (
        f"{split.capitalize()} split, in percent: mean (95 % CI over other orders and seeds). The intervals "
        f"and p values (Bonferroni) of differences in {metric_label(main_metric)} hold for all methods at "
        "once, except joint training, the reference. In the other metrics, each difference has an interval "
        "of its own. FAA: final score over all questions. Stability: final score on the tasks before the "
        "last. Plasticity: score on a task right after training on it, without the first task. BWT: change "
        "of the earlier tasks' scores since they were trained."
    )
    if "retention" in metrics:
        caption += " Retention: change of the tasks that are only evaluated against the untouched model."
    return Table(caption, header, rows, "comparison.csv")


def difference_line(row: Mapping[Any, Any], simultaneous: bool) -> str:
    """Format the paired difference of `shown_difference`; empty for the chosen setting itself."""
    difference = shown_difference(row, simultaneous)
    return format_estimate(difference, UNLABELLED_SIGNED) if difference else ""


def fixed_orders_table(results: Results, table: pd.DataFrame, metric: str, split: str) -> Table | None:
    """Show the headline metric with seeds as the replicates, as much of the literature does."""
    comparable = table[(table["metric"] == metric) & table["fixed_orders_low"].notna()]
    if chosen_setting(results) not in set(comparable["setting"]):
        return None
    rows = []
    for row in comparable.to_dict("records"):
        difference = "" if np.isnan(row["difference"]) else format_on_fixed_orders(row, True)
        rows.append(TableRow([str(row["label"]), format_on_fixed_orders(row), difference]))
    caption = (
        f"{split.capitalize()} split, in percent, with 95 % intervals over the seeds of the orders that were "
        "run. These intervals do not cover other orders."
    )
    header = ["method", METRIC_LABELS.get(metric, metric), f"{chosen_label(results)} minus this method"]
    return Table(caption, header, rows, "comparison.csv")


# -- 3: per task -------------------------------------------------------------------------------------


def per_task_section(results: Results, figures: Figures, optional: OptionalOutputs) -> SectionContent:
    """Show every task's scores and which task is forgotten most."""
    split = final_split(results)
    table = per_task(results, split)
    if table.empty:
        return section_content(["No run of the comparison is finished, so there are no scores by task yet."])
    label = next(iter(settings_by_label(results)))
    sentences = []
    worst = most_forgotten(table, label)
    if worst is not None:
        sentences.append(forgetting_sentence(label, worst))
        other_rows = table[(table["task"] == worst["task"]) & (table["label"] != label)]
        others = [
            f"{row['label']} {format_percent(row['forgetting'])}"
            for row in other_rows.dropna(subset="forgetting").to_dict("records")
        ]
        if others:
            sentences.append(
                f"Forgetting of {worst['task']} by the other methods, in points: {join_names(others)}."
            )
    sentences += optional.value_or(
        "the sentences on tasks that are only evaluated", [], outside_sentences, results, split
    )
    return section_content(
        sentences,
        figures.get("per_task"),
        task_table(table, label, split),
        figures.get("score_matrix"),
        collapsible("The mean score along the sequence", figures.get("learning_along")),
        figures.get("retention"),
        optional.value_or("the tasks that are only evaluated", None, outside_table, results, split),
    )


def forgetting_sentence(label: str, row: pd.Series) -> str:
    """Say which task a method forgets most. row: of that task."""
    if row["forgetting"] <= 0:
        return f"On average, no task of {label} ends below its best score."
    return (
        f"On average, {label} forgets {row['task']} most: when other tasks follow it, it ends "
        f"{format_percent(row['forgetting'])} points below its best score."
    )


def task_table(table: pd.DataFrame, label: str, split: str) -> Table:
    """Show a row per task: all scores of the first method, and the final scores of the others."""
    others = [other for other in dict.fromkeys(table["label"]) if other != label]
    by_method = {(row["label"], row["task"]): row for row in table.to_dict("records")}
    rows = []
    for task in sorted(table["task"].unique()):
        cells = ["–"] * 3
        if row := by_method.get((label, task)):
            final = Interval(
                row["final"], row["final_low"], row["final_high"], row["final_n"], row["final_values"]
            )
            cells = [
                format_percent(row["after_training"]),
                format_estimate(final, UNLABELLED),
                format_percent(row["forgetting"]),
            ]
        finals = [format_percent(by_method.get((other, task), {}).get("final", np.nan)) for other in others]
        rows.append(TableRow([str(task), *cells, *finals]))
    caption = (
        f"{split.capitalize()} split, in percent. The first three columns are of {label}. Trained: score "
        "right after training on the task. Final: score at the end (95 % CI). Forgotten: fall from its best "
        "score, over the blocks in which other tasks follow it."
    )
    if others:
        caption += " The last columns are the final scores of the other methods."
    header = ["task", f"{label}: trained", "final", "forgotten", *others]
    return Table(caption, header, rows, "per_task.csv")


# -- 4: what stability costs ---------------------------------------------------------------------------


def stability_section(results: Results, figures: Figures, optional: OptionalOutputs) -> SectionContent:
    """Show what stability costs in plasticity, for constant α and for each task's α."""
    figure, split = figures.get("stability_plasticity"), results.setup.selection_split
    curves = optional.value_or("the effect of α", [], tradeoff_rows, results)
    sentences = []
    if figure is not None:
        count = len(results.setup.search_blocks)
        blocks = f"{count} block{'s' * (count != 1)} of the search" if count else "all blocks"
        sentences = optional.value_or("the effect of a constant α", [], constant_alpha_sentences, results)
        sentences.append(f"Settings are placed by their scores on the {split} split, over {blocks}.")
        if results.setup.held_out:
            sentences.append(
                "Named methods are placed by their scores on the held-out blocks of the same split; the "
                "comparison above is on the test split."
            )
    table = None
    if curves:
        caption = (
            f"{split.capitalize()} split, in points: changes from the lowest α tried to the highest, with 95 "
            "% bands for one α against another. The curves are monotone fits through every stage that "
            "trained the task after another one, compared within blocks (order so far, seed). Highest: the "
            "α with the highest mean final score, if later stages keep differences in proportion."
        )
        rows = [TableRow(list(row.values())) for row, _ in curves]
        table = Table(caption, list(curves[0][0]), rows, "figures/alpha_effect.csv")
    return section_content(
        sentences,
        figure,
        figures.get("alpha_effect"),
        collapsible(
            "The effect of each task's α in numbers", paragraphs([sentence for _, sentence in curves]), table
        ),
    )


def constant_alpha_sentences(results: Results) -> list[str]:
    """Say how the metrics change from the lowest constant α to the highest, on the longest curve."""
    curves = constant_alpha_curves(results, settings_as_points(results))
    if not curves:
        return []
    other_values = max(curves, key=lambda key: len(curves[key]))
    (low, scores_at_low), *_, (high, scores_at_high) = curves[other_values]
    gaps = (scores_at_high - scores_at_low).dropna()
    if gaps.empty:
        return []
    clusters = two_way_clusters(tuple(gaps.index))
    style = EstimateStyle(format_signed, unit=" points")
    changes = []
    for axis in AXES:
        change = mean_gap(gaps[axis], difference_range(axis), clusters=clusters)
        changes.append(f"{axis} by {format_estimate(change, style)}")
    condition = f" ({other_values})" if other_values else ""
    return [
        f"With one α for all tasks{condition}, α = {format_value(high)} instead of {format_value(low)} "
        f"changes {join_names(changes)}, over the blocks on which both were evaluated."
    ]


# -- 5: effect of the order ----------------------------------------------------------------------------


def order_section(results: Results, figures: Figures, optional: OptionalOutputs) -> SectionContent:
    """Show how much the scores depend on the order of the tasks."""
    split = final_split(results)
    sentences = order_sentences.order_sensitivity_sentences(results)
    spread = spread_table(task_disparity(results, split), faa_spread(results, split), split)
    return section_content(
        sentences[:2],
        figures.get("order_spread"),
        collapsible("By task and by method, in numbers", paragraphs(sentences[2:]), spread),
        collapsible("The effect of a task's position", figures.get("order_effects")),
        collapsible("How each order ranks the methods", figures.get("order_ranks")),
    )


def spread_table(by_task: pd.DataFrame, faa: pd.DataFrame, split: str) -> Table | None:
    """Show a row per task, for the disparities and for FAA; a column per method."""
    if by_task.empty:
        return None
    cells = {}
    for row in by_task.to_dict("records"):
        spread = f"OPD {format_percent(row['opd'])}" if np.isnan(row["lowest"]) else format_extremes(row)
        expected = f"expected {format_percent(row['expected'])}{format_bounds(row, 'low', 'high')}"
        cells[row["label"], row["task"]] = spread, expected
    for row in faa.to_dict("records"):
        sd = f"sd {format_percent(row['sd'])}{format_bounds(row, 'sd_low', 'sd_high')}"
        cells[row["label"], "FAA"] = format_extremes(row), sd
    labels = list(dict.fromkeys(by_task["label"]))
    names = {"AOPD": "mean over tasks (AOPD)", "MOPD": "largest (MOPD)"}
    tasks: list[str] = [*sorted(by_task["task"].unique(), key=["FAA", "MOPD", "AOPD"].count), "FAA"]
    rows = [
        TableRow(
            [names.get(task, task), *(cells.get((label, task), "–") for label in labels)],
            "sum" if task == "AOPD" else "",
        )
        for task in tasks
    ]
    caption = (
        f"{split.capitalize()} split, in percent: lowest and highest final score of each task over the "
        "orders, averaged over seeds. Their distance is the order-normalised performance disparity (OPD; "
        "Yoon et al., ICLR 2020), which seed noise makes too large. Expected: the OPD of as many orders "
        "that share no stage, computed from the standard deviation, with its 95 % interval over clusters of "
        "orders that share a first stage (the same first task and seed)."
    )
    return Table(caption, ["task", *labels], rows, "robustness_tasks.csv")


def format_extremes(row: Mapping[Any, Any]) -> str:
    """Format the lowest and the highest value: `41.0 to 62.5`."""
    return f"{format_percent(row['lowest'])} to {format_percent(row['highest'])}"


def format_bounds(row: Mapping[Any, Any], low: str, high: str) -> str:
    """Format an interval to follow its estimate, ` (12.0 to 34.5)`; empty where there is none."""
    return "" if np.isnan(row[low]) else f" ({format_percent(row[low])} to {format_percent(row[high])})"


# -- 6: how the setting was chosen ---------------------------------------------------------------------


def search_section(results: Results, figures: Figures, optional: OptionalOutputs) -> SectionContent:
    """Show the course of the search, its audit and the training losses."""
    search = results.search
    losses = collapsible("The training loss of every stage", figures.get("training_loss"))
    if search is None:
        return section_content(["Nothing was searched: the setting is the study's own."], losses)
    sentences, audit = search_sentences(results, optional)
    pareto = optional.value_or("the Pareto set", None, pareto_table, results)
    return section_content(
        [*sentences, *audit[:1]][:3],
        figures.get("search"),
        collapsible("More about the audit", paragraphs(audit[1:])),
        collapsible("Which search parameters matter", figures.get("importance")),
        collapsible("The Pareto set", figures.get("pareto"), pareto),
        losses,
    )


def search_sentences(results: Results, optional: OptionalOutputs) -> tuple[list[str], list[str]]:
    """Return the sentences on the course of the search, and those on its audit; none without a search."""
    search, setup = results.search, results.setup
    if search is None:
        return [], []
    count = len(setup.search_blocks)
    sentences = [
        f"The search ({search.method}) proposed {len(search.candidates)} settings and evaluated "
        f"{len(search.in_state('evaluated'))} of them by "
        f"{join_names([metric_label(m) for m in search.objective])} on {count} block{'s' * (count != 1)} of "
        f"the {setup.selection_split} split."
    ]
    sentences += optional.value_or("how many settings were pruned", [], pruning_sentences, search)
    return sentences, optional.value_or("the audit of the search", [], audit_sentences, results)


def pareto_table(results: Results) -> Table | None:
    """Show the Pareto set of several objectives, sorted by the first of them."""
    search = results.search
    if search is None or len(search.objective) < 2:
        return None
    by_setting = {row["setting"]: row for row in settings_table(results).to_dict("records")}
    rows = []
    for candidate in pareto_front(search):
        if candidate.setting not in by_setting:
            continue
        row = by_setting[candidate.setting]
        cells = [row["setting"]]
        cells += [format_value(row[parameter]) for parameter in results.parameters]
        cells += [format_metric(row, metric) for metric in search.objective]
        rows.append(TableRow(cells, "best" if row["setting"] == chosen_setting(results) else ""))
    if not rows:
        return None
    caption = (
        "Settings that satisfy the constraints and that no other setting equals or exceeds in every "
        f"objective. {results.setup.selection_split.capitalize()} split, in percent, over the blocks of the "
        "search."
    )
    metrics = [metric.replace("_", " ") for metric in search.objective]
    header = ["setting", *map(name_of, results.parameters), *metrics]
    return Table(caption, header, rows, "figures/pareto.csv")


def format_metric(row: Mapping[Any, Any], metric: str) -> str:
    """Format a metric of a row of `settings_table` with its interval: `71.2 (69.8 to 72.6)`."""
    parts = (row[f"{metric}{suffix}"] for suffix in ("", "_low", "_high", "_n", "_values"))
    return format_estimate(Interval(*parts), UNLABELLED)


class SectionSpec(NamedTuple):
    """A section of the page and the function that builds its content."""

    anchor: str
    title: str
    short_title: str
    build: Callable[[Results, Figures, OptionalOutputs], SectionContent]


SECTIONS = (
    SectionSpec("use", "Which setting should I use, and how certain is that?", "What to use", use_section),
    SectionSpec("compare", "How does it compare with other methods?", "Comparison", comparison_section),
    SectionSpec("tasks", "What happens to each task?", "Per task", per_task_section),
    SectionSpec("stability", "What does stability cost?", "Stability and plasticity", stability_section),
    SectionSpec("order", "Does the order of the tasks matter?", "Order", order_section),
    SectionSpec("choice", "How was the setting chosen?", "Search and training", search_section),
    SectionSpec("wrong", "What does the model get wrong?", "Wrong answers", wrong_answers_section),
)
