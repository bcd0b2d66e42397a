"""The last lines that a run and `dgg-ray best` print: verdict, table of methods, paths of the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dgg_ray.analysis.comparison_tables import compare
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import chosen_label, chosen_setting, final_split, headline_metric, runs
from dgg_ray.analysis.verdict import METRIC_LABELS, verdict
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report.summary import failure_sentences, notice_sentences
from dgg_ray.stats.formats import format_paired_difference, format_percent, format_score

TABLE_LINES = 5  # of the table of methods, with its header
COMMON_BASELINES = ("replay", "finetune")  # baselines of nearly every study


def summary_lines(results: Results, optional: OptionalOutputs) -> list[str]:
    """List the verdict, the notices that limit it, and the table of methods.

    optional: names the parts that fail; the others are returned. Raises ResultsError for a study without a
    finished stage.
    """
    runs(results, final_split(results))  # raises
    sentences: list[str] = []
    finding = optional.value_or("the verdict", None, verdict, results)
    if finding is not None:
        sentences += [finding.headline, *finding.support]
    sentences += optional.value_or("the notices", [], notice_sentences, results)
    sentences += optional.value_or("the list of failures", [], failure_sentences, results)
    lines = list(dict.fromkeys(sentences))
    table = optional.value_or("the table of methods", [], method_table, results)
    return [*lines, "", *table] if table else lines


def method_table(results: Results) -> list[str]:
    """Format at most five lines: a header, the chosen setting, and the methods it was compared with.

    If there are more methods, the table keeps joint training and the highest baseline, then the common
    baselines. A line below the table counts the methods that only the report shows.
    """
    split, metric = final_split(results), headline_metric(results)
    comparison = compare(results, split)
    scored = (comparison["metric"] == metric) & comparison["score"].notna()
    rows = comparison[scored].to_dict("records")
    if not rows:
        return []
    forgetting = comparison[comparison["metric"] == "forgetting"].set_index("label")["score"]
    shown = select_rows(results, rows, TABLE_LINES - 1)
    name = METRIC_LABELS.get(metric, metric.replace("_", " "))
    cells = [("", f"{name} on {split}, %", f"{chosen_label(results)} minus this", "forgetting")]
    for row in shown:
        is_chosen = row["setting"] == chosen_setting(results)
        label = f"* {row['label']}" if is_chosen else f"  {row['label']}"
        difference = "" if is_chosen else format_paired_difference(row)
        forgotten = format_percent(forgetting.get(row["label"], np.nan))
        cells.append((label, format_score(row), difference, forgotten))
    lines = align_columns(cells)
    if hidden := len(rows) - len(shown):
        lines.append(f"  ({hidden} more method{'s' * (hidden > 1)} in the report)")
    return lines


def select_rows(results: Results, rows: Sequence[dict[Any, Any]], count: int) -> list[dict[Any, Any]]:
    """Select the chosen setting, joint training, the highest other method, then COMMON_BASELINES."""
    by_priority = [
        chosen_setting(results),
        *(results.baselines.get(name) for name in ("joint", *COMMON_BASELINES)),
    ]
    others = [row for row in rows if row["setting"] not in by_priority[:2]]
    if others:
        by_priority.insert(2, max(others, key=lambda row: row["score"])["setting"])
    by_priority += [row["setting"] for row in others]
    available = {row["setting"] for row in rows}
    selected = [setting for setting in dict.fromkeys(by_priority) if setting in available][:count]
    return [row for row in rows if row["setting"] in selected]


def align_columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Join each row of cells into a line; every column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def adapter_lines(results: Results) -> list[str]:
    """List the paths of the adapters at the end of the chosen setting's final runs, a line each."""
    setting = chosen_setting(results)
    if setting is None or results.archive is None:
        return []
    final_blocks = set(results.setup.final_blocks)
    adapters = list(results.archive.adapters(setting))
    if final_blocks:
        adapters = [adapter for adapter in adapters if (adapter.order, adapter.seed) in final_blocks]
    if not adapters:
        return []
    label = chosen_label(results)
    if not any(adapter.path for adapter in adapters):
        return [f"The store keeps no adapters of {label}."]
    lines = [f"adapters of {label}, after the last task (PEFT folders):"]
    for adapter in adapters:
        path = adapter.path or "removed to free disk space"
        lines.append(f"  {adapter.order}, seed {adapter.seed}: {path}")
    return lines
