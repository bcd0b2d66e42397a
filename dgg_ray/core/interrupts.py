"""Signals that end a piece of work as Ctrl-C does: finished stages are stored, worker groups are ended.

SIGTERM, and the SIGHUP of a closed terminal, raise KeyboardInterrupt too; under `nohup` SIGHUP stays ignored.

An interrupt never cuts an import short. Its module would stay half made, and Python's global lock of imports
may stay held, on which the next import in any other thread waits for ever.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
RETRY_S = 0.02  # between looks whether an import is over
IMPORT_SYSTEM = "<frozen importlib._bootstrap"  # how the names of its files begin


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or let the same signal come again where an import is under way.

    It handles a signal of the main thread.
    """
    if not is_import(frame):
        raise KeyboardInterrupt
    main = threading.main_thread().ident
    assert main is not None
    again = threading.Timer(RETRY_S, signal.pthread_kill, [main, number])
    again.daemon = True
    again.start()


def is_import(frame: FrameType | None) -> bool:
    """Return whether the frame belongs to an import that one of this package's functions waits for.

    A program may call these functions from a module that is itself being imported: that is no import of ours.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORT_SYSTEM):
            return True
        own = str(frame.f_globals.get("__name__", "")).partition(".")[0] == __name__.partition(".")[0]
        if own and frame.f_code.co_name != "<module>":
            return False
        frame = frame.f_back
    return False


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block for Ctrl-C, SIGTERM and SIGHUP, unless ignored or handled."""
    is_main = threading.current_thread() is threading.main_thread()
    usual = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(ENDING, signal.SIG_DFL)
    before = {
        number: handler
        for number, handler in usual.items()
        if is_main and signal.getsignal(number) == handler
    }
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
