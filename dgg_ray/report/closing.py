"""The closing lines of a run and of `dgg-ray best`: the verdict, a short table, and where things lie."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import chosen, compare, final_split, headline, own_label, runs
from dgg_ray.analysis.verdict import SHOWN, verdict
from dgg_ray.core.fence import Fence
from dgg_ray.report.answer import failures, notices
from dgg_ray.stats.formats import difference_text, percent, score_text

LINES = 5  # of the table, with its head
KNOWN = ("replay", "finetune")  # baselines of nearly every study


def summary(results: Results, fence: Fence) -> list[str]:
    """The verdict with what must be known beside it, then the table.

    fence: names what of it fails; the rest is there. ResultsError for a study without a finished stage.
    """
    runs(results, final_split(results))  # raises
    found = fence.tried("the verdict", None, verdict, results)
    said = [found.headline, *found.support] if found else []
    said += fence.tried("what must be known beside the verdict", [], beside, results)
    lines = fence.tried("the table of methods", [], table, results)
    return [*dict.fromkeys(said), *(["", *lines] if lines else [])]


def beside(results: Results) -> list[str]:
    """Notices that limit the verdict."""
    return [*notices(results), *failures(results)]


def table(results: Results) -> list[str]:
    """At most five lines: a head, the chosen setting, and what it was compared with.

    Where there are more methods than that, the highest of them and joint stay, then those that every study
    knows; a line below says how many are in the report alone.
    """
    split, metric = final_split(results), headline(results)
    every = compare(results, split)
    rows = every[(every["metric"] == metric) & every["score"].notna()].to_dict("records")
    if not rows:
        return []
    forgotten = every[every["metric"] == "forgetting"].set_index("label")["score"]
    kept = first_of(results, rows, LINES - 1)
    name = SHOWN.get(metric, metric.replace("_", " "))
    cells = [("", f"{name} on {split}, %", f"{own_label(results)} minus this", "forgetting")]
    for row in kept:
        own = row["setting"] == chosen(results)
        label = f"* {row['label']}" if own else f"  {row['label']}"
        gap = "" if own else difference_text(row)
        cells.append((label, score_text(row), gap, percent(forgotten.get(row["label"], np.nan))))
    lines = columns(cells)
    if left := len(rows) - len(kept):
        lines.append(f"  ({left} more method{'s' * (left > 1)} in the report)")
    return lines


def first_of(results: Results, rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The chosen setting, joint training, the highest of the others, and then the baselines of KNOWN."""
    wanted = [chosen(results), *(results.baselines.get(name) for name in ("joint", *KNOWN))]
    others = [row for row in rows if row["setting"] not in wanted[:2]]
    if others:
        wanted.insert(2, max(others, key=lambda row: row["score"])["setting"])
    wanted += [row["setting"] for row in others]
    there = [name for name in dict.fromkeys(wanted) if any(row["setting"] == name for row in rows)]
    return [row for row in rows if row["setting"] in there[:count]]


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def adapters(results: Results) -> list[str]:
    """Where the adapters lie that the final runs of the chosen setting end with; a line each."""
    setting = chosen(results)
    if setting is None or results.archive is None:
        return []
    final = set(results.terms.compared_on)
    found = [a for a in results.archive.adapters(setting) if (a.order, a.seed) in final or not final]
    if not found:
        return []
    label = own_label(results)
    if not any(one.path for one in found):
        return [f"The store keeps no adapters of {label}."]
    lines = [f"  {one.order}, seed {one.seed}: {one.path or 'was removed to free space'}" for one in found]
    return [f"adapters of {label}, after the last task (PEFT folders):", *lines]
