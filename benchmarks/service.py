"""A server with many studies: how quick its pages are, what watchers cost, what a submission adds.

    python benchmarks/service.py                    1,000 studies, one of 20,000 scores, 50 watchers
    python benchmarks/service.py --scores 1000000   the large study takes hours to simulate

Goals: the list answers within 200 ms and a study's page within 500 ms, each at the 95th percentile of
requests that come one after another; 50 watchers cost at most 20 % of a core and miss no event; the server
and what it started stay below 500 MB, runners left out; a submitted study begins within 2 s in a runner that
waits, and then does what any second study of a session does (warm_groups.py). CPU seconds are those of the
server's process, without its reader.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil
import requests

from dgg_ray import load_study, run_study
from dgg_ray.config import registry
from dgg_ray.service.client import Client
from dgg_ray.service.journal import Journal
from dgg_ray.storage.stage_store import open_store

TASKS = ("digits", "words", "shapes", "charts", "counting", "relations")
STUDY = """\
name: {name}
question: How do settings compare on many orders?
model: embedded
tasks: [{tasks}]
strategy: {{name: dgg, alpha: 0.1, buffer: 5}}
orders: {{design: random, count: {orders}}}
seeds: [0]
search:
  space: {{strategy.alpha: [0, 0.1, 0.3, 1.0], strategy.buffer: [5, 10, 20]}}
  trials: {trials}
protocol: {{baselines: [finetune, replay, joint]}}
workers: {{engine: simulated}}
"""
CELLS = len(TASKS) * (len(TASKS) + 1) // 2  # of one run


def study_text(name: str, orders: int, trials: int) -> str:
    tasks = ", ".join(f"{{name: {t}, reader: embedded, train: 12, validation: 10, test: 10}}" for t in TASKS)
    return STUDY.format(name=name, tasks=tasks, orders=orders, trials=trials)


def fill(root: Path, studies: int, scores: int) -> float:
    """Fill a store: one large study, and the registry and journal of many; return the seconds it took."""
    start, store = time.perf_counter(), open_store(root / "store")
    trials = 12
    orders = max(2, scores // (CELLS * trials))
    file = root / "large.yaml"
    file.write_text(study_text("large", orders, trials), encoding="utf-8")
    run_study(load_study(file, store=str(root / "store")), root / "large", local=True, quiet=True)
    document = store.get_document(registry.document_name("large", registry.STUDY))
    assert document
    journal = Journal(store.backend)
    for i in range(studies):
        name = f"study-{i:04}"
        raw = {**document["content"]["raw"], "name": name}
        content = {"content": {**document["content"], "raw": raw}}
        store.put_document(registry.document_name(name, registry.STUDY), content)
        live = {"at": time.time() - i, "running": [], "queued": 0, "ended": "ended", "best": f"faa 0.{i:04}"}
        store.put_document(registry.document_name(name, registry.LIVE), {"content": live})
        facts = {"text": study_text(name, 2, 1), "question": f"Question {i}?", "needs": {"cpus": 1.0}}
        event = {"kind": "submitted", "by": f"user{i % 7}", "study": name, "priority": 0, **facts}
        journal.commit(lambda state, event=event: event)
        journal.commit(
            lambda state, name=name: {"kind": "ended", "by": "x", "study": name, "how": "finished"}
        )
    return time.perf_counter() - start


class Server:
    """A server in a process of its own."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "dgg_ray", "serve", "--root", str(root), "--port", "0"]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert self.process.stdout
        link = next(
            m for line in self.process.stdout if (m := re.search(r"(http\S+?)/login\?token=(\S+)", line))
        )
        self.url, self.token = link.groups()
        self.start_s = time.perf_counter() - start
        self.own = psutil.Process(self.process.pid)

    def cpu_s(self) -> float:
        times = self.own.cpu_times()
        return times.user + times.system

    def memory_mb(self) -> dict[str, float]:
        """Megabytes of the server and of what it started, runners left out."""
        sizes = {"server": self.own.memory_info().rss / 1e6}
        for child in self.own.children():
            words = " ".join(child.cmdline())
            kinds = {"reader_process": "reader", "spawn_main": "checks", "resource_tracker": "tracker"}
            for word, kind in kinds.items():
                if word in words:
                    sizes[kind] = child.memory_info().rss / 1e6
        return sizes

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def percentile_ms(ask: Callable[[], object], times: int) -> str:
    """Median and 95th percentile of so many calls."""
    ask()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - start)
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return f"median {1e3 * statistics.median(seconds):6.0f} ms, 95th percentile {1e3 * p95:6.0f} ms"


def watch(server: Server, watchers: int, changes: int) -> str:
    """Let so many watch while studies change, and count what they saw."""
    store_client, seen = Client(server.url, server.token), [dict[str, int]() for _ in range(watchers)]
    stop = threading.Event()

    def follow(mine: dict[str, int]) -> None:
        headers = {"authorization": f"Bearer {server.token}"}
        url = f"{server.url}/api/v1/events"
        with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"data: {") and (card := json.loads(line[6:])) and "priority" in card:
                    mine[card["name"]] = card["priority"]
                if stop.is_set():
                    return

    threads = [threading.Thread(target=follow, args=(mine,), daemon=True) for mine in seen]
    for thread in threads:
        thread.start()
    time.sleep(5.0)
    cpu, start = server.cpu_s(), time.perf_counter()
    for i in range(changes):
        store_client.set_priority(f"study-{i % 100:04}", 1 + i // 100)
        time.sleep(max(0.0, start + (i + 1) * 30.0 / changes - time.perf_counter()))
    time.sleep(3.0)
    share = (server.cpu_s() - cpu) / (time.perf_counter() - start)
    wanted = {f"study-{i:04}": 1 + (changes - 1 - i) // 100 for i in range(min(100, changes))}
    missed = sum(mine.get(name) != value for mine in seen for name, value in wanted.items())
    stop.set()
    return f"{share:.0%} of a core for {watchers} watchers and {changes} changes; {missed} missed"


def submission(server: Server, root: Path) -> str:
    """Seconds until a submitted study begins and until its first stage, in a new runner and in a warm one."""
    client, found, seed = Client(server.url, server.token), [], int(time.time()) % 10**6
    for runner in ("new", "warm"):
        name = f"{runner}-{seed}"
        text = study_text(name, 2, 2).replace("engine: simulated", "groups: 1")
        start = time.time()
        client.submit(text.replace("seeds: [0]", f"seeds: [{seed + len(found)}]"))  # none is stored yet
        for _ in client.follow(name):
            pass
        logs = root / "studies" / name / "logs"
        began, ready = (first_event(logs, of) - start for of in ("driver", "group-001"))
        found.append(f"{runner} runner: begins after {began:.1f} s, first stage after {ready:.1f} s")
    return "; ".join(found)


def first_event(logs: Path, of: str) -> float:
    """When a process of a study began, from its log; a Unix time."""
    (file,) = logs.glob(f"{of}-*")
    with file.open(encoding="utf-8") as lines:
        return datetime.fromisoformat(json.loads(next(lines))["time"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--scores", type=int, default=20_000)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--root", type=Path, help="keep the store in this folder, and use it again")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = (o.root or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "store").exists():
            print(f"filled in {fill(root, o.studies, o.scores):.0f} s", flush=True)
        print(
            f"{o.studies} studies, one of about {o.scores:,} scores; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        server = Server(root)
        try:
            print(f"start          {server.start_s:.1f} s", flush=True)
            session = requests.Session()
            session.headers["authorization"] = f"Bearer {server.token}"

            def get(path: str) -> bytes:
                answer = session.get(server.url + path, timeout=600)
                answer.raise_for_status()
                return answer.content

            for name, path in {
                "list (page)": "/",
                "list (API)": "/api/v1/studies",
                "study (page)": "/studies/large",
                "study (summary)": "/api/v1/studies/large/view/summary",
            }.items():
                print(f"{name:<16}{percentile_ms(lambda path=path: get(path), o.requests)}", flush=True)
            print(f"watchers        {watch(server, o.watchers, 300)}", flush=True)
            print(f"submission      {submission(server, root)}", flush=True)
            sizes = ", ".join(f"{name} {mb:.0f} MB" for name, mb in server.memory_mb().items())
            print(f"memory          {sizes}")
        finally:
            server.end()


if __name__ == "__main__":
    main()
