"""Order designs: which orders of the tasks a study runs.

    design         its orders, for T tasks                                                   how many
    given          those that the file lists; without a list, the file's own order           as listed
    all            every permutation                                                         T!
    random         different permutations, drawn from the seed                               up to T!
    cyclic         the file's order, started at each task in turn                            T
    latin          rows of Latin squares, drawn from the seed                                up to T!
    williams       each task directly before each other task equally often [1]               T; 2T for odd T
    shared_prefix  T beginnings of `prefix_length` tasks, each with several `suffixes`       T · suffixes
    extreme        a chain of most similar neighbours, one of least similar, their reverses  4

The first T orders of `cyclic`, `latin` and `williams`, and every further T of `latin`, hold each task equally
often in each position. So does the whole of any design but `given`, `random` and `extreme`. A smaller count
is legal, so that a study can start small and grow. With fewer rows of a square, no task takes one position
twice.

A square of `latin` is the cyclic one with its tasks and positions permuted at random. For more than three
tasks there are squares of other kinds, which are never drawn. The beginnings of `shared_prefix` are those of
a Williams square. The first suffix of each beginning is that row's own, and the suffixes differ from their
first task on. Runs that share a beginning are not independent (power.py). `extreme` adopts from EDGE [2] that
orders of extreme similarity span the range of results. Whether the similar or the dissimilar order is the
hard one is for the runs to show.

[1] E. J. Williams, "Experimental designs balanced for the estimation of residual effects of treatments",
    Australian Journal of Scientific Research A 2, 1949.
[2] Lai et al., "The Lie of the Average: How Class Incremental Learning Evaluation Deceives You?",
    arXiv:2509.22580. It orders classes by a vision-language model's features; here tasks are ordered by
    `task_similarity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counter
from itertools import islice, permutations
from math import factorial
from typing import TypedDict, Unpack

import numpy as np

from dgg_ray.core import rng

Order = tuple[str, ...]
Permutation = tuple[int, ...]  # an order, by the tasks' positions in the file


@dataclass(frozen=True)
class DesignRequest:
    """The inputs of a design.

    tasks: how many.
    given: the orders that the file lists.
    similarity: (T, T), how similar two tasks are.
    """

    tasks: int
    seed: int = 0
    given: Sequence[Permutation] = ()
    prefix_length: int = 1
    suffixes: int = 2
    similarity: Sequence[Sequence[float]] = ()


class DesignOptions(TypedDict, total=False):
    """The optional settings of `design`; each defaults as in `DesignRequest`.

    prefix_length: None is half of the tasks.
    """

    seed: int
    given: Sequence[Order]
    prefix_length: int | None
    suffixes: int
    similarity: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Design:
    """A family of orders.

    generate: yields its permutations, always the same in the same sequence; so a larger count keeps the
        first.
    size: how many permutations it has; 0 where it does not exist for so few tasks.
    default_count: how many are used where the study gives no count; None is all.
    settings: the settings of a study's `orders` that affect it.
    """

    generate: Callable[[DesignRequest], Iterator[Permutation]]
    size: Callable[[DesignRequest], int]
    default_count: Callable[[DesignRequest], int] | None = None
    settings: tuple[str, ...] = ("count",)


def design(
    name: str, tasks: Sequence[str], count: int | None = None, **options: Unpack[DesignOptions]
) -> list[Order]:
    """Return the orders of a design, the same on every call; at most as many as it has.

    A larger `count` keeps the orders of a smaller one, so a study can be extended. A design ignores the
    options that it does not use: `similarity` affects `extreme` alone.
    """
    request = DesignRequest(
        len(tasks),
        options.get("seed", 0),
        [tuple(map(tasks.index, order)) for order in options.get("given", ())],
        options.get("prefix_length") or default_prefix_length(len(tasks)),
        options.get("suffixes", 2),
        options.get("similarity", ()),
    )
    chosen = DESIGNS[name]
    size = chosen.size(request)
    count = count or (chosen.default_count(request) if chosen.default_count else size)
    return [tuple(tasks[i] for i in row) for row in islice(chosen.generate(request), min(count, size))]


def default_prefix_length(tasks: int) -> int:
    """Return half of the tasks, at least one."""
    return max(1, tasks // 2)


def shuffled(request: DesignRequest, purpose: str, draw: int = 0) -> Permutation:
    """Return a random permutation for this purpose and draw."""
    return tuple(rng.permutation(request.tasks, request.seed, "", purpose, draw))


def rotations(row: Permutation) -> Iterator[Permutation]:
    """Yield the row started at each of its positions in turn."""
    for start in range(len(row)):
        yield row[start:] + row[:start]


def latin_square(tasks: Permutation, columns: Permutation) -> Iterator[Permutation]:
    """Yield the rows of a Latin square: the cyclic one over `tasks`, its positions permuted by `columns`."""
    for row in rotations(tasks):
        yield tuple(row[column] for column in columns)


# -- the designs -----------------------------------------------------------------------------------


def given(request: DesignRequest) -> Iterator[Permutation]:
    yield from request.given or [tuple(range(request.tasks))]


def all_permutations(request: DesignRequest) -> Iterator[Permutation]:
    return permutations(range(request.tasks))


def random(request: DesignRequest) -> Iterator[Permutation]:
    drawn: set[Permutation] = set()
    for draw in counter():
        if len(drawn) == factorial(request.tasks):
            return
        if (row := shuffled(request, "order", draw)) not in drawn:
            drawn.add(row)
            yield row


def cyclic(request: DesignRequest) -> Iterator[Permutation]:
    return rotations(tuple(range(request.tasks)))


def latin(request: DesignRequest) -> Iterator[Permutation]:
    """Yield square after square, no order twice.

    Permuted positions divide all T! orders into (T-1)! squares.
    """
    columns = shuffled(request, "latin positions")
    drawn: set[Permutation] = set()
    for draw in counter():
        if len(drawn) == factorial(request.tasks):
            return
        rows = list(latin_square(shuffled(request, "latin", draw), columns))
        if rows[0] not in drawn:
            drawn.update(rows)
            yield from rows


def williams(request: DesignRequest) -> Iterator[Permutation]:
    rows = list(latin_square(shuffled(request, "williams"), zigzag(request.tasks)))
    yield from rows
    if request.tasks % 2:  # the zigzag has half of all steps twice; reversed, it has the others
        yield from (row[::-1] for row in rows)


def zigzag(tasks: int) -> Permutation:
    """Return 0, 1, T-1, 2, T-2, …: for even T, its steps modulo T are all different."""
    return tuple((i + 1) // 2 if i % 2 else (tasks - i // 2) % tasks for i in range(tasks))


def shared_prefix(request: DesignRequest) -> Iterator[Permutation]:
    """Yield beginning by beginning. All rests are permuted alike, so that the positions stay balanced."""
    for row in islice(williams(request), request.tasks):
        beginning, rest = row[: request.prefix_length], row[request.prefix_length :]
        for suffix in islice(suffixes_of(rest), request.suffixes):
            yield beginning + suffix


def suffixes_of(rest: Permutation) -> Iterator[Permutation]:
    """Yield every permutation of the rest, first those that begin with different tasks."""
    for later in permutations(rest[1:]):
        yield from rotations(rest[:1] + later)


def extreme(request: DesignRequest) -> Iterator[Permutation]:
    similarity = np.array(request.similarity)
    chains = [greedy_chain(similarity), greedy_chain(-similarity)]
    return iter(dict.fromkeys(row for chain in chains for row in (chain, chain[::-1])))


def greedy_chain(similarity: np.ndarray) -> Permutation:
    """Return the greedy path to the most similar unvisited task, from the start with the highest total."""
    paths: list[tuple[float, Permutation]] = []
    for start in range(len(similarity)):
        path, total = [start], 0.0
        while len(path) < len(similarity):
            last = similarity[path[-1]]
            unvisited = [task for task in range(len(similarity)) if task not in path]
            following = max(unvisited, key=last.__getitem__)
            total += float(last[following])
            path.append(following)
        paths.append((total, tuple(path)))
    return max(paths, key=lambda total_and_path: total_and_path[0])[1]  # the first of equals


def permutation_count(request: DesignRequest) -> int:
    return factorial(request.tasks)


SEEDED = ("count", "seed")
DESIGNS: dict[str, Design] = {
    "given": Design(given, lambda request: max(1, len(request.given)), settings=("given",)),
    "all": Design(all_permutations, permutation_count, settings=()),
    "random": Design(random, permutation_count, default_count=lambda request: 1, settings=SEEDED),
    "cyclic": Design(cyclic, lambda request: request.tasks),
    "latin": Design(latin, permutation_count, default_count=lambda request: request.tasks, settings=SEEDED),
    "williams": Design(williams, lambda request: request.tasks * (1 + request.tasks % 2), settings=SEEDED),
    "shared_prefix": Design(
        shared_prefix,
        lambda request: request.tasks * request.suffixes if request.tasks > 2 else 0,
        settings=(*SEEDED, "prefix_length", "suffixes"),
    ),
    "extreme": Design(extreme, lambda request: 4 if request.tasks > 2 else 0),
}


def available_designs(tasks: int) -> dict[str, int]:
    """Return the designs that exist for so many tasks, with their number of orders at default settings."""
    request = DesignRequest(tasks, prefix_length=default_prefix_length(tasks))
    sizes = {name: known.size(request) for name, known in DESIGNS.items()}
    return {name: size for name, size in sizes.items() if size}


def format_count(count: int) -> str:
    """Format a count that may have fifty digits."""
    return f"{count:,}" if count < 10**12 else f"about 10^{len(str(count)) - 1}"


def count_unused_orders(used: Sequence[Order]) -> int:
    """Return how many orders of the same tasks are not in `used`, which must have one at least."""
    return factorial(len(used[0])) - len(set(used))


def held_out_orders(tasks: Sequence[str], used: Sequence[Order], count: int, seed: int) -> list[Order]:
    """Return `count` random orders that are not in `used`, or all of them where there are fewer."""
    request, held_out, excluded = DesignRequest(len(tasks), seed), dict[Order, None](), set(used)
    wanted = min(count, count_unused_orders(used))
    for draw in counter():
        if len(held_out) >= wanted:
            break
        order = tuple(tasks[i] for i in shuffled(request, "held out", draw))
        if order not in excluded:
            held_out[order] = None
    return list(held_out)
