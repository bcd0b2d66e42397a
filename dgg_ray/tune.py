"""A study is run: searched with Ray Tune and Optuna, its winner compared, its report written.

    propose → judge on every block (validation) → … → recommend → compare with the rivals (test) → report

Everything is asked of the store first. Ray is started when the first stage is missing, so a study
that is finished answers without it, and one that was killed goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import ray
import ray.tune
from ray.tune.search import Searcher

from dgg_ray import broker as brokers
from dgg_ray import budget, cluster, forecast, judge, studyfile
from dgg_ray.cost import probes
from dgg_ray.crew import Crew
from dgg_ray.plan import Plan, plan
from dgg_ray.progress import LIVE, Display
from dgg_ray.search import Proposals, Setting
from dgg_ray.stages import StageStore, Work
from dgg_ray.study import Study

if TYPE_CHECKING:
    from dgg_ray.results import Outcome

ON_HEAD = ray.tune.PlacementGroupFactory([cluster.ON_HEAD])


def run(
    study: Study, out: Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> Outcome:
    """Run or continue a study into a folder; see Study.run.

    address: of a Ray cluster; None starts one on this machine if a stage has to be learned.
    """
    from dgg_ray import report, results  # here: trials import this file, and need no plots

    out = out.absolute()
    store = StageStore(study.store_folder(out))
    store.sweep()
    studyfile.keep(study, out)
    study = here(study, local)
    purse = budget.purse(study, store, judge.final_works)
    began = time.perf_counter()
    with (
        Display(study.name, quiet=quiet, look=lambda: plan(study, store), note=out / LIVE) as display,
        Crew(study, store, out, display, purse, local, address) as crew,
    ):
        if study.budget:
            crew.obtain([[work] for work in probes(study)])
            purse.begin()
            purse.check(judge.first_run(study))
        with forecast.kept(out, plan(study, store)) as entry:
            winner = search(study, store, crew)
            if winner is not None:
                crew.obtain(judge.final_works(winner))
            if crew.over:
                entry["refused"] = plan(study, store).to_train
    outcome = results.Outcome(results.load(out), out, crew.tally | {"seconds": time.perf_counter() - began})
    report.write(outcome.results, out)
    return outcome


def probe(
    study: Study, out: Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> tuple[Plan, list[str]]:
    """Measure what the study's stages will take, a few steps of each kind.

    Returns what is predicted now, and the errors of what could not be measured.
    """
    out = out.absolute()
    store = StageStore(study.store_folder(out))
    study = here(study, local)
    with (
        Display(f"{study.name}, probes", quiet=quiet) as display,
        Crew(study, store, out, display, budget.Purse(), local, address) as crew,
    ):
        crew.obtain([[work] for work in probes(study)])
    return plan(study, store), [f"{e['error']}: {e['message']}" for e in crew.errors]


def here(study: Study, local: bool) -> Study:
    """The study with the workers that it really has."""
    return replace(study, workers=study.workers.alone()) if local else study


# -- the search ------------------------------------------------------------------------------------


def search(study: Study, store: StageStore, crew: Crew) -> Study | None:
    """Judge settings until all are; the study at the recommended one, None where none could be judged."""
    if study.search is None:
        return study
    proposals = Proposals(study, crew.out / "search.db")

    def answered(number: int, setting: Setting) -> None:
        crew.expect(count := stages_of(study.at(setting)))
        crew.answered(count)

    blocked = judge.replay(study, store, proposals, answered)
    if blocked is not None:
        proposals.put_back(blocked)
        if crew.local:
            search_here(study, store, proposals, crew)
        else:
            search_with_tune(study, store, proposals, crew)
    best = proposals.best()
    return None if best is None else study.at(proposals.proposed[best])


def stages_of(study: Study) -> int:
    return sum(len(run.stages) for run in study.runs())


def search_here(study: Study, store: StageStore, proposals: Proposals, crew: Crew) -> None:
    while not crew.over and (proposal := proposals.ask()) is not None:
        number, setting = proposal
        at = study.at(setting)
        crew.obtain([judge.works(at, run) for run in at.runs()])
        if crew.over and not judge.complete(at, store):
            return  # not judged, and not told so: with a larger budget it is the next
        proposals.tell(number, judge.judge(at, store))
        crew.display.best = judge.best_so_far(study, store, proposals)


def search_with_tune(study: Study, store: StageStore, proposals: Proposals, crew: Crew) -> None:
    """Ray Tune runs the trials; each asks the broker for its stages and reports after every one."""
    assert study.search is not None
    broker = crew.start()
    trial = ray.tune.with_parameters(judge_setting, study=study, store=store, broker=broker)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trial, ON_HEAD),
        tune_config=ray.tune.TuneConfig(
            search_alg=Steady(study, store, proposals, crew),
            num_samples=proposals.count,
            max_concurrent_trials=None,  # the searcher holds back what must wait
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


def judge_setting(config: dict[str, Any], study: Study, store: StageStore, broker: Any) -> None:
    """A trial: walk the setting's runs, stage by stage, all at once. It trains nothing itself."""
    at = study.at(config["setting"])
    learned = 0

    def finished(work: Work) -> None:
        nonlocal learned
        learned += 1
        ray.tune.report({"stages": learned, "score": so_far(at, store)})

    runs = [judge.works(at, run) for run in at.runs()]
    errors = brokers.walk(runs, broker.need.remote, finished)
    found = {"failed": len(errors), "over": brokers.over(errors)}
    ray.tune.report({"stages": learned, "score": so_far(at, store), **found})


def so_far(study: Study, store: StageStore) -> float:
    """Mean score on the tasks learned, after each run's last finished stage, over the runs begun."""
    scores = []
    for run in study.runs():
        R = judge.matrix(study, store, run, *judge.SELECTION).R
        begun = np.flatnonzero(~np.isnan(R).all(axis=1))
        scores += [np.nanmean(R[begun[-1]])] if len(begun) else []
    return float(np.mean(scores)) if scores else 0.0


class Steady(Searcher):
    """Proposals as Ray Tune asks for them; those that the store answers never become trials."""

    def __init__(self, study: Study, store: StageStore, proposals: Proposals, crew: Crew) -> None:
        super().__init__(metric="score", mode="max")  # Tune wants one; the proposals judge
        self.study, self.store, self.proposals, self.crew = study, store, proposals, crew
        self.numbers: dict[str, int] = {}
        self.stages: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        if self.crew.over:
            return Searcher.FINISHED
        while (proposal := self.proposals.ask()) is not None:
            number, setting = proposal
            at = self.study.at(setting)
            self.crew.expect(stages_of(at))
            if not judge.complete(at, self.store):
                self.numbers[trial_id] = number
                return {"setting": dict(setting)}
            self.crew.answered(stages_of(at))
            self.proposals.tell(number, judge.judge(at, self.store))
        return Searcher.FINISHED if len(self.proposals.proposed) >= self.proposals.count else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        for _ in range(result["stages"] - self.stages.get(trial_id, 0)):
            self.crew.display.finished()
        self.stages[trial_id] = result["stages"]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id not in self.numbers:
            return
        if result and not error:
            self.on_trial_result(trial_id, result)
            if result.get("over"):
                self.crew.over = True  # not judged, and not told so: with a larger budget it is the next
                return
        number = self.numbers[trial_id]
        at = self.study.at(self.proposals.proposed[number])
        self.proposals.tell(number, judge.judge(at, self.store))
        self.crew.display.best = judge.best_so_far(self.study, self.store, self.proposals)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store and the seed say where the search is."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its tuner before it begins; what is unpickled from that is never used."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("run the study again: it goes on from the store")
