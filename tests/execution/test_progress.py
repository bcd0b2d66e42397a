"""What a person sees while a study runs."""

import io
import json
import time
from functools import partial
from types import SimpleNamespace

from rich.console import Console

from dgg_ray.config.registry import LIVE
from dgg_ray.config.study import Workers
from dgg_ray.core.fence import Fence
from dgg_ray.cost.model import Cost, Outlook
from dgg_ray.cost.rates import Estimate
from dgg_ray.execution.progress import Display, live
from dgg_ray.storage import manifest


def test_a_line_tells_what_is_done_running_and_failed():
    with Display("toy", quiet=True) as display:
        display.total = 9
        for was_there in (True, True, False):
            display.finished(was_there)
        display.update({"trained": 1, "failed": 2, "running": [{"stage": "s", "steps": (1, 4)}]})
        assert display.line() == "toy · 3/9 stages · 1 trained · 1 running · 2 failed"


def looked(mean, low, high, **workers):
    """What a look at the store gave: seconds of the wall that are left, and an hour spent."""
    workers = Workers(**workers)
    cost = Cost(workers, Estimate(1.0, 1.0, 1.0), Estimate(mean, low, high), Estimate(0.0, 0.0, 0.0))
    return SimpleNamespace(outlook=Outlook(cost, 3600.0, workers), asked=0, exact=True)


def test_the_time_left_is_what_was_predicted_less_what_went_by_since(monkeypatch):
    now = time.monotonic()
    with Display("toy", quiet=True, look=lambda: looked(60, 50, 90, groups=2)) as display:
        display.finished()
        display.looked = now
        monkeypatch.setattr(time, "monotonic", lambda: now + 30)
        assert display.left() == "about 30 s left (95 %: 20 to 60)"
        monkeypatch.setattr(time, "monotonic", lambda: now + 55)
        assert display.left() == "about 5 s left (95 %: 0 to 35)"
        monkeypatch.setattr(time, "monotonic", lambda: now + 91)
        assert display.left() == ""


def test_long_times_are_told_in_minutes():
    with Display("toy", quiet=True, look=lambda: looked(6000, 5400, 6600)) as display:
        display.finished()
        assert display.left() == "about 100 min left (95 %: 90 to 110)"


def test_what_was_spent_is_told_in_money_where_it_has_a_price():
    for workers, said in (
        ({}, "1 worker-hours spent"),
        ({"gpus": 2}, "2 GPU-hours spent"),
        ({"gpus": 2, "price_per_hour": 5}, "5 money spent"),
    ):
        look = partial(looked, 1, 1, 1, **workers)
        with Display("toy", quiet=True, look=look) as display:
            display.finished()
            assert display.spent() == said
            assert said in display.line()


def test_before_anything_was_measured_there_is_no_estimate():
    outlook = SimpleNamespace(outlook=Outlook(None, 0.0, Workers()), asked=0, exact=True)
    with Display("toy", quiet=True, look=lambda: outlook) as display:
        display.finished()
        assert display.left() == ""


def test_looks_are_rare(monkeypatch):
    looks = []

    def look():
        looks.append(1)
        return looked(1, 1, 1)

    with Display("toy", quiet=True, look=look) as display:
        for _ in range(100):
            display.finished()
    assert len(looks) == 1


def test_what_is_running_can_be_read_by_others(tmp_path):
    running, told = [{"stage": "s", "fleet": "fleet-001", "steps": [1, 4]}], []
    with Display("toy", quiet=True, note=told.append) as display:
        display.update({"running": running, "waiting": 3})
        display.update({"running": running, "waiting": 2})  # too soon after the last one
        assert "2 queued" in display.line()
    assert [(t["running"], t["queued"]) for t in told] == [(running, 3)]
    manifest.note(tmp_path / LIVE, told[0])
    assert live(tmp_path) == {"running": running, "queued": 3}


def test_what_a_killed_run_left_is_not_believed(tmp_path):
    old = {"at": time.time() - 3600, "running": [{"stage": "s"}], "queued": 3}
    (tmp_path / LIVE).write_text(json.dumps(old))
    assert live(tmp_path) == {"running": [], "queued": 0}


def test_before_anything_is_known_to_be_done_no_total_is_shown(monkeypatch):
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


def test_a_look_a_note_and_a_best_setting_that_fail_are_named_once_and_end_nothing():
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    with Display("study", quiet=True, look=broken, note=broken, fence=Fence()) as display:
        for _ in range(3):
            display.next_note = display.next_look = 0.0
            display.update({"running": [], "waiting": 0})
            display.finished()
            display.judged(broken)
    assert display.done == 3
    assert len(display.fence.lines) == 3
    assert all("ZeroDivisionError: division by zero" in line for line in display.fence.lines)


def foreseen(asked, exact=False):
    return SimpleNamespace(outlook=Outlook(None, 0.0, Workers()), asked=asked, exact=exact)


def test_the_denominator_is_there_from_the_start_and_says_when_it_may_change():
    with Display("toy", quiet=True) as display:
        display.take(foreseen(40))
        assert display.count == "0/about 40"
        display.total = 12  # asked for so far
        display.finished()
        assert display.count == "1/about 40"
        display.total = 44  # more than was foreseen
        assert display.count == "1/about 44"
        display.take(foreseen(44, exact=True))
        assert display.count == "1/44"
        display.take(foreseen(60))
    assert display.count == "1/44"  # it is over: what was foreseen beyond is not to come


def plain(monkeypatch):
    """A display's console that is no terminal, and what it shows."""
    shown = Console(width=80, file=io.StringIO())
    monkeypatch.setattr("dgg_ray.execution.progress.Console", lambda **_: shown)
    return shown.file


def test_the_start_up_is_told_phase_by_phase_with_seconds(monkeypatch):
    shown, now = plain(monkeypatch), [100.0]
    monkeypatch.setattr(
        "dgg_ray.execution.progress.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    )
    monkeypatch.setattr("dgg_ray.execution.progress.SILENT_S", 1e9)
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
    shown = plain(monkeypatch)
    monkeypatch.setattr("dgg_ray.execution.progress.SILENT_S", 0.1)
    with Display("toy") as display:
        display.phase("loading the model")
        until = time.monotonic() + 5
        while shown.getvalue().count("toy · ") < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert shown.getvalue().count("loading the model 0 s") >= 2
    lines = len(shown.getvalue().splitlines())
    time.sleep(0.3)
    assert len(shown.getvalue().splitlines()) == lines  # it ended with the display


def test_a_quiet_display_says_nothing(monkeypatch):
    shown = plain(monkeypatch)
    monkeypatch.setattr("dgg_ray.execution.progress.SILENT_S", 0.05)
    with Display("toy", quiet=True) as display:
        display.phase("loading the model")
        display.begun()
        time.sleep(0.15)
    assert shown.getvalue() == ""
