"""Parameters of which `make test-core` takes one and `make test` all."""

from collections.abc import Iterable

import pytest


def first_quick(values: Iterable) -> list:
    """The values as parameters of a test that is `whole` for all but the first of them."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.whole) for value in others)]
