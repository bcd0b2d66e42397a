"""A study is run: searched with Ray Tune and Optuna, its winner compared with the baselines.

    propose → judge on every block (validation) → … → recommend → compare with the baselines (test) → report

Everything is asked of the store first. Ray is started when the first stage is missing, so a study
that is finished answers without it, and one that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import ray
import ray.tune
from ray.tune.search import Searcher

from dgg_ray.config import takeover
from dgg_ray.config.registry import Ledger
from dgg_ray.config.study import Study
from dgg_ray.core.fence import Fence
from dgg_ray.core.stage import WorkItem
from dgg_ray.core.terminal import warn
from dgg_ray.cost import budget, forecast
from dgg_ray.cost.model import profiling_items
from dgg_ray.execution import cluster, trackers
from dgg_ray.execution.broker_client import over, walk
from dgg_ray.execution.executor import Crew
from dgg_ray.execution.progress import Display
from dgg_ray.planning import edited_plugins
from dgg_ray.search import comparison, evidence
from dgg_ray.search.base import Method, Query
from dgg_ray.search.pruning import PruningTest
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import at_once

if TYPE_CHECKING:
    from dgg_ray.planning.plan import Plan

ON_HEAD = ray.tune.PlacementGroupFactory([cluster.ON_HEAD])


def prepared(study: Study, out: Path, local: bool, fence: Fence) -> tuple[Study, StageStore]:
    """The study as it is to be run into a folder, and its store, which takes what is written into it.

    What an earlier version of the study said differently is told.
    """
    from dgg_ray.search import warm_start  # here: trials import this file

    study = warm_start.settled(study, out)
    if changes := takeover.changes(study, out):
        warn(changes)
    store = study.store(out)
    store.check()
    with fence("the clearing away of what earlier runs left", "was not done"):
        store.sweep()
    return here(study, local), store


def run(
    study: Study, store: StageStore, out: Path, fence: Fence, local: bool, address: str | None, quiet: bool
) -> dict[str, float]:
    """Run or continue a study into a folder, as `prepared` gives it; see `face.run_study`.

    address: of a Ray cluster; None starts one on this machine if a stage has to be learned.
    Returns the counts of stages asked for, there, trained and failed, and the seconds that it took.
    """
    from dgg_ray.planning.plan import plan

    purse = budget.purse(study, store, comparison.comparison_items)
    began = time.perf_counter()
    with (
        Ledger(study, store, out, shared=address is not None or "://" in store.url) as ledger,
        Display(
            study.name, quiet=quiet, look=lambda: plan(study, store), note=ledger.live, fence=fence
        ) as display,
        Crew(study, store, out, display, purse, local, address) as crew,
        trackers.tracking(study, store, out, crew.start, fence) as tracking,
    ):
        display.told = tracking.look
        for line in edited_plugins.sentences(study, store):
            display.say(line)
        if study.budget:
            crew.obtain([[item] for item in profiling_items(study)])
            purse.begin()
            purse.check(comparison.first_run_items(study))
        with forecast.kept(out, display.take(plan(study, store)), fence) as entry:
            search_and_compare(study, store, out, crew, tracking, fence)
            if crew.over:
                entry["refused"] = plan(study, store).to_train
    return crew.tally | {"seconds": time.perf_counter() - began}


def search_and_compare(
    study: Study, store: StageStore, out: Path, crew: Crew, tracking: trackers.Tracking, fence: Fence
) -> None:
    """Have all that the study asks for done, as far as it can be: its search, then the comparison."""
    found, more = None, {}
    if study.search is not None:
        found = comparison.make_search(study, out / "search.db", fence)
        tracking.follow(found)
        pursue(study, store, crew, found)
        more = {
            name: pursue(study, store, crew, own) for name, own in comparison.baseline_searches(found).items()
        }
    final = comparison.compared_settings(study, found, more)
    tracking.compare(final)
    crew.obtain(evidence.final_works(final))


def profile(
    study: Study, out: Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> tuple[Plan, list[str]]:
    """Measure what the study's stages will take, a few steps of each kind.

    Returns what is predicted now, and the errors of what could not be measured.
    """
    from dgg_ray.planning.plan import plan

    out = out.absolute()
    takeover.refuse_folder_of_another(study, out)
    store = study.store(out)
    store.check()
    study = here(study, local)
    with (
        Display(f"{study.name}, probes", quiet=quiet) as display,
        Crew(study, store, out, display, budget.Purse(), local, address) as crew,
    ):
        crew.obtain([[item] for item in profiling_items(study)])
    return plan(study, store), [f"{e['error']}: {e['message']}" for e in crew.errors]


def here(study: Study, local: bool) -> Study:
    """The study with the workers that it really has."""
    return replace(study, workers=study.workers.alone()) if local else study


# -- the search ------------------------------------------------------------------------------------


def pursue(study: Study, store: StageStore, crew: Crew, search: Method) -> Method:
    """Judge what a search proposes until it is finished; all that the store answers without Ray."""

    seen = at_once(store)

    def answered(number: int, query: Query) -> None:
        crew.expect(count := sum(len(one.work_items) for one in evidence.asked(study, seen, query)))
        crew.answered(count)

    blocked = evidence.replay(study, seen, search, answered)
    if blocked is not None:
        search.put_back(*blocked)
        (search_here if crew.local else search_with_tune)(study, store, search, crew)
    return search


def search_here(study: Study, store: StageStore, search: Method, crew: Crew) -> None:
    while not crew.over and (proposal := search.ask()) is not None:
        number, query = proposal
        for part in evidence.parts(study, store, query):
            crew.obtain(evidence.missing(store, part))
            if evidence.missing(store, part):
                break
        found = evidence.evidence(study, at_once(store), query)
        if crew.over and found is None:
            return  # not judged, and not told so: with a larger budget it is the next
        search.tell(number, found)
        crew.display.judged(lambda: comparison.best_so_far(search))


def search_with_tune(study: Study, store: StageStore, search: Method, crew: Crew) -> None:
    """Ray Tune runs the trials; each asks the broker for its stages and reports after every one."""
    broker = crew.start()
    trial = ray.tune.with_parameters(evaluate_query, study=study, store=store, broker=broker)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial, ON_HEAD),
        tune_config=ray.tune.TuneConfig(
            search_alg=Steady(study, store, search, crew),
            num_samples=-1,  # the searcher says when it is over,
            max_concurrent_trials=None,  # and holds back what must wait
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(crew.out / "ray"),
            failure_config=ray.tune.FailureConfig(max_failures=3),
            verbose=0,
        ),
    )
    tuner.fit()
    crew.check()


def evaluate_query(config: dict[str, Any], study: Study, store: StageStore, broker: Any) -> None:
    """A trial: walk the profile's runs, stage by stage, all at once. It trains nothing itself."""
    pruning_test = config["pruning_test"]
    query = Query(**{**config, "pruning_test": PruningTest(**pruning_test) if pruning_test else None})
    learned, errors = 0, list[dict[str, str]]()
    there, scores = set[str](), dict[str, float]()

    def finished(item: WorkItem) -> None:
        nonlocal learned
        learned += 1
        there.add(item.stage.key)
        ray.tune.report({"stages": learned, "score": so_far(study, store, query, there, scores)})

    for part in evidence.parts(study, store, query):
        left = evidence.missing(store, part)
        there |= {item.stage.key for one in part for item in one.work_items}
        there -= {item.stage.key for chain in left for item in chain}
        errors = walk(left, broker, finished)
        if errors:
            break
    found = {"failed": len(errors), "over": over(errors)}
    ray.tune.report({"stages": learned, "score": so_far(study, store, query, there, scores), **found})


def so_far(
    study: Study, store: StageStore, query: Query, done: Collection[str], scores: dict[str, float]
) -> float:
    """Mean score on the tasks learned, after each run's last finished stage, over the runs begun.

    done: keys of finished stages; scores: after those that were looked at before, by key. Each is looked at
    once: in a store far away every look is a request.
    """
    at, last = study.at(query.setting), dict[int, float]()
    for number, run in enumerate(evidence.runs_of(at, query)):
        for stage in (s for s in run.stages if s.key in done):
            if stage.key not in scores:
                row = evidence.row(at, store, run, stage, study.protocol.selection_split)
                scores[stage.key] = float(np.nanmean(row))
            last[number] = scores[stage.key]
    return float(np.mean(list(last.values()))) if last else 0.0


class Steady(Searcher):
    """Probes as Ray Tune asks for them; those that the store answers never become trials."""

    def __init__(self, study: Study, store: StageStore, search: Method, crew: Crew) -> None:
        super().__init__(metric="score", mode="max")  # Tune wants one; the method judges
        self.study, self.store, self.search, self.crew = study, store, search, crew
        self.open: dict[str, tuple[int, Query]] = {}
        self.stages: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        if self.crew.over:
            return Searcher.FINISHED
        seen = at_once(self.store)
        while (proposal := self.search.ask()) is not None:
            number, query = proposal
            missing = evidence.needs(self.study, seen, query)
            if missing:
                self.open[trial_id] = proposal
                self.crew.expect(sum(map(len, missing)))
                pruning_test = query.pruning_test._asdict() if query.pruning_test else None
                return {**query._asdict(), "setting": dict(query.setting), "pruning_test": pruning_test}
            self.crew.expect(
                count := sum(len(one.work_items) for one in evidence.asked(self.study, seen, query))
            )
            self.crew.answered(count)
            self.search.tell(number, evidence.evidence(self.study, seen, query))
        return Searcher.FINISHED if self.search.out else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        for _ in range(result["stages"] - self.stages.get(trial_id, 0)):
            self.crew.display.finished()
        self.stages[trial_id] = result["stages"]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id not in self.open:
            return
        if result and not error:
            self.on_trial_result(trial_id, result)
            if result.get("over"):
                self.crew.over = True  # not judged, and not told so: with a larger budget it is the next
                return
        number, query = self.open.pop(trial_id)
        self.search.tell(number, evidence.evidence(self.study, at_once(self.store), query))
        self.crew.display.judged(lambda: comparison.best_so_far(self.search))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store and the seed say where the search is."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its tuner before it begins; what is unpickled from that is never used."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("run the study again: it goes on from the store")
