"""A learner for all tests of the methods, and a store in which they find what one of them has trained."""

import pytest
from method_samples import MethodWorld, make_learner, make_tasks


@pytest.fixture(scope="session")
def learner():
    return make_learner()


@pytest.fixture(scope="session")
def tasks():
    return make_tasks()


@pytest.fixture(autouse=True, scope="module")
def adapters_without_a_card():
    """PEFT would describe each adapter in a text, which takes as long as a step of its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.PeftModel.create_or_update_model_card", lambda self, folder: None)
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("methods") / "store"


@pytest.fixture
def world(request, learner, tasks, shared_folder):
    """A store that the tests share: a stage is trained once. They remove nothing, and patch nothing."""
    assert "monkeypatch" not in request.fixturenames, (
        "what is patched would be stored for all: take own_world"
    )
    world = MethodWorld(learner, tasks, shared_folder)
    before = set(world.store.backend.list_names(""))
    yield world
    assert before <= set(world.store.backend.list_names("")), (
        "what is removed is missing to all: take own_world"
    )


@pytest.fixture
def own_world(learner, tasks, tmp_path):
    """A store of the test's own."""
    return MethodWorld(learner, tasks, tmp_path / "store")
