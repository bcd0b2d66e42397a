"""Descriptions of the settings, read off the docstrings: the one source for editors and for `dgg-ray init`.

A settings class describes its fields in its docstring, one after another, at the docstring's own indent:

    buffer: examples kept of each finished task; 0 is none.
    train, test: numbers of examples; the first n of one fixed sequence,
        with continuation lines further in.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from functools import cache
from typing import Any

OURS = re.compile(r" \(\w+\.py\)")
LINE = re.compile(r"(\w+(?:, \w+)*): (.+)")


@cache
def descriptions(kind: type) -> dict[str, str]:
    """Field → its description, sentences with a full stop; fields that no docstring describes are left out.

    A field of a base class is described there, unless the class itself says otherwise.
    """
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        found |= told(vars(cls).get("__doc__") or "")
    return {f.name: found[f.name] for f in fields(kind) if f.name in found}


def told(docstring: str) -> dict[str, str]:
    """Name → what a docstring says of it."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        if match := LINE.fullmatch(line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif names and line.startswith("    "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return {name: sentence(text) for name, text in found.items()}


def sentence(text: str) -> str:
    """With a capital and a full stop; a symbol or code at the start stays, names of our source files go."""
    text = OURS.sub("", text)
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return first + text[1:] + ("" if text.endswith((".", "?", ")")) else ".")


def summary(kind: Any) -> str:
    """The first line of its docstring, without the full stop where it has one inside."""
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
