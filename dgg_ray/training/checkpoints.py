"""Stages in their middle: kept now and then, so that a machine that is taken away costs minutes.

A snapshot is one file in the store, `inflight/<key>.safetensors`: weights, optimizer and the
strategy's memory, whole, so that any number of workers on any engine goes on from it; in its
header, as JSON, the losses so far (their count is the position in the data and the schedule: all
draws are counters) and the memory's plain values. It is replaced whole, and removed when the
stage is published. Nothing else refers to it: without it the stage is learned from its start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dgg_ray.core.errors import OtherVersion, StoreError
from dgg_ray.core.stage import FORMAT, Stage
from dgg_ray.storage.backend import drafted
from dgg_ray.storage.stage_store import StageStore

VERSION = f"{FORMAT}.1"  # the second number rises when the file's layout changes
NOTICE_S = 10.0  # between snapshots once the machine was called back
ASK_S = 2.0  # between looks for such a notice


@dataclass(frozen=True)
class Snapshot:
    """losses: of the steps done; seconds: spent on them; memory: a strategy's plain values."""

    losses: list[float]
    seconds: float
    memory: dict[str, Any]
    tensors: Mapping[str, Tensor]


def name_of(stage: Stage) -> str:
    return f"inflight/{stage.key}.safetensors"


def write(store: StageStore, stage: Stage, snapshot: Snapshot) -> None:
    about = {"version": VERSION, "stage": str(stage), "losses": snapshot.losses}
    about |= {"seconds": snapshot.seconds, "memory": snapshot.memory}
    try:
        with drafted(store.objects) as folder:  # swept up when its writer dies
            draft = folder / "snapshot"
            save_file(dict(snapshot.tensors), draft, {"about": json.dumps(about)})
            store.objects.upload(draft, name_of(stage))
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot write {name_of(stage)} in {store.url}: {error}. Free some space or name another folder"
        ) from error


def read(store: StageStore, stage: Stage) -> Snapshot | None:
    """The stage's snapshot, if there is one that can be read.

    Raises OtherVersion for one that was written by a version with another layout.
    """
    if (file := store.objects.download(name_of(stage))) is None:
        return None
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            if about["version"] != VERSION:
                raise OtherVersion(
                    f"{name_of(stage)} in {store.url} was written by another version of dgg_ray (layout "
                    f"{about['version']}, this is {VERSION}): remove it to learn the stage from its start, "
                    f"or go on with that version"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError):
        return None  # none, or cut off: as if it had not been taken
    finally:
        store.objects.release(file)
    return Snapshot(about["losses"], about["seconds"], about["memory"], tensors)


def remove(store: StageStore, stage: Stage) -> None:
    with suppress(OSError, StoreError):
        store.objects.remove(name_of(stage))


def plain(memory: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a strategy's memory that is neither a tensor nor a list of tensors."""
    return {k: v for k, v in memory.items() if not isinstance(v, Tensor) and not is_tensors(v)}


def is_tensors(value: Any) -> bool:
    """Whether it is a list of tensors, which run along the weights."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Tensor) for item in value)


@dataclass
class Rhythm:
    """When a snapshot is due.

    steps, minutes: since the last one or the stage's start; 0 is never.
    notice: whether the machine is about to be taken away. All that learn together ask it together.
    """

    steps: int = 0
    minutes: float = 0.0
    notice: Callable[[], bool] | None = None
    clock: Callable[[], float] = time.monotonic
    _last: tuple[int, float] = (0, 0.0)  # step and time of the last snapshot, or of the stage's start
    _quiet: float = field(default=0.0, repr=False)  # until when no notice is asked for

    def begin(self, done: int) -> None:
        self._last = (done, self.clock())

    def kept(self, done: int) -> None:
        self.begin(done)
        self._quiet = self.clock() + NOTICE_S

    def verdict(self, done: int) -> str:
        """`due`, `ask` for whether a notice came, or nothing. One process decides for all."""
        now, (step, since) = self.clock(), self._last
        if (self.steps and done - step >= self.steps) or (self.minutes and now - since >= 60 * self.minutes):
            return "due"
        if self.notice and now >= self._quiet:
            self._quiet = now + ASK_S
            return "ask"
        return ""
