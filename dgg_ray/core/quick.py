"""Threads for calls that may be slow, and no threads for those that are not.

A look into a folder on this machine takes microseconds; to have a thread do it, and to hear of it, takes many
times that. Elsewhere the same look can take minutes, and an event loop must not wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

QUICK_S = 5e-3
MEMORY = 8  # calls; one that is slow because the machine is busy does not count for much, one that hangs does


class Quick(ThreadPoolExecutor):
    """Makes a call at once, in the caller's thread, where calls of that function were quick of late.

    near: whether that is tried at all; what can be out of reach for minutes is always left to threads.
    """

    def __init__(self, near: bool, threads: int, name: str) -> None:
        super().__init__(threads, name)
        self.near = near
        self.usual: dict[str, float] = {}  # seconds, by function

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if not self.near or self.usual.get(fn.__qualname__, QUICK_S) >= QUICK_S:
            return super().submit(self._timed, fn, *args, **kwargs)
        future = Future[Any]()
        try:
            future.set_result(self._timed(fn, *args, **kwargs))
        except Exception as problem:
            future.set_exception(problem)
        return future

    async def __call__(self, fn: Callable[..., Any], *args: Any) -> Any:
        """For event loops."""
        future = self.submit(fn, *args)
        return future.result() if future.done() else await asyncio.wrap_future(future)

    def _timed(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return fn(*args, **kwargs)
        finally:
            took = time.perf_counter() - began
            usual = self.usual.get(fn.__qualname__, took)
            self.usual[fn.__qualname__] = usual + (took - usual) / MEMORY
