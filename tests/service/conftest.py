"""A service for each test, and further servers of its store."""

import pytest
from server_samples import make_service


@pytest.fixture
def service(tmp_path):
    return make_service(tmp_path)


@pytest.fixture
def make(tmp_path):
    """Make further servers of the same store."""
    return lambda **changes: make_service(tmp_path, **changes)
