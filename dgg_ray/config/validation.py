"""Rules that hold between the sections of a study, and between the study and its data.

Each rule looks at one subject and yields a fault for each breach. RULES lists them with the sections that
each one rests on: of a section that is broken itself, nothing more is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import NamedTuple

from dgg_ray.config.check import Check, describe_problem
from dgg_ray.config.order_rules import held_out_list_rules, order_rules, own_seed_rules, seed_rules
from dgg_ray.config.parsing import show_value
from dgg_ray.config.search_rules import baseline_rules, search_rules
from dgg_ray.config.search_space import searched_strategies
from dgg_ray.config.sections import FROM_SEARCH, Budget, TunedBaseline, Value
from dgg_ray.config.study import STUDY_NAME, Study
from dgg_ray.core import plugins
from dgg_ray.core.errors import Fault, nearest_name
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import SPLITS, AdapterLayout, Task
from dgg_ray.core.orders import count_unused_orders, format_count
from dgg_ray.core.stage import TaskData
from dgg_ray.core.strategy import Strategy, effect_of, task_mappings
from dgg_ray.storage.fetching import url_of

PROJECTOR = "training.projector_learning_rate"
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
INSTALLS = {"tensorboard": "tensorboardX", "mlflow": "mlflow-skinny", "wandb": "wandb"}


class Rule(NamedTuple):
    """A rule, and the sections that it rests on."""

    faults: Callable[[Check], Iterator[Fault]]
    sections: tuple[str, ...] = ()


def validate_study(study: Study, broken: set[str], fetch: bool = True) -> list[Fault]:
    """Find every breach of RULES. broken, fetch: see `Check`."""
    check = Check(study, frozenset(broken), fetch)
    return [fault for rule in RULES if check.intact(*rule.sections) for fault in rule.faults(check)]


def name_rules(check: Check) -> Iterator[Fault]:
    if not STUDY_NAME.fullmatch(check.study.name):
        rule = "must be letters, digits, spaces, dots, _ and -, because it names a folder"
        yield Fault("name", rule, repr(check.study.name))


# -- strategy, model and training ------------------------------------------------------------------


def task_mapping_rules(check: Check) -> Iterator[Fault]:
    """Check that settings with a value for each task name tasks of the study."""
    names = check.study.task_names
    for setting, values in task_mappings(check.study.strategy).items():
        for name in values:
            at = f"strategy.{setting}.{name}"
            if name in check.study.evaluate_only:
                yield Fault(at, "is only evaluated (`evaluate_only: true`), so no setting can be its own")
            elif name not in names:
                yield Fault(at, "no such task", near=nearest_name(name, names))


def answer_style_rules(check: Check) -> Iterator[Fault]:
    """Check that training examples are rewritten only where a task is trained."""
    for i, (name, reader) in enumerate(check.study.readers.items()):
        if name in check.study.evaluate_only and getattr(reader, "answer_styles", None):
            rule = "must be left out: it rewrites training examples, and the task is only evaluated"
            yield Fault(f"tasks[{i}].answer_styles", rule)


def effect_rules(check: Check) -> Iterator[Fault]:
    """Check that a stage key can be made from the strategy."""
    strategy = check.study.strategy
    if any(layout_faults(strategy, "strategy")):  # need_rules names it
        return
    try:
        first, *rest = check.study.task_names
        digest([effect_of(strategy, first, rest, "own"), effect_of(strategy, first, (), "own")])
    except Exception as problem:  # a plug-in may raise anything
        rule = "must have settings, and an effect, that are JSON values"
        yield Fault("strategy", rule, describe_problem(problem))


def layout_faults(strategy: Strategy, path: str) -> Iterator[Fault]:
    """Check that a strategy's layout is one. path: where the study names the strategy."""
    rule = f"{type(strategy).__name__}.layout must return None or a layout, such as LoraSlots()"
    try:
        layout = strategy.layout()
    except Exception as problem:  # a plug-in may raise anything
        yield Fault(path, rule, describe_problem(problem))
        return
    if not isinstance(layout, AdapterLayout | None):
        yield Fault(path, rule, repr(layout))


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


def need_rules(check: Check) -> Iterator[Fault]:
    """Check that the engine, the rank and the protocol give every compared strategy what it needs."""
    study = check.study
    found = list(needs_of_strategy(study, "strategy.name"))
    if not any(baseline_rules(check)) and not any(search_rules(check)):  # broken settings cannot be looked at
        for path, compared in compared_studies(study):
            found += needs_of_strategy(compared, path)
            if check.fetch and study.workers.engine != "simulated":
                own = study.strategy.faults()  # named at the strategy already
                faults = [fault for fault in compared.strategy.faults() if fault not in own]
                found += [Fault(f"{path}.{name}", rule, at) for name, rule, at in faults]
    yield from dict.fromkeys(found)  # several may need a larger rank


def compared_studies(study: Study) -> Iterator[tuple[str, Study]]:
    """Yield (path, study) at every baseline and every searched strategy; the study's own is left out."""
    for i, baseline in enumerate(study.protocol.baselines):
        path = f"protocol.baselines[{i}]"
        if isinstance(baseline, TunedBaseline):
            yield path, study.with_strategy(baseline.name).at(baseline.settings)
        elif isinstance(baseline, Mapping):
            yield from ((f"{path}.{label}", study.at(setting)) for label, setting in baseline.items())
        elif baseline not in FROM_SEARCH:
            yield path, study.with_strategy(baseline)
    if study.search:
        yield "search.space", study.most_expensive
        for name in searched_strategies(study.search.space):
            yield "search.space.strategy.name", study.with_strategy(name)


def needs_of_strategy(study: Study, path: str) -> Iterator[Fault]:
    """Check what one strategy needs. path: where the study names it."""
    strategy, workers, adapter = study.strategy, study.workers, study.adapter
    name, needs = plugins.plugin_name(strategy), strategy.needs
    if workers.engine not in needs.engines:
        engines = ", ".join(engine for engine in needs.engines if engine != "simulated")
        yield Fault(path, f"{name} needs one of the engines {engines}", f"workers.engine {workers.engine}")
    if not study.protocol.old_data and reads_old_data(strategy, study.task_names):
        rule = f"{name} reads examples of earlier tasks, which protocol.old_data: false forbids"
        yield Fault(path, f"{rule}; set strategy.buffer to 0, or take a method without old data", repr(name))
    if faults := list(layout_faults(strategy, path)):
        yield from faults
        return
    layout, tasks = strategy.layout(), len(study.task_names)
    for at in studies_at_values(study, "adapter.rank"):
        rank = at.adapter.rank
        if layout and layout.rank_for(rank, tasks, adapter.budget) < 1:
            rule = f"is too small for {name} over {tasks} tasks with adapter.budget {adapter.budget}"
            yield Fault("adapter.rank", rule, str(rank))


def reads_old_data(strategy: Strategy, tasks: Sequence[str]) -> bool:
    """Return whether the strategy trains on examples of earlier tasks, or looks at them."""
    return strategy.needs.old_data or any(strategy.replayed_examples(dict.fromkeys(tasks, 1)).values())


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
    spaces = [*([study.search.space] if study.search else []), *(b.search for b in study.tuned_baselines)]
    for parameter in (space[path] for space in spaces if path in space):
        values += [v for v in parameter.values or (parameter.low,) if v is not None]
    values += [setting[path] for setting in study.fixed_settings if path in setting]
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


# -- the rules -------------------------------------------------------------------------------------


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
    Rule(need_rules, ("strategy", "readers", "workers", "adapter", "training", "protocol", "search")),
    Rule(target_rules, ("model", "adapter", "workers")),
    Rule(projector_rules, ("model", "training")),
    Rule(four_bit_rules, ("workers",)),
    Rule(budget_rules, ("workers",)),
    Rule(engine_rules),
    Rule(store_rules, ("output",)),
    Rule(tracker_rules),
    Rule(search_rules),
    Rule(answer_style_rules, ("readers",)),
)


# -- data ------------------------------------------------------------------------------------------


def task_rules(task: Task, evaluate_only: bool = False) -> Iterator[Fault]:
    """Check that a task has examples, and a scorer that can score them."""
    for split in SPLITS[1:] if evaluate_only else SPLITS:
        if not task.examples.get(split):
            less = "; a task with `evaluate_only: true` needs none" if split == "train" else ""
            yield Fault(split, f"must hold at least 1 example, holds 0{less}")
    if broken := plugins.lookup_faults("scorers", task.scorer):
        yield from (replace(fault, path="scorer") for fault in broken)
        return
    ready = getattr(plugins.plugin_module("scorers", task.scorer), "ready", None)
    if ready and (reason := ready()):
        yield Fault("scorer", reason, repr(task.scorer))


def split_rules(study: Study, tasks: Mapping[str, TaskData]) -> Iterator[Fault]:
    """Refuse to choose settings on the examples that they are compared on, unless the study says so."""
    if study.protocol.selection_split == "test" or not study.chooses:
        return
    chosen_on = {*study.task_names, *study.evaluated_outside}
    for name, data in tasks.items():
        if name in chosen_on and data.digests["validation"] == data.digests["test"]:
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
