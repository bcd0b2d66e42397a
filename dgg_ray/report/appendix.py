"""The appendix of the page: every number of the study, in collapsible blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dgg_ray.analysis import hardware_drift
from dgg_ray.analysis.alpha_curves import unsearched_parameters
from dgg_ray.analysis.comparison_tables import settings_table
from dgg_ray.analysis.costs_by_task import costs_by_task
from dgg_ray.analysis.results import Results, Spending
from dgg_ray.analysis.run_table import chosen_setting, format_value, metrics
from dgg_ray.analysis.verdict import metric_labels
from dgg_ray.config.sections import STRATEGY_NAME, name_of
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.cost.rates import Estimate, format_amount
from dgg_ray.report.page_elements import (
    Collapsible,
    PageElement,
    Paragraphs,
    Table,
    TableRow,
    collapsible,
    paragraphs,
)
from dgg_ray.report.page_sections import Figures, format_metric

MAX_SETTINGS = 60  # rows of the settings table on the page; settings.csv has all


def appendix_elements(results: Results, further: Figures, optional: OptionalOutputs) -> list[PageElement]:
    """List the blocks of the appendix that have content. further: figures that no section shows."""
    elements: list[PageElement] = []
    for title, build in APPENDIX.items():
        elements += optional.value_or(f"the appendix “{title}”", [], build, results, title)
    return [*elements, *collapsible("Further figures", *further.values())]


def failure_details(results: Results, title: str) -> list[PageElement]:
    """Show every stage that failed, with its traceback."""
    if not results.failures:
        return []
    elements: list[PageElement] = [
        Paragraphs(
            ["These stages failed. All others are valid; runs that needed these stages are not counted."]
        )
    ]
    for failure in results.failures:
        line = (
            f"{failure['error']} while training {failure['trained_task']} (stage {failure['stage']}): "
            f"{failure['message']}"
        )
        elements.append(Paragraphs([line]))
        if failure["traceback"]:
            elements += collapsible("traceback", Paragraphs([failure["traceback"]], preformatted=True))
    return [Collapsible(f"{title} ({len(results.failures)})", elements, "failures")]


def evaluated_settings(results: Results, title: str) -> list[PageElement]:
    """Show the evaluated settings: those with the highest scores, and all that are compared."""
    table = settings_table(results)
    if table.empty:
        return []
    shown = table[(table.index < MAX_SETTINGS) | (table["role"] != "")]
    rows = [settings_row(results, row) for row in shown.to_dict("records")]
    unsearched = unsearched_parameters(results)
    parameters = [
        name_of(parameter) + (" (not searched)" if parameter in unsearched else "")
        for parameter in results.all_parameters
        if parameter != STRATEGY_NAME
    ]
    caption = (
        f"{results.setup.selection_split.capitalize()} split, in percent with 95 % intervals, highest first. "
        "Settings that were pruned or are not finished follow the others."
    )
    if results.setup.held_out:
        caption += (
            " Settings of the search are scored on its blocks, and baselines that it did not try on the "
            "held-out blocks: a difference between the two is one of blocks as well as of methods."
        )
    if len(rows) < len(table):
        caption += f" {len(rows)} of {len(table)} settings are shown; settings.csv has all."
    header = ["setting", "method", *parameters, "blocks", *metric_labels(results).values()]
    return collapsible(title, Table(caption, header, rows, "settings.csv", frozenset({0, 1})))


def settings_row(results: Results, row: Mapping[Any, Any]) -> TableRow:
    """Format a row of `settings_table`; a star marks the chosen setting."""
    is_chosen = row["setting"] == chosen_setting(results)
    method = row["strategy"]
    if is_chosen:
        method += " ★"
    elif row["role"].startswith(method):  # `l2sp (untuned)`
        method = row["role"]
    elif row["role"]:
        method += f" ({row['role']})"
    blocks = str(row["blocks"])
    if not row["whole"]:
        blocks = f"{blocks} of {results.search.blocks if results.search else 1}"
    values = [format_value(row[path]) for path in results.all_parameters if path != STRATEGY_NAME]
    scores = [format_metric(row, metric) for metric in metric_labels(results)]
    return TableRow([row["setting"], method, *values, blocks, *scores], "best" if is_chosen else "")


def compared_methods(results: Results, title: str) -> list[PageElement]:
    """Show how well each compared method is known, what it needs, and the size of its adapter."""
    if results.methods is None or results.methods.empty:
        return []
    rows = [
        TableRow(
            [
                row["label"],
                row["known_from"] or "this project",
                row["needs"] or "nothing more",
                str(row["rank"]),
                *(f"{row[name]:,.0f}" if row[name] == row[name] else "" for name in ("trainable", "stored")),
                f"{row['train_seconds']:.3g}" if row["stages"] else "",
            ]
        )
        for row in results.methods.to_dict("records")
    ]
    caption = (
        "Known from: what of the method was read before it was written here. Trainable: numbers that a stage "
        "trains; stored: numbers of the adapter after the last task. Seconds: mean training time of a stage, "
        "beside whatever else the machines did."
    )
    header = ["method", "known from", "needs", "rank", "trainable", "stored", "seconds per stage"]
    return collapsible(title, Table(caption, header, rows, "methods.csv", frozenset({0, 1, 2})))


def metric_definitions(results: Results, title: str) -> list[PageElement]:
    """Show the definition of each metric, the first line of its docstring."""
    rows = [
        TableRow([name, (function.__doc__ or "").strip().splitlines()[0]])
        for name, function in metrics().items()
    ]
    caption = "comparison.csv has every metric of every method, with intervals and paired differences."
    return collapsible(
        title, Table(caption, ["metric", "definition"], rows, "comparison.csv", frozenset({0, 1}))
    )


def costs(results: Results, title: str) -> list[PageElement]:
    """Show the seconds of the stages and their evaluations, and what was spent next to the forecast."""
    stages = spending = None
    if rows := cost_rows(results.costs):
        caption = "Stages by the task trained. A stage is trained once, however many runs ask for it."
        header = ["task", "asked for", "trained", "shared", "training, s", "evaluation, s", "peak memory, MB"]
        *tasks, total = rows
        stages = Table(caption, header, [*map(TableRow, tasks), TableRow(total, "sum")], "costs.csv")
    if rows := spending_rows(results.spending):
        caption = (
            "What this study spent on its own stages and profiling, and the forecast made at the start of "
            "each run for all remaining work. A run that was stopped spent less than its forecast, and the "
            "search may have taken another course than the forecast assumed."
        )
        header = ["run", "unit", "predicted", "spent"]
        spending = Table(caption, header, list(map(TableRow, rows)), "", frozenset({0, 1}))
    return collapsible(title, stages, spending)


def cost_rows(costs: pd.DataFrame) -> list[list[str]]:
    """List stages asked for, trained and shared, seconds and peak memory: a row per task, then the total."""
    return [
        [
            part.task or "(untrained model)",
            *map(str, (part.requested, part.trained, part.requested - part.trained)),
            f"{part.train_seconds:,.1f}",
            f"{part.evaluation_seconds:,.1f}",
            "–" if np.isnan(part.peak_memory_mb) else f"{part.peak_memory_mb:,.0f}",
        ]
        for part in costs_by_task(costs)
    ]


def spending_rows(spending: Spending) -> list[list[str]]:
    """List the forecast at the start of each run and what the run spent, a row per unit; then the totals."""
    rows = []
    for run, unit, predicted, spent in spending.runs:
        forecast = format_amount(Estimate(**predicted)) if predicted else "no measurements yet"
        rows.append([run, unit, forecast, f"{spent:.3g}"])
    budget = f"budget {spending.budget}" if spending.budget else ""
    return rows + [["all", unit, budget, f"{spent:.3g}"] for unit, spent in spending.spent.items()]


def machine_types(results: Results, title: str) -> list[PageElement]:
    """Show the machine types, and whether their scores agree."""
    rows = [TableRow(list(map(str, row))) for row in hardware_drift.machine_rows(results.hardware)]
    if not rows:
        return []
    caption = (
        "One small stage is trained again on each further machine type. Drift: the largest difference of its "
        "scores from those of the reference, in points."
    )
    header = ["machine type", "stages", "drift", "evaluation", "weights"]
    return collapsible(title, Table(caption, header, rows, "", frozenset({0, 3, 4})))


def data(results: Results, title: str) -> list[PageElement]:
    """Show the number of examples in each task, by split."""
    sizes: Mapping[str, Mapping[str, int]] = results.facts.get("tasks", {})
    splits = list(dict.fromkeys(split for by_split in sizes.values() for split in by_split))
    rows = [
        TableRow([task, *(str(by_split.get(split, "–")) for split in splits)])
        for task, by_split in sizes.items()
    ]
    if not rows:
        return []
    return collapsible(title, Table("Examples in each task and split.", ["task", *splits], rows))


def environment(results: Results, title: str) -> list[PageElement]:
    """Show versions, the model, orders, seeds and the other facts of the study."""
    skipped = ("tasks", "study file", "requested stages", "distinct stages", "finished stages")
    facts = {name: value for name, value in results.facts.items() if name not in skipped}
    rows = [TableRow([name, value]) for name, value in flatten_facts(facts)]
    if not rows:
        return []
    caption = "Versions, model, orders and seeds of this study."
    return collapsible(title, Table(caption, ["fact", "value"], rows, "", frozenset({0, 1})))


def study_file(results: Results, title: str) -> list[PageElement]:
    """Show the study file as it was run."""
    if "study file" not in results.facts:
        return []
    return collapsible(title, paragraphs([results.facts["study file"]], preformatted=True))


def flatten_facts(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List facts as (dotted name, text) in their order; a mapping of plain values becomes one line."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            rows += flatten_facts(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            rows.append((f"{prefix}{name}", ", ".join(f"{key} {inner}" for key, inner in value.items())))
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{name}", "; ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


APPENDIX: dict[str, Callable[[Results, str], list[PageElement]]] = {
    "Stages that failed": failure_details,
    "All evaluated settings": evaluated_settings,
    "Compared methods": compared_methods,
    "All metrics": metric_definitions,
    "Costs": costs,
    "Machine types": machine_types,
    "Data": data,
    "Environment": environment,
    "The study file": study_file,
}
