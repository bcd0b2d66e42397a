"""A command's output on any terminal: one that lacks letters, none, or one that is gone.

    with terminal.lasting():     # for the length of a command
        ...
    terminal.warn("…")           # one line, above a progress display too

No message ends the work that it tells of: what a reader has gone away from (`| head`), what a closed terminal
or a full disk does not take, is dropped; a letter that the terminal's encoding lacks is a `?`.

SIGTERM, and SIGHUP of a terminal that closes, end a command as Ctrl-C does: finished stages are kept. Under
`nohup` SIGHUP stays ignored.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Lasting(io.FileIO):
    """A stream on which writing never fails."""

    def write(self, data) -> int:
        with contextlib.suppress(OSError, ValueError):
            while (count := super().write(data)) is None:  # another program set it to not wait
                select.select([], [self], [])
            return count
        return len(data)


def open_standard_files() -> None:
    """Fill the places of standard files that were closed.

    The next file to be opened, such as a stage's weights, would take the place and get all that is printed.
    """
    with contextlib.suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(handle, True)
        os.close(handle)


def stream(now: TextIO | None, handle: int) -> TextIO:
    """A lasting stream on the handle, in the encoding of the stream that is there."""
    encoding = getattr(now, "encoding", None) or "utf-8"
    buffered = io.BufferedWriter(Lasting(handle, "w", closefd=False))
    return io.TextIOWrapper(buffered, encoding, errors="replace", line_buffering=True)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Standard streams that never raise, and signals that end the block as Ctrl-C does.

    Streams that somebody has put in place of the standard ones, such as a notebook's, stay.
    """
    open_standard_files()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = stream(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = stream(sys.stderr, 2)
    try:
        with ended_by_signals():
            yield
    finally:
        for now in (sys.stdout, sys.stderr):
            now.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block for each of them that is not ignored."""
    main = threading.current_thread() is threading.main_thread()
    heard = [name for name in ENDING if main and signal.getsignal(name) == signal.SIG_DFL]
    for name in heard:
        signal.signal(name, signal.default_int_handler)
    try:
        yield
    finally:
        for name in heard:
            signal.signal(name, signal.SIG_DFL)


def warn(line: str) -> None:
    """Say one line of what went wrong beside the work."""
    with contextlib.suppress(OSError, ValueError):
        print(f"warning: {line}", file=sys.stderr, flush=True)
