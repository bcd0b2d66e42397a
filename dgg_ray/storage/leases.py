"""Leases: who works on which key. They are small objects in the store, and each one expires.

    leases/KEY/000007.json       {id, host, pid, until, seconds, at}: the highest number counts

Acquiring, renewing and releasing all create the next number, so of two processes that try at once one
succeeds. Where creation is atomic (backend.py), no process can acquire what another one holds. A lower number
is removed only once several higher ones exist. The highest is removed a day after its lease ended, or with
its stage. A process that paused between reading and creating therefore finds a higher number when it reads
again, and has lost.

A lease ends by its owner's clock. Others may take it `seconds` × SLACK later, which is how far clocks may
differ (StageStore.check). A lease ends at once if its owner is a dead process of this machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from math import inf
from pathlib import Path
from typing import NamedTuple

from dgg_ray.storage.backend import StorageBackend

LEASE_S = 180.0  # four renewals, each of which may wait for a slow store
SLACK = 1 / 12  # of a lease's seconds, before others take it: 15 s
NAME = re.compile(r"leases/(.+)/(\d+)\.json")
KEPT_NUMBERS = 3  # so that a listing made while one is added and one removed sees one of them


@dataclass(frozen=True)
class LeaseOwner:
    """A process that holds leases.

    host: identifies a set of processes that see each other by number (see `host_id`).
    """

    id: str
    host: str
    pid: int

    @staticmethod
    def this_process() -> LeaseOwner:
        return owner_of_pid(os.getpid())

    @property
    def is_dead(self) -> bool:
        """Return whether the process is known to have ended, which only processes of its host can know."""
        if self.host != host_id() or self.pid == os.getpid():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it runs, as another user
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


class Lease(NamedTuple):
    """A lease as it is stored.

    until: when others may take it, on their clocks. written_at: on its owner's clock.
    """

    owner: LeaseOwner
    until: float
    written_at: float


@cache
def owner_of_pid(pid: int) -> LeaseOwner:
    return LeaseOwner(uuid.uuid4().hex[:16], host_id(), pid)


@cache
def host_id() -> str:
    """Return the host's name, its boot and its process namespace.

    The boot tells machines of one name apart; the namespace, containers that number their processes
    themselves.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8]
    except OSError:
        boot = f"{uuid.getnode():x}"
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{boot}/{namespace}"


def acquire(
    backend: StorageBackend,
    key: str,
    owner: LeaseOwner,
    seconds: float = LEASE_S,
    clock: Callable[[], float] = time.time,
) -> LeaseOwner | None:
    """Acquire or renew the lease of a key; return None, or the other owner who has it."""
    while True:
        lease, numbers = latest_lease(backend, key)
        if (other := live_owner(lease, clock())) and other.id != owner.id:
            return other
        if append(backend, key, numbers, owner, clock() + seconds, seconds):
            return None


def owner_of(backend: StorageBackend, key: str) -> LeaseOwner | None:
    """Return the owner of a live lease of the key; None if there is no live lease."""
    return live_owner(latest_lease(backend, key)[0], time.time())


def live_owner(lease: Lease | None, now: float) -> LeaseOwner | None:
    """Return the lease's owner; None if it expired or its owner is dead."""
    return lease.owner if lease and now < lease.until and not lease.owner.is_dead else None


def release(backend: StorageBackend, key: str, owner: LeaseOwner) -> None:
    """Give up a lease; nothing happens if another owner has it."""
    lease, numbers = latest_lease(backend, key)
    if lease and lease.owner.id == owner.id:
        append(backend, key, numbers, owner, 0.0, 0.0)


def latest_lease(backend: StorageBackend, key: str) -> tuple[Lease | None, list[int]]:
    """Return the lease with the highest number, and all numbers that exist."""
    numbers = list_numbers(backend, key)
    if not numbers:
        return None, []
    return parse_lease(backend.read(lease_name(key, numbers[-1])) or b"{}"), numbers


def list_numbers(backend: StorageBackend, key: str) -> list[int]:
    matches = (NAME.fullmatch(name) for name in backend.list_names(f"leases/{key}/"))
    return sorted(int(match[2]) for match in matches if match and match[1] == key)


def parse_lease(data: bytes) -> Lease | None:
    """Return the stored lease; None if it was cut off, so that its creation was never confirmed."""
    try:
        content = json.loads(data)
        until = content.pop("until") + SLACK * content.pop("seconds")
        written_at = content.pop("at", inf)
        return Lease(LeaseOwner(**content), until, written_at)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def append(
    backend: StorageBackend, key: str, numbers: list[int], owner: LeaseOwner, until: float, seconds: float
) -> bool:
    """Create the number after `numbers`; return whether that succeeded and it is the highest."""
    number = numbers[-1] + 1 if numbers else 1
    content = asdict(owner) | {"until": until, "seconds": seconds, "at": time.time()}
    if not backend.create(lease_name(key, number), json.dumps(content).encode(), durable=False):
        return False
    if list_numbers(backend, key)[-1:] != [number]:
        backend.remove(lease_name(key, number))
        return False
    for old in numbers[: 1 - KEPT_NUMBERS]:
        backend.remove(lease_name(key, old))
    return True


def remove(backend: StorageBackend, key: str) -> None:
    """Remove all leases of a key, as its stage is gone; another process's live lease stays."""
    owner = owner_of(backend, key)
    if owner is None or owner.id == LeaseOwner.this_process().id:
        backend.remove_folder(f"leases/{key}")


def sweep(backend: StorageBackend, before: float) -> None:
    """Remove the leases that ended before that time."""
    matches = [match for name in backend.list_names("leases/") if (match := NAME.fullmatch(name))]
    latest = {
        max(group, key=lambda match: int(match[2]))[0]
        for _, group in groupby(matches, lambda match: match[1])
    }
    for name, data in backend.read_many(sorted(latest)):
        if (lease := parse_lease(data)) and max(lease.until, lease.written_at) < before:
            backend.remove_folder(name.rpartition("/")[0])


def lease_name(key: str, number: int) -> str:
    return f"leases/{key}/{number:06}.json"
