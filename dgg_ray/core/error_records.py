"""Errors: whether one would occur again, which line of a plug-in raised it, and its record as text."""

from __future__ import annotations

import os
import traceback
from dataclasses import FrozenInstanceError

from dgg_ray.core import sources
from dgg_ray.core.errors import DggError, error_record
from dgg_ray.core.strategy import MEMORY_ADVICE

# The same code raises these on the same data again, on every machine.
DETERMINISTIC = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    SyntaxError,
)
# The machine may be the cause of these, even in a line of a plug-in.
TRANSIENT = (OSError, MemoryError, EOFError)
# Transient errors of torch, by name, so that torch need not be imported. Versions without a class of its own
# for device errors name the device in the message.
TRANSIENT_IN_TORCH = ("OutOfMemoryError", "AcceleratorError", "DistBackendError", "DistNetworkError")
TRANSIENT_WORDS = (
    *("CUDA", "cuDNN", "CUBLAS", "NCCL", "HIP", "Gloo"),
    *("Connection", "timed out", "out of memory"),
)


def is_permanent_error(problem: BaseException) -> bool:
    """Return whether a retry would raise the error again, on another machine too: a bug in a program."""
    if not isinstance(problem, Exception) or isinstance(problem, (DggError, *TRANSIENT)):
        return False
    if isinstance(problem, DETERMINISTIC):
        return True
    if any(cls.__name__ in TRANSIENT_IN_TORCH for cls in type(problem).__mro__):
        return False
    in_users_code = bool(plugin_location(problem, users_only=True))
    return in_users_code and not any(word in str(problem) for word in TRANSIENT_WORDS)


def plugin_location(problem: BaseException, users_only: bool = False) -> str:
    """Return the innermost line of a plug-in in the traceback; empty where there is none.

    users_only: look only at the user's own plug-ins.
    """
    for frame in reversed(traceback.extract_tb(problem.__traceback__)):
        if sources.is_plugin_line(frame.filename, users_only):
            return f"{relative_path(frame.filename)}, line {frame.lineno}, in {frame.name}"
    return ""


def relative_path(file: str) -> str:
    """Return the path relative to the working folder if the file lies below it; else the path itself."""
    try:
        relative = os.path.relpath(file)
    except (OSError, ValueError):  # a deleted working folder, another drive
        return file
    return file if relative.startswith("..") else relative


def located_error_record(problem: BaseException) -> dict[str, str]:
    """Return the record of an error with its `location`: the line of the plug-in that raised it."""
    record = error_record(problem) | {"location": plugin_location(problem)}
    if isinstance(problem, FrozenInstanceError) and record["location"]:  # `self.x = …` in a strategy
        record["message"] += f"; {MEMORY_ADVICE}"
    return record


def format_error_record(record: dict[str, str]) -> str:
    """Format the record of an error: its location, type and message."""
    location = f"{record['location']}: " if record.get("location") else ""
    return f"{location}{record['error']}: {record['message']}"
