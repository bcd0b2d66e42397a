"""Descriptions of the settings, read from docstrings: the only source for editors, `dgg-ray init` and the
docs.

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

SOURCE_FILE = re.compile(r" \(\w+\.py\)")
LINE = re.compile(r"(\w+(?:, \w+)*): (.+)")


@cache
def descriptions(kind: type) -> dict[str, str]:
    """Field → its description, in sentences with a full stop; undescribed fields are left out.

    A field of a base class is described there, unless the class itself says otherwise.
    """
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        found |= described_names(vars(cls).get("__doc__") or "")
    return {f.name: found[f.name] for f in fields(kind) if f.name in found}


def described_names(docstring: str) -> dict[str, str]:
    """Name → its description in a docstring."""
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
    """Begin with a capital, end with a full stop, and drop the names of our source files."""
    text = SOURCE_FILE.sub("", text)
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return first + text[1:] + ("" if text.endswith((".", "?", ")")) else ".")


def summary(kind: Any) -> str:
    """The first paragraph of a docstring."""
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
