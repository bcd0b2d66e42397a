"""Rules about orders, held-out orders and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from math import factorial

from dgg_ray.config.check import Check
from dgg_ray.config.parsing import show_value
from dgg_ray.config.sections import (
    MOST,
    SEEDS_APART,
    Orders,
)
from dgg_ray.core.errors import Fault, nearest_name
from dgg_ray.core.orders import (
    DESIGNS,
    DesignRequest,
    Order,
    available_designs,
    default_prefix_length,
    format_count,
)
from dgg_ray.core.phrases import join_names

LARGEST_SEED = 2**53


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
            if outside := [name for name in check.study.evaluate_only if name in order]:
                rule += f"; {join_names(outside)} {'is' if len(outside) == 1 else 'are'} never trained "
                rule += "(`evaluate_only: true`)"
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
