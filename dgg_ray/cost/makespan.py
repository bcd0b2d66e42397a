"""Wall time: the makespan of list scheduling, and the critical path that determines it.

    build_dag()        the work that is left, as nodes with predecessors, and barriers, which are no work
    critical_path()    the nodes, one after another, whose costs add up to the wall time

The schedule is Graham's list scheduling (Graham 1966): a free worker group takes the node that has waited
longest, as from the work queue. A node starts when another one ends: a predecessor, or the node that its
worker group had before. So an unbroken row of nodes leads from the last end back to the start, and its
costs add up to the makespan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dgg_ray.core.stage import Evaluation, Stage, WorkItem


class WorkRequest(NamedTuple):
    """Work items that are requested together, as soon as the first `after` requests are finished."""

    work_items: Iterable[WorkItem]
    after: int = 0


class Node(NamedTuple):
    """Work that one worker group does in one piece, and the earlier nodes that it waits for.

    cost: the parts of the work (rates.Part); empty for a barrier, the moment from which on the first so many
        requests are finished.
    """

    cost: list[Any]
    predecessors: list[int]


CostOf = Callable[["Stage", bool, "list[Evaluation]"], list[Any]]


def build_dag(
    requests: Iterable[WorkRequest], evaluated: Mapping[str, Collection[str]], cost_of: CostOf
) -> Iterator[Node]:
    """Yield the work that is left, in the order of requests; work that is requested twice is done once.

    evaluated: the keys of the stored evaluations, by the key of their stage, for every stored stage.
    cost_of: (stage, whether it is trained, its evaluations) → the parts of that work.
    """
    return _DagBuilder(evaluated, cost_of).nodes(requests)


class _DagBuilder:
    """The state of `build_dag`: nodes are known by their index, in the order in which they are yielded."""

    def __init__(self, evaluated: Mapping[str, Collection[str]], cost_of: CostOf) -> None:
        self.evaluated, self.cost_of = evaluated, cost_of
        self.count = 0
        self.barriers: list[list[int]] = [[]]  # [n]: the node after which n requests are finished, if any
        self.request_nodes: list[list[int]] = []  # of each request: the nodes that finish it
        self.last_node: dict[str, int] = {}  # stage key → the latest node of this stage
        self.requested: dict[str, set[str]] = {}  # stage key → keys of its evaluations, stored or requested

    def nodes(self, requests: Iterable[WorkRequest]) -> Iterator[Node]:
        for request in requests:
            yield from self.add_barriers(request.after)
            barrier = self.barriers[request.after]
            ends = dict.fromkeys(barrier)
            # Runs of many orders hold the very same items.
            for item in {id(item): item for item in request.work_items}.values():
                if node := self.node_of(item, barrier):
                    yield node
                if item.stage.key in self.last_node:
                    ends[self.last_node[item.stage.key]] = None
            self.request_nodes.append([*ends])

    def add_barriers(self, after: int) -> Iterator[Node]:
        """Add the barriers up to that after which so many requests are finished."""
        while len(self.barriers) <= after:
            predecessors = [*self.barriers[-1], *self.request_nodes[len(self.barriers) - 1]]
            self.barriers.append([self.count] if predecessors else [])
            if predecessors:
                self.count += 1
                yield Node([], predecessors)

    def node_of(self, item: WorkItem, barrier: Sequence[int]) -> Node | None:
        """Return the item's work that is neither stored nor requested before; None where nothing is left."""
        stage, key = item.stage, item.stage.key
        known = self.requested.setdefault(key, set(self.evaluated.get(key, ())))
        evaluations = [evaluation for evaluation in item.evaluations if evaluation.key not in known]
        trains = bool(stage.trained_tasks) and key not in self.evaluated and key not in self.last_node
        if not trains and not evaluations:
            return None
        known.update(evaluation.key for evaluation in evaluations)
        parent = stage.parent.key if stage.parent else ""
        earlier = [self.last_node[above] for above in (parent, key) if above in self.last_node]
        self.last_node[key] = self.count
        self.count += 1
        return Node(self.cost_of(stage, trains, evaluations), [*dict.fromkeys([*barrier, *earlier])])


def critical_path(predecessors: Sequence[Sequence[int]], seconds: Sequence[float], groups: int) -> list[int]:
    """Return the nodes whose seconds add up to the makespan on so many worker groups.

    predecessors: of each node, all of them before it. seconds: of each node, 0 for a barrier, which needs no
    worker group.
    """
    open_predecessors = [len(nodes) for nodes in predecessors]
    successors: list[list[int]] = [[] for _ in predecessors]
    for node, nodes in enumerate(predecessors):
        for predecessor in nodes:
            successors[predecessor].append(node)
    released_by = [-1] * len(predecessors)  # the node whose end let each node start
    running: list[tuple[float, int]] = []  # a heap of (end, node)
    queue: deque[int] = deque()  # nodes that wait for a worker group
    ready = deque(node for node, count in enumerate(open_predecessors) if not count)  # not queued yet
    last, clock = -1, 0.0  # the node that ended last, and when
    while True:
        while ready:
            node = ready.popleft()
            if seconds[node]:
                queue.append(node)
            else:
                ready += release(successors[node], open_predecessors)
        while queue and len(running) < groups:
            node = queue.popleft()
            released_by[node] = last
            heappush(running, (clock + seconds[node], node))
        if not running:
            break
        clock, last = heappop(running)
        ready += release(successors[last], open_predecessors)
    path: list[int] = []
    while last >= 0:
        path.append(last)
        last = released_by[last]
    return path[::-1]


def release(successors: Sequence[int], open_predecessors: list[int]) -> list[int]:
    """Count one predecessor of these nodes as ended, and return the nodes that wait for no other."""
    for node in successors:
        open_predecessors[node] -= 1
    return [node for node in successors if not open_predecessors[node]]
