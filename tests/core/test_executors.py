"""Tests of the executor that uses threads only for slow calls."""

import asyncio
import threading
import time

import pytest

from dgg_ray.core.executors import MEMORY, AdaptiveExecutor


class Store:
    """A stand-in whose call tells whether it ran in the main thread."""

    def __init__(self):
        self.delay = 0.0

    def exists(self, fails=False):
        time.sleep(self.delay)
        if fails:
            raise OSError("gone")
        return threading.current_thread() is threading.main_thread()


@pytest.fixture
def store():
    return Store()


def in_main_thread(executor, store, times=1):
    return [executor.submit(store.exists).result() for _ in range(times)]


def test_a_function_that_was_quick_runs_in_the_callers_thread(store):
    assert in_main_thread(AdaptiveExecutor(True, 2, "t"), store, 4) == [False, True, True, True]


def test_a_call_to_a_remote_store_always_runs_in_the_pool(store):
    assert in_main_thread(AdaptiveExecutor(False, 2, "t"), store, 4) == [False] * 4


def test_one_hang_moves_a_function_to_the_pool_and_quick_calls_bring_it_back(store):
    executor = AdaptiveExecutor(True, 2, "t")
    in_main_thread(executor, store)
    store.delay = 0.2
    assert in_main_thread(executor, store) == [True]  # the executor cannot foretell the hang
    store.delay = 0.0
    # 0.2 s / MEMORY, an eighth less with each quick call: below 5 ms after 13
    found = in_main_thread(executor, store, 3 * MEMORY)
    assert found[:12] == [False] * 12
    assert found[-1]


def test_errors_are_raised_from_either_thread(store):
    executor = AdaptiveExecutor(True, 2, "t")
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            executor.submit(store.exists, fails=True).result()


def test_an_event_loop_continues_while_a_call_is_slow(store):
    store.delay = 0.2
    executor = AdaptiveExecutor(True, 2, "t")

    async def scene():
        call = asyncio.create_task(executor.run_async(store.exists))
        await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.sleep(0)
        return time.monotonic() - began, await call

    waited, main = asyncio.run(scene())
    assert waited < 0.1
    assert main is False
