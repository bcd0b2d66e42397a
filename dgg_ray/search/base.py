"""Search methods: propose queries in an order that no machine's speed can change.

    Query           a setting, on every block of the search, as far as `depth` tasks of each order
    SearchMethod    is asked for a query, told its evidence, asked for the best setting

A search method is a pure function of the study and of what it was told. Optuna's samplers learn from results
in the order in which they arrive, which depends on the machine. Here whole setting n is proposed from the
results of the settings 0 … n - parallel and of no others, told in their order, and stagewise batches wait for
each other. So a study that was killed and run again, on another machine or with more workers, proposes the
same settings; with the stages in the store, it is where it was within a second.

What people decide meanwhile (config/decisions.py) is part of the study. A query that is stopped is answered
at once, with no evidence, and nobody else sees it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dgg_ray.config.decisions import Decision, pinned_settings, pinning, stopping
from dgg_ray.config.sections import Constraint, Search
from dgg_ray.config.study import Setting, Study
from dgg_ray.search.objective import Evidence, Values, objective_values, rank_settings
from dgg_ray.search.pruning import PruningTest


def parse_constraints(search: Search) -> list[Constraint]:
    """The constraints of a search."""
    return [c for text in search.constraints if (c := Constraint.parse(text))]


class Query(NamedTuple):
    """A setting to be evaluated.

    depth: number of leading tasks of each order.
    pruning_test: the test by which it may be pruned; None evaluates it to the end.
    block: number of the only block that is asked for; None is all.
    """

    setting: Setting
    depth: int
    pruning_test: PruningTest | None = None
    block: int | None = None


class SearchMethod(ABC):
    """Proposes queries and is told their evidence.

    proposed: every query so far, by number.
    answers: the evidence of each query that was answered, by its number; None where a run failed, and for
        those in `stopped`.
    stopped: the decision that stopped a query, by its number.
    label: of the baseline whose search it is; empty for the study's own search.
    """

    label = ""

    def __init__(self, study: Study) -> None:
        assert study.search is not None
        self.study, self.search = study, study.search
        self.constraints = parse_constraints(self.search)
        self.proposed: list[Query] = []
        self.answers: dict[int, Evidence | None] = {}
        self.returned: deque[tuple[int, Query]] = deque()
        self.stopped: dict[int, Decision] = {}
        self.pins = pinned_settings(study.data.decisions)
        self.asked_again: dict[int, str] = {}  # number of a query → id of the pinned setting

    @abstractmethod
    def next(self) -> Query | None:
        """Propose the next query; None while it waits for results, or when there is none left."""

    @property
    @abstractmethod
    def all_proposed(self) -> bool:
        """Return whether `next` will propose no further query."""

    @property
    def exhausted(self) -> bool:
        """Return whether no further query will come, not even for a pinned setting."""
        return self.all_proposed and not self.unfinished_pins()

    def ask(self) -> tuple[int, Query] | None:
        """Return the next query with its number; None while it waits for results, or when there is none left.

        Queries that were stopped are answered here.
        """
        while (proposal := self._take_next()) is not None:
            number, query = proposal
            stop = stopping(self.decisions_about(number, query))
            if stop is None:
                return proposal
            self.stopped[number] = stop
            self.tell(number, None)
        return None

    def _take_next(self) -> tuple[int, Query] | None:
        if self.returned:
            return self.returned.popleft()
        query = self.next() or self._next_pinned()
        return None if query is None else self._add(query)

    def _add(self, query: Query) -> tuple[int, Query]:
        """Add a query to those proposed; a setting that is pinned is not pruned."""
        number = len(self.proposed)
        if query.pruning_test and pinning(self.decisions_about(number, query)):
            query = query._replace(pruning_test=None)
        self.proposed.append(query)
        return number, query

    def look_ahead(self) -> None:
        """Propose the next query already, so that it is known at once whether more will come, and what."""
        if not self.returned and (query := self.next()) is not None:
            self.returned.append(self._add(query))

    # -- decisions ---------------------------------------------------------------------------------

    def decisions_about(self, number: int, query: Query) -> list[Decision]:
        """The decisions that apply to a query: those about its setting from before it was answered."""
        decisions = self.study.data.decisions
        if not decisions:
            return []
        setting = self.study.at(query.setting).id
        return [
            decision
            for decision in decisions
            if decision.concerns(setting, query.setting, self.label)
            and number not in decision.answered.get(self.label, ())
        ]

    def unfinished_pins(self) -> list[Setting]:
        """Pinned settings that this search proposed, has not evaluated to the end and not asked again."""
        left = self.pins.keys() - self.asked_again.values()
        if not left:
            return []
        evaluated = {self.study.at(self.proposed[number].setting).id for number in self.evaluated()}
        proposed = {self.study.at(q.setting).id: q.setting for q in self.proposed if self.asks_for_all(q)}
        return [proposed[pin] for pin in self.pins if pin in left - evaluated and pin in proposed]

    def _next_pinned(self) -> Query | None:
        """Ask again for a pinned setting that was pruned or stopped before; last, when all else is known."""
        if not self.all_proposed or len(self.answers) < len(self.proposed):
            return None
        for setting in self.unfinished_pins():
            self.asked_again[len(self.proposed)] = self.study.at(setting).id
            return Query(setting, len(self.study.task_names))
        return None

    # -- answers -----------------------------------------------------------------------------------

    def return_query(self, number: int, query: Query) -> None:
        """Take back a query that was not answered; it is the next one to be asked for."""
        self.returned.append((number, query))

    def tell(self, number: int, evidence: Evidence | None) -> None:
        """Take the evidence of query `number`; None where a run of it failed."""
        self.answers[number] = evidence

    @property
    def finished(self) -> bool:
        return self.exhausted and not self.returned and len(self.answers) == len(self.proposed)

    def values(self, evidence: Evidence) -> Values:
        return objective_values(evidence, self.search.objective, self.constraints)

    def asks_for_all(self, query: Query) -> bool:
        """Return whether a query asks for all tasks on all blocks."""
        return query.depth == len(self.study.task_names) and query.block is None

    def evaluated(self) -> dict[int, Values]:
        """The values of the settings evaluated to the end of every block, by number; each setting once."""
        found: dict[int, Values] = {}
        settings = []
        for number, evidence in sorted(self.answers.items()):
            query = self.proposed[number]
            if evidence is None or not self.asks_for_all(query) or query.setting in settings:
                continue
            of = self.values(evidence)
            if np.isfinite(of.objective).all():
                found[number] = of
                settings.append(query.setting)
        return found

    def ranking(self) -> list[int]:
        """Numbers of the settings evaluated to the end, the best first."""
        judged = self.evaluated()
        numbers = list(judged)
        settings = [self.proposed[n].setting for n in numbers]
        return [numbers[i] for i in rank_settings([judged[n] for n in numbers], settings)]

    def best(self) -> int | None:
        """Number of the recommended setting; None while none was evaluated."""
        return next(iter(self.ranking()), None)

    def winner(self) -> Setting | None:
        """The recommended setting."""
        best = self.best()
        return None if best is None else self.proposed[best].setting


class BatchedSearch(SearchMethod):
    """A search method written as a generator that yields lists of queries and is sent their evidence."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self.steps = self.batches()
        self.first, self.batch = 0, next(self.steps, [])
        self.over = not self.batch

    @abstractmethod
    def batches(self) -> Iterator[list[Query]]:
        """Yield lists of queries; each yield returns their evidence, None for those that failed."""

    def next(self) -> Query | None:
        while not self.over:
            handed = len(self.proposed) - self.first
            if handed < len(self.batch):
                return self.batch[handed]
            numbers = range(self.first, len(self.proposed))
            if any(n not in self.answers for n in numbers):
                return None
            self.first = len(self.proposed)
            try:
                self.batch = self.steps.send([self.answers[n] for n in numbers])  # type: ignore[attr-defined]
            except StopIteration:
                self.over = True
        return None

    @property
    def all_proposed(self) -> bool:
        return self.over

    def tell(self, number: int, evidence: Evidence | None) -> None:
        super().tell(number, evidence)
        self.look_ahead()
