"""A study in Prometheus' terms, on the metrics port of Ray's own agents.

    ray_dgg_stages{study, state}          stages now `queued` (for a fleet to take) or `running`, and so far
                                          in this run `trained`, `failed`, or `lost` with their fleet
    ray_dgg_stage_seconds{study, task}    histogram: what a stage took with its exams, in vain or not
    ray_dgg_worker_hours_total{study}     of that, counted over workers
    ray_dgg_gpu_hours_total{study}        … over their GPUs

Of the histogram Ray exports the counts; its sum is made from the buckets' middles, the hours are exact.
The broker fills them, which knows all. A broker that was restarted begins again at 0, as counters may.
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
from dgg_ray.cost.model import units

STATES = ("queued", "running", "trained", "failed", "lost")
BOUNDS_S = [1.0, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000]


@dataclass(frozen=True)
class Watch:
    """What the broker tells the outside of one study.

    rates: unit → what a second of a fleet is in it; logs: folder of the study's log lines.
    """

    study: str
    rates: Mapping[str, float]
    logs: Path

    @classmethod
    def of(cls, study: Study, out: Path) -> Watch:
        return cls(study.name, units(study.workers), out / event_log.FOLDER)

    def begin(self) -> None:
        """In the process that tells it."""
        event_log.started(self.study, "broker", self.logs)
        event_log.event("begun")

    def show(self, status: Mapping[str, Any]) -> None:
        """The broker's status: its counts, `waiting` and `running`."""
        counts = {**status, "queued": status["waiting"], "running": len(status["running"])}
        for state in STATES:
            self.stages.set(counts.get(state, 0), {"study": self.study, "state": state})

    def bill(self, item: WorkItem, seconds: float) -> None:
        """A fleet had the work for so long."""
        self.seconds.observe(seconds, {"study": self.study, "task": item.stage.task or "untouched model"})
        for unit, counter in self.hours.items():
            if hours := seconds * self.rates[unit]:
                counter.inc(hours, {"study": self.study})

    # Metrics are of the process that makes them: made at first use, which is in the broker's.

    @cached_property
    def stages(self) -> metrics.Gauge:
        return metrics.Gauge("dgg_stages", "Stages by state.", ("study", "state"))

    @cached_property
    def seconds(self) -> metrics.Histogram:
        text = "Seconds that a stage took with its exams."
        return metrics.Histogram("dgg_stage_seconds", text, BOUNDS_S, ("study", "task"))

    @cached_property
    def hours(self) -> dict[str, metrics.Counter]:
        names = {"worker-hours": "dgg_worker_hours", "GPU-hours": "dgg_gpu_hours"}
        return {
            unit: metrics.Counter(name, f"{unit} of stages, in vain or not.", ("study",))
            for unit, name in names.items()
            if unit in self.rates
        }
