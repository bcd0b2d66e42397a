"""Designs: which orders of the tasks a study looks at.

    design         its orders, for T tasks                                                   how many
    given          those listed; the file's own order where none is                          as listed
    all            every permutation                                                         T!
    random         different permutations, drawn from the seed                               up to T!
    cyclic         the file's order, begun at each task in turn                              T
    latin          rows of Latin squares, drawn from the seed                                up to T!
    williams       each task right before each other one equally often [1]                   T; 2T for odd T
    shared_prefix  T beginnings of `prefix` tasks, each with several `endings`               T · endings
    extreme        a chain of most similar neighbours, one of least similar, their reverses  4

The first T orders of `cyclic`, `latin` and `williams`, every further T of `latin`, and the whole of any
design but `given`, `random` and `extreme` hold each task equally often in each position. Fewer are allowed,
so that a study can begin small and grow: with fewer rows of a square no task stands twice in one position.

A square of `latin` is the cyclic one, its tasks and its positions permuted at random: for more than three
tasks there are squares of other kinds, which are never drawn. The beginnings of `shared_prefix` are those
of a Williams square; the first ending of each is that row's own, and endings part right after the
beginning. Runs that share a beginning are not independent (power.py). `extreme` takes from EDGE [2] that
orders of extreme similarity span the range of results; whether the similar or the dissimilar one is the
hard one is left to the runs.

[1] E. J. Williams, "Experimental designs balanced for the estimation of residual effects of treatments",
    Australian Journal of Scientific Research A 2, 1949.
[2] Lai et al., "The Lie of the Average: How Class Incremental Learning Evaluation Deceives You?",
    arXiv:2509.22580. Theirs are sequences of classes by a vision-language model's features; ours are tasks
    by `task_similarity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counter
from itertools import islice, permutations
from math import factorial

import numpy as np

from dgg_ray.core import draws

Order = tuple[str, ...]
Row = tuple[int, ...]  # an order by the tasks' places in the file


@dataclass(frozen=True)
class Ask:
    """What a design is drawn from.

    likeness: (T, T), how alike two tasks are.
    """

    tasks: int
    seed: int = 0
    given: Sequence[Row] = ()
    prefix_length: int = 1
    suffixes: int = 2
    likeness: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Design:
    """rows: its orders, always the same and always in the same sequence; so more of them keep the first.

    size: how many it has; 0 where it does not exist for so few tasks.
    usual: how many are taken where no number is asked for; None is all of them.
    takes: which of the settings bear on it.
    """

    rows: Callable[[Ask], Iterator[Row]]
    size: Callable[[Ask], int]
    usual: Callable[[Ask], int] | None = None
    takes: tuple[str, ...] = ("count",)


def design(
    name: str,
    tasks: Sequence[str],
    count: int | None = None,
    seed: int = 0,
    given: Sequence[Order] = (),
    prefix_length: int | None = None,
    suffixes: int = 2,
    likeness: Sequence[Sequence[float]] = (),
) -> list[Order]:
    """The orders of a design, the same on every call; at most as many as it has.

    Growing `count` keeps the orders that were there, so a study can be extended. What a design does not
    need is not looked at: `likeness` bears on `extreme` alone.
    """
    rows = [tuple(map(tasks.index, order)) for order in given]
    ask = Ask(len(tasks), seed, rows, prefix_length or usual_prefix(len(tasks)), suffixes, likeness)
    found = DESIGNS[name]
    most = found.size(ask)
    wanted = count or (found.usual(ask) if found.usual else most)
    return [tuple(tasks[i] for i in row) for row in islice(found.rows(ask), min(wanted, most))]


def usual_prefix(tasks: int) -> int:
    """Half of the tasks, at least one."""
    return max(1, tasks // 2)


def shuffled(ask: Ask, purpose: str, draw: int = 0) -> Row:
    """A random permutation, of its own for each purpose and draw."""
    return tuple(draws.permutation(ask.tasks, ask.seed, "", purpose, draw))


def turns(row: Row) -> Iterator[Row]:
    """The row begun at each of its places in turn."""
    for start in range(len(row)):
        yield row[start:] + row[:start]


def square(tasks: Row, columns: Row) -> Iterator[Row]:
    """A Latin square: the cyclic one over `tasks`, its positions permuted by `columns`."""
    for row in turns(tasks):
        yield tuple(row[column] for column in columns)


# -- the designs -----------------------------------------------------------------------------------


def given(ask: Ask) -> Iterator[Row]:
    yield from ask.given or [tuple(range(ask.tasks))]


def everything(ask: Ask) -> Iterator[Row]:
    return permutations(range(ask.tasks))


def random(ask: Ask) -> Iterator[Row]:
    found: set[Row] = set()
    for draw in counter():
        if len(found) == factorial(ask.tasks):
            return
        if (row := shuffled(ask, "order", draw)) not in found:
            found.add(row)
            yield row


def cyclic(ask: Ask) -> Iterator[Row]:
    return turns(tuple(range(ask.tasks)))


def latin(ask: Ask) -> Iterator[Row]:
    """Square after square, no order twice: permuted positions cut all T! orders into (T-1)! squares."""
    columns = shuffled(ask, "latin positions")
    found: set[Row] = set()
    for draw in counter():
        if len(found) == factorial(ask.tasks):
            return
        rows = list(square(shuffled(ask, "latin", draw), columns))
        if rows[0] not in found:
            found.update(rows)
            yield from rows


def williams(ask: Ask) -> Iterator[Row]:
    rows = list(square(shuffled(ask, "williams"), zigzag(ask.tasks)))
    yield from rows
    if ask.tasks % 2:  # the zigzag has half of all steps twice; backwards it has the others
        yield from (row[::-1] for row in rows)


def zigzag(tasks: int) -> Row:
    """0, 1, T-1, 2, T-2, …: for even T its steps, modulo T, are all different."""
    return tuple((i + 1) // 2 if i % 2 else (tasks - i // 2) % tasks for i in range(tasks))


def shared_prefix(ask: Ask) -> Iterator[Row]:
    """Beginning by beginning. All rests are permuted alike, so that the positions stay balanced."""
    for row in islice(williams(ask), ask.tasks):
        for ending in islice(suffixes(row[ask.prefix_length :]), ask.suffixes):
            yield row[: ask.prefix_length] + ending


def suffixes(rest: Row) -> Iterator[Row]:
    """Every permutation, those that begin differently first."""
    for later in permutations(rest[1:]):
        yield from turns(rest[:1] + later)


def extreme(ask: Ask) -> Iterator[Row]:
    alike = np.array(ask.likeness)
    found = [chain(alike), chain(-alike)]
    return iter(dict.fromkeys(row for c in found for row in (c, c[::-1])))


def chain(near: np.ndarray) -> Row:
    """Greedy path to the nearest task not yet visited, from the start for which the whole is nearest."""
    paths: list[tuple[float, Row]] = []
    for start in range(len(near)):
        path, total = [start], 0.0
        while len(path) < len(near):
            left = [task for task in range(len(near)) if task not in path]
            after = max(left, key=lambda task: near[path[-1], task])
            total += float(near[path[-1], after])
            path.append(after)
        paths.append((total, tuple(path)))
    return max(paths, key=lambda found: found[0])[1]  # the first of equals


def permuted(ask: Ask) -> int:
    return factorial(ask.tasks)


SEEDED = ("count", "seed")
DESIGNS: dict[str, Design] = {
    "given": Design(given, lambda ask: max(1, len(ask.given)), takes=("given",)),
    "all": Design(everything, permuted, takes=()),
    "random": Design(random, permuted, usual=lambda ask: 1, takes=SEEDED),
    "cyclic": Design(cyclic, lambda ask: ask.tasks),
    "latin": Design(latin, permuted, usual=lambda ask: ask.tasks, takes=SEEDED),
    "williams": Design(williams, lambda ask: ask.tasks * (1 + ask.tasks % 2), takes=SEEDED),
    "shared_prefix": Design(
        shared_prefix,
        lambda ask: ask.tasks * ask.suffixes if ask.tasks > 2 else 0,
        takes=(*SEEDED, "prefix_length", "suffixes"),
    ),
    "extreme": Design(extreme, lambda ask: 4 if ask.tasks > 2 else 0),
}


def existing(tasks: int) -> dict[str, int]:
    """Designs that there are for so many tasks → how many orders each has, at its usual settings."""
    ask = Ask(tasks, prefix_length=usual_prefix(tasks))
    return {name: size for name, found in DESIGNS.items() if (size := found.size(ask))}


def many(count: int) -> str:
    """A number that may have fifty digits."""
    return f"{count:,}" if count < 10**12 else f"about 10^{len(str(count)) - 1}"


def left(used: Sequence[Order]) -> int:
    """How many orders of the same tasks are not among `used`, which has one at least."""
    return factorial(len(used[0])) - len(set(used))


def others(tasks: Sequence[str], used: Sequence[Order], count: int, seed: int) -> list[Order]:
    """`count` random orders that are not among `used`; all there are where these are fewer."""
    ask, fresh, known = Ask(len(tasks), seed), dict[Order, None](), set(used)
    wanted = min(count, left(used))
    for draw in counter():
        if len(fresh) >= wanted:
            break
        order = tuple(tasks[i] for i in shuffled(ask, "held out", draw))
        if order not in known:
            fresh[order] = None
    return list(fresh)
