"""A study is run: searched with Ray Tune and Optuna, its winner compared, its report written.

    propose → judge on every block (validation) → … → recommend → compare with the rivals (test) → report

Everything is asked of the store first. Ray is started when the first stage is missing, so a study
that is finished answers without it, and one that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import ray
import ray.tune
from ray.tune.search import Searcher

from dgg_ray import broker as brokers
from dgg_ray import cluster, judge, methods, studyfile
from dgg_ray.errors import ClusterError
from dgg_ray.fleet import Fleets, describe, workshop
from dgg_ray.progress import Display
from dgg_ray.racing import Race
from dgg_ray.search import Method, Probe
from dgg_ray.stages import StageStore, Work
from dgg_ray.study import Study

if TYPE_CHECKING:
    from dgg_ray.results import Outcome

ON_HEAD = ray.tune.PlacementGroupFactory([brokers.ON_HEAD])


def run(
    study: Study, out: Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> Outcome:
    """Run or continue a study into a folder; see Study.run.

    address: of a Ray cluster; None starts one on this machine if a stage has to be learned.
    """
    from dgg_ray import report, results, warm  # here: trials import this file, and need no plots

    out = out.absolute()
    study = warm.settled(study, out)
    store = StageStore(study.store_folder(out))
    store.sweep()
    studyfile.keep(study, out)
    began = time.perf_counter()
    with (
        Display(study.name, quiet=quiet) as display,
        Crew(study, store, out, display, local, address) as crew,
    ):
        found, more = None, {}
        if study.search is not None:
            found = pursue(study, store, crew, methods.method(study, out / "search.db"))
            more = {name: pursue(study, store, crew, own) for name, own in methods.rivals(found).items()}
        crew.obtain(judge.final_works(methods.contenders(study, found, more)))
    outcome = results.Outcome(results.load(out), out, crew.tally | {"seconds": time.perf_counter() - began})
    report.write(outcome.results, out)
    return outcome


# -- who does the work -----------------------------------------------------------------------------


@dataclass
class Crew:
    """Gets work done: from the store, in this process, or by fleets that are started when needed.

    tally: of this run: stages asked for, there (in the store already), trained, failed; `fleet_up`,
        seconds until the first stage began, where a fleet was started.
    """

    study: Study
    store: StageStore
    out: Path
    display: Display
    local: bool = False
    address: str | None = None
    tally: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(("asked", "there", "trained", "failed"), 0)
    )
    broker: Any = None
    shop: Any = field(default=None, init=False)
    failed: set[str] = field(default_factory=set, init=False)  # in this run: not tried twice in one

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.began = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.broker and kind is None:
            self.count()
        self.stack.close()

    def obtain(self, chains: Sequence[Sequence[Work]]) -> None:
        """Leave the store with every work of every chain; a failed stage ends its chain."""
        left = []
        for chain in chains:
            self.expect(len(chain))
            missing = [work for work in chain if not self.store.has(work)]
            self.answered(len(chain) - len(missing))
            left += [missing] if missing else []
        if self.local:
            self.work_here(left)
        elif left:
            brokers.walk(left, self.start().need.remote, lambda work: self.display.finished())
            self.check()

    def expect(self, count: int) -> None:
        self.tally["asked"] += count
        self.display.total += count

    def answered(self, count: int) -> None:
        """The store had these."""
        self.tally["there"] += count
        for _ in range(count):
            self.display.finished(was_there=True)

    def work_here(self, chains: Sequence[Sequence[Work]]) -> None:
        if not chains:
            return
        self.shop = self.shop or workshop(self.study, self.store)
        for chain in chains:
            for work in chain:
                if work.stage.key in self.failed:
                    break
                fresh = self.store.record(work.stage) is None
                try:
                    self.shop.obtain(work)
                except Exception as problem:
                    self.store.fail(work.stage, describe(problem))
                    self.failed.add(work.stage.key)
                    self.tally["failed"] += 1
                    break
                self.tally["trained"] += fresh and bool(work.stage.learns)
                self.display.finished()

    def start(self) -> Any:
        """The broker, with Ray and fleets behind it."""
        if self.broker is None:
            self.display.say("starting Ray …")
            self.stack.enter_context(cluster.connected(self.study, self.address))
            retries = self.study.workers.retries
            self.broker = brokers.Broker.remote(self.store, retries)  # type: ignore[attr-defined]
            folder = self.out / "ray"
            self.fleets = self.stack.enter_context(
                Fleets(self.study, self.store, self.broker, folder, self.heard)
            )
        return self.broker

    def heard(self, status: dict[str, Any]) -> None:
        """The broker's status, a few times a second."""
        self.display.update(status)
        if status["running"]:
            self.tally.setdefault("fleet_up", time.perf_counter() - self.began)

    def count(self) -> None:
        status: dict[str, Any] = ray.get(self.broker.status.remote())
        self.tally |= {"trained": status.get("trained", 0), "failed": status.get("failed", 0)}

    def check(self) -> None:
        """ClusterError where no fleet can be had."""
        if self.broker and self.fleets.failure:
            raise ClusterError(self.fleets.failure)


# -- the search ------------------------------------------------------------------------------------


def pursue(study: Study, store: StageStore, crew: Crew, search: Method) -> Method:
    """Judge what a search proposes until it is finished; all that the store answers without Ray."""

    def answered(number: int, probe: Probe) -> None:
        crew.expect(count := sum(len(walk.works) for walk in judge.asked(study, store, probe)))
        crew.answered(count)

    blocked = judge.replay(study, store, search, answered)
    if blocked is not None:
        search.put_back(*blocked)
        (search_here if crew.local else search_with_tune)(study, store, search, crew)
    return search


def search_here(study: Study, store: StageStore, search: Method, crew: Crew) -> None:
    while (proposal := search.ask()) is not None:
        number, probe = proposal
        while chains := judge.needs(study, store, probe):
            crew.obtain(chains)
            if judge.needs(study, store, probe) == chains:  # all of them failed
                break
        search.tell(number, judge.evidence(study, store, probe))
        crew.display.best = best_so_far(search)


def search_with_tune(study: Study, store: StageStore, search: Method, crew: Crew) -> None:
    """Ray Tune runs the trials; each asks the broker for its stages and reports after every one."""
    broker = crew.start()
    trial = ray.tune.with_parameters(judge_probe, study=study, store=store, broker=broker)
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


def judge_probe(config: dict[str, Any], study: Study, store: StageStore, broker: Any) -> None:
    """A trial: walk the probe's runs, stage by stage, all at once. It trains nothing itself."""
    race = config["race"]
    probe = Probe(**{**config, "race": Race(**race) if race else None})
    learned, errors = 0, []

    def finished(work: Work) -> None:
        nonlocal learned
        learned += 1
        ray.tune.report({"stages": learned, "score": so_far(study, store, probe)})

    while not errors and (chains := judge.needs(study, store, probe)):
        errors = brokers.walk(chains, broker.need.remote, finished)
    ray.tune.report({"stages": learned, "score": so_far(study, store, probe), "failed": len(errors)})


def so_far(study: Study, store: StageStore, probe: Probe) -> float:
    """Mean score on the tasks learned, after each run's last finished stage, over the runs begun."""
    scores = []
    at = study.at(probe.setting)
    for run in judge.runs_of(at, probe):
        R = judge.matrix(at, store, run, study.protocol.select_on, probe.depth).R
        begun = np.flatnonzero(~np.isnan(R).all(axis=1))
        scores += [np.nanmean(R[begun[-1]])] if len(begun) else []
    return float(np.mean(scores)) if scores else 0.0


class Steady(Searcher):
    """Probes as Ray Tune asks for them; those that the store answers never become trials."""

    def __init__(self, study: Study, store: StageStore, search: Method, crew: Crew) -> None:
        super().__init__(metric="score", mode="max")  # Tune wants one; the method judges
        self.study, self.store, self.search, self.crew = study, store, search, crew
        self.open: dict[str, tuple[int, Probe]] = {}
        self.stages: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        while (proposal := self.search.ask()) is not None:
            number, probe = proposal
            missing = judge.needs(self.study, self.store, probe)
            if missing:
                self.open[trial_id] = proposal
                self.crew.expect(sum(map(len, missing)))
                race = probe.race._asdict() if probe.race else None
                return {**probe._asdict(), "setting": dict(probe.setting), "race": race}
            self.answered(probe)
            self.search.tell(number, judge.evidence(self.study, self.store, probe))
        return Searcher.FINISHED if self.search.out else None

    def answered(self, probe: Probe) -> None:
        """The store had all of it."""
        self.crew.expect(count := sum(len(walk.works) for walk in judge.asked(self.study, self.store, probe)))
        self.crew.answered(count)

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
        number, probe = self.open.pop(trial_id)
        self.search.tell(number, judge.evidence(self.study, self.store, probe))
        self.crew.display.best = best_so_far(self.search)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store and the seed say where the search is."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its tuner before it begins; what is unpickled from that is never used."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("run the study again: it goes on from the store")


def best_so_far(search: Method) -> str:
    number = search.best()
    if number is None:
        return ""
    values = search.judged()[number].objective
    scores = ", ".join(f"{n} {v:.3f}" for n, v in zip(search.search.objective, values, strict=True))
    return f"{scores} with " + ", ".join(f"{k}={v}" for k, v in search.proposed[number].setting.items())
