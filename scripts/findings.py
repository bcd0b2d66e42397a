"""Print the tables of docs/findings.md: each part of DGG against its control, paired over orders and seeds.

    python scripts/findings.py OUT [OUT …]      folders of finished ablation studies

For every pair and metric, a table has the mean difference in points, its 95 % interval, its p-value, and the
p-value after Holm's correction over the pairs of that metric. Each interval holds alone, not simultaneously.
The orders are fixed and the seeds are the replicates (`fixed_orders_interval`): the differences of one seed
on several orders are one observation, and so is a joint run that serves several orders. Two orders say
nothing about other orders, which are the subject of a report's intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dgg_ray.analysis import load
from dgg_ray.analysis.comparison_tables import interval_over_seeds
from dgg_ray.analysis.run_table import BLOCK, runs, settings_by_label
from dgg_ray.search.objective import difference_range
from dgg_ray.stats.intervals import Interval, fixed_orders_interval, holm

METRICS = {"faa": "final score (FAA)", "stability": "stability", "plasticity": "plasticity"}
PAIRS = [  # first minus second
    ("alpha 0.1", "replay"),
    ("dgg", "alpha 0.1"),
    ("no gate", "dgg"),
    ("no scaling", "dgg"),
    ("no gate", "no scaling"),
    ("guidance only", "finetune"),
    ("guidance only", "replay"),
    ("dgg", "replay"),
    ("dgg", "guidance only"),
    ("dgg", "joint"),
    ("dgg", "l2sp"),
    ("norm per tensor", "dgg"),
    ("periodic gate", "dgg"),
]


def format_bounds(mean: float, low: float, high: float, sign: str = "") -> str:
    """Format a mean and its bounds, if any, in percent: `60.0 [43.5, 74.5]`."""
    bounds = "" if np.isnan(low) else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * mean:{sign}.1f}{bounds}"


def p_value(gap: Interval) -> float:
    """Return the two-sided p of a mean of 0, from the t distribution behind the interval."""
    error = (gap.high - gap.mean) / stats.t.ppf(0.975, gap.n - 1)
    return float(2 * stats.t.sf(abs(gap.mean) / error, gap.n - 1))


def scores(table: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """Return the table of mean scores, as lines of Markdown."""
    lines = ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for label, setting in labels.items():
        rows = table.loc[table["setting"] == setting]
        cells = []
        for metric in METRICS:
            estimate = interval_over_seeds(rows, metric)
            cells.append(format_bounds(*estimate[:3]) if estimate.n else "–")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def contrasts(table: pd.DataFrame, labels: dict[str, str], metric: str) -> list[str]:
    """Return the table of paired differences in one metric, as lines of Markdown."""
    by_label = {label: table[table["setting"] == s].set_index(BLOCK)[metric] for label, s in labels.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= by_label.keys()]
    estimates = []
    for first, second in pairs:
        gaps = (by_label[first] - by_label[second]).dropna()
        estimates.append(fixed_orders_interval(gaps, list(gaps.index)))
    p = [p_value(estimate) for estimate in estimates]
    lines = [f"| {METRICS[metric]}, points | difference | p | p (Holm) | seeds |", "|---|---|---|---|---|"]
    for (first, second), estimate, alone, adjusted in zip(pairs, estimates, p, holm(p), strict=True):
        if estimate.n and not np.isnan(estimate.mean):
            low, high = np.clip([estimate.low, estimate.high], *difference_range(metric)).tolist()
            gap, seeds = format_bounds(estimate.mean, low, high, "+"), len(estimate.values)
            lines.append(f"| {first} − {second} | {gap} | {alone:.3f} | {adjusted:.3f} | {seeds} |")
    return lines


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for out in map(Path, sys.argv[1:]):
        results = load.load_results(out)
        table, labels = runs(results, "test"), settings_by_label(results)
        orders, seeds = results.facts["orders of the comparison"], results.facts["seeds of the comparison"]
        print(f"## {results.name}: {len(orders)} orders, {len(seeds)} seeds\n")
        print("\n".join(scores(table, labels)), end="\n\n")
        for metric in METRICS:
            print("\n".join(contrasts(table, labels, metric)), end="\n\n")


if __name__ == "__main__":
    main()
