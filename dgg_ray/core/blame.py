"""The blame for an error: a plug-in's, a program's or the machine's; and whether another try may help."""

from __future__ import annotations

import os
import traceback

from dgg_ray.core import sources
from dgg_ray.core.errors import DggError, describe

# What the same code raises on the same data again, wherever it is run.
CERTAIN = (
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
# What a machine may be to blame for, also in a line of a plug-in.
CHANCE = (OSError, MemoryError, EOFError)
# Of torch, which is not imported for this; device errors of versions without a class of their own say so.
CHANCE_OF_TORCH = ("OutOfMemoryError", "AcceleratorError", "DistBackendError", "DistNetworkError")
CHANCE_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NCCL", "HIP", "Gloo", "Connection", "timed out", "out of memory")


def lasting(problem: BaseException) -> bool:
    """Whether it would come again on another try, on another machine too: a mistake in a program."""
    if not isinstance(problem, Exception) or isinstance(problem, (DggError, *CHANCE)):
        return False
    if isinstance(problem, CERTAIN):
        return True
    if any(cls.__name__ in CHANCE_OF_TORCH for cls in type(problem).__mro__):
        return False
    return bool(place(problem, own=True)) and not any(word in str(problem) for word in CHANCE_WORDS)


def place(problem: BaseException, own: bool = False) -> str:
    """The innermost line of a plug-in that it went through; empty where there is none.

    own: of the user's own plug-ins alone."""
    frames = traceback.extract_tb(problem.__traceback__)
    inner = next((f for f in reversed(frames) if sources.is_plugged(f.filename, own)), None)
    if inner is None:
        return ""
    return f"{shown(inner.filename)}, line {inner.lineno}, in {inner.name}"


def shown(file: str) -> str:
    """A path as people here write it: from the working folder where it lies below that."""
    try:
        here = os.path.relpath(file)
    except (OSError, ValueError):  # a working folder that is gone, another drive
        return file
    return file if here.startswith("..") else here


def told(problem: BaseException) -> dict[str, str]:
    """The record kept of an error that ended a stage; place: the line of a plug-in that raised it."""
    return describe(problem) | {"place": place(problem)}


def line(error: dict[str, str]) -> str:
    """The kept record of an error as a sentence: where, its type, its message."""
    where = f"{error['place']}: " if error.get("place") else ""
    return f"{where}{error['error']}: {error['message']}"
