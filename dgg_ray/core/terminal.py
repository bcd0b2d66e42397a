"""Terminal output that never ends a command: on any terminal, without one, or after it was closed.

    with terminal.robust_output():     # for the length of a command
        ...
    terminal.warn("…")                 # one line, also above a progress display

Printing a message must not end the work that it reports. Output is dropped where its reader is gone (`|
head`), the terminal is closed, or the disk is full. A character that the terminal's encoding lacks becomes
`?`.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

from dgg_ray.core.interrupts import interrupted_by_signals


class NeverFailingFile(io.FileIO):
    """A file on which writing never raises."""

    def write(self, data) -> int:
        with contextlib.suppress(OSError, ValueError):
            while (count := super().write(data)) is None:  # another program made the file non-blocking
                select.select([], [self], [])
            return count
        return len(data)


def open_standard_files() -> None:
    """Open the null device in place of standard files that are closed.

    Otherwise the next file to be opened, such as a stage's weights, takes the number and receives what is
    printed.
    """
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)


def never_failing_stream(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a never failing stream on the descriptor, in the encoding of the given stream."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    buffered = io.BufferedWriter(NeverFailingFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffered, encoding, errors="replace", line_buffering=True)


@contextlib.contextmanager
def robust_output() -> Iterator[None]:
    """Make the standard streams never raise, and signals end the block as Ctrl-C does.

    Streams that a program put in place of the standard ones, such as a notebook's, are kept.
    """
    open_standard_files()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = never_failing_stream(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = never_failing_stream(sys.stderr, 2)
    try:
        with interrupted_by_signals():
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def warn(line: str) -> None:
    """Print one line about a problem that does not end the command."""
    with contextlib.suppress(OSError, ValueError):
        print(f"warning: {line}", file=sys.stderr, flush=True)
