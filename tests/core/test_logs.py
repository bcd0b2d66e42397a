"""Every line that is written says when, what, of which study and stage, and who says it."""

import json
import logging
import warnings
from datetime import datetime

import pytest

from dgg_ray.core import event_log
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.budget import Purse
from dgg_ray.execution.executor import Crew
from dgg_ray.execution.progress import Display
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training.simulated import Simulated, imagined

WHO = {"name", "rank", "node", "pid"}


@pytest.fixture(autouse=True)
def _silent_again():
    yield
    event_log.ended()


def read(folder):
    return [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]


def test_a_stages_way_is_told_with_study_stage_and_worker(world, tmp_path):
    file = event_log.started("toy", "fleet-001", tmp_path, rank=0, stdout=False)
    first, second = world.path("ones", "fours", learning_rate=0.5)
    item = WorkItem(second, (world.evaluation("fours"),))
    with event_log.about(item):
        world.shop.obtain(item)
        event_log.log.warning("by the way")
    event_log.event("ended")
    lines = read(tmp_path)
    assert file
    assert file.name.startswith("fleet-001-0-")
    assert [line["event"] for line in lines] == [
        *("trained", "published", "trained", "published", "evaluated", "by the way", "ended")
    ]
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo
        assert line["study"] == "toy"
        assert line["worker"].keys() == WHO
        assert {"level", "stage", "path"} <= line.keys()
    assert [line["path"] for line in lines] == ["ones"] * 2 + ["ones > fours"] * 4 + [""]
    assert lines[0]["stage"] == first.key[:8]
    assert lines[5]["level"] == "WARNING"
    # one step each, θ: 0 → 0.5 → 2.25, and the loss after it is (2.25 - 4)²/2
    assert (lines[2]["loss"], lines[2]["steps"]) == (1.53125, 1)
    assert lines[4]["scores"] == {"fours test": 0.0}


def test_a_stage_that_fails_is_told_with_its_error(tmp_path, monkeypatch):
    study = imagined(2, DGG())
    store = StageStore(tmp_path / "stages")
    (run,) = study.runs()
    shop = Simulated.of(study, store)
    shop.cost = lambda stage: 1 / 0  # pyright: ignore
    monkeypatch.setattr("dgg_ray.execution.executor.workshop", lambda *_: shop)
    with (
        event_log.of_driver(study.name, tmp_path),
        Display("", quiet=True) as display,
        Crew(study, store, tmp_path, display, Purse(), local=True) as crew,
    ):
        crew.obtain([[WorkItem(stage) for stage in run.stages]])
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
    )  # they end with the run


def test_the_driver_leaves_the_terminal_alone_and_workers_write_to_it(tmp_path, capsys):
    with event_log.of_driver("toy", tmp_path):
        event_log.event("refused")
    assert capsys.readouterr() == ("", "")
    event_log.started("toy", "fleet-001", tmp_path / "not there")
    event_log.event("begun", kind="old")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    begun, warned = map(json.loads, capsys.readouterr().out.splitlines())
    assert (begun["event"], begun["kind"]) == ("begun", "old")
    assert (warned["level"], warned["study"]) == ("WARNING", "toy")
    assert "careful" in warned["event"]


def test_of_a_group_one_tells_and_all_warn(tmp_path):
    event_log.started("toy", "fleet-001", tmp_path, rank=1, stdout=False)
    event_log.event("trained")
    event_log.event("failed", level=logging.ERROR)
    assert [(line["event"], line["worker"]["rank"]) for line in read(tmp_path)] == [("failed", 1)]


def test_a_disk_that_is_full_takes_no_line_and_ends_nothing(tmp_path):
    (tmp_path / "logs").mkdir()
    with event_log.of_driver("study", tmp_path):
        (handler,) = [h for h in event_log.log.handlers if isinstance(h, event_log.File)]
        handler.setStream(open("/dev/full", "w", encoding="utf-8")).close()  # noqa: SIM115
        event_log.event("published")
