"""Fixtures that tests of several packages use. Each imports what it needs: xdist reads this file thrice."""

import gc
import os
import re
import signal
import sys

import pytest
from hypothesis import settings

from dgg_ray.core import plugins

# One mode for all clusters that tests start: a process keeps the mode of its first one, whatever comes later.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)

EXAMPLES = int(os.environ.get("DGG_RAY_EXAMPLES", "100"))
settings.register_profile("untimed", deadline=None, max_examples=EXAMPLES)  # a busy machine fails no test
settings.load_profile("untimed")
gc.disable()  # while libraries are imported: nothing of theirs is garbage


def pytest_ignore_collect(collection_path, config):
    """Do not import a file whose own marks exclude all of its tests, for example by -m "not whole"."""
    if collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    declared = re.search(r"^pytestmark = (\[.*?\]$|.*?$)", text, re.MULTILINE | re.DOTALL)
    marks = re.findall(r"pytest\.mark\.(\w+)", declared[1]) if declared else []
    return True if any(f"not {mark}" in config.option.markexpr for mark in marks) else None


def pytest_collection_finish():
    """Leave the imported libraries, a million objects, out of all garbage collections of the tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def load(tmp_path):
    """Load a study from its text."""
    from dgg_ray import load_study

    def load(text: str):
        (tmp_path / "study.yaml").write_text(text)
        return load_study(tmp_path / "study.yaml")

    return load


@pytest.fixture
def world(tmp_path):
    """A toy world with a store of its own."""
    from toy_world import World

    return World(tmp_path / "stages")


@pytest.fixture(autouse=True)
def folders_of_plugins():
    """Forget the folders of a test's studies: each later look-up of a plug-in would search all of them."""
    path, folders = list(sys.path), list(plugins.SEARCH_FOLDERS)
    yield
    sys.path[:], plugins.SEARCH_FOLDERS[:] = path, folders


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """Leave out the waits that guard what is stored against a power cut: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgg_ray.storage.backend.fsync", lambda target: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def child_processes_receive_signals():
    """Stop ignoring signals, as nohup or a shell's `&` does: child processes would inherit that."""
    for name in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(name) == signal.SIG_IGN:
            signal.signal(name, lambda *_: None)
