"""Further work that would most likely change the result, with the time it takes, largest gain first.

Each step has an expected gain. That of the search is in the unit of its first objective, that of further
blocks in the unit of the headline metric:

    search      expected true score of the best of all settings minus that of the best evaluated so far, if
                the remaining ones are like them: r s · (d(n + m) - d(n)) / 2. s is the standard deviation of
                the settings' means, r the share of s² that lies between settings rather than being chance of
                the blocks, and d(n) the expected range of n normal values (Tippett 1925)
    blocks      half width of the headline difference's interval now, minus that after as many more blocks as
                an hour affords: t(f) e - t(f+k) e √(n/(n+k)). e is the error of the paired differences, f its
                degrees of freedom (intervals.py), n the number of clusters, k that of further blocks
    α           no number, and the step comes last. The gain of knowing the best of a few α depends on how far
                they lie apart, which so few do not show: estimates were off by factors of 0.4 to 1.7

Predicted over realised gain of the search, in simulations: 1.0 on average over studies in which 30 to 90 %
of the variance lies between settings, and 0.7 to 1.3 at each of these shares. Where it is 10 %, the
prediction is twice too high, for a very small gain (test_next_steps.py). A recommendation, a comparison or
an interval that is missing entirely comes before all of these.
"""

from __future__ import annotations

from math import inf, isinf, isnan, nan
from typing import Any, NamedTuple

import numpy as np

from dgg_ray.analysis.alpha_curves import tradeoffs
from dgg_ray.analysis.comparison_tables import family_size
from dgg_ray.analysis.results import HoursInterval, Results
from dgg_ray.analysis.run_table import (
    BLOCK,
    chosen_setting,
    final_split,
    final_table,
    format_value,
    headline_metric,
    settings_by_label,
)
from dgg_ray.core.phrases import join_names, plural
from dgg_ray.search.alpha_curve import Tradeoff
from dgg_ray.search.pruning import cluster_means
from dgg_ray.stats.formats import format_percent, format_signed
from dgg_ray.stats.intervals import (
    MIN_CLUSTERS,
    block_clusters,
    expected_range,
    standard_error,
    t_half_width,
    two_way_clusters,
)
from dgg_ray.stats.power import blocks_needed

MAX_STEPS = 3  # steps listed
MIN_VISIBLE_GAIN = 0.0005  # of a score: less does not show in numbers with one decimal of a percent
HOUR = 1.0
SEEDS_ADVICE = (
    "protocol.final_seeds instead of held_out compares on the search's own orders, on any number of seeds, "
    "and says nothing about other orders."
)
OTHER_ORDERS = (
    ", of orders that begin with other tasks"  # further seeds of the same orders are not independent
)
STOPPING_ADVICE = (
    "Decide on their number beforehand: an interval that is inspected again and again until it excludes 0 "
    "does so too often."
)


class NextStep(NamedTuple):
    """A step and its reason as text, and its gain.

    gain: in the unit of scores; infinite where a result is missing entirely, 0 where it is not estimated.
    hours: that the step takes; None where no stage was timed.
    """

    gain: float
    text: str
    hours: HoursInterval | None = None


def next_step_sentences(results: Results) -> list[str]:
    """List the texts of `largest_steps`."""
    return [step.text for step in largest_steps(results)]


def largest_steps(results: Results) -> list[NextStep]:
    """List the steps with the largest expected change, the largest first; empty for a study without a stage.

    Steps beyond the study itself are left out if their effect would not be visible.
    """
    if results.table.empty:
        return []
    blocks = [step for step in block_steps(results) if step.gain >= MIN_VISIBLE_GAIN]
    steps = [*unfinished_steps(results), *blocks, *alpha_steps(results)]
    return sorted(steps, key=lambda step: -step.gain)[:MAX_STEPS]


# -- the study's own work --------------------------------------------------------------------------


def unfinished_steps(results: Results) -> list[NextStep]:
    """Return the steps that finish the study itself."""
    steps = []
    (search, search_hours), (comparison, comparison_hours) = (
        results.remaining.search,
        results.remaining.comparison,
    )
    if search:
        gain, share = expected_search_gain(results)
        text = f"Finish the search: about {search} stages are left, {format_hours(search_hours)}. "
        steps.append(NextStep(gain, text + describe_search_gain(gain, share), search_hours))
    if comparison:
        text = f"Finish the comparison: {comparison} stages are left, {format_hours(comparison_hours)}. "
        text += "Until then the chosen setting and its baselines are not all compared."
        steps.append(NextStep(inf, text, comparison_hours))
    return steps


def describe_search_gain(gain: float, share: float) -> str:
    """Describe the expected gain of finishing the search."""
    if gain < MIN_VISIBLE_GAIN and share == 0:
        return "So far no difference between the evaluated settings stands out from chance."
    if gain < MIN_VISIBLE_GAIN:
        return "The remaining settings are expected to add less than 0.1 points."
    if isinf(gain):
        return (
            "Until then no setting is chosen, or too few blocks are evaluated to distinguish the settings' "
            "differences from chance."
        )
    return (
        f"If the remaining settings are like those evaluated, the best of all is {format_percent(gain)} "
        "points better, after shrinkage for chance."
    )


def expected_search_gain(results: Results) -> tuple[float, float]:
    """Return (gain of evaluating the remaining settings, share of variance between settings).

    They are infinite and nan where nothing is known.
    """
    search = results.search
    if search is None or search.expected_settings is None:
        return inf, nan
    values = np.array([[row[0] for row in c.block_values] for c in search.feasible()])
    if len(values) <= 2:
        return inf, nan
    clusters = block_clusters(results.setup.search_blocks) or range(values.shape[-1])
    share, spread = between_setting_share(cluster_means(values, clusters)[0])
    if isnan(share):
        return inf, nan
    finished = sum(candidate.state != "open" for candidate in search.candidates)
    remaining = max(search.expected_settings - finished, 0)
    return share * spread * (expected_range(finished + remaining) - expected_range(finished)) / 2, share


def between_setting_share(values: np.ndarray) -> tuple[float, float]:
    """Return (share of the variance of settings' means that lies between settings, deviation of these means).

    The share is 1 - 1/F of the two-way analysis of variance, at least 0, and 0 where all means are equal.
    Both are nan for fewer than 2 clusters.

    values: (settings, clusters of blocks).
    """
    n, count = values.shape
    if count < 2:
        return nan, nan
    means = values.mean(axis=1)
    residuals = values - means[:, None] - values.mean(axis=0) + values.mean()
    within = float((residuals**2).sum()) / ((n - 1) * (count - 1))
    between = count * float(means.var(ddof=1))
    return (max(0.0, 1 - within / between) if between else 0.0), float(means.std(ddof=1))


# -- more blocks -----------------------------------------------------------------------------------


class GapSoFar(NamedTuple):
    """The paired differences to one baseline so far: mean, standard error, degrees of freedom, clusters."""

    label: str
    mean: float
    error: float
    freedom: float
    n: int


def block_steps(results: Results) -> list[NextStep]:
    """Return the step that adds blocks to the comparison with the nearest baseline, in units of its error."""
    gaps = []
    for label, (differences, clusters) in block_differences(results, headline_metric(results)).items():
        error, freedom, n = standard_error(differences, np.array(clusters))
        if error > 1e-12:
            gaps.append(GapSoFar(label, float(differences.mean()), error, freedom, n))
    if not gaps:
        return []
    return [block_step(results, min(gaps, key=lambda gap: abs(gap.mean) / gap.error))]


def block_step(results: Results, gap: GapSoFar) -> NextStep:
    """Return the step that adds as many blocks as an hour affords."""
    family = family_size(results, final_split(results))
    level = 1 - 0.05 / family  # for all baselines at once, as in the verdict
    n, spread, hours = gap.n, gap.error * gap.n**0.5, results.remaining.block
    room = inf if results.remaining.room is None else results.remaining.room
    k = max(1, int(HOUR / hours[0])) if hours and hours[0] > 0 else 1
    k = int(min(k, 9 * n, room or k))  # more than ten times the blocks need not be predicted
    now = t_half_width(gap.error, gap.freedom, level)
    then = t_half_width(spread / (n + k) ** 0.5, gap.freedom + k, level)
    so_far = f"{gap.label} ({format_signed(gap.mean)} points over {n} independent blocks)"
    change = f"narrows from ±{format_percent(now)} to about ±{format_percent(then)}"
    if n < MIN_CLUSTERS:
        now, change = inf, f"can then be given, about ±{format_percent(then)}"
    time = scale_hours(hours, k) if room else None
    if room == 0:
        text = f"Compare with {so_far} on more seeds: no order is left for a further block. {SEEDS_ADVICE}"
    else:
        others = "" if final_blocks_are_independent(results) else OTHER_ORDERS
        interval = "95 %" if family < 2 else "simultaneous 95 %"
        text = (
            f"Compare on {plural(k, 'more block')}{others}, {format_hours(time)}: the "
            f"{interval} interval of the difference to {so_far} {change}."
        )
    needed = blocks_needed(gap.mean, spread) if gap.mean else None
    if needed is not None and needed > n:
        text += " To detect a true difference of that size with 80 % power takes "
        text += f"{needed} independent blocks in all."
        if needed > n + room > n:
            text += f" The search left orders for {room} more. {SEEDS_ADVICE}"
    return NextStep(now - then, f"{text} {STOPPING_ADVICE}", time)


def final_blocks_are_independent(results: Results) -> bool:
    """Return whether final blocks share no stage: they are held out, or no two orders share a seed."""
    orders_by_seed: dict[int, set[str]] = {}
    for order, seed in results.setup.final_blocks:
        orders_by_seed.setdefault(seed, set()).add(order)
    return results.setup.held_out or all(len(orders) < 2 for orders in orders_by_seed.values())


def block_differences(
    results: Results, metric: str
) -> dict[str, tuple[np.ndarray, tuple[tuple[int, int], ...]]]:
    """Map label → (chosen setting minus baseline on each final block that both finished, their clusters).

    Baselines without a common block are left out. So is joint training, because it is an upper reference.
    """
    table = final_table(results, final_split(results))
    table = table[~table["together"].astype(bool)]
    scores: dict[Any, Any] = {
        s: group.set_index(BLOCK)[metric].astype(float) for s, group in table.groupby("setting")
    }
    own_scores = scores.get(chosen_setting(results))
    if own_scores is None:
        return {}
    differences = {}
    for label, setting in settings_by_label(results).items():
        if setting not in scores or setting == chosen_setting(results):
            continue
        gaps = (own_scores - scores[setting]).dropna()
        if len(gaps):
            differences[label] = gaps.to_numpy(), two_way_clusters(tuple(gaps.index))
    return differences


# -- more values of α ------------------------------------------------------------------------------


def alpha_steps(results: Results) -> list[NextStep]:
    """Return the step for the task whose α is the least certain."""
    candidates = [step for tradeoff in tradeoffs(results) if (step := alpha_step(results, tradeoff))]
    return [max(candidates, key=lambda candidate: candidate[0])[1]] if candidates else []


def alpha_step(results: Results, tradeoff: Tradeoff) -> tuple[float, NextStep] | None:
    """Return (how far the bands reach above the best, the step that tries these α on further blocks).

    It is None where the best α is known, or where no band reaches visibly above it.
    """
    points = tradeoff.points()
    others = points[points["open"] & ~points["best"] & (points["gain_high"] >= MIN_VISIBLE_GAIN)]
    if others.empty:
        return None
    best = format_value(points.loc[points["best"], "alpha"].iloc[0])
    values = sorted(others["alpha"])
    stages = len(values) + 1
    rounds = -(-stages // results.remaining.groups)  # each worker group trains one stage at a time
    hours = scale_hours(results.remaining.stage, rounds)
    text = (
        f"Try α = {join_names([*map(format_value, values)])} for {tradeoff.task} and again {best} on "
        f"another order or seed, {format_hours(hours)} ({stages} "
        "stages, if the tasks before it are trained already): so far they cannot be distinguished."
    )
    return float(others["gain_high"].max()), NextStep(0.0, text, hours)


# -- time ------------------------------------------------------------------------------------------


def scale_hours(hours: HoursInterval | None, factor: int) -> HoursInterval | None:
    """Multiply hours and their bounds."""
    return (hours[0] * factor, hours[1] * factor, hours[2] * factor) if hours else None


def format_hours(hours: HoursInterval | None) -> str:
    """Format a duration in the largest unit that it reaches: `about 2.1 hours (95 %: 1.8 to 2.4)`."""
    if hours is None:
        return "of unknown length (no stage was timed on such workers; `dgg-ray profile` does it)"
    units = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}
    unit, factor = next((u for u in units.items() if hours[0] * u[1] >= 1), ("seconds", 3600.0))
    mean, low, high = (f"{hour * factor:.2g}" for hour in hours)
    return f"about {mean} {unit} (95 %: {low} to {high})"
