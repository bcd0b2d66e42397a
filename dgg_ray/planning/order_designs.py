"""A comparison of order designs: what each would cost, which effects it separates, and what it can detect.

Effects on a task's final score are estimated from the model

    score = order + task + position + carry-over (the task right before) + noise

over all (order, task) pairs. An effect's efficiency says how precisely a design estimates it beside all the
others, as a share of the precision that as many scores could give if nothing were confounded. It is the
harmonic mean of the information's eigenvalues (John & Williams 1995, ch. 2), and 0 where the effect cannot
be estimated. A Latin square has 1 for position; a Williams square has 1 - 2/(T(T-1)) for carry-over, the
cyclic one (T-2)/(T(T-1)).

The power of a comparison depends on how much the difference of two settings varies from block to block,
measured on finished runs (`measure_paired_sd`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import isfinite

import numpy as np

from dgg_ray.config import task_similarity
from dgg_ray.config.sections import Orders
from dgg_ray.config.study import Study, StudyRuns
from dgg_ray.core import plugins
from dgg_ray.core.orders import DESIGNS, Order, available_designs, count_unused_orders, format_count
from dgg_ray.core.phrases import plural
from dgg_ray.planning.text_table import format_table
from dgg_ray.search.comparison import Comparison
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.stats import power
from dgg_ray.storage.stage_store import StageStore

MAX_ORDERS = 1000  # designs with more are left out: nobody trains them all
ASSUMED_SD = 3.0  # points; it has no source, and the table says "assumed" wherever it is used
UNMEASURED = "no two settings differ yet on two blocks that both have finished"

Scores = Mapping[tuple[Order, int], float]  # (order, seed) → points


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DesignRow:
    """A design, for one setting over its orders and the seeds of the final comparison.

    own: whether it is the study's.
    requested, stages: stages of all its runs, before and after sharing.
    first_stages: of these, first stages of a run. Settings share them that differ only in what their strategy
        does later, such as α or the buffer.
    position_counts: fewest and most times that a task stands in a position.
    successor_counts: fewest and most times that a task stands right before another one.
    position_efficiency, carry_over_efficiency: in [0, 1]; the effect of the task can always be estimated.
    effective_blocks: independent blocks that its orders × seeds are worth (power.py).
    detectable: smallest difference detected with 80 % power, in points; None where its clusters are too few
        for an interval.
    needed: (orders, seeds) that detect the wanted difference: any seeds of a single order, else any number of
        the design's orders with the study's seeds. None where no difference is wanted, or none suffice.
    """

    design: str
    own: bool
    orders: int
    seeds: int
    requested: int
    stages: int
    first_stages: int
    position_counts: tuple[int, int]
    successor_counts: tuple[int, int]
    position_efficiency: float
    carry_over_efficiency: float
    effective_blocks: float
    detectable: float | None
    needed: tuple[int, int] | None

    @property
    def sharing(self) -> float:
        """Stages requested per stage trained."""
        return self.requested / self.stages

    def cells(self) -> list[str]:
        return [
            f"{self.design} *" if self.own else self.design,
            str(self.orders),
            str(self.stages),
            f"{self.sharing:.2f}×",
            "–".join(map(str, self.position_counts)),
            "–".join(map(str, self.successor_counts)),
            format_efficiency(self.position_efficiency),
            format_efficiency(self.carry_over_efficiency),
            "–" if self.detectable is None else f"{self.detectable:.1f} points",
        ]

    def format_needed(self) -> str:
        if self.needed is not None:
            orders, seeds = self.needed
            return f"{plural(orders, 'order')} × {plural(seeds, 'seed')}"
        seeds = f" with {plural(self.seeds, 'seed')}" if self.orders > 1 else ""
        return f"not by this design{seeds}"


@dataclass(frozen=True)
class HeldOutRow:
    """The held-out blocks of the comparison, an order and a seed each.

    available: as many as there are. detectable: as of a row. needed: how many detect the wanted difference,
    None where none is wanted, or too many would be needed.
    """

    blocks: int
    available: int
    detectable: float | None
    needed: int | None

    def format(self, difference: float | None) -> str:
        text = f"  held out: {plural(self.blocks, 'block')}, an order and a seed each, of "
        text += format_count(self.available)
        if self.blocks:
            text += (
                "; detect nothing" if self.detectable is None else f"; detect {self.detectable:.1f} points"
            )
        if difference is None:
            return text
        if self.needed is None or self.needed > self.available:
            return f"{text}; to detect {difference:g} points: more than there are"
        return f"{text}; to detect {difference:g} points: protocol.held_out: {self.needed}"


@dataclass(frozen=True)
class PairedSd:
    """Standard deviation of the paired difference of two settings on one block, in points of 100.

    source: `measured`, `given` or `assumed`. basis: where it comes from, in words. differences: how many it
    was measured on.
    order_share: share of the variance that is the order's own, whatever the seed; None where it is unknown.
    """

    sd: float
    source: str
    basis: str = ""
    differences: int = 0
    order_share: float | None = None

    def __str__(self) -> str:
        source = f"{self.source}: {self.basis}" if self.basis else self.source
        share = "" if self.order_share is None else f", {self.order_share:.0%} of its variance between orders"
        return f"{self.sd:.1f} points ({source}{share})"


@dataclass(frozen=True)
class DesignTable:
    """The designs that a study could use.

    difference: to be detected, in points; None where none is wanted.
    held_out: None where no blocks are held out and no difference is wanted.
    own_seeds: whether each order has seeds of its own.
    """

    rows: tuple[DesignRow, ...]
    paired_sd: PairedSd
    difference: float | None = None
    held_out: HeldOutRow | None = None
    own_seeds: bool = False

    def __str__(self) -> str:
        header, cells = list(COLUMNS), [row.cells() for row in self.rows]
        if self.difference is not None:
            header.append(f"to detect {self.difference:g} points")
            for row, texts in zip(self.rows, cells, strict=True):
                texts.append(row.format_needed())
        seeds = self.rows[0].seeds
        each = " of its own for each order" if self.own_seeds else ""
        lines = [
            f"  order designs, {plural(seeds, 'seed')}{each}; sd of a paired difference: {self.paired_sd}",
            *format_table([header, *cells], left=(0, len(COLUMNS))),
        ]
        if self.held_out:
            lines.append(self.held_out.format(self.difference))
        lines += LEGEND
        if seeds > 1 and self.paired_sd.order_share is None:
            lines.append(UNKNOWN_SHARE)
        return "\n".join(lines)


COLUMNS = (
    *("design", "orders", "stages", "sharing", "positions", "successors"),
    *("position", "carry-over", "detects"),
)
LEGEND = (
    "  * this study's design. stages: trained for one setting; sharing: stages requested per stage trained.",
    "  positions, successors: times that a task has a position, and is followed by another (fewest–most).",
    "  position, carry-over: efficiency at which the effect is estimated (a task's effect always can be).",
    "  detects: smallest difference between two settings that the report's test detects with 80 % power. The",
    "  test is over clusters of runs that share an order or a first stage. Seeds of several orders add none,",
    "  and orders that share seeds are no more clusters than tasks. With `seeds: per_order`, each is one.",
)
UNKNOWN_SHARE = (
    "  The share of the variance between orders is unknown: a seed is assumed to tell as much as an order."
)


def format_efficiency(efficiency: float) -> str:
    return f"{efficiency:.0%}" if efficiency else "no"


def compare_designs(
    study: Study, store: StageStore, difference: float | None = None, sd: float | None = None
) -> DesignTable:
    """Compare the designs for the study's tasks, at their default numbers of orders; the study's at its own.

    `random` is taken with as many orders as there are tasks. For `extreme` the examples are read.
    difference: to be detected, in points. sd: of a paired difference, in points; None takes that of the
    store's finished runs, or else ASSUMED_SD.
    """
    paired_sd = PairedSd(sd, "given") if sd else measure_paired_sd(study, store)
    paired_sd = paired_sd or PairedSd(ASSUMED_SD, "assumed", UNMEASURED)
    rows, available = [], available_designs(len(study.task_names))
    if "extreme" in available and not study.data.similarity:
        profiles = [task_similarity.profile_of(study.read_task(name)) for name in study.task_names]
        similarity = task_similarity.similarity_matrix(profiles)
        study = replace(study, data=replace(study.data, similarity=similarity))
    for name, size in available.items():
        own = name == study.orders.design
        if not own and (name == "given" or (name == "all" and size > MAX_ORDERS)):
            continue
        count = min(size, len(study.task_names)) if name == "random" else None
        orders = study.orders if own else Orders(name, count)  # type: ignore[arg-type]
        rows.append(design_row(replace(study, orders=orders), own, paired_sd, difference))
    held_out = None
    if study.protocol.held_out or difference is not None:
        held_out = held_out_row(study, paired_sd.sd, difference)
    return DesignTable(tuple(rows), paired_sd, difference, held_out, study.own_seeds)


def held_out_row(study: Study, sd: float, difference: float | None) -> HeldOutRow:
    blocks = len(study.final_blocks) if study.protocol.held_out else 0
    detectable = power.detectable_difference(blocks, sd)
    needed = None if difference is None else power.blocks_needed(difference, sd)
    available = count_unused_orders(study.all_orders)
    return HeldOutRow(blocks, available, detectable if isfinite(detectable) else None, needed)


def design_row(study: Study, own: bool, paired_sd: PairedSd, difference: float | None) -> DesignRow:
    """Describe the study's design."""
    orders, seeds = study.all_orders, len(study.protocol.final_seeds or study.seeds)
    simultaneous, own_seeds = study.strategy.simultaneous, study.own_seeds
    stages, first_stages = count_stages(orders, simultaneous, own_seeds)
    share = paired_sd.order_share or 0.0
    *_, (effective, freedom) = power.effective_samples(orders, seeds, share, simultaneous, own_seeds)
    detectable = power.detectable_difference(effective, paired_sd.sd, freedom)
    needed = None
    if difference is not None:
        needed = needed_blocks(study, seeds, paired_sd, difference, detectable)
    position_counts, successor_counts = count_neighbours(orders)
    position, carry_over = efficiencies(orders)
    return DesignRow(
        design=study.orders.design,
        own=own,
        orders=len(orders),
        seeds=seeds,
        requested=seeds * (len(orders) if simultaneous else sum(map(len, orders))),
        stages=seeds * stages,
        first_stages=seeds * first_stages,
        position_counts=position_counts,
        successor_counts=successor_counts,
        position_efficiency=position,
        carry_over_efficiency=carry_over,
        effective_blocks=effective,
        detectable=detectable if isfinite(detectable) else None,
        needed=needed,
    )


def count_stages(orders: Sequence[Order], simultaneous: bool, own_seeds: bool) -> tuple[int, int]:
    """Count the distinct stages, and the distinct first stages, that one seed trains."""
    if simultaneous:
        stages = len(orders) if own_seeds else 1
        return stages, stages
    if own_seeds:
        return sum(map(len, orders)), len(orders)
    beginnings = {order[: t + 1] for order in orders for t in range(len(order))}
    return len(beginnings), len({order[0] for order in orders})


def needed_blocks(
    study: Study, seeds: int, paired_sd: PairedSd, difference: float, detectable: float
) -> tuple[int, int] | None:
    """Return the (orders, seeds) that detect the difference, see `DesignRow.needed`."""
    orders = study.all_orders
    if len(orders) == 1:
        blocks = power.blocks_needed(difference, paired_sd.sd)
        return (1, blocks) if blocks else None
    if "count" not in DESIGNS[study.orders.design].settings or study.strategy.simultaneous:
        return (len(orders), seeds) if detectable <= difference else None
    every = replace(study, orders=replace(study.orders, count=MAX_ORDERS)).all_orders
    share = paired_sd.order_share or 0.0
    count = power.orders_needed(difference, paired_sd.sd, every, seeds, share, study.own_seeds)
    return (count, seeds) if count else None


# -- which effects a design separates --------------------------------------------------------------


def count_neighbours(orders: Sequence[Order]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Count the (fewest, most) times that a task has a position, and that a task is right before another."""
    tasks = orders[0]
    positions = Counter(cell for order in orders for cell in enumerate(order))
    successors = Counter(pair for order in orders for pair in pairwise(order))
    by_position = [positions[t, task] for t in range(len(tasks)) for task in tasks]
    by_pair = [successors[a, b] for a in tasks for b in tasks if a != b]
    return (min(by_position), max(by_position)), (min(by_pair), max(by_pair))


def efficiencies(orders: Sequence[Order]) -> tuple[float, float]:
    """Return the efficiencies of position and of carry-over, see the module's docstring."""
    index = {task: i for i, task in enumerate(orders[0])}
    tasks = np.array([[index[task] for task in order] for order in orders])  # (N, T)
    count, size = tasks.shape
    identity = np.eye(size)
    task = identity[tasks]  # (N, T, T): one row for each score, one column for each task
    position = np.broadcast_to(identity, task.shape)
    # Contrasts alone: what all carry-overs have in common is part of the first position's effect.
    carry_over = np.concatenate([np.zeros((count, 1, size)), task[:, :-1] - 1 / size], axis=1)
    # Subtracting the mean over each order removes the orders' own effects.
    task, position, carry_over = (
        (x - x.mean(axis=1, keepdims=True)).reshape(-1, size) for x in (task, position, carry_over)
    )
    return (
        efficiency(position, np.hstack([task, carry_over]), count),
        efficiency(carry_over, np.hstack([task, position]), count * (size - 1) / size),
    )


def efficiency(effect: np.ndarray, others: np.ndarray, largest: float) -> float:
    """Return the efficiency of an effect's contrasts together with the other effects.

    largest: the information on a contrast where nothing is confounded.
    """
    unexplained = effect - others @ np.linalg.lstsq(others, effect, rcond=1e-9)[0]
    # Ascending; the first eigenvalue, of the columns' sum, belongs to no contrast.
    information = np.linalg.eigvalsh(unexplained.T @ unexplained)[1:]
    if information[0] <= 1e-6 * largest:
        return 0.0
    return float(len(information) / (largest / information).sum())


# -- how much a difference varies from block to block ----------------------------------------------


def measure_paired_sd(study: Study, store: StageStore) -> PairedSd | None:
    """Measure on the final runs of the compared settings, else on the search's runs on validation.

    Pooled over all pairs of settings, each with a mean difference of its own; None where no two of them have
    two blocks in common.
    """
    if next(iter(store), None) is None:
        return None
    reader = EvidenceReader(study, store)
    comparison = Comparison.from_study(study, reader.fast_forward_past_failures)
    final = finished_scores(comparison.settings.values(), reader, "test")
    if on_test := pool_differences(final, "compared settings on test"):
        return on_test
    search, split = comparison.search, study.protocol.selection_split
    evaluated = [study.runs]
    if search:
        evaluated = [study.at(search.proposed[number].setting).runs for number in search.evaluated()]
    return pool_differences(finished_scores(evaluated, reader, split), f"searched settings on {split}")


def finished_scores(settings: Iterable[StudyRuns], reader: EvidenceReader, split: str) -> Iterator[Scores]:
    """Yield for each setting the metric of its finished runs: that of a single objective, else FAA."""
    for runs in {r.id: r for r in settings if not r.study.strategy.simultaneous}.values():
        objective = runs.study.search.objective if runs.study.search else ()
        metric = plugins.find("metrics", objective[0] if len(objective) == 1 else "faa")
        scores = {(r.order, r.seed): 100 * metric(reader.score_matrix(runs, r, split)) for r in runs}
        yield {block: score for block, score in scores.items() if isfinite(score)}


def pool_differences(settings: Iterable[Scores], basis: str) -> PairedSd | None:
    """Pool the paired differences of all pairs of settings; None where there are too few."""
    squares, freedom, differences, by_pair = 0.0, 0, 0, []
    for a, b in combinations(settings, 2):
        by_order: dict[Order, list[float]] = {}
        for block in a.keys() & b.keys():
            by_order.setdefault(block[0], []).append(a[block] - b[block])
        d = np.array([difference for of_order in by_order.values() for difference in of_order])
        if len(d) > 1 and d.any():  # settings whose runs are equal are one setting
            squares += float(((d - d.mean()) ** 2).sum())
            freedom += len(d) - 1
            differences += len(d)
            by_pair.append(list(by_order.values()))
    if not squares:
        return None
    return PairedSd((squares / freedom) ** 0.5, "measured", basis, differences, order_share(by_pair))


def order_share(pairs: Iterable[Sequence[Sequence[float]]]) -> float | None:
    """Estimate the share of the variance that is an order's own, by a pooled one-way analysis of variance.

    pairs: for each pair of settings, its differences by order. A pair with fewer than 3 orders is left out:
    it says too little of how orders differ. None where no order has two seeds.
    """
    within, between, seeds, orders, weight = 0.0, 0.0, 0, 0, 0.0
    for groups in pairs:
        if len(groups) < 3:
            continue
        sizes, means = np.array([len(g) for g in groups]), np.array([np.mean(g) for g in groups])
        n, mean = sizes.sum(), np.average(means, weights=sizes)
        within += sum(len(g) * float(np.var(g)) for g in groups)
        between += float((sizes * (means - mean) ** 2).sum())
        seeds += int(n) - len(groups)
        orders += len(groups) - 1
        weight += float(n - (sizes**2).sum() / n)  # of the orders' variance in `between`
    if not seeds:
        return None
    noise = within / seeds
    own = max(0.0, (between - orders * noise) / weight)
    return own / (own + noise) if own else 0.0
