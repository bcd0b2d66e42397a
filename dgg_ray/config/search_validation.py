"""What has to hold of a search, and of the paths that name a setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from math import prod

import numpy as np

from dgg_ray.config.parsing import checked
from dgg_ray.config.sections import MOST, Constraint, Search, SearchParameter, Value
from dgg_ray.config.study import Study
from dgg_ray.core import blame, plugins
from dgg_ray.core.errors import Fault, nearest
from dgg_ray.core.interfaces import ScoreMatrix

SEARCHABLE = ("strategy", "adapter", "training")


def search_rules(study: Study, search: Search, broken: set[str]) -> list[Fault]:
    faults = []
    for name in search.objective:
        faults += metric_rules(study, "search.objective", name)
    for i, text in enumerate(search.constraints):
        faults += constraint_rules(study, f"search.constraints[{i}]", text)
    if search.prune_level is not None and search.method == "stagewise":
        rule = "bears on whole settings; `stagewise` drops settings between tasks by itself"
        faults.append(Fault("search.prune_level", rule, str(search.prune_level)))
    if search.warm_start_from and search.method == "grid":
        faults.append(
            Fault("search.warm_start_from", "has no bearing on `grid`, which tries every combination")
        )
    if search.method == "stagewise" and not any(parameter.per_task for parameter in search.space.values()):
        rule = (
            "`stagewise` needs a setting that is searched per task: `strategy.alpha: {per_task: [0, 0.3, 1]}`"
        )
        faults.append(Fault("search.space", rule))
    if search.method == "stagewise" and study.strategy.simultaneous:
        faults.append(
            Fault("search.method", "`stagewise` needs a strategy that learns one task after another")
        )
    if search.method == "grid" and (count := combinations(study, search)) > 10 * MOST:
        rule = (
            f"has {count:,} combinations, and `grid` tries at most {10 * MOST:,}: another method draws some"
        )
        faults.append(Fault("search.space", rule))
    if not search.space:
        faults.append(Fault("search.space", "needs at least 1 setting, has 0"))
    for path, parameter in search.space.items():
        if path.partition(".")[0] in broken:
            continue
        faults += parameter_rules(study, search, path, parameter)
    return faults


def combinations(study: Study, search: Search) -> int:
    """Of all values that are listed."""
    sizes = [
        len(parameter.values or ()) ** (len(study.names) if parameter.per_task else 1)
        for parameter in search.space.values()
    ]
    return prod(sizes)


def metric_rules(study: Study, at: str, name: str) -> Iterator[Fault]:
    if broken := plugins.absent("metrics", name):
        yield from (replace(fault, path=at) for fault in broken)
    elif rule := unfit(name, max(2, len(study.names)), study.strategy.simultaneous):
        yield Fault(at, rule, repr(name))


def constraint_rules(study: Study, at: str, text: str) -> Iterator[Fault]:
    constraint = Constraint.parse(text)
    if constraint is None:
        rule = "must be `METRIC >= STRATEGY - NUMBER points` or `METRIC >= NUMBER %`"
        yield Fault(at, rule, repr(text))
        return
    yield from metric_rules(study, at, constraint.metric)
    if constraint.baseline is None:
        return
    if broken := plugins.absent("strategies", constraint.baseline):
        yield from (replace(fault, path=at) for fault in broken)
    elif plugins.find("strategies", constraint.baseline).simultaneous:
        yield Fault(at, "must compare with a strategy that learns one task after another", repr(text))


def unfit(name: str, tasks: int, simultaneous: bool) -> str:
    """Why a metric cannot be an objective; empty where it can. Asked of the metric itself.

    The search examines the tasks seen, and maximises: a metric must have a value there, and must
    not fall when the final scores rise.
    """
    R = np.where(np.tri(tasks, dtype=bool), 0.5, np.nan)
    if simultaneous:
        R[:-1] = np.nan
    better = R.copy()
    better[-1] = 0.75
    sizes, base = np.ones(tasks), np.full(tasks, np.nan)
    metric = plugins.find("metrics", name)
    try:
        before, after = (float(metric(ScoreMatrix(scores, sizes, base))) for scores in (R, better))
        many = [np.stack(parts) for parts in ((R, better), (sizes, sizes), (base, base))]
        both = np.asarray(metric(ScoreMatrix(*many)), dtype=float)
    except Exception as problem:  # whatever a metric of the user's own says
        where = blame.place(problem)
        return f"raised {type(problem).__name__}: {problem}" + (f" ({where})" if where else "")
    if both.shape != (2,) or not np.allclose(both, (before, after), equal_nan=True):
        return (
            "must count its axes from the last: two runs in a stack must give the values that each has alone"
        )
    if np.isnan(before):
        return "cannot be had from exams on the tasks that were learned"
    return "falls as final scores rise, and objectives are maximised" if after < before else ""


def parameter_rules(study: Study, search: Search, path: str, parameter: SearchParameter) -> Iterator[Fault]:
    at = f"search.space.{path}"
    if (parameter.values is None) == (parameter.low is None and parameter.high is None):
        yield Fault(at, "needs either a list of values, or low and high")
        return
    if parameter.values is None and (
        parameter.low is None or parameter.high is None or parameter.low >= parameter.high
    ):
        yield Fault(at, "needs low < high", f"low {parameter.low}, high {parameter.high}")
        return
    if parameter.log and (parameter.low is None or parameter.low <= 0):
        yield Fault(at, "log needs low > 0", f"low {parameter.low}")
        return
    if search.method == "grid" and parameter.values is None:
        yield Fault(at, "the method `grid` needs a list of values")
    values = [value for value in parameter.values or (parameter.low, parameter.high) if value is not None]
    yield from path_rules(study, at, path, f"{path}.{study.names[0]}" if parameter.per_task else path, values)


def path_rules(study: Study, at: str, path: str, dotted: str, values: Sequence[Value]) -> Iterator[Fault]:
    """Whether a setting can be changed to each of the values; `dotted` is the path of one task's value."""
    head = path.partition(".")[0]
    if head not in SEARCHABLE:
        rule = f"no such path; a path starts with one of {', '.join(SEARCHABLE)}"
        yield Fault(at, rule, near=nearest(head, SEARCHABLE))
        return
    for value in values:
        try:
            changed = study.at({dotted: value})
        except KeyError as error:
            section = getattr(study, head)
            legal = [f"{head}.{f.name}" for f in fields(section)] + [
                f"{path.rpartition('.')[0]}.{n}" for n in study.names
            ]
            yield Fault(at, f"no such path: {error.args[0]!r} is not there", near=nearest(path, legal))
            return
        section = getattr(changed, head)
        inner: list[Fault] = []
        content = {f.name: getattr(section, f.name) for f in fields(section)}
        checked(type(section), content, head, inner)
        for fault in inner:
            yield replace(fault, path=at, found=f"{value!r}", rule=f"{fault.rule} ({fault.path})")
