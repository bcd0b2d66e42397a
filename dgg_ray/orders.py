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
