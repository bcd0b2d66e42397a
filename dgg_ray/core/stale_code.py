"""Whether a module runs as its file is written now: edited after its import, it runs what it was before.

A process that read a plug-in and goes on (a notebook, a console) would key its stages by the new text. Python
keeps no copy of the source, so two traces tell:

    the compiled file beside the source    has the size and the time of what was imported, and its code
    functions and methods of the module    run code that the file, compiled, must hold as well

A changed value beside the functions, in a process that writes no compiled files, leaves neither.
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

HEADER = 16  # bytes of a compiled file before its code: magic, flags, time, size


def is_stale(name: str) -> bool:
    """Whether the module of that name was imported from another text than its file has now."""
    module = sys.modules.get(name)
    # Another loader may have written it anew, as pytest does with its tests.
    if module is None or type(getattr(module, "__loader__", None)) is not SourceFileLoader:
        return False
    file = Path(str(module.__file__))
    try:
        text = file.read_bytes()
        written = compile(text, str(file), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return True  # it was there, and could be run
    compiled = imported(module, file)
    if compiled is not None and not same_code(compiled, written):
        return True
    known: dict[str, list[CodeType]] = {}
    for code in nested(written):
        known.setdefault(code.co_qualname, []).append(code)
    return any(
        not any(same_code(code, other) for other in known.get(code.co_qualname, ()))
        for code in running(module, written.co_filename)
    )


def imported(module: ModuleType, file: Path) -> CodeType | None:
    """The code that was compiled when the module was imported, where the file has changed since."""
    place = Path(getattr(module, "__cached__", None) or "")
    # Where Python writes none, an older one may lie there.
    if sys.dont_write_bytecode or place.suffix != ".pyc" or not os.access(place.parent, os.W_OK):
        return None
    try:
        content, about = place.read_bytes(), file.stat()
        flags, time, size = (int.from_bytes(content[at : at + 4], "little") for at in (4, 8, 12))
        now = (int(about.st_mtime) & 0xFFFFFFFF, about.st_size & 0xFFFFFFFF)
        return None if flags or (time, size) == now else marshal.loads(content[HEADER:])
    except (OSError, ValueError, EOFError, TypeError):
        return None


def nested(code: CodeType) -> Iterator[CodeType]:
    """The code of all functions and classes in it, however deep."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from nested(inner)


def running(module: ModuleType, file: str) -> Iterator[CodeType]:
    """The code of the module's functions and of its classes' methods, below their decorators."""
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    for value in [*vars(module).values(), *(v for cls in classes for v in vars(cls).values())]:
        for part in functions_of(value):
            if part.__code__.co_filename == file:
                yield part.__code__


def functions_of(value: Any) -> Iterator[FunctionType]:
    """The functions of a property, a cached one, a static or class method, or a function."""
    parts = [getattr(value, name, None) for name in ("fget", "fset", "func", "__func__")]
    for part in (value, *parts):
        try:
            function = inspect.unwrap(part) if callable(part) else None
        except ValueError:  # it wraps itself
            continue
        if isinstance(function, FunctionType):
            yield function


def same_code(one: CodeType, other: CodeType) -> bool:
    """Whether they do the same, whatever their lines."""
    named = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount")
    if any(getattr(one, name) != getattr(other, name) for name in (*named, "co_kwonlyargcount", "co_flags")):
        return False
    values, others = one.co_consts, other.co_consts
    return len(values) == len(others) and all(map(same_value, values, others))


def same_value(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return same_code(one, other)
    return type(one) is type(other) and repr(one) == repr(other)  # 1 is no 1.0, NaN is NaN
