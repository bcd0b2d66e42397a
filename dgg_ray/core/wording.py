"""Counts and lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def plural(count: int, noun: str) -> str:
    """Count things.

    >>> plural(1, "stage"), plural(3, "stage")
    ('1 stage', '3 stages')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def listing(some: Sequence[str], most: int | None = None) -> str:
    """Join names; of more than `most` the others are counted.

    >>> listing(["a"]), listing(["a", "b", "c"]), listing(["a", "b", "c"], most=1)
    ('a', 'a, b and c', 'a and 2 more')
    """
    most = len(some) if most is None else most
    shown = [*some[:most], *([f"{len(some) - most} more"] if len(some) > most else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
