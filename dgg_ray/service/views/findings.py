"""Views of what a study found: summary, settings, comparison, failures, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dgg_ray.analysis.alpha_curves import undecided_alphas, unsearched_parameters
from dgg_ray.analysis.comparison_tables import compare, settings_table, shown_difference
from dgg_ray.analysis.costs_by_task import costs_by_task
from dgg_ray.analysis.next_steps import largest_steps
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    cached,
    chosen_label,
    chosen_setting,
    final_split,
    headline_metric,
    printed_labels,
    setting_values,
    settings_by_label,
)
from dgg_ray.analysis.verdict import STATUS_LABELS, compared_metrics, metric_label, metric_labels, verdict
from dgg_ray.api import Outcome
from dgg_ray.config.sections import STRATEGY_NAME, name_of
from dgg_ray.config.study import Study
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.cost.budget import UNITS, DiskLimit
from dgg_ray.cost.model import unit_rates
from dgg_ray.planning.plan import Plan, plan
from dgg_ray.report.page_sections import difference_line, format_metric
from dgg_ray.report.summary import blocks_sentence, detail_sentences, failure_sentences, notice_sentences
from dgg_ray.stats.formats import UNLABELLED, format_estimate, format_score, score_interval

NOT_BEGUN = "Nothing is finished yet."
UNIT_KEYS = {  # unit → its key, as in a study's budget
    "worker-hours": "worker_hours",
    "GPU-hours": "gpu_hours",
    "money": "money",
    "wall hours": "wall_hours",
    "GB on disk": "disk_gb",
}
MAX_TRACEBACK = 20_000  # characters of a traceback, its end


def summary(outcome: Outcome) -> dict[str, Any]:
    """The answer of the study in sentences, and what limits it.

    status: of the verdict, or `not begun`. details: more about the choice. missing: parts that could not be
    made, a sentence each.
    """
    results, optional = outcome.results, OptionalOutputs()
    value_or = optional.value_or
    facts = results.facts
    known: dict[str, Any] = {
        "name": results.name,
        "question": results.question,
        "begun": outcome.begun,
        "stages": {name: facts.get(f"{name} stages") for name in ("requested", "distinct", "finished")},
        "status": "not begun",
        "status_label": STATUS_LABELS["nothing evaluated"],
        "answer": [NOT_BEGUN],
        "notices": [],
        "failed": failure_sentences(results),
        "best": None,
        "next_steps": [],
        "details": [],
    }
    if outcome.begun:
        finding = value_or("the verdict", None, verdict, results)
        known |= {
            "status": finding.status if finding else "",
            "status_label": STATUS_LABELS[finding.status] if finding else "",
            "answer": [finding.headline, *finding.support] if finding else [],
            "notices": value_or("the notices", [], notice_sentences, results),
            "best": value_or("the best setting", None, best, results),
            "details": value_or("more about this choice", [], detail_sentences, results),
            "next_steps": [
                {"text": step.text, "hours": step.hours}
                for step in value_or("what more computing would change", [], largest_steps, results)
            ],
        }
    return known | {"missing": [*outcome.optional.messages, *optional.messages]}


def best(results: Results) -> dict[str, Any] | None:
    """The chosen setting with its score on the split of the comparison; None before there is one.

    values: searched parameters with their values, and what is known of each, in words.
    """
    setting, metric = chosen_setting(results), headline_metric(results)
    if setting is None or setting not in setting_values(results).index:
        return None
    split = final_split(results)
    rows = compare(results, split)
    row = rows[(rows["metric"] == metric) & (rows["setting"] == setting)].to_dict("records")[0]
    return {
        "setting": setting,
        "label": chosen_label(results),
        "metric": metric,
        "metric_label": metric_label(metric),
        "split": split,
        "score": row["score"],
        "low": row["low"],
        "high": row["high"],
        "n": row["n"],
        "text": "" if np.isnan(row["score"]) else format_score(row),
        "values": chosen_values(results, setting),
    }


def chosen_values(results: Results, setting: str) -> list[dict[str, Any]]:
    """The value of each search parameter of the chosen setting, and how certain it is, in words."""
    values, undecided = setting_values(results).loc[setting], undecided_alphas(results)
    unsearched = unsearched_parameters(results)
    return [
        {
            "parameter": parameter,
            "name": name_of(parameter),
            "value": values[parameter],
            "certainty": "not searched" if parameter in unsearched else undecided.get(parameter, ""),
        }
        for parameter in results.parameters
    ]


def settings(outcome: Outcome) -> dict[str, Any]:
    """Every setting with finished stages, the highest first, on the split on which settings were chosen.

    columns: {key, title, kind}, kind `text`, `number` or `score`. A row has a value for each key. For a score
    it has KEY_low, KEY_high, KEY_n and KEY_text too. whole: whether the setting was evaluated on all blocks.
    """
    results = outcome.results
    metrics = metric_labels(results)
    parameters = [path for path in results.all_parameters if path != STRATEGY_NAME]
    columns = [
        ("setting", "setting", "text"),
        ("labels", "labels", "text"),
        ("strategy", "method", "text"),
        *((path, name_of(path), parameter_kind(results, path)) for path in parameters),
        ("blocks", "blocks", "number"),
        *((metric, label, "score") for metric, label in metrics.items()),
    ]
    rows = []
    if outcome.begun:
        labels = outcome.settings["labels"]
        rows = [
            settings_row(row, metrics, parameters)
            | {
                "labels": labels[row["setting"]],
                "chosen": row["setting"] == chosen_setting(results),
            }
            for row in settings_table(results).to_dict("records")
        ]
    return {
        "split": results.setup.selection_split,
        "columns": [dict(zip(("key", "title", "kind"), column, strict=True)) for column in columns],
        "rows": rows,
    }


def settings_row(row: Mapping[Any, Any], metrics: Mapping[str, str], parameters: list[str]) -> dict[str, Any]:
    """The part of a row of `settings_table` that the view shows."""
    shown = {name: row[name] for name in ("setting", "strategy", "whole", "blocks", *parameters)}
    for metric in metrics:
        shown |= {f"{metric}{suffix}": row[f"{metric}{suffix}"] for suffix in ("", "_low", "_high", "_n")}
        shown[f"{metric}_text"] = format_metric(row, metric)
    return shown


def parameter_kind(results: Results, path: str) -> str:
    values = results.table[path].dropna()
    return "number" if pd.api.types.is_numeric_dtype(values.infer_objects()) else "text"


def comparison(outcome: Outcome) -> dict[str, Any]:
    """The chosen setting against the methods that it was compared with.

    A method's `difference` is the chosen setting minus this one, with the interval that the report shows.
    """
    results = outcome.results
    if not outcome.begun:
        return {"split": results.setup.selection_split, "metrics": [], "rows": [], "blocks": ""}
    split, headline = final_split(results), headline_metric(results)
    table = compare(results, split)
    metrics = compared_metrics(results, table)
    methods = methods_by_label(results)
    values = setting_values(results)
    rows = []
    for label, group in table.groupby("label", sort=False):
        setting = group["setting"].iloc[0]
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        method = methods.get(str(label), {})
        rows.append(
            {
                "label": label,
                "setting": setting,
                "strategy": values["strategy"].get(setting, method.get("strategy", "")),
                "chosen": setting == chosen_setting(results),
                "known_from": method.get("known_from", ""),
                "tuned": group["tuning"].iloc[0],
                "metrics": {m: compared_score(by_metric[m], m == headline) for m in metrics},
                "p": by_metric[headline]["p_adjusted"],
                "trainable": method.get("trainable"),
                "stored": method.get("stored"),
                "seconds": method.get("train_seconds"),
                "needs": method.get("needs", ""),
            }
        )
    has_scores = table["score"].notna().any()
    return {
        "split": split,
        "headline": headline,
        "metrics": [{"key": metric, "label": metric_label(metric)} for metric in metrics],
        "rows": rows,
        "blocks": blocks_sentence(results, split) if has_scores and len(rows) > 1 else "",
    }


def compared_score(row: Mapping[Any, Any], is_headline: bool) -> dict[str, Any]:
    """A score of a method and its difference to the chosen setting, as the report prints them."""
    gap = shown_difference(row, simultaneous=is_headline)
    return {
        **{name: row[name] for name in ("score", "low", "high", "n")},
        "text": format_estimate(score_interval(row), UNLABELLED),
        "difference": gap.mean if gap else None,
        "difference_low": gap.low if gap else None,
        "difference_high": gap.high if gap else None,
        "pairs": gap.n if gap else None,
        "difference_text": difference_line(row, simultaneous=is_headline),
    }


def methods_by_label(results: Results) -> dict[str, dict[Any, Any]]:
    """The rows of the table of methods by the labels of the comparison."""
    if results.methods is None:
        return {}
    rows, printed = results.methods.to_dict("records"), printed_labels(results)
    found: dict[str, dict[Any, Any]] = {printed.get(row["label"], str(row["label"])): row for row in rows}
    own = [row for row in rows if row["label"] not in results.baselines]
    return found | ({chosen_label(results): own[0]} if own else {})


def failures(outcome: Outcome) -> dict[str, Any]:
    """Every stage that failed: its run, and the error with its traceback.

    A stage of several runs is listed with the first of them; `runs` counts them.
    """
    archive = outcome.results.archive
    runs: dict[str, list[tuple[str, str, int]]] = {}
    failed = {failure["stage"] for failure in outcome.results.failures}
    for name, (_, run) in (archive.runs if archive and failed else {}).items():
        for stage in run.stages:
            if (key := stage.key[:8]) in failed:
                runs.setdefault(key, []).append(name)
    items = []
    for failure in outcome.results.failures:
        names = runs.get(failure["stage"], [])
        setting, order, seed = names[0] if names else (None, None, None)
        item = failure | {"setting": setting, "order": order, "seed": seed, "runs": len(names)}
        items.append(item | {"traceback": failure["traceback"][-MAX_TRACEBACK:]})
    return {"items": items, "sentences": failure_sentences(outcome.results)}


def costs(outcome: Outcome) -> dict[str, Any]:
    """The study's spending, by unit and by task, and the forecast of the rest.

    spent: unit → amount. forecast: unit → [mean, low, high] of the rest; null where nothing was measured.
    units: key → unit. limits: those that a budget of the study can have, with the present ones; null is none.
    runs: the forecast at the start of each run, and what the run spent.
    """
    results = outcome.results
    forecast = None
    if results.archive is not None:
        remaining = predicted(results).cost_forecast.remaining
        if remaining:
            forecast = {UNIT_KEYS[unit]: list(amount) for unit, amount in remaining.amounts().items()}
    return {
        "spent": {UNIT_KEYS[unit]: amount for unit, amount in results.spending.spent.items()},
        "units": {key: unit for unit, key in UNIT_KEYS.items()},
        "budget": results.spending.budget,
        "limits": limits_of(results.archive.study) if results.archive else {},
        "refused": results.spending.refused,
        "forecast": forecast,
        "runs": [
            {
                "run": run,
                "unit": unit,
                "predicted": [before[name] for name in ("mean", "low", "high")] if before else None,
                "spent": spent,
            }
            for run, unit, before, spent in results.spending.runs
        ],
        "by_part": [part._asdict() for part in costs_by_task(results.costs)],
    }


def limits_of(study: Study) -> dict[str, float | None]:
    """The limits that a budget of the study can have, by their names there; None where there is none now."""
    rates = unit_rates(study.workers)
    names = [name for name, unit in UNITS.items() if unit in rates]
    return {name: getattr(study.budget, name, None) for name in (*names, DiskLimit.name)}


def progress(outcome: Outcome) -> dict[str, Any]:
    """The counts of the study's plan: stages requested, distinct, stored and to be trained, and the costs."""
    results = outcome.results
    return {} if results.archive is None else predicted(results).as_json()


@cached
def predicted(results: Results) -> Plan:
    """The plan of the study, as its store was when the results were loaded."""
    assert results.archive is not None
    return plan(results.archive.study, results.archive.store)


def label_of(results: Results, setting: str) -> str:
    """The label under which a setting was compared; its id where it was not."""
    return next((label for label, known in settings_by_label(results).items() if known == setting), setting)
