"""Machines, workers and brokers are lost in the middle of stages: the study ends as if they had not been.

One small cluster on this machine, its nodes processes; stages are simulated and take real time.
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
from dgg_ray.config.simulation import Law
from dgg_ray.cost.budget import Purse
from dgg_ray.execution import cluster
from dgg_ray.execution.executor import Crew
from dgg_ray.execution.progress import Display
from dgg_ray.search import evidence
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.strategies.dgg import DGG
from dgg_ray.training.simulated import MemoryStore, Simulated, imagined

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes do not know this file
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture(scope="module")
def machines():
    """A head without CPUs and one node with one."""
    os.environ.update(cluster.ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"})
    with tempfile.TemporaryDirectory(prefix="dgg-", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # where Ray keeps the address of "the" cluster, which is another's
        head = {"num_cpus": 0, "object_store_memory": 100_000_000, "include_dashboard": False}
        made = Cluster(True, head_node_args=head | {"_system_config": QUICK})
        add(made)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()
        del os.environ["RAY_TMPDIR"]


def add(made):
    return made.add_node(num_cpus=1, object_store_memory=100_000_000)


@dataclass(frozen=True)
class Faulty(StageStore):
    """A store that keeps a line for every publication; some stages never get so far.

    poison: keys of stages that end their process; hangs: of those that wait for ever.
    """

    poison: frozenset[str] = frozenset()
    hangs: frozenset[str] = frozenset()

    def publish(self, stage, record, fill):
        if stage.key in self.poison:
            os._exit(1)
        if stage.key in self.hangs:
            time.sleep(1000)
        with (self.folder / "published").open("a") as log:
            log.write(f"{stage.key}\n")
        super().publish(stage, record, fill)

    @property
    def count(self):
        """How often each stage was published."""
        return Counter((self.folder / "published").read_text().split())


def study_of(seconds, tasks=3, seeds=(0, 1), **workers):
    """Two runs of three stages, each about so long."""
    law = Law(seconds=seconds, wait=1.0, spread=0.0)
    workers = {"engine": "simulated", "idle_timeout_s": 4.0, **workers}
    made = imagined(tasks, DGG(alpha=0.3, buffer=4), 500, simulation=law, seeds=seeds)
    return replace(made, workers=Workers(**workers))


def chains(study):
    return [evidence.work_items(study, run) for run in study.runs()]


@contextlib.contextmanager
def crew_of(study, store, out):
    store.folder.mkdir(parents=True, exist_ok=True)
    with (
        Display("", quiet=True) as display,
        Crew(study, store, out, display, Purse(), tally=Counter()) as crew,
    ):
        yield crew


def scores(study, store):
    """(stage, exam) → score, of all that the study asks for."""
    return {
        (item.key, evaluation): cell["score"]
        for chain in chains(study)
        for item in chain
        for evaluation, cell in store.cells(item.stage).items()
    }


def undisturbed(study):
    """Scores as one process finds them."""
    store = MemoryStore()
    shop = Simulated.of(replace(study, simulation=replace(study.simulation, wait=0.0)), store)
    for chain in chains(study):
        for item in chain:
            shop.obtain(item)
    return scores(study, store)


@contextlib.contextmanager
def meanwhile(crew, ready, act):
    """`act`, from another thread, once what runs is `ready`; it must have come to that."""

    done = threading.Event()

    def watch():
        while not ready(crew.display.running):
            time.sleep(0.05)
        act()
        done.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join(timeout=1)
    assert done.is_set(), "it never came to that"


def raylet(node):
    """Process id of what keeps a node together."""
    ((info,),) = [found for kind, found in node.all_processes.items() if kind == "raylet"]
    return info.process.pid


def test_a_stage_that_ends_its_process_is_set_aside_and_the_rest_goes_on(machines, tmp_path):
    study = study_of(0.1, tasks=2, seeds=(0, 1, 2), max_retries=1)
    work_items = chains(study)
    poison = frozenset(chain[0].key for chain in work_items[:2])  # two in a row, before what is sound
    store = Faulty(tmp_path / "stages", poison=poison)
    with crew_of(study, store, tmp_path) as crew:
        crew.obtain(work_items)
        assert not crew.groups.failure
    assert [error["error"] for error in crew.errors] == ["WorkerLost"] * 2
    assert {store.failure(chain[0].stage)["error"] for chain in work_items[:2]} == {"WorkerLost"}
    assert store.count == {item.key: 1 for item in work_items[2]}


@pytest.mark.slow
def test_a_stage_that_hangs_is_ended_and_kept_with_where_it_hung(machines, tmp_path):
    study = study_of(0.1, tasks=2, max_retries=0, hang_timeout_minutes=0.15)
    work_items = chains(study)
    store = Faulty(tmp_path / "stages", hangs=frozenset([work_items[0][0].key]))
    with crew_of(study, store, tmp_path) as crew:
        crew.obtain(work_items)
    (error,) = crew.errors
    assert error["error"] == store.failure(work_items[0][0].stage)["error"] == "Stuck"
    assert "in publish" in error["traceback"]
    assert store.count == {item.key: 1 for item in work_items[1]}


def test_a_broker_that_is_killed_changes_nothing_and_nothing_is_learned_twice(machines, tmp_path):
    study = study_of(8.0)  # 4 s a stage: the broker is back before it ends
    store = Faulty(tmp_path / "stages")

    def kill():
        family = psutil.Process(raylet(machines.head_node)).children(recursive=True)
        brokers = [p for p in family if "Broker" in " ".join(p.cmdline())]
        max(brokers, key=lambda p: p.create_time()).kill()  # an earlier study's may be on its way out

    with crew_of(study, store, tmp_path) as crew, meanwhile(crew, lambda running: len(running) == 1, kill):
        crew.obtain(chains(study))
        assert not crew.groups.failure
    assert crew.errors == []
    assert scores(study, store) == undisturbed(study)
    assert set(store.count.values()) == {1}


def test_a_node_that_is_killed_gives_its_stage_to_another(machines, tmp_path):
    study = study_of(16.0, groups=2)  # 8 s a stage: the second fleet is there before the first is through
    store, node = Faulty(tmp_path / "stages"), add(machines)

    def kill():
        os.kill(raylet(node), signal.SIGKILL)

    with crew_of(study, store, tmp_path) as crew, meanwhile(crew, lambda running: len(running) == 2, kill):
        crew.obtain(chains(study))
        assert not crew.groups.failure
    assert crew.errors == []
    assert scores(study, store) == undisturbed(study)
    assert set(store.count.values()) == {1}


@pytest.mark.slow
def test_a_node_that_is_called_back_leaves_its_stage_half_done_in_the_store(machines, tmp_path):
    """A real learner: it is told of the notice, and another machine goes on from its snapshot."""
    (tmp_path / "study.yaml").write_text(LONG)
    study = load_study(tmp_path / "study.yaml")
    store, taken = Faulty(tmp_path / "stages"), []

    def call_back():
        (node,) = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        add_soon.set()
        gcs = GcsClient(machines.address)
        deadline = int(1000 * (time.time() + 15))
        assert gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, "taken back", deadline)[0]
        while not taken:
            taken.extend(store.folder.glob("inflight/*"))
            time.sleep(0.05)

    add_soon = threading.Event()
    with crew_of(study, store, tmp_path) as crew, meanwhile(crew, in_the_middle, call_back):
        other = threading.Thread(target=lambda: crew.obtain(chains(study)))
        other.start()
        assert add_soon.wait(120)
        add(machines)  # by the main thread, as Ray wants it
        other.join(timeout=180)
        assert not other.is_alive()
    assert crew.errors == []
    assert set(store.count.values()) == {1}


def in_the_middle(running):
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


def test_two_drivers_on_one_store_learn_every_stage_once(tmp_path):
    """Each in one process, without Ray."""
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
    assert sum(trained) == sum(1 for record in StageStore(stores) if record["trained_task"])
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
