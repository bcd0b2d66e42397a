"""The delay that a remote submission adds before the first stage, against the same command on the head node.

    python benchmarks/submit.py [--rounds 3]

Both start with a new process, and end when the store says that a stage is running. Ray runs already: a head
node on this machine, with its dashboard, its jobs and a token.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from dgg_ray.config.registry import LIVE, document_name
from dgg_ray.storage.stage_store import open_store

ROOT = Path(__file__).parent.parent
DASHBOARD = 21_080
STUDY = """\
name: {name}
model: embedded
tasks:
  - {{name: digits, reader: embedded, train: 24, validation: 10, test: 12}}
  - {{name: words, reader: embedded, train: 24, validation: 12, test: 10}}
strategy: {{name: dgg, alpha: 0.2, buffer: 4}}
workers: {{engine: simulated, idle_timeout_s: 1}}
simulation: {{wait: 1, seconds: 2000}}
"""


@contextlib.contextmanager
def head(folder: Path):
    """Start a head node; yield the environment in which commands find it."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "DGG_RAY_ADDRESS": f"http://127.0.0.1:{DASHBOARD}",
    }
    names = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    ports = {name: DASHBOARD + 1 + i for i, name in enumerate((*names, "metrics-export-port"))}
    options = ports | {"dashboard-port": DASHBOARD, "num-cpus": 2, "temp-dir": f"/tmp/dgg-{os.getpid()}"}
    words = [Path(sys.executable).parent / "ray", "start", "--head", "--block"]
    words += [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", DASHBOARD), 1):
                break
            time.sleep(0.2)
        time.sleep(5)  # the agents start a little later than the dashboard
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{ports['port']}"}
    finally:
        for member in (*psutil.Process(process.pid).children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def seconds_to_first_stage(words: list[str], environment: dict[str, str], name: str, store: Path) -> float:
    """Return the seconds from the command to its first stage; then stop the study."""
    began = time.perf_counter()
    log = (store.parent.parent / f"{name}.log").open("w+")
    process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    while True:
        live = open_store(str(store)).get_document(document_name(name, LIVE)) if store.exists() else None
        if live and live["content"]["running"]:
            break
        if process.poll() or time.perf_counter() - began > 300:
            sys.exit(f"no stage started: {Path(log.name).read_text()}")
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if "submit" in words:
        subprocess.run([*words[:3], "stop", name], env=environment, stdout=subprocess.DEVNULL, check=True)
    else:
        process.terminate()
    process.wait()
    log.close()
    return seconds


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=3)
    rounds = p.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="dgg-") as temporary, head(Path(temporary)) as environment:
        folder, dgg_ray = Path(temporary), [sys.executable, "-m", "dgg_ray"]
        durations: dict[str, list[float]] = {"on the head": [], "submitted": []}
        for i in range(rounds):
            for how, command in (("on the head", "run"), ("submitted", "submit")):
                name = f"{command}{i}"
                file, store = folder / f"{name}.yaml", folder / "stages" / name
                file.write_text(STUDY.format(name=name))
                words = [*dgg_ray, command, str(file), "--store", str(store)]
                if command == "run":
                    words += ["--ray-address", environment["RAY_ADDRESS"], "--out", str(folder / name)]
                durations[how].append(seconds_to_first_stage(words, environment, name, store))
                print(f"{how:12} {durations[how][-1]:6.1f} s", flush=True)
        medians = {how: statistics.median(seconds) for how, seconds in durations.items()}
        print(
            f"a submission adds {medians['submitted'] - medians['on the head']:.1f} s (medians of {rounds})"
        )


if __name__ == "__main__":
    main()
