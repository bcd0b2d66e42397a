"""Fitted rates: the seconds or bytes that each kind of work takes, with their uncertainty.

Work is a sum of parts of several kinds, and each kind has a model of its own. Part k has counts c_ki of task
i's examples and z_k = log(rank). Its amount y_k, in seconds or bytes, follows

    log y_k = log Σ_i c_ki · exp(μ + a_i) + b · z_k + ε_k,    ε ~ N(0, σ²),  a_i ~ N(0, 1),  b ~ N(0, 1/4)

The model is fitted by Gauss-Newton: a few steps of ridge regression in the linearised model. The two priors
hardly matter where measurements exist. They decide where none do: a task that was never timed may well take
2.7 times more or less than the others, and twice the rank 1.4 times as much. Such predictions are wide.

A sum S over many parts, with shares ŵ_k and derivatives x_k of the model, has the relative variance

    σ² · ( x̄ᵀ A⁻¹ x̄  +  Σ_k ŵ_k² ),      x̄ = Σ_k ŵ_k x_k,   A = XᵀX + σ² · precision of the priors

The first term is the uncertainty of the rates. All parts share it, so it does not average out. The second
term is the scatter of the single parts, which does. Variances of several sums add. The 95 % interval is
Student's t on the logarithm, with degrees of freedom combined after Welch (1947) and Satterthwaite (1946).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import NamedTuple

import numpy as np

TASK_SD, RANK_EXPONENT_SD = 1.0, 0.5  # standard deviations of the priors on a and b
TASK_RANGE = exp(1.96 * TASK_SD)  # 95 % of tasks take at most so many times the others, by the prior
PRIOR_SCATTER = 0.1  # σ before any measurement; it counts as one measurement
MAX_ITERATIONS, TOLERANCE = 20, 1e-6
LEVEL = 0.95
WIDEST = 100.0  # e to this power is as good as infinite, and still a number


class Part(NamedTuple):
    """Work of one kind at one LoRA rank.

    counts: of examples or answers by task, or of stages under the name ``.
    """

    kind: str
    counts: Mapping[str, float]
    rank: int


class Measurement(NamedTuple):
    """A part and what it took, in seconds or bytes."""

    part: Part
    amount: float


class Prediction(NamedTuple):
    """A predicted amount as a random variable."""

    mean: float
    variance: float
    degrees_of_freedom: float


class RateModel:
    """The rates of one kind of part, fitted to at least one measurement.

    theta: μ, then a_i of each task, then b.
    scatter_variance: σ². precision_inverse: A⁻¹.
    """

    def __init__(self, tasks: Sequence[str], measurements: Sequence[Measurement]) -> None:
        self.tasks = tasks
        y = np.log([amount for _, amount in measurements])
        counts, z = self.features([part for part, _ in measurements])
        self.theta = np.zeros(len(tasks) + 2)
        self.theta[0] = np.mean(y - np.log(counts.sum(axis=1)))
        prior = np.diag([0.0, *[TASK_SD**-2] * len(tasks), RANK_EXPONENT_SD**-2])
        self.scatter_variance, self.degrees_of_freedom = PRIOR_SCATTER**2, 1.0
        for _ in range(MAX_ITERATIONS):
            fit, slopes = self.linearize(counts, z)
            self.precision_inverse = np.linalg.inv(slopes.T @ slopes + self.scatter_variance * prior)
            step = self.precision_inverse @ (
                slopes.T @ (y - fit) - self.scatter_variance * prior @ self.theta
            )
            self.theta += step
            residuals = y - self.linearize(counts, z)[0]
            fitted = np.trace(self.precision_inverse @ slopes.T @ slopes)
            self.degrees_of_freedom = 1.0 + max(0.0, len(y) - fitted)
            previous = self.scatter_variance
            self.scatter_variance = (residuals @ residuals + PRIOR_SCATTER**2) / self.degrees_of_freedom
            if max(np.abs(step).max(), abs(previous / self.scatter_variance - 1)) < TOLERANCE:
                break

    def features(self, parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts, (parts, tasks), and the logarithms of the ranks, (parts,)."""
        counts = [[part.counts.get(name, 0.0) for name in self.tasks] for part in parts]
        return np.array(counts, dtype=float), np.log([part.rank for part in parts])

    def linearize(self, counts: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithm of each part's amount and its derivatives by μ, a and b."""
        by_task = counts * np.exp(self.theta[1:-1])
        total = by_task.sum(axis=1, keepdims=True)
        fit = self.theta[0] + np.log(total[:, 0]) + self.theta[-1] * z
        return fit, np.hstack([np.ones_like(total), by_task / total, z[:, None]])

    def means(self, parts: Sequence[Part]) -> np.ndarray:
        """Return the expected amount of each part."""
        distinct, index = deduplicate(parts)
        return self.lognormal_means(self.linearize(*self.features(distinct))[0])[index]

    def lognormal_means(self, fit: np.ndarray) -> np.ndarray:
        return np.exp(fit + self.scatter_variance / 2)

    def sum(self, parts: Sequence[Part]) -> Prediction:
        """Predict the amount of all parts together."""
        distinct, index = deduplicate(parts)
        fit, slopes = self.linearize(*self.features(distinct))
        repeats, means = np.bincount(index), self.lognormal_means(fit)
        total = repeats @ means
        shares = means / total
        x = (repeats * shares) @ slopes
        relative = self.scatter_variance * (x @ self.precision_inverse @ x + repeats @ shares**2)
        return Prediction(float(total), float(total**2 * relative), self.degrees_of_freedom)


def deduplicate(parts: Sequence[Part]) -> tuple[list[Part], list[int]]:
    """Return the distinct objects and each part's index among them; thousands of parts share few objects."""
    distinct = {id(part): part for part in parts}
    positions = {key: i for i, key in enumerate(distinct)}
    return [*distinct.values()], [positions[id(part)] for part in parts]


class Estimate(NamedTuple):
    """A predicted amount: its mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate in another unit; `factor` is positive."""
        return Estimate(*(factor * x for x in self))


def combine(predictions: Sequence[Prediction]) -> Estimate:
    """Estimate the sum of independent predictions."""
    from scipy.special import stdtrit  # late: processes that only wait do without SciPy

    mean = sum(prediction.mean for prediction in predictions)
    variance = sum(prediction.variance for prediction in predictions)
    if not mean:
        return Estimate(0.0, 0.0, 0.0)
    freedom = variance**2 / sum(p.variance**2 / p.degrees_of_freedom for p in predictions)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5 / mean
    half = min(half, WIDEST)
    return Estimate(mean, mean * exp(-half), mean * exp(half))


def format_amount(amount: Estimate) -> str:
    """Format an estimate as `12.4 (95 %: 11.2 to 13.8)`."""
    return f"{amount.mean:.3g} (95 %: {amount.low:.3g} to {amount.high:.3g})"
