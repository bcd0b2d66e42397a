"""Fixtures that tests of several packages use."""

import signal

import pytest
from hypothesis import settings
from study_samples import load  # noqa: F401 - a fixture
from toy_world import world  # noqa: F401 - a fixture

settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a test
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def child_processes_receive_signals():
    """Stop ignoring signals, as nohup or a shell's `&` does: child processes would inherit that."""
    for name in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(name) == signal.SIG_IGN:
            signal.signal(name, lambda *_: None)
