"""What has to hold between the sections of a study, and of its data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec

import numpy as np

from dgg_ray import plugins
from dgg_ray.border import checked, show
from dgg_ray.contracts import SPLITS, ScoreMatrix, Task
from dgg_ray.errors import Fault, nearest
from dgg_ray.study import Budget, Knob, Search, Study, Value, Workers

SEARCHABLE = ("strategy", "adapter", "training")


def rules(study: Study, broken: set[str]) -> list[Fault]:
    """What no single section can know; nothing is said of what rests on a broken section."""
    faults = []
    if "name" not in broken and not re.fullmatch(r"\w[\w. -]*", study.name):
        rule = "must be letters, digits, spaces, dots, _ and -: it names a folder"
        faults.append(Fault("name", rule, repr(study.name)))
    for i, order in enumerate(study.orders.given):
        if "readers" not in broken and sorted(order) != sorted(study.names):
            at = f"orders[{i}]" if isinstance(study.raw.get("orders"), list) else f"orders.given[{i}]"
            rule = f"must name each of {', '.join(study.names)} once"
            wrong = next((name for name in order if name not in study.names), "")
            faults.append(Fault(at, rule, show(list(order)), nearest(wrong, study.names)))
    given = study.orders.given
    if len(set(given)) != len(given):
        faults.append(Fault("orders", "must be different orders", f"{len(given) - len(set(given))} twice"))
    if study.orders.design != "given" and given:
        faults.append(Fault("orders.given", "bears on the design `given` alone", f"{len(given)} orders"))
    if study.raw.get("orders") == []:
        faults.append(Fault("orders", "needs at least 1 order, has 0"))
    final = study.protocol.final_seeds
    if final is not None and (not final or len(set(final)) != len(final)):
        faults.append(
            Fault("protocol.final_seeds", "must be different numbers, at least one", show(list(final)))
        )
    if study.orders.design == "given" and study.orders.count != 1:
        faults.append(Fault("orders.count", "bears on the design `random` alone", str(study.orders.count)))
    if len(set(study.seeds)) != len(study.seeds) or not study.seeds:
        faults.append(Fault("seeds", "must be different numbers, at least one", show(list(study.seeds))))
    alpha = getattr(study.strategy, "alpha", None)
    for name in alpha if isinstance(alpha, Mapping) else ():
        if name not in study.names:
            faults.append(Fault(f"strategy.alpha.{name}", "no such task", near=nearest(name, study.names)))
    faults += rival_rules(study, broken)
    if not broken & {"model", "adapter"}:
        faults += target_rules(study)
    if not broken & {"model", "training"}:
        faults += projector_rules(study)
    if getattr(study.model, "four_bit", False) and not study.workers.gpus:
        faults.append(Fault("model.four_bit", "needs a GPU: set workers.gpus", "true"))
    if study.budget and "workers" not in broken:
        faults += budget_rules(study.budget, study.workers)
    if study.workers.zero:
        faults += zero_rules(study)
    elif study.workers.offload:
        faults.append(Fault("workers.offload", "needs one of the engines zero1, zero2, zero3", "true"))
    return faults + (search_rules(study, study.search, broken) if study.search else [])


PROJECTOR = "training.projector_learning_rate"


def changed(study: Study, path: str) -> list[Study]:
    """The study as it is, and at every value that a search or a rival gives to `path`."""
    knob = study.search.space.get(path) if study.search else None
    values = [v for v in (knob.values or (knob.low,) if knob else ()) if v is not None]
    values += [
        at[path] for r in study.protocol.rivals if not isinstance(r, str) for at in r.values() if path in at
    ]
    return [study, *(study.at({path: value}) for value in values)]


def projector_rules(study: Study) -> Iterator[Fault]:
    rates = [at.training.projector_learning_rate for at in changed(study, PROJECTOR)]
    if not any(rates):
        return
    if getattr(study.model, "four_bit", False):
        yield Fault(PROJECTOR, "cannot be had with model.four_bit: weights of 4 bits are not trained")
    if study.training.precision == "fp32" and getattr(study.model, "dtype", "float32") != "float32":
        rule = "needs training.precision bf16, or model.dtype float32: the projector is trained in fp32"
        yield Fault(PROJECTOR, rule, f"{study.training.precision} on {getattr(study.model, 'dtype', '')}")
    if study.workers.zero:
        rule = f"a second rate cannot be had with {study.workers.engine}, whose norms need one group"
        yield Fault(PROJECTOR, f"{rule}: use engine auto", show(next(filter(None, rates))))


def target_rules(study: Study) -> Iterator[Fault]:
    """Layers that are named are looked for in the model, before a GPU is asked for."""
    look = getattr(study.model, "skeleton", None)
    if study.adapter.targets == "all" or look is None or study.model.faults():
        return
    if (model := look()) is None:
        return
    from dgg_ray.anatomy import linear_names  # torch, which a study with all layers does not wait for

    legal = linear_names(model)
    for name in study.adapter.targets:
        if name not in legal:
            rule = f"must name linear layers of the language model: {', '.join(legal)}"
            yield Fault("adapter.targets", rule, repr(name), nearest(name, legal))


def rival_rules(study: Study, broken: set[str]) -> Iterator[Fault]:
    legal, labels = plugins.names("strategies"), [plugins.name_of(study.strategy)]
    for i, rival in enumerate(study.protocol.rivals):
        at = f"protocol.rivals[{i}]"
        if isinstance(rival, str):
            if rival not in legal:
                rule = f"must be one of {', '.join(legal)}, or LABEL: {{path of a setting: value}}"
                yield Fault(at, rule, repr(rival), nearest(rival, legal))
            continue
        for label, setting in rival.items():
            if label in labels or label in legal:
                yield Fault(at, "needs a label of its own", repr(label))
            labels.append(label)
            for path, value in setting.items():
                if path.partition(".")[0] not in broken:
                    yield from path_rules(study, f"{at}.{label}.{path}", path, path, [value])


def budget_rules(budget: Budget, workers: Workers) -> Iterator[Fault]:
    """A limit in a unit that these workers do not have would never bind."""
    if budget == Budget():
        names = ", ".join(f.name for f in fields(Budget))
        yield Fault("budget", f"needs at least one of {names}")
    if budget.gpu_hours and not workers.gpus:
        rule = "needs workers.gpus, which is 0: set it, or use worker_hours"
        yield Fault("budget.gpu_hours", rule, f"{budget.gpu_hours:g}")
    if budget.money and not workers.price_per_hour:
        yield Fault("budget.money", "needs workers.price_per_hour, which is not given", f"{budget.money:g}")


def zero_rules(study: Study) -> Iterator[Fault]:
    """What DeepSpeed's engines cannot do."""
    engine = study.workers.engine
    if find_spec("deepspeed") is None:
        rule = "needs DeepSpeed, which is not installed: pip install 'dgg_ray[deepspeed]'"
        yield Fault("workers.engine", rule, repr(engine))
    if study.workers.zero == 3 and getattr(study.model, "four_bit", False):
        rule = "weights of 4 bits cannot be cut into pieces by zero3: use zero2 or auto"
        yield Fault("model.four_bit", rule, "true")


def search_rules(study: Study, search: Search, broken: set[str]) -> list[Fault]:
    faults = []
    metrics = plugins.names("metrics")
    for name in search.objective:
        if name not in metrics:
            rule = f"must be one of {', '.join(metrics)}"
            faults.append(Fault("search.objective", rule, repr(name), nearest(name, metrics)))
        elif rule := unfit(name, len(study.names), study.strategy.simultaneous):
            faults.append(Fault("search.objective", rule, repr(name)))
    if not search.space:
        faults.append(Fault("search.space", "needs at least 1 setting, has 0"))
    for path, knob in search.space.items():
        if path.partition(".")[0] in broken:
            continue
        faults += knob_rules(study, search, path, knob)
    return faults


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
    before, after = metric(ScoreMatrix(R, sizes, base)), metric(ScoreMatrix(better, sizes, base))
    if np.isnan(before):
        return "cannot be had from exams on the tasks that were learned"
    return "falls as final scores rise, and objectives are maximised" if after < before else ""


def knob_rules(study: Study, search: Search, path: str, knob: Knob) -> Iterator[Fault]:
    at = f"search.space.{path}"
    if (knob.values is None) == (knob.low is None and knob.high is None):
        yield Fault(at, "needs either a list of values, or low and high")
        return
    if knob.values is None and (knob.low is None or knob.high is None or knob.low >= knob.high):
        yield Fault(at, "needs low < high", f"low {knob.low}, high {knob.high}")
        return
    if knob.log and (knob.low is None or knob.low <= 0):
        yield Fault(at, "log needs low > 0", f"low {knob.low}")
        return
    if search.sampler == "grid" and knob.values is None:
        yield Fault(at, "the grid sampler needs a list of values")
    values = [value for value in knob.values or (knob.low, knob.high) if value is not None]
    yield from path_rules(study, at, path, f"{path}.{study.names[0]}" if knob.per_task else path, values)


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


def task_rules(task: Task) -> Iterator[Fault]:
    for split in SPLITS:
        if not task.examples.get(split):
            yield Fault(split, "must hold at least 1 example, holds 0")
    legal = plugins.names("scorers")
    if task.scorer not in legal:
        rule = f"must be one of {', '.join(legal)}"
        yield Fault("scorer", rule, repr(task.scorer), nearest(task.scorer, legal))
        return
    ready = getattr(plugins.module("scorers", task.scorer), "ready", None)
    if ready and (why := ready()):
        yield Fault("scorer", why, repr(task.scorer))
