"""The end of the report, for who wants every number: all of it folded."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from dgg_ray.analysis import hardware_drift
from dgg_ray.analysis.agreement import unsearched
from dgg_ray.analysis.results import Results, Spending
from dgg_ray.analysis.run_table import chosen, metrics, text_of
from dgg_ray.analysis.standings import judged
from dgg_ray.analysis.verdict import SHOWN
from dgg_ray.config.sections import name_of
from dgg_ray.core.fence import Fence
from dgg_ray.cost.rates import Estimate, show
from dgg_ray.report.parts import Fold, Part, Row, Table, Text, fold, text
from dgg_ray.report.questions import Figures, with_interval

MANY = 60  # rows of the settings table on the page; settings.csv has all


def folds(results: Results, further: Figures, fence: Fence) -> list[Part]:
    """Everything that the appendix has. further: figures that no question asked for."""
    found: list[Part] = []
    for title, make in FOLDS.items():
        found += fence.tried(f"the appendix “{title}”", [], make, results, title)
    return [*found, *fold("Further figures", *further.values())]


def failures(results: Results, title: str) -> list[Part]:
    """Every stage that ended early, with its traceback."""
    found: list[Part] = []
    for failure in results.failures:
        lines = [
            f"{failure['error']} while training {failure['trained_task']} (stage {failure['stage']}): "
            f"{failure['message']}"
        ]
        trace = [failure["traceback"]] if failure["traceback"] else []
        found += [Text(lines), *fold("traceback", text(trace, code=True))]
    if not found:
        return []
    note = "These stages ended early. All others are valid; runs that needed these are not counted."
    return [Fold(f"{title} ({len(results.failures)})", [Text([note]), *found], "failures")]


def all_settings(results: Results, title: str) -> list[Part]:
    """The settings judged, the first ones and whatever is compared."""
    best = judged(results)
    if best.empty:
        return []
    total = results.search.blocks if results.search else 1
    shown = best[(best.index < MANY) | (best["role"] != "")]
    rows = []
    for row in shown.to_dict("records"):
        own = row["setting"] == chosen(results)
        role = f" ({row['role']})" if row["role"] and row["role"] != row["strategy"] else ""
        rows.append(
            Row(
                [
                    row["setting"],
                    f"{row['strategy']}{' ★' if own else role}",
                    *(text_of(row[parameter]) for parameter in results.parameters),
                    str(row["blocks"]) if row["whole"] else f"after {row['blocks']} of {total}",
                    *(with_interval(row, name) for name in SHOWN),
                ],
                "best" if own else "",
            )
        )
    idle = unsearched(results)
    head = [
        *("setting", "method"),
        *(
            name_of(parameter) + (" (not searched)" if parameter in idle else "")
            for parameter in results.parameters
        ),
        *("blocks", *SHOWN.values()),
    ]
    more = f" {len(rows)} of {len(best)} are here, settings.csv has all." if len(rows) < len(best) else ""
    elsewhere = (
        " Settings of the search stand here by its blocks, baselines that it did not try by held-out ones: "
        "between the two, blocks differ as well as methods."
    ) * results.terms.held_out
    caption = (
        f"{results.terms.selection_split.capitalize()} split, in percent with 95 % intervals, highest first; what "
        f"was pruned or is not finished stands after the others.{elsewhere}{more}"
    )
    return fold(title, Table(caption, head, rows, "settings.csv", frozenset({0, 1})))


def all_metrics(results: Results, title: str) -> list[Part]:
    """The definition of each metric, read off its file."""
    rows = [
        Row([name, (function.__doc__ or "").strip().splitlines()[0]]) for name, function in metrics().items()
    ]
    caption = "comparison.csv has each of these for each method, with intervals and paired differences."
    return fold(title, Table(caption, ["metric", "what it is"], rows, "comparison.csv", frozenset({0, 1})))


def costs(results: Results, title: str) -> list[Part]:
    """Seconds of the stages and their evaluations, beside the forecast."""
    rows = cost_rows(results.costs)
    table = spent = None
    if rows:
        caption = "Stages by the task trained. A stage is trained once, however many runs ask for it."
        head = ["task", "asked for", "trained", "shared", "training, s", "evaluation, s", "peak memory, MB"]
        last = len(rows) - 1
        table = Table(
            caption,
            head,
            [Row(row, "sum" if place == last else "") for place, row in enumerate(rows)],
            "costs.csv",
        )
    if found := spending_rows(results.spending):
        caption = (
            "What this study spent on stages and profiling of its own, and what was predicted at the start "
            "of each run for all that was left then. A run that was stopped spent less; the search may have "
            "gone another way than foreseen."
        )
        spent = Table(
            caption, ["run", "unit", "predicted", "spent"], list(map(Row, found)), "", frozenset({0, 1})
        )
    return fold(title, table, spent)


def cost_rows(costs: pd.DataFrame) -> list[list[str]]:
    """Per task and in all: stages asked for, trained, shared; seconds of training and evaluation; memory."""
    if costs.empty:
        return []
    groups = [*costs.groupby("trained_task", sort=True), ("all", costs)]
    return [
        [
            str(task) or "(untouched model)",
            str(int(group["runs"].sum())),
            str(len(group)),
            str(int(group["runs"].sum()) - len(group)),
            f"{group['train_seconds'].sum():,.1f}",
            f"{group['evaluation_seconds'].sum():,.1f}",
            "–" if group["peak_memory_mb"].isna().all() else f"{group['peak_memory_mb'].max():,.0f}",
        ]
        for task, group in groups
    ]


def spending_rows(spending: Spending) -> list[list[str]]:
    """Per run and unit: what was predicted at its start, and what it spent."""
    return [
        [run, unit, show(Estimate(**predicted)) if predicted else "nothing was measured yet", f"{spent:.3g}"]
        for run, unit, predicted, spent in spending.runs
    ] + [
        ["all", unit, f"budget {spending.budget}" if spending.budget else "", f"{spent:.3g}"]
        for unit, spent in spending.spent.items()
    ]


def machines(results: Results, title: str) -> list[Part]:
    """The kinds of machine, and whether they agree."""
    rows = hardware_drift.rows(results.machines)
    if not rows:
        return []
    caption = (
        "One small stage is trained again once on each further kind of machine. Drift: the largest "
        "difference of its scores from the published ones, in points."
    )
    head = ["kind", "stages", "drift", "evaluation", "weights"]
    return fold(
        title, Table(caption, head, [Row(list(map(str, row))) for row in rows], "", frozenset({0, 3, 4}))
    )


def data(results: Results, title: str) -> list[Part]:
    """Questions in each task, by split."""
    sizes: Mapping[str, Mapping[str, int]] = results.facts.get("tasks", {})
    splits = list(dict.fromkeys(split for of in sizes.values() for split in of))
    rows = [Row([name, *(str(of.get(split, "–")) for split in splits)]) for name, of in sizes.items()]
    return fold(title, Table("Examples in each task and split.", ["task", *splits], rows) if rows else None)


def environment(results: Results, title: str) -> list[Part]:
    """Versions, the model, orders, seeds and what else the study's facts hold."""
    skipped = ("tasks", "study file", "stages asked for", "distinct stages", "finished stages")
    facts = {name: value for name, value in results.facts.items() if name not in skipped}
    rows = [Row([name, value]) for name, value in flat(facts)]
    caption = "What was used."
    return fold(title, Table(caption, ["fact", "value"], rows, "", frozenset({0, 1})) if rows else None)


def study_file(results: Results, title: str) -> list[Part]:
    """The study, as it was run."""
    return (
        fold(title, text([results.facts["study file"]], code=True)) if "study file" in results.facts else []
    )


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Facts as (dotted name, text), in their order; a mapping of plain values is one line."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            rows += flat(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            rows.append((f"{prefix}{name}", ", ".join(f"{k} {v}" for k, v in value.items())))
        else:
            text = "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{name}", text))
    return rows


FOLDS: dict[str, Callable[[Results, str], list[Part]]] = {
    "Stages that failed": failures,
    "All settings judged": all_settings,
    "All metrics": all_metrics,
    "What it cost": costs,
    "Kinds of machine": machines,
    "Data": data,
    "Environment": environment,
    "The study file": study_file,
}
