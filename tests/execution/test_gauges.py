"""What Prometheus reads of a study is the study's own tally."""

import contextlib
import re
import socket
import time
import urllib.request

import pytest
import ray

from dgg_ray.config.sections import Workers
from dgg_ray.core.stage import WorkItem
from dgg_ray.execution.broker import Broker
from dgg_ray.execution.prometheus import Watch

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def page():
    """Reads the text page of this machine's Ray: {(metric, labels without Ray's own): value}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
    )

    def read() -> dict[tuple[str, str], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = {}
        for line in lines:
            if match := re.match(r"(ray_dgg_\w+)\{(.*)\} (\S+)$", line):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                ours = ",".join(labels[k] for k in ("study", "state", "task", "le") if k in labels)
                found[match[1], ours] = float(match[3])
        return found

    yield read
    ray.shutdown()


def test_the_page_has_the_studys_tally(world, page, tmp_path):
    """Three stages: one is learned, one fails, one waits."""
    watch = Watch("toy", {"worker-hours": 2 / 3600, "GPU-hours": 8 / 3600}, tmp_path)
    broker = Broker.remote(world.store, 1, watch=watch)
    one, four, nine = (
        WorkItem(world.path(name)[0], (world.evaluation(name),)) for name in ("ones", "fours", "nines")
    )
    began = time.monotonic()
    good = broker.need.remote(one)
    assert ray.get(broker.take.remote("fleet-001", 10)) == [one]
    world.shop.obtain(one)
    ray.get(broker.done.remote("fleet-001", (one.key, True, None, 0.01)))
    bad = broker.need.remote(four)
    assert ray.get(broker.take.remote("fleet-001", 10)) == [four]
    error = {"error": "NotFinite", "message": "nan"}
    ray.get(broker.done.remote("fleet-001", (four.key, False, error, 0.01)))
    assert ray.get(good)["ok"]
    assert not ray.get(bad)["ok"]
    waits = broker.need.remote(nine)
    while not (tally := ray.get(broker.status.remote()))["waiting"]:
        time.sleep(0.05)

    want = {"queued": 1, "running": 0, "trained": tally["trained"], "failed": tally["failed"], "lost": 0}
    assert (tally["trained"], tally["failed"], tally["waiting"]) == (1, 1, 1)
    found, until = {}, time.monotonic() + 40
    hours = ("ray_dgg_gpu_hours_total", "toy")
    while (found.get(("ray_dgg_stages", "toy,queued")), hours in found) != (1, True):
        assert time.monotonic() < until, found
        time.sleep(0.3)
        with contextlib.suppress(OSError):  # the agent's page is not there at once
            found = page()
    assert {state: found["ray_dgg_stages", f"toy,{state}"] for state in want} == want
    assert found["ray_dgg_stage_seconds_count", "toy,ones"] == 1
    assert found["ray_dgg_stage_seconds_count", "toy,fours"] == 1
    assert 0 < found["ray_dgg_worker_hours_total", "toy"] < 2 / 3600 * (time.monotonic() - began)
    four_gpus_each = 4 * found["ray_dgg_worker_hours_total", "toy"]
    assert found["ray_dgg_gpu_hours_total", "toy"] == pytest.approx(four_gpus_each)
    ray.get(broker.close.remote("it was enough"))
    assert not ray.get(waits)["ok"]


def test_the_hours_are_those_of_the_workers(tmp_path):
    from dgg_ray.cost.model import units

    rates = units(Workers(group_size=2, gpus=4))
    assert rates == {"worker-hours": 2 / 3600, "GPU-hours": 8 / 3600}
    assert Watch("toy", units(Workers()), tmp_path).hours.keys() == {"worker-hours"}
