"""Whatever dies, and whenever: the table is the undisturbed one's, and little is learned twice."""

import os
import re
import time
from pathlib import Path

import pytest
from monkey import Monkey, Trace

from dgg_ray import cli

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.ray, pytest.mark.whole]

SIMULATED = """\
name: stormy
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 24, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 24, validation: 10, test: 10}
  - {name: shapes, reader: embedded, train: 24, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 24, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
training: {epochs: 1, batch_size: 8}
orders: {design: random, count: 3}
search:
  space: {strategy.alpha: {per_task: [0, 0.1, 0.3, 1.0]}}
  trials: TRIALS
workers: {engine: simulated, groups: 2, idle_timeout_s: 10, max_retries: 100}
simulation: {wait: WAIT}
"""


def weather(folder: Path, text: str, kills: int, seed: int, **how) -> tuple[Monkey, Path]:
    """A study under a storm, and its undisturbed twin's results."""
    study = folder / "study.yaml"
    study.write_text(text)
    calm = folder / "calm"
    still = re.sub("wait: [0-9.]+", "wait: 0", text)
    (folder / "still.yaml").write_text(still)
    assert cli.main(["run", str(folder / "still.yaml"), "--out", str(calm), "--local", "--quiet"]) == 0
    storm = Monkey(study, folder, seed, kills, **how)
    began = time.monotonic()
    storm.run()
    print(f"{dict(storm.killed)}, {time.monotonic() - began:.0f} s, {Trace.of(folder).repeated} begun again")
    return storm, calm


def check(storm: Monkey, calm: Path, groups: int) -> None:
    trace = Trace.of(storm.folder)
    assert (storm.out / "table.parquet").read_bytes() == (calm / "table.parquet").read_bytes()
    assert trace.again == {}  # no finished stage was learned again
    lost = groups * storm.killed["driver"] + storm.killed["worker"] + storm.killed["controller"]
    assert trace.repeated <= lost  # a broker's death costs nothing


def test_a_study_outlives_whatever_is_killed(tmp_path):
    storm, calm = weather(tmp_path, SIMULATED.replace("TRIALS", "8").replace("WAIT", "0.2"), kills=8, seed=1)
    check(storm, calm, groups=2)
    assert sum(storm.killed.values()) == 8


@pytest.mark.slow
def test_a_study_outlives_two_hundred_kills(tmp_path):
    """kills: 200, or as many as $CHAOS_KILLS says."""
    kills = int(os.environ.get("CHAOS_KILLS", "200"))
    text = SIMULATED.replace("TRIALS", "60").replace("WAIT", "1.0")
    seed = int(os.environ.get("CHAOS_SEED", "2"))
    storm, calm = weather(tmp_path, text, kills, seed=seed, pause=(0.2, 8.0))
    check(storm, calm, groups=2)
    assert sum(storm.killed.values()) == kills


@pytest.mark.slow
def test_stages_of_milliseconds_outlive_what_is_killed_with_a_handful_of_them(tmp_path):
    text = SIMULATED.replace("TRIALS", "150").replace("WAIT", "0.005")
    storm, calm = weather(tmp_path, text, kills=15, seed=4, pause=(0.2, 3.0))
    check(storm, calm, groups=2)


@pytest.mark.slow
def test_the_quickstart_outlives_ten_kills_and_says_the_same(tmp_path):
    text = (ROOT / "studies" / "quickstart.yaml").read_text()
    storm, calm = weather(
        tmp_path, text, kills=int(os.environ.get("CHAOS_KILLS", "10")), seed=3, pause=(2, 20)
    )
    check(storm, calm, groups=2)
