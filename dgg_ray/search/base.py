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
from typing import NamedTuple

import numpy as np

from dgg_ray.config.sections import Constraint, Search
from dgg_ray.config.study import Setting, Study
from dgg_ray.search.objective import Evidence, Values, preferred, values
from dgg_ray.search.pruning import PruningTest


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


class SearchMethod(ABC):
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
            short = query.depth < len(self.study.task_names) or query.block is not None
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


class BatchedSearch(SearchMethod):
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
