"""Rules that hold between the sections of a study, and between the study and its data.

Each rule looks at one subject and yields a fault for each breach. RULES lists them with the sections that
each one rests on: of a section that is broken itself, nothing more is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from math import factorial, prod
from typing import NamedTuple

import numpy as np

from dgg_ray.config.parsing import check_type, show_value
from dgg_ray.config.sections import (
    FROM_SEARCH,
    MOST,
    SEEDS_APART,
    Budget,
    Constraint,
    Orders,
    Search,
    SearchParameter,
    Value,
)
from dgg_ray.config.study import Study
from dgg_ray.core import error_records, plugins
from dgg_ray.core.errors import Fault, nearest_name
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import SPLITS, Task, effect_of, task_mappings
from dgg_ray.core.orders import (
    DESIGNS,
    DesignRequest,
    Order,
    available_designs,
    count_unused_orders,
    default_prefix_length,
    format_count,
)
from dgg_ray.core.phrases import join_names
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.core.stage import TaskData
from dgg_ray.storage.fetching import url_of

LARGEST_SEED = 2**53
LARGEST_GRID = 10 * MOST
SEARCHABLE = ("strategy", "adapter", "training")
PROJECTOR = "training.projector_learning_rate"
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
INSTALLS = {"tensorboard": "tensorboardX", "mlflow": "mlflow-skinny", "wandb": "wandb"}


@dataclass(frozen=True)
class Check:
    """A study that is checked.

    broken: its sections with faults of their own, in whose place a default stands.
    fetch: whether a model at a URL may be fetched, to look at its layers.
    """

    study: Study
    broken: frozenset[str]
    fetch: bool = True

    def intact(self, *sections: str) -> bool:
        return self.broken.isdisjoint(sections)

    @property
    def tasks_known(self) -> bool:
        return self.intact("readers")


class Rule(NamedTuple):
    """A rule, and the sections that it rests on."""

    faults: Callable[[Check], Iterator[Fault]]
    sections: tuple[str, ...] = ()


def validate_study(study: Study, broken: set[str], fetch: bool = True) -> list[Fault]:
    """Find every breach of RULES. broken, fetch: see `Check`."""
    check = Check(study, frozenset(broken), fetch)
    return [fault for rule in RULES if check.intact(*rule.sections) for fault in rule.faults(check)]


# -- names, orders and seeds -----------------------------------------------------------------------


def name_rules(check: Check) -> Iterator[Fault]:
    if not re.fullmatch(r"\w[\w. -]*", check.study.name):
        rule = "must be letters, digits, spaces, dots, _ and -, because it names a folder"
        yield Fault("name", rule, repr(check.study.name))


def order_rules(check: Check) -> Iterator[Fault]:
    """Check the design of the orders, and the orders that the file lists."""
    study, o = check.study, check.study.orders
    path = "orders" if isinstance(study.file.content.get("orders"), list) else "orders.given"
    yield from listed_order_rules(check, path, o.given)
    if study.file.content.get("orders") == []:
        yield Fault("orders", "needs at least 1 order, has 0")
    unused = list(unused_setting_rules(o))
    yield from unused
    if check.tasks_known and len(study.task_names) > 1 and not unused:
        yield from design_size_rules(o, len(study.task_names))


def unused_setting_rules(o: Orders) -> Iterator[Fault]:
    """Find settings that were given and that this design does not use."""
    default = Orders()
    for field in fields(o):
        value = getattr(o, field.name)
        designs = [name for name, design in DESIGNS.items() if field.name in design.settings]
        if field.name == "design" or value == getattr(default, field.name) or o.design in designs:
            continue
        found = show_value(list(value) if field.name == "given" else value)
        legal = join_names([f"`{name}`" for name in designs])
        yield Fault(f"orders.{field.name}", f"is used by {legal} alone, not by {o.design!r}", found)


def held_out_list_rules(check: Check) -> Iterator[Fault]:
    """Check held-out orders that the file lists."""
    held_out = check.study.protocol.held_out
    if held_out == ():
        yield Fault("protocol.held_out", "needs at least 1 order, has 0")
    if not isinstance(held_out, int):
        yield from listed_order_rules(check, "protocol.held_out", held_out)


def listed_order_rules(check: Check, path: str, orders: Sequence[Order]) -> Iterator[Fault]:
    """Check orders that the file lists: each names every task once, and all differ."""
    names = check.study.task_names
    for i, order in enumerate(orders):
        if check.tasks_known and sorted(order) != sorted(names):
            unknown = next((name for name in order if name not in names), "")
            rule = f"must name each of {', '.join(names)} once"
            yield Fault(f"{path}[{i}]", rule, show_value(list(order)), nearest_name(unknown, names))
    if repeated := len(orders) - len(set(orders)):
        yield Fault(path, "must be different orders", f"{repeated} twice")


def design_size_rules(o: Orders, tasks: int) -> Iterator[Fault]:
    """Check that the design has as many orders of so many tasks as it is asked for."""
    known = available_designs(tasks)
    if o.design not in known:
        rule = f"there is no such design of {tasks} tasks; there are {', '.join(known)}"
        yield Fault("orders.design", rule, repr(o.design))
        return
    if o.prefix_length and o.prefix_length > tasks - 2:
        rule = f"must be at most {tasks - 2}: a longer prefix of {tasks} tasks leaves no two suffixes"
        yield Fault("orders.prefix_length", rule, str(o.prefix_length))
        return
    request = design_request(o, tasks)
    size = DESIGNS[o.design].size(request)
    most_suffixes = factorial(tasks - request.prefix_length)
    if o.design == "shared_prefix" and o.suffixes > most_suffixes:
        rule = f"must be at most {most_suffixes}, the orders of the tasks after a prefix of "
        yield Fault("orders.suffixes", f"{rule}{request.prefix_length}", str(o.suffixes))
    elif "count" in DESIGNS[o.design].settings and (o.count or 1) > size:
        larger = [f"{name} {format_count(n)}" for name, n in known.items() if n > size and name != o.design]
        rule = f"must be at most {size}: {o.design!r} has so many orders of {tasks} tasks"
        rule += f"; others have more: {', '.join(larger)}" if larger else ""
        yield Fault("orders.count", rule, str(o.count))
    elif size > MOST and not DESIGNS[o.design].default_count:
        yield from too_many_orders(o, tasks, size)


def too_many_orders(o: Orders, tasks: int, size: int) -> Iterator[Fault]:
    if o.design == "shared_prefix" and not o.count:
        rule = f"with {tasks} tasks this makes {format_count(size)} orders, and a study has at most {MOST:,}"
        yield Fault("orders.suffixes", rule, str(o.suffixes))
    elif o.design == "all":
        rule = f"all: {tasks} tasks have {format_count(size)} orders, and a study has at most {MOST:,}; "
        yield Fault("orders", f"{rule}give a count of random ones: {{design: random, count: 24}}")


def design_request(o: Orders, tasks: int) -> DesignRequest:
    given = [tuple(range(tasks))] * len(o.given)
    prefix = o.prefix_length or default_prefix_length(tasks)
    return DesignRequest(tasks, given=given, prefix_length=prefix, suffixes=o.suffixes)


def seed_rules(check: Check) -> Iterator[Fault]:
    """Check the seeds of the search's and of the final blocks."""
    final = check.study.protocol.final_seeds
    if check.study.protocol.held_out and final is not None:
        yield Fault("protocol.final_seeds", "held-out blocks have their own seeds", show_value(list(final)))
    for path, seeds in (("seeds", check.study.seeds), ("protocol.final_seeds", final)):
        if seeds is None:
            continue
        if not seeds or len(set(seeds)) != len(seeds):
            yield Fault(path, "must be different numbers, at least one", show_value(list(seeds)))
        if len(seeds) > MOST:
            yield Fault(path, f"must be at most {MOST:,}", f"{len(seeds):,}")
        for i, seed in enumerate(seeds):
            if abs(seed) > LARGEST_SEED:
                rule = "must lie between -2^53 and 2^53, so that every table and tracker holds it exactly"
                yield Fault(f"{path}[{i}]", rule, str(seed))


def own_seed_rules(check: Check) -> Iterator[Fault]:
    """Check that the seeds of each order fit between those of the next (see `OwnSeeds`)."""
    study = check.study
    if not study.own_seeds or any(order_rules(check)):
        return
    if (count := count_orders(study.orders, len(study.task_names))) > SEEDS_APART:
        rule = f"`per_order` numbers the seeds of at most {SEEDS_APART:,} orders; list seeds for all of them"
        yield Fault("seeds", rule, f"{format_count(count)} orders")
    if (final := study.protocol.final_seeds) and max(map(abs, final)) > SEEDS_APART**2:
        rule = f"must be at most {SEEDS_APART**2:,} where each order has its own seeds"
        yield Fault("protocol.final_seeds", rule, str(max(final, key=abs)))


def count_orders(o: Orders, tasks: int) -> int:
    """Count a design's orders without drawing them."""
    design, request = DESIGNS[o.design], design_request(o, tasks)
    default = design.default_count(request) if design.default_count else design.size(request)
    return min(o.count or default, design.size(request))


# -- strategy, model and training ------------------------------------------------------------------


def task_mapping_rules(check: Check) -> Iterator[Fault]:
    """Check that settings with a value for each task name tasks of the study."""
    names = check.study.task_names
    for setting, values in task_mappings(check.study.strategy).items():
        for name in values:
            if name not in names:
                near = nearest_name(name, names)
                yield Fault(f"strategy.{setting}.{name}", "no such task", near=near)


def effect_rules(check: Check) -> Iterator[Fault]:
    """Check that a stage key can be made from the strategy."""
    strategy = check.study.strategy
    try:
        first, *rest = check.study.task_names
        digest([effect_of(strategy, first, rest, "own"), effect_of(strategy, first, (), "own")])
    except Exception as problem:  # a plug-in may raise anything
        rule = "must have settings, and an effect, that are JSON values"
        yield Fault("strategy", rule, describe_problem(problem))


def replay_rules(check: Check) -> Iterator[Fault]:
    """Check that the strategy counts its replayed examples, on which plans and costs rely."""
    sizes = dict.fromkeys(check.study.task_names[1:], 1)
    rule = "replayed_examples must give a whole number for each earlier task with replayed examples"
    try:
        counts = dict(check.study.strategy.replayed_examples(sizes))
    except Exception as problem:  # a plug-in may raise anything
        yield Fault("strategy", rule, describe_problem(problem))
        return
    if counts.keys() - sizes.keys() or not all(isinstance(n, int) and n >= 0 for n in counts.values()):
        yield Fault("strategy", rule, show_value(counts))


def describe_problem(problem: Exception) -> str:
    """An exception of a plug-in with its place in the plug-in's file."""
    place = error_records.plugin_location(problem)
    return f"{type(problem).__name__}: {problem}" + (f" ({place})" if place else "")


def target_rules(check: Check) -> Iterator[Fault]:
    """Look for the layers that the adapter names in the model, before a GPU is asked for."""
    model, targets = check.study.model, check.study.adapter.targets
    make_skeleton = getattr(model, "skeleton", None)
    if targets == "all" or make_skeleton is None or check.study.workers.engine == "simulated":
        return
    if (url_of(getattr(model, "path", "")) and not check.fetch) or model.faults():
        return
    if (skeleton := make_skeleton()) is None:
        return
    from dgg_ray.models._architecture import linear_names  # late: a study with all layers needs no torch

    legal = linear_names(skeleton)
    for name in targets:
        if name not in legal:
            rule = f"must name linear layers of the language model: {', '.join(legal)}"
            yield Fault("adapter.targets", rule, repr(name), nearest_name(name, legal))


def four_bit_rules(check: Check) -> Iterator[Fault]:
    if getattr(check.study.model, "four_bit", False) and not check.study.workers.gpus:
        yield Fault("model.four_bit", "needs a GPU: set workers.gpus", "true")


def projector_rules(check: Check) -> Iterator[Fault]:
    """Check that the projector can be trained with this model and engine, if any setting trains it."""
    study = check.study
    rates = [at.training.projector_learning_rate for at in studies_at_values(study, PROJECTOR)]
    if not any(rates):
        return
    if getattr(study.model, "four_bit", False):
        yield Fault(PROJECTOR, "is not possible with model.four_bit: weights of 4 bits cannot be trained")
    if study.training.precision == "fp32" and getattr(study.model, "dtype", "float32") != "float32":
        rule = "needs training.precision bf16, or model.dtype float32: the projector is trained in fp32"
        yield Fault(PROJECTOR, rule, f"{study.training.precision} on {getattr(study.model, 'dtype', '')}")
    if study.workers.zero:
        rule = f"a second rate is not possible with {study.workers.engine}, which needs one group of weights"
        yield Fault(PROJECTOR, f"{rule}: use engine auto", show_value(next(filter(None, rates))))


def studies_at_values(study: Study, path: str) -> list[Study]:
    """The study as it is, and at every value that the search or a baseline gives to a setting."""
    values: list[Value] = []
    if parameter := study.search.space.get(path) if study.search else None:
        values += [v for v in parameter.values or (parameter.low,) if v is not None]
    for baseline in study.protocol.baselines:
        if not isinstance(baseline, str):
            values += [setting[path] for setting in baseline.values() if path in setting]
    return [study, *(study.at({path: value}) for value in values)]


# -- workers, budget and output --------------------------------------------------------------------


def engine_rules(check: Check) -> Iterator[Fault]:
    """Check what DeepSpeed's engines need, and what needs them."""
    workers = check.study.workers
    if not workers.zero:
        if workers.offload:
            yield Fault("workers.offload", "needs one of the engines zero1, zero2, zero3", "true")
        return
    if find_spec("deepspeed") is None:
        rule = "needs DeepSpeed, which is not installed: pip install 'dgg_ray[deepspeed]'"
        yield Fault("workers.engine", rule, repr(workers.engine))
    if workers.zero == 3 and getattr(check.study.model, "four_bit", False):
        yield Fault("model.four_bit", "zero3 cannot shard weights of 4 bits: use zero2 or auto", "true")


def budget_rules(check: Check) -> Iterator[Fault]:
    """Check that there is a limit, in a unit that these workers have: another would never bind."""
    budget, workers = check.study.budget, check.study.workers
    if budget is None:
        return
    if budget == Budget():
        yield Fault("budget", f"needs at least one of {', '.join(f.name for f in fields(Budget))}")
    if budget.gpu_hours and not workers.gpus:
        rule = "needs workers.gpus, which is 0: set it, or use worker_hours"
        yield Fault("budget.gpu_hours", rule, f"{budget.gpu_hours:g}")
    if budget.money and not workers.price_per_hour:
        yield Fault("budget.money", "needs workers.price_per_hour, which is not given", f"{budget.money:g}")


def store_rules(check: Check) -> Iterator[Fault]:
    """Check that the store's place can be reached."""
    store = check.study.output.store or ""
    if store.startswith("~"):
        yield Fault("output.store", "there is no such user on this machine", repr(store))
    if "://" in store:
        from dgg_ray.storage import fsspec_backend  # late: a folder does without fsspec

        if rule := fsspec_backend.url_fault(store):
            shown = re.sub("://[^/]*@", "://…@", store)  # a password is not printed
            yield Fault("output.store", rule, repr(shown))


def tracker_rules(check: Check) -> Iterator[Fault]:
    """Check that the package of each tracker is installed."""
    for i, name in enumerate(check.study.output.trackers):
        if find_spec(PACKAGES[name]) is None:
            rule = f"its package {PACKAGES[name]} is not installed: pip install {INSTALLS[name]}"
            yield Fault(f"output.trackers[{i}]", rule, repr(name))


# -- baselines -------------------------------------------------------------------------------------


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


# -- search ----------------------------------------------------------------------------------------


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
    elif rule := why_unfit(name, max(2, len(study.task_names)), study.strategy.simultaneous):
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


def why_unfit(name: str, tasks: int, simultaneous: bool) -> str:
    """Say why a metric cannot be an objective; empty if it can. The metric itself is asked.

    The search evaluates the tasks seen so far, and maximises. So a metric must have a value there, and must
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
        stack = [np.stack(parts) for parts in ((R, better), (sizes, sizes), (base, base))]
        both = np.asarray(metric(ScoreMatrix(*stack)), dtype=float)
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
            yield Fault(at, rule, near=nearest_name(path, legal))
            return
        section = getattr(changed, head)
        faults: list[Fault] = []
        check_type(type(section), {f.name: getattr(section, f.name) for f in fields(section)}, head, faults)
        for fault in faults:
            yield replace(fault, path=at, found=f"{value!r}", rule=f"{fault.rule} ({fault.path})")


RULES = (
    Rule(name_rules, ("name",)),
    Rule(order_rules, ("orders",)),
    Rule(held_out_list_rules),
    Rule(seed_rules),
    Rule(own_seed_rules, ("orders", "readers", "seeds")),
    Rule(task_mapping_rules, ("readers",)),
    Rule(baseline_rules),
    Rule(effect_rules, ("strategy", "readers")),
    Rule(replay_rules, ("strategy", "readers")),
    Rule(target_rules, ("model", "adapter", "workers")),
    Rule(projector_rules, ("model", "training")),
    Rule(four_bit_rules, ("workers",)),
    Rule(budget_rules, ("workers",)),
    Rule(engine_rules),
    Rule(store_rules, ("output",)),
    Rule(tracker_rules),
    Rule(search_rules),
)


# -- data ------------------------------------------------------------------------------------------


def task_rules(task: Task) -> Iterator[Fault]:
    """Check that a task has examples, and a scorer that can score them."""
    for split in SPLITS:
        if not task.examples.get(split):
            yield Fault(split, "must hold at least 1 example, holds 0")
    if broken := plugins.lookup_faults("scorers", task.scorer):
        yield from (replace(fault, path="scorer") for fault in broken)
        return
    ready = getattr(plugins.plugin_module("scorers", task.scorer), "ready", None)
    if ready and (reason := ready()):
        yield Fault("scorer", reason, repr(task.scorer))


def split_rules(study: Study, tasks: Mapping[str, TaskData]) -> Iterator[Fault]:
    """Refuse to choose settings on the examples that they are compared on, unless the study says so."""
    if study.protocol.selection_split == "test" or not study.search:
        return
    for name, data in tasks.items():
        if data.digests["validation"] == data.digests["test"]:
            rule = (
                f"{name}: validation and test hold the same examples, so settings would be chosen on test; "
                "give another validation split, or say protocol.selection_split: test"
            )
            yield Fault("tasks", rule)


def held_out_rules(study: Study) -> Iterator[Fault]:
    """Check that the comparison's held-out orders took no part in the choice, and that there are enough."""
    held_out, used = study.protocol.held_out, study.all_orders
    if isinstance(held_out, int):
        if held_out > (most := count_unused_orders(used)):
            rule = f"must be at most {format_count(most)}: so many orders took no part in the choice"
            yield Fault("protocol.held_out", rule, str(held_out))
        return
    for i, order in enumerate(held_out):
        if order in used:
            rule = "must be an order that took no part in the choice, but `orders` has it"
            yield Fault(f"protocol.held_out[{i}]", rule, show_value(list(order)))
