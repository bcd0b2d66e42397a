"""A failed optional output is named once, and its error ends nothing else."""

import json

import pytest

from dgg_ray.core import event_log
from dgg_ray.core.optional_outputs import OptionalOutputs


def test_an_error_ends_its_block_and_no_other():
    optional, done = OptionalOutputs(), []
    with optional.attempt("figure a"):
        done.append("a")
        raise ZeroDivisionError("division by zero")
    with optional.attempt("figure b"):
        done.append("b")
    assert done == ["a", "b"]
    assert optional.messages == ["figure a is missing: ZeroDivisionError: division by zero"]


def test_an_output_that_fails_is_the_default():
    optional = OptionalOutputs()
    assert optional.value_or("half", 0.0, lambda x: 1 / x, 2) == 0.5
    assert optional.value_or("whole", -1.0, lambda x: 1 / x, 0) == -1.0
    assert list(optional.failures) == ["whole"]


def test_a_name_is_reported_once_and_in_one_line():
    messages = []
    optional = OptionalOutputs(messages.append)
    for _ in range(3):
        with optional.attempt("the copy", "is dropped"):
            raise OSError("disk full\non /data")
    assert messages == optional.messages == ["the copy is dropped: OSError: disk full on /data"]


def test_ctrl_c_is_raised():
    optional = OptionalOutputs()
    with pytest.raises(KeyboardInterrupt), optional.attempt("figure a"):
        raise KeyboardInterrupt
    assert optional.messages == []


def test_the_event_log_has_the_traceback(tmp_path):
    with event_log.driver_log("study", tmp_path), OptionalOutputs().attempt("figure a"):
        raise ValueError("seed")
    (file,) = (tmp_path / "logs").iterdir()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    (line,) = [event for event in events if event["event"] == "output failed"]
    assert (line["error"], line["message"], line["output"]) == ("ValueError", "seed", "figure a")
    assert "raise ValueError" in line["traceback"]
