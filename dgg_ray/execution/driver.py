"""The driver: runs a study, first its search, then the comparison of its winner with the baselines.

    propose → evaluate on every block (validation) → … → recommend → compare with the baselines (test)

The store is read first. Ray is started when the first stage is missing: a finished study is answered without
Ray, and a study that was killed continues where it was.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dgg_ray.config import registry, study_changes
from dgg_ray.config.registry import StatePublisher
from dgg_ray.config.study import Study
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.terminal import warn
from dgg_ray.cost import budget, forecast
from dgg_ray.cost.model import profiling_items
from dgg_ray.execution.decision_watch import DecisionWatch
from dgg_ray.execution.executor import RayExecutor, StageExecutor, make_executor
from dgg_ray.execution.progress import Display
from dgg_ray.execution.session import RaySession
from dgg_ray.execution.trackers import TrackerReporter, tracker_reporter
from dgg_ray.execution.tune_searcher import search_with_tune
from dgg_ray.planning import edited_plugins
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.comparison import (
    Comparison,
    comparison_chains,
    first_run_items,
    make_search,
)
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.optuna_search import OptunaSearch
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import view_if_remote

if TYPE_CHECKING:
    from dgg_ray.planning.plan import Plan


def prepare(study: Study, out: Path, local: bool, optional: OptionalOutputs) -> tuple[Study, StageStore]:
    """The study as it will run into a folder, and its store, which was checked for writing.

    Warns of settings that differ from an earlier run into the same folder.
    """
    from dgg_ray.search import warm_start  # here: it imports SciPy

    study = warm_start.restore_warm_starts(study, out)
    if changes := study_changes.describe_changes(study, out):
        warn(changes)
    store = study.store(out)
    store.check()
    with optional.attempt("removing what earlier runs left unfinished", "was not done"):
        store.sweep()
    return with_actual_workers(study, local), store


def run(
    study: Study,
    store: StageStore,
    out: Path,
    optional: OptionalOutputs,
    local: bool,
    session: RaySession,
    quiet: bool,
) -> dict[str, float]:
    """Run or continue a study into a folder; study and store are those that `prepare` returned.

    session: gives Ray if a stage is missing.
    Returns the counts of stages asked for, there, trained and failed, and the seconds of the run.
    """
    from dgg_ray.planning.plan import plan  # here: it imports SciPy

    study = registry.with_decisions(study, store)
    tracker = budget.make_tracker(study, store, comparison_chains)
    start = time.perf_counter()
    with (
        StatePublisher(
            study, store, out, shared=session.address is not None or "://" in store.url
        ) as publisher,
        Display(
            study.name,
            quiet=quiet,
            make_plan=lambda: plan(study, store),
            write_live=publisher.live,
            optional=optional,
        ) as display,
        make_executor(study, store, out, display, tracker, local, session) as executor,
        tracker_reporter(study, store, out, optional) as reporter,
    ):
        publisher.progress = lambda: {**display.progress(), "left_s": None}
        display.on_item_finished = reporter.report_news
        for line in edited_plugins.describe_unused_work(study, store):
            display.say(line)
        if study.budget:
            executor.execute([[item] for item in profiling_items(study)])
            tracker.reload()
            tracker.check(first_run_items(study))
        with forecast.record_forecast(out, display.set_plan(plan(study, store)), optional) as entry:
            heed_decisions(EvidenceReader(study, store), out, executor, reporter, optional)
            if executor.budget_exhausted:
                entry["refused"] = plan(study, store).to_train
    return executor.tally | {"seconds": time.perf_counter() - start}


def heed_decisions(
    reader: EvidenceReader,
    out: Path,
    executor: StageExecutor,
    reporter: TrackerReporter,
    optional: OptionalOutputs,
) -> None:
    """Run what the study asks for, with the decisions that people take meanwhile."""
    with DecisionWatch(reader.study, reader.store, executor) as watch:
        search_and_compare(reader, out, executor, reporter, optional)
        while watch.look():
            reader = EvidenceReader(watch.take_up(), reader.store)
            reporter.begin_again()
            search_and_compare(reader, out, executor, reporter, optional)


def search_and_compare(
    reader: EvidenceReader,
    out: Path,
    executor: StageExecutor,
    reporter: TrackerReporter,
    optional: OptionalOutputs,
) -> None:
    """Run what the study asks for, as far as the budget goes: its search, then the comparison.

    An interruption of the executor ends this early.
    """
    study, search = reader.study, None
    if study.search is not None:
        search = executor.search = make_search(study, out / "search.db", optional)

    def carry_out(own: SearchMethod) -> SearchMethod:
        if executor.interrupted:
            return own
        if isinstance(own, OptunaSearch) and own is not search:  # of a tuned baseline
            own.copy_to(out / "search.db", optional, fresh=False)
        if isinstance(own, OptunaSearch) or own is search:
            reporter.follow(own)
        return run_search(reader, executor, own)

    comparison = Comparison.from_search_method(study, search, carry_out)
    if executor.interrupted:
        return
    reporter.follow_comparison(comparison.settings)
    executor.execute(comparison.chains)


def profile(
    study: Study, out: Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> tuple[Plan, list[str]]:
    """Time a few steps of each kind of stage in the study.

    Returns the plan with the forecast that this allows, and the errors of profiling runs that failed.
    """
    from dgg_ray.planning.plan import plan

    out = out.absolute()
    study_changes.refuse_folder_of_another(study, out)
    store = study.store(out)
    store.check()
    study = with_actual_workers(study, local)
    with (
        Display(f"{study.name}, profiling", quiet=quiet) as display,
        make_executor(
            study, store, out, display, budget.BudgetTracker(), local, RaySession(address)
        ) as executor,
    ):
        executor.execute([[item] for item in profiling_items(study)])
    return plan(study, store), [f"{e['error']}: {e['message']}" for e in executor.errors]


def with_actual_workers(study: Study, local: bool) -> Study:
    """The study with the workers that it really has: one where it runs in this process."""
    return replace(study, workers=study.workers.alone()) if local else study


# -- the search ------------------------------------------------------------------------------------


def run_search(reader: EvidenceReader, executor: StageExecutor, search: SearchMethod) -> SearchMethod:
    """Run a search to its end. Ray is started only if the store lacks the evidence for a query."""
    view = reader.with_store(view_if_remote(reader.store))

    def on_answer(number: int, query: Query) -> None:
        count = sum(len(request.items) for request in view.requested(query))
        executor.expect(count)
        executor.count_stored(count)

    first_unanswered = view.fast_forward(search, on_answer)
    if first_unanswered is not None:
        search.return_query(*first_unanswered)
        if isinstance(executor, RayExecutor):
            search_with_tune(reader, search, executor)
        else:
            search_in_process(reader, search, executor)
    executor.setting_evaluated(search)  # also where all of its results were stored
    return search


def search_in_process(reader: EvidenceReader, search: SearchMethod, executor: StageExecutor) -> None:
    """Run a search in this process, query after query."""
    while not executor.budget_exhausted and (proposal := search.ask()) is not None:
        number, query = proposal
        for batch in reader.requests(query):
            executor.execute(reader.missing_items(batch))
            if reader.missing_items(batch):
                break
        if executor.interrupted:
            return
        evidence = reader.with_store(view_if_remote(reader.store)).evidence(query)
        if executor.budget_exhausted and evidence is None:
            return  # the query stays unanswered: with a larger budget the search proposes it again
        search.tell(number, evidence)
        executor.setting_evaluated(search)
