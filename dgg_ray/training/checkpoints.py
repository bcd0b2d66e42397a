"""Mid-stage checkpoints: a machine that is taken away costs minutes, not the stage.

A checkpoint is one object in the store, `checkpoints/<stage key>.safetensors`. Its tensors are the weights,
the optimizer state and the tensors of the strategy's memory, all unsharded, so that any number of workers on
any engine can resume from it. Its header holds, as JSON, the losses so far and the plain values of the
memory. The number of losses is the position in the data and in the schedule, as all draws are counter-based.

Each checkpoint replaces the one before it, and publishing the stage removes it. Nothing else refers to a
checkpoint: without one, the stage is trained from its start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dgg_ray.core.errors import IncompatibleCheckpointError, StageError, StoreError
from dgg_ray.core.stage import FORMAT, Stage
from dgg_ray.storage.backend import temporary_draft
from dgg_ray.storage.stage_store import StageStore

VERSION = f"{FORMAT}.1"  # raise the second number when the file's layout changes
AFTER_NOTICE_S = 10.0  # between checkpoints once a preemption notice came
ASK_EVERY_S = 2.0  # between questions for a preemption notice


@dataclass(frozen=True)
class StageCheckpoint:
    """A partly trained stage.

    losses: one per finished step.
    seconds: training time spent on these steps.
    memory: the strategy's memory without its tensors.
    tensors: weights, optimizer state and the memory's tensors, by name (`Learner.checkpoint_tensors`).
    """

    losses: list[float]
    seconds: float
    memory: dict[str, Any]
    tensors: Mapping[str, Tensor]


def object_name(stage: Stage) -> str:
    """The checkpoint's name in the store."""
    return f"checkpoints/{stage.key}.safetensors"


def write(store: StageStore, stage: Stage, checkpoint: StageCheckpoint) -> None:
    """Write the stage's checkpoint in place of an earlier one; StoreError where the store cannot take it."""
    header = {
        "version": VERSION,
        "stage": str(stage),
        "losses": checkpoint.losses,
        "seconds": checkpoint.seconds,
        "memory": checkpoint.memory,
    }
    try:
        with temporary_draft(store.backend) as folder:  # removed by the store's sweep if this process dies
            draft = folder / "checkpoint"
            save_file(dict(checkpoint.tensors), draft, {"about": json.dumps(header)})
            store.backend.upload(draft, object_name(stage))
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot write {object_name(stage)} to {store.url}: {error}. Free some space there, or set "
            f"output.store to another folder"
        ) from error


def read(store: StageStore, stage: Stage) -> StageCheckpoint | None:
    """The stage's checkpoint; None if there is none or it is cut off.

    Raises IncompatibleCheckpointError if a version with another layout wrote it.
    """
    if (file := store.backend.download(object_name(stage))) is None:
        return None
    try:
        with safe_open(file, "pt") as opened:
            header = json.loads(opened.metadata()["about"])
            if header["version"] != VERSION:
                raise IncompatibleCheckpointError(
                    f"{object_name(stage)} in {store.url} was written by another version of dgg_ray "
                    f"(layout {header['version']}, this version has {VERSION}). Remove it to train the stage "
                    f"from its start, or resume with that version"
                )
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    finally:
        store.backend.release(file)
    return StageCheckpoint(header["losses"], header["seconds"], header["memory"], tensors)


def remove(store: StageStore, stage: Stage) -> None:
    """Remove the stage's checkpoint; errors are ignored, as the store's sweep removes what is left."""
    with suppress(OSError, StoreError):
        store.backend.remove(object_name(stage))


def plain_values(memory: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a strategy's memory that are neither tensors nor lists of tensors.

    Raises StageError for one that JSON cannot hold.
    """
    found = {
        name: value
        for name, value in memory.items()
        if not isinstance(value, Tensor) and not is_tensor_list(value)
    }
    for name, value in found.items():
        if not survives_json(value):
            raise StageError(
                f"memory[{name!r}] must be a JSON value, a tensor or a list of tensors, one for each weight, "
                "because a checkpoint stores nothing else; give each tensor a key of its own; "
                f"found {type(value).__name__}"
            )
    return found


def survives_json(value: Any) -> bool:
    """Return whether the value is the same after a round trip through JSON; tuples become lists."""
    try:
        read_back, expected = json.loads(json.dumps(value)), tuples_as_lists(value)
        return read_back == expected or repr(read_back) == repr(expected)  # NaN does not equal itself
    except (TypeError, ValueError):
        return False


def tuples_as_lists(value: Any) -> Any:
    """The value as JSON represents it."""
    if isinstance(value, dict):
        return {key: tuples_as_lists(inner) for key, inner in value.items()}
    return [tuples_as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def is_tensor_list(value: Any) -> bool:
    """Return whether the value is a non-empty list of tensors, one per trainable weight."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Tensor) for item in value)


@dataclass
class CheckpointPolicy:
    """The moments at which a checkpoint is written within a stage.

    steps, minutes: the most that may pass since the last checkpoint or the stage's start; 0 is no limit.
    notice: whether the machine is about to be preempted. All ranks of a group ask together.
    """

    steps: int = 0
    minutes: float = 0.0
    notice: Callable[[], bool] | None = None
    clock: Callable[[], float] = time.monotonic
    _last: tuple[int, float] = (0, 0.0)  # step and time of the last checkpoint, or of the stage's start
    _next_question: float = field(default=0.0, repr=False)  # earliest time to ask for a notice

    @property
    def enabled(self) -> bool:
        """Return whether a checkpoint can ever be due."""
        return bool(self.steps or self.minutes or self.notice)

    def begin(self, done: int) -> None:
        """A stage starts, or is resumed, with `done` finished steps."""
        self._last = (done, self.clock())

    def written(self, done: int) -> None:
        """A checkpoint was written after `done` steps."""
        self.begin(done)
        self._next_question = self.clock() + AFTER_NOTICE_S

    def decide(self, done: int) -> Literal["write", "ask", "skip"]:
        """After `done` steps: write a checkpoint, ask for a notice first, or skip.

        Rank 0 decides for all ranks.
        """
        now, (last_step, last_time) = self.clock(), self._last
        enough_steps = self.steps and done - last_step >= self.steps
        enough_time = self.minutes and now - last_time >= 60 * self.minutes
        if enough_steps or enough_time:
            return "write"
        if self.notice and now >= self._next_question:
            self._next_question = now + ASK_EVERY_S
            return "ask"
        return "skip"
