"""A search's own objects → what a report says of it (results.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dgg_ray.analysis.results import Ahead, Audited, Candidate, Hours, Level, Searched, Terms, Tried
from dgg_ray.config.sections import FROM_SEARCH
from dgg_ray.config.study import Block, Setting, Study
from dgg_ray.core.orders import left
from dgg_ray.cost.makespan import Ask
from dgg_ray.cost.model import CostModel
from dgg_ray.search import evidence
from dgg_ray.search.base import Method, Query, Whole
from dgg_ray.search.objective import Evidence, Values, by_block, preferred, summary
from dgg_ray.search.stagewise import Stagewise
from dgg_ray.storage.stage_store import StageStore

MOST_BLOCKS = 64  # that are looked at for what a further one takes
Walks = Mapping[int, Sequence[evidence.Walk]]  # by the number of the query


def searched(
    search: Method, given: Mapping[str, Setting], store: StageStore, walks: Walks, parameters: Sequence[str]
) -> Searched:
    """The search as it stands. given: of its baselines, their settings; walks: what each query asked for."""
    study, of = search.study, search.search
    found = Searched(
        method=of.method,
        objective=of.objective,
        constraints=of.constraints,
        parameters=tuple(path for path, parameter in of.space.items() if parameter.per_task),
        blocks=len(study.blocks),
        tasks=len(study.names),
        count=search.count if isinstance(search, Whole) else None,
        finished=search.finished,
        candidates=tuple(candidates(search, walks)),
        stands_for=stands_for(search, given, parameters),
        saved=saved(search, store),
    )
    if isinstance(search, Stagewise):
        found = replace(found, levels=tuple(levels(search)), audited=tuple(audited(search)))
    return found


def candidates(search: Method, walks: Walks) -> Iterator[Candidate]:
    """Whole settings in the order proposed, each once."""
    study, known, stages = search.study, set[str](), set[str]()
    judged = search.judged()
    for number, query in enumerate(search.proposed):
        stages |= {item.stage.key for walk in walks.get(number, ()) for item in walk.work_items}
        setting = study.at(query.setting).id
        if not whole(search, query) or setting in known:
            continue
        known.add(setting)
        evidence = search.told.get(number)
        if evidence is None:
            yield Candidate(setting, "failed" if number in search.told else "open", stages=len(stages))
            continue
        reached = [int((~np.isnan(m.R.diagonal())).sum()) for m in evidence.scores]
        done = next((b for b, tasks in enumerate(reached) if tasks < len(study.names)), len(reached))
        state = "judged" if number in judged else "failed" if done == len(reached) else "given up"
        rows = by_block(evidence, search.search.objective, search.constraints)[:done]
        tasks = reached[done] if done < len(reached) else 0
        of = summary(rows, len(search.search.objective)) if done else Values(())
        yield Candidate(setting, state, tuple(map(tuple, rows.tolist())), *of, tasks, len(stages))


def whole(search: Method, query: Query) -> bool:
    return query.depth == len(search.study.names) and query.block is None


def saved(search: Method, store: StageStore) -> int:
    """Stages of the settings given up that nothing has learned."""
    study, left = search.study, set[str]()
    for number, query in enumerate(search.proposed):
        if search.told.get(number) and query.pruning_test and number not in search.judged():
            at = study.at(query.setting)
            stages = [stage for run in at.runs() for stage in run.stages]
            left |= {stage.key for stage in stages if store.record(stage) is None}
    return len(left)


# -- stagewise -------------------------------------------------------------------------------------


def levels(search: Stagewise) -> Iterator[Level]:
    """Every place that was decided, once for each outer combination."""
    for level in search.levels:
        kept = {id(state) for state in level.kept}
        tried = [
            Tried(search.study.at(s.setting).id, dict(s.setting), mean(v), id(s) in kept)
            for s, v in zip(level.states, level.hoped, strict=True)
        ]
        yield Level(level.depth, tuple(tried))


def audited(search: Stagewise) -> Iterator[Audited]:
    """What became of the dropped states that were finished; none before all of them were."""
    numbers = {dropped.number for dropped in search.audited}
    best = next((n for n in search.ranking() if n not in numbers), None)
    if best is None:
        return
    kept, known = search.told[best], search.judged()
    for state, number in search.audited:
        if number is None or (end := search.told.get(number)) is None or kept is None:
            continue
        mine, theirs = (ends(search, evidence) for evidence in (end, kept))
        better = preferred([search.values(kept), search.values(end)])[0] == 1
        if np.isfinite(mine).all() and best in known:
            gaps = tuple((mine - theirs).tolist())
            dropped, finished = (
                search.study.at(s).id for s in (state.setting, search.proposed[number].setting)
            )
            above = search.study.at(search.proposed[best].setting).id
            yield Audited(state.depth, dropped, finished, above, float(mine.mean()), gaps, better)


def ends(search: Method, evidence: Evidence) -> np.ndarray:
    """(blocks,): the mean of the objectives."""
    return by_block(evidence, search.search.objective).mean(axis=1)


def mean(values: Values) -> float:
    return float(np.mean(values.objective))


# -- what it was chosen and compared on, and what is left ------------------------------------------


def terms(study: Study) -> Terms:
    baselines = [
        r
        for baseline in study.protocol.baselines
        for r in ([baseline] if isinstance(baseline, str) else baseline)
    ]
    return Terms(
        selection_split=study.protocol.selection_split,
        chosen_on=tuple(map(named, study.blocks)) if study.search else (),
        compared_on=tuple(map(named, study.final_blocks)),
        held_out=bool(study.protocol.held_out),
        baselines=tuple(dict.fromkeys(baselines)),
    )


def named(block: Block) -> tuple[str, int]:
    order, seed = block
    return " > ".join(order), seed


def stands_for(
    search: Method, given: Mapping[str, Setting], parameters: Sequence[str]
) -> dict[str, dict[str, object]]:
    """Rival that the search gives → its setting."""
    wanted = [label for label in FROM_SEARCH if label in search.study.protocol.baselines]
    return {
        label: {k: setting[k] for k in parameters if k in setting}
        for label in wanted
        if (setting := given.get(label))
    }


def ahead(
    study: Study,
    store: StageStore,
    search: Method | None,
    more: Mapping[str, Method],
    final: Mapping[str, Study],
) -> Ahead:
    """What is left, with its predicted hours."""
    model = CostModel(study, store)
    over = search is None or (search.finished and all(own.finished for own in more.values()))
    looked: list[Ask] = []
    if not over:
        from dgg_ray.planning.plan import foresee  # late: only an unfinished study is foreseen

        asked, final, _, _ = foresee(study, store)
        looked = [one.ask for one in asked]
    compare = [Ask([item for chain in evidence.final_works(final) for item in chain])]
    block, stage = added(model, study, final)
    return Ahead(
        search=(missing(store, looked), predicted(model, looked)),
        comparison=(missing(store, compare), predicted(model, compare)),
        block=block,
        room=left(study.all_orders) - len(study.final_blocks) if study.protocol.held_out else None,
        stage=stage,
        groups=study.workers.groups,
    )


def added(model: CostModel, study: Study, final: Mapping[str, Study]) -> tuple[Hours | None, Hours | None]:
    """Hours that one more block adds to the comparison, where many are added at once, and of a stage of it.

    A single block leaves fleets idle, so as many are looked at as an hour has room for.
    """
    fresh = 1 + max(seed for _, seed in (*study.blocks, *study.final_blocks))

    def more(count: int) -> Ask:
        blocks = tuple((study.final_blocks[0][0], fresh + i) for i in range(count))
        of = {label: replace(at, fixed=blocks) for label, at in final.items()}
        return Ask([item for chain in evidence.final_works(of) for item in chain if item.stage.trained_tasks])

    one = more(1)
    while any(
        model.store.record(item.stage) for item in one.work_items
    ):  # a seed that was run once costs nothing
        fresh += 1
        one = more(1)
    stages, cost = len({item.stage.key for item in one.work_items}), model.predict([one])
    share = cost.seconds.times(1 / study.workers.groups / 3600) if cost else None  # of one block among many
    if cost is None or share is None or not stages or share.mean <= 0:
        return None, None
    room = int((1 - cost.wall.mean / 3600) / share.mean)
    count = min(1 + max(room, 0), 9 * len(study.final_blocks), MOST_BLOCKS)
    together = predicted(model, [more(count)])
    block = (together[0] / count, together[1] / count, together[2] / count) if together else None
    stage = cost.seconds.times(1 / stages / 3600)
    return block, (stage.mean, stage.low, stage.high)


def missing(store: StageStore, asks: Iterable[Ask]) -> int:
    """Distinct stages that are to be learned or examined still."""
    return len({item.stage.key for ask in asks for item in ask.work_items if not store.has(item)})


def predicted(model: CostModel, asks: Sequence[Ask]) -> Hours | None:
    cost = model.predict(asks)
    if cost is None:
        return None
    hours = cost.amounts()["wall hours"]
    return hours.mean, hours.low, hours.high
