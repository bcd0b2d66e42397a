"""A process in which nothing moves is ended, with where it hung; one that works is not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import heartbeat
from dgg_ray.execution.heartbeat import Pulse, Watchdog

HANGS = """
import sys, time
from pathlib import Path
from dgg_ray.execution.heartbeat import Watchdog

def waits_for_ever():
    time.sleep(60)

dog = Watchdog(0.3, Path(sys.argv[1]))
time.sleep(0.5)  # without work it sleeps
dog.begin()
for _ in range(5):  # steps, each shorter than that
    time.sleep(0.1)
    dog.alive()
print("alive", flush=True)
waits_for_ever()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat.tempfile, "gettempdir", lambda: str(tmp_path))
    return heartbeat.trace("0123", 0)


def test_a_process_that_hangs_is_ended_and_the_next_one_can_say_where(place):
    ended = subprocess.run([sys.executable, "-c", HANGS, place], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (1, "alive\n")
    why = heartbeat.stuck("0123", 30)
    assert why["error"] == "Stuck"
    assert "in waits_for_ever" in why["traceback"]
    assert heartbeat.stuck("0123", 30) is None  # told once


def test_a_life_that_ended_otherwise_says_nothing(place):
    place.touch()  # its watchdog had begun, and did not bark
    assert heartbeat.stuck("0123", 30) is None
    assert not place.exists()


def test_nothing_is_watched_for_0_minutes(place):
    dog = Watchdog(0, place)
    dog.begin()
    dog.alive()
    assert not Path(place).exists()


def test_what_is_in_hand_is_said_from_its_beginning_to_its_end_and_with_its_steps(world, place, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    told = []
    beat = Pulse(Watchdog(0, place), lambda key, steps: told.append((key, steps)))
    (stage,) = world.path("ones")
    time.sleep(0.05)
    assert told == []
    beat.begin(WorkItem(stage))
    time.sleep(0.05)
    beat.step(stage, 3, 8)
    time.sleep(0.05)
    beat.end()
    count = len(told)
    time.sleep(0.05)
    assert [steps for _, steps in dict.fromkeys(told)] == [(0, 0), (3, 8)]
    assert {key for key, _ in told} == {stage.key}
    assert len(told) == count
