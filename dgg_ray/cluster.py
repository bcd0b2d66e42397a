"""Ray, found or started."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from math import ceil
from pathlib import Path

import ray

from dgg_ray.digests import digest
from dgg_ray.errors import ClusterError
from dgg_ray.study import Study

ON_HEAD = {"node:__internal_head__": 0.001}  # where what only waits belongs: that machine stays

# Read by Ray when it starts and by its workers.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default, 2, delays every start and end by it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: the fleets must end too
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshot is never read: the store is the truth
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_maximum_startup_concurrency": "8",  # on few cores the default, their number, delays a start
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@contextlib.contextmanager
def connected(study: Study, address: str | None = None) -> Iterator[None]:
    """Ray for the length of the block; a cluster on this machine unless an address is given.

    Raises ClusterError at once for a demand that the cluster as it is can never meet.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    w = study.workers
    started = not ray.is_initialized()
    # A short path: Ray's sockets live below it, and their names have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="dgg-")) if started and not address else None
    if started and address:
        environment = {"env_vars": ENVIRONMENT}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    elif started:
        cores = max(os.cpu_count() or 1, ceil(w.fleets * w.per_fleet * w.cpus))
        ray.init(
            address="local",
            num_cpus=cores,  # logical: a study that asks for more workers than cores still runs
            include_dashboard=False,
            object_store_memory=200_000_000,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
    # Ray's own answer to SIGTERM is a stack trace; ours ends the fleets as Ctrl-C does.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        if started and not address:  # an autoscaling cluster may be small now and grow
            demand(study)
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        if started:
            ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


@cache
def code() -> str:
    """This package's version and what its source files hash to."""
    folder = Path(__file__).parent
    files = {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*.py"))}
    return f"{version('dgg_ray')} ({digest(files)[:12]})"


def other_code(wanted: str) -> str:
    """Why this process cannot work for a driver whose `code()` is `wanted`; empty where it can."""
    if wanted == code():
        return ""
    return (
        f"a worker on {socket.gethostname()} has another dgg_ray than the driver: {code()}, not {wanted}; "
        "install the driver's on every machine (setup_commands in cluster.yaml, or the job's working_dir)"
    )


def demand(study: Study) -> None:
    """ClusterError where one fleet would wait for ever."""
    w, have = study.workers, ray.cluster_resources()
    for name, each in (("GPU", w.gpus), ("CPU", w.cpus)):
        if each * w.per_fleet > have.get(name, 0):
            raise ClusterError(
                f"a fleet wants {each * w.per_fleet:g} {name}s, this machine has {have.get(name, 0):g}; "
                f"lower workers.per_fleet or workers.{name.lower()}s, or name a cluster with --address"
            )
