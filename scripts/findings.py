"""The tables of docs/findings.md: each part of DGG against its control, paired over orders and seeds.

    python scripts/findings.py OUT [OUT …]      folders of finished ablation studies

For every pair and metric: the mean difference in points, its 95 % interval, its p-value (paired t over
blocks, one block = one order with one seed) and the p-value after Holm's correction over the pairs of
that metric (Holm 1979, Scand. J. Stat. 6:65). The orders are taken as given: with two of them nothing can be
said of others, which is what a report's intervals are about.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from dgg_ray import results
from dgg_ray.intervals import mean_interval, paired_difference
from dgg_ray.outcomes import BLOCK, compared, runs

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


def holm(p: list[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given; nan stays nan and is not counted."""
    adjusted, worst = [float("nan")] * len(p), 0.0
    known = sorted((i for i in range(len(p)) if not np.isnan(p[i])), key=lambda i: p[i])
    for rank, i in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def interval(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def scores(table: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    lines = ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for label, setting in labels.items():
        rows = table[table["setting"] == setting]
        shown = []
        for metric in METRICS:
            # One joint run serves every order.
            values = rows.groupby("seed")[metric].mean() if rows["together"].any() else rows[metric]
            shown.append("–" if values.isna().all() else interval(*mean_interval(values)[:3]))
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return lines


def contrasts(table: pd.DataFrame, labels: dict[str, str], metric: str) -> list[str]:
    by = {label: table[table["setting"] == s].set_index(BLOCK)[metric] for label, s in labels.items()}
    pairs = [pair for pair in PAIRS if set(pair) <= by.keys()]
    found = []
    for first, second in pairs:
        both = pd.concat([by[first], by[second]], axis=1, join="inner").dropna().to_numpy()
        found.append(paired_difference(both[:, 0], both[:, 1]))
    adjusted = holm([float(gap[3]) for gap in found])
    lines = [f"| {METRICS[metric]}, points | difference | p | p (Holm) | blocks |", "|---|---|---|---|---|"]
    for (first, second), (mean, low, high, p, n), after in zip(pairs, found, adjusted, strict=True):
        if n and not np.isnan(mean):
            gap = interval(mean, low, high, "+")
            lines.append(f"| {first} − {second} | {gap} | {p:.3f} | {after:.3f} | {n} |")
    return lines


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for out in map(Path, sys.argv[1:]):
        found = results.load(out)
        table, labels = runs(found, "test"), compared(found)
        blocks = found.facts["orders"], found.facts["seeds of the comparison"]
        print(f"## {found.name}: {len(blocks[0])} orders × {len(blocks[1])} seeds\n")
        print("\n".join(scores(table, labels)), end="\n\n")
        for metric in METRICS:
            print("\n".join(contrasts(table, labels, metric)), end="\n\n")


if __name__ == "__main__":
    main()
