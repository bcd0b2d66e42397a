"""What fails beside the results is named, once, and stops there."""

import json

import pytest

from dgg_ray.core import event_log
from dgg_ray.core.fence import Fence


def test_an_error_ends_its_block_and_no_other():
    fence, done = Fence(), []
    with fence("figure a"):
        done.append("begun")
        raise ZeroDivisionError("division by zero")
    with fence("figure b"):
        done.append("b")
    assert done == ["begun", "b"]
    assert fence.lines == ["figure a is missing: ZeroDivisionError: division by zero"]


def test_what_cannot_be_made_is_the_default():
    fence = Fence()
    assert fence.tried("half", 0.0, lambda x: 1 / x, 2) == 0.5
    assert fence.tried("whole", -1.0, lambda x: 1 / x, 0) == -1.0
    assert list(fence.lost) == ["whole"]


def test_the_same_name_is_told_once_and_in_one_line():
    told = []
    fence = Fence(told.append)
    for _ in range(3):
        with fence("the copy", "is dropped"):
            raise OSError("disk full\non /data")
    assert told == fence.lines == ["the copy is dropped: OSError: disk full on /data"]


def test_ctrl_c_passes():
    fence = Fence()
    with pytest.raises(KeyboardInterrupt), fence("figure a"):
        raise KeyboardInterrupt
    assert fence.lines == []


def test_the_traceback_is_in_the_logs(tmp_path):
    with event_log.of_driver("study", tmp_path), Fence()("figure a"):
        raise ValueError("seed")
    (file,) = (tmp_path / "logs").iterdir()
    (line,) = [
        found for text in file.read_text().splitlines() if (found := json.loads(text))["event"] == "not made"
    ]
    assert (line["error"], line["message"], line["of_what"]) == ("ValueError", "seed", "figure a")
    assert "raise ValueError" in line["traceback"]
