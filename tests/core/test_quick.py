"""Calls that are quick cost no thread, and none that may be slow is waited for."""

import asyncio
import threading
import time

import pytest

from dgg_ray.core.quick import MEMORY, Quick


class Store:
    """Says in which thread it was asked."""

    def __init__(self):
        self.slow = 0.0

    def has(self, fails=False):
        time.sleep(self.slow)
        if fails:
            raise OSError("gone")
        return threading.current_thread() is threading.main_thread()


@pytest.fixture
def store():
    return Store()


def asked(threads, store, times=1):
    return [threads.submit(store.has).result() for _ in range(times)]


def test_a_function_that_was_quick_is_called_at_once(store):
    assert asked(Quick(True, 2, "t"), store, 4) == [False, True, True, True]


def test_what_can_be_out_of_reach_is_never_waited_for(store):
    assert asked(Quick(False, 2, "t"), store, 4) == [False] * 4


def test_one_hang_sends_it_to_threads_and_being_quick_again_brings_it_back(store):
    threads = Quick(True, 2, "t")
    asked(threads, store)
    store.slow = 0.2
    assert asked(threads, store) == [True]  # nobody could know
    store.slow = 0.0
    # 0.2 s / MEMORY, an eighth less with each quick call: below 5 ms after 13
    found = asked(threads, store, 3 * MEMORY)
    assert found[:12] == [False] * 12
    assert found[-1]


def test_errors_come_out_of_both(store):
    threads = Quick(True, 2, "t")
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            threads.submit(store.has, fails=True).result()


def test_an_event_loop_goes_on_while_a_call_is_slow(store):
    store.slow = 0.2
    threads = Quick(True, 2, "t")

    async def scene():
        call = asyncio.create_task(threads(store.has))
        await asyncio.sleep(0)
        began = time.monotonic()
        await asyncio.sleep(0)
        return time.monotonic() - began, await call

    waited, there = asyncio.run(scene())
    assert waited < 0.1
    assert there is False
