"""Every line of the event log has a time, an event, a study, a stage and a process."""

import json
import logging
import warnings
from datetime import datetime

import pytest

from dgg_ray.core import event_log
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution.executor import make_executor
from dgg_ray.execution.progress import Display
from dgg_ray.storage.stage_store import open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

PROCESS_FIELDS = {"name", "rank", "node", "pid"}


@pytest.fixture(autouse=True)
def _stop_logging():
    yield
    event_log.stop_logging()


def read(folder):
    return [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]


def test_the_events_of_a_stage_have_its_study_stage_and_worker(world, tmp_path):
    file = event_log.start_logging("toy", "group-001", tmp_path, rank=0, stdout=False)
    first, second = world.stages_of("ones", "fours", learning_rate=0.5)
    item = WorkItem(second, (world.evaluation("fours"),))
    with event_log.stage_context(item):
        world.runner.run(item)
        event_log.log.warning("by the way")
    event_log.log_event("ended")
    lines = read(tmp_path)
    assert file
    assert file.name.startswith("group-001-0-")
    assert [line["event"] for line in lines] == [
        *("trained", "published", "trained", "published", "evaluated", "by the way", "ended")
    ]
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo
        assert line["study"] == "toy"
        assert line["worker"].keys() == PROCESS_FIELDS
        assert {"level", "stage", "path"} <= line.keys()
    assert [line["path"] for line in lines] == ["ones"] * 2 + ["ones > fours"] * 4 + [""]
    assert lines[0]["stage"] == first.key[:8]
    assert lines[5]["level"] == "WARNING"
    # one step each, θ: 0 → 0.5 → 2.25, and the loss after it is (2.25 - 4)²/2
    assert (lines[2]["loss"], lines[2]["steps"]) == (1.53125, 1)
    assert lines[4]["scores"] == {"fours test": 0.0}


def test_a_failed_stage_is_logged_with_its_error(tmp_path, monkeypatch):
    study = synthetic_study(2, DGG())
    store = open_store(tmp_path / "stages")
    (run,) = study.runs
    runner = SimulatedRunner.of(study, store)
    runner.training_cost = lambda stage: 1 / 0  # pyright: ignore
    monkeypatch.setattr("dgg_ray.execution.executor.build_stage_runner", lambda *_: runner)
    with (
        event_log.driver_log(study.name, tmp_path),
        Display("", quiet=True) as display,
        make_executor(study, store, tmp_path, display, BudgetTracker(), local=True) as executor,
    ):
        executor.execute([[WorkItem(stage) for stage in run.stages]])
    (line,) = [line for line in read(tmp_path / "logs") if line["event"] == "failed"]
    assert (line["error"], line["message"], line["level"]) == (
        "ZeroDivisionError",
        "division by zero",
        "ERROR",
    )
    assert (line["stage"], line["path"]) == (run.stages[0].key[:8], "task0")
    assert "1 / 0" in line["traceback"]
    assert line["worker"]["name"] == "driver"
    assert not any(
        isinstance(h, logging.FileHandler) for h in event_log.log.handlers
    )  # the log file is closed with the run


def test_the_driver_writes_to_a_file_and_workers_to_standard_output(tmp_path, capsys):
    with event_log.driver_log("toy", tmp_path):
        event_log.log_event("refused")
    assert capsys.readouterr() == ("", "")
    event_log.start_logging("toy", "group-001", tmp_path / "not there")
    event_log.log_event("started", machine_type="old")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    started, warned = map(json.loads, capsys.readouterr().out.splitlines())
    assert (started["event"], started["machine_type"]) == ("started", "old")
    assert (warned["level"], warned["study"]) == ("WARNING", "toy")
    assert "careful" in warned["event"]


def test_rank_0_logs_events_and_every_rank_logs_errors(tmp_path):
    event_log.start_logging("toy", "group-001", tmp_path, rank=1, stdout=False)
    event_log.log_event("trained")
    event_log.log_event("failed", level=logging.ERROR)
    assert [(line["event"], line["worker"]["rank"]) for line in read(tmp_path)] == [("failed", 1)]


def test_a_full_disk_drops_lines_and_ends_nothing(tmp_path):
    (tmp_path / "logs").mkdir()
    with event_log.driver_log("study", tmp_path):
        (handler,) = [h for h in event_log.log.handlers if isinstance(h, event_log.EventFileHandler)]
        handler.setStream(open("/dev/full", "w", encoding="utf-8")).close()  # noqa: SIM115
        event_log.log_event("published")
