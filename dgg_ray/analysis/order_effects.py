"""Why the order matters: the effects of a task's position, and of the task before it, on its final score.

    y_ri = τ_i + β · position_ri + γ_previous(r,i) + b_r + e_ri        b_r ~ N(0, σ_b²)   e_ri ~ N(0, σ²)

    symbol    here          meaning
    y_ri      score         final score on task i in run r (one order with one seed), in [0, 1]
    τ_i       task          the task's own level
    β         position      per position later in the order; positions count from 0
    γ_j       carry-over    of following task j, relative to the mean over all followed tasks; none if first
    b_r       run           what all tasks of a run have in common

A mixed linear model by REML, fitted for each method. The model's own standard errors would treat the e_ri as
independent, but runs that begin alike share stages. So the intervals come from refitting with one cluster
left out in turn (`intervals.clustered_jackknife`), at the variances of the complete fit. A cluster is all
runs of orders that share a first stage, its task and seed. Runs of two clusters share no stage
(`intervals.block_clusters`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from dgg_ray.analysis.comparison_tables import clusters_by_order, final_scores
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import BLOCK, cached
from dgg_ray.stats.intervals import clustered_jackknife

COLUMNS = ["label", "effect", "task", "estimate", "low", "high", "note"]
NEVER_FOLLOWED = "no order continues after it"
CONFOUNDED = "it cannot be separated from the other effects in these orders"
ONE_CLUSTER = "it has no interval, because it depends on orders that share one first stage"
BOUNDS = ["low", "high"]


@cached
def effect_table(results: Results, split: str) -> pd.DataFrame:
    """Estimate position and carry-over effects on final scores: one row per label and effect.

    label: the method.
    effect: `position` (per position later) or `carry-over` (of following directly after `task`).
    task: the task trained right before; "" for the position.
    estimate, low, high: the effect on a score in [0, 1], with its 95 % interval.
    note: why a value or an interval is missing; "" where nothing is.

    There are no rows for fewer than 3 orders.
    """
    rows = []
    for label, group in final_scores(results, split).groupby("label", sort=False):
        if group["order"].nunique() >= 3:
            rows += [[label, *row] for row in effect_estimates(group)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table[BOUNDS] = table[BOUNDS].clip(-1, 1)  # scores lie in [0, 1]
    return table


def effect_estimates(scores: pd.DataFrame) -> list[list[object]]:
    """Return (effect, task, estimate, low, high, note) for one method's final scores."""
    tasks = sorted(scores["task"].unique())
    followed = [task for task in tasks if (scores["previous_task"] == task).any()]
    names = [("position", ""), *(("carry-over", task) for task in followed)]
    X, y = design_matrix(scores, tasks, followed), scores["score"].to_numpy()
    contrasts = np.zeros((len(names), X.shape[1]))  # rows: linear in the coefficients
    contrasts[0, len(tasks)] = 1
    contrasts[1:, len(tasks) + 1 :] = np.eye(len(followed)) - 1 / len(followed)
    # Carry-over must be estimable without the first positions: with them it would depend on the assumption
    # that positions act linearly. So their indicator joins the design as a further column.
    is_first = (scores["previous_task"] == "").to_numpy(dtype=float)[:, None]
    design_rows = np.unique(np.hstack([X, is_first]), axis=0)  # estimability does not depend on repetitions
    known = estimable_contrasts(contrasts, design_rows[:, :-1])
    known[1:] &= estimable_contrasts(np.pad(contrasts, ((0, 0), (0, 1))), design_rows)[1:]
    columns = independent_columns(design_rows[:, :-1])
    runs = scores.groupby(BLOCK, sort=True).ngroup().to_numpy()
    variance_ratio = run_variance_ratio(X[:, columns], y, runs)
    clusters = scores["order"].map(clusters_by_order(scores)).to_numpy()
    A, b = normal_equations(X[:, columns], y, runs, clusters, variance_ratio)

    def solve(samples: np.ndarray) -> np.ndarray:
        left, right = np.einsum("sg,gij->sij", samples, A), samples @ b
        full_rank = np.linalg.matrix_rank(left, hermitian=True) == len(columns)
        solutions = np.full((len(samples), len(names)), np.nan)
        coefficients = np.linalg.solve(left[full_rank], right[full_rank][..., None])[..., 0]
        solutions[full_rank] = coefficients @ contrasts[:, columns].T
        return solutions

    rows: list[list[object]] = []
    estimates = clustered_jackknife(solve, len(A))
    for (effect, task), is_known, value, low, high in zip(names, known, *estimates, strict=True):
        if not is_known:
            rows.append([effect, task, np.nan, np.nan, np.nan, CONFOUNDED])
        else:
            rows.append([effect, task, value, low, high, ONE_CLUSTER if np.isnan(low) else ""])
    for task in tasks:
        if task not in followed:
            rows.append(["carry-over", task, np.nan, np.nan, np.nan, NEVER_FOLLOWED])
    return rows


def estimable_contrasts(contrasts: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Say which contrasts are linear combinations of the rows of X, and so of observations."""
    return np.abs(contrasts - contrasts @ np.linalg.pinv(X) @ X).max(axis=1) < 1e-8


def design_matrix(scores: pd.DataFrame, tasks: list[str], followed: list[str]) -> np.ndarray:
    """Return one row per score, with columns for each task, the position, and each followed task."""
    own = scores["task"].to_numpy()[:, None] == np.array(tasks)
    previous = scores["previous_task"].to_numpy()[:, None] == np.array(followed)
    carry_over = previous - previous.any(axis=1, keepdims=True) / len(followed)
    return np.hstack([own, scores[["position"]].to_numpy(), carry_over]).astype(float)


def independent_columns(X: np.ndarray) -> list[int]:
    """Return the columns that span X; of dependent ones the first is kept."""
    columns: list[int] = []
    for column in range(X.shape[1]):
        if np.linalg.matrix_rank(X[:, [*columns, column]]) > len(columns):
            columns.append(column)
    return columns


def run_variance_ratio(X: np.ndarray, y: np.ndarray, runs: np.ndarray) -> float:
    """Estimate ρ = σ_b² / σ² by REML; 0 where runs do not differ or too few scores are left to estimate it.

        -2 ℓ(ρ) = (N - p) log yᵀPy + log |XᵀV⁻¹X| + Σ_r log (1 + n_r ρ)       Harville 1977, JASA 72

    with σ² profiled out and V = I + ρ 11ᵀ within a run of n_r scores. The search is over ρ / (1 + ρ), the
    correlation of two scores of a run: on a grid, then between the neighbours of its best point.
    """
    residuals = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]  # same likelihood, smaller rounding errors
    freedom = len(y) - X.shape[1]
    if freedom <= 1 or np.abs(residuals).max() < 1e-9:
        return 0.0
    Z, n = np.column_stack([X, residuals / residuals.std()]), np.bincount(runs)
    total, by_run = Z.T @ Z, run_products(Z, runs)

    def criterion(correlation: ArrayLike) -> np.ndarray:
        ratio = (c := np.asarray(correlation)) / (1 - c)
        M = total - np.tensordot(shrinkage(ratio[..., None], n), by_run, 1)
        A, whole = (np.linalg.slogdet(part)[1] for part in (M[..., :-1, :-1], M))
        # A determinant is that of its block times the Schur complement, here yᵀPy.
        return freedom * (whole - A) + A + np.log1p(ratio[..., None] * n).sum(axis=-1)

    grid = np.linspace(0, 0.9999, 200)
    best = int(np.argmin(criterion(grid)))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    minimum = minimize_scalar(criterion, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    correlation = minimum.x if minimum.fun < criterion(grid[best]) else grid[best]
    return float(correlation / (1 - correlation))


def shrinkage(variance_ratio: float | np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return s = ρ / (1 + n ρ): (I + ρ 11ᵀ)⁻¹ = I - s 11ᵀ for a run of n scores (Sherman & Morrison)."""
    return variance_ratio / (1 + n * variance_ratio)


def run_products(Z: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Return each run's Zᵀ11ᵀZ, shape (runs, p, p)."""
    sums = np.zeros((runs.max() + 1, Z.shape[1]))
    np.add.at(sums, runs, Z)
    return sums[:, :, None] * sums[:, None, :]


def normal_equations(
    X: np.ndarray, y: np.ndarray, runs: np.ndarray, clusters: np.ndarray, variance_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the normal equations of generalised least squares by cluster: (G, p, p) and (G, p)."""
    Z, n = np.column_stack([X, y]), np.bincount(runs)
    by_run = shrinkage(variance_ratio, n)[:, None, None] * run_products(Z, runs)
    M = []
    for cluster in sorted(set(clusters)):
        rows = clusters == cluster
        M.append(Z[rows].T @ Z[rows] - by_run[np.unique(runs[rows])].sum(axis=0))
    return np.array(M)[:, :-1, :-1], np.array(M)[:, :-1, -1]
