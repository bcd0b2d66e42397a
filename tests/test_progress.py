"""What a person sees while a study runs."""

import io
import time

import pytest
from rich.console import Console

from dgg_ray.progress import Display


def test_a_line_tells_what_is_done_running_and_failed():
    with Display("toy", quiet=True) as display:
        display.total = 9
        for was_there in (True, True, False):
            display.finished(was_there)
        display.update({"trained": 1, "failed": 2, "running": [{"stage": "s", "steps": (1, 4)}]})
        assert display.line() == "toy · 3/9 stages · 1 trained · 1 running · 2 failed"


def test_the_time_left_counts_only_what_had_to_be_done(monkeypatch):
    now = time.monotonic()
    with Display("toy", quiet=True) as display:
        display.total = 100 + 3 + 6
        for _ in range(100):
            display.finished(was_there=True)
        for _ in range(3):
            display.finished()
        display.began = now
        monkeypatch.setattr(time, "monotonic", lambda: now + 30)
        assert display.left() == "about 60 s left"  # 3 took 30 s, 6 are to go
        display.total = 100 + 3 + 60
        assert display.left() == "about 10 min left"


@pytest.mark.parametrize("done", [0, 2])
def test_too_little_to_go_by_is_no_estimate(done):
    with Display("toy", quiet=True) as display:
        display.total = 50
        for _ in range(done):
            display.finished()
        assert display.left() == ""


def test_before_anything_is_known_to_be_done_no_total_is_shown(monkeypatch):
    shown = Console(width=80, force_terminal=True, file=io.StringIO())
    monkeypatch.setattr("dgg_ray.progress.Console", lambda **_: shown)
    with Display("toy") as display:
        shown.print(display)
        display.total = 9
        shown.print(display)
    text = shown.file.getvalue()
    assert "0 stages" in text
    assert "0/9 stages" in text
    assert "None" not in text
