"""A learner for all tests of the methods, and a new store for each test."""

import pytest
from method_samples import MethodWorld, make_learner, make_tasks


@pytest.fixture(scope="session")
def learner():
    return make_learner()


@pytest.fixture(scope="session")
def tasks():
    return make_tasks()


@pytest.fixture
def world(learner, tasks, tmp_path):
    return MethodWorld(learner, tasks, tmp_path / "store")
