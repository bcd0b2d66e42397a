"""What a run and `dgg-ray best` end with: the verdict, a table of a few lines, and where things lie."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dgg_ray.answer import failures, unspent
from dgg_ray.drift import warning as of_machines
from dgg_ray.formats import interval_text, score_text
from dgg_ray.optimism import progress, warning
from dgg_ray.outcomes import Results, chosen, compare, final_split, headline, percent, signed
from dgg_ray.verdict import SHOWN, verdict

LINES = 5  # of the table, with its head
KNOWN = ("replay", "finetune")  # baselines of nearly every study


def summary(results: Results) -> list[str]:
    """The verdict with what must be known beside it, then the table.

    Raises ResultsError for a study without a finished stage.
    """
    found = verdict(results)
    known = [*warning(results), *progress(results), *of_machines(results.machines)]
    said = [found.headline, *found.support, *known, *failures(results), *unspent(results)]
    lines = table(results)
    return [*dict.fromkeys(said), *(["", *lines] if lines else [])]


def table(results: Results) -> list[str]:
    """At most five lines: a head, the recommended setting, and what it was compared with.

    Where there are more methods than that, the highest of them and joint stay, then those that every study
    knows; a line below says how many are in the report alone.
    """
    split, metric = final_split(results), headline(results)
    every = compare(results, split)
    rows = every[(every["metric"] == metric) & every["score"].notna()].to_dict("records")
    if not rows:
        return []
    forgotten = every[every["metric"] == "forgetting"].set_index("label")["score"]
    first = sorted(rows, key=lambda row: rank(results, row, rows))[: LINES - 1]
    kept = [row for row in rows if any(row is one for one in first)]
    name = SHOWN.get(metric, metric.replace("_", " "))
    cells = [("", f"{name} on {split}, %", "recommended minus this", "forgetting")]
    for row in kept:
        own = row["setting"] == chosen(results)
        label = f"* {row['label']}" if own else f"  {row['label']}"
        bounds = (row["difference"], row["difference_low"], row["difference_high"], row["pairs"])
        gap = "" if own else interval_text(*bounds, row["difference_values"], signed)
        cells.append((label, score_text(row), gap, percent(forgotten.get(row["label"], np.nan))))
    lines = columns(cells)
    if left := len(rows) - len(kept):
        lines.append(f"  ({left} more method{'s' * (left > 1)} in the report)")
    return lines


def rank(results: Results, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Lower goes into the table first."""
    joint = results.rivals.get("joint")
    highest = max((r["score"] for r in rows if r["setting"] not in (chosen(results), joint)), default=0.0)
    first = [chosen(results), joint]
    if row["setting"] in first:
        return first.index(row["setting"]), 0.0
    known = [results.rivals.get(name) for name in KNOWN]
    if row["score"] == highest:
        return 2, 0.0
    return (3 + known.index(row["setting"]) if row["setting"] in known else 5), -row["score"]


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def adapters(results: Results) -> list[str]:
    """Where the adapters lie that the final runs of the recommended setting end with; a line each."""
    setting = chosen(results)
    if setting is None or results.archive is None:
        return []
    final = set(results.terms.compared_on)
    found = [a for a in results.archive.adapters(setting) if (a.order, a.seed) in final or not final]
    if not found:
        return []
    if not any(one.path for one in found):
        return ["The store keeps no adapters of the recommended setting."]
    lines = [f"  {one.order}, seed {one.seed}: {one.path or 'was removed to free space'}" for one in found]
    return ["adapters of the recommended setting, after the last task (PEFT folders):", *lines]
