"""Demands that a machine can never meet are told at once."""

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
    """A function that says which machines there are: those up, and what an autoscaler can start."""

    def there_are(*nodes, config=None, autoscaled=False):
        monkeypatch.setattr("ray.nodes", lambda: nodes)
        monkeypatch.setattr("ray._private.state.state.get_cluster_config", lambda: config)
        monkeypatch.setattr(cluster, "autoscaled", lambda: autoscaled)

    monkeypatch.setattr(cluster, "LAUNCHED", Path("nowhere"))
    there_are(node(4, 1))
    return there_are


def wants(**workers):
    cluster.demand(replace(STUDY, workers=Workers(**workers)))


def groups(*kinds):
    """An autoscaler's own account of what it can start: (resources, most)."""
    return ClusterConfig(
        node_group_configs=[NodeGroupConfig(resources=have, max_count=most) for have, most in kinds]
    )


def test_a_fleet_that_fits_is_no_error(machines):
    wants(group_size=4)
    wants(gpus=1)
    wants(group_size=2, gpus=0.5)
    wants(groups=50)  # one after another


def test_a_worker_that_fits_no_machine_names_both_and_the_way_out(machines):
    with pytest.raises(
        ClusterError, match=r"wants 2 GPUs and 1 CPU on one machine.* with 1 GPUs, 4 CPUs; lower"
    ):
        wants(gpus=2)
    machines(node(4), node(4))
    with pytest.raises(ClusterError, match="wants 8 CPUs on one machine"):
        wants(cpus=8)  # eight there are, on two machines


def test_a_fleet_for_which_there_is_no_room_names_how_much_there_is(machines):
    machines(node(4, 1), node(4, 2))
    wants(group_size=3, gpus=1)
    wants(group_size=6, gpus=0.5)
    with pytest.raises(
        ClusterError, match=r"wants 4 workers with 1 GPU and 1 CPU each, there is room for 3;"
    ):
        wants(group_size=4, gpus=1)


def test_what_an_autoscaler_can_start_counts(machines):
    machines(node(0), config=groups(({"CPU": 0}, 0), ({"CPU": 8, "GPU": 1}, 4)))
    wants(group_size=4, gpus=1, cpus=8)
    with pytest.raises(ClusterError, match="room for 4"):
        wants(group_size=5, gpus=1)
    with pytest.raises(ClusterError, match="on one machine"):
        wants(gpus=2)
    machines(node(0), config=groups(({"CPU": 8}, -1)))
    wants(group_size=1000, cpus=8)  # -1: as many as one likes


def test_what_ray_up_wrote_down_counts(machines, monkeypatch, tmp_path):
    launched = tmp_path / "ray_bootstrap_config.yaml"
    kinds = {"head": {"resources": {"CPU": 0}, "max_workers": 0}, "gpu": {"resources": {"CPU": 4, "GPU": 1}}}
    launched.write_text(json.dumps({"max_workers": 2, "available_node_types": kinds}))
    monkeypatch.setattr(cluster, "LAUNCHED", launched)
    machines(node(0))
    wants(group_size=2, gpus=1)
    with pytest.raises(ClusterError, match="room for 2"):
        wants(group_size=3, gpus=1)


def test_an_autoscaler_that_does_not_say_what_it_can_start_is_given_the_chance(machines):
    machines(node(0), autoscaled=True)
    wants(gpus=8, group_size=16)


@pytest.mark.parametrize(
    ("v2", "names", "grows"),
    [
        (b"1", [], True),
        (b"0", ["ray.head.default"], True),
        (b"0", ["node_0123", "node_4567"], False),  # started by hand
        (None, None, False),
    ],
)
def test_an_autoscaler_is_told_from_machines_that_were_started_by_hand(monkeypatch, v2, names, grows):
    report = None if names is None else {"autoscaler_report": {"active_nodes": dict.fromkeys(names, 1)}}
    kept = {"__autoscaler_v2_enabled": v2, "__autoscaling_status": report and json.dumps(report).encode()}
    monkeypatch.setattr(
        "ray.experimental.internal_kv._internal_kv_get", lambda name, namespace=None: kept[name]
    )
    assert cluster.autoscaled() is grows


def test_nobody_at_the_address_is_said_within_seconds_with_what_to_do():
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"no cluster answers at 127.0.0.1:1: .*ray status"):
        cluster.join("127.0.0.1:1")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (AuthenticationError("no token"), "does not accept this machine's token.*RAY_AUTH_TOKEN"),
        (ConnectionError("nobody"), "no cluster answers"),
        (RuntimeError("Version mismatch: Ray: 2.9"), "cannot work on the cluster.*Version mismatch"),
    ],
)
def test_what_ray_says_of_an_address_comes_with_what_to_do(monkeypatch, problem, said):
    def init(**_):
        raise problem

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ClusterError, match=said):
        cluster.join("auto")


def test_the_code_is_told_apart_by_what_its_files_say():
    assert cluster.other_code(cluster.code()) == ""
    assert re.fullmatch(r"\d+\.\d+\.\d+ \([0-9a-f]{12}\)", cluster.code())
