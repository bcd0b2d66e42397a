"""Decisions about a running study: whenever they come and whatever dies, a replay gives the same results."""

import itertools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgg_ray import Study, load_study
from dgg_ray.analysis import load
from dgg_ray.config import registry
from dgg_ray.config.decisions import stopped_settings
from dgg_ray.core.errors import StudyError
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.cost import budget
from dgg_ray.execution import decision_watch, driver
from dgg_ray.execution.executor import LocalExecutor, make_executor
from dgg_ray.execution.progress import Display
from dgg_ray.execution.trackers import tracker_reporter
from dgg_ray.planning import study_control
from dgg_ray.search.comparison import comparison_chains
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.search.optuna_search import OptunaSearch
from dgg_ray.storage.memory import MemoryStore

TASK = {"reader": "embedded", "train": 40, "validation": 20, "test": 20}
ALPHA = {"per_task": [0, 0.1, 0.3, 1.0]}
SEARCHES = {
    "tpe": {
        "method": "tpe",
        "trials": 9,
        "parallel": 3,
        "prune_level": 0.3,
        "space": {"strategy.alpha": ALPHA, "strategy.buffer": [4, 10]},
    },
    "stagewise": {
        "method": "stagewise",
        "beam": 2,
        "values_per_task": 3,
        "global_candidates": 2,
        "audit_fraction": 0.2,
        "space": {"strategy.alpha": ALPHA, "strategy.buffer": [4, 10]},
    },
}


def study_of(method, seed=0):
    return load_study(
        {
            "name": "controlled",
            "model": "embedded",
            "tasks": [{"name": name, **TASK} for name in ("digits", "words", "shapes")],
            "strategy": {"name": "dgg", "alpha": 0.1, "buffer": 4},
            "orders": {"design": "random", "count": 2},
            "seeds": [0],
            "search": {**SEARCHES[method], "seed": seed},
            "protocol": {
                "final_seeds": [0],
                "baselines": [
                    "runner_up",
                    "constant",
                    "replay",
                    {"name": "l2sp", "search": {"strategy.strength": [0.1, 1.0, 10.0]}, "trials": 3},
                ],
            },
            "simulation": {"wait": 0.0, "noise": 0.02, "seed": seed},
            "workers": {"engine": "simulated"},
        }
    )


class Store(MemoryStore):
    """Records with the meaning that costs are read from, as other stores have them."""

    def publish(self, stage, record, fill):
        super().publish(stage, {"meaning": stage.meaning} | record, fill)


class KilledError(BaseException):
    pass


@dataclass
class History:
    """A study with events at random moments between its items: decisions, looks for them, deaths."""

    study: Study
    out: Path
    chance: random.Random
    store: MemoryStore = field(default_factory=Store)
    watches: list = field(default_factory=list)
    live: list = field(default_factory=list)
    taken: list = field(default_factory=list)
    known: list = field(default_factory=list)  # at each decision: what the search had proposed and knew
    deaths: int = 0
    decide, look, die = 0.12, 0.3, 0.04  # chances at each item

    def run(self, calm=False):
        self.calm = calm
        self.out.mkdir(exist_ok=True)
        study = registry.with_decisions(self.study, self.store)
        tracker = budget.make_tracker(study, self.store, comparison_chains)
        with (
            Display("", quiet=True) as display,
            make_executor(study, self.store, self.out, display, tracker, local=True) as executor,
            tracker_reporter(study, self.store, self.out) as reporter,
        ):
            reader = EvidenceReader(study, self.store)
            driver.heed_decisions(reader, self.out, executor, reporter, OptionalOutputs())

    def run_to_the_end(self):
        while True:
            try:
                self.run()
            except KilledError:
                self.deaths += 1
                continue
            if not self.decide_at_random():  # now and then after its end
                break
        self.run(calm=True)

    def event(self):
        if self.calm:
            return
        if self.chance.random() < self.decide:
            self.decide_at_random()
        if self.chance.random() < self.look and self.watches:
            self.watches[-1].look()
        if self.chance.random() < self.die:
            raise KilledError

    def decide_at_random(self):
        study = registry.with_decisions(self.study, self.store)
        state = study_control.StudyState(study, self.store)
        proposed = [q.setting for search in state.searches.values() for q in search.proposed]
        kind = self.chance.choice(["stop_setting"] * 4 + ["stop_branch", "pin", "pin", "unpin", "budget"])
        content: dict[str, Any] = {"kind": kind}
        setting = self.chance.choice(proposed)
        if kind == "budget":
            content["limits"] = {"worker_hours": 1000 + self.chance.randrange(100)}
        elif kind == "stop_branch":
            paths = self.chance.sample(sorted(setting), self.chance.randint(1, len(setting)))
            content["values"] = {path: setting[path] for path in paths}
        else:
            content["setting"] = study.at(setting).id
            if kind == "stop_setting" and self.chance.random() < 0.7 and state.unfinished:
                content["setting"] = self.chance.choice(sorted(state.unfinished))
        try:
            self.taken.append(study_control.record(self.store, study.name, content, by="ada"))
        except StudyError:
            return False
        self.known.append(own_queries(state.comparison.search))
        return True


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Make histories whose events happen before and after the items of the run that goes on."""
    monkeypatch.setattr(decision_watch, "LOOK_EVERY_S", 3600.0)
    current, run_item = [], LocalExecutor._run_item

    def run_with_events(self, item):
        current[-1].event()
        done = run_item(self, item)
        current[-1].event()
        return done

    class Watch(decision_watch.DecisionWatch):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            current[-1].watches.append(self)

    class Compared(driver.Comparison):
        @classmethod
        def from_search_method(cls, *arguments):
            compared = super().from_search_method(*arguments)
            current[-1].live.append(compared)
            return compared

    monkeypatch.setattr(OptunaSearch, "copy_to", lambda *arguments, **keywords: None)
    monkeypatch.setattr(LocalExecutor, "_run_item", run_with_events)
    monkeypatch.setattr(driver, "DecisionWatch", Watch)
    monkeypatch.setattr(driver, "Comparison", Compared)
    numbers = itertools.count()

    def make(study, seed):
        current.append(History(study, tmp_path / str(next(numbers)), random.Random(seed)))
        return current[-1]

    return make


def outcome(history):
    """(searches' proposals and answers, chosen setting, table) as they are read from the store."""
    study = registry.with_decisions(history.study, history.store)
    contents = load.read_contents(EvidenceReader(study, history.store))
    compared = contents.comparison
    proposals = described(compared)
    table = load.score_table(history.store, contents.requested, (), contents.untouched)
    stopped = set(stopped_settings(study.data.decisions)) | {
        study.at(search.proposed[number].setting).id
        for search in compared.searches
        for number in search.stopped
    }
    return proposals, compared, table, stopped


def described(compared):
    return [
        (
            search.label,
            [repr(query) for query in search.proposed],
            {n: evidence and known_scores(evidence) for n, evidence in sorted(search.answers.items())},
            sorted(search.stopped),
        )
        for search in compared.searches
    ]


def own_queries(search):
    """(setting, depth, block, scores or None) of each query but those that pins add at the end."""
    return [
        (*query[:2], query.block, (evidence := search.answers.get(n)) and known_scores(evidence))
        for n, query in enumerate(search.proposed)
        if n not in search.asked_again
    ]


def known_scores(evidence):
    """Scores on the tasks trained so far, to the bit; of later ones the store may hold more."""
    return [np.tril(matrix.R).tobytes() for matrix in evidence.scores]


def uninterrupted(history, make):
    """The same study on a store that holds the same decisions from the start, and nothing else."""
    again = make(history.study, 0)
    for name, (data, _) in history.store.backend.objects.items():
        if "/decisions/" in name or name == "store.json":
            again.store.backend.write(name, data)
    again.run(calm=True)
    return again


@pytest.mark.whole
@pytest.mark.parametrize("method", list(SEARCHES))
@pytest.mark.parametrize("group", range(7))
def test_decisions_at_any_moment_and_deaths_end_as_one_uninterrupted_replay(method, group, history):
    counts = {"decisions": 0, "deaths": 0, "stopped": 0, "looks": 0}
    for seed in range(4 * group, 4 * group + 4):
        one = history(study_of(method, seed % 5), seed)
        registry.StatePublisher(one.study, one.store, one.out).__enter__()  # as a run does first
        one.run_to_the_end()
        proposals, compared, table, stopped = outcome(one)
        assert described(one.live[-1]) == proposals  # the running search is the one that is read

        again = uninterrupted(one, history)
        theirs, compared_again, table_again, stopped_again = outcome(again)
        assert proposals == theirs
        assert stopped == stopped_again
        assert compared.chosen == compared_again.chosen
        assert list(compared.settings) == list(compared_again.settings)
        ended = own_queries(compared.search)
        for known in one.known:  # no decision changes what was proposed and told before it
            for (*query, scores), (*query_now, scores_now) in zip(known, ended, strict=False):
                assert query == query_now
                assert scores in (None, scores_now)
            assert len(known) <= len(ended)
        kept, kept_again = (t[~t["setting"].isin(stopped)] for t in (table, table_again))
        assert kept.to_csv() == kept_again.to_csv() or kept.to_csv(index=False) == kept_again.to_csv(
            index=False
        )
        counts["decisions"] += len(one.taken)
        counts["deaths"] += one.deaths
        counts["stopped"] += len(stopped)
        counts["looks"] += sum(len(w.study.data.decisions) > 0 for w in one.watches)
    print(json.dumps(counts))
    assert min(counts.values()) > 0
