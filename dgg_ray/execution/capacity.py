"""Whether this machine holds what a study asks for: its workers' GPUs and CPUs, and the store's disk.

Said by `dgg-ray plan`, before a run misses it. Nothing here is a fault: the study may be meant for a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dgg_ray.config.sections import Workers
from dgg_ray.config.study import Study
from dgg_ray.cost.model import Outlook

DEVICES = Path("/dev")
ELSEWHERE = "run it on a cluster (`dgg-ray submit`, or --address)"


def sentences(study: Study, place: str, outlook: Outlook) -> Iterator[str]:
    """Sentences about GPUs, CPUs and disk that this machine lacks.

    place: of the store, a folder or a URL; outlook: the forecast of what is left to do.
    """
    if study.workers.engine != "simulated":
        yield from workers_here(study.workers, gpus(), len(os.sched_getaffinity(0)))
    if outlook.rest and "://" not in place:
        yield from disk_here(Path(place), outlook.rest.bytes.high)


def workers_here(w: Workers, gpus: int, cpus: int) -> Iterator[str]:
    group = w.group_size * w.gpus
    wanted = f"{w.group_size} worker{'s' * (w.group_size > 1)} with {w.gpus:g} GPU{'s' * (w.gpus != 1)} each"
    if group > gpus:
        yield (
            f"a worker group wants {group:g} GPUs ({wanted}), this machine has {gpus}: {ELSEWHERE}, or lower "
            "workers.gpus (0 trains on CPUs)"
        )
    elif group and w.groups * group > gpus:
        yield (
            f"workers.groups is {w.groups}, with {group:g} GPUs for each: this machine has {gpus}, so that "
            f"{int(gpus / group)} can train at once"
        )
    if (all_of_it := w.groups * w.group_size * w.cpus) > cpus:
        yield (
            f"all workers together want {all_of_it:g} CPUs ({w.groups} × {w.group_size} × {w.cpus:g}), this "
            f"machine has {cpus}: they would share them; {ELSEWHERE}, or lower workers.groups"
        )


def disk_here(folder: Path, most: float) -> Iterator[str]:
    """most: bytes that may be added, by the upper end of the forecast's interval."""
    above = next(place for place in (folder, *folder.parents) if place.exists())
    if most > (free := shutil.disk_usage(above).free):
        yield (
            f"the store may grow by {most / 1e9:.3g} GB, and {above} has {free / 1e9:.3g} GB free: "
            "free some, set budget.disk_gb, or name another place in output.store"
        )


def gpus() -> int:
    """NVIDIA GPUs that a process of this machine may use; no library is loaded to count them."""
    count = sum(bool(re.fullmatch(r"nvidia\d+", entry.name)) for entry in DEVICES.glob("nvidia*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    named = visible.replace(" ", "").split(",")
    return min(count, len([name for name in named if name and name != "-1"]))
