"""What has to hold between the sections of a study, and of its data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from math import factorial

from dgg_ray.config.parsing import show
from dgg_ray.config.search_validation import path_rules, search_rules
from dgg_ray.config.sections import FROM_SEARCH, MOST, SEEDS_APART, Budget, Orders, Output, Workers
from dgg_ray.config.study import Study
from dgg_ray.core import blame, plugins
from dgg_ray.core.errors import Fault, nearest
from dgg_ray.core.hashing import digest
from dgg_ray.core.interfaces import SPLITS, Task, effect_of
from dgg_ray.core.orders import DESIGNS, Ask, Order, existing, left, many, usual_prefix
from dgg_ray.core.stage import Data
from dgg_ray.core.wording import listing
from dgg_ray.storage.fetching import address

LARGEST_SEED = 2**53


def rules(study: Study, broken: set[str], fetch: bool = True) -> list[Fault]:
    """What no single section can know; nothing is said of what rests on a broken section.

    fetch: a model at a URL may be fetched, to look at its layers.
    """
    faults = []
    if "name" not in broken and not re.fullmatch(r"\w[\w. -]*", study.name):
        rule = "must be letters, digits, spaces, dots, _ and -: it names a folder"
        faults.append(Fault("name", rule, repr(study.name)))
    named = "readers" not in broken
    if "orders" not in broken:
        faults += order_rules(study, named)
    held = study.protocol.held_out
    if held == ():
        faults.append(Fault("protocol.held_out", "needs at least 1 order, has 0"))
    if not isinstance(held, int):
        faults += listed_rules(study, "protocol.held_out", held, named)
    faults += seed_rules(study)
    if study.own_seeds and not broken & {"orders", "readers", "seeds"} and not faults:
        faults += own_seed_rules(study)
    alpha = getattr(study.strategy, "alpha", None)
    for name in alpha if isinstance(alpha, Mapping) else ():
        if named and name not in study.names:
            faults.append(Fault(f"strategy.alpha.{name}", "no such task", near=nearest(name, study.names)))
    faults += baseline_rules(study, broken)
    if not broken & {"strategy", "readers"}:
        faults += effect_rules(study)
    if not broken & {"model", "adapter", "workers"} and study.workers.engine != "simulated":
        faults += target_rules(study) if fetch or not address(getattr(study.model, "path", "")) else []
    if not broken & {"model", "training"}:
        faults += projector_rules(study)
    if getattr(study.model, "four_bit", False) and "workers" not in broken and not study.workers.gpus:
        faults.append(Fault("model.four_bit", "needs a GPU: set workers.gpus", "true"))
    if study.budget and "workers" not in broken:
        faults += budget_rules(study.budget, study.workers)
    if study.workers.zero:
        faults += zero_rules(study)
    elif study.workers.offload:
        faults.append(Fault("workers.offload", "needs one of the engines zero1, zero2, zero3", "true"))
    if "output" not in broken and "://" in (study.output.store or ""):
        from dgg_ray.storage import reach  # a study in a folder needs none of it

        if rule := reach.fault(str(study.output.store)):
            shown = re.sub("://[^/]*@", "://…@", str(study.output.store))  # a password is not printed
            faults.append(Fault("output.store", rule, repr(shown)))
    if "output" not in broken and (study.output.store or "").startswith("~"):
        faults.append(
            Fault("output.store", "there is no such user on this machine", repr(study.output.store))
        )
    faults += tracker_rules(study.output)
    return faults + (search_rules(study, study.search, broken) if study.search else [])


def seed_rules(study: Study) -> Iterator[Fault]:
    """Check the seeds of the search's and the final blocks."""
    final = study.protocol.final_seeds
    if study.protocol.held_out and final is not None:
        yield Fault("protocol.final_seeds", "held-out blocks bring their own seeds", show(list(final)))
    for at, seeds in (("seeds", study.seeds), ("protocol.final_seeds", final)):
        if seeds is None:
            continue
        if not seeds or len(set(seeds)) != len(seeds):
            yield Fault(at, "must be different numbers, at least one", show(list(seeds)))
        if len(seeds) > MOST:
            yield Fault(at, f"must be at most {MOST:,}", f"{len(seeds):,}")
        for i, seed in enumerate(seeds):
            if abs(seed) > LARGEST_SEED:
                rule = "must lie between -2^53 and 2^53, so that every table and tracker holds it exactly"
                yield Fault(f"{at}[{i}]", rule, str(seed))


def order_rules(study: Study, named: bool) -> Iterator[Fault]:
    """Of the designs of orders; `named`: the tasks are known."""
    o = study.orders
    at = "orders" if isinstance(study.raw.get("orders"), list) else "orders.given"
    yield from listed_rules(study, at, o.given, named)
    if study.raw.get("orders") == []:
        yield Fault("orders", "needs at least 1 order, has 0")
    usual, unread = Orders(), False
    for field in fields(o):
        value, known = getattr(o, field.name), [n for n, d in DESIGNS.items() if field.name in d.takes]
        if field.name != "design" and value != getattr(usual, field.name) and o.design not in known:
            unread = True
            found = show(list(value) if field.name == "given" else value)
            legal = listing([f"`{name}`" for name in known])
            yield Fault(f"orders.{field.name}", f"bears on {legal} alone, not on {o.design!r}", found)
    if named and len(study.names) > 1 and not unread:
        yield from size_rules(o, len(study.names))


def own_seed_rules(study: Study) -> Iterator[Fault]:
    """Seeds of each order's own are numbered so that those of further orders fit between them."""
    if (count := count_orders(study.orders, len(study.names))) > SEEDS_APART:
        rule = f"`per_order` numbers the seeds of at most {SEEDS_APART:,} orders; list seeds for all of them"
        yield Fault("seeds", rule, f"{many(count)} orders")
    if (final := study.protocol.final_seeds) and max(map(abs, final)) > SEEDS_APART**2:
        rule = f"must be at most {SEEDS_APART**2:,} where each order has seeds of its own"
        yield Fault("protocol.final_seeds", rule, str(max(final, key=abs)))


def count_orders(o: Orders, tasks: int) -> int:
    """Count a design's orders without drawing them."""
    of, given = DESIGNS[o.design], [tuple(range(tasks))] * len(o.given)
    ask = Ask(tasks, given=given, prefix_length=o.prefix_length or usual_prefix(tasks), suffixes=o.suffixes)
    return min(o.count or (of.usual(ask) if of.usual else of.size(ask)), of.size(ask))


def listed_rules(study: Study, at: str, orders: Sequence[Order], named: bool) -> Iterator[Fault]:
    """Of orders that stand in the file."""
    for i, order in enumerate(orders):
        if named and sorted(order) != sorted(study.names):
            rule = f"must name each of {', '.join(study.names)} once"
            wrong = next((name for name in order if name not in study.names), "")
            yield Fault(f"{at}[{i}]", rule, show(list(order)), nearest(wrong, study.names))
    if twice := len(orders) - len(set(orders)):
        yield Fault(at, "must be different orders", f"{twice} twice")


def size_rules(o: Orders, tasks: int) -> Iterator[Fault]:
    """Whether the design has what is asked of it, for so many tasks."""
    known = existing(tasks)
    if o.design not in known:
        rule = f"there is no such design of {tasks} tasks; there are {', '.join(known)}"
        yield Fault("orders.design", rule, repr(o.design))
        return
    if o.prefix_length and o.prefix_length > tasks - 2:
        rule = f"must be at most {tasks - 2}: with {tasks} tasks no two endings are left after more"
        yield Fault("orders.prefix_length", rule, str(o.prefix_length))
        return
    ask = Ask(tasks, prefix_length=o.prefix_length or usual_prefix(tasks), suffixes=o.suffixes)
    if o.design == "shared_prefix" and o.suffixes > (most := factorial(tasks - ask.prefix_length)):
        rule = f"must be at most {most}: so many there are of {tasks} tasks after {ask.prefix_length}"
        yield Fault("orders.suffixes", rule, str(o.suffixes))
    elif "count" in DESIGNS[o.design].takes and (o.count or 1) > (most := DESIGNS[o.design].size(ask)):
        more = [f"{name} {many(size)}" for name, size in known.items() if size > most and name != o.design]
        rule = f"must be at most {most}: {o.design!r} has so many orders of {tasks} tasks"
        rule += f"; others have more: {', '.join(more)}" if more else ""
        yield Fault("orders.count", rule, str(o.count))
    elif (size := DESIGNS[o.design].size(ask)) > MOST and not DESIGNS[o.design].usual:
        if o.design == "shared_prefix" and not o.count:
            rule = f"with {tasks} tasks this makes {many(size)} orders, and a study has at most {MOST:,}"
            yield Fault("orders.suffixes", rule, str(o.suffixes))
        elif o.design == "all":
            rule = (
                f"all: {tasks} tasks have {many(size)} orders, and a study has at most {MOST:,}; give a count"
            )
            yield Fault("orders", f"{rule} of random ones: {{design: random, count: 24}}")


PROJECTOR = "training.projector_learning_rate"


def changed(study: Study, path: str) -> list[Study]:
    """The study as it is, and at every value that a search or a baseline gives to `path`."""
    parameter = study.search.space.get(path) if study.search else None
    values = [v for v in (parameter.values or (parameter.low,) if parameter else ()) if v is not None]
    values += [
        at[path]
        for r in study.protocol.baselines
        if not isinstance(r, str)
        for at in r.values()
        if path in at
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
    from dgg_ray.models._architecture import (
        linear_names,  # torch, which a study with all layers does not wait for
    )

    legal = linear_names(model)
    for name in study.adapter.targets:
        if name not in legal:
            rule = f"must name linear layers of the language model: {', '.join(legal)}"
            yield Fault("adapter.targets", rule, repr(name), nearest(name, legal))


def effect_rules(study: Study) -> Iterator[Fault]:
    """Whether a stage key can be made of the strategy."""
    try:
        first, *rest = study.names
        digest([effect_of(study.strategy, first, rest, "own"), effect_of(study.strategy, first, (), "own")])
    except Exception as problem:  # of a plug-in, or of a setting that JSON does not know
        where = f" ({place})" if (place := blame.place(problem)) else ""
        found = f"{type(problem).__name__}: {problem}{where}"
        yield Fault("strategy", "must have settings, and an effect, that are JSON values", found)


def baseline_rules(study: Study, broken: set[str]) -> Iterator[Fault]:
    legal, labels = [*plugins.names("strategies"), *FROM_SEARCH], [plugins.name_of(study.strategy)]
    per_task = study.search and any(parameter.per_task for parameter in study.search.space.values())
    for i, baseline in enumerate(study.protocol.baselines):
        at = f"protocol.baselines[{i}]"
        if isinstance(baseline, str):
            if baseline in FROM_SEARCH and "search" in broken:
                continue
            if baseline in FROM_SEARCH and not study.search:
                yield Fault(at, "needs a search", repr(baseline))
            elif baseline in FROM_SEARCH[1:] and not per_task:
                yield Fault(at, "needs a setting that is searched per task (`per_task: …`)", repr(baseline))
            elif plugins.is_outside(baseline):
                yield from (replace(fault, path=at) for fault in plugins.absent("strategies", baseline))
            elif baseline not in legal:
                rule = f"must be one of {', '.join(legal)}, or LABEL: {{path of a setting: value}}"
                yield Fault(at, rule, repr(baseline), nearest(baseline, legal))
            continue
        for label, setting in baseline.items():
            if label in labels or label in legal:
                yield Fault(at, "needs a label of its own", repr(label))
            labels.append(label)
            for path, value in setting.items():
                if not broken & {path.partition(".")[0], "readers"}:
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


PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
INSTALLS = {"tensorboard": "tensorboardX", "mlflow": "mlflow-skinny", "wandb": "wandb"}


def tracker_rules(output: Output) -> Iterator[Fault]:
    for i, name in enumerate(output.trackers):
        if find_spec(PACKAGES[name]) is None:
            rule = f"its package {PACKAGES[name]} is not installed: pip install {INSTALLS[name]}"
            yield Fault(f"output.trackers[{i}]", rule, repr(name))


def zero_rules(study: Study) -> Iterator[Fault]:
    """What DeepSpeed's engines cannot do."""
    engine = study.workers.engine
    if find_spec("deepspeed") is None:
        rule = "needs DeepSpeed, which is not installed: pip install 'dgg_ray[deepspeed]'"
        yield Fault("workers.engine", rule, repr(engine))
    if study.workers.zero == 3 and getattr(study.model, "four_bit", False):
        rule = "weights of 4 bits cannot be cut into pieces by zero3: use zero2 or auto"
        yield Fault("model.four_bit", rule, "true")


def task_rules(task: Task) -> Iterator[Fault]:
    for split in SPLITS:
        if not task.examples.get(split):
            yield Fault(split, "must hold at least 1 example, holds 0")
    if broken := plugins.absent("scorers", task.scorer):
        yield from (replace(fault, path="scorer") for fault in broken)
        return
    ready = getattr(plugins.module("scorers", task.scorer), "ready", None)
    if ready and (why := ready()):
        yield Fault("scorer", why, repr(task.scorer))


def split_rules(study: Study, tasks: Mapping[str, Data]) -> Iterator[Fault]:
    """Settings are not chosen on the examples that they are compared on, unless the study says so."""
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
    """Whether as many orders are left as the comparison wants for itself, or those that it names."""
    held, used = study.protocol.held_out, study.all_orders
    if isinstance(held, int):
        if held > (most := left(used)):
            rule = f"must be at most {many(most)}: so many orders took no part in the choice"
            yield Fault("protocol.held_out", rule, str(held))
        return
    for i, order in enumerate(held):
        if order in used:
            rule = "must be an order that took no part in the choice, and `orders` has it"
            yield Fault(f"protocol.held_out[{i}]", rule, show(list(order)))
