"""A process that hangs is ended and leaves its traceback; one that works is not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import heartbeat
from dgg_ray.execution.heartbeat import Heartbeat, Watchdog

HANGS = """
import sys, time
from pathlib import Path
from dgg_ray.execution.heartbeat import Watchdog

def hang_here():
    time.sleep(60)

watchdog = Watchdog(1.0, Path(sys.argv[1]))
time.sleep(1.2)  # it does not watch yet
watchdog.start()
for _ in range(12):  # steps, each shorter than 1 s
    time.sleep(0.1)
    watchdog.reset()
print("alive", flush=True)
hang_here()
"""


@pytest.fixture
def hang_file(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat.tempfile, "gettempdir", lambda: str(tmp_path))
    return heartbeat.hang_file("0123", 0)


@pytest.mark.whole
def test_a_process_that_hangs_is_ended_and_the_next_one_can_tell_where(hang_file):
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, hang_file], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (1, "alive\n")
    why = heartbeat.take_hang_error("0123", 30)
    assert why["error"] == "Stuck"
    assert "in hang_here" in why["traceback"]
    assert heartbeat.take_hang_error("0123", 30) is None  # returned once


def test_a_process_that_ended_otherwise_leaves_no_error(hang_file):
    hang_file.touch()  # its watchdog was started and did not fire
    assert heartbeat.take_hang_error("0123", 30) is None
    assert not hang_file.exists()


def test_a_watchdog_of_0_minutes_watches_nothing(hang_file):
    watchdog = Watchdog(0, hang_file)
    watchdog.start()
    watchdog.reset()
    assert not Path(hang_file).exists()


def test_an_item_is_reported_with_its_steps_from_its_start_to_its_end(world, hang_file, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.01)
    sent = []

    def wait_for(steps):
        deadline = time.monotonic() + 60
        while steps not in [found for _, found in sent] and time.monotonic() < deadline:
            time.sleep(0.001)

    sender = Heartbeat(Watchdog(0, hang_file), lambda key, steps: sent.append((key, steps)))
    (stage,) = world.stages_of("ones")
    time.sleep(0.05)
    assert sent == []
    sender.start(WorkItem(stage))
    wait_for((0, 0))
    sender.on_step(stage, 3, 8)
    wait_for((3, 8))
    sender.stop()
    count = len(sent)
    time.sleep(0.05)
    assert [steps for _, steps in dict.fromkeys(sent)] == [(0, 0), (3, 8)]
    assert {key for key, _ in sent} == {stage.key}
    assert len(sent) == count
