"""How much the paired difference of two settings varies from block to block, measured on finished runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite

import numpy as np

from dgg_ray.config.study import Study
from dgg_ray.core import plugins
from dgg_ray.core.orders import Order
from dgg_ray.search import comparison, evidence
from dgg_ray.storage.stage_store import StageStore

Blocks = Mapping[tuple[Order, int], float]  # (order, seed) → points


@dataclass(frozen=True)
class Spread:
    """Standard deviation of the paired difference of two settings on one block, in points of 100.

    source: `measured`, `given` or `assumed`; of what, in words. differences: behind it.
    own: share of the variance that is the order's own, whatever the seed; None where nothing tells.
    """

    sd: float
    source: str
    of: str = ""
    differences: int = 0
    own: float | None = None

    def __str__(self) -> str:
        own = "" if self.own is None else f", {self.own:.0%} of its variance between orders"
        return f"{self.sd:.1f} points ({self.source}{': ' if self.of else ''}{self.of}{own})"


def measured(study: Study, store: StageStore) -> Spread | None:
    """From the contenders' finished final runs on test, else from the searched settings on validation.

    Pooled over all pairs of them, each with its own mean difference; None where no two have 2 blocks
    in common.
    """
    if next(iter(store), None) is None:
        return None
    search, more = comparison.replay_searches(study, store)
    final = comparison.compared_settings(study, search, more)
    judged = [study.at(search.proposed[n].setting) for n in search.judged()] if search else [study]
    return pooled(scores(final.values(), store, "test"), "contenders on test") or pooled(
        scores(judged, store, study.protocol.selection_split),
        f"searched settings on {study.protocol.selection_split}",
    )


def scores(studies: Iterable[Study], store: StageStore, split: str) -> Iterator[Blocks]:
    """Of each setting, the finished runs' metric: the one that is searched for, else FAA."""
    for at in {s.id: s for s in studies if not s.strategy.simultaneous}.values():
        objective = at.search.objective if at.search else ()
        metric = plugins.find("metrics", objective[0] if len(objective) == 1 else "faa")
        found = {(r.order, r.seed): 100 * metric(evidence.matrix(at, store, r, split)) for r in at.runs()}
        yield {block: score for block, score in found.items() if isfinite(score)}


def pooled(found: Iterable[Blocks], of: str) -> Spread | None:
    """Over all pairs of settings."""
    squares, freedom, differences, groups = 0.0, 0, 0, []
    for a, b in combinations(found, 2):
        by_order: dict[Order, list[float]] = {}
        for block in a.keys() & b.keys():
            by_order.setdefault(block[0], []).append(a[block] - b[block])
        d = np.array([gap for gaps in by_order.values() for gap in gaps])
        if len(d) > 1 and d.any():  # settings that learn the same are one
            squares += float(((d - d.mean()) ** 2).sum())
            freedom += len(d) - 1
            differences += len(d)
            groups.append(list(by_order.values()))
    return (
        Spread((squares / freedom) ** 0.5, "measured", of, differences, share_own(groups))
        if squares
        else None
    )


def share_own(found: Iterable[Sequence[Sequence[float]]]) -> float | None:
    """Share of the variance that is an order's own, by one-way analysis of variance, pooled.

    found: for each pair of settings, its differences by order; one with fewer than 3 orders says too little
    of how orders differ. None where no order has two seeds.
    """
    within, between, seeds, orders, weight = 0.0, 0.0, 0, 0, 0.0
    for groups in (groups for groups in found if len(groups) > 2):
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
