"""Settings compared on equal blocks: scores, differences and their intervals.

    compare(results, split)           the chosen setting against each baseline
    settings_table(results)           the settings on the selection split, best first
    final_scores(results, split)      every task's final score, by order

A block is one order of the tasks with one seed. All comparisons are within blocks. An interval over other
orders and seeds is over clusters of blocks: blocks of different clusters share no stage
(`stats/intervals.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    BLOCK,
    cached,
    chosen_setting,
    final_runs,
    final_table,
    headline_metric,
    metrics,
    searched_settings,
    selection_table,
    setting_values,
    settings_by_label,
)
from dgg_ray.analysis.tuning import describe_tuning, settings_tried
from dgg_ray.search.objective import difference_range, metric_range
from dgg_ray.stats.intervals import (
    UNBOUNDED,
    Difference,
    Interval,
    block_clusters,
    fixed_orders_interval,
    mean_interval,
    paired_difference,
    two_way_clusters,
)

# -- intervals -------------------------------------------------------------------------------------


def blocks_of_rows(rows: pd.DataFrame) -> tuple[tuple[str, int], ...]:
    """Return the block of each row."""
    return tuple(zip(rows["order"], rows["seed"], strict=True))


def clusters_by_order(rows: pd.DataFrame) -> pd.Series:
    """Map each order to the number of the cluster that holds all its blocks (`intervals.block_clusters`)."""
    blocks = blocks_of_rows(rows.drop_duplicates(BLOCK))
    clusters = zip(blocks, block_clusters(blocks), strict=True)
    return pd.Series({order: cluster for (order, _), cluster in clusters})


def interval_of_scores(scores: pd.Series, within: tuple[float, float] = UNBOUNDED) -> Interval:
    """Return the mean of scores indexed by block, with its 95 % interval over clusters of blocks."""
    return mean_interval(scores, within=within, clusters=two_way_clusters(tuple(scores.index)))


def interval_over_blocks(
    rows: pd.DataFrame, metric: str, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Return the mean of one setting's runs with its 95 % interval over clusters of blocks.

    For joint runs the interval is over seeds, because one run serves all orders of its seed.

    metric: a column of `rows`.
    bounds: the range of its values, which no bound of the interval exceeds. For a metric of metrics/ its own
        range is used instead.
    """
    within = metric_range(metric) if metric in metrics() else bounds
    if rows["together"].any():
        return mean_interval(rows.groupby("seed")[metric].mean(), within=within)
    return mean_interval(rows[metric], clusters=two_way_clusters(blocks_of_rows(rows)), within=within)


def interval_over_seeds(rows: pd.DataFrame, metric: str) -> Interval:
    """Return the same mean with its 95 % interval over seeds, for exactly these orders."""
    within = metric_range(metric) if metric in metrics() else (0.0, 1.0)
    if rows["together"].any():
        return mean_interval(rows.groupby("seed")[metric].mean(), within=within)
    return fixed_orders_interval(rows[metric], blocks_of_rows(rows), within=within)


class PairedIntervals(NamedTuple):
    """A mean difference with three kinds of bounds.

    single: for this comparison alone, over other orders and seeds, with its p value.
    simultaneous: (low, high) that hold for all baselines at once.
    fixed_orders: over seeds, for exactly these orders.
    """

    single: Difference
    simultaneous: tuple[float, float]
    fixed_orders: Interval


def mean_gap(
    gaps: ArrayLike,
    within: tuple[float, float],
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Difference:
    """Return the mean of differences with its interval and the p value of a zero mean.

    within: the range of a difference, which no bound exceeds.
    """
    return paired_difference(gaps, np.zeros(len(np.asarray(gaps))), level, clusters, within)


def difference_intervals(gaps: pd.Series, metric: str, family: int, joint: bool) -> PairedIntervals:
    """Return the mean of differences indexed by block, with its intervals.

    family: number of baselines for which the simultaneous bounds hold (Bonferroni).
    joint: whether the differences are to joint runs, which share a run between all orders of a seed.
    """
    within, clusters = difference_range(metric), two_way_clusters(tuple(gaps.index), by_seed=joint)
    single = mean_gap(gaps, within, clusters=clusters)
    wide = mean_gap(gaps, within, 1 - 0.05 / family, clusters)
    fixed = fixed_orders_interval(gaps, tuple(gaps.index))
    fixed = fixed._replace(low=max(fixed.low, within[0]), high=min(fixed.high, within[1]))
    return PairedIntervals(single, (wide.low, wide.high), fixed)


def family_size(results: Results, split: str) -> int:
    """Count the baselines for which simultaneous intervals hold: all but joint; at least 1."""
    table = final_table(results, split)
    excluded = {*table["setting"][table["together"]], chosen_setting(results)}
    return max(len(set(settings_by_label(results).values()) - excluded), 1)


# -- tables ----------------------------------------------------------------------------------------

SCORE = ["score", "low", "high", "n", "values"]
DIFFERENCE = ["difference", "difference_low", "difference_high", "p", "pairs", "difference_values"]
SIMULTANEOUS = ["simultaneous_low", "simultaneous_high"]
FIXED_ORDERS = ["fixed_orders_low", "fixed_orders_high", "fixed_orders_n", "fixed_orders_values"]


@cached
def compare(results: Results, split: str) -> pd.DataFrame:
    """Compare the chosen setting with each baseline: one row per label and metric. These are the columns.

    score, low, high: mean over blocks, and its 95 % interval over other orders and seeds. For a joint run the
        interval is over seeds, because one run serves every order.
    n, values: the number of independent clusters behind it (`intervals.two_way_clusters`), and their means.
    difference, difference_low, difference_high, p: chosen setting minus baseline, paired over the blocks that
        both have; nan in the chosen setting's own rows. Interval and p value are of this comparison alone.
    pairs, difference_values: the number of clusters of these blocks, and their mean differences.
    p_adjusted, simultaneous_low, simultaneous_high: p value and interval that hold for all baselines of a
        metric at once. Both use Bonferroni's correction, so p is below 5 % exactly where the interval
        excludes 0. Holm's correction would not guarantee that. Joint training is a reference and not counted.
    tuning: how the method was tuned: `tuned on 12 settings`, `default setting`; empty where it has no
        parameters of its own.
    fixed_orders_low, fixed_orders_high, fixed_orders_n, fixed_orders_values: 95 % interval of the mean over
        seeds, for exactly these orders (`intervals.fixed_orders_interval`). The same names with the prefix
        `difference_` are of the difference.
    """
    table, labels = final_table(results, split), settings_by_label(results)
    chosen = chosen_setting(results)
    own_rows = table[table["setting"] == chosen].set_index(BLOCK)
    joint_settings = set(table["setting"][table["together"]])
    family = family_size(results, split)
    rows = []
    for label, setting in labels.items():
        other_rows = table[table["setting"] == setting]
        paired = own_rows.join(other_rows.set_index(BLOCK)[list(metrics())].add_prefix("other "), how="inner")
        joint = setting in joint_settings
        for metric in metrics():
            score = interval_over_blocks(other_rows, metric)
            fixed = interval_over_seeds(other_rows, metric)
            gaps = paired[metric] - paired[f"other {metric}"]
            gaps = gaps.iloc[:0] if setting == chosen else gaps
            difference = difference_intervals(gaps, metric, 1 if joint else family, joint)
            values = [*score, *difference.single, *difference.simultaneous]
            rows.append([label, setting, metric, *values, *fixed[1:], *difference.fixed_orders[1:]])
    columns = ["label", "setting", "metric", *SCORE, *DIFFERENCE, *SIMULTANEOUS, *FIXED_ORDERS]
    comparison = pd.DataFrame(rows, columns=[*columns, *(f"difference_{name}" for name in FIXED_ORDERS)])
    tuning = [describe_tuning(settings_tried(results, row[0]), row[1] == chosen) for row in rows]
    comparison.insert(3, "tuning", tuning)
    counted = ~comparison["setting"].isin(joint_settings)
    place = cast(int, comparison.columns.get_loc("simultaneous_low"))
    comparison.insert(place, "p_adjusted", comparison["p"])
    comparison.loc[counted, "p_adjusted"] = (comparison["p"][counted] * family).clip(upper=1)
    return comparison


def shown_difference(row: Mapping[Any, Any], simultaneous: bool) -> Interval | None:
    """Return the paired difference of a row of `compare`; None for the chosen setting itself.

    simultaneous: whether the interval is the one that holds for all methods at once, as in the verdict.
    """
    if np.isnan(row["difference"]):
        return None
    prefix = "simultaneous" if simultaneous else "difference"
    bounds = row[f"{prefix}_low"], row[f"{prefix}_high"]
    return Interval(row["difference"], *bounds, row["pairs"], row["difference_values"])


@cached
def settings_table(results: Results) -> pd.DataFrame:
    """Rank every setting on the selection split, best first: its values, and each metric with its interval.

    setting, strategy: its id, and the name of its strategy; then one column per search parameter, also those
        of tuned baselines.
    whole: False for a setting that was pruned or is not finished. Such settings are listed after all others,
        because their few blocks may be easy ones.
    role: the label of the chosen setting or of a baseline; "" for any other.
    METRIC, METRIC_low, METRIC_high: mean over blocks with its 95 % interval.
    METRIC_n, METRIC_values: independent clusters behind it, and their means.
    blocks: finished blocks; for joint training, seeds.
    """
    table, values = selection_table(results), setting_values(results)
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    incomplete: set[str] = set()
    if results.search:
        incomplete = set(searched_settings(results).index) - {*results.evaluated, chosen_setting(results)}
    incomplete |= {setting for setting, whole in results.tuning.trials.items() if not whole}
    rows = []
    for setting, group in table.groupby("setting", sort=True):
        row = {
            "setting": setting,
            "whole": setting not in incomplete,
            "role": labels.get(str(setting), ""),
            **values.loc[str(setting)].to_dict(),
        }
        for metric in metrics():
            mean, low, high, n, cluster_means = interval_over_blocks(group, metric)
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
            row |= {f"{metric}_n": n, f"{metric}_values": cluster_means}
        finished = group.dropna(subset="faa")
        row["blocks"] = finished["seed"].nunique() if group["together"].any() else len(finished)
        rows.append(row)
    if not rows:  # no stage was finished
        return pd.DataFrame(columns=["setting", "whole", "role", *results.all_parameters, *metrics()])
    by = ["whole", headline_metric(results), "setting"]
    return pd.DataFrame(rows).sort_values(by, ascending=[False, False, True], ignore_index=True)


@cached
def final_scores(results: Results, split: str) -> pd.DataFrame:
    """Return every task's final score in every compared run: one row per label, order, seed and task.

    position: of the task in the order, 0-based.
    previous_task: the task trained right before it; "" for the first.

    Unfinished runs are left out, and so are joint runs, which have no order.
    """
    labels = {setting: label for label, setting in settings_by_label(results).items()}
    rows = []
    for run in final_runs(results, split):
        final = run.scores.R[-1]
        if run.setting not in labels or run.together or np.isnan(final).any():
            continue
        previous_tasks = ("", *run.tasks)
        for position, task in enumerate(run.tasks):
            block = [labels[run.setting], run.order, run.seed]
            rows.append([*block, task, position, previous_tasks[position], final[position]])
    columns = ["label", "order", "seed", "task", "position", "previous_task", "score"]
    rank = {label: i for i, label in enumerate(labels.values())}
    return pd.DataFrame(rows, columns=columns).sort_values(
        "label", key=lambda names: names.map(rank), kind="stable", ignore_index=True
    )
