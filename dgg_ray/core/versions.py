"""Which version of a package is at work here."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def version(package: str) -> str:
    """As it was installed; "not installed" for one that is there all the same: code that was sent along."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
