"""That a worker lives, and that its stage does.

`Pulse` tells the broker from a thread what the worker has in hand, so that a broker that was restarted
knows it again however long a step takes. `Watchdog` ends the process in which no step and no batch of
answers was finished for too long; Python's own, in C, which needs no lock that a hung process may hold.
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

BEAT_S = 0.5
ARM_S = 1.0  # between two calls that put off the end


class Watchdog:
    """Ends the process `seconds` after the last sign of life, with all its threads' tracebacks in a file.

    Without work it sleeps. 0 seconds: always.
    """

    def __init__(self, seconds: float, file: Path) -> None:
        self.seconds, self.file = seconds, file
        self.opened: TextIO | None = None
        self.armed = 0.0

    def begin(self) -> None:
        if self.seconds:
            self.opened = self.opened or self.file.open("w", encoding="utf-8")
            self.armed = 0.0
            self.alive()

    def alive(self) -> None:
        now = time.monotonic()
        if self.opened and now - self.armed >= min(ARM_S, self.seconds / 4):
            self.armed = now
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.opened)

    def end(self) -> None:
        if self.opened:
            faulthandler.cancel_dump_traceback_later()
            self.opened.close()
            self.opened = None
            self.file.unlink(missing_ok=True)


class Pulse:
    """What this worker has in hand, and how far it is.

    say: tells the broker (key of the work, steps); None in workers that do not lead their group.
    """

    def __init__(self, dog: Watchdog, say: Callable[[str, tuple[int, int]], object] | None) -> None:
        self.dog, self.say = dog, say
        self.item: WorkItem | None = None
        self.steps = (0, 0)
        self.lock = threading.Lock()
        if say:
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def begin(self, item: WorkItem) -> None:
        self.dog.begin()
        with self.lock:
            self.item, self.steps = item, (0, 0)

    def step(self, stage: Stage, done: int, steps: int) -> None:
        """A step was finished: Workshop.tick."""
        self.steps = (done, steps)
        self.dog.alive()

    def end(self) -> None:
        with self.lock:  # what is said after this is of the next work
            self.item = None
        self.dog.end()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            with self.lock, contextlib.suppress(Exception):  # the broker may be away for a moment
                if self.item and self.say:
                    self.say(self.item.key, self.steps)


def trace(life: str, rank: int) -> Path:
    """Where the watchdog of a fleet's worker writes. life: of the fleet, over all its workers' lives."""
    return Path(tempfile.gettempdir()) / f"dgg-{life}-{rank}.stuck"


def stuck(life: str, minutes: float) -> dict[str, str] | None:
    """Why the fleet's last workers were ended here, if their watchdog did it."""
    told = []
    for file in sorted(Path(tempfile.gettempdir()).glob(f"dgg-{life}-*.stuck")):
        with contextlib.suppress(OSError):
            told += [text] if (text := file.read_text(encoding="utf-8")) else []
            file.unlink()
    if not told:
        return None
    message = (
        f"no step and no batch of answers was finished for {minutes:g} minutes; where it hung is in the "
        "traceback. If that is how long they take, raise workers.hang_timeout_minutes"
    )
    return {"error": "Stuck", "message": message, "traceback": "\n".join(told)}
