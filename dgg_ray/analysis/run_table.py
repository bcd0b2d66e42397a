"""What a study's table says: each run's score matrix, its metrics, and settings compared on equal blocks.

A block is one order of the tasks with one seed. All comparisons are within blocks.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from dgg_ray.analysis.matrices import BLOCK, Run, of_each, once, stacks, walk
from dgg_ray.analysis.results import Results
from dgg_ray.config.sections import name_of
from dgg_ray.core import plugins
from dgg_ray.core.errors import ResultsError, hint
from dgg_ray.core.interfaces import ScoreMatrix
from dgg_ray.core.wording import listing as listing
from dgg_ray.search.alpha_curve import alpha_paths
from dgg_ray.search.objective import gap_range, range_of
from dgg_ray.stats.intervals import (
    ANYWHERE,
    Difference,
    Interval,
    clusters_of,
    fixed_orders,
    mean_interval,
    paired_difference,
    ways_of,
)


def metrics() -> dict[str, Callable[[ScoreMatrix], float]]:
    """Name → function, for every file in metrics/ and what studies named of their own."""
    every = dict.fromkeys([*plugins.names("metrics"), *plugins.OUTSIDE.get("metrics", [])])
    return {name: plugins.find("metrics", name) for name in every}


@once
def selection(results: Results) -> list[Run]:
    """The runs by which settings were chosen, on the split on which they were.

    Without the runs of the chosen setting, and of a baseline that was searched too, on further blocks (seeds
    of the final comparison): there they would be compared on easier or harder ground.
    """
    found, ours = walk(results, results.terms.selection_split), set(searched(results).index)
    blocks: dict[str, set[tuple[str, int]]] = {setting: set() for setting in ours}
    for run in found:
        blocks.setdefault(run.setting, set()).add((run.order, run.seed))
    plain = ours - {chosen(results)} - set(results.baselines.values())  # judged by the search alone
    fair = set().union(*(blocks[setting] for setting in plain))
    if not plain and ours:
        fair = set.intersection(*(blocks[setting] for setting in ours))
    return [run for run in found if run.setting not in ours or not fair or (run.order, run.seed) in fair]


@once
def runs(results: Results, split: str) -> pd.DataFrame:
    """One row per (setting, strategy, order, seed) examined on `split`, with every metric in metrics/.

    A metric is nan where the run is not far enough, or where it has no meaning (`together`: joint).
    Raises ResultsError for a study without a finished stage; no rows where only this split is missing.
    """
    found, functions = walk(results, split), metrics()
    about = {n: [getattr(run, n) for run in found] for n in ("setting", "strategy", *BLOCK, "together")}
    values = {name: np.full(len(found), np.nan) for name in functions}
    for mine, stack in stacks([run.scores for run in found]):
        for name, function in functions.items():
            values[name][mine] = of_each(function, stack)
    return pd.DataFrame(about | values)


@once
def selected(results: Results) -> pd.DataFrame:
    """One row per run of `selection`, with every metric."""
    return rows_of(selection(results), results, results.terms.selection_split)


def rows_of(some: Iterable[Run], results: Results, split: str) -> pd.DataFrame:
    """The rows of `runs` that are of some of the split's runs."""
    wanted = set(map(id, some))
    kept = np.array([id(run) in wanted for run in walk(results, split)], dtype=bool)
    return runs(results, split)[kept].reset_index(drop=True)


@once
def final_runs(results: Results, split: str) -> list[Run]:
    """The runs on the final blocks; all there are while the chosen setting has none of these.

    Where settings were chosen on the same split, those of the search are left out of the comparison.
    """
    found, blocks = walk(results, split), set(results.terms.compared_on)
    final = [run for run in found if (run.order, run.seed) in blocks]
    return final if chosen(results) in {run.setting for run in final} else found


@once
def final_table(results: Results, split: str) -> pd.DataFrame:
    """One row per run of `final_runs`, with every metric."""
    return rows_of(final_runs(results, split), results, split)


@once
def chosen(results: Results) -> str | None:
    """The setting that the report speaks of: the recommended one, or the only one there is."""
    if results.recommended is not None:
        return results.recommended
    if results.search is not None:
        return None  # a search that has judged nothing yet may have tried a single setting
    others = set(settings(results).index) - set(results.baselines.values())
    return others.pop() if len(others) == 1 else None


def compared(results: Results) -> dict[str, str]:
    """Label → setting: the chosen one first, under its strategy's name, then the baselines."""
    setting = chosen(results)
    if setting is None or setting not in (known := settings(results)).index:
        return dict(results.baselines)
    label = str(known.loc[setting, "strategy"])
    words = printed(results)
    baselines = {
        words.get(name, name): baseline for name, baseline in results.baselines.items() if baseline != setting
    }
    where = f"highest on {results.terms.selection_split}" if results.parameters else "the study's own"
    return {f"{label} ({where})" if label in baselines else label: setting, **baselines}


CHOSEN = "chosen"  # a name of the setting that `chosen` gives, beside its label


def named(results: Results, name: str | None = None) -> tuple[str, str]:
    """(label, setting) that a name stands for: a label as it is printed or as the study has it ("replay"),
    "chosen", or an id; None or "" is the chosen setting. ResultsError tells the names that there are."""
    own, labels = chosen(results), compared(results)
    if not name and own is None:
        raise ResultsError(f"{results.name}: no setting has been judged yet; run the study further")
    names = ({CHOSEN: own} if own is not None else {}) | results.baselines | labels
    ids = dict.fromkeys([*names.values(), *results.table["setting"]])
    setting = names.get(name, name) if name else own
    if setting not in ids:
        known = [*dict.fromkeys([*labels, *names]), *ids]
        raise ResultsError(f"no setting is called {name!r}; there are {', '.join(known)}{hint(name, known)}")
    own_name = (label for label, of in labels.items() if of == setting)
    return (name if name in labels else next(own_name, setting)), setting


def own_label(results: Results) -> str:
    """The chosen setting's label in tables and figures. It is not called recommended: the verdict may be that
    another one is to be used."""
    own = (label for label, setting in compared(results).items() if setting == chosen(results))
    return next(own, "the chosen setting")


def printed(results: Results) -> dict[str, str]:
    """Label → what is printed for it, of the baselines that the search gives."""
    if results.search is None:
        return {}
    parameter = " and ".join(map(name_of, results.search.parameters))
    return {
        "runner_up": "the runner-up",
        "constant": f"the best constant {parameter}",
        "two_task": f"{parameter} chosen on the first two tasks, then kept",
        "curve": "α read off the curves of the search",
    }


@once
def settings(results: Results) -> pd.DataFrame:
    """Setting id → strategy and searched values."""
    learned = results.table[results.table["stage"] >= 0]
    return (
        learned.drop_duplicates("setting")
        .set_index("setting")
        .sort_index()[["strategy", *results.parameters]]
    )


@once
def final_split(results: Results) -> str:
    """`test` where the chosen setting was examined on it, else `validation`."""
    table = results.table[(results.table["split"] == "test") & (results.table["stage"] >= 0)]
    return "test" if chosen(results) in set(table["setting"]) else "validation"


def headline(results: Results) -> str:
    """The metric in which settings are compared: the search's where it had one, else FAA."""
    return results.objective[0] if len(results.objective) == 1 else "faa"


@once
def tasks_of(results: Results) -> set[str]:
    """All that were examined."""
    return set(results.table["eval_task"].unique())


@once
def alphas(results: Results) -> dict[str, str]:
    """Task → the column that holds its α, for every task whose α was searched."""
    return alpha_paths(results.parameters, tasks_of(results))


@once
def searched(results: Results) -> pd.DataFrame:
    """The settings that were searched; the only one where nothing was. Rivals are left out."""
    known, setting = settings(results), chosen(results)
    baselines = set(results.baselines.values()) - set(results.tried) - {setting}
    return known[~known.index.isin(list(baselines))]


def text_of(value: object) -> str:
    """A setting's value in four digits, whole numbers whole; a dash where there is none."""
    if isinstance(value, bool | np.bool_ | str):
        return str(value)
    if not isinstance(value, int | float | np.number):
        return "–" if value is None or value is pd.NA else str(value)
    if np.isnan(value):
        return "–"
    return str(int(value)) if float(value).is_integer() else f"{value:.4g}"


SCORE = ["score", "low", "high", "n", "values"]
DIFFERENCE = ["difference", "difference_low", "difference_high", "p", "pairs", "difference_values"]
AT_ONCE = ["p_adjusted", "at_once_low", "at_once_high"]
THESE = ["these_low", "these_high", "these_n", "these_values"]


@once
def compare(results: Results, split: str) -> pd.DataFrame:
    """The chosen setting against each baseline: one row per label and metric.

    score, low, high, n, values: mean over blocks, its 95 % interval over other orders and seeds, the clusters
        that this is over (`intervals.ways_of`) and their means; for a joint run over seeds, as one run
        serves every order.
    difference, difference_low, difference_high, p, pairs, difference_values: chosen minus baseline, paired over
        the blocks that both have, and clusters of these; nan in the chosen setting's own rows. Each interval
        and p is of this one comparison.
    p_adjusted, at_once_low, at_once_high: the same for all baselines of a metric at once, both by Bonferroni's
        correction, so that p is below 5 % where the interval excludes 0 and nowhere else (Holm's p can be
        where it does not). joint is a reference and no baseline: it is not among them.
    these_low, these_high, these_n, these_values: 95 % interval of the mean on these orders, over seeds
        (`intervals.fixed_orders`), and with `difference_` before of the difference.
    """
    table = final_table(results, split)
    labels = compared(results)
    ours = table[table["setting"] == chosen(results)].set_index(BLOCK)
    baselines = [setting for setting in labels.values() if setting != chosen(results)]
    together = set(table["setting"][table["together"]])
    family = family_of(results, split)
    rows = []
    for label, setting in labels.items():
        theirs = table[table["setting"] == setting].set_index(BLOCK)
        both = ours.join(theirs[list(metrics())].add_prefix("their "), how="inner")
        for metric in metrics():
            score, these = over_blocks(theirs.reset_index(), metric), over_seeds(theirs.reset_index(), metric)
            gaps = both[metric] - both[f"their {metric}"] if setting in baselines else both[metric].iloc[:0]
            joint = setting in together
            single, at_once, here = differences(gaps, metric, 1 if joint else family, joint)
            rows.append([label, setting, metric, *score, *single, *at_once, *these[1:], *here[1:]])
    columns = ["label", "setting", "metric", *SCORE, *DIFFERENCE, *AT_ONCE[1:], *THESE]
    frame = pd.DataFrame(rows, columns=[*columns, *(f"difference_{name}" for name in THESE)])
    judged = ~frame["setting"].isin(together)
    frame.insert(frame.columns.get_loc("at_once_low"), "p_adjusted", frame["p"])
    frame.loc[judged, "p_adjusted"] = (frame["p"][judged] * family).clip(upper=1)
    return frame


def family_of(results: Results, split: str) -> int:
    """Number of baselines that intervals hold for at once: all but joint; at least 1."""
    table = final_table(results, split)
    out = {*table["setting"][table["together"]], chosen(results)}
    return max(len(set(compared(results).values()) - out), 1)


def differences(
    gaps: pd.Series, metric: str, family: int, joint: bool
) -> tuple[Difference, tuple[float, float], Interval]:
    """Of gaps by block: their mean with its interval, the bounds that hold for so many baselines at once, and
    the interval on these orders, over seeds. joint: to a run that serves all orders of its seed."""
    within, shared = gap_range(metric), ways_of(tuple(gaps.index), by_seed=joint)
    single = paired_difference(gaps, 0 * gaps, clusters=shared, within=within)
    wide = paired_difference(gaps, 0 * gaps, 1 - 0.05 / family, shared, within)
    here = fixed_orders(gaps, tuple(gaps.index))
    bounds = max(here.low, within[0]), min(here.high, within[1])
    return single, (wide.low, wide.high), Interval(here.mean, *bounds, *here[3:])


def over_blocks(rows: pd.DataFrame, metric: str, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Mean of one setting's runs with its 95 % interval over clusters of blocks; of joint runs over seeds.

    metric: a column; no bound goes beyond its range, where it is one of metrics/, else beyond `bounds`.
    """
    within = range_of(metric) if metric in metrics() else bounds
    if rows["together"].any():
        return mean_interval(rows.groupby("seed")[metric].mean(), within=within)
    return mean_interval(rows[metric], clusters=ways_of(blocks_of(rows)), within=within)


def over_seeds(rows: pd.DataFrame, metric: str) -> Interval:
    """The same mean with its 95 % interval on these orders, over seeds."""
    within = range_of(metric) if metric in metrics() else (0.0, 1.0)
    if rows["together"].any():
        return mean_interval(rows.groupby("seed")[metric].mean(), within=within)
    return fixed_orders(rows[metric], blocks_of(rows), within=within)


def mean_over(scores: pd.Series, within: tuple[float, float] = ANYWHERE) -> Interval:
    """Mean of scores by block, with its interval over clusters of these."""
    return mean_interval(scores, within=within, clusters=ways_of(tuple(scores.index)))


def blocks_of(rows: pd.DataFrame) -> tuple[tuple[str, int], ...]:
    """The block of each row."""
    return tuple(zip(rows["order"], rows["seed"], strict=True))


def clusters_by_order(rows: pd.DataFrame) -> pd.Series:
    """Order → the number of its cluster (`intervals.clusters_of`), which all blocks of the order are in."""
    blocks = blocks_of(rows.drop_duplicates(BLOCK))
    return pd.Series(
        {order: cluster for (order, _), cluster in zip(blocks, clusters_of(blocks), strict=True)}
    )


@once
def finals(results: Results, split: str) -> pd.DataFrame:
    """Every task's final score in every compared run: one row per label, order, seed and task.

    place: where the order has the task, 0-based; before: the task learned right before it, "" for the first.
    Runs that are not finished are left out; so are joint runs, which have no order.
    """
    labels = {setting: label for label, setting in compared(results).items()}
    rows = [
        [labels[run.setting], run.order, run.seed, task, place, before, score]
        for run in final_runs(results, split)
        if run.setting in labels and not run.together and not np.isnan(run.scores.R[-1]).any()
        for place, (before, task, score) in enumerate(
            zip(("", *run.tasks), run.tasks, run.scores.R[-1], strict=False)
        )
    ]
    table = pd.DataFrame(rows, columns=["label", "order", "seed", "task", "place", "before", "score"])
    place = {label: i for i, label in enumerate(labels.values())}
    return table.sort_values("label", key=lambda names: names.map(place), kind="stable", ignore_index=True)
