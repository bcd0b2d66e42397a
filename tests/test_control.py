"""`dgg-ray control`: decisions from the command line, carried out by a run, and told by every result."""

import json
import threading

import pytest

import dgg_ray
from dgg_ray import cli, load_study, run_study
from dgg_ray.analysis import load
from dgg_ray.config import registry
from dgg_ray.config.registry import LIVE
from dgg_ray.execution import decision_watch
from dgg_ray.report.summary import notice_sentences, summary_sentences
from dgg_ray.training.simulated_runner import SimulatedRunner

pytestmark = pytest.mark.whole
TASK = {"reader": "embedded", "train": 40, "validation": 20, "test": 20}
STUDY = {
    "name": "controlled",
    "model": "embedded",
    "tasks": [{"name": name, **TASK} for name in ("digits", "words", "shapes")],
    "strategy": {"name": "dgg", "alpha": 0.1, "buffer": 4},
    "orders": {"design": "random", "count": 2},
    "seeds": "per_order",
    "search": {"method": "grid", "space": {"strategy.buffer": [4, 8, 12]}, "parallel": 1},
    "protocol": {"baselines": ["replay"], "final_seeds": [0, 1]},
    "simulation": {"wait": 0.0},
    "workers": {"engine": "simulated", "groups": 2, "idle_timeout_s": 5},
}
BUFFER = "strategy.buffer"


def ids(study):
    return {buffer: study.at({BUFFER: buffer}).id for buffer in (4, 8, 12)}


@pytest.fixture
def after(monkeypatch):
    """Call a function after so many trained or evaluated stages, in the run's own process."""
    run = SimulatedRunner.run

    def after(count, function):
        def run_and_count(self, item):
            nonlocal count
            done = run(self, item)
            count -= isinstance(self.store.url, str) and "stages" in self.store.url
            if count == 0:
                function()
            return done

        monkeypatch.setattr(SimulatedRunner, "run", run_and_count)

    return after


def test_a_decision_from_the_command_line_is_carried_out_by_the_run_that_goes_on(
    tmp_path, capsys, after, monkeypatch
):
    study, out, heeded = load_study(STUDY), tmp_path / "out", threading.Event()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(decision_watch, "LOOK_EVERY_S", 0.02)
    interrupt = decision_watch.StageExecutor.interrupt

    def interrupt_and_tell(self):
        interrupt(self)
        heeded.set()

    monkeypatch.setattr("dgg_ray.execution.executor.StageExecutor.interrupt", interrupt_and_tell)
    stopped = []

    def stop():
        search = load.read_contents(load.EvidenceReader(study, study.store(out))).comparison.search
        stopped.append(study.at(search.proposed[-1].setting).id)  # the one that is evaluated now
        assert cli.main(["control", str(out), "stop-setting", stopped[0], "--by", "ada"]) == 0
        assert heeded.wait(60)

    after(2, stop)
    outcome = run_study(study, out, local=True, quiet=True)
    assert f"decision 1: ada stopped setting {stopped[0]}" in capsys.readouterr().out
    results = outcome.results
    assert outcome.tally["failed"] == 0
    assert stopped[0] not in results.evaluated
    assert len(results.evaluated) == 2
    states = {candidate.setting: candidate.state for candidate in results.search.candidates}
    assert states[stopped[0]] == "stopped"
    assert results.search.finished
    assert not results.search.complete
    facts = results.facts
    assert facts["finished stages"] == facts["distinct stages"]  # nothing is left that will be trained

    told = " ".join(notice_sentences(results))
    assert f"ada stopped setting {stopped[0]} (buffer = " in told
    assert "it was no candidate." in told
    assert "The search is not complete: 1 setting was stopped by hand before the evaluation was over." in told
    assert told in " ".join(summary_sentences(results))
    assert f"ada stopped setting {stopped[0]}" in (out / "report.html").read_text()
    headline = outcome.best["verdict"]["headline"]
    assert not headline.startswith("Use")
    assert outcome.best["decisions"][0]["setting"] == stopped[0]

    again = run_study(study, out, local=True, quiet=True)
    assert again.tally["trained"] == 0
    assert again.results.table.equals(results.table)
    assert dgg_ray.open(out).results.table.equals(results.table)


def test_a_pin_after_the_end_is_carried_out_by_the_next_run(tmp_path, capsys):
    study, out = load_study(STUDY), tmp_path / "out"
    first = run_study(study, out, local=True, quiet=True).results
    assert first.search.complete
    assert "decisions" not in dgg_ray.open(out).best
    loser = next(setting for setting in ids(study).values() if setting != first.recommended)
    assert cli.main(["control", str(out), "pin", loser, "--by", "ada", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["setting"] == loser
    assert cli.main(["control", str(out), "pin", loser]) == 2
    assert "setting: is pinned already, by ada" in capsys.readouterr().err
    results = run_study(study, out, local=True, quiet=True).results
    label = f"pinned {loser}"
    assert results.baselines[label] == loser
    finals = results.table.query("setting == @loser and split == 'test' and stage == 2")
    assert finals.groupby(["order", "seed"]).ngroups == len(study.final_blocks)
    assert f"it stands in the comparison as '{label}'." in " ".join(notice_sentences(results))
    assert cli.main(["control", str(out)]) == 0
    assert capsys.readouterr().out == f"1  ada pinned setting {loser}\n"


def test_a_larger_budget_lets_a_run_go_on_that_a_smaller_one_ended(tmp_path, capsys):
    out, one = tmp_path / "out", {**STUDY["search"], "space": {BUFFER: [4]}}
    spent = run_study(
        load_study({**STUDY, "search": one}), out, local=True, quiet=True
    ).results.spending.spent
    little = {"worker_hours": 1.05 * spent["worker-hours"]}
    study = load_study({**STUDY, "budget": little})
    cut = run_study(study, out, local=True, quiet=True).results
    assert cut.spending.refused > 0
    assert cli.main(["control", str(out), "budget", "worker_hours=90", "--by", "ada"]) == 0
    assert capsys.readouterr().out.startswith("decision 1: ada set the budget to 90 worker-hours")
    results = run_study(study, out, local=True, quiet=True).results
    assert results.spending.refused == 0
    assert results.spending.budget == "90 worker-hours"
    assert results.search.complete
    assert "ada set the budget to 90 worker-hours on " in " ".join(notice_sentences(results))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stop-setting"], "needs one setting's id or label, got 0"),
        (["stop-branch", "strategy.alpha"], "needs NAME=VALUE, got 'strategy.alpha'"),
        (["halt", "x"], "halt"),
    ],
)
def test_arguments_that_make_no_decision_are_refused(tmp_path, capsys, arguments, message):
    study = load_study(STUDY)
    with registry.StatePublisher(study, study.store(tmp_path), tmp_path):
        assert cli.main(["control", str(tmp_path), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert registry.read_decisions(study.store(tmp_path), study.name) == ()


def test_the_last_report_of_a_run_says_how_far_it_came(tmp_path):
    study, out = load_study(STUDY), tmp_path / "out"
    tally = run_study(study, out, local=True, quiet=True).tally
    last = study.store(out).get_document(registry.document_name(study.name, LIVE))["content"]
    assert last["ended"] == "ended"
    assert (last["running"], last["queued"], last["left_s"]) == ([], 0, None)
    assert last["done"] == last["total"] == tally["asked"]
    assert last["exact"] is True
    assert last["trained"] == tally["trained"] > 0
    assert last["best"].startswith("faa ")


@pytest.mark.ray
def test_on_ray_a_decision_ends_as_it_does_in_one_process(tmp_path, monkeypatch):
    waiting = {**STUDY, "simulation": {"wait": 0.02}}
    waiting["search"] = {**STUDY["search"], "parallel": 3}
    study, out = load_study(waiting), tmp_path / "ray"
    out.mkdir()
    monkeypatch.setattr(decision_watch, "LOOK_EVERY_S", 0.5)
    store, decided = study.store(out), threading.Event()

    def decide():
        while not any(record["trained_task"] for record in store):
            if decided.wait(0.1):
                return
        search = load.read_contents(load.EvidenceReader(study, study.store(out))).comparison.search
        waiting = [n for n in range(len(search.proposed)) if n not in search.answers]
        setting = study.at(search.proposed[waiting[-1]].setting).id
        cli.main(["control", str(out), "stop-setting", setting, "--by", "ada"])
        decided.set()

    person = threading.Thread(target=decide)
    person.start()
    try:
        results = run_study(study, out, quiet=True).results
    finally:
        decided.set()
        person.join()
    (decision,) = registry.read_decisions(store, study.name)
    assert results.search.finished
    assert decision.setting not in results.evaluated

    alone = tmp_path / "alone"
    fresh = study.store(alone)
    fresh.put_document(f"studies/{study.name}/decisions/000001", decision.as_json())
    local = run_study(study, alone, local=True, quiet=True).results
    assert local.recommended == results.recommended
    kept, kept_alone = (r.table[r.table["setting"] != decision.setting] for r in (results, local))
    assert kept.to_csv(index=False) == kept_alone.to_csv(index=False)
