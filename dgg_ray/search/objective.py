"""Comparing settings: objectives, constraints, and guesses for what is not known yet.

objective_values   means over the blocks of each objective, and by how much each constraint is broken
rank_settings      feasible settings first, then by Pareto front, then by the mean of the objectives
extrapolate_run    a run that stopped early, with a stated guess for what it did not reach
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import isnan
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from dgg_ray.config.sections import Constraint
from dgg_ray.core import plugins
from dgg_ray.core.scores import ScoreMatrix


class Evidence(NamedTuple):
    """The scores of a setting on the search's blocks.

    scores: one matrix per block; rows that were not reached are nan.
    baselines: name of a baseline that a constraint names → its matrices on the same blocks.
    """

    scores: list[ScoreMatrix]
    baselines: Mapping[str, list[ScoreMatrix]]


class Values(NamedTuple):
    """A setting's objectives, to be maximised, and by how much it breaks each constraint (0: not at all)."""

    objective: tuple[float, ...]
    excess: tuple[float, ...] = ()


def metric_range(metric: str) -> tuple[float, float]:
    """The range of a metric's values; unbounded where its file gives none."""
    return getattr(plugins.plugin_module("metrics", metric), "RANGE", (-np.inf, np.inf))


def difference_range(*metrics: str) -> tuple[float, float]:
    """The range of the difference of two values of a metric; of several metrics, of the mean difference."""
    low, high = np.mean([metric_range(metric) for metric in metrics], axis=0).tolist()
    return low - high, high - low


def values_by_block(
    evidence: Evidence, objective: Sequence[str], constraints: Sequence[Constraint] = ()
) -> np.ndarray:
    """(blocks, objectives + constraints): each objective, then how far each constraint is kept."""

    def of(metric: str, scores: Sequence[ScoreMatrix]) -> np.ndarray:
        return np.array([plugins.find("metrics", metric)(s) for s in scores])

    columns = [of(name, evidence.scores) for name in objective]
    for c in constraints:
        least = c.bound + (of(c.metric, evidence.baselines[c.baseline]) if c.baseline else 0.0)
        columns.append(of(c.metric, evidence.scores) - least)
    return np.stack(columns, axis=1)


def mean_values(table: np.ndarray, objectives: int) -> Values:
    """Means over the blocks of a `values_by_block` table; nan where a metric lacks a value on a block."""
    means = table.mean(axis=0).tolist()
    excess = tuple(mean if isnan(mean) else max(-mean, 0.0) for mean in means[objectives:])
    return Values(tuple(means[:objectives]), excess)


def objective_values(
    evidence: Evidence, objective: Sequence[str], constraints: Sequence[Constraint] = ()
) -> Values:
    """A setting's mean values over its blocks."""
    return mean_values(values_by_block(evidence, objective, constraints), len(objective))


def rank_settings(values: Sequence[Values], settings: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Rank settings: indices from best to worst.

    Settings that break a constraint follow all that break none, the least broken first. Of several
    objectives, the Pareto fronts follow each other, and within a front the mean of the objectives decides.
    Of equals, to 1e-12, the simplest setting comes first, then the first one.

    settings: the searched values of each, which decide between equals.
    """
    simple = [simplicity(setting) for setting in settings] or [()] * len(values)
    feasible = [i for i, v in enumerate(values) if not any(v.excess)]
    broken = [i for i, v in enumerate(values) if any(v.excess)]
    mean = lambda i: (-round(sum(values[i].objective), 12), simple[i], i)  # noqa: E731
    ordered: list[int] = []
    for front in fronts(feasible, [v.objective for v in values]):
        ordered += sorted(front, key=mean)
    return ordered + sorted(broken, key=lambda i: (sum(values[i].excess), *mean(i)))


def simplicity(setting: Mapping[Any, Any]) -> tuple[Any, ...]:
    """A total order of settings by their searched values (dotted path → value): lower is simpler.

    The strategy's numbers come first, by name: fewer distinct values over the tasks, then a smaller
    sum. For DGG these are α and the buffer. A smaller rank follows, then less of every other setting, by
    name. A setting without a value, None or nan, counts as less than any value.
    """

    def is_missing(value: object) -> bool:
        return value is None or (isinstance(value, float | np.floating) and isnan(value))

    def is_number(value: object) -> TypeGuard[float]:
        return isinstance(value, int | float | np.number) and not isinstance(value, bool) and not isnan(value)

    def rank(value: object) -> tuple[int, float, str]:
        if is_missing(value):
            return -1, 0.0, ""
        if isinstance(value, int | float | np.number):
            return 0, float(value), ""
        return 1, 0.0, str(value)

    strategy: dict[str, list[float]] = {}
    for path, value in setting.items():
        section, _, name = path.partition(".")
        if section == "strategy" and (is_missing(value) or is_number(value)):
            values = strategy.setdefault(name.partition(".")[0], [])
            if is_number(value):
                values.append(float(value))
    numbers = tuple((name, len(set(values)), sum(values)) for name, values in sorted(strategy.items()))
    size = setting.get("adapter.rank")
    rest = tuple((name, *rank(v)) for name, v in sorted(setting.items()))
    return numbers, float(size) if is_number(size) else 0.0, rest


def fronts(left: Sequence[int], objectives: Sequence[Sequence[float]]) -> Iterator[list[int]]:
    """Pareto fronts of the indices in `left`, the best first."""
    if objectives and len(objectives[0]) == 1:  # a front is all that are equal: sorting says the same
        height = lambda i: -round(objectives[i][0], 12)  # noqa: E731
        yield from (list(front) for _, front in groupby(sorted(left, key=height), height))
        return
    while left:
        front = [i for i in left if not any(dominates(objectives[j], objectives[i]) for j in left)]
        yield front
        left = [i for i in left if i not in front]


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Return whether a is at least as high in every objective and higher in one."""
    return tuple(a) != tuple(b) and all(x >= y for x, y in zip(a, b, strict=True))


def hypervolume(points: Iterable[Sequence[float]]) -> float:
    """The part of the unit cube that some point dominates, from the origin, in [0, 1].

    Zitzler & Thiele, IEEE Trans. Evolutionary Computation 3(4), 1999. Exact: by slices along the last
    objective, so its cost grows fast beyond three of them.
    """
    ordered = sorted({tuple(p) for p in points if min(p) > 0}, key=lambda p: -p[-1])
    if not ordered:
        return 0.0
    if len(ordered[0]) == 1:
        return ordered[0][0]
    total, seen = 0.0, []
    for point, after in zip(ordered, [*ordered[1:], None], strict=True):
        seen.append(point[:-1])
        total += (point[-1] - (after[-1] if after else 0.0)) * hypervolume(seen)
    return total


def fit_response(
    table: np.ndarray,
    parents: Sequence[int],
    settings: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> np.ndarray:
    """Read the settings' values off a least-squares fit: parent + a parabola in each numeric setting.

    Neighbouring values of α inform about each other, so a curve through all of them depends less on luck than
    the best single point. The parabola is in the values' ranks, because people list values at even steps of
    the effect that they expect: in α itself it cannot peak at 0.1 of 0, 0.05, 0.1, 0.3 and 1. A range with
    `log` is taken by its logarithm. Where there are too few states, the table is returned as it is.

    table: (settings, columns).
    """
    columns = [np.equal(parents, p) for p in sorted(set(parents))]
    for name, of in parameters.items():
        x = [setting[name] for setting in settings]
        if len(set(x)) > 3 and all(isinstance(v, int | float) for v in x):
            ranks = np.unique(x, return_inverse=True)[1].astype(float)
            u = np.log(x) if getattr(of, "log", False) else ranks
            columns += [u, u**2]
        else:
            columns += [np.array([v == value for v in x]) for value in list(dict.fromkeys(x))[1:]]
    X = np.stack(columns, axis=1).astype(float)
    if len(settings) < np.linalg.matrix_rank(X) + 2:
        return table
    return X @ np.linalg.lstsq(X, table, rcond=None)[0]


# -- what is not known yet -------------------------------------------------------------------------


def extrapolate_run(
    scores: ScoreMatrix, order: Sequence[str], own: Mapping[str, float], kept: Sequence[float], unknown: float
) -> ScoreMatrix:
    """Extrapolate a run that stopped early to its end.

    own: task → its score right after training it; `unknown` for tasks that it lacks.
    kept: kept[a] is the share of a task's score that one more stage leaves, a stages after the task was
        trained; the last one stands for all later ones; an empty sequence keeps everything.

    Tasks that are only evaluated keep the scores of the last stage that was reached.
    """
    R, outside = scores.R.copy(), scores.outside.copy()
    known = np.flatnonzero(~np.isnan(R.diagonal()))
    depth = int(known[-1]) + 1 if len(known) else 0
    ages = np.asarray(kept or (1.0,))
    for t in range(depth, len(R)):
        age = t - 1 - np.arange(t)
        if t:
            R[t, :t] = R[t - 1, :t] * ages[np.minimum(age, len(ages) - 1)]
            outside[t] = outside[t - 1]
        R[t, t] = own.get(order[t], unknown)
    return replace(scores, R=R, outside=outside)


def continue_like(scores: ScoreMatrix, other: ScoreMatrix) -> ScoreMatrix:
    """Continue a run that stopped early as another run of the same order went on from there.

    Tasks trained so far, and those that are only evaluated, keep the share that they kept there, at most
    doubled; later ones score the same.
    """
    R, S, outside = scores.R.copy(), other.R, scores.outside.copy()
    depth = int(np.flatnonzero(~np.isnan(R.diagonal()))[-1]) + 1
    for t in range(depth, len(R)):
        R[t, :depth] = continued(R[t - 1, :depth], S[t - 1, :depth], S[t, :depth])
        R[t, depth:] = S[t, depth:]
        outside[t] = continued(outside[t - 1], other.outside[t - 1], other.outside[t])
    return replace(scores, R=R, outside=outside)


def continued(scores: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Change scores by the share by which others changed, at most doubled; 0 where the others were 0."""
    share = np.divide(after, before, out=np.zeros(len(before)), where=before > 0)
    return np.minimum(scores * np.minimum(share, 2.0), 1.0)


def first_scores(evidence: Iterable[tuple[Sequence[str], ScoreMatrix]]) -> dict[str, list[float]]:
    """Task → its scores right after training it, in all runs."""
    found: dict[str, list[float]] = {}
    for order, scores in evidence:
        for task, score in zip(order, scores.R.diagonal().tolist(), strict=True):
            if not isnan(score):
                found.setdefault(task, []).append(score)
    return found


def kept_shares(runs: Iterable[ScoreMatrix], quantile: float) -> list[float]:
    """kept[a]: that quantile of R[t+1, i] / R[t, i] at age a = t - i, at most 1, over all runs."""
    ratios: list[list[float]] = []
    for scores in runs:
        R = scores.R
        for t in range(len(R) - 1):
            for i in range(t + 1):
                if not isnan(R[t + 1, i]) and R[t, i] > 0:
                    ratios += [[] for _ in range(t - i + 1 - len(ratios))]
                    ratios[t - i].append(min(R[t + 1, i] / R[t, i], 1.0))
    return [float(np.quantile(r, quantile)) if r else 1.0 for r in ratios]
