"""Ray: start it on this machine or connect to a cluster, and ask the cluster what it can hold."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import ceil, inf
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

from dgg_ray.config.study import Study
from dgg_ray.core import environment, interrupts, plugins, process_setup
from dgg_ray.core.errors import ClusterError

RAY_UP_CONFIG = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))  # by `ray up`; JSON despite its name
ON_HEAD = {"node:__internal_head__": 0.001}  # for processes that only wait: the head is never scaled away
HELD = ("CPU", "GPU")  # what worker groups hold

# Read by Ray when it starts, and by its workers.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default, 2, delays every start and end by it
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # of the 30 s that some clouds give, the default takes 5
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # our own handler ends the worker groups, too
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's checkpoint is never read: the store is the truth
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_maximum_startup_concurrency": "8",  # on few cores the default, their number, delays a start
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@contextlib.contextmanager
def connected(study: Study, address: str | None = None) -> Iterator[None]:
    """Run a block with Ray: on the cluster at an address, else started on this machine.

    Raises ClusterError at once where the cluster can never hold one of the study's worker groups.
    """
    with started(cores_for(study), address):
        check_resources(study)
        yield


@contextlib.contextmanager
def started(cores: int, address: str | None = None) -> Iterator[None]:
    """Run a block with Ray. cores: logical ones, where Ray is started on this machine."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ |= plugin_environment()
    starting = not ray.is_initialized()
    folder = process_setup.make_short_folder() if starting and not address else None
    process_setup.leave_deleted_folder()
    if starting and address:
        join(address)
    elif starting:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=200_000_000,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
    # Ray answers SIGTERM with a stack trace; our handler ends the worker groups, as Ctrl-C does.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupts.interrupt) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        if starting:
            ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def cores_for(study: Study) -> int:
    """This machine's cores, or more: a study that asks for more workers than cores still runs."""
    workers = study.workers
    return max(os.cpu_count() or 1, ceil(workers.groups * workers.group_size * workers.cpus))


def join(address: str) -> None:
    """Connect to a cluster; raise ClusterError within seconds where that is impossible."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself waits a minute and then ends the process
            socket.create_connection((host, int(port)), timeout=5).close()
        environment = {"env_vars": ENVIRONMENT | plugin_environment()}
        ray.init(address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as problem:
        raise ClusterError(
            f"the cluster at {address} does not accept this machine's token: {problem}. Set "
            "RAY_AUTH_TOKEN to the cluster's (on its head: `ray get-auth-token`)"
        ) from problem
    except (OSError, ValueError) as problem:
        raise ClusterError(
            f"no cluster answers at {address}: {problem}. Check that it is up (`ray status` on its head) and "
            "that the address is its head's HOST:PORT, as `ray start --head` prints it"
        ) from problem
    except RuntimeError as problem:  # with another version of Ray or Python
        raise ClusterError(f"cannot use the cluster at {address}: {problem}") from problem


def plugin_environment() -> dict[str, str]:
    """Environment variables with which Ray's processes find the user's own plug-ins."""
    if not plugins.OUTSIDE_FOLDERS:
        return {}
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys([*folders, *plugins.OUTSIDE_FOLDERS]))}


@cache
def code_version() -> str:
    """This package's version and the digest of its source files."""
    return f"{environment.package_version('dgg_ray')} ({environment.package_source_digest()})"


def code_mismatch(wanted: str) -> str:
    """Why this process cannot work for a driver with the `code_version()` wanted; empty where it can."""
    if wanted == code_version():
        return ""
    return (
        f"a worker on {socket.gethostname()} has another dgg_ray than the driver: {code_version()}, "
        f"not {wanted}; install the driver's on every machine (setup_commands in cluster.yaml, or the "
        "job's working_dir)"
    )


def unusable_plugins(names: Iterable[tuple[str, str]]) -> str:
    """Why this process cannot use the study's plug-ins from outside this package; empty where it can.

    names: (kind, name) of each plug-in.
    """
    for kind, name in names:
        if faults := plugins.lookup_faults(kind, name):
            plugin = plugins.describe_plugin(f"{kind}/{name}")
            return f"a worker on {socket.gethostname()} cannot use the {plugin}: {faults[0].rule}"
    return ""


def check_resources(study: Study) -> None:
    """Raise ClusterError where the cluster can never hold one worker group, which would wait for ever."""
    if (types := node_types()) is None:
        return
    workers = study.workers
    needs = {name: amount for name, amount in (("GPU", workers.gpus), ("CPU", workers.cpus)) if amount}
    worker = " and ".join(f"{amount:g} {name}{'s' * (amount != 1)}" for name, amount in needs.items())
    room = sum(workers_per_node(resources, needs) * count for resources, count in types)
    if not room:
        nodes = "; ".join(f"{r.get('GPU', 0):g} GPUs, {r.get('CPU', 0):g} CPUs" for r, _ in types)
        raise ClusterError(
            f"a worker needs {worker} on one machine; the cluster has, or can start, machines with {nodes}. "
            "Lower workers.gpus or workers.cpus, or add larger machines (available_node_types in "
            "cluster.yaml, --ray-address for another cluster)"
        )
    if room < workers.group_size:
        raise ClusterError(
            f"a worker group needs {workers.group_size} workers with {worker} each; the cluster has room "
            f"for {room:g}. Lower workers.group_size, or add machines (max_workers in cluster.yaml, "
            "--ray-address for another cluster)"
        )


def workers_per_node(resources: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """Number of workers that one machine can hold."""
    return min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items())


def node_types() -> list[tuple[dict[str, float], float]] | None:
    """(Resources, most nodes) for each node that is up, and each type that an autoscaler can start.

    None where an autoscaler is at work that does not tell what it can start.
    """
    from ray._private.state import state  # Ray has no public call for it

    nodes = [(node["Resources"], 1.0) for node in ray.nodes() if node["Alive"]]
    startable: list[tuple[dict[str, float], float]] = []
    config = state.get_cluster_config()  # written by KubeRay's autoscaler
    for group in config.node_group_configs if config else ():
        resources = {name: inf if amount < 0 else float(amount) for name, amount in group.resources.items()}
        startable.append((resources, inf if group.max_count < 0 else group.max_count))
    if not startable and RAY_UP_CONFIG.exists():
        content = json.loads(RAY_UP_CONFIG.read_text(encoding="utf-8"))
        for node_type in content["available_node_types"].values():
            most = node_type.get("max_workers", content["max_workers"])
            startable.append((node_type["resources"], most))
    if startable:
        return nodes + startable
    return None if is_autoscaled() else nodes


def is_autoscaled() -> bool:
    """Return whether an autoscaler manages the cluster, or may do so."""
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1":
        return True  # `infeasible_requests` asks it later
    status = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
    active = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    # A machine that was started by hand is a node type of its own: `node_` and its id.
    return any(not name.startswith("node_") for name in active)


def infeasible_requests() -> list[str]:
    """Resource requests that the autoscaler can never meet; none while it is starting machines."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # pyright: ignore

    reply, address = GetClusterStatusReply(), ray.get_runtime_context().gcs_address
    reply.ParseFromString(GcsClient(address).get_cluster_status(timeout_s=5))
    state = reply.autoscaling_state
    if state.pending_instance_requests or state.pending_instances:
        return []
    return [
        " + ".join(str(dict(request.resources_bundle)) for request in gang.requests)
        for gang in state.infeasible_gang_resource_requests
    ]


def is_short_of_machines() -> bool:
    """Return whether anybody waits for CPUs or GPUs that a machine of the cluster has, but that are taken."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply  # pyright: ignore

    reply, address = GetClusterResourceStateReply(), ray.get_runtime_context().gcs_address
    reply.ParseFromString(GcsClient(address).get_cluster_resource_state(timeout_s=5))
    state = reply.cluster_resource_state
    gangs = [request for gang in state.pending_gang_resource_requests for request in gang.requests]
    requests = [*gangs, *(r.request for r in state.pending_resource_requests)]
    machines = [dict(node.total_resources) for node in state.node_states]
    return any(
        workers_per_node(machine, wanted)
        for request in requests
        if (wanted := {name: n for name, n in request.resources_bundle.items() if n and name in HELD})
        for machine in machines
    )


def free_abandoned() -> int:
    """Free the resources that killed worker groups still reserve; return the number of such reservations.

    Ray keeps a placement group until the whole job ends, unless a helper of Ray Train removes it. That helper
    needs the dashboard, which does not run on a single machine, and it misses groups that were still pending.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Group  # pyright: ignore
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    groups = map(Group.FromString, state._connect_and_get_accessor().get_placement_group_table())
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    # The driver's own reservations, as for trials, have no creating actor, and Ray calls that dead, too.
    by_actors = [g for g in groups if g.creator_job_id == job and g.creator_actor_id.strip(b"\xff")]
    abandoned = [g for g in by_actors if g.creator_actor_dead and g.state != Group.REMOVED]
    for group in abandoned:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(abandoned)


def is_restarted_actor() -> bool:
    """Return whether this process is an actor that Ray restarted."""
    from ray._private.state import actors

    if not ray.is_initialized():
        return False
    actor = ray.get_runtime_context().get_actor_id()
    return bool(actor and actors(actor)["NumRestarts"])
