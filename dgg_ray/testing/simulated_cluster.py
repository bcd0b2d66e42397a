"""A whole study in seconds, on a simulated cluster: what it finds, and how its hours would pass.

    found = rehearse(study, fleets=8)
    found.search.winner(), found.hours, found.busy

The search, the stage tree and the broker's desk are the real ones; stages follow the study's law
(simulation.py), and time is a number. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from dgg_ray.config.study import Study
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.work_queue import Desk
from dgg_ray.search import comparison, evidence
from dgg_ray.search.base import Method, Query
from dgg_ray.training.simulated import MemoryStore, Simulated


@dataclass(frozen=True)
class Rehearsal:
    """search, baselines: as they ended; None and none without a search.

    final: label → study of the comparison. stages: learned in all; hours: from start to end;
    busy: share of the fleets' time that was spent on stages and exams.
    """

    study: Study
    store: MemoryStore
    search: Method | None
    baselines: dict[str, Method]
    final: dict[str, Study]
    hours: float
    busy: float

    @property
    def stages(self) -> int:
        return sum(bool(record["earlier"] or record["trained_task"]) for record in self.store)


def rehearse(study: Study, groups: int | None = None, compare: bool = True) -> Rehearsal:
    """Run the study on `fleets` simulated fleets, by default its own; `compare`: its final comparison too."""
    study = study.simulated()
    cluster = Cluster(study, groups or study.workers.groups)
    search, searches = None, {}
    if study.search is not None:
        search = cluster.pursue(comparison.make_search(study))
        more = comparison.baseline_searches(search) if compare else {}
        searches = {name: cluster.pursue(own) for name, own in more.items()}
    final = comparison.compared_settings(study, search, searches) if compare else {}
    cluster.obtain(evidence.final_works(final))
    busy = cluster.worked / (cluster.clock * cluster.groups) if cluster.clock else 0.0
    return Rehearsal(study, cluster.store, search, searches, final, cluster.clock / 3600, busy)


@dataclass
class Cluster:
    """Fleets that take work from a desk; clock, worked: simulated seconds, of the wall and of all fleets."""

    study: Study
    groups: int
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: float = 0.0
    worked: float = 0.0

    def __post_init__(self) -> None:
        self.shop = Simulated.of(self.study, self.store)
        self.desk = Desk(self.store)
        self.idle = [f"fleet {i}" for i in range(self.groups)]
        self.running: list[tuple[float, str, str, WorkItem]] = []  # a heap, by when it ends
        self.waiting: dict[str, list[Callable[[], None]]] = {}  # by stage

    def pursue(self, search: Method) -> Method:
        """Judge what a search proposes until it is finished."""

        def start() -> None:
            while (proposal := search.ask()) is not None:
                go_on(*proposal, evidence.parts(self.study, self.store, proposal[1]))

        def go_on(number: int, query: Query, parts: Iterator[list[evidence.Walk]]) -> None:
            for part in parts:
                if chains := evidence.missing(self.store, part):
                    self.walk(chains, lambda: go_on(number, query, parts))
                    return
            search.tell(number, evidence.evidence(self.study, self.store, query))

        start()
        while self.step():
            start()
        return search

    def obtain(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        self.walk(chains, lambda: None)
        while self.step():
            pass

    def walk(self, chains: Sequence[Sequence[WorkItem]], done: Callable[[], None]) -> None:
        """Ask for every chain's works one after another, all chains at once; `done` after the last of all."""
        left = len(chains)

        def follow(work_items: Iterator[WorkItem]) -> None:
            nonlocal left
            for item in work_items:
                if self.desk.need(item) != "ready":
                    self.waiting.setdefault(item.key, []).append(lambda: follow(work_items))
                    return
            left -= 1
            if not left:
                done()

        for chain in chains:
            follow(iter(chain))

    def step(self) -> bool:
        """Hand out what waits, then go to the next end of a stage; False when nothing runs."""
        while self.idle and (item := self.desk.take(self.idle[-1])) is not None:
            seconds = self.takes(item)
            self.worked += seconds
            heappush(self.running, (self.clock + seconds, item.key, self.idle.pop(), item))
        if not self.running:
            return False
        self.clock, key, group, item = heappop(self.running)
        self.shop.obtain(item)
        self.idle.append(group)
        if self.desk.done(group, key, True, None):
            for follow in self.waiting.pop(key, ()):
                follow()
        return True

    def takes(self, item: WorkItem) -> float:
        missing = self.store.missing(item)
        evaluations = item.evaluations if missing is None else missing
        answers = sum(self.shop.pace(e.task) / 3 * self.shop.sizes[e.task][e.split] for e in evaluations)
        learning = item.stage.trained_tasks and missing is None
        return answers + (self.shop.begin + self.shop.cost(item.stage)[1] if learning else 0.0)
