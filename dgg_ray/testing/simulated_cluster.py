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
from dgg_ray.execution.work_queue import Desk
from dgg_ray.search import baselines, evidence
from dgg_ray.search.base import Method, Probe
from dgg_ray.storage.stages import Work
from dgg_ray.training.simulated import MemoryStore, Simulated


@dataclass(frozen=True)
class Rehearsal:
    """search, rivals: as they ended; None and none without a search.

    final: label → study of the comparison. stages: learned in all; hours: from start to end;
    busy: share of the fleets' time that was spent on stages and exams.
    """

    study: Study
    store: MemoryStore
    search: Method | None
    rivals: dict[str, Method]
    final: dict[str, Study]
    hours: float
    busy: float

    @property
    def stages(self) -> int:
        return sum(bool(record["earlier"] or record["learned"]) for record in self.store)


def rehearse(study: Study, fleets: int | None = None, compare: bool = True) -> Rehearsal:
    """Run the study on `fleets` simulated fleets, by default its own; `compare`: its final comparison too."""
    study = study.simulated()
    cluster = Cluster(study, fleets or study.workers.fleets)
    search, rivals = None, {}
    if study.search is not None:
        search = cluster.pursue(baselines.method(study))
        more = baselines.rivals(search) if compare else {}
        rivals = {name: cluster.pursue(own) for name, own in more.items()}
    final = baselines.contenders(study, search, rivals) if compare else {}
    cluster.obtain(evidence.final_works(final))
    busy = cluster.worked / (cluster.clock * cluster.fleets) if cluster.clock else 0.0
    return Rehearsal(study, cluster.store, search, rivals, final, cluster.clock / 3600, busy)


@dataclass
class Cluster:
    """Fleets that take work from a desk; clock, worked: simulated seconds, of the wall and of all fleets."""

    study: Study
    fleets: int
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: float = 0.0
    worked: float = 0.0

    def __post_init__(self) -> None:
        self.shop = Simulated.of(self.study, self.store)
        self.desk = Desk(self.store)
        self.idle = [f"fleet {i}" for i in range(self.fleets)]
        self.running: list[tuple[float, str, str, Work]] = []  # a heap, by when it ends
        self.waiting: dict[str, list[Callable[[], None]]] = {}  # by stage

    def pursue(self, search: Method) -> Method:
        """Judge what a search proposes until it is finished."""

        def start() -> None:
            while (proposal := search.ask()) is not None:
                go_on(*proposal, evidence.parts(self.study, self.store, proposal[1]))

        def go_on(number: int, probe: Probe, parts: Iterator[list[evidence.Walk]]) -> None:
            for part in parts:
                if chains := evidence.missing(self.store, part):
                    self.walk(chains, lambda: go_on(number, probe, parts))
                    return
            search.tell(number, evidence.evidence(self.study, self.store, probe))

        start()
        while self.step():
            start()
        return search

    def obtain(self, chains: Sequence[Sequence[Work]]) -> None:
        self.walk(chains, lambda: None)
        while self.step():
            pass

    def walk(self, chains: Sequence[Sequence[Work]], done: Callable[[], None]) -> None:
        """Ask for every chain's works one after another, all chains at once; `done` after the last of all."""
        left = len(chains)

        def follow(works: Iterator[Work]) -> None:
            nonlocal left
            for work in works:
                if self.desk.need(work) != "ready":
                    self.waiting.setdefault(work.key, []).append(lambda: follow(works))
                    return
            left -= 1
            if not left:
                done()

        for chain in chains:
            follow(iter(chain))

    def step(self) -> bool:
        """Hand out what waits, then go to the next end of a stage; False when nothing runs."""
        while self.idle and (work := self.desk.take(self.idle[-1])) is not None:
            seconds = self.takes(work)
            self.worked += seconds
            heappush(self.running, (self.clock + seconds, work.key, self.idle.pop(), work))
        if not self.running:
            return False
        self.clock, key, fleet, work = heappop(self.running)
        self.shop.obtain(work)
        self.idle.append(fleet)
        if self.desk.done(fleet, key, True, None):
            for follow in self.waiting.pop(key, ()):
                follow()
        return True

    def takes(self, work: Work) -> float:
        missing = self.store.missing(work)
        exams = work.exams if missing is None else missing
        answers = sum(self.shop.pace(e.task) / 3 * self.shop.sizes[e.task][e.split] for e in exams)
        learning = work.stage.learns and missing is None
        return answers + (self.shop.begin + self.shop.cost(work.stage)[1] if learning else 0.0)
