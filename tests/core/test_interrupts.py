"""Signals end a piece of work as Ctrl-C does, but never cut an import short."""

from __future__ import annotations

import importlib
import signal
import sys
import time

import pytest

from dgg_ray.core import interrupts
from dgg_ray.core.interrupts import interrupted_by_signals

INTERRUPTED = """
import signal
signal.raise_signal(signal.SIGINT)
done = True
"""

RUNS_A_STUDY = """
import signal
space = {"__name__": "dgg_ray.anything", "signal": signal}
exec("def run_study(): signal.raise_signal(signal.SIGINT)", space)
space["run_study"]()
done = True
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Make a module that can be imported, from its source."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.mark.parametrize("number", [signal.SIGINT, *interrupts.ENDING])
def test_each_signal_interrupts_the_block_and_only_the_block(number):
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            signal.raise_signal(number)
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, before)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def heard():
    """Hear SIGINT as Python does, also where whoever started the tests had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def import_and_wait(name: str) -> None:
    importlib.import_module(name)
    for _ in range(1000):
        time.sleep(0.01)


def test_an_interrupt_waits_for_the_end_of_an_import(write_module, heard):
    write_module("is_interrupted", INTERRUPTED)
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        import_and_wait("is_interrupted")
    assert sys.modules["is_interrupted"].done


def test_what_a_module_runs_while_it_is_imported_is_interrupted_at_once(write_module, heard):
    write_module("runs_a_study", RUNS_A_STUDY)
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        import_and_wait("runs_a_study")
    assert "runs_a_study" not in sys.modules
