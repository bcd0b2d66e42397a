"""An executor that uses threads only for calls that may be slow.

Listing a local folder takes microseconds. Handing the call to a thread and waiting for the result takes many
times that. On a network mount the same call can take minutes, and an event loop must not wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

QUICK_S = 5e-3  # a function whose mean duration is below this runs in the caller's thread
MEMORY = 8  # calls that the mean duration remembers: one slow call counts little, one that hangs counts


class AdaptiveExecutor:
    """Runs a function in the caller's thread while its recent calls were quick, and in a pool otherwise.

    is_local: whether to try the caller's thread at all. Calls to a remote store always go to the pool,
    because it can be out of reach for minutes.
    """

    def __init__(self, is_local: bool, threads: int, name: str) -> None:
        self.is_local = is_local
        self.pool = ThreadPoolExecutor(threads, name)
        self.mean_seconds: dict[str, float] = {}  # by function

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the function here or in the pool; the future is done already if it ran here."""
        if not self._is_quick(function):
            return self.pool.submit(self._timed, function, *args, **kwargs)
        future = Future[Any]()
        try:
            future.set_result(self._timed(function, *args, **kwargs))
        except Exception as problem:
            future.set_exception(problem)
        return future

    async def run_async(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return the function's result without blocking the event loop for a slow call."""
        future = self.submit(function, *args, **kwargs)
        return future.result() if future.done() else await asyncio.wrap_future(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the pool down, as `ThreadPoolExecutor.shutdown` does."""
        self.pool.shutdown(wait, cancel_futures=cancel_futures)

    def _is_quick(self, function: Callable[..., Any]) -> bool:
        return self.is_local and self.mean_seconds.get(function.__qualname__, QUICK_S) < QUICK_S

    def _timed(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - started
            mean = self.mean_seconds.get(function.__qualname__, seconds)
            self.mean_seconds[function.__qualname__] = mean + (seconds - mean) / MEMORY
