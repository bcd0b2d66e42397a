"""Search task by task: successive halving that chooses each task's settings on the best states so far.

    for each depth t = 2 … T of the orders:
        for each kept state (a setting of the tasks before t):
            try `values_per_task` values for the tasks that first appear at t     one stage per block each
        keep the best `beam` states; at every other rung, drop half of the global candidates

A whole setting costs T stages and yields one number. Here a stage is evaluated as soon as it is trained, on
the state that it would really start from, and nothing before it is trained again. With 5 values, 6 tasks and
a beam of 2 that is 46 stages a block in place of 5⁶ sequences. α follows the task's name. Where orders
differ, all of a setting's orders are evaluated together, and a task is decided at the first depth at which it
appears in any of them.

The search assumes that the effect of one task's value depends little on the others', and that neighbouring
values act alike. Where that fails, a wider search or another one is better: under a response model in which
guidance pays off later, the default ends 2.5 points below the best setting, and one α for all tasks 1.4
(docs/benchmarks.md). The search with a model of single stages (stage_model_search.py) does not assume it.

A state is evaluated by the objective of its run, extrapolated with a pessimistic guess and read off a fitted
curve (extrapolation.py).

Greedy choices can be wrong: the best state at task 2 need not be the best at task T (Renate, awslabs/Renate
issue 58), and with several orders a task is decided where it comes first. Two steps address this. The choice
is refined once, depth by depth, with what the best run became. And the audit spends a share of the stages,
`audit_fraction`, on finishing branches that were dropped, with the winner's values for the tasks that they
had not decided. The report says how often one of them ends above the best kept branch, and by how much; such
a branch is recommended if it wins. Scores are noisy, so a branch may end above by luck. It counts as an error
only where its interval says so, for all audited branches at once (optimism.py). And errors can be missed: a
branch's later values were chosen for another state, and the kept one is the luckiest of all settings on these
blocks.

Settings that are not per task (rank, buffer) form the global candidates: combinations with a beam each. Their
number is halved at even steps along the tasks.

Where the study goes on from an older one with fewer tasks (`WarmStart.depth`), that study's best settings
are the beam with which it begins. Only the depths after them are searched and refined, and only these cost
stages.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from math import ceil, inf, log2
from typing import Any, NamedTuple

import numpy as np

from dgg_ray.config.sections import SearchParameter, Value
from dgg_ray.config.study import Setting, Study
from dgg_ray.core import rng
from dgg_ray.search.base import BatchedSearch, Query, parse_constraints
from dgg_ray.search.extrapolation import Extrapolator, PartialSetting
from dgg_ray.search.objective import Values, fit_response, rank_settings
from dgg_ray.search.optuna_search import propose
from dgg_ray.search.space import CategoricalDistribution, Space, distribution_of, value_list
from dgg_ray.search.whole_settings import WARM_SETTINGS

# (per-task search space, states evaluated so far, seed) → values to try next
ValueProposer = Callable[[Space, list[PartialSetting], int], list[Setting]]
MOST_COMBINATIONS = 4096  # of tried values, that are looked at


class Level(NamedTuple):
    """The values tried at one depth for one global candidate.

    extrapolated: the states' values as read off the fitted curve; kept: the beam.
    """

    depth: int
    states: list[PartialSetting]
    extrapolated: list[Values]
    kept: list[PartialSetting]


class Dropped(NamedTuple):
    """A state that was not kept. number: of the query that finished it in the audit; None if none did."""

    state: PartialSetting
    number: int | None = None


@dataclass
class Branch:
    """A global candidate with its beam."""

    candidate: Setting
    beam: list[PartialSetting] = field(default_factory=list)

    @property
    def parents(self) -> list[Setting]:
        """The settings that new values are added to."""
        return [state.setting for state in self.beam] or [self.candidate]


@dataclass
class Parent:
    """A setting at one depth of the search, and the states that were tried on it."""

    branch: int
    number: int
    setting: Setting
    states: list[PartialSetting] = field(default_factory=list)


class Stagewise(BatchedSearch):
    """Successive halving over the tasks; see the head of this file.

    levels: what was tried at each depth. audited: dropped states with the query that finished each.
    """

    def __init__(self, study: Study) -> None:
        assert study.search is not None
        warm_starts = study.data.warm_starts
        self.first_depth = max((start.depth for start in warm_starts), default=0)  # decided by an older study
        self.warm = [start.setting for start in warm_starts if start.depth == self.first_depth]
        self.parameters = study.search.space
        orders = [order for order, _ in study.blocks]
        self.extrapolator = Extrapolator(orders, study.search.objective, parse_constraints(study.search))
        self.dropped: list[PartialSetting] = []
        self.levels: list[Level] = []
        self.audited: list[Dropped] = []
        super().__init__(study)

    # -- the search --------------------------------------------------------------------------------

    def batches(self) -> Iterator[list[Query]]:
        orders, tasks = self.study.all_orders, self.study.task_names
        if self.first_depth:
            branches = yield from self.resume()
        else:
            branches = [Branch(candidate) for candidate in self.global_candidates()]
        halvings = halving_depths(len(branches), len(tasks))
        decided = set(orders[0][: self.first_depth])
        for depth in range(max(2, self.first_depth + 1), len(tasks) + 1):
            placed = {order[depth - 1] for order in orders}
            new_tasks = [name for name in tasks if name in placed - decided]
            decided |= placed
            yield from self.search_level(branches, depth, new_tasks)
            branches = [branch for branch in branches if branch.beam]
            if depth in halvings:
                branches = self.halve(branches)
        yield from self.refine()
        yield from self.audit()

    def resume(self) -> Generator[list[Query], Any, list[Branch]]:
        """Begin with the best settings of the older study, at the global candidate of the best one."""
        global_paths = [path for path, parameter in self.parameters.items() if not parameter.per_task]
        candidate = {path: self.warm[0][path] for path in global_paths}
        same = [s for s in self.warm if all(s[path] == value for path, value in candidate.items())]
        settings = same[: self.search.beam]
        answers: Any = yield [Query(setting, self.first_depth) for setting in settings]
        states = [
            self.extrapolator.add(setting, self.first_depth, evidence)
            for setting, evidence in zip(settings, answers, strict=True)
        ]
        beam = [state for state in states if state]
        return [Branch(candidate, beam)] if beam else []

    def global_candidates(self) -> list[Setting]:
        """Propose combinations of the settings that are not per task."""
        space = {path: distribution_of(p) for path, p in self.parameters.items() if not p.per_task}
        if not space:
            return [{}]
        return propose(space, self.search.seed, self.search.global_candidates, [], self.warm_values(space))

    def search_level(
        self, branches: list[Branch], depth: int, new_tasks: Sequence[str]
    ) -> Generator[list[Query], Any, None]:
        """Search one depth: two rounds of new values, then the best combinations of the tried ones."""
        space = {
            f"{path}.{name}": distribution_of(parameter)
            for path, parameter in self.parameters.items()
            if parameter.per_task
            for name in new_tasks
        }
        parents = [
            Parent(b, p, setting)
            for b, branch in enumerate(branches)
            for p, setting in enumerate(branch.parents)
        ]
        for propose_values in (self.first_round, self.second_round, self.combinations):
            yield from self.try_values(parents, depth, space, propose_values)
        for b, branch in enumerate(branches):
            self.keep_best(branch, depth, space, [parent for parent in parents if parent.branch == b])

    def try_values(
        self, parents: list[Parent], depth: int, space: Space, propose_values: ValueProposer
    ) -> Generator[list[Query], Any, None]:
        """Evaluate what `propose_values` proposes on each parent, and add the states to it."""
        batch: list[tuple[Parent, Setting]] = []
        for parent in parents:
            seed = rng.integer(self.search.seed, f"{depth} {parent.number}", "stagewise") % 2**32
            for values in propose_values(space, parent.states, seed):
                batch.append((parent, {**parent.setting, **values}))
        answers: Any = (yield [Query(setting, depth) for _, setting in batch]) if batch else []
        for (parent, setting), evidence in zip(batch, answers, strict=True):
            if state := self.extrapolator.add(setting, depth, evidence):
                parent.states.append(state)

    def keep_best(self, branch: Branch, depth: int, space: Space, parents: list[Parent]) -> None:
        """Keep the branch's best states as its beam, and note what was dropped."""
        tried = [(parent.number, state) for parent in parents for state in parent.states]
        states = [state for _, state in tried]
        values = self.extrapolator.read_off_curve(states, [number for number, _ in tried], space)
        ranking = [states[i] for i in rank_settings(values, [state.setting for state in states])]
        branch.beam = ranking[: self.search.beam]
        self.dropped += ranking[self.search.beam :]
        self.levels.append(Level(depth, states, values, branch.beam))

    # -- which values are tried --------------------------------------------------------------------

    def warm_values(self, space: Space) -> list[Setting]:
        """Return what the best settings of older studies say of this part of the space."""
        return [part for setting in self.warm[:WARM_SETTINGS] if (part := within(setting, space))]

    def first_round(self, space: Space, states: list[PartialSetting], seed: int) -> list[Setting]:
        """Propose the values that say most about each task alone: listed ones in turn, or half of them."""
        if not space:
            return [{}]
        sizes = [len(d.choices) if isinstance(d, CategoricalDistribution) else inf for d in space.values()]
        if max(sizes) <= self.search.values_per_task:  # every value of every task, side by side
            return [
                {path: d.choices[i % len(d.choices)] for path, d in space.items()}  # type: ignore[union-attr]
                for i in range(int(max(sizes)))
            ]
        return propose(space, seed, ceil(self.search.values_per_task / 2), [], self.warm_values(space))

    def second_round(self, space: Space, states: list[PartialSetting], seed: int) -> list[Setting]:
        """Let Optuna propose values, given the results of the first round."""
        left = self.search.values_per_task - len(states)
        if left <= 0 or not space or not states:
            return []
        ranking = rank_settings(self.extrapolator.extrapolate(states), [state.setting for state in states])
        best_first = [states[i].setting for i in ranking]
        return propose(space, seed + 1, left, [{path: s[path] for path in space} for s in best_first])

    def combinations(self, space: Space, states: list[PartialSetting], seed: int) -> list[Setting]:
        """Propose the best combinations of tried values; where each order has one new task, they cost
        nothing.

        A stage depends on the values of the tasks before it in its own order, and on no others. So the
        results of two settings on different orders can be put together, and every stage of that is there
        already.
        """
        if len(space) < 2 or not states:
            return []
        tables = {id(state): self.extrapolator.table(state) for state in states}
        depth = states[0].depth
        # Per block: the paths whose values bear on it, and the tried state for each choice of their values.
        relevant = [
            tuple(path for path in space if path.rpartition(".")[2] in order[:depth])
            for order, _ in self.study.blocks
        ]
        state_of = [{tuple(s.setting[path] for path in paths): s for s in states} for paths in relevant]
        values = [list(dict.fromkeys(s.setting[path] for s in states)) for path in space]
        tried = [{path: s.setting[path] for path in space} for s in states]
        settings: list[Setting] = []
        combined: list[np.ndarray] = []
        for choice in islice(product(*values), MOST_COMBINATIONS):
            setting = dict(zip(space, choice, strict=True))
            parts = [
                of.get(tuple(setting[path] for path in paths))
                for of, paths in zip(state_of, relevant, strict=True)
            ]
            if all(parts) and setting not in tried:
                settings.append(setting)
                combined.append(np.stack([tables[id(s)][i] for i, s in enumerate(parts)]))
        ranking = rank_settings([self.extrapolator.values_of(table) for table in combined], settings)
        return [settings[i] for i in ranking[: self.search.beam]]

    def halve(self, branches: list[Branch]) -> list[Branch]:
        """Keep the better half of the global candidates, by the best state of each."""
        heads = [branch.beam[0] for branch in branches]
        ranking = rank_settings(self.extrapolator.extrapolate(heads), [head.setting for head in heads])
        keep = ceil(len(branches) / 2)
        for i in ranking[keep:]:
            self.dropped += branches[i].beam
        return [branches[i] for i in sorted(ranking[:keep])]

    # -- refinement --------------------------------------------------------------------------------

    def refine(self) -> Generator[list[Query], Any, None]:
        """Choose each task's values once more, given how the best run went on.

        Around the best setting, each value is tried for the task at each depth of each order. That is one
        stage on the best run's own state, which is often there already. What follows is taken from the best
        run: the share that each stage left of the tasks before it. The best values of all tasks together are
        one new setting, which is then run to the end.
        """
        winner = self.best()
        if winner is None:
            return
        base, evidence = self.proposed[winner].setting, self.answers[winner]
        assert evidence is not None
        tried: list[tuple[str, Value, int]] = []  # (setting's path, value, block)
        queries: list[Query] = []
        for block, depth, path in self.refined_places():
            for value in self.values_to_refine(self.parameters[path.rpartition(".")[0]], path, base):
                tried.append((path, value, block))
                queries.append(Query({**base, path: value}, depth, None, block))
        answers: Any = yield queries
        rows: dict[str, dict[Value, list[np.ndarray]]] = {path: {} for path, _, _ in tried}
        for (path, value, block), answer in zip(tried, answers, strict=True):
            if answer is not None:
                row = self.extrapolator.continue_to_end(answer, evidence, block)
                rows[path].setdefault(value, []).append(row)
        best = {**base, **{path: self.best_value(path, of) for path, of in rows.items() if of}}
        if best != base:
            yield [Query(best, len(self.study.task_names))]

    def refined_places(self) -> Iterator[tuple[int, int, str]]:
        """(Block, depth, path of the setting) of every per-task setting that is chosen once more."""
        for block, (order, _) in enumerate(self.study.blocks):
            for t, task in list(enumerate(order))[max(1, self.first_depth) :]:
                for path, parameter in self.parameters.items():
                    if parameter.per_task:
                        yield block, t + 1, f"{path}.{task}"

    def best_value(self, path: str, rows: Mapping[Value, Sequence[np.ndarray]]) -> Value:
        """The best value of a setting, read off a curve through those that were tried on all blocks."""
        most = max(map(len, rows.values()))
        values = [value for value, of in rows.items() if len(of) == most]
        table = np.array([np.mean(rows[value], axis=0) for value in values])
        settings = [{path: value} for value in values]
        space = {path: distribution_of(self.parameters[path.rpartition(".")[0]])}
        curve = fit_response(table, [0] * len(values), settings, space)
        return values[rank_settings([self.extrapolator.values_of(row) for row in curve], settings)[0]]

    def values_to_refine(self, parameter: SearchParameter, path: str, base: Setting) -> list[Value]:
        """Values for the refinement: all listed ones; those of its level where the task has one place."""
        task = path.rpartition(".")[2]
        if len({order.index(task) for order in self.study.all_orders}) > 1:
            return list(dict.fromkeys([base[path], *value_list(parameter, self.search.values_per_task)]))

        def distance(state: PartialSetting) -> int:
            return sum(state.setting.get(k) != v for k, v in base.items() if k != path)

        nearest = sorted((s for s in self.extrapolator.states if path in s.setting), key=distance)
        return list(dict.fromkeys(s.setting[path] for s in nearest))[: self.search.values_per_task]

    # -- the audit ---------------------------------------------------------------------------------

    def audit(self) -> Generator[list[Query], Any, None]:
        """Finish dropped states, drawn evenly from all depths, until the share of the stages is spent."""
        winner, count = self.best(), len(self.study.task_names)
        candidates = [s for s in self.dropped if s.depth < count]
        share = self.search.audit_fraction
        if winner is None or not candidates or not share:
            return
        spent = len(self.extrapolator.states)  # stages a block: each state was one
        left = max(spent * share / (1 - share), count - max(s.depth for s in candidates))
        chosen: list[PartialSetting] = []
        while candidates:
            depth = self._draw(sorted({s.depth for s in candidates}), "audit", len(candidates))
            state = self._draw([s for s in candidates if s.depth == depth], "audited", len(candidates))
            candidates.remove(state)
            left -= count - state.depth
            if left < 0:
                break
            chosen.append(state)
        values_of_winner, first = self.proposed[winner].setting, len(self.proposed)
        yield [Query({**values_of_winner, **state.setting}, count) for state in chosen]
        self.audited = [Dropped(state, first + i) for i, state in enumerate(chosen)]

    def _draw(self, things: list[Any], purpose: str, number: int) -> Any:
        return things[rng.below(len(things), self.search.seed, "", purpose, number)]


def within(setting: Setting, space: Space) -> Setting:
    """The part of a setting that a space holds; empty where it lacks a value."""
    return {path: setting[path] for path in space} if all(path in setting for path in space) else {}


def halving_depths(branches: int, tasks: int) -> set[int]:
    """Depths after which the global candidates are halved, evenly along the tasks as far as possible."""
    times = ceil(log2(branches)) if branches > 1 else 0
    return {1 + ceil(r * (tasks - 1) / (times + 1)) for r in range(1, times + 1)}
