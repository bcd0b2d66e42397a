"""Why the order matters: what a task's place and the task before it do to its final score.

    y_ri = τ_i + β · place_ri + γ_before(r,i) + b_r + e_ri        b_r ~ N(0, σ_b²)   e_ri ~ N(0, σ²)

    symbol    here          what
    y_ri      score         final score on task i in run r (one order with one seed), in [0, 1]
    τ_i       task          the task's own level
    β         position      per place later in the order; places count from 0
    γ_j       carry-over    of following task j, against the mean of all that are followed; none if first
    b_r       run           what all tasks of a run have in common

A mixed linear model by REML, one for each strategy. The model's own standard errors would take the e_ri
as independent, and runs that begin alike share stages; so the intervals are of the fit with
one cluster left out in turn (intervals.clustered_jackknife) at the variances of the whole.
A cluster is all runs of orders that share a first stage, its task and seed: runs of two clusters share no
stage (intervals.clusters_of).
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import BLOCK, clusters_by_order, finals, once
from dgg_ray.stats.intervals import clustered_jackknife

COLUMNS = ["label", "effect", "task", "estimate", "low", "high", "note"]
LAST = "no order goes on after it"
CONFOUNDED = "cannot be told apart from the other effects in these orders"
ONE_CLUSTER = "no interval: it hangs on orders that share one first stage"

BOUNDS = ["low", "high"]


@once
def effects(results: Results, split: str) -> pd.DataFrame:
    """Position and carry-over effects on final scores: one row per label and effect, in points of score.

    effect: `position` (per place later) or `carry-over` (task: what was learned right before).
    note: why a value or an interval is missing; "" where nothing is. No rows for fewer than 3 orders.
    """
    rows = []
    for label, group in finals(results, split).groupby("label", sort=False):
        if group["order"].nunique() >= 3:
            rows += [[label, *row] for row in estimates(group)]
    found = pd.DataFrame(rows, columns=COLUMNS)
    found[BOUNDS] = found[BOUNDS].clip(-1, 1)  # of scores in [0, 1]
    return found


def estimates(scores: pd.DataFrame) -> list[list[object]]:
    """(effect, task, estimate, low, high, note) of one strategy's final scores."""
    tasks = sorted(scores["task"].unique())
    followed = [task for task in tasks if (scores["before"] == task).any()]
    names = [("position", ""), *(("carry-over", task) for task in followed)]
    X, y = design(scores, tasks, followed), scores["score"].to_numpy()
    contrasts = np.zeros((len(names), X.shape[1]))  # rows: linear in the coefficients
    contrasts[0, len(tasks)] = 1
    contrasts[1:, len(tasks) + 1 :] = np.eye(len(followed)) - 1 / len(followed)
    # Carry-over must show without the first places: against them it would rest on places being linear.
    first = (scores["before"] == "").to_numpy(dtype=float)[:, None]
    kinds = np.unique(np.hstack([X, first]), axis=0)  # what can be told apart does not hang on how often
    known = estimable(contrasts, kinds[:, :-1])
    known[1:] &= estimable(np.pad(contrasts, ((0, 0), (0, 1))), kinds)[1:]
    kept = independent(kinds[:, :-1])
    runs = scores.groupby(BLOCK, sort=True).ngroup().to_numpy()
    between = between_runs(X[:, kept], y, runs)
    clusters = scores["order"].map(clusters_by_order(scores)).to_numpy()
    A, b = equations(X[:, kept], y, runs, clusters, between)

    def solve(samples: np.ndarray) -> np.ndarray:
        left, right = np.einsum("sg,gij->sij", samples, A), samples @ b
        full = np.linalg.matrix_rank(left, hermitian=True) == len(kept)
        found = np.full((len(samples), len(names)), np.nan)
        found[full] = np.linalg.solve(left[full], right[full][..., None])[..., 0] @ contrasts[:, kept].T
        return found

    rows: list[list[object]] = []
    for (effect, task), is_known, value, low, high in zip(
        names, known, *clustered_jackknife(solve, len(A)), strict=True
    ):
        note = "" if is_known else CONFOUNDED
        if is_known and np.isnan(low):
            note = ONE_CLUSTER
        rows.append([effect, task, *((value, low, high) if is_known else [np.nan] * 3), note])
    return rows + [["carry-over", task, *[np.nan] * 3, LAST] for task in tasks if task not in followed]


def estimable(contrasts: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Which contrasts are combinations of the rows of X, and so of what was observed."""
    return np.abs(contrasts - contrasts @ np.linalg.pinv(X) @ X).max(axis=1) < 1e-8


def design(scores: pd.DataFrame, tasks: list[str], followed: list[str]) -> np.ndarray:
    """One row a score; columns: each task, the place, each followed task as the one before."""
    own = scores["task"].to_numpy()[:, None] == np.array(tasks)
    before = scores["before"].to_numpy()[:, None] == np.array(followed)
    against = before - before.any(axis=1, keepdims=True) / len(followed)
    return np.hstack([own, scores[["place"]].to_numpy(), against]).astype(float)


def independent(X: np.ndarray) -> list[int]:
    """Columns that span X, first come first kept."""
    kept: list[int] = []
    for column in range(X.shape[1]):
        if np.linalg.matrix_rank(X[:, [*kept, column]]) > len(kept):
            kept.append(column)
    return kept


def between_runs(X: np.ndarray, y: np.ndarray, runs: np.ndarray) -> float:
    """ρ = σ_b² / σ² by REML; 0 where runs do not differ, or nothing is left to estimate it from.

        -2 ℓ(ρ) = (N - p) log yᵀPy + log |XᵀV⁻¹X| + Σ_r log (1 + n_r ρ)       Harville 1977, JASA 72

    with σ² profiled out and V = I + ρ 11ᵀ within a run of n_r scores. Sought as ρ / (1 + ρ), the correlation
    of two scores of a run: over a grid, then between the neighbours of its best point.
    """
    rest = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]  # the same likelihood, and less to be rounded
    left = len(y) - X.shape[1]
    if left <= 1 or np.abs(rest).max() < 1e-9:
        return 0.0
    Z, n = np.column_stack([X, rest / rest.std()]), np.bincount(runs)
    plain, shared = Z.T @ Z, squares(Z, runs)

    def criterion(correlation: ArrayLike) -> np.ndarray:
        ratio = (c := np.asarray(correlation)) / (1 - c)
        M = plain - np.tensordot(discount(ratio[..., None], n), shared, 1)
        A, whole = (np.linalg.slogdet(part)[1] for part in (M[..., :-1, :-1], M))
        # A determinant is its block's times the Schur complement, here yᵀPy.
        return left * (whole - A) + A + np.log1p(ratio[..., None] * n).sum(axis=-1)

    grid = np.linspace(0, 0.9999, 200)
    best = int(np.argmin(criterion(grid)))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(criterion, bounds=around, method="bounded", options={"xatol": 1e-10})
    correlation = found.x if found.fun < criterion(grid[best]) else grid[best]
    return float(correlation / (1 - correlation))


def discount(between: float | np.ndarray, n: np.ndarray) -> np.ndarray:
    """ρ / (1 + n ρ): (I + ρ 11ᵀ)⁻¹ = I - that · 11ᵀ for n scores of a run (Sherman & Morrison)."""
    return between / (1 + n * between)


def squares(Z: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """(runs, p, p): each run's Zᵀ11ᵀZ."""
    sums = np.zeros((runs.max() + 1, Z.shape[1]))
    np.add.at(sums, runs, Z)
    return sums[:, :, None] * sums[:, None, :]


def equations(
    X: np.ndarray, y: np.ndarray, runs: np.ndarray, clusters: np.ndarray, between: float
) -> tuple[np.ndarray, np.ndarray]:
    """Normal equations of generalised least squares, cluster by cluster: (G, p, p) and (G, p)."""
    Z, n = np.column_stack([X, y]), np.bincount(runs)
    shared = discount(between, n)[:, None, None] * squares(Z, runs)
    M = []
    for name in sorted(set(clusters)):
        mine = clusters == name
        M.append(Z[mine].T @ Z[mine] - shared[np.unique(runs[mine])].sum(axis=0))
    return np.array(M)[:, :-1, :-1], np.array(M)[:, :-1, -1]
