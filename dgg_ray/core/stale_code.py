"""A check that the code of a process is still the code in its file.

A process that imported a plug-in and continues (a notebook, a console) would key its stages by the new text
but run the old code. Python keeps no copy of the source, so two traces decide:

    the compiled file beside the source    has the size and the time of the imported text, and its code
    functions and methods of the module    run code that the file, compiled now, must contain too

A changed module-level value, in a process that writes no compiled files, leaves neither trace.
"""

from __future__ import annotations

import inspect
import marshal
import os
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

HEADER = 16  # bytes of a compiled file before its code: magic number, flags, time, size
SAME_ATTRIBUTES = (
    *("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars"),
    *("co_argcount", "co_kwonlyargcount", "co_flags"),
)


def is_stale(name: str) -> bool:
    """Return whether the module of that name was imported from another text than its file has now."""
    module = sys.modules.get(name)
    # Another loader may have rewritten the code, as pytest does with tests.
    if module is None or type(getattr(module, "__loader__", None)) is not SourceFileLoader:
        return False
    file = Path(str(module.__file__))
    try:
        current = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return True  # the file existed, and its text could be run
    imported = imported_code(module, file)
    if imported is not None and not same_code(imported, current):
        return True
    in_file: dict[str, list[CodeType]] = {}
    for code in nested_code(current):
        in_file.setdefault(code.co_qualname, []).append(code)
    return any(
        not any(same_code(code, other) for other in in_file.get(code.co_qualname, ()))
        for code in running_code(module, current.co_filename)
    )


def imported_code(module: ModuleType, file: Path) -> CodeType | None:
    """Return the compiled code of the imported module if the file has changed since; else None."""
    compiled = Path(getattr(module, "__cached__", None) or "")
    # A process that writes no compiled files may find one of an older text.
    if sys.dont_write_bytecode or compiled.suffix != ".pyc" or not os.access(compiled.parent, os.W_OK):
        return None
    try:
        content, status = compiled.read_bytes(), file.stat()
        flags, time, size = (int.from_bytes(content[start : start + 4], "little") for start in (4, 8, 12))
        now = (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        return None if flags or (time, size) == now else marshal.loads(content[HEADER:])
    except (OSError, ValueError, EOFError, TypeError):
        return None


def nested_code(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions and classes in it, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested_code(constant)


def running_code(module: ModuleType, file: str) -> Iterator[CodeType]:
    """Yield the code of the module's functions and methods, without their decorators."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    for value in [*vars(module).values(), *(member for cls in classes for member in vars(cls).values())]:
        for function in functions_of(value):
            if function.__code__.co_filename == file:
                yield function.__code__


def functions_of(value: Any) -> Iterator[FunctionType]:
    """Yield the functions behind a function, a property, a cached property, a static or a class method."""
    parts = [getattr(value, name, None) for name in ("fget", "fset", "func", "__func__")]
    for part in (value, *parts):
        try:
            function = inspect.unwrap(part) if callable(part) else None
        except ValueError:  # the function wraps itself
            continue
        if isinstance(function, FunctionType):
            yield function


def same_code(a: CodeType, b: CodeType) -> bool:
    """Return whether two code objects do the same; their lines may differ."""
    if any(getattr(a, name) != getattr(b, name) for name in SAME_ATTRIBUTES):
        return False
    return len(a.co_consts) == len(b.co_consts) and all(map(same_constant, a.co_consts, b.co_consts))


def same_constant(a: Any, b: Any) -> bool:
    """Return whether two constants of code objects are the same."""
    if isinstance(a, CodeType) and isinstance(b, CodeType):
        return same_code(a, b)
    return type(a) is type(b) and repr(a) == repr(b)  # 1 differs from 1.0, and NaN equals NaN
