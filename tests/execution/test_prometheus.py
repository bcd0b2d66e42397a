"""The metrics that Prometheus reads of a study equal the study's own counts."""

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
from dgg_ray.execution.prometheus import MetricsExporter
from dgg_ray.execution.work_queue import ItemResult

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def read_page():
    """Read the metrics page of this machine's Ray: {(metric, labels without Ray's own): value}."""
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
        metrics = {}
        for line in lines:
            if match := re.match(r"(ray_dgg_\w+)\{(.*)\} (\S+)$", line):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                ours = ",".join(labels[k] for k in ("study", "state", "task", "le") if k in labels)
                metrics[match[1], ours] = float(match[3])
        return metrics

    yield read
    ray.shutdown()


def test_the_page_has_the_counts_of_the_study(world, read_page, tmp_path):
    """Three stages: one is trained, one fails, one waits."""
    exporter = MetricsExporter("toy", {"worker-hours": 2 / 3600, "GPU-hours": 8 / 3600}, tmp_path)
    broker = Broker.remote(world.store, 1, metrics=exporter)
    one, four, nine = (
        WorkItem(world.stages_of(name)[0], (world.evaluation(name),)) for name in ("ones", "fours", "nines")
    )
    start = time.monotonic()
    good = broker.request.remote(one)
    assert ray.get(broker.next_item.remote("group-001", 10)) == one
    world.runner.run(one)
    ray.get(broker.finish.remote("group-001", ItemResult(one.key, True, None, 0.01)))
    bad = broker.request.remote(four)
    assert ray.get(broker.next_item.remote("group-001", 10)) == four
    error = {"error": "NonFiniteError", "message": "nan"}
    ray.get(broker.finish.remote("group-001", ItemResult(four.key, False, error, 0.01)))
    assert ray.get(good)["ok"]
    assert not ray.get(bad)["ok"]
    waiting = broker.request.remote(nine)
    while not (counts := ray.get(broker.status.remote()))["waiting"]:
        time.sleep(0.05)

    expected = {
        "queued": 1,
        "running": 0,
        "trained": counts["trained"],
        "failed": counts["failed"],
        "lost": 0,
    }
    assert (counts["trained"], counts["failed"], counts["waiting"]) == (1, 1, 1)
    metrics, deadline = {}, time.monotonic() + 40
    hours = ("ray_dgg_gpu_hours_total", "toy")
    while (metrics.get(("ray_dgg_stages", "toy,queued")), hours in metrics) != (1, True):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.3)
        with contextlib.suppress(OSError):  # the agent serves the page after a while
            metrics = read_page()
    assert {state: metrics["ray_dgg_stages", f"toy,{state}"] for state in expected} == expected
    assert metrics["ray_dgg_stage_seconds_count", "toy,ones"] == 1
    assert metrics["ray_dgg_stage_seconds_count", "toy,fours"] == 1
    assert 0 < metrics["ray_dgg_worker_hours_total", "toy"] < 2 / 3600 * (time.monotonic() - start)
    four_gpus_each = 4 * metrics["ray_dgg_worker_hours_total", "toy"]
    assert metrics["ray_dgg_gpu_hours_total", "toy"] == pytest.approx(four_gpus_each)
    ray.get(broker.close.remote("the test is over"))
    assert not ray.get(waiting)["ok"]


def test_hours_are_counted_over_workers_and_gpus(tmp_path):
    from dgg_ray.cost.model import unit_rates

    rates = unit_rates(Workers(group_size=2, gpus=4))
    assert rates == {"worker-hours": 2 / 3600, "GPU-hours": 8 / 3600}
    assert MetricsExporter("toy", unit_rates(Workers()), tmp_path).hours.keys() == {"worker-hours"}
