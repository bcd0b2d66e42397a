"""Rules about the baselines of the comparison, and about the search and its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from math import prod

import numpy as np

from dgg_ray.config.check import Check, describe_problem
from dgg_ray.config.parsing import check_type
from dgg_ray.config.search_space import Parameters, owners, searched_strategies, searched_values
from dgg_ray.config.sections import (
    FROM_SEARCH,
    MOST,
    STRATEGY_NAME,
    Constraint,
    Search,
    SearchParameter,
    TunedBaseline,
    Value,
)
from dgg_ray.config.study import Block, Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, nearest_name
from dgg_ray.core.scores import ScoreMatrix, reads_outside

LARGEST_GRID = 10 * MOST
ONE_STRATEGY = ("stagewise", "stage_model")  # methods that do not search `strategy.name`
SEARCHABLE = ("strategy", "adapter", "training")


def baseline_rules(check: Check) -> Iterator[Fault]:
    """Check that each baseline can be run, and that labels are unique."""
    study = check.study
    strategies = [*plugins.all_names("strategies"), *FROM_SEARCH]
    labels = [*study.strategy_names]
    for i, baseline in enumerate(study.protocol.baselines):
        path = f"protocol.baselines[{i}]"
        if isinstance(baseline, str):
            yield from named_baseline_rules(check, path, baseline, strategies)
            labels.append(baseline)
            continue
        if isinstance(baseline, TunedBaseline):
            if baseline.title in labels or baseline.label in strategies:
                rule = "needs a label of its own: another method of the comparison has this one"
                yield Fault(f"{path}.label", rule, repr(baseline.title))
            labels.append(baseline.title)
            yield from tuned_baseline_rules(check, path, baseline)
            continue
        for label, setting in baseline.items():
            if label in labels or label in strategies:
                yield Fault(path, "needs a label of its own", repr(label))
            labels.append(label)
            for name, value in setting.items():
                if check.intact(name.partition(".")[0], "readers"):
                    yield from setting_rules(study, f"{path}.{label}.{name}", name, name, [value])


def named_baseline_rules(check: Check, path: str, name: str, strategies: Sequence[str]) -> Iterator[Fault]:
    """Check a baseline that is a strategy's name, or one that comes from the search."""
    search = check.study.search
    if name in FROM_SEARCH:
        if not check.intact("search"):
            return
        if not search:
            yield Fault(path, "needs a search", repr(name))
        elif name in FROM_SEARCH[1:] and STRATEGY_NAME in search.space:
            yield Fault(path, "needs one strategy, but `strategy.name` is searched", repr(name))
        elif name in FROM_SEARCH[1:] and not any(p.per_task for p in search.space.values()):
            yield Fault(path, "needs a setting that is searched per task (`per_task: …`)", repr(name))
    elif plugins.is_outside("strategies", name):
        yield from (replace(fault, path=path) for fault in plugins.lookup_faults("strategies", name))
    elif name not in strategies:
        rule = f"must be one of {', '.join(strategies)}, LABEL: {{path of a setting: value}}, or "
        rule += "{name: STRATEGY, search: {path of a setting: values}}"
        yield Fault(path, rule, repr(name), nearest_name(name, strategies))


def tuned_baseline_rules(check: Check, at: str, baseline: TunedBaseline) -> Iterator[Fault]:
    """Check that a baseline can be tuned as it says, by the study's objective and constraints."""
    study, tuned = check.study, baseline
    if broken := plugins.lookup_faults("strategies", tuned.name):
        yield from (replace(fault, path=f"{at}.name") for fault in broken)
        return
    base = study.at({STRATEGY_NAME: tuned.name})
    for path, value in tuned.settings.items():
        if path in tuned.search:
            yield Fault(f"{at}.settings.{path}", "is searched as well: give it in one place", repr(value))
        elif check.intact(path.partition(".")[0]):
            yield from setting_rules(base, f"{at}.settings.{path}", path, path, [value])
    for path, parameter in tuned.search.items():
        if path == STRATEGY_NAME:
            yield Fault(f"{at}.search.{path}", "is `name`: give each strategy a baseline of its own")
        elif check.intact(path.partition(".")[0]):
            yield from parameter_rules(base, tuned.method, f"{at}.search", path, path, parameter)
    if tuned.method == "grid":
        yield from grid_rules(study, tuned.search, f"{at}.search")
    yield from tuning_metric_rules(study, base, f"{at}.name")


def tuning_metric_rules(study: Study, base: Study, at: str) -> Iterator[Fault]:
    """Check that a tuned baseline has values of the metrics by which the study chooses.

    base: the study with the baseline's strategy. What is wrong for the study's own strategy too is said at
    the search.
    """
    search, tasks = study.search or Search({}), max(2, len(study.task_names))
    metrics = [("objective", name) for name in search.objective]
    metrics += [("constraint", c.metric) for text in search.constraints if (c := Constraint.parse(text))]
    for kind, name in metrics:
        if plugins.lookup_faults("metrics", name) or why_unfit(name, tasks, study.strategy.simultaneous):
            continue
        if why_unfit(name, tasks, base.strategy.simultaneous):
            rule = f"cannot be tuned by the study's {kind} {name}, which has no value for a strategy that "
            yield Fault(at, f"{rule}trains all tasks at once", repr(plugins.plugin_name(base.strategy)))


def search_rules(check: Check) -> Iterator[Fault]:
    """Check the objective, the constraints, the method and the space of the search."""
    study, search = check.study, check.study.search
    if search is None:
        return
    for name in search.objective:
        yield from metric_rules(study, "search.objective", name)
    for i, text in enumerate(search.constraints):
        yield from constraint_rules(study, f"search.constraints[{i}]", text)
    yield from method_rules(check, search)
    if not search.space:
        yield Fault("search.space", "needs at least 1 setting, has 0")
    names = searched_strategies(search.space)
    yield from strategy_name_rules(study, search)
    if any(plugins.lookup_faults("strategies", name) for name in names):
        return
    for key, parameter in search.space.items():
        if key != STRATEGY_NAME and check.intact(key.partition(".")[0]):
            yield from searched_parameter_rules(study, search, key, parameter)


def strategy_name_rules(study: Study, search: Search) -> Iterator[Fault]:
    """Check the strategies that are searched."""
    at, parameter = f"search.space.{STRATEGY_NAME}", search.space.get(STRATEGY_NAME)
    if parameter is None:
        return
    if parameter.values is None or parameter.per_task:
        yield Fault(at, "needs a list of strategies, which holds for all tasks")
        return
    if search.method in ONE_STRATEGY:
        rule = f"`{search.method}` searches the settings of one strategy: use tpe, nsga2, random or grid"
        yield Fault(at, rule)
    for name in parameter.values:
        if not isinstance(name, str):
            yield Fault(at, "must be the name of a strategy", repr(name))
        elif broken := plugins.lookup_faults("strategies", name):
            yield from (replace(fault, path=at) for fault in broken)
        elif parameter.values.count(name) > 1:
            yield Fault(at, "must name each strategy once", repr(name))
        elif plugins.find("strategies", name).simultaneous:
            rule = "must be strategies that train one task after another; give the others as baselines"
            yield Fault(at, rule, repr(name))


def searched_parameter_rules(
    study: Study, search: Search, key: str, parameter: SearchParameter
) -> Iterator[Fault]:
    """Check a searched setting with each strategy that has it."""
    names = searched_strategies(search.space)
    path, strategies = owners(key, names)
    at = f"search.space.{key}"
    if strategies == ():
        legal = [f"strategy.{f.name}" for name in names for f in fields(plugins.find("strategies", name))]
        rule = f"no such path: none of {', '.join(names)} has this setting"
        yield Fault(at, rule, near=nearest_name(key, legal))
        return
    if path != key and path in search.space:
        yield Fault(at, f"is searched as `{path}` too, for every strategy that has it: prefix that path")
    for name in strategies or names or ("",):
        found = list(
            parameter_rules(
                study.at({STRATEGY_NAME: name} if name else {}),
                search.method,
                "search.space",
                key,
                path,
                parameter,
            )
        )
        yield from found
        if found:
            return  # once is enough


def method_rules(check: Check, search: Search) -> Iterator[Fault]:
    """Check that the method can search this space, and that its settings are used."""
    study = check.study
    if search.method == "stagewise":
        if search.prune_level is not None:
            rule = "is for whole settings; `stagewise` drops settings between tasks anyway"
            yield Fault("search.prune_level", rule, str(search.prune_level))
        if not any(parameter.per_task for parameter in search.space.values()):
            rule = "`stagewise` needs a setting that is searched per task"
            for setting in [*study.strategy.per_task][:1]:
                rule += f": `strategy.{setting}: {{per_task: [0, 0.3, 1]}}`"
            yield Fault("search.space", rule)
    if search.method in ONE_STRATEGY and study.strategy.simultaneous:
        yield Fault("search.method", f"`{search.method}` needs a strategy that trains one task after another")
    yield from predicted_metric_rules(search)
    yield from stage_limit_rules(check, search)
    if search.method == "grid":
        if search.warm_start_from:
            yield Fault("search.warm_start_from", "is not used by `grid`, which tries every combination")
        yield from grid_rules(study, search.space, "search.space")


def predicted_metric_rules(search: Search) -> Iterator[Fault]:
    """Check that `stage_model` predicts what it is to search for."""
    if search.method != "stage_model":
        return
    metrics = [("search.objective", name) for name in search.objective]
    for i, text in enumerate(search.constraints):
        if constraint := Constraint.parse(text):
            metrics.append((f"search.constraints[{i}]", constraint.metric))
    for at, name in metrics:
        if not plugins.lookup_faults("metrics", name) and reads_outside(plugins.find("metrics", name)):
            rule = "reads tasks that are only evaluated, which `stage_model` does not predict: use tpe"
            yield Fault(at, rule, repr(name))


def stage_limit_rules(check: Check, search: Search) -> Iterator[Fault]:
    """Check that a limit of stages is used, and allows a setting."""
    if search.stages is None:
        return
    if search.method in ("grid", "stagewise"):
        other = {"grid": "the combinations of its space", "stagewise": "`beam` and `values_per_task`"}
        rule = f"is not used by `{search.method}`, whose stages follow from {other[search.method]}"
        yield Fault("search.stages", rule, str(search.stages))
    elif check.intact("readers", "orders", "seeds"):
        least = stages_of_a_setting(check.study)
        if search.stages < least:
            rule = f"needs at least {least}, the stages of one setting on all blocks of the search"
            yield Fault("search.stages", rule, str(search.stages))


def stages_of_a_setting(study: Study) -> int:
    """Count the stages of one setting on all blocks of the search; blocks may share beginnings.

    At least so many are needed where the orders follow from data that were not read yet.
    """
    if study.orders.design == "extreme" and not study.data.similarity:
        return len(study.seeds) * (1 if study.strategy.simultaneous else len(study.task_names))
    if study.strategy.simultaneous:
        return len({seed for _, seed in study.blocks})
    return count_beginnings(study.blocks)


def count_beginnings(blocks: Sequence[Block]) -> int:
    """Count the different beginnings of orders, each with its seed: the stages of one setting."""
    return len({(order[: t + 1], seed) for order, seed in blocks for t in range(len(order))})


def grid_rules(study: Study, space: Parameters, at: str) -> Iterator[Fault]:
    """Check that all combinations of listed values can be tried."""
    if any(plugins.lookup_faults("strategies", name) for name in searched_strategies(space)):
        return
    if (count := count_combinations(study, space)) > LARGEST_GRID:
        rule = f"has {count:,} combinations, and `grid` tries at most {LARGEST_GRID:,}: "
        yield Fault(at, f"{rule}another method draws some of them")


def count_combinations(study: Study, space: Parameters) -> int:
    """Count the combinations of all listed values, of each searched strategy with its own."""
    values = [v for v in searched_values(space, study.task_names) if v.path != STRATEGY_NAME]
    return sum(
        prod(len(v.parameter.values or ()) for v in values if not v.strategies or name in v.strategies)
        for name in searched_strategies(space) or ("",)
    )


def metric_rules(study: Study, path: str, name: str) -> Iterator[Fault]:
    if broken := plugins.lookup_faults("metrics", name):
        yield from (replace(fault, path=path) for fault in broken)
        return
    if not study.evaluate_only and reads_outside(plugins.find("metrics", name)):
        yield Fault(path, "needs a task with `evaluate_only: true`, and there is none", repr(name))
        return
    tasks, outside = max(2, len(study.task_names)), len(study.evaluate_only)
    if rule := why_unfit(name, tasks, study.strategy.simultaneous, outside):
        yield Fault(path, rule, repr(name))


def constraint_rules(study: Study, path: str, text: str) -> Iterator[Fault]:
    constraint = Constraint.parse(text)
    if constraint is None:
        rule = "must be `METRIC >= STRATEGY - NUMBER points` or `METRIC >= NUMBER %`"
        yield Fault(path, rule, repr(text))
        return
    yield from metric_rules(study, path, constraint.metric)
    if constraint.baseline is None:
        return
    if broken := plugins.lookup_faults("strategies", constraint.baseline):
        yield from (replace(fault, path=path) for fault in broken)
    elif plugins.find("strategies", constraint.baseline).simultaneous:
        yield Fault(path, "must compare with a strategy that trains one task after another", repr(text))


def why_unfit(name: str, tasks: int, simultaneous: bool, outside: int = 0) -> str:
    """Say why a metric cannot be an objective; empty if it can. The metric itself is asked.

    The search evaluates the tasks seen so far, and those that are only evaluated where the metric reads them.
    It maximises. So a metric must have a value there, and must not fall when the final scores rise.

    tasks, outside: number of tasks that are trained, and of those only evaluated.
    """
    scores = np.full((tasks, tasks + outside), 0.5)
    scores[:, :tasks][~np.tri(tasks, dtype=bool)] = np.nan
    if simultaneous:
        scores[:-1] = np.nan
    better = scores.copy()
    better[-1] = 0.75
    sizes, base, outside_base = np.ones(tasks), np.full(tasks, np.nan), np.full(outside, 0.5)
    matrices = [
        ScoreMatrix(of[:, :tasks], sizes, base, of[:, tasks:], outside_base) for of in (scores, better)
    ]
    metric = plugins.find("metrics", name)
    try:
        before, after = (float(metric(matrix)) for matrix in matrices)
        both = np.asarray(metric(ScoreMatrix.stack(matrices)), dtype=float)
    except Exception as problem:  # a user's metric may raise anything
        return f"raised {describe_problem(problem)}"
    if both.shape != (2,) or not np.allclose(both, (before, after), equal_nan=True):
        return "must count its axes from the last: two stacked runs must give the values of each run alone"
    if np.isnan(before):
        return "has no value on evaluations of the tasks trained so far"
    return "falls as final scores rise, and objectives are maximised" if after < before else ""


def parameter_rules(
    study: Study, method: str, section: str, key: str, path: str, parameter: SearchParameter
) -> Iterator[Fault]:
    """Check the values of a searched setting, and that the setting takes each of them.

    section, key: where the parameter stands in the file. path: of the setting, in this study.
    """
    p, at = parameter, f"{section}.{key}"
    if (p.values is None) == (p.low is None and p.high is None):
        yield Fault(at, "needs either a list of values, or low and high")
        return
    if p.values is None and (p.low is None or p.high is None or p.low >= p.high):
        yield Fault(at, "needs low < high", f"low {p.low}, high {p.high}")
        return
    if p.log and (p.low is None or p.low <= 0):
        yield Fault(at, "log needs low > 0", f"low {p.low}")
        return
    if method == "grid" and p.values is None:
        yield Fault(at, "the method `grid` needs a list of values")
    values = [value for value in p.values or (p.low, p.high) if value is not None]
    yield from setting_rules(study, at, path, f"{path}.{study.task_names[0]}" if p.per_task else path, values)


def setting_rules(
    study: Study, at: str, path: str, full_path: str, values: Sequence[Value]
) -> Iterator[Fault]:
    """Check that a setting can take each of the values. full_path: `path`, or that of one task's value."""
    head = path.partition(".")[0]
    if path == STRATEGY_NAME:
        yield Fault(at, "must stay the same here: another strategy is a baseline of its own")
        return
    if head not in SEARCHABLE:
        rule = f"no such path; a path starts with one of {', '.join(SEARCHABLE)}"
        yield Fault(at, rule, near=nearest_name(head, SEARCHABLE))
        return
    for value in values:
        try:
            changed = study.at({full_path: value})
        except KeyError as error:
            legal = [f"{head}.{f.name}" for f in fields(getattr(study, head))]
            legal += [f"{path.rpartition('.')[0]}.{name}" for name in study.task_names]
            rule = f"no such path: {error.args[0]!r} does not exist"
            if error.args[0] in study.evaluate_only:
                rule = f"{error.args[0]} is only evaluated (`evaluate_only: true`), so no setting is its own"
            yield Fault(at, rule, near=nearest_name(path, legal))
            return
        section = getattr(changed, head)
        faults: list[Fault] = []
        check_type(type(section), {f.name: getattr(section, f.name) for f in fields(section)}, head, faults)
        for fault in faults:
            yield replace(fault, path=at, found=f"{value!r}", rule=f"{fault.rule} ({fault.path})")
