"""What work takes, as a sum of parts with a rate each, fitted to measurements, with its doubt.

With counts c_ki of task i's examples in part k and z = log(rank),

    log y_k = log Σ_i c_ki · exp(μ + a_i) + b · z_k + ε_k,    ε ~ N(0, σ²),  a_i ~ N(0, 1),  b ~ N(0, 1/4)

fitted by Gauss-Newton (a few steps of ridge regression in the linearised model). The two priors hardly
bear on what was measured; they are what is known where nothing was: a task that was never timed may well
take 2.7 times more or less than the others, twice the rank 1.4 times. They make such predictions wide.

A sum S over many parts, ŵ_k their shares in it and x_k the model's derivatives, has the relative variance

    σ² · ( x̄ᵀ A⁻¹ x̄  +  Σ_k ŵ_k² ),      x̄ = Σ_k ŵ_k x_k,   A = XᵀX + σ² · precision of the priors

The first term is doubt about the rates, which all parts share and which does not average out; the
second, each part's own scatter, does. Variances of several sums add; the 95 % interval is Student's t on
the logarithm, degrees of freedom combined after Welch (1947) and Satterthwaite (1946).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import NamedTuple, TypeAlias

import numpy as np

TASKS_DIFFER, RANK_EXPONENT = 1.0, 0.5  # standard deviations of the priors
TASKS_RANGE = exp(1.96 * TASKS_DIFFER)  # 95 % of tasks take at most so many times the others, by the prior
SCATTER = 0.1  # σ before it was measured; it counts as one measurement
ITERATIONS, CLOSE = 20, 1e-6
LEVEL, WIDEST = 0.95, 100.0  # e to the widest is as good as infinite, and a number


class Part(NamedTuple):
    """counts: of examples or answers by task, or of stages under the name ``."""

    kind: str
    counts: Mapping[str, float]
    rank: int


Seen: TypeAlias = tuple[Part, float]  # and what it took


class Rate:
    """One kind of part, fitted. seen: (part, what it took), at least one."""

    def __init__(self, names: Sequence[str], seen: Sequence[Seen]) -> None:
        self.names = names
        y, (counts, z) = np.log([took for _, took in seen]), self.table([part for part, _ in seen])
        self.theta = np.zeros(len(names) + 2)  # μ, a of each task, b
        self.theta[0] = np.mean(y - np.log(counts.sum(axis=1)))
        prior = np.diag([0.0, *[TASKS_DIFFER**-2] * len(names), RANK_EXPONENT**-2])
        self.scatter2, self.freedom = SCATTER**2, 1.0
        for _ in range(ITERATIONS):
            fit, slopes = self.line(counts, z)
            self.doubt = np.linalg.inv(slopes.T @ slopes + self.scatter2 * prior)
            step = self.doubt @ (slopes.T @ (y - fit) - self.scatter2 * prior @ self.theta)
            self.theta += step
            left = y - self.line(counts, z)[0]
            self.freedom = 1.0 + max(0.0, len(y) - np.trace(self.doubt @ slopes.T @ slopes))
            before, self.scatter2 = self.scatter2, (left @ left + SCATTER**2) / self.freedom
            if max(np.abs(step).max(), abs(before / self.scatter2 - 1)) < CLOSE:
                break

    def table(self, parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
        """(counts (parts, tasks), log rank (parts,))"""
        counts = [[part.counts.get(name, 0.0) for name in self.names] for part in parts]
        return np.array(counts, dtype=float), np.log([part.rank for part in parts])

    def line(self, counts: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log of what each part takes, its derivatives by μ, a and b)"""
        took = counts * np.exp(self.theta[1:-1])
        whole = took.sum(axis=1, keepdims=True)
        fit = self.theta[0] + np.log(whole[:, 0]) + self.theta[-1] * z
        return fit, np.hstack([np.ones_like(whole), took / whole, z[:, None]])

    def each(self, parts: Sequence[Part]) -> np.ndarray:
        """What each of the parts takes in the mean."""
        distinct, which = distinguished(parts)
        return self.means(self.line(*self.table(distinct))[0])[which]

    def means(self, fit: np.ndarray) -> np.ndarray:
        return np.exp(fit + self.scatter2 / 2)  # of a lognormal

    def sum(self, parts: Sequence[Part]) -> tuple[float, float, float]:
        """(mean, variance, degrees of freedom) of what the parts take together."""
        distinct, which = distinguished(parts)
        fit, slopes = self.line(*self.table(distinct))
        times, each = np.bincount(which), self.means(fit)
        whole = times @ each
        shares = each / whole
        x = (times * shares) @ slopes
        spread = self.scatter2 * (x @ self.doubt @ x + times @ shares**2)
        return float(whole), float(whole**2 * spread), self.freedom


def distinguished(parts: Sequence[Part]) -> tuple[list[Part], list[int]]:
    """(The different ones, which of these each one is): of many thousands most are the very same."""
    found = {id(part): part for part in parts}
    place = {name: i for i, name in enumerate(found)}
    return [*found.values()], [place[id(part)] for part in parts]


class Estimate(NamedTuple):
    """A predicted sum, and the bounds between which it will be with 95 %."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> Estimate:
        return Estimate(*(factor * x for x in self))


def total(sums: Sequence[tuple[float, float, float]]) -> Estimate:
    """Independent sums of parts as one."""
    from scipy.special import stdtrit  # late: who only waits does without

    mean, variance = sum(m for m, _, _ in sums), sum(v for _, v, _ in sums)
    if not mean:
        return Estimate(0.0, 0.0, 0.0)
    freedom = variance**2 / sum(v**2 / f for _, v, f in sums)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * variance**0.5 / mean
    half = min(half, WIDEST)
    return Estimate(mean, mean * exp(-half), mean * exp(half))


def show(amount: Estimate) -> str:
    """`12.4 (95 %: 11.2 to 13.8)`"""
    return f"{amount.mean:.3g} (95 %: {amount.low:.3g} to {amount.high:.3g})"
