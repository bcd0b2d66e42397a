"""Summarise a search: its settings, the comparison's setup, the remaining work, the Pareto set.

The functions turn the search's own objects into the plain types of `results.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from dgg_ray.analysis.results import (
    AuditedState,
    BlockName,
    CandidateSetting,
    ComparisonSetup,
    DepthSummary,
    HoursInterval,
    RemainingWork,
    SearchSummary,
    StateSummary,
    Tuning,
)
from dgg_ray.config.sections import TunedBaseline
from dgg_ray.config.study import Block, Study, StudyRuns
from dgg_ray.core import plugins
from dgg_ray.core.orders import count_unused_orders
from dgg_ray.cost.makespan import WorkRequest
from dgg_ray.cost.model import CostModel
from dgg_ray.planning.plan import dry_run_search
from dgg_ray.search.base import SearchMethod
from dgg_ray.search.comparison import Comparison, final_chains
from dgg_ray.search.evidence import EvidenceReader, RunRequest
from dgg_ray.search.objective import (
    Evidence,
    Values,
    fronts,
    hypervolume,
    mean_values,
    rank_settings,
    values_by_block,
)
from dgg_ray.search.space import parameter_paths
from dgg_ray.search.stagewise import Stagewise
from dgg_ray.search.whole_settings import WholeSettings
from dgg_ray.storage.stage_store import StageStore

MAX_FORECAST_BLOCKS = 64  # more blocks than this are never forecast together
RequestsByQuery = Mapping[int, Sequence[RunRequest]]  # query number → the runs that it requested


def summarize_search(search: SearchMethod, store: StageStore, requests: RequestsByQuery) -> SearchSummary:
    """Summarize the search as it stands. requests: the runs that each query requested."""
    study, section = search.study, search.search
    candidates = tuple(summarize_candidates(search, requests))
    summary = SearchSummary(
        method=section.method,
        objective=section.objective,
        constraints=section.constraints,
        per_task_parameters=tuple(path for path, parameter in section.space.items() if parameter.per_task),
        blocks=len(study.blocks),
        tasks=len(study.task_names),
        expected_settings=count_expected(search, candidates),
        finished=search.finished,
        candidates=candidates,
        stages_saved=count_stages_saved(search, store),
        stopped=count_stopped(search),
    )
    if isinstance(search, Stagewise):
        return replace(
            summary,
            depths=tuple(summarize_depths(search)),
            audited_states=tuple(summarize_audit(search)),
        )
    return summary


def count_expected(search: SearchMethod, candidates: Sequence[CandidateSetting]) -> int | None:
    """Count the whole settings that the search will propose; None where that follows from its results.

    With a limit of stages, later settings are taken to need as many new stages as those so far.
    """
    if not isinstance(search, WholeSettings):
        return None
    if search.count is not None:
        return search.count
    limit, used = search.search.stages, candidates[-1].stages_so_far if candidates else 0
    if search.finished or not limit or not used:
        return len(candidates)
    return max(len(candidates), round(len(candidates) * limit / used))


def summarize_candidates(search: SearchMethod, requests: RequestsByQuery) -> Iterator[CandidateSetting]:
    """Yield the complete settings in the order proposed, each once."""
    study, seen, stages = search.study, set[str](), set[str]()
    evaluated = search.evaluated()
    again = {study.at(search.proposed[n].setting).id: n for n in evaluated if n in search.asked_again}
    for number, query in enumerate(search.proposed):
        stages |= {item.stage.key for request in requests.get(number, ()) for item in request.items}
        setting = study.at(query.setting).id
        if not search.asks_for_all(query) or setting in seen:
            continue
        seen.add(setting)
        number = again.get(setting, number)
        evidence = search.answers.get(number)
        if evidence is None:
            state = "failed" if number in search.answers else "open"
            state = "stopped" if number in search.stopped else state
            yield CandidateSetting(setting, state, stages_so_far=len(stages))
            continue
        trained_tasks = [int((~np.isnan(scores.R.diagonal())).sum()) for scores in evidence.scores]
        finished = next(
            (block for block, tasks in enumerate(trained_tasks) if tasks < len(study.task_names)),
            len(trained_tasks),
        )
        if number in evaluated:
            state = "evaluated"
        else:
            state = "failed" if finished == len(trained_tasks) else "pruned"
        values = values_by_block(evidence, search.search.objective, search.constraints)[:finished]
        means = mean_values(values, len(search.search.objective)) if finished else Values(())
        yield CandidateSetting(
            setting,
            state,
            block_values=tuple(map(tuple, values.tolist())),
            mean_objectives=means.objective,
            violations=means.excess,
            tasks_in_next_block=trained_tasks[finished] if finished < len(trained_tasks) else 0,
            stages_so_far=len(stages),
        )


def count_stopped(search: SearchMethod) -> int:
    """Count the settings and states that were stopped by hand and not evaluated to the end all the same."""
    study = search.study
    evaluated = {study.at(search.proposed[number].setting).id for number in search.evaluated()}
    return len({study.at(search.proposed[number].setting).id for number in search.stopped} - evaluated)


def count_stages_saved(search: SearchMethod, store: StageStore) -> int:
    """Count the stages of pruned settings that no run has trained."""
    study, untrained = search.study, set[str]()
    for number, query in enumerate(search.proposed):
        if search.answers.get(number) and query.pruning_test and number not in search.evaluated():
            stages = [stage for run in study.at(query.setting).runs for stage in run.stages]
            untrained |= {stage.key for stage in stages if store.record(stage) is None}
    return len(untrained)


# -- stagewise -------------------------------------------------------------------------------------


def summarize_depths(search: Stagewise) -> Iterator[DepthSummary]:
    """Yield every depth that is decided, once for each combination of global parameters."""
    for level in search.levels:
        kept = {id(state) for state in level.kept}
        states = [
            StateSummary(
                search.study.at(state.setting).id,
                dict(state.setting),
                float(np.mean(values.objective)),
                id(state) in kept,
            )
            for state, values in zip(level.states, level.extrapolated, strict=True)
        ]
        yield DepthSummary(level.depth, tuple(states))


def summarize_audit(search: Stagewise) -> Iterator[AuditedState]:
    """Yield the dropped states that the audit trained to the end; nothing before all of them are finished."""
    audited_numbers = {dropped.number for dropped in search.audited}
    best = next((number for number in search.ranking() if number not in audited_numbers), None)
    if best is None:
        return
    best_evidence, evaluated = search.answers[best], search.evaluated()
    for state, number in search.audited:
        evidence = None if number is None else search.answers.get(number)
        if number is None or evidence is None or best_evidence is None:
            continue
        objectives, best_objectives = (
            block_objectives(search, evidence),
            block_objectives(search, best_evidence),
        )
        if np.isfinite(objectives).all() and best in evaluated:
            ranking = rank_settings([search.values(best_evidence), search.values(evidence)])
            yield AuditedState(
                depth=state.depth,
                state=search.study.at(state.setting).id,
                setting=search.study.at(search.proposed[number].setting).id,
                best_kept=search.study.at(search.proposed[best].setting).id,
                final_objective=float(objectives.mean()),
                block_gaps=tuple((objectives - best_objectives).tolist()),
                preferred=ranking[0] == 1,
            )


def block_objectives(search: SearchMethod, evidence: Evidence) -> np.ndarray:
    """Return the mean of the objectives on each block, shape (blocks,)."""
    return values_by_block(evidence, search.search.objective).mean(axis=1)


# -- setup of the comparison, and remaining work ---------------------------------------------------


def comparison_setup(study: Study) -> ComparisonSetup:
    """Describe the splits and blocks on which settings are chosen and compared."""
    baselines: list[str] = []
    for baseline in study.protocol.baselines:
        if isinstance(baseline, TunedBaseline):
            baselines.append(baseline.title)
        else:
            baselines += [baseline] if isinstance(baseline, str) else baseline
    return ComparisonSetup(
        selection_split=study.protocol.selection_split,
        search_blocks=study.named_blocks if study.search else (),
        final_blocks=tuple(map(block_name, study.final_blocks)),
        held_out=bool(study.protocol.held_out),
        baselines=tuple(dict.fromkeys(baselines)),
    )


def summarize_tuning(study: Study, compared: Comparison) -> Tuning:
    """Count the settings that were tried for the recommended setting and for each tuned baseline."""
    labels = {name for name in study.protocol.baselines if isinstance(name, str)} & {
        *study.baseline_strategies
    }
    settings_tried = {label: 0 for label in labels if has_own_settings(label)}
    trials: dict[str, bool] = {}
    parameters: dict[str, tuple[str, ...]] = {}
    for label, search in compared.tuning.items():
        settings_tried[label] = count_tried(search)
        parameters[label] = parameter_paths(search.study, search.search)
        whole = search.evaluated()
        for number, query in enumerate(search.proposed):
            setting = study.at(query.setting).id
            trials[setting] = trials.get(setting, False) or number in whole
    of_study = {
        study.at(q.setting).id
        for s in compared.searches
        if s not in compared.tuning.values()
        for q in s.proposed
    }
    chosen = None
    if compared.search:
        chosen = count_tried(compared.search)
    elif compared.winner and has_own_settings(plugins.plugin_name(compared.winner.study.strategy)):
        chosen = 0
    return Tuning(
        chosen,
        settings_tried,
        {setting: whole for setting, whole in trials.items() if setting not in of_study},
        parameters,
    )


def has_own_settings(strategy: str) -> bool:
    """Return whether a strategy has settings besides the buffer, which is the recommended setting's."""
    return any(f.name != "buffer" for f in fields(plugins.find("strategies", strategy)))


def count_tried(search: SearchMethod) -> int:
    """Count the different settings of which a search has evidence, also on some of the blocks."""
    answered = [search.proposed[number] for number, evidence in search.answers.items() if evidence]
    return len({tuple(sorted(query.setting.items())) for query in answered})


def block_name(block: Block) -> BlockName:
    """Return a block as it is written in the study's table."""
    order, seed = block
    return " > ".join(order), seed


def remaining_work(study: Study, model: CostModel, compared: Comparison) -> RemainingWork:
    """Count the stages that are left, and predict their hours.

    model: the costs that the study's store has measured; the stages are looked up in the same store.

    While a search is running, a dry run of it says which stages it is likely to request.
    """
    store, settings = model.store, compared.settings
    search_requests: list[WorkRequest] = []
    if not all(search.finished for search in compared.searches):
        dry_run = dry_run_search(EvidenceReader(study, store))
        settings, search_requests = dry_run.settings, [request.work_request for request in dry_run.requests]
    comparison_requests = [WorkRequest([item for chain in final_chains(settings) for item in chain])]
    block, stage = hours_per_block(model, study, settings)
    unused_orders = count_unused_orders(study.all_orders) - len(study.final_blocks)
    return RemainingWork(
        search=(count_missing_stages(store, search_requests), predict_hours(model, search_requests)),
        comparison=(
            count_missing_stages(store, comparison_requests),
            predict_hours(model, comparison_requests),
        ),
        block=block,
        room=unused_orders if study.protocol.held_out else None,
        stage=stage,
        groups=study.workers.groups,
    )


def hours_per_block(
    model: CostModel, study: Study, settings: Mapping[str, StudyRuns]
) -> tuple[HoursInterval | None, HoursInterval | None]:
    """Predict the hours that one more block adds to the comparison, and those of one of its stages.

    A single block leaves worker groups idle. So the prediction is for as many blocks as fit into an hour,
    divided by their number.
    """
    new_seed = 1 + max(seed for _, seed in (*study.blocks, *study.final_blocks))

    def request_blocks(count: int) -> WorkRequest:
        blocks = tuple((study.final_blocks[0][0], new_seed + i) for i in range(count))
        runs_by_label = {label: StudyRuns(runs.study, blocks) for label, runs in settings.items()}
        return WorkRequest(
            [item for chain in final_chains(runs_by_label) for item in chain if item.stage.trained_tasks]
        )

    one_block = request_blocks(1)
    while any(model.store.record(item.stage) for item in one_block.work_items):
        new_seed += 1  # a seed whose stages are stored would cost nothing
        one_block = request_blocks(1)
    stages, cost = len({item.stage.key for item in one_block.work_items}), model.predict([one_block])
    if cost is None or not stages:
        return None, None
    hours_among_many = cost.seconds.scaled(1 / study.workers.groups / 3600)
    if hours_among_many.mean <= 0:
        return None, None
    room = int((1 - cost.wall.mean / 3600) / hours_among_many.mean)
    count = min(1 + max(room, 0), 9 * len(study.final_blocks), MAX_FORECAST_BLOCKS)
    total = predict_hours(model, [request_blocks(count)])
    block = (total[0] / count, total[1] / count, total[2] / count) if total else None
    stage = cost.seconds.scaled(1 / stages / 3600)
    return block, (stage.mean, stage.low, stage.high)


def count_missing_stages(store: StageStore, requests: Iterable[WorkRequest]) -> int:
    """Count the distinct stages that are still to be trained or evaluated."""
    return len({item.stage.key for request in requests for item in request.work_items if not store.has(item)})


def predict_hours(model: CostModel, requests: Sequence[WorkRequest]) -> HoursInterval | None:
    """Predict the wall time of requests; None where no stage has been timed."""
    cost = model.predict(requests)
    if cost is None:
        return None
    hours = cost.amounts()["wall hours"]
    return hours.mean, hours.low, hours.high


# -- several objectives ----------------------------------------------------------------------------


def pareto_front(search: SearchSummary) -> list[CandidateSetting]:
    """Return the feasible settings that no other dominates, the highest in the first objective first."""
    feasible = search.feasible()
    objectives = [candidate.mean_objectives for candidate in feasible]
    front = next(fronts(range(len(feasible)), objectives), [])
    return [feasible[i] for i in sorted(front, key=lambda i: objectives[i], reverse=True)]


def hypervolumes(search: SearchSummary) -> Iterator[tuple[int, int, float]]:
    """Yield (settings evaluated, stages requested, hypervolume of the feasible ones) after each setting."""
    points: list[tuple[float, ...]] = []
    for number, candidate in enumerate(search.in_state("evaluated"), start=1):
        if not any(candidate.violations):
            points.append(candidate.mean_objectives)
        yield number, candidate.stages_so_far, hypervolume(points)
