"""What the store says of a run, of a query, of a search; and what is still to be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dgg_ray.config.sections import Constraint
from dgg_ray.config.study import Block, Study
from dgg_ray.core.interfaces import ScoreMatrix
from dgg_ray.core.stage import Run, Stage, WorkItem
from dgg_ray.search.base import Method, Query
from dgg_ray.search.objective import Evidence
from dgg_ray.search.pruning import should_prune
from dgg_ray.storage.stage_store import StageStore

FINAL = ("validation", "test")
Chain = list[WorkItem]


def work_items(study: Study, run: Run, splits: Sequence[str] = (), scope: str = "seen") -> Chain:
    """A run's stages with their exams, in the order in which they can be done; the search's by default."""
    splits = splits or (study.protocol.selection_split,)
    return [study.work_item(run, stage, splits, scope) for stage in run.stages]


def matrix(study: Study, store: StageStore, run: Run, split: str, depth: int | None = None) -> ScoreMatrix:
    """R with what the store holds of the run's first `depth` tasks; a simultaneous run fills its last row."""
    count = len(run.order)
    R = np.full((count, count), np.nan)
    for t, stage in enumerate(run.stages, start=count - len(run.stages)):
        if depth is None or t < depth or (depth and len(run.stages) == 1):
            R[t] = row(study, store, run, stage, split)
    sizes = np.array([study.tasks[name].sizes[split] for name in run.order])
    return ScoreMatrix(R, sizes, row(study, store, run, study.untouched(), split))


def row(study: Study, store: StageStore, run: Run, stage: Stage, split: str) -> np.ndarray:
    """Scores after one stage on the run's tasks, in the run's order; nan where not examined."""
    cells = store.cells(stage)
    keys = [study.evaluation(name, split).key for name in run.order]
    return np.array([cells[key]["score"] if key in cells else np.nan for key in keys])


# -- queries ----------------------------------------------------------------------------------------


class Walk(NamedTuple):
    """A run of a study at some setting, and those of its works that are asked for."""

    at: Study
    run: Run
    work_items: Chain


def parts(study: Study, store: StageStore, query: Query) -> Iterator[list[Walk]]:
    """What a query asks for: all at once, or in a race part by part until it is given up.

    The next part is asked for once the store holds the one before; who takes it sees to that.
    """
    at = study.at(query.setting)
    mine = [Walk(at, run, work_items(at, run)[: query.depth]) for run in runs_of(at, query)]
    others = [at.beside(name) for name in baselines_of(study)]
    beside = [Walk(o, run, work_items(o, run)[: query.depth]) for o in others for run in runs_of(o, query)]
    if query.pruning_test is None:
        yield mine + beside
        return
    if beside:
        yield beside
    assert study.search is not None
    on = study.protocol.selection_split
    theirs = [
        [matrix(study, store, run, on) for run in study.at(other).runs()]
        for other in query.pruning_test.incumbents
    ]
    done: list[ScoreMatrix] = []
    for walk in mine:
        for t in range(len(walk.work_items)):
            yield [walk._replace(work_items=walk.work_items[: t + 1])]
            scores = [*done, matrix(at, store, walk.run, on, t + 1)]
            if should_prune(query.pruning_test, study.search.objective, study.blocks, scores, theirs):
                return
        done = scores


def runs_of(at: Study, query: Query) -> Sequence[Run]:
    """The runs that the query asks for, of a study at its setting or beside it."""
    return at.runs() if query.block is None else at.runs()[query.block : query.block + 1]


def baselines_of(study: Study) -> list[str]:
    """Names of the strategies that the search's constraints speak of."""
    texts = study.search.constraints if study.search else ()
    return sorted({c.baseline for text in texts if (c := Constraint.parse(text)) and c.baseline})


def missing(store: StageStore, part: Sequence[Walk]) -> list[Chain]:
    """Chains of what the store does not hold yet."""
    return [left for walk in part if (left := [item for item in walk.work_items if not store.has(item)])]


def needs(study: Study, store: StageStore, query: Query) -> list[Chain]:
    """Chains of the query that are missing, as far as that can be said; none: it is over."""
    return next((chains for part in parts(study, store, query) if (chains := missing(store, part))), [])


def asked(study: Study, store: StageStore, query: Query) -> list[Walk]:
    """All that the query asked for, as far as it got; one walk a run, the longest."""
    found: dict[tuple[str, Block], Walk] = {}
    for part in parts(study, store, query):
        found |= {(walk.at.id, (walk.run.order, walk.run.seed)): walk for walk in part}
        if not all(store.has(item) for walk in part for item in walk.work_items):
            break
    return list(found.values())


def evidence(study: Study, store: StageStore, query: Query) -> Evidence | None:
    """What the store says of a query that is over; None where a stage of it failed or is missing.

    Of a race only what it asked for: that another setting had the next stage too is not known to it.
    """
    if needs(study, store, query):
        return None
    at, on = study.at(query.setting), study.protocol.selection_split
    got = {(w.at.id, w.run.order, w.run.seed): len(w.work_items) for w in asked(study, store, query)}

    def scores(of: Study) -> list[ScoreMatrix]:
        runs = runs_of(of, query)
        return [matrix(of, store, run, on, got.get((of.id, run.order, run.seed), 0)) for run in runs]

    return Evidence(scores(at), {name: scores(at.beside(name)) for name in baselines_of(study)})


def failed(study: Study, store: StageStore, query: Query) -> bool:
    """Whether a stage that the query needs ended early, so that it cannot be judged."""
    return any(store.failure(chain[0].stage) for chain in needs(study, store, query))


# -- searches --------------------------------------------------------------------------------------


def replay(
    study: Study,
    store: StageStore,
    search: Method,
    answered: Callable[[int, Query], None] = lambda number, query: None,
) -> tuple[int, Query] | None:
    """Search as far as the store answers; the first query that it does not, None at the end.

    A query with a failed stage counts as not answered: it is tried again.
    """
    while (proposal := search.ask()) is not None:
        number, query = proposal
        found = evidence(study, store, query)
        if found is None:
            return proposal
        search.tell(number, found)
        answered(number, query)
    return None


def searched(study: Study, store: StageStore, search: Method) -> Method:
    """The search as the store holds it, for a reader: failed queries count as judged, unfinished end it."""
    while (proposal := search.ask()) is not None:
        number, query = proposal
        found = evidence(study, store, query)
        if found is not None:
            search.tell(number, found)
        elif failed(study, store, query):
            search.tell(number, None)
    return search


def final_works(final: Mapping[str, Study]) -> list[Chain]:
    """Chains of all that the final comparison needs."""
    if not final:
        return []
    winner = next(iter(final.values()))
    scope = winner.protocol.evaluate
    chains = [work_items(s, run, FINAL, scope) for s in final.values() for run in s.runs()]
    return [*chains, [item]] if (item := base_work(winner)) else chains


def base_work(winner: Study) -> WorkItem | None:
    """The untouched model's exams, against which forward transfer is measured; None where it is not."""
    if winner.protocol.evaluate == "seen":
        return None
    evaluations = tuple(winner.evaluation(task, split) for split in FINAL for task in sorted(winner.names))
    return WorkItem(winner.untouched(), evaluations)
