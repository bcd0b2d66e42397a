"""A study's runs in tables, with their score matrices and metrics, and the settings that they belong to.

    scored_runs(results, split)       every run with its score matrix
    runs(results, split)              the same runs as a table, with every metric
    setting_values(results)           setting id → strategy and values of the search parameters

A block is one order of the tasks with one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.config.sections import name_of
from dgg_ray.core import plugins
from dgg_ray.core.errors import ResultsError, did_you_mean
from dgg_ray.core.scores import MetricValue, ScoreMatrix
from dgg_ray.search.alpha_curve import alpha_paths

BLOCK = ["order", "seed"]
CHOSEN = "chosen"  # a name of the chosen setting, besides its label
Computed = TypeVar("Computed")


def cached(function: Callable[..., Computed]) -> Callable[..., Computed]:
    """Compute a function of results and names once for each `Results`; the report's sections share the value.

    Callers must not change the returned value.
    """

    @wraps(function)
    def look_up(results: Results, *names: str) -> Computed:
        key = (function.__module__, function.__name__, *names)
        if key not in results.cache:
            results.cache[key] = function(results, *names)
        return results.cache[key]

    return look_up


# -- score matrices --------------------------------------------------------------------------------


class ScoredRun(NamedTuple):
    """A run of a setting, on one order with one seed, and its score matrix on one split.

    order: task names joined by " > "; tasks: the same names.
    together: whether all tasks were trained in one stage (joint); then only R's last row is filled.
    """

    setting: str
    strategy: str
    order: str
    seed: int
    tasks: tuple[str, ...]
    together: bool
    scores: ScoreMatrix


@cached
def scored_runs(results: Results, split: str) -> list[ScoredRun]:
    """Return every run evaluated on `split`, sorted by its names; cells that were not evaluated are nan."""
    if results.table.empty and not results.failures:
        raise ResultsError(
            f"study {results.name!r} has no finished stage, so there is nothing to report; "
            "run the study first, or give the folder in which it was run"
        )
    cells = results.table[results.table["split"] == split]
    untouched = cells[cells["stage"] < 0].groupby("eval_task")["score"].mean().to_dict()
    trained = cells[cells["stage"] >= 0]
    names = ["setting", "strategy", *BLOCK]
    run_numbers = trained.groupby(names, sort=True).ngroup().to_numpy()
    keys = trained[names].iloc[np.unique(run_numbers, return_index=True)[1]]
    task_orders = [tuple(order.split(" > ")) for order in keys["order"]]
    R, sizes, together = score_matrices(trained, run_numbers, task_orders)
    outside = scores_outside(trained, run_numbers, results.evaluate_only, R.shape[:2])
    base_scores = {
        tasks: np.array([untouched.get(task, np.nan) for task in tasks])
        for tasks in {*task_orders, results.evaluate_only}
    }
    runs = []
    for number, (setting, strategy, order, seed) in enumerate(keys.itertuples(index=False, name=None)):
        tasks = task_orders[number]
        T = len(tasks)
        scores = ScoreMatrix(
            R[number, :T, :T],
            sizes[number, :T],
            base_scores[tasks],
            outside[number, :T],
            base_scores[results.evaluate_only],
        )
        runs.append(ScoredRun(setting, strategy, order, int(seed), tasks, bool(together[number]), scores))
    return runs


def score_matrices(
    cells: pd.DataFrame, run_numbers: np.ndarray, task_orders: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (R (runs, T, T), sizes (runs, T), together (runs,)) of all runs in one pass; nan in empty cells.

    run_numbers: the number of each cell's run, shape (cells,).
    task_orders: the tasks of each run in their order; T is the length of the longest.
    """
    T = max(map(len, task_orders), default=0)
    R, sizes = np.full((len(task_orders), T, T), np.nan), np.full((len(task_orders), T), np.nan)
    eval_codes, eval_tasks = pd.factorize(cells["eval_task"])
    trained_codes, trained_tasks = pd.factorize(cells["trained_task"])
    order_numbers = {tasks: i for i, tasks in enumerate(dict.fromkeys(task_orders))}
    orders = np.array([order_numbers[tasks] for tasks in task_orders], dtype=int)[run_numbers]
    columns = task_positions(order_numbers, eval_tasks)[orders, eval_codes]
    in_order = columns >= 0
    filled_runs, filled_columns = run_numbers[in_order], columns[in_order]
    stages = cells["stage"].to_numpy(dtype=int)[in_order]
    R[filled_runs, stages, filled_columns] = cells["score"].to_numpy()[in_order]
    sizes[filled_runs, filled_columns] = cells["n"].to_numpy()[in_order]
    together = np.array([len(tasks) > 1 for tasks in task_orders], dtype=bool)
    together[run_numbers[task_positions(order_numbers, trained_tasks)[orders, trained_codes] >= 0]] = False
    return R, sizes, together


def scores_outside(
    cells: pd.DataFrame, run_numbers: np.ndarray, tasks: Sequence[str], shape: tuple[int, ...]
) -> np.ndarray:
    """Return the scores on tasks that are only evaluated, (runs, T, tasks); nan in empty cells.

    run_numbers: the number of each cell's run, shape (cells,). shape: (runs, T).
    """
    scores = np.full((*shape, len(tasks)), np.nan)
    columns = pd.Index(tasks).get_indexer(pd.Index(cells["eval_task"]))
    there = columns >= 0
    stages = cells["stage"].to_numpy(dtype=int)[there]
    scores[run_numbers[there], stages, columns[there]] = cells["score"].to_numpy()[there]
    return scores


def stacked_by_length(matrices: Sequence[ScoreMatrix]) -> Iterator[tuple[np.ndarray, ScoreMatrix]]:
    """Yield (indices, stack) for each number of tasks: the matrices of that size stacked into one."""
    lengths = np.array([len(scores.R) for scores in matrices], dtype=int)
    for T in np.unique(lengths):
        indices = np.flatnonzero(lengths == T)
        yield indices, ScoreMatrix.stack([matrices[int(i)] for i in indices])


def metric_values(metric: Callable[[ScoreMatrix], MetricValue], stack: ScoreMatrix) -> np.ndarray:
    """Compute a metric for each run of a stack: at once where the metric can, else run by run."""
    count = len(stack.R)
    try:
        if (values := np.asarray(metric(stack))).shape == (count,):
            return values
    except (TypeError, ValueError):  # a faulty metric raises again below
        pass
    return np.array([metric(stack.run(i)) for i in range(count)])


def task_positions(orders: Iterable[tuple[str, ...]], names: Iterable[str]) -> np.ndarray:
    """Return the position of each task in each order, shape (orders, names); -1 where it is absent."""
    names = list(names)
    rows = [[order.index(name) if name in order else -1 for name in names] for order in orders]
    return np.array(rows, dtype=int).reshape(len(rows), len(names))


# -- runs with their metrics -----------------------------------------------------------------------


def metrics() -> dict[str, Callable[[ScoreMatrix], float]]:
    """Return name → function of every metric in metrics/ and of those that studies brought along."""
    names = dict.fromkeys([*plugins.names("metrics"), *plugins.OUTSIDE_NAMES.get("metrics", [])])
    return {name: plugins.find("metrics", name) for name in names}


@cached
def runs(results: Results, split: str) -> pd.DataFrame:
    """Return one row per (setting, strategy, order, seed) evaluated on `split`, with every metric.

    A metric is nan where the run is not far enough, or where it has no meaning (`together`: joint).
    There are no rows where only this split is missing. Raises ResultsError for a study without a finished
    stage.
    """
    scored, functions = scored_runs(results, split), metrics()
    names = ("setting", "strategy", *BLOCK, "together")
    columns = {name: [getattr(run, name) for run in scored] for name in names}
    values = {name: np.full(len(scored), np.nan) for name in functions}
    for indices, stack in stacked_by_length([run.scores for run in scored]):
        for name, function in functions.items():
            values[name][indices] = metric_values(function, stack)
    return pd.DataFrame(columns | values)


def rows_of_runs(selected: Iterable[ScoredRun], results: Results, split: str) -> pd.DataFrame:
    """Return the rows of `runs` that belong to the selected runs of this split."""
    ids = set(map(id, selected))
    mask = np.array([id(run) in ids for run in scored_runs(results, split)], dtype=bool)
    return runs(results, split)[mask].reset_index(drop=True)


@cached
def selection_runs(results: Results) -> list[ScoredRun]:
    """Return the runs by which settings were chosen, on the split of the choice.

    The chosen setting, and a baseline that was also searched, have further runs on the blocks of the final
    comparison. These are left out: there settings would be compared on easier or harder blocks.
    """
    scored = scored_runs(results, results.setup.selection_split)
    searched = set(searched_settings(results).index) if results.search or not results.tuning.trials else set()
    searched |= set(results.tuning.trials)  # tuned baselines were chosen on the same blocks
    blocks: dict[str, set[tuple[str, int]]] = {setting: set() for setting in searched}
    for run in scored:
        blocks.setdefault(run.setting, set()).add((run.order, run.seed))
    search_only = searched - {chosen_setting(results)} - set(results.baselines.values())
    common = set().union(*(blocks[setting] for setting in search_only))
    if not search_only and searched:
        common = set.intersection(*(blocks[setting] for setting in searched))
    return [
        run for run in scored if run.setting not in searched or not common or (run.order, run.seed) in common
    ]


@cached
def selection_table(results: Results) -> pd.DataFrame:
    """Return one row per run of `selection_runs`, with every metric."""
    return rows_of_runs(selection_runs(results), results, results.setup.selection_split)


@cached
def final_runs(results: Results, split: str) -> list[ScoredRun]:
    """Return the runs on the final blocks; all runs while the chosen setting has none of these.

    Where settings were chosen on the same split, the runs of the search are thus left out of the comparison.
    """
    scored, blocks = scored_runs(results, split), set(results.setup.final_blocks)
    final = [run for run in scored if (run.order, run.seed) in blocks]
    return final if chosen_setting(results) in {run.setting for run in final} else scored


@cached
def final_table(results: Results, split: str) -> pd.DataFrame:
    """Return one row per run of `final_runs`, with every metric."""
    return rows_of_runs(final_runs(results, split), results, split)


# -- settings and their labels ---------------------------------------------------------------------


@cached
def setting_values(results: Results) -> pd.DataFrame:
    """Return setting id → strategy and values of `all_parameters`, one row per trained setting."""
    trained = results.table[results.table["stage"] >= 0].drop_duplicates("setting")
    return trained.set_index("setting").sort_index()[["strategy", *results.all_parameters]]


@cached
def searched_settings(results: Results) -> pd.DataFrame:
    """Return the rows of `setting_values` that were searched; baselines are left out.

    Where nothing was searched, that is the study's own setting.
    """
    values, chosen = setting_values(results), chosen_setting(results)
    baselines = {*results.baselines.values(), *results.tuning.trials} - set(results.evaluated) - {chosen}
    return values[~values.index.isin(list(baselines))]


@cached
def chosen_setting(results: Results) -> str | None:
    """Return the setting that the report is about: the recommended one, or the study's only one."""
    if results.recommended is not None:
        return results.recommended
    if results.search is not None:
        return None  # before the first evaluation, a single setting in the table is not yet a choice
    others = set(setting_values(results).index) - {*results.baselines.values(), *results.tuning.trials}
    return others.pop() if len(others) == 1 else None


def settings_by_label(results: Results) -> dict[str, str]:
    """Map label → setting id: the chosen setting first, under its strategy's name, then the baselines."""
    chosen = chosen_setting(results)
    if chosen is None or chosen not in (values := setting_values(results)).index:
        return dict(results.baselines)
    label = str(values.loc[chosen, "strategy"])
    printed = printed_labels(results)
    baselines = {
        printed.get(name, name): setting for name, setting in results.baselines.items() if setting != chosen
    }
    origin = f"highest on {results.setup.selection_split}" if results.parameters else "the study's own"
    return {f"{label} ({origin})" if label in baselines else label: chosen, **baselines}


def chosen_label(results: Results) -> str:
    """Return the chosen setting's label in tables and figures.

    It does not say "recommended", because the verdict may be to use another setting.
    """
    chosen = chosen_setting(results)
    labels = (label for label, setting in settings_by_label(results).items() if setting == chosen)
    return next(labels, "the chosen setting")


def printed_labels(results: Results) -> dict[str, str]:
    """Map labels of untuned baselines, and of those that the search yields, to the words printed for them."""
    untuned = {label: f"{label} (untuned)" for label, tried in results.tuning.baselines.items() if not tried}
    if results.search is None:
        return untuned
    parameters = " and ".join(map(name_of, results.search.per_task_parameters))
    return {
        "runner_up": "the runner-up",
        "constant": f"the best constant {parameters}",
        "two_task": f"{parameters} chosen on the first two tasks, then kept",
        "curve_optimum": "α read off the curves of the search",
        **untuned,
    }


def find_setting(results: Results, name: str | None = None) -> tuple[str, str]:
    """Return (label, setting id) for a name: a label, as printed or as in the study, "chosen", or an id.

    None and "" stand for the chosen setting. Raises ResultsError, with the known names, for any other.
    """
    chosen, labels = chosen_setting(results), settings_by_label(results)
    if not name and chosen is None:
        raise ResultsError(
            f"{results.name}: no setting has been evaluated completely yet; continue the study"
        )
    names = ({CHOSEN: chosen} if chosen is not None else {}) | results.baselines | labels
    ids = dict.fromkeys([*names.values(), *results.table["setting"]])
    setting = cast(str, names.get(name, name) if name else chosen)
    if setting not in ids:
        known = [*dict.fromkeys([*labels, *names]), *ids]
        raise ResultsError(
            f"no setting is called {name!r}; there are {', '.join(known)}{did_you_mean(name or '', known)}"
        )
    if name in labels:
        return name, setting
    return next((label for label, labelled in labels.items() if labelled == setting), setting), setting


@cached
def final_split(results: Results) -> str:
    """Return the comparison's split: `test` if the chosen setting was evaluated on it, else `validation`."""
    table = results.table[(results.table["split"] == "test") & (results.table["stage"] >= 0)]
    return "test" if chosen_setting(results) in set(table["setting"]) else "validation"


def headline_metric(results: Results) -> str:
    """Return the metric by which settings are compared: the search's objective if it has one, else FAA."""
    return results.objective[0] if len(results.objective) == 1 else "faa"


@cached
def evaluated_tasks(results: Results) -> set[str]:
    """Return the names of all tasks of the sequence that were evaluated."""
    return set(results.table["eval_task"].unique()) - {*results.evaluate_only}


@cached
def alpha_columns(results: Results) -> dict[str, str]:
    """Map each task whose α was searched to the column that holds its α."""
    return alpha_paths(results.parameters, evaluated_tasks(results))


def format_value(value: object) -> str:
    """Format a parameter's value with four digits, whole numbers without decimals; a dash if missing."""
    if isinstance(value, bool | np.bool_ | str):
        return str(value)
    if not isinstance(value, int | float | np.number):
        return "–" if value is None or value is pd.NA else str(value)
    if np.isnan(value):
        return "–"
    return str(int(value)) if float(value).is_integer() else f"{value:.4g}"
