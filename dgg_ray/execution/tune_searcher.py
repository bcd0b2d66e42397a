"""Ray Tune's part of a search: a searcher that proposes queries, and trials that request their stages.

A trial evaluates one query of the search method. It trains nothing itself: it requests its stages from the
broker and reports after each, so thousands of trials may be open at once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Self

import numpy as np
import ray
import ray.tune
from ray.tune.search import Searcher

from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import cluster
from dgg_ray.execution.broker import is_budget_exhausted, run_chains
from dgg_ray.execution.executor import RayExecutor
from dgg_ray.search.base import Query, SearchMethod
from dgg_ray.search.evidence import EvidenceReader, queried_runs
from dgg_ray.search.pruning import PruningTest
from dgg_ray.storage.store_view import view_if_remote

TRIAL_RESOURCES = ray.tune.PlacementGroupFactory([cluster.ON_HEAD])


def search_with_tune(reader: EvidenceReader, search: SearchMethod, executor: RayExecutor) -> None:
    """Run the search as Ray Tune trials until it is finished."""
    broker = executor.start()
    trial = ray.tune.with_parameters(run_trial, reader=reader, broker=broker)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial, TRIAL_RESOURCES),
        tune_config=ray.tune.TuneConfig(
            search_alg=TuneSearcher(reader, search, executor),
            num_samples=-1,  # the searcher decides when the search is finished,
            max_concurrent_trials=None,  # and which queries must wait for others
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(executor.out / "ray"),
            failure_config=ray.tune.FailureConfig(max_failures=3),
            verbose=0,
        ),
    )
    tuner.fit()
    executor.check()


def run_trial(config: dict[str, Any], reader: EvidenceReader, broker: Any) -> None:
    """Run a trial: request the query's stages, all runs at once, and report after each stage."""
    pruning_test = config["pruning_test"]
    query = Query(**{**config, "pruning_test": PruningTest(**pruning_test) if pruning_test else None})
    finished, errors = 0, list[dict[str, str]]()
    stored, scores = set[str](), dict[str, float]()  # by stage key

    def on_finished(item: WorkItem) -> None:
        nonlocal finished
        finished += 1
        stored.add(item.stage.key)
        ray.tune.report({"stages": finished, "score": interim_score(reader, query, stored, scores)})

    for batch in reader.requests(query):
        missing = reader.missing_items(batch)
        stored |= {item.stage.key for request in batch for item in request.items}
        stored -= {item.stage.key for chain in missing for item in chain}
        errors = run_chains(missing, broker, on_finished)
        if errors:
            break
    ray.tune.report(
        {
            "stages": finished,
            "score": interim_score(reader, query, stored, scores),
            "budget_exhausted": is_budget_exhausted(errors),
        }
    )


def interim_score(
    reader: EvidenceReader, query: Query, stored: Collection[str], scores: dict[str, float]
) -> float:
    """Mean score on the tasks trained so far: after each run's last stored stage, over the runs begun.

    stored: keys of finished stages.
    scores: by stage key, filled here; each stage is read once, because in a remote store a read is a request.
    """
    runs, last_score = reader.study.at(query.setting).runs, dict[int, float]()
    split = reader.study.protocol.selection_split
    for number, run in enumerate(queried_runs(runs, query)):
        for stage in run.stages:
            if stage.key not in stored:
                continue
            if stage.key not in scores:
                scores[stage.key] = float(np.nanmean(reader.scores_after(stage, runs, run.order, split)))
            last_score[number] = scores[stage.key]
    return float(np.mean(list(last_score.values()))) if last_score else 0.0


class TuneSearcher(Searcher):
    """Proposes the search method's queries to Ray Tune.

    Queries that the store answers never become trials.
    """

    def __init__(self, reader: EvidenceReader, search: SearchMethod, executor: RayExecutor) -> None:
        super().__init__(metric="score", mode="max")  # Tune requires one; the method decides by its own
        self.reader, self.search, self.executor = reader, search, executor
        self.open: dict[str, tuple[int, Query]] = {}  # by trial
        self.stages: dict[str, int] = {}  # by trial: stages reported so far

    def suggest(self, trial_id: str) -> Any:
        if self.executor.budget_exhausted or self.executor.interrupted:
            return Searcher.FINISHED
        view = self.reader.with_store(view_if_remote(self.reader.store))
        while (proposal := self.search.ask()) is not None:
            number, query = proposal
            if missing := view.missing(query):
                self.open[trial_id] = proposal
                self.executor.expect(sum(len(chain) for chain in missing))
                pruning_test = query.pruning_test._asdict() if query.pruning_test else None
                return {**query._asdict(), "setting": dict(query.setting), "pruning_test": pruning_test}
            count = sum(len(request.items) for request in view.requested(query))
            self.executor.expect(count)
            self.executor.count_stored(count)
            self.search.tell(number, view.evidence(query))
        return Searcher.FINISHED if self.search.exhausted else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        for _ in range(result["stages"] - self.stages.get(trial_id, 0)):
            self.executor.display.item_finished()
        self.stages[trial_id] = result["stages"]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id not in self.open or self.executor.interrupted:
            return
        if result and not error:
            self.on_trial_result(trial_id, result)
            if result.get("budget_exhausted"):
                # The query stays unanswered: with a larger budget the search proposes it again.
                self.executor.budget_exhausted = True
                return
        number, query = self.open.pop(trial_id)
        self.search.tell(number, self.reader.with_store(view_if_remote(self.reader.store)).evidence(query))
        self.executor.setting_evaluated(self.search)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store and the seed determine where the search is."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune pickles its tuner before it starts, and never uses the copy."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("run the study again: it continues from the store")
