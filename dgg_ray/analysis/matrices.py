"""Each run's score matrix, from the rows of a study's table; and what is computed from a table, kept."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.interfaces import ScoreMatrix, Value

BLOCK = ["order", "seed"]
Found = TypeVar("Found")


def once(function: Callable[..., Found]) -> Callable[..., Found]:
    """A function of results and of names, computed once for each `Results`: its sections ask for the same.

    What it returns belongs to all who ask, and is not to be changed.
    """

    @wraps(function)
    def known(results: Results, *names: str) -> Found:
        key = (function.__module__, function.__name__, *names)
        if key not in results.known:
            results.known[key] = function(results, *names)
        return results.known[key]

    return known


class Run(NamedTuple):
    """One setting on one order with one seed, as examined on one split.

    together: all tasks were learned in one stage (joint), so only R's last row is filled.
    """

    setting: str
    strategy: str
    order: str
    seed: int
    tasks: tuple[str, ...]
    together: bool
    scores: ScoreMatrix


@once
def walk(results: Results, split: str) -> list[Run]:
    """Every run examined on `split`, in a fixed order; cells that were not examined are nan."""
    if results.table.empty and not results.failures:
        raise ResultsError(
            f"study {results.name!r} has no finished stage, so there is nothing to report; "
            "run the study first, or give the folder in which it was run"
        )
    cells = results.table[results.table["split"] == split]
    untouched = cells[cells["stage"] < 0].groupby("eval_task")["score"].mean().to_dict()
    learned = cells[cells["stage"] >= 0]
    names = ["setting", "strategy", *BLOCK]
    run = learned.groupby(names, sort=True).ngroup().to_numpy()  # in the order of their names
    keys = learned[names].iloc[np.unique(run, return_index=True)[1]]
    tasks = [tuple(order.split(" > ")) for order in keys["order"]]
    R, sizes, together = matrices(learned, run, tasks)
    bases = {order: np.array([untouched.get(task, np.nan) for task in order]) for order in set(tasks)}
    return [
        Run(
            *key[:3],
            int(key[3]),
            order,
            bool(at_once),
            ScoreMatrix(r[: (T := len(order)), :T], n[:T], bases[order]),
        )
        for key, order, r, n, at_once in zip(
            keys.itertuples(index=False, name=None), tasks, R, sizes, together, strict=True
        )
    ]


def matrices(
    cells: pd.DataFrame, run: np.ndarray, tasks: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R (runs, T, T), sizes (runs, T), together (runs,)) of all runs in one pass; nan where there is none.

    run: (cells,), the number of each cell's run; tasks: of each run in its order, T at most.
    """
    T = max(map(len, tasks), default=0)
    R, sizes = np.full((len(tasks), T, T), np.nan), np.full((len(tasks), T), np.nan)
    evaluation, evaluations = pd.factorize(cells["eval_task"])
    learned, stages = pd.factorize(cells["trained_task"])
    number = {order: i for i, order in enumerate(dict.fromkeys(tasks))}
    order = np.array([number[of] for of in tasks], dtype=int)[run]
    there = places(number, evaluations)[order, evaluation]
    kept = there >= 0
    R[run[kept], cells["stage"].to_numpy(dtype=int)[kept], there[kept]] = cells["score"].to_numpy()[kept]
    sizes[run[kept], there[kept]] = cells["n"].to_numpy()[kept]
    together = np.array([len(of) > 1 for of in tasks], dtype=bool)
    together[run[places(number, stages)[order, learned] >= 0]] = False
    return R, sizes, together


def stacks(found: Sequence[ScoreMatrix]) -> Iterator[tuple[np.ndarray, ScoreMatrix]]:
    """Matrices of equally many tasks as one: (their places among all, the stack)."""
    counts = np.array([len(scores.R) for scores in found], dtype=int)
    for T in np.unique(counts):
        mine = np.flatnonzero(counts == T)
        members = [found[i] for i in mine]
        yield mine, ScoreMatrix(*(np.array([getattr(m, n) for m in members]) for n in ("R", "sizes", "base")))


def of_each(metric: Callable[[ScoreMatrix], Value], stack: ScoreMatrix) -> np.ndarray:
    """A metric of each run of a stack; run by run where it was written for one and makes no such array."""
    count = len(stack.R)
    try:
        if (values := np.asarray(metric(stack))).shape == (count,):
            return values
    except (TypeError, ValueError):  # a metric that is at fault itself says so below
        pass
    alone = [ScoreMatrix(stack.R[i], stack.sizes[i], stack.base[i]) for i in range(count)]
    return np.array([metric(scores) for scores in alone])


def places(orders: Iterable[tuple[str, ...]], names: Iterable[str]) -> np.ndarray:
    """(orders, names): where an order has that task, -1 where it has it not."""
    names = list(names)
    rows = [[order.index(name) if name in order else -1 for name in names] for order in orders]
    return np.array(rows, dtype=int).reshape(len(rows), len(names))
