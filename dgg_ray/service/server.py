"""Start a server: from the command line's options to a link that opens in a browser."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.service import accounts
from dgg_ray.service.app import make_app
from dgg_ray.service.checks import Rules
from dgg_ray.service.journal import Journal
from dgg_ray.service.launchers import JobLauncher, ProcessLauncher
from dgg_ray.service.reader import Reader
from dgg_ray.service.runner import studies_folder
from dgg_ray.service.scheduling import Capacity
from dgg_ray.service.security import Access
from dgg_ray.service.service import Service
from dgg_ray.storage import fetching
from dgg_ray.storage.stage_store import open_store

GPUS = Path("/proc/driver/nvidia/gpus")  # one folder for each
END_S = 3  # for open connections when the server ends
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Options:
    """A server's options. dashboard: of a cluster's head; None runs studies on this machine."""

    root: Path
    store: str
    data: str
    allow: tuple[str, ...]
    host: str
    port: int
    names: tuple[str, ...]
    open_to_all: bool
    capacity: Capacity
    dashboard: str | None = None

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve(options: Options) -> None:
    """Serve until Ctrl-C; studies that run go on."""
    if options.open_to_all and not options.is_loopback:
        rule = "is for a server on this machine's own address: leave out --host, or let users have tokens"
        raise StudyError([Fault("--open", rule, repr(options.host))], "arguments")
    listening = listen(options)
    port = listening.getsockname()[1]
    service = make_service(options)
    start_token = "" if options.open_to_all or not options.is_loopback else accounts.new_token()
    access = Access(service.journal, start_token, options.open_to_all)
    if not (start_token or options.open_to_all) and not service.journal.catch_up().users:
        rule = "needs a user first: dgg-ray user add NAME --role admin --store"
        raise StudyError([Fault("--host", f"{rule} {options.store}", repr(options.host))], "arguments")
    names = (*LOOPBACK_NAMES, *options.names) if options.is_loopback or options.names else ()
    reader = Reader(options.store, options.root / "cache", service.state_and_run)
    app = make_app(service, reader, access, names)
    host = "127.0.0.1" if options.host == "localhost" else options.host
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    print(f"store    {options.store}\nstudies  {service.root}")
    print(f"open     {address}{f'login?token={start_token}' if start_token else ''}", flush=True)
    print("Ctrl-C ends the server; studies that run go on", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=END_S,
        timeout_keep_alive=30,
        limit_concurrency=2000,
    )
    uvicorn.Server(config).run([listening])


def listen(options: Options) -> socket.socket:
    """Listen at the address; StudyError where that is impossible."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=512)
    except OSError as error:
        rule = f"cannot be listened at ({error.strerror}); name another one, or 0 for any free port"
        raise StudyError([Fault("--port", rule, f"{options.host}:{options.port}")], "arguments") from error


def make_service(options: Options) -> Service:
    """The service, whose store was checked for writing."""
    store = open_store(options.store)
    store.check()
    data = fetching.absolute(options.data)
    roots = dict.fromkeys([data, *map(fetching.absolute, options.allow)])
    rules = Rules(store.url, data, tuple(roots), str(studies_folder(options.root)))
    if options.dashboard:
        launcher = JobLauncher(rules, options.root, dashboard=options.dashboard)
    else:
        launcher = ProcessLauncher(rules, options.root)
    return Service(store, rules, options.root, launcher, options.capacity)


def capacity_of(cpus: float | None, gpus: float | None) -> Capacity:
    """The capacity that studies may use: as given, else this machine's."""
    if gpus is None:
        gpus = float(len(list(GPUS.iterdir()))) if GPUS.is_dir() else 0.0
    return Capacity(float(os.cpu_count() or 1) if cpus is None else cpus, gpus)


def journal_of(store: str) -> Journal:
    """The journal of the service of a store; the store is checked for its format."""
    opened = open_store(store)
    opened.verify_format()
    return Journal(opened.backend)
