"""The verdict: which setting to use, stated no more strongly than the evidence allows."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from dgg_ray.analysis.alpha_curves import undecided_alphas, unsearched_parameters
from dgg_ray.analysis.comparison_tables import compare
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    alpha_columns,
    cached,
    chosen_setting,
    final_split,
    final_table,
    format_value,
    headline_metric,
    runs,
    setting_values,
)
from dgg_ray.config.sections import STRATEGY_NAME, name_of
from dgg_ray.core.phrases import join_names
from dgg_ray.search.objective import metric_range, simplicity
from dgg_ray.stats.formats import (
    EstimateStyle,
    difference_interval_name,
    format_difference,
    format_estimate,
    format_percent,
    score_interval,
    simultaneous_difference,
)

METRIC_LABELS = {
    "faa": "FAA",
    "stability": "stability",
    "plasticity": "plasticity",
    "backward_transfer": "BWT",
}
OUTSIDE_LABELS = {"retention": "retention"}  # in studies with tasks that are only evaluated
BASELINE_NAMES = {
    "finetune": "plain fine-tuning",
    "replay": "replay with the same buffer",
    "joint": "joint training on all tasks at once",
}
SIMPLE_STRATEGIES = {"finetune": 0, "replay": 1}  # the simplest strategies, by rank
STATUS_LABELS = {  # status of the verdict → its label
    "clear": "a clear lead over the simpler methods",
    "within noise": "within noise",
    "beaten": "worse than another method",
    "floor": "inconclusive: scores near the floor",
    "ceiling": "inconclusive: scores near the ceiling",
    "not compared": "not compared",
    "nothing evaluated": "nothing evaluated yet",
}
FLOOR, CEILING = 0.10, 0.99  # scores beyond these leave no room for settings to differ


class Verdict(NamedTuple):
    """The recommended setting, in words. The page and the console open with it.

    headline: one sentence.
    support: at most three more.
    status: one of these.
        `clear`: the chosen setting is significantly better than every simpler baseline.
        `within noise`: there is a simpler baseline that it does not significantly beat.
        `beaten`: a baseline, simpler or not, is significantly better.
        `floor`, `ceiling`: scores are too low or too high to compare settings.
        `not compared`: there is no simpler baseline, or one has no block in common with the setting yet.
        `nothing evaluated`: there is no score yet.
    """

    headline: str
    support: list[str]
    status: str


@cached
def verdict(results: Results) -> Verdict:
    """Decide which setting to use: the chosen one if it is significantly better than all simpler baselines.

    Significant means that the interval of the difference lies above 0, for all baselines at once
    (Bonferroni). Joint training is an upper reference and not a baseline. Raises ResultsError if no stage
    has finished.
    """
    split = final_split(results)
    runs(results, split)  # raises without a finished stage
    chosen = chosen_setting(results)
    if chosen is None or chosen not in setting_values(results).index:
        text = "No setting has been evaluated on all its orders and seeds yet, so none is recommended."
        return Verdict(text, [], "nothing evaluated")
    metric = headline_metric(results)
    rows = compare(results, split)
    rows = rows[rows["metric"] == metric].set_index("label")
    own_row = rows[rows["setting"] == chosen].iloc[0]
    if np.isnan(own_row["score"]):
        return verdict_without_score(results, chosen, split)
    if verdict_at_end := verdict_at_scale_end(rows, metric, split):
        return verdict_at_end
    label = METRIC_LABELS.get(metric, metric)
    score = f"On the {split} split its {label} is {format_block_score(own_row)}."
    support = [score, *single_seed_caveat(results, split), *joint_reference(rows)]
    if (better := better_baseline(results, rows)) is not None:
        return verdict_if_beaten(results, better, chosen, support)
    return verdict_over_simpler(results, rows, chosen, support)


def metric_labels(results: Results) -> dict[str, str]:
    """Return the metrics that tables show, with their headers."""
    return METRIC_LABELS | (OUTSIDE_LABELS if results.evaluate_only else {})


def metric_label(metric: str) -> str:
    """Return the header of a metric."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def compared_metrics(results: Results, comparison: pd.DataFrame) -> list[str]:
    """Return the metrics that a table of the comparison shows: those with a score, and the headline metric.

    comparison: of `compare`.
    """
    scored = set(comparison["metric"][comparison["score"].notna()])
    metrics = [metric for metric in metric_labels(results) if metric in scored]
    headline = headline_metric(results)
    return metrics if headline in metrics else [headline, *metrics]


def verdict_without_score(results: Results, chosen: str, split: str) -> Verdict:
    """Return the verdict where the chosen setting has no finished run on the split of the comparison."""
    text = f"{describe_setting(results, chosen)} has no finished run on the {split} split"
    if results.search is not None:
        how = "has the best estimate" if results.search.ranks_by_estimates else "scored highest"
        text = f"{describe_setting(results, chosen)} {how} where settings were chosen, "
        text += f"and has no finished run on {split}"
    text += "." if results.failures else " yet."
    return Verdict(f"Nothing can be recommended yet: {text}", [], "nothing evaluated")


def verdict_at_scale_end(rows: pd.DataFrame, metric: str, split: str) -> Verdict | None:
    """Return the verdict where all scores are so low, or so high, that settings cannot differ by much."""
    scores = rows["score"].dropna()
    if metric_range(metric) != (0.0, 1.0) or scores.empty:
        return None
    name = METRIC_LABELS.get(metric, metric)
    if scores.max() < FLOOR:
        highest = f"{format_percent(scores.max())} % {name} on {split}"
        text = "This study cannot tell which setting to use: even "
        text += f"{baseline_name(scores.idxmax())} reaches only {highest}."
        advice = "A task that is hardly learned cannot be forgotten: "
        advice += "check the data, the scorer and the training first."
        return Verdict(text, [advice], "floor")
    if scores.min() >= CEILING:
        lowest = f"{format_percent(scores.min())} % {name} on {split}"
        text = (
            f"This study cannot tell which setting to use: every setting compared reaches at least {lowest}."
        )
        advice = "Nothing is forgotten that a setting could retain: use longer sequences or harder tasks."
        return Verdict(text, [advice], "ceiling")
    return None


def verdict_if_beaten(results: Results, better: pd.Series, chosen: str, support: list[str]) -> Verdict:
    """Return the verdict where some baseline is significantly better."""
    so_far = "So far " if results.search and not results.search.finished else ""
    gap = format_gap(better, -1)
    text = f"{so_far}{baseline_name(better.name)} beats {describe_setting(results, chosen)} by {gap}."
    return Verdict(text[0].upper() + text[1:], support[:3], "beaten")


def verdict_over_simpler(results: Results, rows: pd.DataFrame, chosen: str, support: list[str]) -> Verdict:
    """Return the verdict from the comparison with every simpler baseline."""
    description = describe_setting(results, chosen)
    simpler = rows[[is_simpler(results, other, chosen) for other in rows["setting"]]]
    if simpler.empty:
        text = (
            f"No setting was shown to be the one to use: {description} has no simpler baseline in this study."
        )
        return Verdict(text, support, "not compared")
    waiting, compared = simpler[simpler["pairs"] == 0], simpler[simpler["pairs"] > 0]
    unbeaten = compared[~(compared["simultaneous_low"] > 0)]
    score, *rest = support
    if len(unbeaten):
        simplest = min(unbeaten["setting"], key=lambda other: simplicity_of(results, other))
        label = unbeaten.index[unbeaten["setting"] == simplest][0]
        gap = format_gap(unbeaten.loc[label])
        text = (
            f"No setting was shown to beat {baseline_name(label)}: the difference is {gap}, and the simplest "
        )
        text += f"setting within noise is {describe_setting(results, simplest)}."
        introduction = introduce_setting(results, description)
        return Verdict(text, [f"{introduction} {score}", *rest][:3], "within noise")
    gaps = join_names([f"{baseline_name(label)} by {format_gap(row)}" for label, row in compared.iterrows()])
    if gaps:
        rest = [f"It beats {gaps}.", *rest]
    support = [score, *rest][:3]
    if waiting.empty:
        opening = "Use"
        if results.search and not results.search.complete:
            cut = "Of the settings that were not stopped by hand, the best is"
            opening = cut if results.search.finished else "So far the best is"
        return Verdict(f"{opening} {description}.", support, "clear")
    names = join_names([baseline_name(label) for label in waiting.index])
    have = "has" if len(waiting) == 1 else "have"
    text = f"Not compared yet: {names} {have} no finished block in common with {description}."
    return Verdict(text, support, "not compared")


def better_baseline(results: Results, rows: pd.DataFrame) -> pd.Series | None:
    """Return the row of the highest baseline that significantly beats the chosen setting; joint is none."""
    better = rows[(rows["simultaneous_high"] < 0) & (rows["setting"] != results.baselines.get("joint"))]
    return better.loc[cast(Any, better["score"].idxmax())] if len(better) else None


def single_seed_caveat(results: Results, split: str) -> list[str]:
    """Return the caveat where one seed serves several orders."""
    rows = final_table(results, split)
    own_rows = rows[rows["setting"] == chosen_setting(results)]
    seeds = sorted(own_rows["seed"].unique())
    if own_rows["order"].nunique() > 1 and len(seeds) == 1:
        return [
            f"One seed ({seeds[0]}) serves all orders: the intervals are about other orders at that seed."
        ]
    return []


def joint_reference(rows: pd.DataFrame) -> list[str]:
    """Return the sentence with the score of joint training, where it was run."""
    if "joint" not in rows.index or np.isnan(cast(float, rows.loc["joint", "score"])):
        return []
    score = format_block_score(cast(pd.Series, rows.loc["joint"]))
    return [f"Joint training on all tasks at once, the upper reference, reaches {score}."]


# -- settings in words -----------------------------------------------------------------------------


def introduce_setting(results: Results, description: str) -> str:
    """Return a sentence that says how the described setting came to be chosen."""
    if not results.parameters:  # nothing was searched
        return f"The study's own setting is {description}."
    what = "best estimate" if results.search and results.search.ranks_by_estimates else "highest score"
    return f"The {what} where settings were chosen was that of {description}."


def baseline_name(label: object) -> str:
    """Return the name of a label in a sentence."""
    return BASELINE_NAMES.get(str(label), str(label))


def format_block_score(row: pd.Series) -> str:
    """Format a score: `65.6 % (95 % CI 55.6 to 75.7, 4 independent blocks)`."""
    blocks = f", {int(row['n'])} independent blocks"
    return format_estimate(score_interval(row), EstimateStyle(unit=" %", note=blocks))


def format_gap(row: pd.Series, sign: float = 1) -> str:
    """Format a difference: `6.4 points (95 % CI −10.0 to 23.1)`.

    With several baselines the bounds hold for all of them at once. sign -1 swaps the two sides.
    """
    return format_difference(simultaneous_difference(row), sign, difference_interval_name(row))


def describe_setting(results: Results, setting: str) -> str:
    """Describe a setting: `dgg with α for words = 0.3 (0.1 to 1 cannot be distinguished), buffer = 30`."""
    values = setting_values(results).loc[setting]
    is_chosen = setting == chosen_setting(results)
    skipped = unsearched_parameters(results) if is_chosen else ()
    undecided = undecided_alphas(results) if is_chosen else {}
    remarks = [undecided.get(column) for column in alpha_columns(results).values() if column not in skipped]
    common_remark = remarks[0] if len(remarks) > 1 and len(set(remarks)) == 1 else None
    if common_remark:  # it is stated once, after all values
        undecided = {}
    parts = []
    for parameter in results.parameters if is_chosen else results.all_parameters:
        value = format_value(values[parameter])
        if parameter in skipped or value == "–" or parameter == STRATEGY_NAME:
            continue
        remark = f" ({undecided[parameter]})" if parameter in undecided else ""
        parts.append(f"{name_of(parameter)} = {value}{remark}")
    text = str(values["strategy"]) + (f" with {', '.join(parts)}" if parts else "")
    return f"{text} (of each α, {common_remark})" if common_remark else text


def is_simpler(results: Results, setting: str, than: str) -> bool:
    """Return whether a compared setting is simpler than another one.

    Joint training is not simpler: it is another way to train. Nor is a setting without a trained stage.
    """
    if setting == results.baselines.get("joint") or setting not in setting_values(results).index:
        return False
    return simplicity_of(results, setting) < simplicity_of(results, than)


def simplicity_of(results: Results, setting: str) -> tuple[Any, ...]:
    """Return a sort key, lower for simpler: fine-tuning, replay, then others by `objective.simplicity`."""
    values = setting_values(results).loc[setting]
    rank = SIMPLE_STRATEGIES.get(str(values["strategy"]), len(SIMPLE_STRATEGIES))
    return rank, *simplicity(values[list(results.parameters)].to_dict())
