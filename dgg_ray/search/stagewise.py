"""Successive halving over the tasks: choose each task's settings on the best states so far.

    for each place t = 2 … T of the orders:
        for each kept state (a setting for the tasks placed before t):
            try `tries` values for the tasks that appear at place t          one stage per block each
        keep the best `beam` states; every other rung, half of the outer combinations

Whole settings cost T stages each and learn one number; here a stage is judged as soon as it is learned, on
the state that it would really start from, and what lies before it is never learned again. With 5 values, 6
tasks and b = 2 that is 46 stages a block in place of 5⁶ sequences. α follows the task's name: where orders
differ, all of a setting's orders are judged together, and a task is decided at the first place that
it takes in any of them.

That takes for granted that what a task's value does hangs little on the others', and that neighbouring values
do nearly the same. Where it is not so a wider search or another one is better: under a law by which guidance
pays later the default ends 2.6 points below the best, no nearer than the best constant α; beam 3 or two
more values each end within 1.5 (docs/benchmarks.md).

A state is judged by the objective of its run, completed pessimistically and read off a curve
(extrapolation.py).

Greedy choices can be wrong: the best state at task 2 need not be the best at task T (Renate,
awslabs/Renate issue 58), and with several orders a task is decided where it comes first. So the choice is
revised once, place by place, with what the best run became. And a share of the stages, `audit`, finishes
branches that were dropped, with the winner's values for what they had not decided: how often, and by how
much, one of them ends above the best kept one is reported, and such a branch is recommended if it wins. Ends
are noisy, so one may be above by luck: it is called an error only where its interval says so, for all that
were audited at once (optimism.py). And errors are missed: a branch's later values were chosen for another
state, and what was kept is the luckiest of all settings on these blocks.

Settings that are not per task (rank, buffer) are outer combinations, each with a beam of its own; their
number is halved at even distances along the tasks.

Where the study goes on from an older one with fewer tasks (`WarmStart.depth`), that one's best settings are the
beam with which it begins: only the places after them are searched and revised, and only these cost stages.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from math import ceil, inf, log2
from typing import Any, NamedTuple

import numpy as np

from dgg_ray.config.sections import SearchParameter, Value
from dgg_ray.config.study import Setting, Study
from dgg_ray.core import rng
from dgg_ray.search.base import BatchedSearch, Query, limits
from dgg_ray.search.extrapolation import Hopes, State
from dgg_ray.search.objective import Values, preferred, smoothed
from dgg_ray.search.optuna_search import propose
from dgg_ray.search.space import CategoricalDistribution, Space, distribution, listed

MOST = 4096  # combinations that are looked at


class Level(NamedTuple):
    """What was tried at one place for one outer combination. hoped: as read off the curve; kept: the beam."""

    depth: int
    states: list[State]
    hoped: list[Values]
    kept: list[State]


class Dropped(NamedTuple):
    """A state that was not kept. number: of the query that finished it in the audit, None if none did."""

    state: State
    number: int | None = None


@dataclass
class Branch:
    """One outer combination with its beam."""

    outer: Setting
    beam: list[State] = field(default_factory=list)


class Stagewise(BatchedSearch):
    """See the head of this file. audited: dropped states with the query that finished each."""

    def __init__(self, study: Study) -> None:
        assert study.search is not None
        self.begun = max(
            (known.depth for known in study.data.warm_starts), default=0
        )  # places that are decided
        self.warm = [known.setting for known in study.data.warm_starts if known.depth == self.begun]
        self.parameters = study.search.space
        self.hopes = Hopes([order for order, _ in study.blocks], study.search.objective, limits(study.search))
        self.dropped: list[State] = []
        self.levels: list[Level] = []
        self.audited: list[Dropped] = []
        super().__init__(study)

    # -- the search --------------------------------------------------------------------------------

    def batches(self) -> Iterator[list[Query]]:
        orders, count = self.study.all_orders, len(self.study.task_names)
        branches = (yield from self.resume()) if self.begun else [Branch(outer) for outer in self.outer()]
        rungs = halvings(len(branches), count)
        decided = set(orders[0][: self.begun])
        for depth in range(max(2, self.begun + 1), count + 1):
            placed = {order[depth - 1] for order in orders}
            fresh = [name for name in self.study.task_names if name in placed - decided]
            decided |= placed
            yield from self.level(branches, depth, fresh)
            branches = [branch for branch in branches if branch.beam]
            if depth in rungs:
                branches = self.halve(branches)
        yield from self.revise()
        yield from self.audit()

    def resume(self) -> Generator[list[Query], Any, list[Branch]]:
        """The best settings of the study that this one goes on from, with the best one's outer values."""
        outer = {
            path: self.warm[0][path] for path, parameter in self.parameters.items() if not parameter.per_task
        }
        alike = [s for s in self.warm if all(s[path] == value for path, value in outer.items())]
        beam = alike[: self.search.beam]
        answers: Any = yield [Query(setting, self.begun) for setting in beam]
        found = [self.hopes.take(s, self.begun, e) for s, e in zip(beam, answers, strict=True)]
        beam = [state for state in found if state]
        return [Branch(outer, beam)] if beam else []

    def outer(self) -> list[Setting]:
        """Combinations of the settings that are not per task."""
        parameters = {path: distribution(k) for path, k in self.parameters.items() if not k.per_task}
        first = [{k: s[k] for k in parameters} for s in self.warm[:3] if all(k in s for k in parameters)]
        return (
            propose(parameters, self.search.seed, self.search.global_candidates, [], first)
            if parameters
            else [{}]
        )

    def level(self, branches: list[Branch], depth: int, fresh: Sequence[str]) -> Iterator[list[Query]]:
        """One place of the orders: two rounds of new values, then what the tried ones make together."""
        parameters = {
            f"{path}.{name}": distribution(k)
            for path, k in self.parameters.items()
            if k.per_task
            for name in fresh
        }
        parents = [(b, p) for b, branch in enumerate(branches) for p in range(max(1, len(branch.beam)))]
        found: dict[tuple[int, int], list[State]] = {place: [] for place in parents}
        for ideas in (self.first_half, self.second_half, self.together):
            batch: list[tuple[tuple[int, int], Setting]] = []
            for b, p in parents:
                base = branches[b].beam[p].setting if branches[b].beam else branches[b].outer
                seed = rng.integer(self.search.seed, f"{depth} {p}", "stagewise") % 2**32
                for new in ideas(parameters, found[b, p], seed):
                    batch.append(((b, p), {**base, **new}))
            answers: Any = (yield [Query(setting, depth) for _, setting in batch]) if batch else []
            for (place, setting), evidence in zip(batch, answers, strict=True):
                if state := self.hopes.take(setting, depth, evidence):
                    found[place].append(state)
        for b, branch in enumerate(branches):
            here = [(p, state) for (of, p), states in found.items() if of == b for state in states]
            states = [state for _, state in here]
            read = self.hopes.read(states, [p for p, _ in here], parameters)
            best = [states[i] for i in preferred(read, [state.setting for state in states])]
            branch.beam = best[: self.search.beam]
            self.dropped += best[self.search.beam :]
            self.levels.append(Level(depth, states, read, branch.beam))

    def first_half(self, parameters: Space, known: list[State], seed: int) -> list[Setting]:
        """Values that say most about each task by itself: listed ones in turn, or half of the tries."""
        if not parameters:
            return [{}]
        sizes = [
            len(d.choices) if isinstance(d, CategoricalDistribution) else inf for d in parameters.values()
        ]
        if max(sizes) <= self.search.values_per_task:  # every value of every task, side by side
            return [
                {k: d.choices[i % len(d.choices)] for k, d in parameters.items()}  # type: ignore[union-attr]
                for i in range(int(max(sizes)))
            ]
        warm = [{k: s[k] for k in parameters} for s in self.warm[:3] if all(k in s for k in parameters)]
        return propose(parameters, seed, ceil(self.search.values_per_task / 2), [], warm)

    def second_half(self, parameters: Space, known: list[State], seed: int) -> list[Setting]:
        """Values that Optuna proposes, knowing the first ones."""
        if (left := self.search.values_per_task - len(known)) <= 0 or not parameters or not known:
            return []
        ranked = [known[i].setting for i in preferred(self.hopes.of(known), [k.setting for k in known])]
        return propose(
            parameters, seed + 1, left, [{k: setting[k] for k in parameters} for setting in ranked]
        )

    def together(self, parameters: Space, known: list[State], seed: int) -> list[Setting]:
        """Best combinations of the values tried: where every order meets one fresh task, they cost nothing.

        A stage depends on the values of the tasks before it in its own order and of no others. So what two
        tries gave on different orders can be put together, and every stage of it is there.
        """
        if len(parameters) < 2 or not known:
            return []
        tables = {id(s): self.hopes.table(s) for s in known}
        # Per block: which tried state stands for these values of the knobs that bear on it.
        bears = [
            tuple(k for k in parameters if k.rpartition(".")[2] in order[: known[0].depth])
            for order, _ in self.study.blocks
        ]
        there = [{tuple(s.setting[k] for k in b): s for s in known} for b in bears]
        tried = [list(dict.fromkeys(s.setting[k] for s in known)) for k in parameters]
        found: list[Setting] = []
        tabled: list[np.ndarray] = []
        for values in islice(product(*tried), MOST):
            setting = dict(zip(parameters, values, strict=True))
            parts = [of.get(tuple(setting[k] for k in b)) for of, b in zip(there, bears, strict=True)]
            if all(parts) and all(setting != {k: s.setting[k] for k in parameters} for s in known):
                found.append(setting)
                tabled.append(np.stack([tables[id(s)][i] for i, s in enumerate(parts)]))
        of = [self.hopes.values_of(table) for table in tabled]
        return [found[i] for i in preferred(of, found)[: self.search.beam]]

    def halve(self, branches: list[Branch]) -> list[Branch]:
        """The better half of the outer combinations, by the best state of each."""
        heads = [branch.beam[0] for branch in branches]
        ranked = preferred(self.hopes.of(heads), [head.setting for head in heads])
        keep = ceil(len(branches) / 2)
        for i in ranked[keep:]:
            self.dropped += branches[i].beam
        return [branches[i] for i in sorted(ranked[:keep])]

    def revise(self) -> Iterator[list[Query]]:
        """Choose each task's values once more, knowing how the best run went on.

        Around the best setting, each value is tried for the task at each place of each order: one stage on
        the best run's own state, which is often there already. What follows is taken from the best run: what
        each stage left of the tasks before it. The best values of all tasks together are one new setting,
        which is then run in earnest.
        """
        winner = self.best()
        if winner is None:
            return
        base, evidence = self.proposed[winner].setting, self.told[winner]
        assert evidence is not None
        tried: list[tuple[str, Value, int]] = []  # (setting's path, value, block), and its place
        queries: list[Query] = []
        for block, (order, _) in enumerate(self.study.blocks):
            for t, task in list(enumerate(order))[max(1, self.begun) :]:
                for path, parameter in self.parameters.items():
                    for value in (
                        self.worth_trying(parameter, f"{path}.{task}", base) if parameter.per_task else []
                    ):
                        tried.append((f"{path}.{task}", value, block))
                        queries.append(Query({**base, f"{path}.{task}": value}, t + 1, None, block))
        answers: Any = yield queries
        best = dict(base)
        for name in dict.fromkeys(name for name, _, _ in tried):
            rows: dict[Value, list[np.ndarray]] = {}
            for (of, value, block), answer in zip(tried, answers, strict=True):
                if of == name and answer is not None:
                    rows.setdefault(value, []).append(self.hopes.gone_on(answer, evidence, block))
            if not rows:  # all of them failed
                continue
            full = [value for value, row in rows.items() if len(row) == max(map(len, rows.values()))]
            table = np.array([np.mean(rows[value], axis=0) for value in full])
            of_knob = {name: distribution(self.parameters[name.rpartition(".")[0]])}
            read = smoothed(table, [0] * len(full), [{name: value} for value in full], of_knob)
            of = [self.hopes.values_of(row) for row in read]
            best[name] = full[preferred(of, [{name: value} for value in full])[0]]
        if best != base:
            yield [Query(best, len(self.study.task_names))]

    def worth_trying(self, parameter: SearchParameter, path: str, base: Setting) -> list[Value]:
        """Values for the revision: all listed ones; those of its level where the task has one place."""
        task = path.rpartition(".")[2]
        if len({order.index(task) for order in self.study.all_orders}) > 1:
            return list(dict.fromkeys([base[path], *listed(parameter, self.search.values_per_task)]))

        def unlike(state: State) -> int:
            return sum(state.setting.get(k) != v for k, v in base.items() if k != path)

        near = sorted((s for s in self.hopes.states if path in s.setting), key=unlike)
        return list(dict.fromkeys(s.setting[path] for s in near))[: self.search.values_per_task]

    # -- the audit ---------------------------------------------------------------------------------

    def audit(self) -> Iterator[list[Query]]:
        """Finish dropped states, drawn from all places alike, until the share of the stages is spent."""
        winner, count = self.best(), len(self.study.task_names)
        open_ = [s for s in self.dropped if s.depth < count]
        if winner is None or not open_ or not self.search.audit_fraction:
            return
        spent = len(self.hopes.states)  # stages a block: each state was one
        left = max(
            spent * self.search.audit_fraction / (1 - self.search.audit_fraction),
            count - max(s.depth for s in open_),
        )

        def one_of(things: list[Any], purpose: str) -> Any:
            return things[rng.below(len(things), self.search.seed, "", purpose, len(open_))]

        chosen: list[State] = []
        while open_:
            depths = sorted({s.depth for s in open_})
            depth = one_of(depths, "audit")
            state = one_of([s for s in open_ if s.depth == depth], "audited")
            open_.remove(state)
            if (left := left - (count - state.depth)) < 0:
                break
            chosen.append(state)
        values_of_winner = self.proposed[winner].setting
        first = len(self.proposed)
        yield [Query({**values_of_winner, **state.setting}, count) for state in chosen]
        self.audited = [Dropped(state, first + i) for i, state in enumerate(chosen)]


def halvings(branches: int, tasks: int) -> set[int]:
    """Places after which the outer combinations are halved, evenly over the tasks as far as these go."""
    times = ceil(log2(branches)) if branches > 1 else 0
    return {1 + ceil(r * (tasks - 1) / (times + 1)) for r in range(1, times + 1)}
