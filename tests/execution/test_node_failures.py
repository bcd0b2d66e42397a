"""Machines, workers and brokers die in the middle of stages: the study ends as if none had died.

One small cluster on this machine, whose nodes are processes. Stages are simulated and take real time.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import psutil
import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from dgg_ray import load_study
from dgg_ray.config.sections import Workers
from dgg_ray.config.simulation import ResponseModel
from dgg_ray.cost.budget import BudgetTracker
from dgg_ray.execution import cluster
from dgg_ray.execution.executor import make_executor
from dgg_ray.execution.progress import Display
from dgg_ray.storage.backend import LocalBackend
from dgg_ray.storage.memory import MemoryStore
from dgg_ray.storage.stage_store import StageStore, open_store
from dgg_ray.strategies.dgg import DGG
from dgg_ray.testing.synthetic_study import synthetic_study
from dgg_ray.training.simulated_runner import SimulatedRunner

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes cannot import this file
FAST_CHECKS = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture(scope="module")
def machines():
    """A head without CPUs and one node with one."""
    os.environ.update(cluster.ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="dgg-", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # where Ray finds the address of its default cluster
        head = {"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
        new_cluster = Cluster(True, head_node_args=head | {"_system_config": FAST_CHECKS})
        add_node(new_cluster)
        ray.init(address=new_cluster.address, log_to_driver=False, logging_level="ERROR")
        yield new_cluster
        ray.shutdown()
        new_cluster.shutdown()
        del os.environ["RAY_TMPDIR"]


def add_node(cluster):
    return cluster.add_node(num_cpus=1, object_store_memory=100_000_000)


@dataclass(frozen=True)
class FaultyStore(StageStore):
    """A store that writes a line for every publication; some stages never get so far.

    deadly: keys of stages that end their process. hanging: keys of those that never end.
    """

    deadly: frozenset[str] = frozenset()
    hanging: frozenset[str] = frozenset()

    def publish(self, stage, record, fill):
        if stage.key in self.deadly:
            os._exit(1)
        if stage.key in self.hanging:
            time.sleep(1000)
        with (self.backend.root / "published").open("a") as log:
            log.write(f"{stage.key}\n")
        super().publish(stage, record, fill)

    @property
    def publications(self):
        """How often each stage was published."""
        return Counter((self.backend.root / "published").read_text().split())


def study_of(seconds, tasks=3, seeds=(0, 1), **workers):
    """Two runs of three stages; seconds: for each thousand training examples."""
    response_model = ResponseModel(seconds=seconds, wait=1.0, spread=0.0)
    workers = {"engine": "simulated", "idle_timeout_s": 4.0, **workers}
    study = synthetic_study(tasks, DGG(alpha=0.3, buffer=4), 500, simulation=response_model, seeds=seeds)
    return replace(study, workers=Workers(**workers))


def chains(study):
    return [study.runs.work_items(run) for run in study.runs]


@contextlib.contextmanager
def executor_of(study, store, out):
    store.backend.root.mkdir(parents=True, exist_ok=True)
    with (
        Display("", quiet=True) as display,
        make_executor(study, store, out, display, BudgetTracker()) as executor,
    ):
        yield executor


def scores(study, store):
    """(stage, evaluation) → score, of all that the study asks for."""
    return {
        (item.key, evaluation): entry["score"]
        for chain in chains(study)
        for item in chain
        for evaluation, entry in store.score_entries(item.stage).items()
    }


def undisturbed_scores(study):
    """The scores of a single process."""
    store = MemoryStore()
    runner = SimulatedRunner.of(replace(study, simulation=replace(study.simulation, wait=0.0)), store)
    for chain in chains(study):
        for item in chain:
            runner.run(item)
    return scores(study, store)


@contextlib.contextmanager
def meanwhile(executor, is_time, act):
    """Call `act` from another thread once `is_time` is true of the running stages; it must become true."""

    done = threading.Event()

    def watch():
        while not is_time(executor.display.running):
            time.sleep(0.05)
        act()
        done.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join(timeout=1)
    assert done.is_set(), "the time never came"


def raylet(node):
    """Process id of a node's raylet, without which the node is dead."""
    ((info,),) = [infos for kind, infos in node.all_processes.items() if kind == "raylet"]
    return info.process.pid


def test_a_stage_that_ends_its_process_is_given_up_and_the_rest_goes_on(machines, tmp_path):
    study = study_of(0.1, tasks=2, seeds=(0, 1, 2), max_retries=1)
    work_items = chains(study)
    deadly = frozenset(chain[0].key for chain in work_items[:2])  # two in a row, before the good ones
    store = FaultyStore(LocalBackend(tmp_path / "stages"), deadly=deadly)
    with executor_of(study, store, tmp_path) as executor:
        executor.execute(work_items)
        assert not executor.groups.failure
    assert [error["error"] for error in executor.errors] == ["WorkerLost"] * 2
    assert {store.failure(chain[0].stage)["error"] for chain in work_items[:2]} == {"WorkerLost"}
    assert store.publications == {item.key: 1 for item in work_items[2]}


@pytest.mark.slow
def test_a_stage_that_hangs_is_ended_and_its_traceback_is_kept(machines, tmp_path):
    study = study_of(0.1, tasks=2, max_retries=0, hang_timeout_minutes=0.15)
    work_items = chains(study)
    store = FaultyStore(LocalBackend(tmp_path / "stages"), hanging=frozenset([work_items[0][0].key]))
    with executor_of(study, store, tmp_path) as executor:
        executor.execute(work_items)
    (error,) = executor.errors
    assert error["error"] == store.failure(work_items[0][0].stage)["error"] == "Stuck"
    assert "in publish" in error["traceback"]
    assert store.publications == {item.key: 1 for item in work_items[1]}


def test_a_broker_that_is_killed_changes_nothing_and_no_stage_is_trained_twice(machines, tmp_path):
    study = study_of(8.0)  # 4 s a stage: the broker is back before it ends
    store = FaultyStore(LocalBackend(tmp_path / "stages"))

    def kill():
        family = psutil.Process(raylet(machines.head_node)).children(recursive=True)
        brokers = [p for p in family if "Broker" in " ".join(p.cmdline())]
        max(brokers, key=lambda p: p.create_time()).kill()  # that of an earlier study may still be ending

    with (
        executor_of(study, store, tmp_path) as executor,
        meanwhile(executor, lambda running: len(running) == 1, kill),
    ):
        executor.execute(chains(study))
        assert not executor.groups.failure
    assert executor.errors == []
    assert scores(study, store) == undisturbed_scores(study)
    assert set(store.publications.values()) == {1}


def test_a_node_that_is_killed_gives_its_stage_to_another(machines, tmp_path):
    study = study_of(16.0, groups=2)  # 8 s a stage: the second group starts before the first has finished
    store, node = FaultyStore(LocalBackend(tmp_path / "stages")), add_node(machines)

    def kill():
        os.kill(raylet(node), signal.SIGKILL)

    with (
        executor_of(study, store, tmp_path) as executor,
        meanwhile(executor, lambda running: len(running) == 2, kill),
    ):
        executor.execute(chains(study))
        assert not executor.groups.failure
    assert executor.errors == []
    assert scores(study, store) == undisturbed_scores(study)
    assert set(store.publications.values()) == {1}


@pytest.mark.slow
def test_a_node_that_is_preempted_leaves_a_mid_stage_checkpoint_in_the_store(machines, tmp_path):
    """A real learner sees the preemption notice, and another machine resumes from its checkpoint."""
    (tmp_path / "study.yaml").write_text(LONG)
    study = load_study(tmp_path / "study.yaml")
    store, checkpoints = FaultyStore(LocalBackend(tmp_path / "stages")), []

    def preempt():
        (node,) = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        node_wanted.set()
        gcs = GcsClient(machines.address)
        deadline = int(1000 * (time.time() + 15))
        assert gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "taken back", deadline)[0]
        while not checkpoints:
            checkpoints.extend(store.backend.root.glob("checkpoints/*"))
            time.sleep(0.05)

    node_wanted = threading.Event()
    with executor_of(study, store, tmp_path) as executor, meanwhile(executor, is_in_mid_stage, preempt):
        thread = threading.Thread(target=executor.execute, args=(chains(study),))
        thread.start()
        assert node_wanted.wait(120)
        add_node(machines)  # in the main thread, as Ray requires
        thread.join(timeout=180)
        assert not thread.is_alive()
    assert executor.errors == []
    assert set(store.publications.values()) == {1}


def is_in_mid_stage(running):
    return len(running) == 1 and running[0]["steps"][0] > 20


LONG = """\
name: long
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 200, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 12, validation: 10, test: 10}
strategy: {name: finetune}
training: {epochs: 60, batch_size: 8, learning_rate: 5e-3}
protocol: {max_new_tokens: 2, baselines: [], evaluate: seen}
workers: {idle_timeout_s: 5, checkpoint_minutes: 0}
"""


def test_two_drivers_on_one_store_train_every_stage_once(tmp_path):
    """Each driver is one process, without Ray."""
    (tmp_path / "study.yaml").write_text(LOCAL.replace("FOLDER", str(stores := tmp_path / "stages")))
    runs = []
    for name in ("one", "two"):
        command = ["run", tmp_path / "study.yaml", "--out", tmp_path / name, "--local"]
        with (tmp_path / f"{name}.log").open("w") as log:
            runs.append(subprocess.Popen([sys.executable, "-m", "dgg_ray", *command], stdout=log, stderr=log))
    try:
        assert [run.wait(timeout=120) for run in runs] == [0, 0], (tmp_path / "one.log").read_text()[-2000:]
    finally:
        for run in runs:
            run.kill()
    trained = [
        int(re.search(r"(\d+) stages trained", (tmp_path / f"{n}.log").read_text())[1])
        for n in ("one", "two")
    ]
    assert sum(trained) == sum(1 for record in open_store(stores) if record["trained_task"])
    assert min(trained) > 0


LOCAL = """\
name: two
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 24, validation: 10, test: 12}
  - {name: words, reader: embedded, train: 24, validation: 12, test: 10}
  - {name: charts, reader: embedded, train: 24, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
orders: {design: all}
protocol: {baselines: []}
simulation: {wait: 1.0, seconds: 10}
workers: {engine: simulated}
output: {store: FOLDER}
"""
