"""The process that checks studies: it rests when nobody needs it, and outlives no server."""

from __future__ import annotations

import subprocess
import sys

import psutil

from dgg_ray.service import check_process
from dgg_ray.service.check_process import CheckProcess

SERVER = """
import os, time
from dgg_ray.service.check_process import CheckProcess
if __name__ == "__main__":
    child = CheckProcess()
    print(child.call(os.getpid), flush=True)
    time.sleep(600)
"""


def test_the_process_that_checks_rests_and_comes_back(monkeypatch):
    child = CheckProcess()
    try:
        assert child.call(sum, [1, 2]) == 3
        child.rest()
        assert child.pool is not None
        monkeypatch.setattr(check_process, "IDLE_S", -1.0)
        child.rest()
        assert child.pool is None
        assert child.call(sum, [3, 4]) == 7
    finally:
        child.close()


def test_it_ends_with_a_server_that_is_killed(tmp_path):
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    with subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True) as server:
        child = psutil.Process(int(server.stdout.readline()))
        assert child.ppid() == server.pid  # it checks in a process of its own
        server.kill()
    child.wait(30)
    assert not psutil.pid_exists(child.pid)
