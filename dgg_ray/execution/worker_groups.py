"""Worker groups: Ray Train runs whose workers train one stage after another, with the base model warm.

    WorkerGroupManager    in the driver: starts groups while work items wait, and gives up where none can run
    run_worker_group      a Ray task on the head: one group, from start to end
    WorkerLoop            in each worker: next item → train → evaluate → next item

A group is one `TorchTrainer` run. Its start-up (processes, imports, model) is paid once per group. The group
ends when no item comes for a while, so that the cluster can shrink. Ray Train replaces workers that die, and
the broker assigns their item again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray
import ray.train
from ray.exceptions import ActorDiedError, NodeDiedError, WorkerCrashedError

from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study
from dgg_ray.core import error_records, event_log
from dgg_ray.core.environment import machine_type
from dgg_ray.core.errors import (
    PermanentStoreError,
    PluginError,
    StageError,
    StoreError,
    StudyError,
    error_record,
)
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution import cluster, warm_groups
from dgg_ray.execution.hardware_check import HardwareCheck
from dgg_ray.execution.heartbeat import Heartbeat, Watchdog, hang_file, take_hang_error
from dgg_ray.execution.warm_groups import WarmGroups
from dgg_ray.execution.work_queue import ItemResult
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.process_group import on_rank0, rank
from dgg_ray.training.setup import LOADING, build_stage_runner, keep_model, run_item, startup_error
from dgg_ray.training.simulated_runner import SimulatedRunner

if TYPE_CHECKING:
    from dgg_ray.training.kept_model import KeptModel

POLL_S = 0.2
CLUSTER_CHECK_S = 5.0
MAX_ERRORS, MAX_DEATHS = 3, 20  # of groups in a row; a machine that is taken away is no reason to give up
MACHINE_INDEPENDENT = (StudyError, PluginError, PermanentStoreError)  # would occur on every machine
DEATHS = (ActorDiedError, NodeDiedError, WorkerCrashedError)
MAX_RESTARTS = 5  # of one group's workers; after that the group ends and another is started
BROKER_TIMEOUT_S = 60.0  # the broker answers at once unless it is being restarted
MAX_TROUBLE_S = 300.0  # for so long all calls may fail before the groups are given up
BACK_OFF_S, MAX_BACK_OFF_S = 5.0, 120.0  # before a group that failed is replaced; doubles with each failure


# -- in a worker -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerConfig:
    """The arguments with which every worker of a group is started.

    code: the driver's `cluster.code_version()`. outside_plugins: (kind, name) of each plug-in that the
        worker's machine must provide. study, store: references to Ray's object store.
    group_id: names the group's hang files, unique among all groups of a machine.
    logs: folder of the study's log lines.
    """

    code: str
    outside_plugins: Sequence[tuple[str, str]]
    study: ray.ObjectRef
    store: ray.ObjectRef
    broker: Any
    group: str
    group_id: str
    logs: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, uncopied, as Ray Train wants a configuration."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def run_worker(config: dict[str, Any]) -> None:
    """Run one worker of a group until no item comes.

    config: of a `WorkerConfig`; or {code, outside_plugins, pool, member} of a group that goes from study to
        study (see warm_groups.py).
    """
    pool, member = config.get("pool"), config.get("member", "")
    # Before anything of the driver's is unpickled, which imports the study's plug-ins.
    if reason := cluster.code_mismatch(config["code"]) or cluster.unusable_plugins(config["outside_plugins"]):
        ray.get(pool.refuse.remote(member, reason) if pool else config["broker"].close.remote(reason))
    elif pool:
        from dgg_ray.training.kept_model import KeptModel  # here: it needs torch

        kept = KeptModel()
        warm_groups.run_assignments(pool, member, lambda study: WorkerLoop(WorkerConfig(**study), kept).run())
    else:
        WorkerLoop(WorkerConfig(**config)).run()


class WorkerLoop:
    """The loop of one worker. All workers of a group run it in step; only rank 0 talks to the broker.

    kept: where the base model stays for the next study of this process; None where there is none.
    """

    def __init__(self, config: WorkerConfig, kept: KeptModel | None = None) -> None:
        self.config, self.broker, self.group, self.kept = config, config.broker, config.group, kept
        self.study: Study
        self.store: StageStore
        self.study, self.store = ray.get([config.study, config.store])
        self.workers = self.study.workers

    def run(self) -> bool:
        """Train assigned items until none comes; return False where a failure ends the group before."""
        self._start_process()
        if not self._set_up():
            return False
        try:
            result: ItemResult | None = None
            while item := on_rank0(self._next_item, result):
                result = self._run_item(item)
                if result is None:
                    return False
        finally:
            self.heartbeat.close()
        if self.kept:
            keep_model(self.runner, self.kept)
        event_log.log_event("ended")
        return True

    def _start_process(self) -> None:
        event_log.start_logging(self.study.name, self.group, self.config.logs, rank())
        if self.workers.gpus:  # Ray shows every worker all GPUs of the group on its machine
            import torch  # here: the driver imports this module and needs no torch
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())
        on_rank0(self._report_previous_workers)

    def _report_previous_workers(self) -> None:
        """Tell the broker that workers before these are gone, and why, if their watchdog ended them."""
        error = take_hang_error(self.config.group_id, self.workers.hang_timeout_minutes)
        ray.get(self.broker.group_lost.remote(self.group, error))

    def _set_up(self) -> bool:
        """Build the stage runner; False where the group cannot work; the broker then knows the reason."""
        watchdog = Watchdog(60 * self.workers.hang_timeout_minutes, hang_file(self.config.group_id, rank()))
        self.broker.set_phase.remote(LOADING)
        try:
            runner = build_stage_runner(self.study, self.store, self.workers.zero, watchdog.reset, self.kept)
        except MACHINE_INDEPENDENT as problem:
            ray.get(self.broker.close.remote(f"a worker cannot start: {type(problem).__name__}: {problem}"))
            return False
        except StoreError as problem:  # data that could not be fetched
            ray.get(self.broker.infrastructure_failed.remote(self.group, error_record(problem)))
            return False
        except Exception as problem:  # another machine may do better
            raise startup_error(problem) from problem
        self.heartbeat = Heartbeat(watchdog, None if rank() else self._send_heartbeat)
        runner.on_rank0, runner.on_step = on_rank0, self.heartbeat.on_step
        if not isinstance(runner, SimulatedRunner):
            runner.checkpoint_policy.notice = is_preempted
        self.runner = runner
        seen_by_all = (StageError, StoreError) if self.workers.group_size > 1 else Exception
        self.hardware_check = HardwareCheck(self.study, runner, seen_by_all)
        event_log.log_event("started", machine_type=machine_type(runner.describe_environment()).name)
        return True

    def _next_item(self, result: ItemResult | None) -> WorkItem | None:
        return ray.get(self.broker.next_item.remote(self.group, self.workers.idle_timeout_s, result))

    def _send_heartbeat(self, key: str, steps: tuple[int, int]) -> None:
        self.broker.heartbeat.remote(self.group, key, steps)

    def _run_item(self, item: WorkItem) -> ItemResult | None:
        """Train and evaluate one item; None where its machine or the store makes the group end."""
        start = time.monotonic()
        self.heartbeat.start(item)
        self.hardware_check.run_if_due(item)
        untrained = on_rank0(self.store.record, item.stage) is None
        try:
            error, at_fault = run_item(self.runner, item)
        except Exception as problem:
            self.heartbeat.stop()
            self._report_failure(item, problem, start)
            raise  # whatever may be broken in this process, the next one starts without it
        if error:
            event_log.log_error("failed", error, item)
            if at_fault and not item.profile:
                on_rank0(self.store.record_failure, item.stage, error)
        self.heartbeat.stop()
        if error and not at_fault:  # another machine may do better
            on_rank0(self._report_infrastructure_failure, error)
            return None
        trained = untrained and error is None and bool(item.stage.trained_tasks) and not item.profile
        return ItemResult(item.key, trained, error, time.monotonic() - start)

    def _report_failure(self, item: WorkItem, problem: Exception, start: float) -> None:
        """Tell the broker the error that ends this process.

        The item fails for good if a retry would end in the same way.
        """
        error, result = error_records.located_error_record(problem), None
        event_log.log_error("failed", error, item)
        if error_records.is_permanent_error(problem):
            if not item.profile:
                self.store.record_failure(item.stage, error)
            result = ItemResult(item.key, False, error, time.monotonic() - start)
        ray.get(self.broker.report_failure.remote(self.group, item.key, error, result))

    def _report_infrastructure_failure(self, error: dict[str, str]) -> None:
        ray.get(self.broker.infrastructure_failed.remote(self.group, error))


def is_preempted() -> bool:
    """Return whether the machine is about to be taken away."""
    return ray.train.get_preemption_info() is not None


# -- on the head -----------------------------------------------------------------------------------


class DeathCallback(ray.train.UserCallback):
    """Tells the broker or the pool that a group's workers died: there may be no machine for replacements."""

    def __init__(self, actor: Any, group: str) -> None:
        self.actor, self.group = actor, group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.actor.workers_died.remote(self.group)


@ray.remote(num_cpus=0, resources=cluster.ON_HEAD, max_retries=0)
def run_worker_group(workers: Workers, config: dict[str, Any], group: str, folder: str | None) -> None:
    """Run one group from start to end, in a task of its own: `fit` needs a main thread.

    config: for `run_worker`. folder: for Ray Train's files; None is a temporary one, because a group that
        goes from study to study may outlive the folder of the first.
    """
    with contextlib.nullcontext(folder) if folder else TemporaryDirectory(prefix="dgg-group-") as files:
        fit_worker_group(workers, config, group, files)


def fit_worker_group(workers: Workers, config: dict[str, Any], group: str, folder: str) -> None:
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    TorchTrainer(
        run_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.group_size, use_gpu=workers.gpus > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        run_config=ray.train.RunConfig(
            name=group,
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
            callbacks=[DeathCallback(config.get("pool") or config["broker"], group)],
        ),
    ).fit()


# -- in the driver ---------------------------------------------------------------------------------


class WorkerGroupManager:
    """Starts worker groups while items wait, from a thread of the driver.

    failure: the reason why no group can run; empty while there is none. Possible reasons: the workers cannot
        start anywhere; MAX_ERRORS groups ended with an error of their own, or MAX_DEATHS for any reason, and
        no stage was finished between them; every call failed for MAX_TROUBLE_S.
    on_status: called with the broker's status a few times a second.
    warm: groups that wait for a study, and take this one if they fit; None where all end with the study.
    """

    def __init__(
        self,
        study: Study,
        store: StageStore,
        broker: Any,
        folder: Path,
        on_status: Callable[[dict[str, Any]], None],
        warm: WarmGroups | None = None,
    ) -> None:
        self.study, self.store, self.broker, self.folder = study, store, broker, folder
        self.on_status, self.warm = on_status, warm
        self.running: dict[ray.ObjectRef, str] = {}  # task → group
        self.started = 0
        self.next_cluster_check, self.refusals = 0.0, 0
        self.next_start, self.back_off_s, self.infrastructure_failures = 0.0, BACK_OFF_S, 0
        self.shared: dict[str, Any] = {}  # fields of every WorkerConfig, put into Ray's object store once
        self.failed_groups = Counter[bool]()  # in a row, by whether a process of the group died
        self.done_at_last_failure = -1
        self.failure = ""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._supervise, name="worker groups", daemon=True)

    def __enter__(self) -> WorkerGroupManager:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the groups; a stage in training is abandoned, and trained again by the next run."""
        self.stopped.set()
        self.thread.join(timeout=10)
        if not self.warm:
            self._cancel(self.running)
        with contextlib.suppress(Exception):
            ray.get(self.broker.close.remote("the study was stopped"), timeout=5)
        if self.warm:
            try:
                self.warm.end_study(self.running)
            except Exception as problem:  # what is left ends with the session
                event_log.log_error("worker group failed", error_record(problem))
                self._cancel(self.running)

    def _cancel(self, tasks: Iterable[ray.ObjectRef]) -> None:
        for task in tasks:
            with contextlib.suppress(Exception):
                ray.cancel(task)

    def _supervise(self) -> None:
        last_success = time.monotonic()
        while not self.stopped.wait(CLUSTER_CHECK_S if self.failure else POLL_S):
            if self.failure:
                self._close_broker()  # again, because a restarted broker does not know it is closed
                continue
            try:
                if reason := self._reconcile():
                    self._give_up(reason)
                last_success = time.monotonic()
            except Exception as problem:  # nobody else would notice that no groups are started any more
                # A broker that Ray restarts is unavailable for a while; only its death is final.
                final = isinstance(problem, ActorDiedError)
                if final or time.monotonic() - last_success >= MAX_TROUBLE_S:
                    self._give_up(f"worker groups cannot be supervised: {type(problem).__name__}: {problem}")

    def _reconcile(self) -> str:
        """Start the groups that are wanted; return the reason if no group can run."""
        status: dict[str, Any] = ray.get(self.broker.status.remote(), timeout=BROKER_TIMEOUT_S)
        self._collect_finished(status)
        if self.failure:
            return ""
        wanted = min(self.study.workers.groups, status["waiting"] + len(status["running"]))
        if time.monotonic() >= self.next_start:
            self._start_groups(wanted - len(self.running))
        try:
            self.on_status(status)
        except Exception as problem:  # a display that fails does not end the work
            event_log.log_error("display failed", error_record(problem), level=logging.WARNING)
        return status["closed"] or self._check_cluster(status)

    def _start_groups(self, count: int) -> None:
        """Give the study to groups that wait, and start the others all at once.

        Requested one by one, an autoscaler would grow one by one.
        """
        assignments = [self._next_assignment() for _ in range(count)]
        kind = warm_groups.group_kind(self.study) if self.warm and assignments else ""
        tasks = self.warm.take(kind, assignments) if self.warm and assignments else []
        for assignment in assignments[len(tasks) :]:
            if self.warm:
                tasks.append(self.warm.start(kind, assignment, self._start_task))
            else:
                tasks.append(self._start_task(assignment, assignment["group"], str(self.folder)))
        self.running |= {task: a["group"] for task, a in zip(tasks, assignments, strict=True)}

    def _start_task(self, config: dict[str, Any], group: str, folder: str | None = None) -> ray.ObjectRef:
        return run_worker_group.remote(self.study.workers, config, group, folder)

    def _next_assignment(self) -> dict[str, Any]:
        """The fields of the next group's `WorkerConfig`."""
        self.started += 1
        if not self.shared:
            self.shared = {
                "code": cluster.code_version(),
                "outside_plugins": self.study.outside_plugins,
                "study": ray.put(self.study),
                "store": ray.put(self.store),
                "broker": self.broker,
                "logs": self.folder.parent / event_log.LOG_FOLDER,
            }
        return WorkerConfig(
            **self.shared, group=f"group-{self.started:03d}", group_id=uuid4().hex[:12]
        ).as_dict()

    def _collect_finished(self, status: dict[str, Any]) -> None:
        """Take note of the groups that ended since the last round."""
        failures = status.get("infrastructure_failures", 0)
        if failures > self.infrastructure_failures:
            self._back_off()
        self.infrastructure_failures = failures
        if not self.running:
            return
        if self.warm:
            for task in self.warm.waiting(self.running):
                del self.running[task]
        ended, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for task in ended:
            group = self.running.pop(task)
            try:
                ray.get(task)
                self.failed_groups.clear()
            except Exception as problem:
                self._count_failed_group(group, problem, status)
            self.broker.group_lost.remote(group)

    def _count_failed_group(self, group: str, problem: Exception, status: dict[str, Any]) -> None:
        event_log.log_error("worker group failed", error_record(problem), group=group)
        done = status.get("trained", 0) + status.get("failed", 0)  # a failed stage is progress, too
        if done != self.done_at_last_failure:
            self.failed_groups.clear()
        self.done_at_last_failure = done
        died = isinstance(problem, DEATHS)
        self.failed_groups[died] += 1
        if not died:
            self._back_off()
        if self.failed_groups[False] == MAX_ERRORS or self.failed_groups.total() == MAX_DEATHS:
            self._give_up(
                f"{self.failed_groups.total()} worker groups in a row ended with an error, and no stage was "
                f"finished between them; the last error: {problem}"
            )

    def _back_off(self) -> None:
        """Delay the next start, twice as long for each failure that follows soon after another."""
        now = time.monotonic()
        quiet = now - self.next_start > MAX_BACK_OFF_S
        self.back_off_s = BACK_OFF_S if quiet else min(2 * self.back_off_s, MAX_BACK_OFF_S)
        self.next_start = now + self.back_off_s

    def _check_cluster(self, status: dict[str, Any]) -> str:
        """Free what dead groups reserved; return the reason if no group will ever get machines.

        That is so when the autoscaler refuses all groups twice in a row.
        """
        if not self.running or time.monotonic() < self.next_cluster_check:
            return ""
        self.next_cluster_check = time.monotonic() + CLUSTER_CHECK_S
        try:
            cluster.free_abandoned()
            refused = [] if status["running"] else cluster.infeasible_requests()
        except Exception as problem:  # the next check may succeed
            event_log.log_error("cluster not readable", error_record(problem), level=logging.WARNING)
            return ""
        self.refusals = self.refusals + 1 if len(refused) >= len(self.running) else 0
        if self.refusals < 2:
            return ""
        return (
            f"the autoscaler has no machines for a worker group, which needs {refused[0]}: lower "
            "workers.group_size, workers.cpus or workers.gpus, or add such machines to the cluster"
        )

    def _give_up(self, reason: str) -> None:
        if self.stopped.is_set():
            return
        event_log.log_event("given up", level=logging.ERROR, reason=reason)
        self.failure = reason
        self._close_broker()

    def _close_broker(self) -> None:
        with contextlib.suppress(Exception):
            ray.get(self.broker.close.remote(self.failure), timeout=BROKER_TIMEOUT_S)
