"""Counts and lists as phrases of a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "stage"), plural(3, "stage")
    ('1 stage', '3 stages')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def join_names(names: Sequence[str], most: int | None = None) -> str:
    """Join names with commas and "and"; beyond `most` names, give the number of the others.

    >>> join_names(["a"]), join_names(["a", "b", "c"]), join_names(["a", "b", "c"], most=1)
    ('a', 'a, b and c', 'a and 2 more')
    """
    if most is not None and len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    if len(names) <= 1:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
