"""Fleets: Ray Train worker groups that take one stage after another, with the base model warm.

A fleet is one `TorchTrainer` run. Its start-up (processes, imports, model) is paid once per fleet.
It ends when no work came for a while, so that the cluster can shrink; `Fleets` starts another when
work waits. A worker that dies is replaced by Ray Train, and its stage is taken again.
"""

from __future__ import annotations

import contextlib
import logging
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

from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study
from dgg_ray.core import blame, event_log
from dgg_ray.core.environment import kind
from dgg_ray.core.errors import PluginError, Refused, StageError, StoreError, StudyError, describe
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import cluster
from dgg_ray.execution.hardware_check import Sentinel
from dgg_ray.execution.heartbeat import Pulse, Watchdog, stuck, trace
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.setup import LOADING, cannot_begin, handful, leading, rank, tried, workshop
from dgg_ray.training.simulated import Simulated

if TYPE_CHECKING:
    from dgg_ray.execution.work_queue import Ended

POLL_S = 0.2
LOOK_S = 5.0  # between looks at the cluster
ERRORS, DEATHS = 3, 20  # of fleets in a row; a machine that is taken away is no reason to give up
EVERYWHERE = (StudyError, PluginError, Refused)  # what would be so on any machine
DIED = (ActorDiedError, NodeDiedError, WorkerCrashedError)
RESTARTS = 5  # of one fleet's workers; after that the fleet ends and another is started
PATIENCE_S = 60.0  # for the broker, which answers at once unless it is being restarted
TROUBLE_S = 300.0  # for that long everything may fail, before fleets are given up
PAUSE_S, LONGEST_S = 5.0, 120.0  # before a fleet that ended ill is replaced; doubles from end to end


def work_loop(config: dict[str, Any]) -> None:
    """What every worker of a fleet does until no work comes."""
    import torch  # here and below: only what trains waits for torch and transformers to be imported
    from ray.train.torch import get_device

    broker, group, life, lead = config["broker"], config["fleet"], config["life"], leading()
    if why := cluster.other_code(config["code"]):  # before anything of the driver's is unpickled
        return ray.get(broker.close.remote(why))
    study, store = ray.get([config["study"], config["store"]])
    w = study.workers
    event_log.started(study.name, group, config.get("logs"), rank())
    if w.gpus:  # Ray shows every worker all GPUs of the group on its machine
        torch.cuda.set_device(get_device())
    lead(
        lambda: ray.get(broker.lost.remote(group, stuck(life, w.hang_timeout_minutes)))
    )  # by those before it
    dog = Watchdog(60 * w.hang_timeout_minutes, trace(life, rank()))
    broker.set_phase.remote(LOADING)
    try:
        shop = workshop(study, store, w.zero, dog.alive)
    except EVERYWHERE as problem:  # what else there may be, another machine may not have
        why = f"a worker cannot begin: {type(problem).__name__}: {problem}"
        return ray.get(broker.close.remote(why))
    except StoreError as problem:  # data that did not come
        return ray.get(broker.unwell.remote(group, describe(problem)))
    except Exception as problem:
        raise cannot_begin(problem) from problem
    ended: list[Ended] = []
    pulse = Pulse(dog, None if rank() else lambda key, steps: broker.tick.remote(group, key, steps, ended))
    shop.lead, shop.tick = lead, pulse.step
    if not isinstance(shop, Simulated):
        shop.rhythm.notice = lambda: ray.train.get_preemption_info() is not None
    sentinel = Sentinel(study, shop, (StageError, StoreError) if w.group_size > 1 else Exception)
    event_log.event("begun", kind=kind(shop.where()).name)
    while work_items := lead(lambda e=ended: ray.get(broker.take.remote(group, w.idle_timeout_s, e))):
        ended = []
        for item in handful(work_items, lead):
            began = time.monotonic()
            pulse.begin(item)
            sentinel.before(item)
            fresh = lead(lambda s=item.stage: store.record(s)) is None
            try:
                error, at_fault = tried(shop, item)
            except Exception as problem:
                pulse.end()
                error, over = given_up(problem, item, store, began)
                ray.get(broker.blame.remote(group, item.key, error, [*ended, *over]))
                raise  # whatever may be broken here, the next process begins without it
            if error:
                event_log.trouble("failed", error, item)
                if at_fault and not item.profile:
                    lead(lambda s=item.stage, e=error: store.fail(s, e))
            pulse.end()
            if error and not at_fault:  # another machine may do better: this fleet ends
                return lead(lambda e=error, so_far=ended: ray.get(broker.unwell.remote(group, e, so_far)))
            learned = fresh and error is None and bool(item.stage.trained_tasks) and not item.profile
            ended.append((item.key, learned, error, time.monotonic() - began))
    event_log.event("ended")


def given_up(
    problem: Exception, item: WorkItem, store: StageStore, began: float
) -> tuple[dict[str, str], list[Ended]]:
    """An error that ends a group and gives up its work: another try would end in the same way."""
    error = blame.told(problem)
    event_log.trouble("failed", error, item)
    if not blame.lasting(problem):
        return error, []
    if not item.profile:
        store.fail(item.stage, error)
    return error, [(item.key, False, error, time.monotonic() - began)]


class Losses(ray.train.UserCallback):
    """Tells the broker that a fleet's workers died: there may be no machine for others."""

    def __init__(self, broker: Any, group: str) -> None:
        self.broker, self.group = broker, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.broker.orphaned.remote(self.group)


@ray.remote(num_cpus=0, resources=cluster.ON_HEAD, max_retries=0)
def run_worker_group(w: Workers, config: dict[str, Any], folder: str) -> None:
    """One fleet, from start to end. In a task of its own: `fit` wants a main thread."""
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": w.cpus} | ({"GPU": w.gpus} if w.gpus else {})
    TorchTrainer(
        work_loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=w.group_size, use_gpu=w.gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if w.gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=config["fleet"],
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
            callbacks=[Losses(config["broker"], config["fleet"])],
        ),
    ).fit()


class WorkerGroups:
    """Starts fleets while stages wait, from a thread of the driver.

    failure: why no fleet can be had: its workers cannot begin anywhere; or ERRORS fleets ended with an error
        of their own, or DEATHS by whatever it was, and no stage was finished or given up between; or all that
        was tried failed for TROUBLE_S.
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
        self.next_start, self.pause, self.unwell = 0.0, PAUSE_S, 0
        self.sent: dict[str, Any] = {}  # what all fleets get, put into Ray's object store once
        self.ends, self.done_at_end = Counter[bool](), -1  # of fleets, by whether a process of them died
        self.failure = ""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._supervise, name="worker groups", daemon=True)

    def __enter__(self) -> WorkerGroups:
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
        well = time.monotonic()
        while not self.over.wait(LOOK_S if self.failure else POLL_S):
            if self.failure:
                self._close()  # a broker that was restarted does not know it any more
                continue
            try:
                if reason := self._round():
                    self._give_up(reason)
                well = time.monotonic()
            except Exception as problem:  # nobody else would notice that no fleets come any more
                # The broker's end is for good: while it is being restarted, it is only not available.
                lasting = isinstance(problem, ActorDiedError) or time.monotonic() - well >= TROUBLE_S
                if lasting and not self.over.is_set():
                    self._give_up(f"fleets cannot be looked after: {type(problem).__name__}: {problem}")

    def _round(self) -> str:
        """Start what is wanted; why no fleet can be had, if that is so."""
        status: dict[str, Any] = ray.get(self.broker.status.remote(), timeout=PATIENCE_S)
        self._reap(status)
        wanted = min(self.study.workers.groups, status["waiting"] + len(status["running"]))
        if time.monotonic() >= self.next_start:
            # All at once: asking one by one makes an autoscaler grow one by one.
            for _ in range(wanted - len(self.running)):
                self._start()
        try:
            self.heard(status)
        except Exception as problem:  # what is shown is not what is done
            event_log.trouble("not told", describe(problem), level=logging.WARNING)
        return status["closed"] or self._look(status)

    def _hold(self) -> None:
        """A fleet ended ill: another waits, the longer the more of them did so one after another."""
        now = time.monotonic()
        self.pause = PAUSE_S if now - self.next_start > LONGEST_S else min(2 * self.pause, LONGEST_S)
        self.next_start = now + self.pause

    def _look(self, status: dict[str, Any]) -> str:
        """At the cluster, now and then: what killed fleets hold is given back.

        Returns why no fleet will come, where an autoscaler says so of all of them, twice in a row.
        """
        if not self.running or time.monotonic() < self.next_look:
            return ""
        self.next_look = time.monotonic() + LOOK_S
        try:
            cluster.free_abandoned()
            refused = [] if status["running"] else cluster.infeasible()
        except Exception as problem:  # not known now
            event_log.trouble("cluster not seen", describe(problem), level=logging.WARNING)
            return ""
        self.refusals = self.refusals + 1 if len(refused) >= len(self.running) else 0
        if self.refusals < 2:
            return ""
        return (
            f"the autoscaler has no machines for a fleet, which wants {refused[0]}: lower "
            "workers.group_size, workers.cpus or workers.gpus, or add such machines to the cluster"
        )

    def _start(self) -> None:
        self.started += 1
        group = f"fleet-{self.started:03d}"
        if not self.sent:
            self.sent = {"study": ray.put(self.study), "store": ray.put(self.store), "code": cluster.code()}
        config = {**self.sent, "broker": self.broker, "fleet": group, "life": uuid4().hex[:12]}
        config["logs"] = self.folder.parent / event_log.FOLDER
        ref = run_worker_group.remote(self.study.workers, config, str(self.folder))
        self.running[ref] = group

    def _give_up(self, reason: str) -> None:
        event_log.event("given up", level=logging.ERROR, reason=reason)
        self.failure = reason
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            ray.get(self.broker.close.remote(self.failure), timeout=PATIENCE_S)

    def _reap(self, status: dict[str, Any]) -> None:
        ended, _ = (
            ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            if self.running
            else ([], [])
        )
        if status.get("unwell", 0) > self.unwell:
            self._hold()
        self.unwell = status.get("unwell", 0)
        for ref in ended:
            group = self.running.pop(ref)
            try:
                ray.get(ref)
                self.ends.clear()
            except Exception as problem:
                event_log.trouble("fleet over", describe(problem), group=group)
                done = status.get("trained", 0) + status.get("failed", 0)  # given up: the rest goes on
                if done != self.done_at_end:
                    self.ends.clear()
                self.done_at_end = done
                self.ends[died := isinstance(problem, DIED)] += 1
                if not died:
                    self._hold()
                if self.ends[False] == ERRORS or self.ends.total() == DEATHS:
                    why = f"{self.ends.total()} fleets in a row ended with an error"
                    self._give_up(f"{why} and nothing was finished between; the last: {problem}")
            self.broker.lost.remote(group)
