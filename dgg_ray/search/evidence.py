"""Evidence for settings: what a query requests, what of it is missing, and what the store holds of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dgg_ray.config.study import Block, Chain, Study, StudyRuns
from dgg_ray.core.scores import ScoreMatrix
from dgg_ray.core.stage import Run, Stage, WorkItem
from dgg_ray.search.base import Query, SearchMethod, parse_constraints
from dgg_ray.search.objective import Evidence
from dgg_ray.search.pruning import should_prune
from dgg_ray.storage.stage_store import StageStore


class RunRequest(NamedTuple):
    """A run at some setting, and those of its work items that are requested."""

    runs: StudyRuns
    run: Run
    items: Chain


class EvidenceReader:
    """Answer, for a study and a store, what is requested, what is missing and what the evidence is.

    Construct it once for a study and a store. Everything else that decides what work there is asks it.
    """

    def __init__(self, study: Study, store: StageStore) -> None:
        self.study, self.store = study, store
        constraints = parse_constraints(study.search) if study.search else []
        self.constraint_baselines = sorted({c.baseline for c in constraints if c.baseline})
        self.untouched_item: WorkItem | None = None  # what the search's metrics need of the untouched model
        if outside := study.evaluated_outside:
            runs, splits = study.runs, (study.protocol.selection_split,)
            self.untouched_item = runs.evaluated(runs.untouched_stage, outside, splits)

    def with_store(self, store: StageStore) -> EvidenceReader:
        """Return a reader of the same study through another view of its store."""
        return EvidenceReader(self.study, store)

    # -- what is requested, and what of it is missing ----------------------------------------------

    def requests(self, query: Query) -> Iterator[list[RunRequest]]:
        """Yield what a query requests: one list, or, with a pruning test, one list a step until it is pruned.

        The next part is requested once the store holds the one before; the caller sees to that.
        """
        runs = self.study.at(query.setting).runs
        own = self._requests_of(runs, query)
        constrained = [
            r
            for name in self.constraint_baselines
            for r in self._requests_of(self._baseline(runs, name), query)
        ]
        if query.pruning_test is None:
            yield own + constrained
            return
        if constrained:
            yield constrained
        assert self.study.search is not None
        split = self.study.protocol.selection_split
        incumbents = [
            [self.score_matrix(other, run, split) for run in other]
            for other in (self.study.at(setting).runs for setting in query.pruning_test.incumbents)
        ]
        finished: list[ScoreMatrix] = []
        for request in own:
            for t in range(len(request.items)):
                yield [request._replace(items=request.items[: t + 1])]
                scores = [*finished, self.score_matrix(runs, request.run, split, t + 1)]
                if should_prune(
                    query.pruning_test, self.study.search.objective, self.study.blocks, scores, incumbents
                ):
                    return
            finished = scores

    def requested(self, query: Query) -> list[RunRequest]:
        """All that the query has requested so far; one request for each run, the longest."""
        longest: dict[tuple[str, Block], RunRequest] = {}
        for part in self.requests(query):
            longest |= {(r.runs.id, (r.run.order, r.run.seed)): r for r in part}
            if self.missing_items(part):
                break
        return list(longest.values())

    def missing(self, query: Query) -> list[Chain]:
        """Chains that the query still waits for, as far as is known; none when it is over."""
        return next((chains for part in self.requests(query) if (chains := self.missing_items(part))), [])

    def missing_items(self, part: Sequence[RunRequest]) -> list[Chain]:
        """Chains of the requested items that the store does not hold yet, and of `untouched_item`."""
        requested = [request.items for request in part]
        if self.untouched_item:
            requested.insert(0, [self.untouched_item])
        chains = ([item for item in items if not self.store.has(item)] for items in requested)
        return [chain for chain in chains if chain]

    def has_failed(self, query: Query) -> bool:
        """Return whether a stage that the query needs ended with an error, so that there is no evidence."""
        return any(self.store.failure(chain[0].stage) for chain in self.missing(query))

    # -- what the store holds ----------------------------------------------------------------------

    def evidence(self, query: Query) -> Evidence | None:
        """The score matrices of a completed query; None where a stage of it failed or is missing.

        For a pruned setting only the scores that it requested count, though the store may hold more of it.
        """
        if self.missing(query):
            return None
        runs, split = self.study.at(query.setting).runs, self.study.protocol.selection_split
        depth = {(r.runs.id, r.run.order, r.run.seed): len(r.items) for r in self.requested(query)}

        def matrices(runs: StudyRuns) -> list[ScoreMatrix]:
            return [
                self.score_matrix(runs, run, split, depth.get((runs.id, run.order, run.seed), 0))
                for run in queried_runs(runs, query)
            ]

        baselines = {name: matrices(self._baseline(runs, name)) for name in self.constraint_baselines}
        return Evidence(matrices(runs), baselines)

    def score_matrix(self, runs: StudyRuns, run: Run, split: str, depth: int | None = None) -> ScoreMatrix:
        """R, and the scores on evaluate-only tasks, of the run's first `depth` tasks; nan elsewhere.

        A run of a simultaneous strategy fills its last row alone.
        """
        order, outside = run.order, self.study.evaluate_only
        count = len(order)
        scores = np.full((count, count + len(outside)), np.nan)
        for t, stage in enumerate(run.stages, start=count - len(run.stages)):
            if depth is None or t < depth or (depth and len(run.stages) == 1):
                scores[t] = self.scores_after(stage, runs, (*order, *outside), split)
        sizes = np.array([self.study.data.tasks[name].sizes[split] for name in order])
        base = self.scores_after(runs.untouched_stage, runs, (*order, *outside), split)
        return ScoreMatrix(scores[:, :count], sizes, base[:count], scores[:, count:], base[count:])

    def scores_after(self, stage: Stage, runs: StudyRuns, tasks: Sequence[str], split: str) -> np.ndarray:
        """(tasks,): scores after one stage; nan where not evaluated."""
        cells = self.store.score_entries(stage)
        keys = [runs.evaluation(name, split).key for name in tasks]
        return np.array([cells[key]["score"] if key in cells else np.nan for key in keys])

    # -- searches ----------------------------------------------------------------------------------

    def fast_forward(
        self, search: SearchMethod, on_answer: Callable[[int, Query], None] = lambda number, query: None
    ) -> tuple[int, Query] | None:
        """Search as far as the store has the evidence; return the first query without it, None at the end.

        A query with a failed stage has none: it is tried again.
        """
        while (proposal := search.ask()) is not None:
            number, query = proposal
            evidence = self.evidence(query)
            if evidence is None:
                return proposal
            search.tell(number, evidence)
            on_answer(number, query)
        return None

    def fast_forward_past_failures(self, search: SearchMethod) -> SearchMethod:
        """Search as far as the store has the evidence; failed queries count as answered."""
        while (proposal := search.ask()) is not None:
            number, query = proposal
            evidence = self.evidence(query)
            if evidence is not None:
                search.tell(number, evidence)
            elif self.has_failed(query):
                search.tell(number, None)
        return search

    def _requests_of(self, runs: StudyRuns, query: Query) -> list[RunRequest]:
        return [
            RunRequest(runs, run, runs.work_items(run)[: query.depth]) for run in queried_runs(runs, query)
        ]

    def _baseline(self, runs: StudyRuns, name: str) -> StudyRuns:
        """Runs of a strategy that a constraint names, with the setting's other values."""
        return runs.study.with_strategy(name).runs


def queried_runs(runs: StudyRuns, query: Query) -> Sequence[Run]:
    """Those of a setting's runs that the query asks for: all of them, or that on one block."""
    return runs if query.block is None else runs[query.block : query.block + 1]
