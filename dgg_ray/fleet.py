"""Fleets: Ray Train worker groups that take one stage after another, with the base model warm.

A fleet is one `TorchTrainer` run. Its start-up (processes, imports, model) is paid once per fleet.
It ends when no work came for a while, so that the cluster can shrink; `Fleets` starts another when
work waits. A worker that dies is replaced by Ray Train, and its stage is taken again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from dgg_ray.errors import DggError, StageError, StoreError
from dgg_ray.loop import Workshop
from dgg_ray.stages import Stage, StageStore
from dgg_ray.study import Study

POLL_S = 0.2
TICK_S = 0.5


def work_loop(config: dict[str, Any]) -> None:
    """What every worker of a fleet does until no work comes."""
    study, store, broker, fleet = (config[k] for k in ("study", "store", "broker", "fleet"))
    if study.workers.gpus:  # Ray shows every worker all GPUs of the group on its machine
        torch.cuda.set_device(get_device())
    lead = leading()
    lead(lambda: ray.get(broker.lost.remote(fleet)))  # what the group had before it was replaced
    shop = workshop(study, store)
    shop.lead, shop.tick = lead, Ticker(broker)
    # With several workers, only errors that all of them see leave the group in step; any other ends
    # the group, and Ray Train starts it anew.
    caught = Exception if study.workers.per_fleet == 1 else (StageError, StoreError)
    while work := lead(lambda: ray.get(broker.take.remote(fleet, study.workers.idle_s))):
        stage, error = work.stage, None
        fresh = lead(lambda s=stage: store.record(s)) is None
        try:
            shop.obtain(work)
        except caught as problem:
            error = describe(problem)
            with contextlib.suppress(DggError, OSError):  # the disk may be what failed
                lead(lambda s=stage, e=error: store.fail(s, e))
        learned = fresh and error is None and bool(stage.learns)
        lead(lambda k=stage.key, n=learned, e=error: ray.get(broker.done.remote(fleet, k, n, e)))


def workshop(study: Study, store: StageStore) -> Workshop:
    """All that a process needs to do a study's work, set up so that it gives the same bytes again."""
    from dgg_ray.learner import PeftLearner, quieten  # late: trials and the driver need no transformers

    quieten()
    if study.workers.threads:
        torch.set_num_threads(study.workers.threads)
    torch.use_deterministic_algorithms(True, warn_only=study.workers.gpus > 0)
    learner = PeftLearner(study.model, "cuda" if study.workers.gpus else "cpu")
    return Workshop(learner, study.read_tasks(), store, study.protocol.max_new_tokens)


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


def describe(problem: BaseException) -> dict[str, str]:
    return {
        "error": type(problem).__name__,
        "message": str(problem),
        "traceback": "".join(traceback.format_exception(problem)),
    }


class Ticker:
    """Tells the broker how far a stage is, now and then."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.last = 0.0

    def __call__(self, stage: Stage, done: int, steps: int) -> None:
        if time.monotonic() - self.last > TICK_S:
            self.last = time.monotonic()
            self.broker.tick.remote(stage.key, (done, steps))


@ray.remote(num_cpus=0, max_retries=0)
def run_fleet(study: Study, store: StageStore, broker: Any, fleet: str, folder: str) -> None:
    """One fleet, from start to end. In a task of its own: `fit` wants a main thread."""
    w = study.workers
    resources = {"CPU": w.cpus} | ({"GPU": w.gpus} if w.gpus else {})
    config = {"study": study, "store": store, "broker": broker, "fleet": fleet}
    TorchTrainer(
        work_loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=w.per_fleet, use_gpu=w.gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if w.gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=fleet,
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=-1),  # the broker counts losses
        ),
    ).fit()


class Fleets:
    """Starts fleets while stages wait, from a thread of the driver.

    failure: why no fleet can be started, once three in a row ended with an error.
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
        self.crashes = 0
        self.failure = ""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._supervise, name="fleets", daemon=True)

    def __enter__(self) -> Fleets:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the fleets; a stage in training is left, to be trained again."""
        self.over.set()
        self.thread.join()
        with contextlib.suppress(Exception):
            ray.get(self.broker.close.remote("the study was stopped"), timeout=5)

    def _supervise(self) -> None:
        while not self.over.wait(POLL_S):
            try:
                self._reap()
                status: dict[str, Any] = ray.get(self.broker.status.remote())
                self.heard(status)
                wanted = min(self.study.workers.fleets, status["waiting"] + len(status["running"]))
                # All at once: asking one by one makes an autoscaler grow one by one.
                for _ in range(wanted - len(self.running)):
                    self._start()
            except RayError:
                if not ray.is_initialized():
                    return

    def _start(self) -> None:
        self.started += 1
        fleet = f"fleet-{self.started:03d}"
        ref = run_fleet.remote(self.study, self.store, self.broker, fleet, str(self.folder))
        self.running[ref] = fleet

    def _reap(self) -> None:
        ended, _ = (
            ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            if self.running
            else ([], [])
        )
        for ref in ended:
            fleet = self.running.pop(ref)
            try:
                ray.get(ref)
                self.crashes = 0
            except Exception as problem:
                self.crashes += 1
                if self.crashes == 3:
                    self.failure = f"three fleets in a row ended with an error; the last: {problem}"
                    self.broker.close.remote(self.failure)
                    self.over.set()
            ray.get(self.broker.lost.remote(fleet))
