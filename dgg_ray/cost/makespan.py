"""When fleets would have done works that wait for their parents, and for what a search must know first.

    nodes()    pieces of work with what each one waits for, and gates, which are no work
    longest()  the nodes, one after another, that the end has to wait for

Fleets take what waits longest, as from the desk. What lets a piece begin is the end of another: of one that
it waits for, or of what its fleet had before. So from the last end back to the beginning there is one row
of pieces without a pause between them, and the wall time is what these take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dgg_ray.core.stage import Evaluation, Stage, WorkItem


class Ask(NamedTuple):
    """Works that are asked for at once, when the first `after` of all asks are over."""

    work_items: Iterable[WorkItem]
    after: int = 0


class Node(NamedTuple):
    """Parts of what is done in one piece, and the nodes before it that it waits for.

    Without parts it is a gate: the moment from which on the first so many asks are over.
    """

    parts: list[Any]
    after: list[int]


def nodes(
    asks: Iterable[Ask],
    sat: Mapping[str, Collection[str]],
    parts_of: Callable[[Stage, bool, list[Evaluation]], list[Any]],
) -> Iterator[Node]:
    """What is left to do, in the order of asking; what is asked for twice is done once.

    sat: keys of the exams that were sat, by the key of their stage, of all stages that are there.
    parts_of: of a stage, if it is to be learned, and of these exams after it.
    """
    gates: list[list[int]] = [[]]  # by how many asks are over then: that node, or nothing
    ends: list[list[int]] = []  # of each ask
    last: dict[str, int] = {}  # node of what was asked of a stage last, by its key
    asked: dict[str, set[str]] = {}  # its exams
    count = 0
    for ask in asks:
        while len(gates) <= ask.after:
            before = [*gates[-1], *ends[len(gates) - 1]]
            gates.append([count] if before else [])
            if before:
                yield Node([], before)
                count += 1
        gate, end = gates[ask.after], dict.fromkeys(gates[ask.after])
        for item in {
            id(item): item for item in ask.work_items
        }.values():  # runs of many orders hold the very same
            stage, key = item.stage, item.stage.key
            done = asked.setdefault(key, set(sat.get(key, ())))
            evaluations = [evaluation for evaluation in item.evaluations if evaluation.key not in done]
            trained_tasks = bool(stage.trained_tasks) and key not in sat and key not in last
            if trained_tasks or evaluations:
                above = stage.parent.key if stage.parent else ""
                before = dict.fromkeys([*gate, *(last[of] for of in (above, key) if of in last)])
                yield Node(parts_of(stage, trained_tasks, evaluations), [*before])
                done.update(evaluation.key for evaluation in evaluations)
                last[key], count = count, count + 1
            if key in last:
                end[last[key]] = None
        ends.append([*end])


def longest(after: Sequence[Sequence[int]], seconds: Sequence[float], groups: int) -> list[int]:
    """after: the nodes that each one waits for; seconds: of each, 0 of what needs no fleet."""
    left = [len(nodes) for nodes in after]
    follow: list[list[int]] = [[] for _ in after]
    for node, nodes in enumerate(after):
        for before in nodes:
            follow[before].append(node)
    cause = [-1] * len(after)
    running: list[tuple[float, int]] = []  # a heap, by when it ends
    waiting: deque[int] = deque()
    free = deque(node for node, count in enumerate(left) if not count)  # may begin, is not queued yet
    last, clock = -1, 0.0
    while True:
        while free:
            if seconds[node := free.popleft()]:
                waiting.append(node)
            else:
                free += released(follow[node], left)
        while waiting and len(running) < groups:
            cause[node := waiting.popleft()] = last
            heappush(running, (clock + seconds[node], node))
        if not running:
            break
        clock, last = heappop(running)
        free += released(follow[last], left)
    path: list[int] = []
    while last >= 0:
        path.append(last)
        last = cause[last]
    return path[::-1]


def released(nodes: Sequence[int], left: list[int]) -> list[int]:
    """Those of the nodes that wait for nothing more, one that they waited for being done."""
    for node in nodes:
        left[node] -= 1
    return [node for node in nodes if not left[node]]
