"""A large report: a million cells, tables without and with figures. Wanted in 10 s and 2 GB.

    python benchmarks/report.py --rows 100000

Seconds of the process's CPU stand beside wall seconds: on a shared machine only the first repeat.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pandas as pd
from schedule import ALPHA, memory_mb, timed

from dgg_ray.analysis.results import CELL_COLUMNS, Results
from dgg_ray.report import page


def large(rows: int, tasks: int = 6) -> Results:
    """A study of all orders with as many settings as make so many rows, its winner against two baselines."""
    rng, names = np.random.default_rng(0), [f"task{i}" for i in range(tasks)]
    orders = np.array(list(islice(permutations(range(tasks)), 720)))
    t, i = np.tril_indices(tasks)
    count = max(2, rows // (len(orders) * len(t)) - 5)
    ids = np.array([f"{n:08x}" for n in range(count)] + ["finetune", "replay"], dtype=object)
    alphas = np.vstack([rng.choice([0.0, 0.1, 0.2, 0.5, 1.0], (count, tasks)), np.full((2, tasks), np.nan)])
    labels = np.array([" > ".join(names[i] for i in order) for order in orders], dtype=object)
    named = np.array(names, dtype=object)
    parts = []
    for split, settings in (("validation", range(count + 2)), ("test", (0, count, count + 1))):
        s, o, c = (x.ravel() for x in np.meshgrid(settings, range(len(orders)), range(len(t)), indexing="ij"))
        learned, age = orders[o, t[c]], t[c] - i[c]
        a = np.nan_to_num(alphas[s, learned])
        score = 0.75 - 0.1 * a**2 * (age == 0) - 0.05 * age * (1 - a) + 0.02 * rng.standard_normal(len(s))
        strategy = np.where(s < count, "dgg", ids[s])
        columns = [ids[s], strategy, labels[o], 0, t[c], named[learned], named[orders[o, i[c]]]]
        part = dict(zip(CELL_COLUMNS, [*columns, split, score.clip(0, 1), 500, 1.0], strict=True))
        parts.append(pd.DataFrame(part | {f"{ALPHA}.{n}": alphas[s, k] for k, n in enumerate(names)}))
    costs = pd.DataFrame(
        columns=["key", "trained_task", "runs", "train_seconds", "evaluation_seconds", "peak_memory_mb"]
    )
    return Results(
        "large", "", pd.concat(parts, ignore_index=True), tuple(f"{ALPHA}.{n}" for n in names), ("faa",),
        str(ids[0]), {"finetune": "finetune", "replay": "replay"}, [], costs, tried=tuple(ids[:count]),
    )  # fmt: skip


def reported(rows: int = 1_000_000) -> None:
    names = page.figure_names
    for label, figures in (("tables alone", list), ("with figures", names)):
        results, page.figure_names = large(rows), figures
        with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
            wall, cpu = timed(partial(page.write_report, results, Path(folder)))
        print(f"  {len(results.table):,} cells, {label}: wall {wall:.1f} s, CPU {cpu:.1f} s")
        print(f"  peak memory {memory_mb():.0f} MB", flush=True)
    page.figure_names = names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    reported(parser.parse_args().rows)


if __name__ == "__main__":
    main()
