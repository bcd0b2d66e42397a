"""The progress display of a running study."""

import io
import json
import re
import time
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console

from dgg_ray.config.registry import LIVE
from dgg_ray.config.study import Workers
from dgg_ray.core.json_files import write_json
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.cost.model import Cost, CostForecast
from dgg_ray.cost.rates import Estimate
from dgg_ray.execution.progress import Display, read_live


def test_a_line_counts_what_is_done_running_and_failed():
    with Display("toy", quiet=True) as display:
        display.total = 9
        for _ in range(3):
            display.item_finished()
        display.update({"trained": 1, "failed": 2, "running": [{"stage": "s", "steps": (1, 4)}]})
        assert display.line() == "toy · 3/9 stages · 1 trained · 1 running · 2 failed"


def plan_of(mean, low, high, **workers):
    """A plan with so many seconds of wall time left, and an hour spent."""
    workers = Workers(**workers)
    cost = Cost(workers, Estimate(1.0, 1.0, 1.0), Estimate(mean, low, high), Estimate(0.0, 0.0, 0.0))
    return SimpleNamespace(cost_forecast=CostForecast(cost, 3600.0, workers), requested=0, exact=True)


def test_the_time_left_is_the_predicted_time_less_the_time_since(monkeypatch):
    now = time.monotonic()
    with Display("toy", quiet=True, make_plan=lambda: plan_of(60, 50, 90, groups=2)) as display:
        display.item_finished()
        display.planned_at = now
        monkeypatch.setattr(time, "monotonic", lambda: now + 30)
        assert display.time_left() == "about 30 s left (95 %: 20 to 60)"
        monkeypatch.setattr(time, "monotonic", lambda: now + 55)
        assert display.time_left() == "about 5 s left (95 %: 0 to 35)"
        monkeypatch.setattr(time, "monotonic", lambda: now + 91)
        assert display.time_left() == ""


def test_long_times_are_in_minutes():
    with Display("toy", quiet=True, make_plan=lambda: plan_of(6000, 5400, 6600)) as display:
        display.item_finished()
        assert display.time_left() == "about 100 min left (95 %: 90 to 110)"


def test_spending_is_in_money_where_workers_have_a_price():
    for workers, text in (
        ({}, "1 worker-hours spent"),
        ({"gpus": 2}, "2 GPU-hours spent"),
        ({"gpus": 2, "price_per_hour": 5}, "5 money spent"),
    ):
        make_plan = partial(plan_of, 1, 1, 1, **workers)
        with Display("toy", quiet=True, make_plan=make_plan) as display:
            display.item_finished()
            assert display.spent() == text
            assert text in display.line()


def test_before_anything_was_measured_there_is_no_estimate():
    cost_forecast = SimpleNamespace(cost_forecast=CostForecast(None, 0.0, Workers()), requested=0, exact=True)
    with Display("toy", quiet=True, make_plan=lambda: cost_forecast) as display:
        display.item_finished()
        assert display.time_left() == ""


def test_plans_are_made_rarely(monkeypatch):
    plans = []

    def make_plan():
        plans.append(1)
        return plan_of(1, 1, 1)

    with Display("toy", quiet=True, make_plan=make_plan) as display:
        for _ in range(100):
            display.item_finished()
    assert len(plans) == 1


def test_other_processes_can_read_what_is_running(tmp_path):
    running, written = [{"stage": "s", "group": "group-001", "steps": [1, 4]}], []
    with Display("toy", quiet=True, write_live=written.append) as display:
        display.update({"running": running, "waiting": 3})
        display.update({"running": running, "waiting": 2})  # too soon after the last one
        assert "2 queued" in display.line()
    assert [(t["running"], t["queued"]) for t in written] == [(running, 3)]
    write_json(tmp_path / LIVE, written[0])
    live = read_live(tmp_path)
    assert (live["running"], live["queued"]) == (running, 3)


def test_other_processes_can_read_how_far_a_study_is(tmp_path, monkeypatch):
    now, written = time.monotonic(), []
    make_plan = lambda: plan_of(60, 50, 90, gpus=2)  # noqa: E731 - an hour of one group with two GPUs
    with Display("toy", quiet=True, make_plan=make_plan, write_live=written.append) as display:
        display.total = 9
        for _ in range(3):
            display.item_finished()
        display.planned_at, display.next_plan = now, float("inf")
        monkeypatch.setattr(time, "monotonic", lambda: now + 20)
        display.setting_evaluated(lambda: "faa 0.7")
        display.update({"trained": 2, "failed": 1, "running": [], "phase": "starting Ray"})
    write_json(tmp_path / LIVE, written[-1])
    assert read_live(tmp_path)["progress"] == {
        "done": 3,
        "total": 9,
        "exact": True,
        "trained": 2,
        "failed": 1,
        "left_s": [40.0, 30.0, 70.0],
        "spent": 2.0,
        "spent_unit": "GPU-hours",
        "forecast": pytest.approx([2 + 2 / 3600] * 3),  # a second of one group is left
        "worker_hours": 1.0,
        "best": "faa 0.7",
        "phase": "starting Ray",
    }


def test_before_a_plan_neither_the_time_left_nor_the_spending_is_known(tmp_path):
    written = []
    with Display("toy", quiet=True, write_live=written.append) as display:
        display.update({"running": [{"stage": "s", "steps": (1, 4)}]})
    assert {name: written[0][name] for name in ("left_s", "spent", "spent_unit", "best", "phase")} == {
        "left_s": None,
        "spent": None,
        "spent_unit": None,
        "best": "",
        "phase": "",
    }


def test_the_live_file_of_a_killed_run_counts_as_nothing(tmp_path):
    old = {"at": time.time() - 3600, "running": [{"stage": "s"}], "queued": 3}
    (tmp_path / LIVE).write_text(json.dumps(old))
    assert read_live(tmp_path) == {"running": [], "queued": 0, "progress": None}


def test_no_total_is_shown_before_anything_is_requested(monkeypatch):
    shown = Console(width=80, force_terminal=True, file=io.StringIO())
    monkeypatch.setattr("dgg_ray.execution.progress.Console", lambda **_: shown)
    with Display("toy") as display:
        shown.print(display)
        display.total = 9
        shown.print(display)
    text = shown.file.getvalue()
    assert "0 stages" in text
    assert "0/9 stages" in text
    assert "None" not in text


def test_a_plan_a_live_file_and_a_best_setting_that_fail_are_named_once_and_end_nothing():
    def fail(*_):
        raise ZeroDivisionError("division by zero")

    with Display("study", quiet=True, make_plan=fail, write_live=fail, optional=OptionalOutputs()) as display:
        for _ in range(3):
            display.next_live = display.next_plan = 0.0
            display.update({"running": [], "waiting": 0})
            display.item_finished()
            display.setting_evaluated(fail)
    assert display.done == 3
    assert len(display.optional.messages) == 3
    assert all("ZeroDivisionError: division by zero" in line for line in display.optional.messages)


def plan_of_stages(asked, exact=False):
    return SimpleNamespace(cost_forecast=CostForecast(None, 0.0, Workers()), requested=asked, exact=exact)


def test_the_total_is_there_from_the_start_and_says_when_it_may_change():
    with Display("toy", quiet=True) as display:
        display.set_plan(plan_of_stages(40))
        assert display.count == "0/about 40"
        display.total = 12  # requested so far
        display.item_finished()
        assert display.count == "1/about 40"
        display.total = 44  # more than was planned
        assert display.count == "1/about 44"
        display.set_plan(plan_of_stages(44, exact=True))
        assert display.count == "1/44"
        display.set_plan(plan_of_stages(60))
    assert display.count == "1/44"  # the study has ended: nothing more is requested


def plain_console(monkeypatch):
    """Give displays a console that is no terminal; return the file that it writes."""
    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr("dgg_ray.execution.progress.Console", lambda **_: console)
    return console.file


def test_the_start_up_is_shown_phase_by_phase_with_seconds(monkeypatch):
    shown, now = plain_console(monkeypatch), [100.0]
    monkeypatch.setattr(
        "dgg_ray.execution.progress.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    )
    monkeypatch.setattr("dgg_ray.execution.progress.MAX_SILENCE_S", 1e9)
    with Display("toy") as display:
        display.phase("starting Ray")
        now[0] += 8
        display.update({"phase": "loading the model"})
        display.update({"phase": "loading the model"})
        now[0] += 12
        assert "starting Ray 8 s, loading the model 12 s" in display.line()
        display.update({"running": [{"stage": "s", "steps": (1, 4)}]})
        display.update({"running": []})
    assert shown.getvalue().splitlines() == [
        "starting Ray …",
        "loading the model …",
        "starting Ray 8 s, loading the model 12 s",
    ]


def test_no_long_pause_passes_without_a_line(monkeypatch):
    shown = plain_console(monkeypatch)
    monkeypatch.setattr("dgg_ray.execution.progress.MAX_SILENCE_S", 0.1)
    with Display("toy") as display:
        display.phase("loading the model")
        deadline = time.monotonic() + 60
        while shown.getvalue().count("toy · ") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(re.findall(r"loading the model \d+ s", shown.getvalue())) >= 2
    lines = len(shown.getvalue().splitlines())
    time.sleep(0.3)
    assert len(shown.getvalue().splitlines()) == lines  # it ended with the display


def test_a_quiet_display_says_nothing(monkeypatch):
    shown = plain_console(monkeypatch)
    monkeypatch.setattr("dgg_ray.execution.progress.MAX_SILENCE_S", 0.05)
    with Display("toy", quiet=True) as display:
        display.phase("loading the model")
        display.first_stage_started()
        time.sleep(0.15)
    assert shown.getvalue() == ""
