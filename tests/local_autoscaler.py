"""A cluster on this machine that Ray's own autoscaler grows and shrinks; its nodes are processes.

Ray's `AutoscalingCluster` does the same, but ends every Ray process of the machine. Here only own processes
are ended, by their ids.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # required by the fake provider


def free_port() -> int:
    """A free port outside 10002-19999, which Ray reserves for its workers."""
    for port in range(20100, 30000):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("", port))
            return port
    raise OSError("no port is free")


class LocalAutoscaler:
    """Nodes of one worker type, none at first and `most` at most; the head has no CPUs.

    idle_minutes: after which an idle node is ended. v2: Ray's newer autoscaler.
    """

    def __init__(self, worker: dict[str, float], most: int, idle_minutes: float = 0.05, v2: bool = True):
        from ray._private.services import get_node_ip_address

        self.folder = Path(tempfile.mkdtemp(prefix="dgg-as-"))  # short: Ray's sockets live below it
        self.address = f"{get_node_ip_address()}:{free_port()}"
        self.log = self.folder / "head.log"
        self.v2 = v2
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": self.address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        if v2:
            provider |= {"launch_multiple": True, "head_node_id": HEAD_ID}
        parts = (
            "initialization",
            "setup",
            "head_setup",
            "worker_setup",
            "head_start_ray",
            "worker_start_ray",
        )
        empty = [f"{part}_commands" for part in parts]
        empty += ["cluster_synced_files", "rsync_exclude", "rsync_filter"]
        nothing = {name: [] for name in empty}
        self.config = {
            "cluster_name": "local",
            "max_workers": most,
            "provider": provider,
            "available_node_types": {
                "worker": {
                    "resources": worker,
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": most,
                },
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            },
            "head_node_type": "ray.head.default",
            "auth": {},
            "docker": {},
            "upscaling_speed": float(most),
            "idle_timeout_minutes": idle_minutes,
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **nothing,
        }

    def __enter__(self):
        file = self.folder / "cluster.json"
        file.write_text(json.dumps(self.config))
        command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=0"]
        command += [f"--autoscaling-config={file}", f"--port={self.address.partition(':')[2]}"]
        command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self.folder / 'ray'}"]
        command += ["--object-store-memory=100000000"]
        environment = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        if self.v2:
            environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
            environment |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
        with self.log.open("w") as log:
            self.head = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in self.log.read_text():
            if self.head.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(self.log.read_text()[-2000:])
            time.sleep(0.2)
        return self

    def __exit__(self, *_):
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.head.pid).children(recursive=True)
        self.head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.head.wait(10)
        for process in psutil.wait_procs(children, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.head.kill()
        self.head.wait()
