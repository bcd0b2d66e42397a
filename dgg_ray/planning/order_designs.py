"""What each design of orders would cost a study, what it can tell apart, and how small a difference it sees.

Effects on a task's final score are estimated from the model

    score = order + task + position + carry-over (the task right before) + noise

over all cells (order, task). An effect's efficiency is the precision with which the design knows its
contrasts beside all the others, as a share of what as many cells could give if nothing were confounded
(the harmonic mean of the information's eigenvalues; John & Williams 1995, ch. 2). 0: it cannot be
estimated. A Latin square has 1 for position; a Williams square has 1 - 2/(T(T-1)) for carry-over, the
cyclic one (T-2)/(T(T-1)).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite

import numpy as np

from dgg_ray.config import task_similarity
from dgg_ray.config.sections import Orders
from dgg_ray.config.study import Study
from dgg_ray.core.orders import DESIGNS, Order, existing, left, many
from dgg_ray.core.wording import plural
from dgg_ray.planning.spread import Spread, measured
from dgg_ray.stats import power
from dgg_ray.storage.stage_store import StageStore

LISTED = 1000  # orders; designs with more are left out, nobody learns them all
ASSUMED = 3.0  # points; it has no source, and is said to be assumed wherever it is used
UNKNOWN = "no two settings differ yet on two blocks that both have finished"


@dataclass(frozen=True)
class Row:
    """A design, for one setting over its orders and the seeds of the final comparison.

    own: whether it is the study's.
    asked, stages: of all its runs; after sharing. first: of these, first ones of a run, which settings
        share that differ only in what their strategy does later, such as α or the buffer.
    places: fewest and most times that a task stands in a position; before: right before another one.
    position, carry_over: efficiency of the effect, in [0, 1]; that of the task is always estimated.
    effective: independent blocks that its orders × seeds are worth (power.py).
    sees: smallest difference seen with 80 % power, in points; None where its clusters are too few for an
        interval.
    needs: (orders, seeds) that see the difference asked for: any seeds of a single order, else any number of
        the design's orders with the study's seeds; None where none was asked for, or nothing such sees it.
    """

    design: str
    own: bool
    orders: int
    seeds: int
    asked: int
    stages: int
    first: int
    places: tuple[int, int]
    before: tuple[int, int]
    position: float
    carry_over: float
    effective: float
    sees: float | None
    needs: tuple[int, int] | None

    @property
    def saves(self) -> float:
        """Stages asked for per stage learned."""
        return self.asked / self.stages


@dataclass(frozen=True)
class Held:
    """The held-out blocks of the comparison, an order and a seed each, none or more; sees: as of a row.

    most: as many as can be had; needs: that see the difference asked for, None where none was, or too many.
    """

    blocks: int
    most: int
    sees: float | None
    needs: int | None


@dataclass(frozen=True)
class Table:
    """see: the difference asked for, in points; None where none was.

    held: None where no blocks are held out and no difference was asked for.
    own_seeds: whether each order has seeds of its own.
    """

    rows: tuple[Row, ...]
    spread: Spread
    see: float | None = None
    held: Held | None = None
    own_seeds: bool = False

    def __str__(self) -> str:
        asked = "" if self.see is None else f"  to see {self.see:g} points"
        head = (
            f"  {'design':<15} orders  stages   saves  places  before  position  carry-over       sees{asked}"
        )
        seeds = self.rows[0].seeds
        each = " of its own for each order" if self.own_seeds else ""
        title = f"  designs, {plural(seeds, 'seed')}{each}; spread of a difference: {self.spread}"
        lines = [title, head]
        for row in self.rows:
            sees = "–" if row.sees is None else f"{row.sees:.1f} points"
            lines.append(
                f"  {row.design + ' *' * row.own:<15} {row.orders:>6}  {row.stages:>6}  {row.saves:>5.2f}×"
                f"  {'–'.join(map(str, row.places)):>6}  {'–'.join(map(str, row.before)):>6}"
                f"  {share(row.position):>8}  {share(row.carry_over):>10}  {sees:>9}"
                + ("" if self.see is None else f"  {needs(row)}")
            )
        if self.held:
            lines.append(held(self.held, self.see))
        return "\n".join([*lines, *LEGEND, *[UNTOLD] * (seeds > 1 and self.spread.own is None)])


LEGEND = (
    "  * this study's. stages: one setting's, learned once each; saves: asked for per stage learned.",
    "  places, before: times that a task stands in a position, right before another (fewest–most).",
    "  position, carry-over: how well the effect is told from the others, in % (a task's always is);",
    "  sees: smallest difference between two settings seen with 80 % power by the report's test, which is",
    "  over clusters of runs that share an order or a first stage: seeds of several orders add none, and",
    "  orders that share seeds are no more clusters than tasks; with `seeds: per_order` each order is one.",
)
UNTOLD = (
    "  how much of the spread is between orders is not known: a seed is taken to tell as much as an order."
)


def share(efficiency: float) -> str:
    return f"{efficiency:.0%}" if efficiency else "no"


def needs(row: Row) -> str:
    if row.needs is None:
        return "not by this design" + f" with {plural(row.seeds, 'seed')}" * (row.orders > 1)
    orders, seeds = row.needs
    return f"{plural(orders, 'order')} × {plural(seeds, 'seed')}"


def held(found: Held, see: float | None) -> str:
    sees = "nothing" if found.sees is None else f"{found.sees:.1f} points"
    said = f"  held out: {plural(found.blocks, 'block')}, an order and a seed each, of {many(found.most)}"
    said += f"; sees {sees}" * (found.blocks > 0)
    if see is None:
        return said
    if found.needs is None or found.needs > found.most:
        return f"{said}; to see {see:g} points: more than there are"
    return f"{said}; to see {see:g} points: protocol.held_out: {found.needs}"


def table(study: Study, store: StageStore, see: float | None = None, sd: float | None = None) -> Table:
    """The designs that there are for the study's tasks, at their usual numbers of orders; its own at its own.

    `random` is taken with as many orders as there are tasks. For `extreme` the examples are read.
    see, sd: a difference and a spread, in points; without `sd` it is what the store's finished runs have,
    or else assumed.
    """
    spread = Spread(sd, "given") if sd else measured(study, store) or Spread(ASSUMED, "assumed", UNKNOWN)
    rows, known = [], existing(len(study.names))
    if "extreme" in known and not study.likeness:
        profiles = [task_similarity.profile(reader.read(name)) for name, reader in study.readers.items()]
        study = replace(study, likeness=task_similarity.matrix(profiles))
    for name, size in known.items():
        own = name == study.orders.design
        if not own and (name == "given" or (name == "all" and size > LISTED)):
            continue
        count = min(size, len(study.names)) if name == "random" else None
        orders = study.orders if own else Orders(name, count)  # type: ignore[arg-type]
        rows.append(row(replace(study, orders=orders), own, spread, see))
    fresh = study.protocol.held_out or see is not None
    blocks = held_out(study, spread.sd, see) if fresh else None
    return Table(tuple(rows), spread, see, blocks, study.own_seeds)


def held_out(study: Study, sd: float, see: float | None) -> Held:
    blocks = len(study.final_blocks) if study.protocol.held_out else 0
    sees, enough = power.detectable(blocks, sd), None if see is None else power.needed(see, sd)
    return Held(blocks, left(study.all_orders), sees if isfinite(sees) else None, enough)


def needed(study: Study, seeds: int, spread: Spread, see: float, sees: float) -> tuple[int, int] | None:
    """(Orders, seeds), see `Row.needs`."""
    orders = study.all_orders
    if len(orders) == 1:
        enough = power.needed(see, spread.sd)
        return (1, enough) if enough else None
    if "count" not in DESIGNS[study.orders.design].takes or study.strategy.simultaneous:
        return (len(orders), seeds) if sees <= see else None
    every = replace(study, orders=replace(study.orders, count=LISTED)).all_orders
    enough = power.fewest(see, spread.sd, every, seeds, spread.own or 0.0, study.own_seeds)
    return (enough, seeds) if enough else None


def row(study: Study, own: bool, spread: Spread, see: float | None) -> Row:
    orders, seeds = study.all_orders, len(study.protocol.final_seeds or study.seeds)
    together, apart = study.strategy.simultaneous, study.own_seeds
    shared = len({order[: t + 1] for order in orders for t in range(len(order))})
    stages, first = sum(map(len, orders)) if apart else shared, len({order[0] for order in orders})
    if together:
        stages = len(orders) if apart else 1
    *_, (effective, freedom) = power.worths(orders, seeds, spread.own or 0.0, together, apart)
    sees = power.detectable(effective, spread.sd, freedom)
    enough = None if see is None else needed(study, seeds, spread, see, sees)
    places, before = counts(orders)
    position, carry_over = efficiencies(orders)
    return Row(
        design=study.orders.design,
        own=own,
        orders=len(orders),
        seeds=seeds,
        asked=seeds * (len(orders) if together else sum(map(len, orders))),
        stages=seeds * stages,
        first=seeds * (stages if together else len(orders) if apart else first),
        places=places,
        before=before,
        position=position,
        carry_over=carry_over,
        effective=effective,
        sees=sees if isfinite(sees) else None,
        needs=enough,
    )


# -- what a design can tell ------------------------------------------------------------------------


def counts(orders: Sequence[Order]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(Fewest, most) times that a task stands in a position, and that one stands right before another."""
    tasks = orders[0]
    places = Counter(cell for order in orders for cell in enumerate(order))
    before = Counter(pair for order in orders for pair in pairwise(order))
    placed = [places[t, task] for t in range(len(tasks)) for task in tasks]
    paired = [before[a, b] for a in tasks for b in tasks if a != b]
    return (min(placed), max(placed)), (min(paired), max(paired))


def efficiencies(orders: Sequence[Order]) -> tuple[float, float]:
    """(Of position, of carry-over), see the head."""
    tasks = {task: i for i, task in enumerate(orders[0])}
    rows = np.array([[tasks[task] for task in order] for order in orders])  # (N, T)
    count, size = rows.shape
    one = np.eye(size)
    task = one[rows]  # (N, T, T): cell, and one column for each task
    position = np.broadcast_to(one, task.shape)
    # Contrasts alone: what all carry-overs have in common is part of the first position's effect.
    before = np.concatenate([np.zeros((count, 1, size)), task[:, :-1] - 1 / size], axis=1)
    # Less its mean over each order: the orders' own effects are gone.
    task, position, before = (
        (x - x.mean(axis=1, keepdims=True)).reshape(-1, size) for x in (task, position, before)
    )
    return (
        efficiency(position, np.hstack([task, before]), count),
        efficiency(before, np.hstack([task, position]), count * (size - 1) / size),
    )


def efficiency(effect: np.ndarray, others: np.ndarray, most: float) -> float:
    """Of an effect's contrasts beside others; `most`: information on one where nothing is confounded."""
    rest = effect - others @ np.linalg.lstsq(others, effect, rcond=1e-9)[0]
    information = np.linalg.eigvalsh(rest.T @ rest)[
        1:
    ]  # ascending; the first, of the columns' sum, is no contrast
    return float(len(information) / (most / information).sum()) if information[0] > 1e-6 * most else 0.0
