"""Designs: which orders of the tasks a study looks at.

given     the orders as listed
all       every permutation
random    `count` different permutations, drawn without replacement from the seed
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import factorial

from dgg_ray import draws

Order = tuple[str, ...]


def design(
    name: str, tasks: Sequence[str], count: int = 1, seed: int = 0, given: Sequence[Order] = ()
) -> list[Order]:
    """The orders of a design, the same on every call; `count` and `seed` bear on `random` alone.

    Growing `count` keeps the orders that were there, so a study can be extended.
    """
    if name == "given":
        return list(given) or [tuple(tasks)]
    if name == "all":
        return list(permutations(tasks))
    found: dict[Order, None] = {}
    for draw in range(100 * count):
        if len(found) == min(count, factorial(len(tasks))):
            break
        order = draws.generator(seed, "", "order", draw).permutation(len(tasks))
        found[tuple(str(tasks[i]) for i in order)] = None
    return list(found)


def others(tasks: Sequence[str], used: Sequence[Order], count: int, seed: int) -> list[Order]:
    """`count` random orders that are not among `used`; where there are fewer, they come round again."""
    left = factorial(len(tasks)) - len(set(used))
    fresh: list[Order] = []
    for draw in range(10_000):
        if len(fresh) == min(count, left):
            break
        order = draws.generator(seed, "", "held out", draw).permutation(len(tasks))
        named = tuple(str(tasks[i]) for i in order)
        if named not in used and named not in fresh:
            fresh.append(named)
    return [fresh[i % len(fresh)] for i in range(count)] if fresh else []
