"""Sentences on what a study shows about the orders of its tasks."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd

from dgg_ray.analysis.comparison_tables import interval_over_blocks
from dgg_ray.analysis.order_effects import effect_table
from dgg_ray.analysis.order_sensitivity import (
    MIN_ORDERS,
    faa_spread,
    rank_agreement,
    settings_by_order,
    task_disparity,
)
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen_setting,
    final_split,
    final_table,
    format_value,
    headline_metric,
    setting_values,
    settings_by_label,
)
from dgg_ray.config.sections import name_of
from dgg_ray.stats.formats import EstimateStyle, format_interval_suffix, format_percent, format_signed

SIGNED = EstimateStyle(format_signed)


def order_sensitivity_sentences(results: Results) -> list[str]:
    """Say everything that the study shows about orders: disparity, spread, ranks, effects, settings."""
    split = final_split(results)
    sentences = order_sentences(results, split)
    spread = faa_spread(results, split)
    if spread.empty or spread["orders"].max() < MIN_ORDERS:
        return sentences
    sentences += [spread_sentence(row) for row in spread.to_dict("records")]
    sentences += rank_agreement_sentences(rank_agreement(results, split))
    effects = effect_table(results, split)
    sentences += unknown_effect_sentences(effects)
    for label, group in effects.groupby("label", sort=False):
        sentences += effect_sentences(str(label), group)
    sentences += setting_sentences(results, settings_by_order(results))
    return sentences + cluster_sentences(spread)


def order_sentences(results: Results, split: str) -> list[str]:
    """Say how much the order of the tasks matters to the chosen setting, and which blocks are independent."""
    table = final_table(results, split)
    own_rows = table[table["setting"] == chosen_setting(results)]
    if own_rows["order"].nunique() < 2:
        return ["Only one order of the tasks was run, so how much the result depends on it is not known."]
    label = next(iter(settings_by_label(results)))
    by_label = task_disparity(results, split).set_index("label")
    block_sentences = shared_block_sentences(own_rows, headline_metric(results))
    if label not in by_label.index:
        return block_sentences
    by_task = by_label.loc[label].set_index("task")
    average, largest = (cast(pd.Series, by_task.loc[name]) for name in ("AOPD", "MOPD"))
    most_affected = by_task.drop(["AOPD", "MOPD"])["opd"].idxmax()
    return [
        f"Over {int(average['orders'])} orders a task's final score moves by "
        f"{format_percent(average['opd'])} points on average (AOPD) and by {format_percent(largest['opd'])} "
        f"at most (MOPD, {most_affected}), {describe_seed_noise(average)}.",
        *block_sentences,
    ]


def shared_block_sentences(rows: pd.DataFrame, metric: str) -> list[str]:
    """Say how many blocks are independent, where some are not."""
    blocks, n = int(rows[metric].count()), interval_over_blocks(rows, metric).n
    if n == blocks:
        return []
    reason = "Blocks that share an order or a first stage are not independent and count as one: "
    independent = f"of {blocks} blocks {n} {'is' if n == 1 else 'are'} independent, "
    consequence = "so no interval can be given" if n == 1 else f"intervals are over {n}"
    advice = "Orders that begin with other tasks, or protocol.held_out, would add independent blocks."
    return [f"{reason}{independent}{consequence}. {advice}"]


def describe_seed_noise(row: pd.Series) -> str:
    """Say how much of a disparity seeds alone cause."""
    if np.isnan(row["seed_noise"]):
        return "seed noise included"
    return (
        f"of which seeds alone cause {format_percent(row['seed_noise'])} "
        f"(AOPD without them: {format_percent(row['without_seed_noise'])})"
    )


def spread_sentence(row: dict[Any, Any]) -> str:
    """State the range, the deviation and the mean of one method's FAA over the orders."""
    lowest = f"{format_percent(row['lowest'])} ({row['lowest_order']})"
    highest = f"{format_percent(row['highest'])} ({row['highest_order']})"
    deviation = f"{format_percent(row['sd'])} points{format_interval_suffix(row['sd_low'], row['sd_high'])}"
    mean = f"{format_percent(row['mean'])} %{format_interval_suffix(row['low'], row['high'])}"
    return (
        f"{row['label']}: over {row['orders']} orders FAA ranges from {lowest} to {highest}; its standard "
        f"deviation is {deviation}. Its mean is {mean}."
    )


def rank_agreement_sentences(table: pd.DataFrame) -> list[str]:
    """Say whether the orders rank the methods alike, and how often each method is first."""
    if table.empty:
        return []
    row = table.iloc[0]
    shares = zip(table["label"], table["first_share"], strict=True)
    firsts = ", ".join(
        f"{label} in {format_value(round(share * row['orders'], 2))}" for label, share in shares
    )
    tau = f"is {format_tau(row['pairwise_tau'])}"
    tau += format_interval_suffix(row["low"], row["high"], EstimateStyle(format_tau))
    if np.isnan(row["pairwise_tau"]):
        tau = "is not defined, because all scores are equal"
    elif row["pairwise_tau"] == 1:
        tau += ": all rank them alike"
    return [
        f"Of {row['orders']} orders, first by FAA is {firsts}. Kendall's τ between the rankings of two "
        f"orders {tau}."
    ]


def format_tau(value: float) -> str:
    """Format a rank correlation with two decimals."""
    return f"{value:.2f}".replace("-", "−")


def unknown_effect_sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence for each reason why effects cannot be estimated, with the methods and tasks."""
    sentences = []
    for note, group in table[table["note"] != ""].groupby("note", sort=False):
        names = []
        if (group["effect"] == "position").any():
            names.append("a task's position")
        if tasks := list(dict.fromkeys(group["task"][group["effect"] == "carry-over"])):
            names.append(f"following directly after {', '.join(tasks)}")
        labels = list(dict.fromkeys(group["label"]))
        methods = "" if len(labels) == table["label"].nunique() else f" for {', '.join(labels)}"
        sentences.append(f"The effect of {' and of '.join(names)} cannot be estimated{methods}: {note}.")
    return sentences


def effect_sentences(label: str, table: pd.DataFrame) -> list[str]:
    """State the position effect and the significant carry-over effects of one method."""
    position, carry_over = table.iloc[0], table[table["effect"] == "carry-over"]
    sentences = []
    if not position["note"]:
        text = f"{label}: one position later in the order changes a task's final score by "
        text += format_effect(position)
        text += ", which is not significant" if position["low"] <= 0 <= position["high"] else ""
        sentences.append(f"{text}.")
    significant = carry_over[(carry_over["low"] > 0) | (carry_over["high"] < 0)]
    for row in significant.to_dict("records"):
        sentences.append(
            f"{label}: following directly after {row['task']} changes a task's final score by "
            f"{format_effect(row)}, compared with following the average task; "
            "the interval is for this effect alone."
        )
    estimated = carry_over["note"] == ""
    if significant.empty and estimated.any():
        which = "no task has" if estimated.all() else "none of the tasks whose effect could be estimated has"
        sentences.append(f"{label}: {which} a significant effect on the task after it.")
    return sentences


def format_effect(row: Any) -> str:
    """Format the estimate of an effect: `−2.1 points (95 % CI −3.0 to −1.2)`."""
    return f"{format_signed(row['estimate'])} points{format_interval_suffix(row['low'], row['high'], SIGNED)}"


def setting_sentences(results: Results, table: pd.DataFrame) -> list[str]:
    """Compare the setting with the best mean over orders to the one with the best worst order."""
    if table.empty:
        return []
    mean, worst = table.to_dict("records")
    mean_scores = f"mean {format_percent(mean['mean'])}, worst order {format_percent(mean['worst'])}"
    if mean["setting"] == worst["setting"]:
        return [
            f"One setting is highest both in the mean over orders and in the worst order: "
            f"{describe_values(results, mean['setting'])} ({mean_scores})."
        ]
    worst_scores = f"mean {format_percent(worst['mean'])}, worst order {format_percent(worst['worst'])}"
    return [
        f"Highest in the mean over orders: {describe_values(results, mean['setting'])} ({mean_scores}). "
        f"Highest in the worst order: {describe_values(results, worst['setting'])} ({worst_scores}). "
        f"Choosing the first costs {format_percent(mean['cost_worst'])} points in the worst order; choosing "
        f"the second costs {format_percent(worst['cost_mean'])} in the mean."
    ]


def describe_values(results: Results, setting: str) -> str:
    """List a setting's values: `α = 0.3, buffer = 50`; without those that only other strategies have."""
    values = setting_values(results).loc[setting]
    named = {name_of(name): format_value(values[name]) for name in results.parameters}
    return ", ".join(f"{name} = {value}" for name, value in named.items() if value != "–")


def cluster_sentences(spread: pd.DataFrame) -> list[str]:
    """Say that intervals are over clusters of orders, where orders share a first stage."""
    clusters, orders = int(spread["clusters"].max()), int(spread["orders"].max())
    if clusters == orders:
        return []
    tasks = spread["lowest_order"].iloc[0].count(" > ") + 1
    advice = " Orders that begin with other tasks would narrow them." if clusters < tasks else ""
    return [
        f"Intervals of spread, ranks and effects are over {clusters} clusters of {orders} orders. Orders "
        f"that share a first stage (the same first task and seed) count as one.{advice}"
    ]
