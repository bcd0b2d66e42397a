"""Shortages of this machine for a study: GPUs and CPUs for its workers, disk for its store.

`dgg-ray plan` prints it, so that nobody finds out during a run. It is no fault: the study may be meant for a
cluster.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study
from dgg_ray.cost.model import CostForecast

DEVICES = Path("/dev")
USE_A_CLUSTER = "run it on a cluster (`dgg-ray submit`, or --ray-address)"


def missing_resources(study: Study, store_url: str, cost_forecast: CostForecast) -> Iterator[str]:
    """A sentence on each resource that this machine lacks.

    store_url: the store's folder or URL. cost_forecast: of the work that is left.
    """
    if study.workers.engine != "simulated":
        yield from missing_processors(study.workers, count_gpus(), len(os.sched_getaffinity(0)))
    if cost_forecast.remaining and "://" not in store_url:
        yield from missing_disk(Path(store_url), cost_forecast.remaining.bytes.high)


def missing_processors(workers: Workers, gpus: int, cpus: int) -> Iterator[str]:
    """Sentences on GPUs and CPUs; gpus, cpus: those of this machine."""
    group_gpus = workers.group_size * workers.gpus
    group = (
        f"{workers.group_size} worker{'s' * (workers.group_size > 1)} with {workers.gpus:g} "
        f"GPU{'s' * (workers.gpus != 1)} each"
    )
    if group_gpus > gpus:
        yield (
            f"a worker group needs {group_gpus:g} GPUs ({group}), this machine has {gpus}: {USE_A_CLUSTER}, "
            "or lower workers.gpus (0 trains on CPUs)"
        )
    elif group_gpus and workers.groups * group_gpus > gpus:
        yield (
            f"workers.groups is {workers.groups}, with {group_gpus:g} GPUs each; this machine has {gpus}, so "
            f"that {int(gpus / group_gpus)} can train at once"
        )
    all_cpus = workers.groups * workers.group_size * workers.cpus
    if all_cpus > cpus:
        yield (
            f"all workers together need {all_cpus:g} CPUs ({workers.groups} × {workers.group_size} × "
            f"{workers.cpus:g}), this machine has {cpus}, which they would share: {USE_A_CLUSTER}, or lower "
            "workers.groups"
        )


def missing_disk(folder: Path, added: float) -> Iterator[str]:
    """A sentence where the store may not fit; added: bytes, by the upper end of the forecast's interval."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if added > free:
        yield (
            f"the store may grow by {added / 1e9:.3g} GB, and {existing} has {free / 1e9:.3g} GB free: "
            "delete other files, set budget.disk_gb, or set output.store to another folder"
        )


def count_gpus() -> int:
    """NVIDIA GPUs that a process of this machine may use, counted without loading a library."""
    count = sum(bool(re.fullmatch(r"nvidia\d+", entry.name)) for entry in DEVICES.glob("nvidia*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    devices = [name for name in visible.replace(" ", "").split(",") if name and name != "-1"]
    return min(count, len(devices))
