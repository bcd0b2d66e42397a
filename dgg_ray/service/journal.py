"""The service's journal: what people asked for and what happened, as numbered events in the store.

    service/journal/000000001.json     {id, kind, at, by, …}

An event never changes, and the next number is created by one process only (backend.py). A command looks at
the state after all events, decides on one more, and creates it under the next number. Where another process
was faster, it looks again and decides anew. So all servers of a store see the same history in the same order,
and whatever holds for one command at a time holds for all of them: no name is taken twice, no study is
started twice.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from dgg_ray.service.state import Event, State
from dgg_ray.storage.backend import StorageBackend

EVENTS = "service/journal/"
REMOTE_LOOK_S = 1.0  # between looks at a remote store for what other processes added
Decide = Callable[[State], Event | None]


class Journal:
    """The events of a store's service, and the state that follows from them. Thread-safe.

    lock: held while the state changes; whoever reads more than one value of it holds it too.
    """

    def __init__(self, backend: StorageBackend) -> None:
        self.backend, self.state, self.lock = backend, State(), threading.RLock()
        self.looked_at = float("-inf")

    def catch_up(self, at_once: bool = True) -> State:
        """Apply what other processes added.

        at_once: look into the store now. Otherwise a remote store is asked at most every REMOTE_LOOK_S.
        """
        with self.lock:
            now = time.monotonic()
            if at_once or self.backend.is_local or now - self.looked_at >= REMOTE_LOOK_S:
                self.looked_at = now
                self._read_all() if self.state.number == 0 else self._read_next()
            return self.state

    def commit(self, decide: Decide) -> Event | None:
        """Add the event that `decide` returns for the present state; None adds nothing.

        `decide` may be called several times, and raises what refuses the command.
        """
        with self.lock:
            while (event := decide(self.catch_up())) is not None:
                event = {"id": uuid.uuid4().hex, "at": time.time(), **event}
                number = self.state.number + 1
                if self.backend.create(event_name(number), json.dumps(event).encode()):
                    self.state.apply(number, event)
                    return event
            return None

    def _read_all(self) -> None:
        """Read the whole history, in parallel where that is faster."""
        names = self.backend.list_names(EVENTS)
        for name, data in sorted(self.backend.read_many(names)):
            if name == event_name(self.state.number + 1):
                self.state.apply(self.state.number + 1, parse_event(data))
        self._read_next()

    def _read_next(self) -> None:
        while (data := self.backend.read(event_name(self.state.number + 1), fresh=True)) is not None:
            self.state.apply(self.state.number + 1, parse_event(data))


def event_name(number: int) -> str:
    return f"{EVENTS}{number:09}.json"


def parse_event(data: bytes) -> Event:
    """Return the event; one without effect where it was cut off, so that its creation was never confirmed."""
    try:
        event: Any = json.loads(data)
    except ValueError:
        event = None
    return event if isinstance(event, dict) else {"kind": "cut off", "at": 0.0}
