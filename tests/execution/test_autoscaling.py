"""Ray's own autoscaler grows a cluster from nothing for a study, and shrinks it to nothing after it."""

import json
import subprocess
import sys
import time

import pytest
from local_autoscaler import LocalAutoscaler

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]
STUDY = """\
name: grows
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 40, validation: 10, test: 10}
  - {name: words, reader: embedded, train: 40, validation: 10, test: 10}
  - {name: charts, reader: embedded, train: 40, validation: 10, test: 10}
strategy: {name: dgg, alpha: 0.2, buffer: 4}
seeds: [0, 1, 2, 3, 4, 5]
protocol: {baselines: []}
simulation: {wait: 1.0, seconds: 20}
workers: {engine: simulated, groups: 3, idle_timeout_s: 2, cpus: CPUS}
"""
DEADLINE_S = 240  # alone on two cores it takes a fifth of that


def start(folder, address, cpus=1):
    (folder / "study.yaml").write_text(STUDY.replace("CPUS", str(cpus)))
    command = [sys.executable, "-m", "dgg_ray", "run", folder / "study.yaml", "--out", folder / "out"]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [*command, "--ray-address", address],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def read_state(address, folder):
    """(nodes without the head, worker groups requested and not granted, queued, running)."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(address)
    nodes = len(status.active_nodes) + len(status.idle_nodes) - 1
    groups = status.resource_demands.placement_group_demand
    requested = sum(bundle.count for group in groups for bundle in group.bundles_by_count)
    try:
        live = json.loads((folder / "out" / "progress.json").read_text())
    except (OSError, ValueError):
        live = {"queued": 0, "running": []}
    return nodes, requested, live["queued"], len(live["running"])


@pytest.mark.parametrize("v2", [False, True])
def test_a_study_grows_the_cluster_to_its_limit_and_gives_it_back(v2, tmp_path):
    states = []
    with LocalAutoscaler({"CPU": 1, "object_store_memory": 80_000_000}, most=3, v2=v2) as machines:
        run, began = start(tmp_path, machines.address), time.monotonic()
        try:
            while run.poll() is None or states[-1][1]:
                assert time.monotonic() - began < DEADLINE_S, (tmp_path / "log").read_text()[-3000:]
                if (now := read_state(machines.address, tmp_path)) != (states[-1][1:] if states else None):
                    states.append((round(time.monotonic() - began, 1), *now))
                time.sleep(0.2)
        finally:
            run.kill()
    print("\n  time  nodes  requested  queued  running")
    for when, nodes, requested, queued, running in states:
        print(f"{when:6.1f} {nodes:6} {requested:10} {queued:7} {running:8}")
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    _, nodes, _, _, running = zip(*states, strict=True)
    assert (nodes[0], max(nodes), nodes[-1]) == (0, 3, 0)
    assert max(running) == 3


def test_a_group_that_no_machine_of_the_autoscaler_can_hold_is_reported_within_seconds(tmp_path):
    with LocalAutoscaler({"CPU": 1, "object_store_memory": 80_000_000}, most=3) as machines:
        run = start(tmp_path, machines.address, cpus=16)
        try:
            assert run.wait(timeout=120) == 1
        finally:
            run.kill()
    assert "the autoscaler has no machines for a worker group" in (tmp_path / "log").read_text()
