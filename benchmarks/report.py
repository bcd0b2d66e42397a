"""A large report: a million score entries, without and with figures. Target: 10 s and 2 GB.

    python benchmarks/report.py --rows 100000

CPU seconds are printed with wall seconds, because on a shared machine only CPU seconds are reproducible.
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


def large_results(rows: int, tasks: int = 6) -> Results:
    """Return results with about so many rows: all orders, many settings, and two baselines."""
    rng, names = np.random.default_rng(0), [f"task{i}" for i in range(tasks)]
    orders = np.array(list(islice(permutations(range(tasks)), 720)))
    t, i = np.tril_indices(tasks)
    count = max(2, rows // (len(orders) * len(t)) - 5)
    ids = np.array([f"{n:08x}" for n in range(count)] + ["finetune", "replay"], dtype=object)
    alphas = np.vstack([rng.choice([0.0, 0.1, 0.2, 0.5, 1.0], (count, tasks)), np.full((2, tasks), np.nan)])
    labels = np.array([" > ".join(names[i] for i in order) for order in orders], dtype=object)
    task_names = np.array(names, dtype=object)
    parts = []
    for split, settings in (("validation", range(count + 2)), ("test", (0, count, count + 1))):
        s, o, c = (x.ravel() for x in np.meshgrid(settings, range(len(orders)), range(len(t)), indexing="ij"))
        trained, age = orders[o, t[c]], t[c] - i[c]
        a = np.nan_to_num(alphas[s, trained])
        score = 0.75 - 0.1 * a**2 * (age == 0) - 0.05 * age * (1 - a) + 0.02 * rng.standard_normal(len(s))
        strategy = np.where(s < count, "dgg", ids[s])
        columns = [ids[s], strategy, labels[o], 0, t[c], task_names[trained], task_names[orders[o, i[c]]]]
        part = dict(zip(CELL_COLUMNS, [*columns, split, score.clip(0, 1), 500, 1.0], strict=True))
        parts.append(pd.DataFrame(part | {f"{ALPHA}.{n}": alphas[s, k] for k, n in enumerate(names)}))
    costs = pd.DataFrame(
        columns=["key", "trained_task", "runs", "train_seconds", "evaluation_seconds", "peak_memory_mb"]
    )
    return Results(
        "large", "", pd.concat(parts, ignore_index=True), tuple(f"{ALPHA}.{n}" for n in names), ("faa",),
        str(ids[0]), {"finetune": "finetune", "replay": "replay"}, [], costs, evaluated=tuple(ids[:count]),
    )  # fmt: skip


def run_report(rows: int = 1_000_000) -> None:
    names = page.figure_names
    for label, figures in (("without figures", list), ("with figures", names)):
        results, page.figure_names = large_results(rows), figures
        with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
            wall, cpu = timed(partial(page.write_report, results, Path(folder)))
        print(f"  {len(results.table):,} score entries, {label}: wall {wall:.1f} s, CPU {cpu:.1f} s")
        print(f"  peak memory {memory_mb():.0f} MB", flush=True)
    page.figure_names = names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    run_report(parser.parse_args().rows)


if __name__ == "__main__":
    main()
