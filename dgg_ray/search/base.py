"""Proposes what to try next, in a sequence that no machine's speed can change.

    Probe     a setting, on every block of the search, as far as `depth` tasks of each order
    Method    ask for a query, tell what the store says of it, ask what is best

A method is a pure function of the study and of what it was told. Optuna's samplers learn from results in
the order in which they arrive, and that depends on the machine; here whole setting n is proposed
knowing the results of the settings 0 … n - parallel and of no others, told in their order, and
stagewise batches wait for each other. So a study that was killed and run again, on another machine or
with more workers, proposes the same; and with the stages in the store, it is there where it was in a
second. What `optuna-dashboard` shows is a copy (dashboard.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import TrialState

from dgg_ray.config.sections import Constraint, Search
from dgg_ray.config.study import Setting, Study
from dgg_ray.core import plugins
from dgg_ray.core.fence import Fence
from dgg_ray.search.dashboard import Copy
from dgg_ray.search.objective import Evidence, Values, by_block, own_scores, preferred, values
from dgg_ray.search.pruning import PruningTest, paired_spread
from dgg_ray.search.space import grid, optuna_study, space, warm_start


def limits(search: Search) -> list[Constraint]:
    """The search's constraints."""
    return [c for text in search.constraints if (c := Constraint.parse(text))]


class Query(NamedTuple):
    """What is to be judged.

    depth: tasks of each order; prune_level: against whom, where it may be given up; block: the only one of the
    study's blocks that is asked for; None is all.
    """

    setting: Setting
    depth: int
    pruning_test: PruningTest | None = None
    block: int | None = None


class Method(ABC):
    """Ask for a query, tell what came of it.

    proposed: every query so far, by number; told: what the store said of it, None where a run failed.
    """

    def __init__(self, study: Study) -> None:
        assert study.search is not None
        self.study, self.search = study, study.search
        self.constraints = limits(self.search)
        self.proposed: list[Query] = []
        self.told: dict[int, Evidence | None] = {}
        self.returned: deque[tuple[int, Query]] = deque()

    @abstractmethod
    def next(self) -> Query | None:
        """The next query; None while results that it must know are open, or when all are out."""

    @property
    @abstractmethod
    def out(self) -> bool:
        """Whether no further query will come."""

    def ask(self) -> tuple[int, Query] | None:
        if self.returned:
            return self.returned.popleft()
        query = self.next()
        if query is None:
            return None
        self.proposed.append(query)
        return len(self.proposed) - 1, query

    def put_back(self, number: int, query: Query) -> None:
        """Return a query that was asked for and not judged; it is the next to be asked for."""
        self.returned.append((number, query))

    def tell(self, number: int, evidence: Evidence | None) -> None:
        """What came of query `number`; None where it could not be judged."""
        self.told[number] = evidence

    @property
    def finished(self) -> bool:
        return self.out and not self.returned and len(self.told) == len(self.proposed)

    def values(self, evidence: Evidence) -> Values:
        return values(evidence, self.search.objective, self.constraints)

    def judged(self) -> dict[int, Values]:
        """Numbers of the settings judged to the end of every block, each setting once."""
        found: dict[int, Values] = {}
        settings = []
        for number, evidence in sorted(self.told.items()):
            query = self.proposed[number]
            short = query.depth < len(self.study.names) or query.block is not None
            if evidence is None or short or query.setting in settings:
                continue
            of = self.values(evidence)
            if np.isfinite(of.objective).all():
                found[number] = of
                settings.append(query.setting)
        return found

    def ranking(self) -> list[int]:
        """Numbers of the settings judged to the end, best first."""
        judged = self.judged()
        numbers = list(judged)
        settings = [self.proposed[n].setting for n in numbers]
        return [numbers[i] for i in preferred([judged[n] for n in numbers], settings)]

    def best(self) -> int | None:
        """Number of the recommended setting; None while none was judged."""
        return next(iter(self.ranking()), None)

    def winner(self) -> Setting | None:
        """The recommended setting."""
        best = self.best()
        return None if best is None else self.proposed[best].setting


class Batches(Method):
    """A method written as one generator: it yields lists of queries and is sent their evidence."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self.steps = self.batches()
        self.first, self.batch, self.over = 0, next(self.steps, []), False
        self.over = not self.batch

    @abstractmethod
    def batches(self) -> Iterator[list[Query]]:
        """A generator; what it is sent for a batch is a list of evidence, None for what failed."""

    def next(self) -> Query | None:
        while not self.over:
            handed = len(self.proposed) - self.first
            if handed < len(self.batch):
                return self.batch[handed]
            numbers = range(self.first, len(self.proposed))
            if any(n not in self.told for n in numbers):
                return None
            self.first = len(self.proposed)
            try:
                self.batch = self.steps.send([self.told[n] for n in numbers])  # type: ignore[attr-defined]
            except StopIteration:
                self.over = True
        return None

    @property
    def out(self) -> bool:
        return self.over

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if not self.returned and (query := self.next()) is not None:
            self.proposed.append(query)  # known at once: whether more will come, and what
            self.returned.append((len(self.proposed) - 1, query))


class Whole(Method):
    """Whole settings, each judged on every block unless it falls behind in a race."""

    def __init__(self, study: Study, database: Path | None = None, fence: Fence | None = None) -> None:
        super().__init__(study)
        self.space = space(study, self.search)
        self.grid = grid(self.space, self.search.seed) if self.search.method == "grid" else []
        self.passed_on = 0  # results up to here are known to the sampler
        self.trials: list[optuna.Trial] = []
        self.optuna = optuna_study(study, self.search)
        objectives = self.search.objective
        self.copy = Copy(self.optuna, objectives, database, fence or Fence()) if database else None
        warm_start(self.optuna, self.space, study.warm)
        for setting in self.grid:
            self.optuna.enqueue_trial(dict(setting))
        if self.copy:
            self.copy.update()

    @property
    def count(self) -> int:
        """Settings that there will be in all."""
        return len(self.grid) or self.search.trials

    @property
    def out(self) -> bool:
        return len(self.proposed) >= self.count

    def next(self) -> Query | None:
        known = len(self.proposed) - self.search.parallel  # up to this one, and it too
        if self.out or any(n not in self.told for n in range(known + 1)):
            return None
        while self.passed_on <= known:
            self._pass_on(self.passed_on)
        trial = self.optuna.ask(dict(self.space))
        self.trials.append(trial)
        setting = {path: trial.params[path] for path in self.space}
        return Query(setting, len(self.study.names), self.pruning_test(known))

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        if self.finished:
            while self.passed_on < self.count:
                self._pass_on(self.passed_on)

    def _pass_on(self, number: int) -> None:
        of, trial = self.estimate(number), self.trials[number]
        if of is not None and self.constraints:
            trial.set_user_attr("excess", list(of.excess))
        state = TrialState.FAIL if of is None else TrialState.COMPLETE
        self.optuna.tell(trial, None if of is None else list(of.objective), state=state)
        self.passed_on += 1
        if self.copy:
            self.copy.update()

    def estimate(self, number: int) -> Values | None:
        """The setting's values; of one that was given up, the best one's plus its differences so far."""
        evidence, pruning_test = self.told[number], self.proposed[number].pruning_test
        if evidence is None:
            return None
        of = self.values(evidence)
        if np.isfinite(of.objective).all() or pruning_test is None:
            return of if np.isfinite(of.objective).all() else None
        judged = {n: v for n, v in self.judged().items() if n <= number - self.search.parallel}
        baseline = next(n for n in judged if self.proposed[n].setting == pruning_test.incumbents[0])
        best = self.told[baseline]
        assert best is not None
        names = self.search.objective
        mine = by_block(evidence, names, self.constraints)  # nan in blocks that it did not finish
        theirs = by_block(best, names, self.constraints)
        there = ~np.isnan(mine[:, : len(names)]).any(axis=1)
        if not there.any():  # given up inside its first block: no better than the worst that is known
            worst = tuple(min(v.objective[j] for v in judged.values()) for j in range(len(names)))
            return Values(worst, tuple(1.0 for _ in self.constraints))
        gaps = (mine - theirs)[there, : len(names)].mean(axis=0)
        kept = mine[there, len(names) :].mean(axis=0)
        objective = theirs[:, : len(names)].mean(axis=0) + gaps
        return Values(tuple(objective.tolist()), tuple(np.maximum(-kept, 0.0).tolist()))

    def pruning_test(self, known: int) -> PruningTest | None:
        """Against the best of the settings up to `known`; None where that says nothing yet."""
        judged = {n: v for n, v in self.judged().items() if n <= known} if self.search.prune_level else {}
        if len(judged) < 2 or len(self.study.blocks) < 2:
            return None
        numbers = list(judged)
        settings = [self.proposed[n].setting for n in numbers]
        order = [numbers[i] for i in preferred([judged[n] for n in numbers], settings)]
        best = judged[order[0]]
        if any(best.excess):
            return None  # nothing that may be recommended is known
        from dgg_ray.stats.intervals import clusters_of  # late: SciPy, which trials do without

        evidence = {n: self.told[n] for n in numbers}
        clusters = clusters_of(self.study.named_blocks)
        spread = []
        for name in self.search.objective:
            score = plugins.find("metrics", name)
            table = np.array([[score(s) for s in e.scores] for e in evidence.values() if e])
            spread.append(paired_spread(table, clusters))
        if any(not freedom for _, freedom in spread):
            return None
        orders = [order for order, _ in self.study.blocks]
        runs = [pair for e in evidence.values() if e for pair in zip(orders, e.scores, strict=True)]
        hopes = {task: max(scores) for task, scores in own_scores(runs).items()}
        count = 1 if len(self.search.objective) == 1 else 3
        incumbents = tuple(self.proposed[n].setting for n in order[:count] if not any(judged[n].excess))
        assert self.search.prune_level is not None
        return PruningTest(incumbents, self.search.prune_level / len(judged), hopes, tuple(spread), clusters)
