"""The process in which a server checks and plans studies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process
from typing import Any

from dgg_ray.service.refused import RefusedError

CHECK_S = 60.0  # for one call
IDLE_S = 5 * CHECK_S  # without a call, until the process ends


def end_with_the_server() -> None:
    """Let this process end when the one that started it has ended, however that was."""
    server = parent_process()
    assert server is not None

    def watch() -> None:
        server.join()
        os._exit(0)

    threading.Thread(target=watch, name="server watch", daemon=True).start()


class CheckProcess:
    """A process for what needs the large libraries, so that the server stays small and answers."""

    def __init__(self) -> None:
        self.lock, self.pool, self.used_at = threading.Lock(), None, 0.0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function in the child; raise what it raises, RefusedError where it died or hangs."""
        with self.lock:
            self.used_at = time.monotonic()
            if self.pool is None:
                self.pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_the_server)
            pool = self.pool
        try:
            return pool.submit(function, *arguments).result(CHECK_S)
        except (BrokenProcessPool, TimeoutError) as error:
            self._drop(pool)
            why = "took too long" if isinstance(error, TimeoutError) else "ended unexpectedly"
            raise RefusedError(f"the check {why}; try again, or look at the study's data", 503) from error

    def rest(self) -> None:
        """End the process where it was not used for a while, because its libraries fill memory."""
        pool = self.pool
        if pool and time.monotonic() - self.used_at > IDLE_S:
            self._drop(pool)

    def _drop(self, pool: ProcessPoolExecutor) -> None:
        with self.lock:
            if self.pool is pool:
                self.pool = None
        for process in list((pool._processes or {}).values()):
            with suppress(OSError):
                process.kill()
        pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        if self.pool:
            self._drop(self.pool)
