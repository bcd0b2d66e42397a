"""A whole study in seconds, on a simulated cluster: its results, and how its hours would pass.

    result = simulate_study(study, groups=8)
    result.search.winner(), result.hours, result.utilization

The search, the stage tree and the work queue are the real ones. Stages follow the study's response model
(config/simulation.py), and time is a number. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from dgg_ray.config.study import Study, StudyRuns
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.work_queue import ItemResult, WorkQueue
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.comparison import Comparison, make_search
from dgg_ray.search.evidence import EvidenceReader, RunRequest
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.training.simulated_runner import SimulatedRunner


@dataclass(frozen=True)
class SimulationResult:
    """The end of a simulated study.

    search, baselines: the finished searches; None and empty where the study has no search.
    final: label → runs of the final comparison. hours: from start to end.
    utilization: share of the groups' time spent on training and evaluation.
    """

    study: Study
    store: MemoryStore
    search: SearchMethod | None
    baselines: Mapping[str, SearchMethod]
    final: Mapping[str, StudyRuns]
    hours: float
    utilization: float

    @property
    def stages(self) -> int:
        """Number of stages trained."""
        return sum(bool(record["earlier"] or record["trained_task"]) for record in self.store)


def simulate_study(study: Study, groups: int | None = None, compare: bool = True) -> SimulationResult:
    """Run the study on simulated worker groups, by default as many as it asks for.

    compare: whether to run the final comparison, too.
    """
    study = study.simulated()
    cluster = SimulatedCluster(study, groups or study.workers.groups)
    if compare:
        compared = Comparison.from_study(study, cluster.run_search)
        cluster.execute(compared.chains)
    else:
        compared = Comparison(study, cluster.run_search(make_search(study)) if study.search else None)
    final = compared.settings if compare else {}
    utilization = cluster.busy_s / (cluster.clock_s * cluster.groups) if cluster.clock_s else 0.0
    return SimulationResult(
        study,
        cluster.store,
        compared.search,
        compared.baseline_searches,
        final,
        cluster.clock_s / 3600,
        utilization,
    )


@dataclass
class SimulatedCluster:
    """Simulated worker groups that take items from a real work queue.

    clock_s: simulated wall time in seconds; busy_s: seconds of work, summed over the groups.
    """

    study: Study
    groups: int
    store: MemoryStore = field(default_factory=MemoryStore)
    clock_s: float = 0.0
    busy_s: float = 0.0

    def __post_init__(self) -> None:
        self.runner = SimulatedRunner.of(self.study, self.store)
        self.reader = EvidenceReader(self.study, self.store)
        self.queue = WorkQueue(self.store)
        self.idle = [f"group {i}" for i in range(self.groups)]
        self.running: list[tuple[float, str, str, WorkItem]] = []  # a heap, by the time of the end
        self.waiting: dict[str, list[Callable[[], None]]] = {}  # by item key: what to continue at its end

    def run_search(self, search: SearchMethod) -> SearchMethod:
        """Evaluate the search's queries until it is finished."""

        def start_proposed() -> None:
            while (proposal := search.ask()) is not None:
                number, query = proposal
                request_next(number, query, self.reader.requests(query))

        def request_next(number: int, query: Query, batches: Iterator[list[RunRequest]]) -> None:
            for batch in batches:
                if chains := self.reader.missing_items(batch):
                    self.request_chains(chains, lambda: request_next(number, query, batches))
                    return
            search.tell(number, self.reader.evidence(query))

        start_proposed()
        while self.step():
            start_proposed()
        return search

    def execute(self, chains: Sequence[Sequence[WorkItem]]) -> None:
        """Run every chain's items to the end."""
        self.request_chains(chains, lambda: None)
        while self.step():
            pass

    def request_chains(self, chains: Sequence[Sequence[WorkItem]], on_done: Callable[[], None]) -> None:
        """Request each chain's items one after another, all chains at once; `on_done` follows the last."""
        open_chains = len(chains)

        def continue_chain(items: Iterator[WorkItem]) -> None:
            nonlocal open_chains
            for item in items:
                if self.queue.request(item) != "stored":
                    self.waiting.setdefault(item.key, []).append(lambda: continue_chain(items))
                    return
            open_chains -= 1
            if not open_chains:
                on_done()

        for chain in chains:
            continue_chain(iter(chain))

    def step(self) -> bool:
        """Assign waiting items, then advance to the next end of an item; False when nothing runs."""
        while self.idle and (item := self.queue.dequeue(self.idle[-1])) is not None:
            seconds = self.duration(item)
            self.busy_s += seconds
            heappush(self.running, (self.clock_s + seconds, item.key, self.idle.pop(), item))
        if not self.running:
            return False
        self.clock_s, key, group, item = heappop(self.running)
        self.runner.run(item)
        self.idle.append(group)
        if self.queue.finish(group, ItemResult(key, trained=True)):
            for continue_waiting in self.waiting.pop(key, ()):
                continue_waiting()
        return True

    def duration(self, item: WorkItem) -> float:
        """Simulated seconds for the part of an item that the store does not hold."""
        missing = self.store.missing(item)
        evaluations = item.evaluations if missing is None else missing
        seconds = sum(map(self.runner.evaluation_seconds, evaluations))
        if item.stage.trained_tasks and missing is None:
            seconds += self.runner.setup_seconds + self.runner.training_cost(item.stage)[1]
        return seconds
