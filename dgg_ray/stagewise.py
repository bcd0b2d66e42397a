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

A state is judged by the objective of its run completed pessimistically: each later stage leaves the lower
quartile of what stages of good states left so far, by a task's age, and tasks not yet learned reach the
lowest score seen on them (`preference.completed`). States are ranked by a curve through all values tried,
not by single points.

Greedy choices can be wrong: the best state at task 2 need not be the best at task T (Renate,
awslabs/Renate issue 58), and with several orders a task is decided where it comes first. So the choice is
revised once, place by place, with what the best run became. And a share of the stages, `audit`, finishes
branches that were dropped, with the winner's values for what they had not decided: how often, and by how
much, one of them ends above the best kept one is reported, and such a branch is recommended if it wins. Its
later values were chosen for another state, so the audit can miss an error and cannot invent one.

Settings that are not per task (rank, buffer) are outer combinations, each with a beam of its own; their
number is halved at even distances along the tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from math import ceil, inf, log2
from typing import Any, NamedTuple

import numpy as np

from dgg_ray import draws
from dgg_ray.contracts import ScoreMatrix
from dgg_ray.preference import (
    Evidence,
    Values,
    by_block,
    completed,
    followed,
    kept_shares,
    own_scores,
    preferred,
    smoothed,
    summary,
)
from dgg_ray.search import Batches, Probe
from dgg_ray.sections import Value
from dgg_ray.space import CategoricalDistribution, Known, Space, contains, distribution, listed, propose
from dgg_ray.study import Setting, Study

PESSIMISTIC = 0.25  # quantile of what is known
MOST = 4096  # combinations that are looked at


class State(NamedTuple):
    """A setting for the tasks placed so far, and what it came to. depth: tasks of each order."""

    setting: Setting
    depth: int
    evidence: Evidence


class Level(NamedTuple):
    """What was tried at one place for one outer combination. hoped: as read off the curve; kept: the beam."""

    depth: int
    states: list[State]
    hoped: list[Values]
    kept: list[State]


class Dropped(NamedTuple):
    """A state that was not kept. number: of the probe that finished it in the audit, None if none did."""

    state: State
    number: int | None = None


@dataclass
class Branch:
    """One outer combination with its beam."""

    outer: Setting
    beam: list[State] = field(default_factory=list)


class Stagewise(Batches):
    """See the head of this file. audited: dropped states with the probe that finished each."""

    def __init__(self, study: Study, warm: Sequence[Known] = ()) -> None:
        assert study.search is not None
        self.warm = [setting for setting, _ in warm[:3]]
        self.knobs = study.search.space
        self.states: list[State] = []  # all that were ever judged
        self.dropped: list[State] = []
        self.levels: list[Level] = []
        self.audited: list[Dropped] = []
        self.asked, self.answer = (0, 0), ({}, [])  # of `known`, which is asked for many states in turn
        super().__init__(study)

    # -- the search --------------------------------------------------------------------------------

    def batches(self) -> Iterator[list[Probe]]:
        orders, count = self.study.all_orders, len(self.study.names)
        branches = [Branch(outer) for outer in self.outer()]
        rungs = halvings(len(branches), count)
        decided: set[str] = set()
        for depth in range(2, count + 1):
            placed = {order[depth - 1] for order in orders}
            fresh = [name for name in self.study.names if name in placed - decided]
            decided |= placed
            yield from self.level(branches, depth, fresh)
            branches = [branch for branch in branches if branch.beam]
            if depth in rungs:
                branches = self.halve(branches)
        yield from self.revise()
        yield from self.audit()

    def outer(self) -> list[Setting]:
        """Combinations of the settings that are not per task."""
        knobs = {path: distribution(k) for path, k in self.knobs.items() if not k.per_task}
        first = [{k: s[k] for k in knobs} for s in self.warm if all(k in s for k in knobs)]
        return propose(knobs, self.search.seed, self.search.outer, [], first) if knobs else [{}]

    def level(self, branches: list[Branch], depth: int, fresh: Sequence[str]) -> Iterator[list[Probe]]:
        """One place of the orders: two rounds of new values, then what the tried ones make together."""
        knobs = {
            f"{path}.{name}": distribution(k)
            for path, k in self.knobs.items()
            if k.per_task
            for name in fresh
        }
        parents = [(b, p) for b, branch in enumerate(branches) for p in range(max(1, len(branch.beam)))]
        found: dict[tuple[int, int], list[State]] = {place: [] for place in parents}
        for ideas in (self.first_half, self.second_half, self.together):
            batch: list[tuple[tuple[int, int], Setting]] = []
            for b, p in parents:
                base = branches[b].beam[p].setting if branches[b].beam else branches[b].outer
                seed = draws.integer(self.search.seed, f"{depth} {p}", "stagewise") % 2**32
                for new in ideas(knobs, found[b, p], seed):
                    batch.append(((b, p), {**base, **new}))
            answers: Any = (yield [Probe(setting, depth) for _, setting in batch]) if batch else []
            for (place, setting), evidence in zip(batch, answers, strict=True):
                if evidence is not None and self.judgeable(evidence, depth):
                    found[place].append(State(setting, depth, evidence))
                    self.states.append(found[place][-1])
        for b, branch in enumerate(branches):
            here = [(p, state) for (of, p), states in found.items() if of == b for state in states]
            states = [state for _, state in here]
            tables = np.array([self.hoped_table(state).mean(axis=0) for state in states])
            read = [
                self.values_of(row)
                for row in smoothed(tables, [p for p, _ in here], [s.setting for s in states], knobs)
            ]
            best = [states[i] for i in preferred(read)]
            branch.beam = best[: self.search.beam]
            self.dropped += best[self.search.beam :]
            self.levels.append(Level(depth, states, read, branch.beam))

    def first_half(self, knobs: Space, known: list[State], seed: int) -> list[Setting]:
        """Values that say most about each task by itself: listed ones in turn, or half of the tries."""
        if not knobs:
            return [{}]
        sizes = [len(d.choices) if isinstance(d, CategoricalDistribution) else inf for d in knobs.values()]
        if max(sizes) <= self.search.tries:  # every value of every task, side by side
            return [
                {k: d.choices[i % len(d.choices)] for k, d in knobs.items()}  # type: ignore[union-attr]
                for i in range(int(max(sizes)))
            ]
        warm = [{k: s[k] for k in knobs} for s in self.warm if all(k in s for k in knobs)]
        usable = [s for s in warm if all(contains(knobs[k], v) for k, v in s.items())]
        return propose(knobs, seed, ceil(self.search.tries / 2), [], usable)

    def second_half(self, knobs: Space, known: list[State], seed: int) -> list[Setting]:
        """Values that Optuna proposes, knowing the first ones."""
        if (left := self.search.tries - len(known)) <= 0 or not knobs or not known:
            return []
        ranked = [known[i].setting for i in preferred(self.hoped(known))]
        return propose(knobs, seed + 1, left, [{k: setting[k] for k in knobs} for setting in ranked])

    def together(self, knobs: Space, known: list[State], seed: int) -> list[Setting]:
        """Best combinations of the values tried: where every order meets one fresh task, they cost nothing.

        A stage depends on the values of the tasks before it in its own order and of no others. So what two
        tries gave on different orders can be put together, and every stage of it is there.
        """
        if len(knobs) < 2 or not known:
            return []
        tables = {id(s): self.hoped_table(s) for s in known}
        # Per block: which tried state stands for these values of the knobs that bear on it.
        bears = [
            tuple(k for k in knobs if k.rpartition(".")[2] in order[: known[0].depth])
            for order, _ in self.study.blocks
        ]
        there = [{tuple(s.setting[k] for k in b): s for s in known} for b in bears]
        tried = [list(dict.fromkeys(s.setting[k] for s in known)) for k in knobs]
        found: list[Setting] = []
        tabled: list[np.ndarray] = []
        for values in islice(product(*tried), MOST):
            setting = dict(zip(knobs, values, strict=True))
            parts = [of.get(tuple(setting[k] for k in b)) for of, b in zip(there, bears, strict=True)]
            if all(parts) and all(setting != {k: s.setting[k] for k in knobs} for s in known):
                found.append(setting)
                tabled.append(np.stack([tables[id(s)][i] for i, s in enumerate(parts)]))
        of = [self.values_of(table) for table in tabled]
        return [found[i] for i in preferred(of)[: self.search.beam]]

    def halve(self, branches: list[Branch]) -> list[Branch]:
        """The better half of the outer combinations, by the best state of each."""
        ranked = preferred(self.hoped([branch.beam[0] for branch in branches]))
        keep = ceil(len(branches) / 2)
        for i in ranked[keep:]:
            self.dropped += branches[i].beam
        return [branches[i] for i in sorted(ranked[:keep])]

    def revise(self) -> Iterator[list[Probe]]:
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
        probes: list[Probe] = []
        for block, (order, _) in enumerate(self.study.blocks):
            for t, task in enumerate(order[1:], start=1):
                for path, knob in self.knobs.items():
                    for value in listed(knob, self.search.tries) if knob.per_task else []:
                        tried.append((f"{path}.{task}", value, block))
                        probes.append(Probe({**base, f"{path}.{task}": value}, t + 1, None, block))
        answers: Any = yield probes
        best = dict(base)
        for name in dict.fromkeys(name for name, _, _ in tried):
            rows: dict[Value, list[np.ndarray]] = {}
            for (of, value, block), answer in zip(tried, answers, strict=True):
                if of == name and answer is not None:
                    rows.setdefault(value, []).append(self.gone_on(answer, evidence, block))
            full = [value for value, row in rows.items() if len(row) == max(map(len, rows.values()))]
            table = np.array([np.mean(rows[value], axis=0) for value in full])
            of_knob = {name: distribution(self.knobs[name.rpartition(".")[0]])}
            read = smoothed(table, [0] * len(full), [{name: value} for value in full], of_knob)
            best[name] = full[preferred([self.values_of(row) for row in read])[0]]
        if best != base:
            yield [Probe(best, len(self.study.names))]

    def gone_on(self, evidence: Evidence, winner: Evidence, block: int) -> np.ndarray:
        """One block's row of `by_block`, carried on as the winner's run on that block went on."""
        ended = Evidence(
            [followed(evidence.scores[0], winner.scores[block])],
            {name: [followed(m[0], winner.beside[name][block])] for name, m in evidence.beside.items()},
        )
        return by_block(ended, self.search.objective, self.constraints)[0]

    # -- judging what is not finished --------------------------------------------------------------

    def judgeable(self, evidence: Evidence, depth: int) -> bool:
        return all(not np.isnan(s.R[depth - 1, :depth]).any() for s in evidence.scores)

    def values_of(self, table: np.ndarray) -> Values:
        return summary(np.atleast_2d(table), len(self.search.objective))

    def hoped(self, states: Sequence[State]) -> list[Values]:
        """Values of the states' runs, completed pessimistically."""
        return [self.values_of(self.hoped_table(s)) for s in states]

    def hoped_table(self, state: State) -> np.ndarray:
        """`by_block` of the state's runs, completed by what all states judged so far make of it."""
        orders = [order for order, _ in self.study.blocks]
        lowest, kept = self.known(state.depth)

        def end(scores: Sequence[ScoreMatrix]) -> list[ScoreMatrix]:
            return [completed(m, order, lowest, kept, 0.0) for m, order in zip(scores, orders, strict=True)]

        beside = {name: end(scores) for name, scores in state.evidence.beside.items()}
        ended = Evidence(end(state.evidence.scores), beside)
        return by_block(ended, self.search.objective, self.constraints)

    def known(self, depth: int) -> tuple[dict[str, float], list[float]]:
        """(Lowest own score of each task, share kept at each age by the better half at this depth)."""
        if (depth, len(self.states)) != self.asked:
            orders = [order for order, _ in self.study.blocks]
            runs = [pair for s in self.states for pair in zip(orders, s.evidence.scores, strict=True)]
            lowest = {task: min(scores) for task, scores in own_scores(runs).items()}
            here = [s for s in self.states if s.depth == depth]
            here.sort(key=lambda s: -float(np.mean([m.R[depth - 1, :depth] for m in s.evidence.scores])))
            good = [m for s in here[: ceil(len(here) / 2)] for m in s.evidence.scores]
            self.asked, self.answer = (depth, len(self.states)), (lowest, kept_shares(good, PESSIMISTIC))
        return self.answer

    # -- the audit ---------------------------------------------------------------------------------

    def audit(self) -> Iterator[list[Probe]]:
        """Finish dropped states, drawn from all places alike, until the share of the stages is spent."""
        winner, count = self.best(), len(self.study.names)
        open_ = [s for s in self.dropped if s.depth < count]
        if winner is None or not open_ or not self.search.audit:
            return
        spent = len(self.states)  # stages a block: each state was one
        left = max(spent * self.search.audit / (1 - self.search.audit), count - max(s.depth for s in open_))
        rng = draws.generator(self.search.seed, "", "audit")
        chosen: list[State] = []
        while open_:
            depths = sorted({s.depth for s in open_})
            among = [s for s in open_ if s.depth == depths[rng.integers(len(depths))]]
            state = among[rng.integers(len(among))]
            open_.remove(state)
            if (left := left - (count - state.depth)) < 0:
                break
            chosen.append(state)
        values_of_winner = self.proposed[winner].setting
        first = len(self.proposed)
        yield [Probe({**values_of_winner, **state.setting}, count) for state in chosen]
        self.audited = [Dropped(state, first + i) for i, state in enumerate(chosen)]


def halvings(branches: int, tasks: int) -> set[int]:
    """Places after which the outer combinations are halved, evenly over the tasks; one is left at the end."""
    times = ceil(log2(branches)) if branches > 1 else 0
    return {1 + ceil(r * (tasks - 1) / (times + 1)) for r in range(1, times + 1)}
