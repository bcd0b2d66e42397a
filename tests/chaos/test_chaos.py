"""Killed processes change nothing in the table, and few stages are trained twice."""

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


def run_with_kills(folder: Path, text: str, kills: int, seed: int, **options) -> tuple[Monkey, Path]:
    """Run a study with kills; return the monkey, and the results of the same study without kills."""
    study = folder / "study.yaml"
    study.write_text(text)
    undisturbed, file = folder / "undisturbed", folder / "undisturbed.yaml"
    file.write_text(re.sub("wait: [0-9.]+", "wait: 0", text))
    assert cli.main(["run", str(file), "--out", str(undisturbed), "--local", "--quiet"]) == 0
    monkey = Monkey(study, folder, seed, kills, **options)
    began = time.monotonic()
    monkey.run()
    repeated = Trace.of(folder).repeated
    print(f"{dict(monkey.killed)}, {time.monotonic() - began:.0f} s, {repeated} started again")
    return monkey, undisturbed


def check(monkey: Monkey, undisturbed: Path, groups: int) -> None:
    trace = Trace.of(monkey.folder)
    assert (monkey.out / "table.parquet").read_bytes() == (undisturbed / "table.parquet").read_bytes()
    assert trace.started_after_publication == {}  # no finished stage was trained again
    lost = groups * monkey.killed["driver"] + monkey.killed["worker"] + monkey.killed["controller"]
    assert trace.repeated <= lost  # a broker's death costs nothing


def test_a_study_survives_kills_of_any_process(tmp_path):
    monkey, undisturbed = run_with_kills(
        tmp_path, SIMULATED.replace("TRIALS", "8").replace("WAIT", "0.2"), kills=8, seed=1
    )
    check(monkey, undisturbed, groups=2)
    assert sum(monkey.killed.values()) == 8


@pytest.mark.slow
def test_a_study_survives_two_hundred_kills(tmp_path):
    """$CHAOS_KILLS sets another number of kills."""
    kills = int(os.environ.get("CHAOS_KILLS", "200"))
    text = SIMULATED.replace("TRIALS", "60").replace("WAIT", "1.0")
    seed = int(os.environ.get("CHAOS_SEED", "2"))
    monkey, undisturbed = run_with_kills(tmp_path, text, kills, seed=seed, pause=(0.2, 8.0))
    check(monkey, undisturbed, groups=2)
    assert sum(monkey.killed.values()) == kills


@pytest.mark.slow
def test_a_study_with_stages_of_milliseconds_survives_kills(tmp_path):
    text = SIMULATED.replace("TRIALS", "150").replace("WAIT", "0.005")
    monkey, undisturbed = run_with_kills(tmp_path, text, kills=15, seed=4, pause=(0.2, 3.0))
    check(monkey, undisturbed, groups=2)


@pytest.mark.slow
def test_the_quickstart_survives_ten_kills_with_the_same_results(tmp_path):
    text = (ROOT / "studies" / "quickstart.yaml").read_text()
    monkey, undisturbed = run_with_kills(
        tmp_path, text, kills=int(os.environ.get("CHAOS_KILLS", "10")), seed=3, pause=(2, 20)
    )
    check(monkey, undisturbed, groups=2)
