"""Prometheus metrics of a study, on the metrics port of Ray's own agents.

    ray_dgg_stages{study, state}          stages that are `queued` or `running` now, and those `trained`,
                                          `failed` or `lost` (with their worker group) so far in this run
    ray_dgg_stage_seconds{study, task}    histogram: seconds of a stage with its evaluations, in vain or not
    ray_dgg_worker_hours_total{study}     the same as hours, summed over workers
    ray_dgg_gpu_hours_total{study}        the same as hours, summed over the workers' GPUs

Ray exports the histogram's counts, and computes its sum from the middles of the buckets; the hours are exact.
The broker fills all of them. Those of a restarted broker begin again at 0, as counters may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ray.util import metrics

from dgg_ray.config.study import Study
from dgg_ray.core import event_log
from dgg_ray.core.stage import WorkItem
from dgg_ray.cost.model import unit_rates

STATES = ("queued", "running", "trained", "failed", "lost")
BOUNDS_S = [1.0, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000]


@dataclass(frozen=True)
class MetricsExporter:
    """Exports the broker's counts of one study.

    rates: unit → its amount in one second of a worker group. logs: folder of the study's event log.
    """

    study: str
    rates: Mapping[str, float]
    logs: Path

    @classmethod
    def of(cls, study: Study, out: Path) -> MetricsExporter:
        return cls(study.name, unit_rates(study.workers), out / event_log.LOG_FOLDER)

    def start(self) -> None:
        """Start the event log of the exporting process."""
        event_log.start_logging(self.study, "broker", self.logs)
        event_log.log_event("started")

    def export(self, status: Mapping[str, Any]) -> None:
        """Export the broker's status: its counts, `waiting` and `running`."""
        counts = {**status, "queued": status["waiting"], "running": len(status["running"])}
        for state in STATES:
            self.stages.set(counts.get(state, 0), {"study": self.study, "state": state})

    def observe(self, item: WorkItem, seconds: float) -> None:
        """Count the seconds for which a worker group had an item."""
        self.seconds.observe(seconds, {"study": self.study, "task": item.stage.task or "untouched model"})
        for unit, counter in self.hours.items():
            if hours := seconds * self.rates[unit]:
                counter.inc(hours, {"study": self.study})

    # A metric belongs to the process that creates it: created at first use, in the broker's process.

    @cached_property
    def stages(self) -> metrics.Gauge:
        return metrics.Gauge("dgg_stages", "Stages by state.", ("study", "state"))

    @cached_property
    def seconds(self) -> metrics.Histogram:
        text = "Seconds of a stage with its evaluations."
        return metrics.Histogram("dgg_stage_seconds", text, BOUNDS_S, ("study", "task"))

    @cached_property
    def hours(self) -> dict[str, metrics.Counter]:
        names = {"worker-hours": "dgg_worker_hours", "GPU-hours": "dgg_gpu_hours"}
        return {
            unit: metrics.Counter(name, f"{unit} of stages, in vain or not.", ("study",))
            for unit, name in names.items()
            if unit in self.rates
        }
