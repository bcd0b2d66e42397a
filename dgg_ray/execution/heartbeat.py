"""Signs of life: `Heartbeat` for the broker, `Watchdog` against hangs.

`Heartbeat` is a thread that tells the broker which work item the worker has. So a restarted broker finds it
out again, however long a step takes. `Watchdog` ends a process in which no step and no batch of answers was
finished for too long. It uses Python's `faulthandler`, whose timer runs in C and needs no lock that a hung
process may hold.
"""

from __future__ import annotations

import contextlib
import faulthandler
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from dgg_ray.core.stage import Stage, WorkItem

HEARTBEAT_S = 0.5
REARM_S = 1.0  # between two resets of the watchdog's timer


class Watchdog:
    """Ends the process `seconds` after the last sign of life, and writes all threads' tracebacks into a file.

    It watches only between `start` and `stop`; with 0 seconds it never does.
    """

    def __init__(self, seconds: float, file: Path) -> None:
        self.seconds, self.file = seconds, file
        self.opened: TextIO | None = None
        self.armed = 0.0

    def start(self) -> None:
        if self.seconds:
            self.opened = self.opened or self.file.open("w", encoding="utf-8")
            self.armed = 0.0
            self.reset()

    def reset(self) -> None:
        """Take a sign of life: the time runs anew."""
        now = time.monotonic()
        if self.opened and now - self.armed >= min(REARM_S, self.seconds / 4):
            self.armed = now
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.opened)

    def stop(self) -> None:
        if self.opened:
            faulthandler.cancel_dump_traceback_later()
            self.opened.close()
            self.opened = None
            self.file.unlink(missing_ok=True)


class Heartbeat:
    """Reports the worker's item and its steps to the broker, twice a second.

    send: a call to the broker with (item key, (steps done, total)); None in workers other than rank 0.
    """

    def __init__(self, watchdog: Watchdog, send: Callable[[str, tuple[int, int]], object] | None) -> None:
        self.watchdog, self.send = watchdog, send
        self.item: WorkItem | None = None
        self.steps = (0, 0)
        self.lock = threading.Lock()
        self.closed = threading.Event()
        if send:
            threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def start(self, item: WorkItem) -> None:
        self.watchdog.start()
        with self.lock:
            self.item, self.steps = item, (0, 0)

    def on_step(self, stage: Stage, done: int, steps: int) -> None:
        """Take a finished step: `StageRunner.on_step`."""
        self.steps = (done, steps)
        self.watchdog.reset()

    def stop(self) -> None:
        with self.lock:  # no heartbeat of this item is sent after this
            self.item = None
        self.watchdog.stop()

    def close(self) -> None:
        """End the thread: nothing is sent after this."""
        self.stop()
        self.closed.set()

    def _run(self) -> None:
        while not self.closed.wait(HEARTBEAT_S):
            with self.lock, contextlib.suppress(Exception):  # the broker may be away for a moment
                if self.item and self.send:
                    self.send(self.item.key, self.steps)


def hang_file(group_id: str, rank: int) -> Path:
    """File into which the watchdog of a group's worker writes; group_id: the same for all incarnations."""
    return Path(tempfile.gettempdir()) / f"dgg-{group_id}-{rank}.stuck"


def take_hang_error(group_id: str, minutes: float) -> dict[str, str] | None:
    """The error of the group's previous workers on this machine, if their watchdog ended them.

    The files are removed: the error is returned once.
    """
    tracebacks: list[str] = []
    for file in sorted(Path(tempfile.gettempdir()).glob(f"dgg-{group_id}-*.stuck")):
        with contextlib.suppress(OSError):
            if text := file.read_text(encoding="utf-8"):
                tracebacks.append(text)
            file.unlink()
    if not tracebacks:
        return None
    message = (
        f"no step and no batch of answers was finished for {minutes:g} minutes; the traceback shows where "
        "the process hung. If steps take that long, raise workers.hang_timeout_minutes"
    )
    return {"error": "Stuck", "message": message, "traceback": "\n".join(tracebacks)}
