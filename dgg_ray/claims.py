"""What this driver has claimed of a store that other drivers work on too.

    take(key)   → None: it is ours, and stays so;  else: who has it
    drop(key)   → others may have it

Claims are the store's leases, renewed from a thread: neither an event loop nor a stage that is being
learned is waited for, and one that its driver can renew no longer runs out by itself.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from dgg_ray.errors import StoreError
from dgg_ray.leases import Holder
from dgg_ray.stages import StageStore

LEASE_S = 60.0
LOOK_S = 3.0  # between looks at work that another driver has


class Claims:
    """Safe with many threads; `take` and `drop` wait for the store."""

    def __init__(self, store: StageStore, holder: Holder | None = None) -> None:
        self.store, self.holder = store, holder or Holder.here()
        self.held: set[str] = set()
        self.over = threading.Event()
        self.thread: threading.Thread | None = None

    def take(self, key: str) -> Holder | None:
        other = self.store.lease(key, self.holder, LEASE_S)
        if other is None:
            self.held.add(key)
            if self.thread is None:
                self.thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self.thread.start()
        return other

    def drop(self, key: str) -> None:
        """Never raises: what cannot be given back runs out."""
        if key in self.held:
            self.held.discard(key)
            with contextlib.suppress(StoreError, OSError):
                self.store.release(key, self.holder)

    def close(self) -> None:
        self.over.set()
        for key in list(self.held):
            self.drop(key)

    def _renew(self) -> None:
        while not self.over.wait(LEASE_S / 4):
            for key in list(self.held):
                if key in self.held:  # not dropped meanwhile
                    with contextlib.suppress(StoreError, OSError):  # the next time may be better
                        self.store.lease(key, self.holder, LEASE_S)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("claims belong to one process")
