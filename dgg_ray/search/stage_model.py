"""Predict runs from the stages that were trained.

A run's end follows from its stages one by one. For each beginning of an order, such as digits > words, one
Gaussian process maps

    the searched values that bear on the stage: those of its own task, of the task before, of all before it,
    and those that hold for all tasks
    → the share that the stage leaves of each earlier task's score, and the new task's score

Its kernel is a sum: what the task's own value does whatever came before, and how that depends on the values
before. The marginal likelihood chooses the weights of these parts, the length scale and the noise from 27
combinations. A run that was never made is predicted stage by stage. Blocks whose orders begin alike share a
Gaussian process for that beginning; what differs between their seeds is noise to it.

Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006: predictions are their equations 2.25 and
2.26, the marginal likelihood is 2.30.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np

from dgg_ray.config.search_space import LINE
from dgg_ray.config.sections import SearchParameter, Value
from dgg_ray.config.study import Setting
from dgg_ray.search.space import value_list

VALUES = 13  # of a range, that may be proposed
LOWEST = 0.02  # scores below count as this much in a share
MOST_KEPT = 1.5  # larger shares are noise of low scores
LENGTHS = (0.17, 0.35, 0.7)  # how far values act alike; the ends of an axis are 1 apart
LONGER = 1.5  # the same for the values of tasks before, times that
NOISE = (0.03, 0.15, 0.5)  # of the variance of what the values explain
GROWTH = 1.2  # the kernel is chosen anew when so many times as many stages were seen


class Parts(NamedTuple):
    """Weights of the kernel's parts.

    own: of the task's own value. own_before, own_earlier: of it together with the value of the task before,
    and with those of all before. before, earlier: of these without the own value.
    """

    own: float
    own_before: float
    own_earlier: float
    before: float
    earlier: float


PARTS = (Parts(1, 0, 0, 0, 0), Parts(0.55, 0.15, 0.1, 0.1, 0.1), Parts(0.2, 0.3, 0.1, 0.3, 0.1))


@dataclass(frozen=True)
class Axis:
    """The values of a searched setting that are tried, and where each lies.

    Listed numbers lie at even steps, in their order, since people list values at even steps of the effect
    that they expect. Those of a range lie on its scale. Other values lie equally far from each other.

    points: (values, coordinates). scale: numbers in ascending order and where they lie, from 0 to 1; None
    for other values. line_length: number of values of a line through all.
    """

    values: tuple[Value, ...]
    points: np.ndarray
    scale: tuple[np.ndarray, np.ndarray] | None = None
    line_length: int = 0

    @classmethod
    def of(cls, parameter: SearchParameter) -> Axis:
        """The axis of all listed values, or of VALUES values of a range."""
        values = tuple(dict.fromkeys(value_list(parameter, VALUES)))
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return cls(values, np.eye(len(values)) / 2**0.5, None, len(values))
        known = np.sort(np.array(values, float))
        places = np.arange(len(known), dtype=float)
        if parameter.values is None:
            places = np.log(known) if parameter.log else known
        places = (places - places[0]) / max(places[-1] - places[0], 1e-12)
        points = np.interp(np.array(values, float), known, places)[:, None]
        return cls(values, points, (known, places), len(values) if parameter.values is not None else LINE)

    def place(self, value: Value) -> np.ndarray:
        """The coordinates of a value, which need not be among those tried."""
        if self.scale is not None and isinstance(value, int | float):
            return np.array([np.interp(value, *self.scale)])
        if value in self.values:
            return self.points[self.values.index(value)]
        return np.zeros(self.points.shape[1])

    @property
    def line(self) -> list[int]:
        """Numbers of the values of a line from end to end: the middle one, the middles of both halves, …"""
        length = min(self.line_length, len(self.values))
        numbers = np.linspace(0, len(self.values) - 1, length).round().astype(int).tolist()
        halves, line = [(0, length)], list[int]()
        while halves:
            low, high = halves.pop(0)
            if low < high:
                middle = (low + high) // 2
                line.append(numbers[middle])
                halves += [(low, middle), (middle + 1, high)]
        return line


class Inputs(NamedTuple):
    """The values that bear on stages of one beginning; (stages, coordinates) each."""

    own: np.ndarray
    before: np.ndarray
    earlier: np.ndarray
    shared: np.ndarray

    def at(self, rows: np.ndarray) -> Inputs:
        return Inputs(*(part[rows] for part in self))


def alike(a: np.ndarray, b: np.ndarray, length: float, mean: bool = False) -> np.ndarray:
    """exp(-d²/2 length²) of all pairs; d² is the sum over the coordinates, or their mean."""
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.exp(-np.maximum(square, 0) / (2 * length**2 * (max(a.shape[1], 1) if mean else 1)))


def kernel(a: Inputs, b: Inputs, length: float, parts: Parts) -> np.ndarray:
    """The covariance of all pairs, without noise: 2 of a stage with itself, 1 of it the unknown mean."""
    found = own = alike(a.own, b.own, length)
    if a.before.shape[1] and parts != PARTS[0]:
        before = alike(a.before, b.before, LONGER * length)
        earlier = alike(a.earlier, b.earlier, LONGER * length, mean=True)
        found = own * (parts.own + parts.own_before * before + parts.own_earlier * earlier)
        found += parts.before * before + parts.earlier * earlier
    if a.shared.shape[1]:
        shared = alike(a.shared, b.shared, LONGER * length)
        found = found * (1 + shared) / 4 + shared / 2
    return found + 1.0


@dataclass
class Fit:
    """A Gaussian process with its parts, on outputs of one kind."""

    inputs: Inputs
    length: float
    parts: Parts
    noise: float
    mean: np.ndarray  # (outputs,)
    scale: float
    variance: float
    inverse: np.ndarray  # of the lower Cholesky factor
    weights: np.ndarray  # (stages, outputs)
    likelihood: float

    @classmethod
    def of(cls, inputs: Inputs, outputs: np.ndarray, length: float, parts: Parts, noise: float) -> Fit:
        mean = outputs.mean(axis=0)
        scale = max(float((outputs - mean).std()), 1e-3)
        z = (outputs - mean) / scale
        covariance = kernel(inputs, inputs, length, parts) + noise * np.eye(len(z))
        factor = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(factor)
        u = inverse @ z
        variance = max(float((u * u).mean()), 1e-9)
        likelihood = -0.5 * z.size * np.log(variance) - z.shape[1] * np.log(factor.diagonal()).sum()
        return cls(
            inputs, length, parts, noise, mean, scale, variance, inverse, inverse.T @ u, float(likelihood)
        )

    def predict(self, inputs: Inputs, spread: bool) -> tuple[np.ndarray, np.ndarray]:
        """(stages, outputs), and the variance of each stage's outputs; 0 unless `spread`."""
        covariance = kernel(inputs, self.inputs, self.length, self.parts)
        mean = self.mean + self.scale * (covariance @ self.weights)
        if not spread:
            return mean, np.zeros(len(mean))
        explained = ((covariance @ self.inverse.T) ** 2).sum(axis=1)
        return mean, np.maximum(2.0 - explained, 1e-9) * self.variance * self.scale**2


@dataclass
class Beginning:
    """The stages seen that trained the last task of one beginning of an order.

    kept: of each, the shares that it left, (tasks before,). new: the new task's score.
    fits: of `new` and, except at the first place, of `kept`. seen: stages when their parts were chosen.
    """

    inputs: list[Inputs] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    seen: int = 0

    def add(self, inputs: Inputs, before: np.ndarray, after: np.ndarray) -> None:
        """Add a stage. before, after: the scores of the tasks seen, (t - 1,) and (t,)."""
        shares = np.maximum(after[:-1], LOWEST) / np.maximum(before, LOWEST)
        self.inputs.append(inputs)
        self.kept.append(np.minimum(shares, MOST_KEPT))
        self.new.append(float(after[-1]))

    def refit(self) -> None:
        """Fit what was seen, if it is more than last time."""
        count = len(self.inputs)
        if self.fits and len(self.fits[0].weights) == count:
            return
        inputs = Inputs(*(np.concatenate(part) for part in zip(*self.inputs, strict=True)))
        outputs = [np.array(self.new)[:, None], np.array(self.kept)]
        outputs = [values for values in outputs if values.shape[1]]
        if self.fits and count <= GROWTH * self.seen:
            kinds = [[(fit.length, fit.parts, fit.noise)] for fit in self.fits]
        else:
            self.seen = count
            parts = PARTS if inputs.before.shape[1] else PARTS[:1]
            kinds = [list(product(LENGTHS, parts, NOISE))] * len(outputs)
        self.fits = [
            max((Fit.of(inputs, values, *kind) for kind in of), key=lambda fit: fit.likelihood)
            for values, of in zip(outputs, kinds, strict=True)
        ]

    def predict(self, inputs: Inputs, spread: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The new task's score and its variance, the shares kept and their variance."""
        new, new_variance = self.fits[0].predict(inputs, spread)
        kept, kept_variance = np.zeros((len(new), 0)), new_variance
        if len(self.fits) > 1:
            kept, kept_variance = self.fits[1].predict(inputs, spread)
        return np.clip(new[:, 0], 0, 1), new_variance, np.clip(kept, 0, MOST_KEPT), kept_variance


class StageModel:
    """Predicts whole runs of settings on the blocks of a search.

    orders: the order of the tasks on each block. axes: dotted path of each value of a setting → its axis.
    per_task: paths of the settings that each task has its own value of. first_matters: for each block,
    whether the searched values of its first task bear on any stage.
    """

    def __init__(
        self,
        orders: Sequence[tuple[str, ...]],
        axes: Mapping[str, Axis],
        per_task: Sequence[str],
        first_matters: Sequence[bool],
    ) -> None:
        self.orders, self.axes, self.per_task = orders, axes, per_task
        own = {f"{path}.{task}" for path in per_task for task in orders[0]}
        self.shared = [path for path in axes if path not in own]
        self.first_matters = dict(zip(orders, first_matters, strict=True))
        self.beginnings = {order[: t + 1]: Beginning() for order in orders for t in range(len(order))}
        self.seen: set[str] = set()

    @property
    def can_predict(self) -> bool:
        """Return whether a stage of every beginning was seen."""
        return all(beginning.inputs for beginning in self.beginnings.values())

    def add(self, setting: Setting, block: int, keys: Sequence[str], R: np.ndarray) -> None:
        """Learn from a run's stages that were not seen yet, as far as it was evaluated.

        keys: of its stages. R: (T, T), its scores.
        """
        order, points = self.orders[block], self.points_of(setting)
        for t, key in enumerate(keys):
            if np.isnan(R[t, : t + 1]).any():
                return
            if key not in self.seen:
                self.seen.add(key)
                before = R[t - 1, :t] if t else R[0, :0]
                self.beginnings[order[: t + 1]].add(self.inputs(points, order, t), before, R[t, : t + 1])

    def points_of(self, setting: Setting) -> dict[str, np.ndarray]:
        """The coordinates of one setting; (1, coordinates) for each axis."""
        return {path: axis.place(setting[path])[None] for path, axis in self.axes.items()}

    def points(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        """The coordinates of settings that are given by the numbers of their values; (settings, axes)."""
        return {path: axis.points[levels[:, i]] for i, (path, axis) in enumerate(self.axes.items())}

    def inputs(self, points: Mapping[str, np.ndarray], order: tuple[str, ...], t: int) -> Inputs:
        """The values that bear on the stage of the order's task t, for each setting."""
        count = len(next(iter(points.values())))

        def coordinates(tasks: Sequence[str]) -> np.ndarray:
            columns = [points[f"{path}.{task}"] for task in tasks for path in self.per_task]
            return np.concatenate([np.zeros((count, 0)), *columns], axis=1)

        first = 0 if self.first_matters[order] else 1
        own = order[t : t + 1] if t >= first else ()
        before = order[max(t - 1, first) : t]
        shared = [np.zeros((count, 0)), *(points[path] for path in self.shared)]
        return Inputs(
            coordinates(own),
            coordinates(before),
            coordinates(order[first:t]),
            np.concatenate(shared, axis=1),
        )

    def predict(
        self, points: Mapping[str, np.ndarray], spread: bool = False
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predict the scores of settings on each block.

        Returns for each block (settings, T, T), nan above the diagonal, and the standard deviations of the
        final scores, (settings, T); 0 unless `spread`.
        """
        by_order = {order: self.predict_order(points, order, spread) for order in dict.fromkeys(self.orders)}
        return [by_order[order][0] for order in self.orders], [by_order[order][1] for order in self.orders]

    def predict_order(
        self, points: Mapping[str, np.ndarray], order: tuple[str, ...], spread: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scores in one order, and the standard deviation of each final score."""
        count, tasks = len(next(iter(points.values()))), len(order)
        R, variances = np.full((count, tasks, tasks), np.nan), np.zeros((count, tasks))
        for t in range(tasks):
            beginning, inputs = self.beginnings[order[: t + 1]], self.inputs(points, order, t)
            beginning.refit()
            rows, back = distinct_rows(inputs)
            new, new_variance, kept, kept_variance = (
                part[back] for part in beginning.predict(inputs.at(rows), spread)
            )
            if t:
                R[:, t, :t] = np.minimum(R[:, t - 1, :t] * kept, 1.0)
                variances[:, :t] = variances[:, :t] * kept**2 + R[:, t - 1, :t] ** 2 * kept_variance[:, None]
            R[:, t, t], variances[:, t] = new, new_variance
        return R, np.sqrt(variances)


def distinct_rows(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that differ, and for each row the one that it equals."""
    whole = np.concatenate(inputs, axis=1)
    # One number for each row, since sorting whole rows is slow: different rows have different ones, as the
    # factors are no multiples of each other by the few fractions that coordinates are.
    mixed = (whole * np.sin(np.arange(1.0, whole.shape[1] + 1))).sum(axis=1)
    _, rows, back = np.unique(mixed, return_index=True, return_inverse=True)
    return rows, back
