"""Worker groups that a cluster can never hold are reported at once."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.exceptions import AuthenticationError

from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study
from dgg_ray.core.errors import ClusterError
from dgg_ray.execution import cluster
from dgg_ray.models.embedded import Embedded as Model
from dgg_ray.readers.embedded import Embedded
from dgg_ray.strategies.dgg import DGG

STUDY = Study("toy", Model(), {"digits": Embedded(), "words": Embedded()}, DGG())


def node(cpus, gpus=0):
    return {"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}


@pytest.fixture
def machines(monkeypatch):
    """Set the machines of the cluster: those that are up, and those that an autoscaler can start."""

    def set_machines(*nodes, config=None, autoscaled=False):
        monkeypatch.setattr("ray.nodes", lambda: nodes)
        monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
        monkeypatch.setattr(cluster, "is_autoscaled", lambda: autoscaled)

    monkeypatch.setattr(cluster, "RAY_UP_CONFIG", Path("nowhere"))
    set_machines(node(4, 1))
    return set_machines


def check(**workers):
    cluster.check_resources(replace(STUDY, workers=Workers(**workers)))


def startable(*types):
    """What an autoscaler says that it can start: (resources, most nodes)."""
    return ClusterConfig(
        node_group_configs=[NodeGroupConfig(resources=have, max_count=most) for have, most in types]
    )


def test_a_group_that_fits_is_no_error(machines):
    check(group_size=4)
    check(gpus=1)
    check(group_size=2, gpus=0.5)
    check(groups=50)  # one after another


def test_a_worker_that_fits_no_machine_gets_both_sizes_and_the_remedy(machines):
    with pytest.raises(
        ClusterError, match=r"needs 2 GPUs and 1 CPU on one machine.* with 1 GPUs, 4 CPUs. Lower"
    ):
        check(gpus=2)
    machines(node(4), node(4))
    with pytest.raises(ClusterError, match="needs 8 CPUs on one machine"):
        check(cpus=8)  # the cluster has eight, on two machines


def test_a_group_without_room_is_told_how_much_there_is(machines):
    machines(node(4, 1), node(4, 2))
    check(group_size=3, gpus=1)
    check(group_size=6, gpus=0.5)
    with pytest.raises(
        ClusterError, match=r"needs 4 workers with 1 GPU and 1 CPU each; the cluster has room for 3."
    ):
        check(group_size=4, gpus=1)


def test_machines_that_an_autoscaler_can_start_count(machines):
    machines(node(0), config=startable(({"CPU": 0}, 0), ({"CPU": 8, "GPU": 1}, 4)))
    check(group_size=4, gpus=1, cpus=8)
    with pytest.raises(ClusterError, match="room for 4"):
        check(group_size=5, gpus=1)
    with pytest.raises(ClusterError, match="on one machine"):
        check(gpus=2)
    machines(node(0), config=startable(({"CPU": 8}, -1)))
    check(group_size=1000, cpus=8)  # -1: no limit


def test_the_node_types_of_ray_up_count(machines, monkeypatch, tmp_path):
    launched = tmp_path / "ray_bootstrap_config.yaml"
    types = {"head": {"resources": {"CPU": 0}, "max_workers": 0}, "gpu": {"resources": {"CPU": 4, "GPU": 1}}}
    launched.write_text(json.dumps({"max_workers": 2, "available_node_types": types}))
    monkeypatch.setattr(cluster, "RAY_UP_CONFIG", launched)
    machines(node(0))
    check(group_size=2, gpus=1)
    with pytest.raises(ClusterError, match="room for 2"):
        check(group_size=3, gpus=1)


def test_an_autoscaler_that_does_not_tell_what_it_can_start_is_tried(machines):
    machines(node(0), autoscaled=True)
    check(gpus=8, group_size=16)


@pytest.mark.parametrize(
    ("v2", "names", "grows"),
    [
        (b"1", [], True),
        (b"0", ["ray.head.default"], True),
        (b"0", ["node_0123", "node_4567"], False),  # started by hand
        (None, None, False),
    ],
)
def test_autoscaled_clusters_are_told_from_those_started_by_hand(monkeypatch, v2, names, grows):
    report = None if names is None else {"autoscaler_report": {"active_nodes": dict.fromkeys(names, 1)}}
    values = {"__autoscaler_v2_enabled": v2, "__autoscaling_status": report and json.dumps(report).encode()}
    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_get", lambda name, namespace=None: values[name]
    )
    assert cluster.is_autoscaled() is grows


def test_an_address_without_a_cluster_is_reported_within_seconds_with_what_to_do():
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"no cluster answers at 127.0.0.1:1: .*ray status"):
        cluster.join("127.0.0.1:1")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (AuthenticationError("no token"), "does not accept this machine's token.*RAY_AUTH_TOKEN"),
        (ConnectionError("nobody"), "no cluster answers"),
        (RuntimeError("Version mismatch: Ray: 2.9"), "cannot use the cluster.*Version mismatch"),
    ],
)
def test_rays_errors_at_an_address_come_with_what_to_do(monkeypatch, problem, message):
    def init(**_):
        raise problem

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ClusterError, match=message):
        cluster.join("auto")


def test_the_code_version_has_a_digest_of_the_source_files():
    assert cluster.code_mismatch(cluster.code_version()) == ""
    assert re.fullmatch(r"\d+\.\d+\.\d+ \([0-9a-f]{12}\)", cluster.code_version())
