"""Studies that share a session: groups are handed on, give way, and end with what dies. One Ray for all."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from dgg_ray import RaySession
from dgg_ray.config.sections import Workers
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution.executor import make_executor
from dgg_ray.execution.progress import Display
from dgg_ray.storage.stage_store import open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
LONG_S = 120  # on a busy machine; alone it takes seconds


@pytest.fixture(scope="module")
def session():
    """A session on this machine, with two logical cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 2)
        with RaySession(keep_warm_s=600) as session:
            yield session


def study_of(seed, seconds=0.1, **workers):
    """Two simulated stages; seconds: for each thousand training examples."""
    response_model = ResponseModel(seconds=seconds, wait=1.0, spread=0.0)
    study = synthetic_study(2, DGG(alpha=0.3, buffer=4), 500, simulation=response_model, seeds=(seed,))
    return replace(study, workers=Workers(engine="simulated", **workers))


def run(study, out, session=None, local=False):
    """Run the study's work items; return its store."""
    store = open_store(out / "stages")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    with (
        Display("", quiet=True) as display,
        make_executor(study, store, out, display, BudgetTracker(), local, session) as executor,
    ):
        executor.execute([study.runs.work_items(run) for run in study.runs])
        assert executor.errors == []
    return store


def workers_of(out):
    """Process ids of the workers that ran the study, from its log."""
    lines = [
        json.loads(line) for file in (out / "logs").glob("group-*") for line in file.read_text().splitlines()
    ]
    assert len({line["study"] for line in lines}) == 1
    return {line["worker"]["pid"] for line in lines if line["event"] == "started"}


def stored(study, store):
    """All tensors and scores of the study's stages."""
    found = {}
    for item in study.runs.work_items(study.runs[0]):
        for file in sorted(store.open(item.stage).rglob("*.safetensors")):
            found |= {(item.key, file.name, name): tensor for name, tensor in load_file(file).items()}
        for key, entry in store.score_entries(item.stage).items():
            found[item.key, key] = torch.tensor(entry["score"])
    return found


def waiting(session):
    return len(session.warm.waiting(session.warm.members))


def wait_until(is_true):
    deadline = time.monotonic() + LONG_S
    while not is_true():
        assert time.monotonic() < deadline, "the time never came"
        time.sleep(0.1)


def are_free(cpus):
    return ray.available_resources().get("CPU", 0) == cpus


REAL = """\
name: {name}
model: embedded
tasks:
  - {{name: {tasks[0]}, reader: embedded, train: 16, validation: 10, test: 10}}
  - {{name: {tasks[1]}, reader: embedded, train: 16, validation: 10, test: 10}}
strategy: {strategy}
adapter: {{rank: {rank}}}
training: {{batch_size: 8, learning_rate: 5e-3}}
protocol: {{max_new_tokens: 2, baselines: []}}
"""


def test_a_second_study_gets_the_group_and_stores_what_a_fresh_process_stores(session, load, tmp_path):
    first = load(REAL.format(name="first", tasks=("words", "digits"), strategy="o_lora", rank=4))
    second = load(
        REAL.format(name="second", tasks=("charts", "shapes"), strategy="{name: dgg, buffer: 4}", rank=2)
    )
    run(first, tmp_path / "first", session)
    assert waiting(session) == 1
    store = run(second, tmp_path / "second", session)
    assert workers_of(tmp_path / "first") == workers_of(tmp_path / "second")
    warm, fresh = stored(second, store), stored(second, run(second, tmp_path / "fresh", local=True))
    assert warm.keys() == fresh.keys()
    assert all(torch.equal(warm[name], fresh[name]) for name in fresh)


def test_a_waiting_group_gives_way_to_a_study_that_needs_its_machine(session, tmp_path):
    """A group holds one core of two, and this study needs both."""
    if not (session.warm and waiting(session)):
        run(study_of(0), tmp_path / "first", session)
    run(study_of(1, cpus=2), tmp_path / "second", session)
    assert are_free(0)  # the new group waits, with both


def interrupt(study, store, out, session):
    """Interrupt the study while it trains its first stage."""
    with (
        Display("", quiet=True) as display,
        make_executor(study, store, out, display, BudgetTracker(), session=session) as executor,
    ):
        executor.start().open_session.remote("client", {0: study.runs.work_items(study.runs[0])})
        wait_until(lambda: display.running)
        raise KeyboardInterrupt


def test_a_study_that_is_interrupted_leaves_no_group_and_no_reservation(session, tmp_path):
    study = study_of(2, seconds=600, cpus=2)
    with pytest.raises(KeyboardInterrupt):
        interrupt(study, open_store(tmp_path / "stages"), tmp_path, session)
    assert waiting(session) == 0
    wait_until(lambda: are_free(2))


def test_a_study_after_the_death_of_a_waiting_group_starts_a_new_one(session, tmp_path):
    run(study_of(3), tmp_path / "first", session)
    (worker,) = workers_of(tmp_path / "first")
    psutil.Process(worker).kill()
    run(study_of(4), tmp_path / "second", session)
    assert worker not in workers_of(tmp_path / "second")


def test_a_study_after_the_death_of_the_pool_starts_a_new_group_and_the_old_one_ends(session, tmp_path):
    if not (session.warm and waiting(session)):
        run(study_of(0), tmp_path / "first", session)
    before = session.warm.pool
    ray.kill(before)
    wait_until(lambda: are_free(2))
    run(study_of(5), tmp_path / "second", session)
    assert session.warm.pool != before
    assert waiting(session) == 1


DRIVER = f"""\
import sys, time
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_session as t
with t.RaySession(sys.argv[1], keep_warm_s=600) as session:
    t.run(t.study_of(6), Path(sys.argv[2]), session)
    print("waiting", t.waiting(session), flush=True)
    time.sleep(1000)
"""


def test_the_groups_of_a_driver_that_is_killed_between_two_studies_end(session, tmp_path):
    run(study_of(0), tmp_path / "first", session)  # Ray runs
    ray.get(session.warm.pool.release.remote())
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, address, str(tmp_path / "second")]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert driver.stdout.readline() == "waiting 1\n", (tmp_path / "log").read_text()[-2000:]
        wait_until(lambda: are_free(1))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        driver.stdout.close()
    wait_until(lambda: are_free(2))
