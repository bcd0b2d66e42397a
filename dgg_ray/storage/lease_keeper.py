"""What this driver has claimed of a store that other drivers work on too.

    take(key)   → None: it is ours, and stays so;  else: who has it
    drop(key)   → others may have it, soon

Claims are the store's leases, renewed from threads: neither an event loop nor a stage that is being
learned is waited for, and one that its driver can renew no longer runs out by itself. Of one key, taking,
renewing and giving back come one after another; a key that was taken again is not given back any more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

from dgg_ray.core import event_log
from dgg_ray.core.errors import describe
from dgg_ray.core.quick import Quick
from dgg_ray.storage.leases import LEASE_S, Holder
from dgg_ray.storage.stage_store import StageStore

LOOK_S = 3.0  # between looks at work that another driver has
THREADS = 8  # of its own: thousands of other looks at the store may wait for theirs
CLOSE_S = 4.0  # for giving all back at the end; what is not, runs out


class Claims:
    """Safe with many threads; `take` waits for the store, `drop` only where it is quick.

    held: to be renewed; leaving: to be given back, unless taken again before.
    """

    def __init__(self, store: StageStore, holder: Holder | None = None) -> None:
        self.store, self.holder = store, holder or Holder.here()
        self.held: set[str] = set()
        self.leaving: set[str] = set()
        self.locks: dict[str, threading.Lock] = {}
        self.pool = Quick(self.store.objects.near, THREADS, "claims")
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def take(self, key: str) -> Holder | None:
        with self._lock(key):
            self.leaving.discard(key)
            other = self.store.lease(key, self.holder)
            if other is None:
                self.held.add(key)
                self._begin()
            return other

    def drop(self, key: str) -> Future[None]:
        """What cannot be given back runs out."""
        self.leaving.add(key)
        return self.pool.submit(self._release, key)

    def close(self) -> None:
        """Give all back."""
        self.over.set()
        wait([self.drop(key) for key in list(self.held)], CLOSE_S)

    def _begin(self) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._renew, name="leases", daemon=True)
            self.thread.start()

    def _renew(self) -> None:
        while not self.over.wait(LEASE_S / 4):
            try:
                wait([self.pool.submit(self._again, key) for key in list(self.held)])
            except RuntimeError:  # the process ends: its threads take no more
                return

    def _again(self, key: str) -> None:
        with self._lock(key), kept(key):
            if key not in self.held or key in self.leaving:
                return
            if (other := self.store.lease(key, self.holder)) is not None:
                self.held.discard(key)  # it ran out while the store was out of reach
                event_log.event("claim lost", level=logging.WARNING, key=key, to=str(other))

    def _release(self, key: str) -> None:
        with self._lock(key), kept(key):
            if key not in self.leaving:
                return  # taken again
            self.leaving.discard(key)
            if key in self.held:
                self.held.discard(key)
                self.store.release(key, self.holder)

    def _lock(self, key: str) -> threading.Lock:
        return self.locks.setdefault(key, threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("claims belong to one process")


@contextmanager
def kept(key: str) -> Iterator[None]:
    """The store may be out of reach now: the next time may be better."""
    try:
        yield
    except Exception as problem:
        event_log.trouble("claim not kept", describe(problem), level=logging.WARNING, key=key)
