"""Rules about the baselines of the comparison, and about the search and its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from math import prod

import numpy as np

from dgg_ray.config.check import Check, describe_problem
from dgg_ray.config.parsing import check_type
from dgg_ray.config.sections import (
    FROM_SEARCH,
    MOST,
    Constraint,
    Search,
    SearchParameter,
    Value,
)
from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, nearest_name
from dgg_ray.core.scores import ScoreMatrix, reads_outside

LARGEST_GRID = 10 * MOST
SEARCHABLE = ("strategy", "adapter", "training")


def baseline_rules(check: Check) -> Iterator[Fault]:
    """Check that each baseline can be run, and that labels are unique."""
    study = check.study
    strategies = [*plugins.all_names("strategies"), *FROM_SEARCH]
    labels = [plugins.plugin_name(study.strategy)]
    for i, baseline in enumerate(study.protocol.baselines):
        path = f"protocol.baselines[{i}]"
        if isinstance(baseline, str):
            yield from named_baseline_rules(check, path, baseline, strategies)
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
        elif name in FROM_SEARCH[1:] and not any(p.per_task for p in search.space.values()):
            yield Fault(path, "needs a setting that is searched per task (`per_task: …`)", repr(name))
    elif plugins.is_outside("strategies", name):
        yield from (replace(fault, path=path) for fault in plugins.lookup_faults("strategies", name))
    elif name not in strategies:
        rule = f"must be one of {', '.join(strategies)}, or LABEL: {{path of a setting: value}}"
        yield Fault(path, rule, repr(name), nearest_name(name, strategies))


def search_rules(check: Check) -> Iterator[Fault]:
    """Check the objective, the constraints, the method and the space of the search."""
    study, search = check.study, check.study.search
    if search is None:
        return
    for name in search.objective:
        yield from metric_rules(study, "search.objective", name)
    for i, text in enumerate(search.constraints):
        yield from constraint_rules(study, f"search.constraints[{i}]", text)
    yield from method_rules(study, search)
    if not search.space:
        yield Fault("search.space", "needs at least 1 setting, has 0")
    for path, parameter in search.space.items():
        if check.intact(path.partition(".")[0]):
            yield from parameter_rules(study, search, path, parameter)


def method_rules(study: Study, search: Search) -> Iterator[Fault]:
    """Check that the method can search this space, and that its settings are used."""
    if search.method == "stagewise":
        if search.prune_level is not None:
            rule = "is for whole settings; `stagewise` drops settings between tasks anyway"
            yield Fault("search.prune_level", rule, str(search.prune_level))
        if not any(parameter.per_task for parameter in search.space.values()):
            rule = "`stagewise` needs a setting that is searched per task"
            for setting in [*study.strategy.per_task][:1]:
                rule += f": `strategy.{setting}: {{per_task: [0, 0.3, 1]}}`"
            yield Fault("search.space", rule)
        if study.strategy.simultaneous:
            rule = "`stagewise` needs a strategy that trains one task after another"
            yield Fault("search.method", rule)
    if search.method == "grid":
        if search.warm_start_from:
            yield Fault("search.warm_start_from", "is not used by `grid`, which tries every combination")
        if (count := count_combinations(study, search)) > LARGEST_GRID:
            rule = f"has {count:,} combinations, and `grid` tries at most {LARGEST_GRID:,}: "
            yield Fault("search.space", f"{rule}another method draws some of them")


def count_combinations(study: Study, search: Search) -> int:
    """Count the combinations of all listed values."""
    tasks = len(study.task_names)
    return prod(len(p.values or ()) ** (tasks if p.per_task else 1) for p in search.space.values())


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


def parameter_rules(study: Study, search: Search, path: str, parameter: SearchParameter) -> Iterator[Fault]:
    """Check the values of a searched setting, and that the setting takes each of them."""
    p, at = parameter, f"search.space.{path}"
    if (p.values is None) == (p.low is None and p.high is None):
        yield Fault(at, "needs either a list of values, or low and high")
        return
    if p.values is None and (p.low is None or p.high is None or p.low >= p.high):
        yield Fault(at, "needs low < high", f"low {p.low}, high {p.high}")
        return
    if p.log and (p.low is None or p.low <= 0):
        yield Fault(at, "log needs low > 0", f"low {p.low}")
        return
    if search.method == "grid" and p.values is None:
        yield Fault(at, "the method `grid` needs a list of values")
    values = [value for value in p.values or (p.low, p.high) if value is not None]
    yield from setting_rules(study, at, path, f"{path}.{study.task_names[0]}" if p.per_task else path, values)


def setting_rules(
    study: Study, at: str, path: str, full_path: str, values: Sequence[Value]
) -> Iterator[Fault]:
    """Check that a setting can take each of the values. full_path: `path`, or that of one task's value."""
    head = path.partition(".")[0]
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
