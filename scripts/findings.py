"""The tables of docs/findings.md: each part of DGG against its control, paired over orders and seeds.

    python scripts/findings.py OUT [OUT …]      folders of finished ablation studies

For every pair and metric: the mean difference in points, its 95 % interval, its p-value, and the p-value
after Holm's correction over the pairs of that metric. Intervals are single ones: each holds by itself. The
orders are taken as given, and seeds are what is repeated on them (`intervals.fixed_orders`): what a seed does
on several orders is one observation, and so is a joint run that serves several. With two orders nothing can
be said of others, which is what a report's intervals are about.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dgg_ray.analysis import load
from dgg_ray.analysis.run_table import BLOCK, interval_over_seeds, runs, settings_by_label
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


def interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """`60.0 [43.5, 74.5]`, in percent, or the mean alone where there are no bounds."""
    bounds = "" if np.isnan(low) else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * mean:{sign}.1f}{bounds}"


def p_value(of: Interval) -> float:
    """Two-sided, of a mean of 0, by the t distribution that the interval was made with."""
    error = (of.high - of.mean) / stats.t.ppf(0.975, of.n - 1)
    return float(2 * stats.t.sf(abs(of.mean) / error, of.n - 1))


def scores(table: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    lines = ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for label, setting in labels.items():
        rows = table.loc[table["setting"] == setting]
        shown = []
        for metric in METRICS:
            found = interval_over_seeds(rows, metric)
            shown.append(interval(*found[:3]) if found.n else "–")
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return lines


def contrasts(table: pd.DataFrame, labels: dict[str, str], metric: str) -> list[str]:
    by = {label: table[table["setting"] == s].set_index(BLOCK)[metric] for label, s in labels.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= by.keys()]
    found = []
    for first, second in pairs:
        gaps = (by[first] - by[second]).dropna()
        found.append(fixed_orders_interval(gaps, list(gaps.index)))
    p = [p_value(of) for of in found]
    lines = [f"| {METRICS[metric]}, points | difference | p | p (Holm) | seeds |", "|---|---|---|---|---|"]
    for (first, second), of, alone, after in zip(pairs, found, p, holm(p), strict=True):
        if of.n and not np.isnan(of.mean):
            low, high = np.clip([of.low, of.high], *difference_range(metric)).tolist()
            gap = interval(of.mean, low, high, "+")
            lines.append(f"| {first} − {second} | {gap} | {alone:.3f} | {after:.3f} | {len(of.values)} |")
    return lines


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for out in map(Path, sys.argv[1:]):
        found = load.load_results(out)
        table, labels = runs(found, "test"), settings_by_label(found)
        orders, seeds = found.facts["orders of the comparison"], found.facts["seeds of the comparison"]
        print(f"## {found.name}: {len(orders)} orders, {len(seeds)} seeds\n")
        print("\n".join(scores(table, labels)), end="\n\n")
        for metric in METRICS:
            print("\n".join(contrasts(table, labels, metric)), end="\n\n")


if __name__ == "__main__":
    main()
