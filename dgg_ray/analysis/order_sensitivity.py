"""Tables of how much a result depends on the order of the tasks, for a study that ran several orders.

    task_disparity      how far each task's final score moves between orders (OPD)
    faa_spread          the same for FAA: extremes, standard deviation, expected range
    rank_table          how each order ranks the methods;  rank_agreement: whether the orders agree
    settings_by_order   the setting that is best on average, and the one that is best in its worst order

An order's score is its mean over seeds. Two orders that begin alike with the same seed share stages, and with
them the noise of these stages: a stage is trained once, however many runs ask for it. Such orders form one
cluster, by their first task and seed (`intervals.block_clusters`). Every interval of a spread is over
clusters. The effect of the first task itself then counts as chance too, so intervals are too wide rather
than too narrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from dgg_ray.analysis.comparison_tables import clusters_by_order, final_scores, interval_over_blocks
from dgg_ray.analysis.order_effects import effect_table
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    cached,
    final_split,
    final_table,
    headline_metric,
    searched_settings,
    selection_table,
    settings_by_label,
)
from dgg_ray.analysis.table_files import write_csv
from dgg_ray.stats.intervals import clustered_jackknife, expected_range

MIN_ORDERS = 3  # with fewer orders only the disparity is reported
MAX_DEVIATION = 0.5  # largest standard deviation of values in [0, 1]: half of them at either end
DISPARITY = ["opd", "expected", "low", "high", "seed_noise", "without_seed_noise"]
RANK_COLUMNS = ["order", "label", "faa", "rank", "tau"]
AGREEMENT_COLUMNS = [
    *("orders", "tau_with_mean", "pairwise_tau", "low", "high"),
    *("label", "first_share", "mean_rank"),
]
Deviation = Callable[[np.ndarray], np.ndarray]  # samples of clusters → standard deviation of each column


def order_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return every table about orders, by the names of their CSV files."""
    split = final_split(results)
    return {
        "robustness": faa_spread(results, split),
        "robustness_tasks": task_disparity(results, split),
        "robustness_effects": effect_table(results, split),
        "robustness_ranks": rank_table(results, split),
        "robustness_agreement": rank_agreement(results, split),
        "robustness_settings": settings_by_order(results),
    }


def write_order_tables(results: Results, folder: Path) -> list[Path]:
    """Write each table as CSV into a folder, and return the paths."""
    paths = []
    for name, table in order_tables(results).items():
        paths.append(folder / f"{name}.csv")
        write_csv(table, paths[-1])
    return paths


def order_tables_as_json(results: Results) -> str:
    """Return the tables as one JSON object of lists of rows; nan becomes null."""
    tables = order_tables(results)
    rows = {name: json.loads(str(table.to_json(orient="records"))) for name, table in tables.items()}
    return json.dumps(rows, indent=1)


# -- disparity and spread --------------------------------------------------------------------------


@cached
def task_disparity(results: Results, split: str) -> pd.DataFrame:
    """Measure how far each task's final score moves with the order: a row per label and task, and two below.

        OPD_i = max over orders - min over orders of R[T-1, i]
        AOPD = mean_i OPD_i        MOPD = max_i OPD_i

    Yoon et al., ICLR 2020, arXiv:1902.09432. A method that does not depend on the order at all has an OPD
    too, because scores contain seed noise. So OPD is too large, never too small, and it grows with the number
    of orders.

    label, task: the method and the task; "AOPD" and "MOPD" in the last two rows.
    lowest, highest, opd: of the orders that were run; orders: how many these are.
    expected, low, high: the OPD expected of as many orders that share no stage, for normal scores. It is
        their standard deviation × expected_range(orders), with its 95 % interval. For MOPD the interval
        covers at least 95 %: it is built from intervals that hold for all tasks at once (Bonferroni).
    seed_noise: the OPD that seeds alone would cause; nan for a single seed.
    without_seed_noise: the expected OPD after subtracting the variance of seeds; nan for a single seed.

    There are no rows for a setting that ran on a single order.
    """
    rows = []
    for label, group in final_scores(results, split).groupby("label", sort=False):
        scores = group.groupby(["order", "task"])["score"].mean().unstack()  # orders × tasks
        if len(scores) > 1:
            for row in disparity_rows(scores, clusters_by_order(group), seed_deviation(group)):
                rows.append([label, *row, len(scores)])
    return pd.DataFrame(rows, columns=["label", "task", "lowest", "highest", *DISPARITY, "orders"])


def disparity_rows(scores: pd.DataFrame, clusters: pd.Series, noise: pd.Series) -> list[list[object]]:
    """Return (task, lowest, highest, *DISPARITY) for each column of a table (orders, tasks), AOPD and MOPD.

    noise: standard deviation that seeds leave in a score, by task.
    """
    factor = expected_range(len(scores))
    opd = scores.max() - scores.min()
    deviation, n_clusters = deviations(scores, clusters)
    by_task = factor * scale_interval(deviation, n_clusters)  # (3, tasks): estimate, low, high
    mean = factor * scale_interval(lambda samples: deviation(samples).mean(axis=1), n_clusters)[:, 0]
    joint = factor * scale_interval(deviation, n_clusters, 1 - 0.05 / len(opd))
    largest = [by_task[0].max(), joint[1].max(), joint[2].max()]
    seed_opd = factor * noise
    corrected = np.sqrt(np.maximum(0, by_task[0] ** 2 - seed_opd**2))
    columns = [scores.min(), scores.max(), opd, *np.minimum(by_task, 1), seed_opd, corrected]
    rows = [[task, *values] for task, *values in zip(scores.columns, *columns, strict=True)]
    for name, value, bounds, summary in (
        ("AOPD", opd.mean(), mean, "mean"),
        ("MOPD", opd.max(), largest, "max"),
    ):
        noise_parts = [getattr(part, summary)(skipna=False) for part in (seed_opd, corrected)]
        rows.append([name, np.nan, np.nan, value, *np.minimum(bounds, 1), *noise_parts])
    return rows


def seed_deviation(scores: pd.DataFrame) -> pd.Series:
    """Return task → standard deviation that seeds leave in an order's mean; nan for a single seed."""
    within = scores.groupby(["task", "order"])["score"]
    variance, seeds = (part.groupby("task").mean() for part in (within.var(), within.count()))
    return pd.Series(variance.div(seeds).pow(0.5))


@cached
def faa_spread(results: Results, split: str) -> pd.DataFrame:
    """Measure how far FAA moves with the order: one row per label with at least 2 orders.

    label, orders, seeds, clusters: the method, and how many orders, seeds and clusters of orders it ran.
    mean, low, high: mean over blocks, with the 95 % interval of the comparison (`interval_over_blocks`).
    sd, sd_low, sd_high: standard deviation over orders, with its 95 % interval.
    lowest, lowest_order, highest, highest_order, range: the extremes and their distance.
    expected_range, range_low, range_high: the range expected of as many orders that share no stage, for
        normal scores, with its 95 % interval.
    seed_noise: the expected range that seeds alone would cause; nan for a single seed.
    """
    table = final_table(results, split)
    rows = []
    for label, setting in settings_by_label(results).items():
        own = table[(table["setting"] == setting) & ~table["together"].astype(bool)].dropna(subset="faa")
        faa = own.groupby("order")["faa"].mean()
        if len(faa) < 2:
            continue
        mean, clusters = interval_over_blocks(own, "faa"), clusters_by_order(own)
        sd = np.minimum(scale_interval(*deviations(faa.to_frame(), clusters))[:, 0], MAX_DEVIATION)
        factor = expected_range(len(faa))
        noise = seed_deviation(own.assign(task="", score=own["faa"])).item()
        counts = [len(faa), own["seed"].nunique(), clusters.nunique()]
        extremes = [faa.min(), faa.idxmin(), faa.max(), faa.idxmax(), faa.max() - faa.min()]
        rows.append([label, *counts, *mean[:3], *sd, *extremes, *np.minimum(factor * sd, 1), factor * noise])
    columns = ["label", "orders", "seeds", "clusters", "mean", "low", "high", "sd", "sd_low", "sd_high"]
    columns += ["lowest", "lowest_order", "highest", "highest_order", "range"]
    columns += ["expected_range", "range_low", "range_high", "seed_noise"]
    return pd.DataFrame(rows, columns=columns)


def deviations(scores: pd.DataFrame, clusters: pd.Series) -> tuple[Deviation, int]:
    """Return a function that computes standard deviations over orders, and the number of clusters.

        s² = mean of (y_a - y_b)² / 2 over all pairs of orders a, b of different clusters

    Pairs inside a cluster share noise, which would make the deviation too small. The function takes samples
    of clusters, (samples, clusters), and returns one deviation per column, (samples, columns).
    """
    codes, _ = pd.factorize(clusters.reindex(scores.index))
    member = np.eye(codes.max() + 1)[codes]
    y = scores.to_numpy() - scores.to_numpy().mean(axis=0)  # squares of small numbers lose fewer digits
    n, sums, squares = member.sum(axis=0), member.T @ y, member.T @ y**2

    def deviation(samples: np.ndarray) -> np.ndarray:
        all_pairs = (samples @ n)[:, None] * (samples @ squares) - (samples @ sums) ** 2
        inside = samples @ (n[:, None] * squares - sums**2)
        pairs = ((samples @ n) ** 2 - samples @ n**2)[:, None]
        return np.sqrt(np.maximum(all_pairs - inside, 0) / pairs)

    return deviation, len(n)


def scale_interval(scale: Deviation, clusters: int, level: float = 0.95) -> np.ndarray:
    """Return (estimate, low, high) of a scale parameter, computed on its logarithm."""
    return np.exp(clustered_jackknife(lambda samples: np.log(scale(samples)), clusters, level))


# -- ranks -----------------------------------------------------------------------------------------


@cached
def rank_table(results: Results, split: str) -> pd.DataFrame:
    """Rank the methods by FAA in each order that all of them finished: a row per order and label.

    rank: 1 is best; equal methods share the mean rank.
    tau: Kendall's τ_b between the order's ranking and that of the mean FAAs.
    """
    table = final_table(results, split)
    table = table[~table["together"].astype(bool)].groupby(["setting", "order"])["faa"].mean().unstack(0)
    labels = {s: label for label, s in settings_by_label(results).items() if s in table.columns}
    faa = table[list(labels)].rename(columns=labels).dropna()
    if len(labels) < 2 or len(faa) < 2:
        return pd.DataFrame(columns=RANK_COLUMNS)
    tau = pd.Series(tau_b(np.vstack([faa, faa.mean()]))[-1, :-1], index=faa.index)
    long = cast(pd.Series, faa.rename_axis(columns="label").stack()).rename("faa").reset_index()
    long["rank"] = long.groupby("order")["faa"].rank(ascending=False)
    return long.assign(tau=long["order"].map(tau))


def tau_b(scores: np.ndarray) -> np.ndarray:
    """Return Kendall's τ_b between all rows of (rows, items): in [-1, 1], nan where a row is constant.

        τ_b = (concordant - discordant pairs of items) / √(pairs untied in a · pairs untied in b)

    Kendall 1945, Biometrika 33.
    """
    i, j = np.triu_indices(scores.shape[1], 1)
    sign = np.sign(np.round(scores[:, i] - scores[:, j], 12))
    untied = np.sqrt(np.abs(sign).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return sign @ sign.T / np.outer(untied, untied)


@cached
def rank_agreement(results: Results, split: str) -> pd.DataFrame:
    """Measure whether orders rank the methods alike: a row per label, equal in the first five columns.

    orders: number of orders compared.
    tau_with_mean: mean over orders of τ_b with the ranking of the mean FAAs. Each order is a part of these
        means, so it is biased upwards.
    pairwise_tau, low, high: mean τ_b of two orders that share no stage, with its 95 % interval. 1 means the
        same ranking in every order, and then there is no interval; 0 is chance.
    label: the method.
    first_share: share of orders in which it is first; equal methods share an order.
    mean_rank: 1 is always first.
    """
    table = rank_table(results, split)
    if table.empty:
        return pd.DataFrame(columns=AGREEMENT_COLUMNS)
    faa = table.pivot(index="order", columns="label", values="faa")
    best = faa.eq(faa.max(axis=1), axis=0)
    first_share = best.div(best.sum(axis=1), axis=0).mean()
    runs = final_table(results, split)
    mean, low, high = pairwise_tau(faa, clusters_by_order(runs[~runs["together"].astype(bool)]))
    tau = table.drop_duplicates("order")["tau"].mean()
    rows = [
        [len(faa), tau, mean, low, high, label, first_share[label], group["rank"].mean()]
        for label, group in table.groupby("label", sort=False)
    ]
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def pairwise_tau(faa: pd.DataFrame, clusters: pd.Series) -> np.ndarray:
    """Return (estimate, low, high) of the mean τ_b over pairs of orders of different clusters.

    The interval is computed on Fisher's z = artanh τ, which keeps it inside -1 and 1. With four clusters it
    is a little wide (97 %). It is nan where all pairs agree.
    """
    codes, _ = pd.factorize(clusters.reindex(faa.index))
    member = np.eye(codes.max() + 1)[codes]
    tau = tau_b(faa.to_numpy())
    defined = ~np.isnan(tau)
    parts = np.where(defined, tau, 0), defined.astype(float)
    sums, counts = (member.T @ part @ member for part in parts)
    np.fill_diagonal(sums, 0)
    np.fill_diagonal(counts, 0)

    def mean_z(samples: np.ndarray) -> np.ndarray:
        mean = ((samples @ sums) * samples).sum(axis=1) / ((samples @ counts) * samples).sum(axis=1)
        return np.arctanh(np.clip(mean, -1, 1))

    return np.tanh(clustered_jackknife(mean_z, len(counts)))[:, 0]


# -- settings --------------------------------------------------------------------------------------


@cached
def settings_by_order(results: Results) -> pd.DataFrame:
    """Return the searched setting with the best mean over orders, and the one with the best worst order.

    The metric is the search's, on the selection split, among the settings evaluated on all orders.

    criterion: `mean` or `worst`.
    setting, mean, worst, worst_order: the setting in this row, and its scores.
    cost_mean, cost_worst: what choosing it gives up of the best mean, and of the best worst order. There is
        no interval, because the best of several was selected by these scores.
    orders: number of orders.

    There are no rows for fewer than 2 settings or orders.
    """
    metric = headline_metric(results)
    table = selection_table(results).dropna(subset=metric)
    table = table[table["setting"].isin(searched_settings(results).index)]
    scores = table.groupby(["setting", "order"])[metric].mean().unstack().dropna()
    columns = ["criterion", "setting", "mean", "worst", "worst_order", "cost_mean", "cost_worst", "orders"]
    if min(scores.shape) < 2:
        return pd.DataFrame(columns=columns)
    mean, worst = scores.mean(axis=1), scores.min(axis=1)
    rows = []
    for criterion, setting in ("mean", str(mean.idxmax())), ("worst", str(worst.idxmax())):
        own = mean[setting], worst[setting], scores.loc[setting].idxmin()
        costs = mean.max() - mean[setting], worst.max() - worst[setting]
        rows.append([criterion, setting, *own, *costs, scores.shape[1]])
    return pd.DataFrame(rows, columns=columns)
