"""Fleets: Ray Train worker groups that take one stage after another, with the base model warm.

A fleet is one `TorchTrainer` run. Its start-up (processes, imports, model) is paid once per fleet.
It ends when no work came for a while, so that the cluster can shrink; `Fleets` starts another when
work waits. A worker that dies is replaced by Ray Train, and its stage is taken again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray
import ray.train
from ray.exceptions import ActorDiedError, NodeDiedError, WorkerCrashedError

from dgg_ray import cluster, logs
from dgg_ray.environment import kind
from dgg_ray.errors import (
    ClusterError,
    Fault,
    OtherVersion,
    Refused,
    StageError,
    StoreError,
    StudyError,
    describe,
)
from dgg_ray.pulse import Pulse, Watchdog, stuck, trace
from dgg_ray.sections import Workers
from dgg_ray.sentinel import Sentinel
from dgg_ray.simulate import Simulated
from dgg_ray.stages import StageStore, Work
from dgg_ray.study import Study

if TYPE_CHECKING:
    from dgg_ray.loop import Workshop

POLL_S = 0.2
LOOK_S = 5.0  # between looks at the cluster
ERRORS, DEATHS = 3, 20  # of fleets in a row; a machine that is taken away is no reason to give up
DIED = (ActorDiedError, NodeDiedError, WorkerCrashedError)
RESTARTS = 5  # of one fleet's workers; after that the fleet ends and another is started
PATIENCE_S = 60.0  # for the broker, which answers at once unless it is being restarted


def work_loop(config: dict[str, Any]) -> None:
    """What every worker of a fleet does until no work comes."""
    import torch  # here and below: only what trains waits for torch and transformers to be imported
    from ray.train.torch import get_device

    broker, fleet, life, lead = config["broker"], config["fleet"], config["life"], leading()
    if why := cluster.other_code(config["code"]):  # before anything of the driver's is unpickled
        return ray.get(broker.close.remote(why))
    study, store = ray.get([config["study"], config["store"]])
    w = study.workers
    logs.started(study.name, fleet, config.get("logs"), rank())
    if w.gpus:  # Ray shows every worker all GPUs of the group on its machine
        torch.cuda.set_device(get_device())
    # What the group had before it was replaced.
    lead(lambda: ray.get(broker.lost.remote(fleet, stuck(life, w.stuck_minutes))))
    dog = Watchdog(60 * w.stuck_minutes, trace(life, rank()))
    try:
        shop = workshop(study, store, w.zero, dog.alive)
    except Exception as problem:
        if isinstance(problem, StoreError) and not isinstance(problem, Refused):  # data that did not come
            return ray.get(broker.unwell.remote(fleet, describe(problem)))
        # It would happen again: say why, rather than start again for ever
        why = f"a worker cannot begin: {type(problem).__name__}: {problem}"
        return ray.get(broker.close.remote(why))
    say = None if rank() else lambda key, steps: broker.tick.remote(fleet, key, steps)
    shop.lead, pulse = lead, Pulse(dog, say)
    shop.tick = pulse.step
    if not isinstance(shop, Simulated):
        shop.rhythm.notice = lambda: ray.train.get_preemption_info() is not None
    caught = (StageError, StoreError) if w.per_fleet > 1 else Exception
    sentinel = Sentinel(study, shop, caught)
    logs.event("begun", kind=kind(shop.where()).name)
    while work := lead(lambda: ray.get(broker.take.remote(fleet, w.idle_s))):
        pulse.begin(work)
        sentinel.before(work)
        fresh = lead(lambda s=work.stage: store.record(s)) is None
        error, at_fault = tried(shop, work, together=w.per_fleet > 1)
        if error:
            logs.trouble("failed", error, work)
        if error and at_fault and not work.probe:
            lead(lambda s=work.stage, e=error: store.fail(s, e))
        pulse.end()
        if error and not at_fault:  # another machine may do better: this fleet ends
            return lead(lambda e=error: ray.get(broker.unwell.remote(fleet, e)))
        learned = fresh and error is None and bool(work.stage.learns) and not work.probe
        lead(lambda k=work.key, n=learned, e=error: ray.get(broker.done.remote(fleet, k, n, e)))
    logs.event("ended")


def tried(shop: Workshop | Simulated, work: Work, together: bool) -> tuple[dict[str, str] | None, bool]:
    """Do the work: its error, if any, and whether the stage is to blame for it.

    With several workers, only errors that all of them see leave the group in step; any other ends
    the group, and Ray Train starts it anew.
    """
    try:
        with logs.about(work):
            shop.obtain(work)
    except (StageError, OtherVersion) as problem:
        return describe(problem), True
    except StoreError as problem:
        return describe(problem), False
    except Exception as problem:
        if together:
            raise
        return describe(problem), True
    return None, True


def workshop(
    study: Study, store: StageStore, zero: int = 0, alive: Callable[[], None] = lambda: None
) -> Workshop | Simulated:
    """All that a process needs to do a study's work, set up so that it gives the same bytes again.

    alive: called after each batch of answers.
    """
    if study.workers.engine == "simulated":
        return Simulated.of(study, store)
    import torch

    from dgg_ray.learner import PeftLearner, quieten
    from dgg_ray.loop import Workshop
    from dgg_ray.snapshots import Rhythm

    quieten()
    if study.workers.threads:
        torch.set_num_threads(study.workers.threads)
    torch.use_deterministic_algorithms(True, warn_only=study.workers.gpus > 0)
    if study.workers.gpus and not torch.cuda.is_available():
        raise ClusterError(
            f"workers.gpus is {study.workers.gpus:g}, and PyTorch {torch.__version__} finds no GPU here: "
            "install its build for your GPUs, or set workers.gpus to 0"
        )
    tasks = study.read_tasks()
    # Keys promise what was learned from: another copy of the data or of the model would be kept under a
    # false name.
    other = [f"tasks.{n}" for n, task in tasks.items() if dict(task.digests) != study.tasks[n].digests]
    other += ["model"] if study.model.fingerprint() != study.fingerprint else []
    if other:
        rule = "has other content here than when the study was checked; run the study again"
        raise StudyError([Fault(path, rule) for path in other], study.name)
    w = study.workers
    learner = PeftLearner(study.model, "cuda" if w.gpus else "cpu", zero, w.offload)
    learner.alive = alive
    rhythm = Rhythm(w.snapshot_steps, w.snapshot_minutes)
    shop = Workshop(learner, tasks, store, study.protocol.max_new_tokens, rhythm=rhythm)
    shop.by = {"study": study.name, "workers": w.setup}
    return shop


def leading() -> Callable[[Callable[[], Any]], Any]:
    """Workshop.lead for this worker group: rank 0 computes, all get the result or its error."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return lambda compute: compute()

    def lead(compute: Callable[[], Any]) -> Any:
        box: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                box = [(True, compute())]
            except Exception as problem:
                box = [(False, problem)]
        dist.broadcast_object_list(box, src=0)
        ok, result = box[0]
        if not ok:
            raise result
        return result

    return lead


def rank() -> int:
    """Of this process in its worker group."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


class Losses(ray.train.UserCallback):
    """Tells the broker that a fleet's workers died: there may be no machine for others."""

    def __init__(self, broker: Any, fleet: str) -> None:
        self.broker, self.fleet = broker, fleet

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.broker.orphaned.remote(self.fleet)


@ray.remote(num_cpus=0, resources=cluster.ON_HEAD, max_retries=0)
def run_fleet(w: Workers, config: dict[str, Any], folder: str) -> None:
    """One fleet, from start to end. In a task of its own: `fit` wants a main thread."""
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": w.cpus} | ({"GPU": w.gpus} if w.gpus else {})
    TorchTrainer(
        work_loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=w.per_fleet, use_gpu=w.gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if w.gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=config["fleet"],
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
            callbacks=[Losses(config["broker"], config["fleet"])],
        ),
    ).fit()


class Fleets:
    """Starts fleets while stages wait, from a thread of the driver.

    failure: why no fleet can be had: its workers cannot begin; or ERRORS fleets ended with an error of their
        own, or DEATHS by whatever it was, and no stage was finished or given up between.
    """

    def __init__(
        self,
        study: Study,
        store: StageStore,
        broker: Any,
        folder: Path,
        heard: Callable[[dict[str, Any]], None],
    ) -> None:
        self.study, self.store, self.broker, self.folder = study, store, broker, folder
        self.heard = heard  # told the broker's status, a few times a second
        self.running: dict[ray.ObjectRef, str] = {}
        self.started = 0
        self.next_look, self.refusals = 0.0, 0
        self.sent: dict[str, Any] = {}  # what all fleets get, put into Ray's object store once
        self.ends, self.done_at_end = Counter[bool](), -1  # of fleets, by whether a process of them died
        self.failure = ""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._supervise, name="fleets", daemon=True)

    def __enter__(self) -> Fleets:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the fleets; a stage in training is left, to be trained again."""
        self.over.set()
        self.thread.join(timeout=10)
        for ref in self.running:
            with contextlib.suppress(Exception):
                ray.cancel(ref)
        with contextlib.suppress(Exception):
            ray.get(self.broker.close.remote("the study was stopped"), timeout=5)

    def _supervise(self) -> None:
        while not self.over.wait(POLL_S):
            try:
                status: dict[str, Any] = ray.get(self.broker.status.remote(), timeout=PATIENCE_S)
                self._reap(status)
                self.heard(status)
                wanted = min(self.study.workers.fleets, status["waiting"] + len(status["running"]))
                # All at once: asking one by one makes an autoscaler grow one by one.
                for _ in range(wanted - len(self.running)):
                    self._start()
                if reason := status["closed"] or self._look(status):
                    return self._give_up(reason)
            except Exception as problem:  # nobody else would notice that no fleets come any more
                if not self.over.is_set():
                    self._give_up(f"fleets cannot be looked after: {type(problem).__name__}: {problem}")
                return

    def _look(self, status: dict[str, Any]) -> str:
        """At the cluster, now and then: what killed fleets hold is given back.

        Returns why no fleet will come, where an autoscaler says so of all of them, twice in a row.
        """
        if not self.running or time.monotonic() < self.next_look:
            return ""
        self.next_look = time.monotonic() + LOOK_S
        cluster.free_abandoned()
        refused = [] if status["running"] else cluster.infeasible()
        self.refusals = self.refusals + 1 if len(refused) >= len(self.running) else 0
        if self.refusals < 2:
            return ""
        return (
            f"the autoscaler has no machines for a fleet, which wants {refused[0]}: lower "
            "workers.per_fleet, workers.cpus or workers.gpus, or add such machines to the cluster"
        )

    def _start(self) -> None:
        self.started += 1
        fleet = f"fleet-{self.started:03d}"
        if not self.sent:
            self.sent = {"study": ray.put(self.study), "store": ray.put(self.store), "code": cluster.code()}
        config = {**self.sent, "broker": self.broker, "fleet": fleet, "life": uuid4().hex[:12]}
        config["logs"] = self.folder.parent / logs.FOLDER
        ref = run_fleet.remote(self.study.workers, config, str(self.folder))
        self.running[ref] = fleet

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        self.over.set()
        with contextlib.suppress(Exception):
            ray.get(self.broker.close.remote(reason), timeout=PATIENCE_S)

    def _reap(self, status: dict[str, Any]) -> None:
        ended, _ = (
            ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            if self.running
            else ([], [])
        )
        for ref in ended:
            fleet = self.running.pop(ref)
            try:
                ray.get(ref)
                self.ends.clear()
            except Exception as problem:
                logs.trouble("fleet over", describe(problem), fleet=fleet)
                done = status.get("trained", 0) + status.get("failed", 0)  # given up: the rest goes on
                if done != self.done_at_end:
                    self.ends.clear()
                self.done_at_end = done
                self.ends[isinstance(problem, DIED)] += 1
                if self.ends[False] == ERRORS or self.ends.total() == DEATHS:
                    why = f"{self.ends.total()} fleets in a row ended with an error"
                    self._give_up(f"{why} and nothing was finished between; the last: {problem}")
            ray.get(self.broker.lost.remote(fleet), timeout=PATIENCE_S)
