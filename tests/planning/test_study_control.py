"""Decisions about a study: what is refused, with which words, and what the others do to its proposals."""

import pytest

from dgg_ray import load_study
from dgg_ray.config import registry
from dgg_ray.core.errors import ResultsError, StudyError
from dgg_ray.planning import study_control
from dgg_ray.planning.plan import plan
from dgg_ray.planning.store_gc import StudyNeeds
from dgg_ray.search.comparison import Comparison, final_chains, make_search
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.training.simulated_runner import SimulatedRunner

TASK = {"reader": "embedded", "train": 40, "validation": 20, "test": 20}
GRID = {"method": "grid", "space": {"strategy.buffer": [4, 8, 12]}}
STAGEWISE = {
    "method": "stagewise",
    "values_per_task": 2,
    "beam": 2,
    "space": {"strategy.alpha": {"per_task": [0, 1.0]}},
}
BUFFER = "strategy.buffer"


class Store(MemoryStore):
    """Records with the meaning that costs are read from, as other stores have them."""

    def publish(self, stage, record, fill):
        super().publish(stage, {"meaning": stage.meaning} | record, fill)


class Begun:
    """A study of which some queries are answered."""

    def __init__(self, out, answered, search=GRID, **sections):
        self.study = load_study(
            {
                "name": "begun",
                "model": "embedded",
                "tasks": [{"name": name, **TASK} for name in ("digits", "words", "shapes")],
                "strategy": {"name": "dgg", "alpha": 0.1, "buffer": 4},
                "seeds": [0],
                "search": search,
                "protocol": {"baselines": ["replay"]},
                "simulation": {"wait": 0.0},
                "workers": {"engine": "simulated"},
                **sections,
            }
        )
        self.store = Store()
        self.runner = SimulatedRunner.of(self.study, self.store)
        registry.StatePublisher(self.study, self.store, out).__enter__()
        self.answer(answered)

    @property
    def now(self):
        return registry.with_decisions(self.study, self.store)

    def answer(self, count):
        """Evaluate further queries of the search."""
        reader = EvidenceReader(self.now, self.store)
        search = make_search(self.now)
        while count and (proposal := search.ask()) is not None:
            number, query = proposal
            missing = reader.missing(query)
            for item in (item for chain in missing for item in chain):
                self.runner.run(item)
            count -= bool(missing)
            search.tell(number, reader.evidence(query))

    def compared(self):
        return Comparison.from_study(
            self.now, EvidenceReader(self.now, self.store).fast_forward_past_failures
        )

    def id(self, setting):
        return self.study.at(setting).id

    def record(self, kind, by="ada", **content):
        return study_control.record(self.store, "begun", {"kind": kind, **content}, by)

    def fault(self, kind, **content):
        """The only fault of a decision that is refused; nothing is recorded."""
        before = registry.read_decisions(self.store, "begun")
        with pytest.raises(StudyError) as caught:
            self.record(kind, **content)
        assert registry.read_decisions(self.store, "begun") == before
        (fault,) = caught.value.faults
        return fault


@pytest.fixture
def grid(tmp_path):
    return Begun(tmp_path, 1)


def test_a_stopped_setting_is_answered_with_no_evidence_and_is_no_candidate(grid):
    settings = [query.setting for query in grid.compared().search.proposed]
    decision = grid.record("stop_setting", setting=grid.id(settings[1]))
    assert (decision.number, decision.by, decision.values) == (1, "ada", settings[1])
    grid.answer(9)
    search = grid.compared().search
    assert search.finished
    assert search.answers[1] is None
    assert list(search.stopped) == [1]
    assert sorted(search.evaluated()) == [0, 2]
    trained = {record["meaning"]["effect"].get("buffer") for record in grid.store if record["earlier"]}
    assert settings[1][BUFFER] not in trained


def test_what_was_answered_before_a_stop_stays_answered(grid):
    first = grid.id(grid.compared().search.proposed[0].setting)
    grid.answer(9)
    before = grid.compared().search.evaluated()
    assert grid.fault("stop_setting", setting=first).rule.startswith("is finished already")
    decision = grid.record("pin", setting=first)
    assert decision.answered == {"": [0]}
    assert grid.compared().search.evaluated() == before


def test_a_pinned_setting_stands_in_the_comparison_under_a_label_of_its_own(grid):
    grid.answer(9)
    compared = grid.compared()
    loser = next(q.setting for q in compared.search.proposed if q.setting != compared.chosen)
    grid.record("pin", setting=grid.id(loser))
    settings = grid.compared().settings
    label = f"pinned {grid.id(loser)}"
    assert list(settings) == ["dgg", "replay", label]
    assert settings[label].study.strategy.buffer == loser[BUFFER]
    assert plan(grid.study, grid.store).to_train > 0  # the plan counts its runs, too

    assert grid.fault("pin", setting=grid.id(loser)).rule == "is pinned already, by ada"
    grid.record("unpin", setting=grid.id(loser))
    assert list(grid.compared().settings) == ["dgg", "replay"]
    assert grid.fault("unpin", setting=grid.id(loser)).rule.startswith("must be pinned")


def test_a_pin_takes_a_stop_back_and_the_setting_is_asked_for_again_at_the_end(grid):
    setting = grid.compared().search.proposed[1].setting
    grid.record("stop_setting", setting=grid.id(setting))
    grid.record("pin", setting=grid.id(setting))
    grid.answer(9)
    search = grid.compared().search
    assert [query.setting[BUFFER] for query in search.proposed][3:] == [setting[BUFFER]]
    assert search.answers[1] is None  # as the search was told before
    assert sorted(search.evaluated()) == [0, 2, 3]


def test_a_stopped_baseline_needs_nothing_more_and_the_chosen_setting_cannot_be_stopped(grid):
    grid.answer(9)
    settings = grid.compared().settings
    chosen, replay = settings["dgg"].id, settings["replay"].id
    assert grid.fault("stop_setting", setting=chosen).rule.startswith("must not be the chosen setting")
    assert grid.record("stop_setting", setting="replay").setting == replay
    needed = {item.stage.key for chain in final_chains(grid.compared().settings) for item in chain}
    assert not needed & {stage.key for run in settings["replay"] for stage in run.stages[1:]}
    assert needed >= {stage.key for run in settings["dgg"] for stage in run.stages}
    assert grid.fault("stop_setting", setting="replay").rule == "is stopped already, by ada"


def test_unknown_names_are_refused_with_the_nearest_legal_one(grid):
    known = grid.id(grid.compared().search.proposed[1].setting)
    assert grid.fault("stop_setting", setting=f"{known[:-1]}x").near == known
    assert grid.fault("stop_settings", setting=known).near == "stop_setting"
    assert grid.fault("pin", setting="").path == "setting"
    assert grid.fault("pin", setting=known, values={"a": 1}).path == "values"
    assert grid.fault("pin", setting=known, by=" ").path == "by"
    with pytest.raises(ResultsError, match="holds no study 'other'"):
        study_control.record(grid.store, "other", {"kind": "pin", "setting": known}, "ada")


def test_a_branch_of_another_search_than_stagewise_is_refused(grid):
    fault = grid.fault("stop_branch", values={BUFFER: 4})
    assert fault.rule.startswith("belongs to a search by stagewise alone")


def test_nothing_that_continues_from_a_stopped_branch_is_trained(tmp_path):
    begun = Begun(tmp_path, 2, STAGEWISE)  # both values of the second task
    search = begun.compared().search
    (path,) = search.proposed[0].setting
    assert begun.fault("stop_branch", values={path: 0.7}).rule == "must be a value that was tried: 0 and 1.0"
    assert begun.fault("stop_branch", values={f"{path}s": 0}).near == path
    decision = begun.record("stop_branch", values={path: 1.0})
    assert decision.answered == {"": [1]}
    assert begun.fault("stop_branch", values={path: 1.0}).rule == "are stopped already, by ada"
    begun.answer(99)
    search = begun.compared().search
    assert search.finished
    later = [(n, query) for n, query in enumerate(search.proposed) if n != 1 and query.setting[path] == 1.0]
    assert later
    assert all(n in search.stopped for n, _ in later)
    assert search.proposed[search.best()].setting[path] == 0
    assert begun.fault("stop_branch", values={path: 0}).rule.startswith("needs a search that goes on")
    state = begun.id(search.proposed[0].setting)
    assert begun.fault("pin", setting=state).rule.startswith("must be a whole setting")


def test_a_search_whose_every_branch_is_stopped_ends_without_a_choice(tmp_path):
    begun = Begun(tmp_path, 2, STAGEWISE)
    (path,) = begun.compared().search.proposed[0].setting
    for value in (0, 1.0):
        begun.record("stop_branch", values={path: value})
    begun.answer(99)
    compared = begun.compared()
    assert compared.search.finished
    assert compared.chosen is None
    assert compared.settings == {}


def test_a_budget_in_another_unit_or_below_what_is_spent_is_refused(grid):
    spent = plan(grid.study, grid.store).cost_forecast.as_json()["spent"]["worker-hours"]
    assert spent > 0
    fault = grid.fault("budget", limits={"worker_hours": spent / 2})
    assert fault.path == "budget.worker_hours"
    assert fault.rule == f"must be at least what is spent already, {spent:.3g}"
    assert grid.fault("budget", limits={"gpu_hours": 3}).rule.startswith("needs workers.gpus")
    assert grid.fault("budget", limits={"worker_hour": 3}).near == "worker_hours"
    assert grid.fault("budget", limits={"worker_hours": "3"}).rule == "must be a number above 0"
    grid.record("budget", limits={"worker_hours": 2 * spent})
    grid.record("budget", limits={"disk_gb": 3})
    assert grid.now.budget.worker_hours == 2 * spent
    assert grid.now.budget.disk_gb == 3
    assert plan(grid.study, grid.store).budget == grid.now.budget


def test_two_who_decide_at_once_get_numbers_of_their_own(grid, monkeypatch):
    ids = [grid.id(query.setting) for query in grid.compared().search.proposed]
    append, others = registry.append_decision, []

    def append_after_another(store, name, decision):
        if not others:
            others.append(True)
            others.append(grid.record("stop_setting", by="eve", setting=ids[1]))
        return append(store, name, decision)

    monkeypatch.setattr(registry, "append_decision", append_after_another)
    with pytest.raises(StudyError, match="is stopped already, by eve"):  # found when it is checked again
        grid.record("stop_setting", setting=ids[1])
    others.clear()
    ids[1] = ids[2]
    assert grid.record("budget", limits={"worker_hours": 99}).number == 3
    decisions = registry.read_decisions(grid.store, "begun")
    assert [(d.number, d.by) for d in decisions] == [(1, "eve"), (2, "eve"), (3, "ada")]


def test_what_stopped_settings_have_is_kept_and_what_they_lack_counts_as_nothing_missing(grid):
    grid.answer(9)
    runner, replay = grid.runner, grid.compared().settings["replay"]
    first, *_ = replay.work_items(replay[0], ("validation", "test"), "next")
    second = replay.work_items(replay[0], ("validation", "test"), "next")[1]
    for item in (first, second):
        runner.run(item)
    grid.record("stop_setting", setting="replay")
    for chain in final_chains(grid.compared().settings):
        for item in chain:
            runner.run(item)
    needs = StudyNeeds(grid.study, grid.store)
    assert {stage.key for stage in replay[0].stages} <= needs.requested
    assert second.stage.key not in needs.adapters  # the study is complete: nothing will start from it
    assert plan(grid.study, grid.store).to_train == 0
