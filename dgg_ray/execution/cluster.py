"""Ray, found or started."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from math import ceil, inf
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

from dgg_ray.config.study import Study
from dgg_ray.core import environment, plugins, surroundings
from dgg_ray.core.errors import ClusterError
from dgg_ray.core.versions import version

LAUNCHED = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))  # JSON, whatever its name says
ON_HEAD = {"node:__internal_head__": 0.001}  # where what only waits belongs: that machine stays

# Read by Ray when it starts and by its workers.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default, 2, delays every start and end by it
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # of the 30 s that some clouds give, the default takes 5
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
    os.environ |= importable()
    w = study.workers
    started = not ray.is_initialized()
    folder = surroundings.short_folder() if started and not address else None
    surroundings.leave_deleted_folder()
    if started and address:
        join(address)
    elif started:
        cores = max(os.cpu_count() or 1, ceil(w.groups * w.group_size * w.cpus))
        ray.init(
            address="local",
            num_cpus=cores,  # logical: a study that asks for more workers than cores still runs
            include_dashboard=False,
            object_store_memory=200_000_000,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
    # Ray's own answer to SIGTERM is a stack trace; ours ends the fleets as Ctrl-C does.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        demand(study)
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        if started:
            ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def join(address: str) -> None:
    """Connect to a cluster; ClusterError within seconds where that cannot be."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself waits a minute and then ends the process
            socket.create_connection((host, int(port)), timeout=5).close()
        environment = {"env_vars": ENVIRONMENT | importable()}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as problem:
        raise ClusterError(
            f"the cluster at {address} does not accept this machine's token: {problem}. Set "
            "RAY_AUTH_TOKEN to the cluster's (on its head: `ray get-auth-token`)"
        ) from problem
    except (OSError, ValueError) as problem:
        raise ClusterError(
            f"no cluster answers at {address}: {problem}. Is it up (`ray status` on its head), and is the "
            "address its head's HOST:PORT, as `ray start --head` prints it?"
        ) from problem
    except RuntimeError as problem:  # another version of Ray or Python, as Ray says
        raise ClusterError(f"cannot work on the cluster at {address}: {problem}") from problem


def importable() -> dict[str, str]:
    """Environment variables by which Ray's processes find plug-ins of the user's own."""
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    places = dict.fromkeys([*filter(None, before), *plugins.REACHED])
    return {"PYTHONPATH": os.pathsep.join(places)} if plugins.REACHED else {}


@cache
def code() -> str:
    """This package's version and what its source files hash to."""
    return f"{version('dgg_ray')} ({environment.source()})"


def other_code(wanted: str) -> str:
    """Why this process cannot work for a driver whose `code()` is `wanted`; empty where it can."""
    if wanted == code():
        return ""
    return (
        f"a worker on {socket.gethostname()} has another dgg_ray than the driver: {code()}, not {wanted}; "
        "install the driver's on every machine (setup_commands in cluster.yaml, or the job's working_dir)"
    )


def demand(study: Study) -> None:
    """ClusterError where one fleet would wait for ever: what it wants is more than there can be."""
    if (machines := kinds()) is None:
        return
    w = study.workers
    each = {name: amount for name, amount in (("GPU", w.gpus), ("CPU", w.cpus)) if amount}
    worker = " and ".join(f"{amount:g} {name}{'s' * (amount != 1)}" for name, amount in each.items())
    room = sum(fit(have, each) * count for have, count in machines)
    if not room:
        have = "; ".join(f"{r.get('GPU', 0):g} GPUs, {r.get('CPU', 0):g} CPUs" for r, _ in machines)
        raise ClusterError(
            f"a worker wants {worker} on one machine, the cluster has, or can start, machines with {have}; "
            "lower workers.gpus or workers.cpus, or add larger machines (available_node_types in "
            "cluster.yaml, --address for another cluster)"
        )
    if room < w.group_size:
        raise ClusterError(
            f"a fleet wants {w.group_size} workers with {worker} each, there is room for {room:g}; lower "
            "workers.group_size, or add machines (max_workers in cluster.yaml, --address for another cluster)"
        )


def fit(have: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Workers that one machine holds."""
    return min(int(have.get(name, 0.0) / amount + 1e-9) for name, amount in each.items())


def kinds() -> list[tuple[dict[str, float], float]] | None:
    """Machines that are there or can be started: what each has, and how many of its kind there can be.

    None where an autoscaler is at work that does not say what it can start.
    """
    from ray._private.state import state  # there is no public way to it

    there = [(node["Resources"], 1.0) for node in ray.nodes() if node["Alive"]]
    found: list[tuple[dict[str, float], float]] = []
    config = state.get_cluster_config()  # written by KubeRay's autoscaler
    for group in config.node_group_configs if config else ():
        have = {name: inf if amount < 0 else float(amount) for name, amount in group.resources.items()}
        found.append((have, inf if group.max_count < 0 else group.max_count))
    if not found and LAUNCHED.exists():  # written by `ray up`
        content = json.loads(LAUNCHED.read_text(encoding="utf-8"))
        for kind in content["available_node_types"].values():
            found.append((kind["resources"], kind.get("max_workers", content["max_workers"])))
    if found:
        return there + found
    return None if autoscaled() else there


def autoscaled() -> bool:
    """Whether an autoscaler looks after the cluster, or may do so."""
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1":
        return True  # `infeasible` asks it
    status = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
    active = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    # Where machines are started by hand, each is of a kind of its own, `node_` and its id.
    return any(not name.startswith("node_") for name in active)


def infeasible() -> list[str]:
    """What was asked for that the autoscaler says it can never start; nothing while it starts something."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # pyright: ignore

    reply, address = GetClusterStatusReply(), ray.get_runtime_context().gcs_address
    reply.ParseFromString(GcsClient(address).get_cluster_status(timeout_s=5))
    said = reply.autoscaling_state
    if said.pending_instance_requests or said.pending_instances:
        return []
    return [
        " + ".join(str(dict(one.resources_bundle)) for one in gang.requests)
        for gang in said.infeasible_gang_resource_requests
    ]


def free_abandoned() -> int:
    """Give back what fleets reserved whose controllers were killed; how many such there were.

    Ray keeps a placement group until the whole job ends, unless a helper of Ray Train removes it. That one
    asks the dashboard, which is not there on one machine, and does not know groups that were still awaited.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group  # pyright: ignore
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    every = map(Group.FromString, state._connect_and_get_accessor().get_placement_group_table())
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    # What the driver itself reserved, as for trials, has no actor, which counts as a dead one.
    made = [g for g in every if g.creator_job_id == job and g.creator_actor_id.strip(b"\xff")]
    gone = [g for g in made if g.creator_actor_dead]
    left = [g for g in gone if g.state != Group.REMOVED]
    for group in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(left)


def restarted() -> bool:
    """Whether this process continues an actor that died."""
    from ray._private.state import actors

    if not ray.is_initialized():
        return False
    actor = ray.get_runtime_context().get_actor_id()
    return bool(actor and actors(actor)["NumRestarts"])
