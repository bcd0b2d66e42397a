"""How much a result depends on the order of the tasks, from a study that ran several.

Intervals are over clusters of orders that share a first stage, see disparity.py.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dgg_ray.analysis.disparity import disparity, overall
from dgg_ray.analysis.order_effects import effects
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen,
    clusters_by_order,
    compared,
    final_split,
    final_table,
    headline,
    once,
    over_blocks,
    searched,
    selected,
    settings,
    text_of,
)
from dgg_ray.analysis.table_files import write_csv
from dgg_ray.config.sections import name_of
from dgg_ray.stats.formats import CI, percent, signed
from dgg_ray.stats.intervals import clustered_jackknife

ENOUGH = 3  # orders, below which nothing is said but the disparity


def frames(results: Results) -> dict[str, pd.DataFrame]:
    """Everything this file finds, by the names of the CSV files."""
    split = final_split(results)
    return {
        "robustness": overall(results, split),
        "robustness_tasks": disparity(results, split),
        "robustness_effects": effects(results, split),
        "robustness_ranks": ranks(results, split),
        "robustness_agreement": agreement(results, split),
        "robustness_settings": settings_by_order(results),
    }


def write(results: Results, folder: Path) -> list[Path]:
    """Writes each frame as CSV into `folder`, and returns the files' paths."""
    paths = []
    for name, frame in frames(results).items():
        paths.append(folder / f"{name}.csv")
        write_csv(frame, paths[-1])
    return paths


def as_json(results: Results) -> str:
    """The frames as one JSON object of lists of rows, nan as null."""
    rows = {name: json.loads(str(f.to_json(orient="records"))) for name, f in frames(results).items()}
    return json.dumps(rows, indent=1)


# -- ranks -------------------------------------------------------------------------------------------


@once
def ranks(results: Results, split: str) -> pd.DataFrame:
    """The strategies' ranking by FAA in each order that all of them finished: a row per order and label.

    rank: 1 is best, equals share the mean rank. tau: Kendall's τ_b of the order's ranking with that of the
        mean FAAs.
    """
    table = final_table(results, split)
    table = table[~table["together"].astype(bool)].groupby(["setting", "order"])["faa"].mean().unstack(0)
    labels = {s: label for label, s in compared(results).items() if s in table.columns}
    faa = table[list(labels)].rename(columns=labels).dropna()
    if len(labels) < 2 or len(faa) < 2:
        return pd.DataFrame(columns=["order", "label", "faa", "rank", "tau"])
    tau = pd.Series(tau_b(np.vstack([faa, faa.mean()]))[-1, :-1], index=faa.index)
    long = faa.rename_axis(columns="label").stack().rename("faa").reset_index()
    long["rank"] = long.groupby("order")["faa"].rank(ascending=False)
    return long.assign(tau=long["order"].map(tau))


def tau_b(scores: np.ndarray) -> np.ndarray:
    """Kendall's τ_b between all rows of (rows, items): in [-1, 1], nan where a row is all equal.

        τ_b = (concordant - discordant pairs of items) / √(pairs untied in a · pairs untied in b)

    Kendall 1945, Biometrika 33.
    """
    i, j = np.triu_indices(scores.shape[1], 1)
    sign = np.sign(np.round(scores[:, i] - scores[:, j], 12))
    untied = np.sqrt(np.abs(sign).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return sign @ sign.T / np.outer(untied, untied)


@once
def agreement(results: Results, split: str) -> pd.DataFrame:
    """Whether orders rank the strategies alike: a row per label; the first five columns are the same in all.

    tau: mean over orders of τ_b with the ranking of the mean FAAs, of which each is a part: on the high side.
    pairwise, low, high: mean τ_b of two orders that share no stage, and its 95 % interval; 1 is one ranking
        in every order, which leaves nothing to base an interval on; 0 is chance. orders: compared.
    first: share of orders in which the label is first, equals share it; mean_rank: 1 is always first.
    """
    table = ranks(results, split)
    if table.empty:
        return pd.DataFrame(
            columns=["orders", "tau", "pairwise", "low", "high", "label", "first", "mean_rank"]
        )
    faa = table.pivot(index="order", columns="label", values="faa")
    best = faa.eq(faa.max(axis=1), axis=0)
    first = best.div(best.sum(axis=1), axis=0).mean()
    runs = final_table(results, split)
    mean, low, high = pairwise(faa, clusters_by_order(runs[~runs["together"].astype(bool)]))
    tau = table.drop_duplicates("order")["tau"].mean()
    return pd.DataFrame(
        [
            [len(faa), tau, mean, low, high, label, first[label], group["rank"].mean()]
            for label, group in table.groupby("label", sort=False)
        ],
        columns=["orders", "tau", "pairwise", "low", "high", "label", "first", "mean_rank"],
    )


def pairwise(faa: pd.DataFrame, clusters: pd.Series) -> np.ndarray:
    """(estimate, low, high) of the mean τ_b over pairs of orders of different clusters.

    The interval is of Fisher's z = artanh τ, which keeps it inside -1 and 1; with four clusters it is a
    little wide (97 %). nan where all pairs agree.
    """
    codes, _ = pd.factorize(clusters.reindex(faa.index))
    member = np.eye(codes.max() + 1)[codes]
    tau = tau_b(faa.to_numpy())
    seen = ~np.isnan(tau)
    sums, counts = (member.T @ part @ member for part in (np.where(seen, tau, 0), seen.astype(float)))
    np.fill_diagonal(sums, 0)
    np.fill_diagonal(counts, 0)

    def z(kept: np.ndarray) -> np.ndarray:
        mean = ((kept @ sums) * kept).sum(axis=1) / ((kept @ counts) * kept).sum(axis=1)
        return np.arctanh(np.clip(mean, -1, 1))

    return np.tanh(clustered_jackknife(z, len(counts)))[:, 0]


# -- settings ----------------------------------------------------------------------------------------


@once
def settings_by_order(results: Results) -> pd.DataFrame:
    """The searched setting with the best mean over orders, and the one with the best worst order.

    By the search's metric on the validation split, among settings judged on all the orders.
    criterion: `mean` or `worst`; mean, worst, worst_order: of the setting in this row.
    cost_mean, cost_worst: what choosing it gives up of the best mean and of the best worst order. Without
        interval: the best of several is picked by the scores themselves.
    No rows for fewer than 2 settings or orders.
    """
    metric = headline(results)
    table = selected(results).dropna(subset=metric)
    table = table[table["setting"].isin(searched(results).index)]
    scores = table.groupby(["setting", "order"])[metric].mean().unstack().dropna()
    columns = ["criterion", "setting", "mean", "worst", "worst_order", "cost_mean", "cost_worst", "orders"]
    if min(scores.shape) < 2:
        return pd.DataFrame(columns=columns)
    mean, worst = scores.mean(axis=1), scores.min(axis=1)
    rows = []
    for criterion, setting in ("mean", mean.idxmax()), ("worst", worst.idxmax()):
        own = mean[setting], worst[setting], scores.loc[setting].idxmin()
        costs = mean.max() - mean[setting], worst.max() - worst[setting]
        rows.append([criterion, setting, *own, *costs, scores.shape[1]])
    return pd.DataFrame(rows, columns=columns)


# -- in words ----------------------------------------------------------------------------------------


def order_sentences(results: Results, split: str) -> list[str]:
    """What blocks count as one; how much the order of the tasks matters to the chosen setting."""
    table = final_table(results, split)
    own = table[table["setting"] == chosen(results)]
    if own["order"].nunique() < 2:
        return ["Only one order of the tasks was run: how much the result depends on it is not known."]
    first = next(iter(compared(results)))
    rows = disparity(results, split).set_index("label")
    if first not in rows.index:
        return dependence(own, headline(results))
    rows = rows.loc[first].set_index("task")
    aopd, mopd = rows.loc["AOPD"], rows.loc["MOPD"]
    worst = rows.drop(["AOPD", "MOPD"])["opd"].idxmax()
    return [
        f"Over {int(aopd['orders'])} orders a task's final score moves by {percent(aopd['opd'])} points on "
        f"average (AOPD) and by {percent(mopd['opd'])} at most (MOPD, {worst}), {noise_in_words(aopd)}.",
        *dependence(own, headline(results)),
    ]


def dependence(rows: pd.DataFrame, metric: str) -> list[str]:
    """That blocks which share something count as one in the intervals, where some do."""
    blocks, n = int(rows[metric].count()), over_blocks(rows, metric).n
    if n == blocks:
        return []
    what = "Blocks that share an order or a first stage are not independent and count as one: of "
    end = "so no interval can be given" if n == 1 else f"intervals are over {n}"
    advice = "Orders that begin with other tasks, or protocol.held_out, would bring more."
    return [f"{what}{blocks} blocks {n} {'is' if n == 1 else 'are'} independent, {end}. {advice}"]


def noise_in_words(row: pd.Series) -> str:
    """What seeds alone make of a disparity."""
    if np.isnan(row["floor"]):
        return "seed noise included"
    return (
        f"of which seeds alone make {percent(row['floor'])} (AOPD without them: {percent(row['corrected'])})"
    )


def sentences(results: Results) -> list[str]:
    """All that the study says of its orders: disparity, spread, ranks, effects, settings."""
    split = final_split(results)
    found = order_sentences(results, split)
    spread = overall(results, split)
    if spread.empty or spread["orders"].max() < ENOUGH:
        return found
    found += [spread_sentence(row) for row in spread.to_dict("records")]
    found += agreement_sentences(agreement(results, split))
    table = effects(results, split)
    found += unknown_effects(table)
    for label, group in table.groupby("label", sort=False):
        found += effect_sentences(str(label), group)
    found += setting_sentences(results, settings_by_order(results))
    clusters, orders = int(spread["clusters"].max()), int(spread["orders"].max())
    if clusters == orders:
        return found
    text = f"Intervals of spread, ranks and effects are over {clusters} clusters of {orders} orders. Orders "
    text += "that share a first stage (the same first task and seed) count as one."
    tasks = spread["lowest_order"].iloc[0].count(" > ") + 1
    advice = " Orders that begin with other tasks would narrow them." if clusters < tasks else ""
    return [*found, f"{text}{advice}"]


def between(low: float, high: float, form=percent) -> str:
    """` (95 % CI A to B)`, or nothing."""
    return "" if np.isnan(low) else f" ({CI}{form(low)} to {form(high)})"


def spread_sentence(row: dict) -> str:
    """One strategy's FAA over the orders."""
    lowest = f"{percent(row['lowest'])} ({row['lowest_order']})"
    highest = f"{percent(row['highest'])} ({row['highest_order']})"
    return (
        f"{row['label']}: over {row['orders']} orders FAA goes from {lowest} to {highest}; its standard "
        f"deviation is {percent(row['sd'])} points{between(row['sd_low'], row['sd_high'])}. Its mean is "
        f"{percent(row['mean'])} %{between(row['low'], row['high'])}."
    )


def agreement_sentences(table: pd.DataFrame) -> list[str]:
    """Whether the orders rank the strategies alike, and who is first how often."""
    if table.empty:
        return []
    row = table.iloc[0]
    firsts = ", ".join(
        f"{label} in {text_of(round(share * row['orders'], 2))}"
        for label, share in zip(table["label"], table["first"], strict=True)
    )
    interval = between(row["low"], row["high"], lambda x: f"{x:.2f}".replace("-", "−"))
    tau = f"is {row['pairwise']:.2f}{interval}".replace("-", "−")
    if np.isnan(row["pairwise"]):
        tau = "is not defined, all scores are equal"
    same = ": all rank them alike" if row["pairwise"] == 1 else ""
    return [
        f"Of {row['orders']} orders, first by FAA is {firsts}. Kendall's τ between the rankings of two "
        f"orders {tau}{same}."
    ]


def unknown_effects(table: pd.DataFrame) -> list[str]:
    """One line for each reason why effects cannot be given, for all methods and tasks that it holds for."""
    found = []
    for note, group in table[table["note"] != ""].groupby("note", sort=False):
        names = []
        if (group["effect"] == "position").any():
            names.append("a task's place")
        if tasks := list(dict.fromkeys(group["task"][group["effect"] == "carry-over"])):
            names.append(f"coming right after {', '.join(tasks)}")
        labels = list(dict.fromkeys(group["label"]))
        of = "" if len(labels) == table["label"].nunique() else f" for {', '.join(labels)}"
        found.append(f"The effect of {' and of '.join(names)} cannot be given{of}: {note}.")
    return found


def effect_sentences(label: str, table: pd.DataFrame) -> list[str]:
    """Position and carry-over of one method, as far as they can be given."""
    position, carry = table.iloc[0], table[table["effect"] == "carry-over"]
    found = []
    if not position["note"]:
        text = f"{label}: a place later in the order changes a task's final score by "
        text += f"{signed(position['estimate'])} points{between(position['low'], position['high'], signed)}"
        text += "; the interval includes 0" if position["low"] <= 0 <= position["high"] else ""
        found.append(f"{text}.")
    sure = carry[(carry["low"] > 0) | (carry["high"] < 0)]
    found += [
        f"{label}: to come right after {row['task']} changes a task's final score by "
        f"{signed(row['estimate'])} points{between(row['low'], row['high'], signed)}, against coming after "
        "the average task."
        for row in sure.to_dict("records")
    ]
    if sure.empty and (carry["note"] == "").any():
        found.append(f"{label}: what a task does to the one after it cannot be told from 0.")
    return found


def setting_sentences(results: Results, table: pd.DataFrame) -> list[str]:
    """The setting for the mean order against the one for the worst order."""
    if table.empty:
        return []
    known = settings(results)
    mean, worst = table.to_dict("records")
    values = [
        ", ".join(
            f"{name_of(parameter)} = {text_of(known.loc[row['setting'], parameter])}"
            for parameter in results.parameters
        )
        for row in (mean, worst)
    ]
    scores = f"mean {percent(mean['mean'])}, worst order {percent(mean['worst'])}"
    if mean["setting"] == worst["setting"]:
        return [
            f"Highest in the mean over orders and in the worst order is one setting, {values[0]} ({scores})."
        ]
    return [
        f"Highest in the mean over orders: {values[0]} ({scores}). Highest in the worst order: {values[1]} "
        f"(mean {percent(worst['mean'])}, worst order {percent(worst['worst'])}). To choose the first costs "
        f"{percent(mean['cost_worst'])} points in the worst order, to choose the second "
        f"{percent(worst['cost_mean'])} in the mean."
    ]
