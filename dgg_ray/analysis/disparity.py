"""How far scores move with the order of the tasks: disparity per task, spread and extremes of FAA.

An order's score is its mean over seeds. Two orders that begin alike with the same seed share stages, and with
them the stages' noise: a stage is trained once, whoever asks for it. Such orders are one cluster, by their
first task and seed (`intervals.clusters_of`), and every interval of a spread is over clusters. Where the
first task itself matters it is counted as chance too, which leaves intervals too wide rather than too narrow.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import clusters_by_order, compared, final_table, finals, once, over_blocks
from dgg_ray.stats.intervals import clustered_jackknife, expected_range

WIDEST = 0.5  # standard deviation of values in [0, 1]: half of them at either end
DISPARITY = ["opd", "expected", "low", "high", "floor", "corrected"]


@once
def disparity(results: Results, split: str) -> pd.DataFrame:
    """How far each task's final score moves with the order: one row per label and task, two below them.

        OPD_i = max over orders - min over orders of R[T-1, i]
        AOPD = mean_i OPD_i        MOPD = max_i OPD_i

    Yoon et al., ICLR 2020, arXiv:1902.09432. task: "AOPD" and "MOPD" in the two rows. A single strategy whose
    orders were all alike would have an OPD too: scores hold the noise of seeds, so OPD is too large,
    never too small, and grows with the number of orders.

    lowest, highest, opd: of the orders that were run; orders: how many.
    expected, low, high: the OPD to be expected of as many orders that share no stage, for normal scores:
        their standard deviation × expected_range(orders), with its 95 % interval. Of MOPD the interval
        holds with at least 95 %: it is made of intervals that hold for all tasks at once (Bonferroni).
    floor: the part that seeds alone make, were the order of no effect; corrected: expected without it
        (variances subtracted). nan for a single seed, which cannot tell the two.

    No rows where a setting was judged on a single order.
    """
    rows = []
    for label, group in finals(results, split).groupby("label", sort=False):
        scores = group.groupby(["order", "task"])["score"].mean().unstack()  # orders × tasks
        if len(scores) > 1:
            rows += [
                [label, *row, len(scores)]
                for row in disparities(scores, clusters_by_order(group), seed_noise(group))
            ]
    columns = ["label", "task", "lowest", "highest", *DISPARITY, "orders"]
    return pd.DataFrame(rows, columns=columns)


def disparities(scores: pd.DataFrame, clusters: pd.Series, noise: pd.Series) -> list[list[object]]:
    """(task, lowest, highest, *DISPARITY) for each column of an order × task table, then AOPD and MOPD."""
    factor = expected_range(len(scores))
    opd = scores.max() - scores.min()
    deviation, G = deviations(scores, clusters)
    each = factor * interval_of_scale(deviation, G)  # (3, tasks)
    mean = factor * interval_of_scale(lambda kept: deviation(kept).mean(axis=1), G)[:, 0]
    jointly = factor * interval_of_scale(deviation, G, 1 - 0.05 / len(opd))
    most = [each[0].max(), jointly[1].max(), jointly[2].max()]
    floor = factor * noise
    corrected = np.sqrt(np.maximum(0, each[0] ** 2 - floor**2))
    rows = zip(
        scores.columns,
        scores.min(),
        scores.max(),
        opd,
        *np.minimum(each, 1),  # scores lie in [0, 1]
        floor,
        corrected,
        strict=True,
    )
    summary = ("AOPD", opd.mean(), mean, "mean"), ("MOPD", opd.max(), most, "max")
    return [list(row) for row in rows] + [
        [
            name,
            np.nan,
            np.nan,
            value,
            *np.minimum(bounds, 1),
            getattr(floor, how)(skipna=False),
            getattr(corrected, how)(skipna=False),
        ]
        for name, value, bounds, how in summary
    ]


def seed_noise(scores: pd.DataFrame) -> pd.Series:
    """Task → standard deviation that seeds leave in an order's mean over them; nan for a single seed."""
    within = scores.groupby(["task", "order"])["score"]
    variance, seeds = (each.groupby("task").mean() for each in (within.var(), within.count()))
    return pd.Series(variance.div(seeds).pow(0.5))


@once
def overall(results: Results, split: str) -> pd.DataFrame:
    """FAA over the orders: one row per label with at least 2 orders.

    mean, low, high: over blocks, with the 95 % interval of the comparison (`over_blocks`).
    sd, sd_low, sd_high: over orders, and 95 % interval. lowest, highest: with the orders that have them.
    expected_range and its 95 % interval: of as many orders that share no stage, for normal scores.
    floor: expected range that seeds alone make; nan for a single seed. clusters: of orders.
    """
    table = final_table(results, split)
    rows = []
    for label, setting in compared(results).items():
        own = table[(table["setting"] == setting) & ~table["together"].astype(bool)].dropna(subset="faa")
        faa = own.groupby("order")["faa"].mean()
        if len(faa) < 2:
            continue
        mean, clusters = over_blocks(own, "faa"), clusters_by_order(own)
        sd = np.minimum(interval_of_scale(*deviations(faa.to_frame(), clusters))[:, 0], WIDEST)
        factor = expected_range(len(faa))
        noise = seed_noise(own.assign(task="", score=own["faa"])).item()
        rows.append(
            [
                *(label, len(faa), own["seed"].nunique(), clusters.nunique(), *mean[:3], *sd),
                *(faa.min(), faa.idxmin(), faa.max(), faa.idxmax(), faa.max() - faa.min()),
                *np.minimum(factor * sd, 1),
                factor * noise,
            ]
        )
    columns = ["label", "orders", "seeds", "clusters", "mean", "low", "high", "sd", "sd_low", "sd_high"]
    columns += ["lowest", "lowest_order", "highest", "highest_order", "range"]
    return pd.DataFrame(rows, columns=[*columns, "expected_range", "range_low", "range_high", "floor"])


def deviations(scores: pd.DataFrame, clusters: pd.Series) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """(samples of clusters → standard deviation of each column over their orders, number of clusters).

        s² = mean of (y_a - y_b)² / 2 over all pairs of orders a, b of different clusters

    Pairs inside a cluster share noise, which would make the deviation too small.
    """
    codes, _ = pd.factorize(clusters.reindex(scores.index))
    member = np.eye(codes.max() + 1)[codes]
    y = scores.to_numpy() - scores.to_numpy().mean(axis=0)  # squares of small numbers: less rounding
    n, sums, squares = member.sum(axis=0), member.T @ y, member.T @ y**2

    def deviation(kept: np.ndarray) -> np.ndarray:
        all_pairs = (kept @ n)[:, None] * (kept @ squares) - (kept @ sums) ** 2
        inside = kept @ (n[:, None] * squares - sums**2)
        return np.sqrt(np.maximum(all_pairs - inside, 0) / ((kept @ n) ** 2 - kept @ n**2)[:, None])

    return deviation, len(n)


def interval_of_scale(
    scale: Callable[[np.ndarray], np.ndarray], clusters: int, level: float = 0.95
) -> np.ndarray:
    """(estimate, low, high) of something that is multiplied rather than added to: by its logarithm."""
    return np.exp(clustered_jackknife(lambda kept: np.log(scale(kept)), clusters, level))
