"""The leases that this driver holds in a store on which other drivers work too.

    acquire(key)   → None: this driver has the lease, and keeps it;  else the other owner
    release(key)   → others may have it, soon

Threads renew the leases, so that neither a busy event loop nor a stage that is being trained delays them.
When the driver's process ends they expire. Acquiring, renewing and releasing the same key happen one after
another; a key that was acquired again is not released any more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from dgg_ray.core import event_log
from dgg_ray.core.errors import error_record
from dgg_ray.storage.leases import LEASE_S, LeaseOwner
from dgg_ray.storage.stage_store import StageStore

POLL_S = 3.0  # between looks at work items that another driver has
THREADS = 8  # of its own: thousands of other store accesses may wait for their threads
CLOSE_S = 4.0  # for releasing all leases at the end; those that are left expire


class LeaseKeeper:
    """Holds and renews leases. Thread-safe; `acquire` waits for the store, `release` does not.

    held: keys whose leases are renewed.
    releasing: keys to be released, unless they are acquired again before.
    """

    def __init__(self, store: StageStore, owner: LeaseOwner | None = None) -> None:
        self.store, self.owner = store, owner or LeaseOwner.this_process()
        self.held: set[str] = set()
        self.releasing: set[str] = set()
        self.locks: dict[str, threading.Lock] = {}
        self.pool = ThreadPoolExecutor(THREADS, "leases")
        self.closed = threading.Event()
        self.thread: threading.Thread | None = None

    def acquire(self, key: str) -> LeaseOwner | None:
        """Acquire the lease and renew it from now on; return None, or the other owner who has it."""
        with self._lock(key):
            self.releasing.discard(key)
            other = self.store.acquire_lease(key, self.owner)
            if other is None:
                self.held.add(key)
                self._start_thread()
            return other

    def release(self, key: str) -> Future[None]:
        """Release the lease. It expires if the store cannot be reached."""
        self.releasing.add(key)
        return self.pool.submit(self._release, key)

    def close(self) -> None:
        """Release all leases."""
        self.closed.set()
        wait([self.release(key) for key in list(self.held)], CLOSE_S)

    def _start_thread(self) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._renew_all, name="leases", daemon=True)
            self.thread.start()

    def _renew_all(self) -> None:
        while not self.closed.wait(LEASE_S / 4):
            try:
                wait([self.pool.submit(self._renew, key) for key in list(self.held)])
            except RuntimeError:  # the process is ending: its pools take no more calls
                return

    def _renew(self, key: str) -> None:
        with self._lock(key), log_and_ignore_errors(key):
            if key not in self.held or key in self.releasing:
                return
            if (other := self.store.acquire_lease(key, self.owner)) is not None:
                self.held.discard(key)  # it expired while the store could not be reached
                event_log.log_event("lease lost", level=logging.WARNING, key=key, to=str(other))

    def _release(self, key: str) -> None:
        with self._lock(key), log_and_ignore_errors(key):
            if key not in self.releasing:
                return  # it was acquired again
            self.releasing.discard(key)
            if key in self.held:
                self.held.discard(key)
                self.store.release_lease(key, self.owner)

    def _lock(self, key: str) -> threading.Lock:
        return self.locks.setdefault(key, threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a lease keeper belongs to one process and cannot be pickled")


@contextmanager
def log_and_ignore_errors(key: str) -> Iterator[None]:
    """Log an error of the block and go on: the store may be reachable again at the next try."""
    try:
        yield
    except Exception as problem:
        event_log.log_error("lease access failed", error_record(problem), level=logging.WARNING, key=key)
