"""Who is at work on what: leases that end by themselves, kept as small objects.

    leases/KEY/000007.json       {id, host, pid, until, seconds, at}: the highest number counts

Taking, renewing and giving back all create the next number, so that of two that try at once one succeeds;
where creating is atomic (backend.py), nobody can be given what somebody holds. A lower number is removed only
once several higher ones are there, the highest not before its lease has been over for a day, or its stage is
removed: who stopped between a look and a creation finds a higher one when it looks again, and has lost.

A lease ends by its holder's clock; others take it `seconds` × SLACK later, which is how far clocks may be
apart (Notes.check). Where the holder's processes can be seen it ends at once when its process is dead.
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

from dgg_ray.storage.backend import Objects

LEASE_S = 180.0  # four renewals, each of which may wait for a slow store
SLACK = 1 / 12  # of a lease's seconds, before others take it: 15 s
NAME = re.compile(r"leases/(.+)/(\d+)\.json")
KEPT = 3  # numbers kept, so that a listing made while one is added and one removed sees one of them


@dataclass(frozen=True)
class Holder:
    """A driver, as others see it. host: processes that see each other by number; pid: its own."""

    id: str
    host: str
    pid: int

    @staticmethod
    def here() -> Holder:
        """This process."""
        return of_process(os.getpid())

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended: only of a process that this one could see it is."""
        if self.host != host() or self.pid == os.getpid():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # there, but another user's
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


@cache
def of_process(pid: int) -> Holder:
    return Holder(uuid.uuid4().hex[:16], host(), pid)


@cache
def host() -> str:
    """The host's name; which start of which machine, as names are not always unique; and which numbering of
    its processes, as each container may have its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8]
    except OSError:
        boot = f"{uuid.getnode():x}"
    try:
        numbering = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        numbering = ""
    return f"{socket.gethostname()}/{boot}/{numbering}"


def take(
    objects: Objects,
    key: str,
    holder: Holder,
    seconds: float = LEASE_S,
    clock: Callable[[], float] = time.time,
) -> Holder | None:
    """Take or renew the lease of a key; None where it is `holder`'s now, else who has it."""
    while True:
        top, numbers = look(objects, key)
        if (other := alive(top, clock())) and other.id != holder.id:
            return other
        if add(objects, key, numbers, holder, clock() + seconds, seconds):
            return None


def holder_of(objects: Objects, key: str) -> Holder | None:
    """Who has it now, if anybody."""
    return alive(look(objects, key)[0], time.time())


def alive(top: tuple[Holder, float] | None, now: float) -> Holder | None:
    return top[0] if top and now < top[1] and not top[0].dead else None


def release(objects: Objects, key: str, holder: Holder) -> None:
    """Give a lease back; nothing happens where it is not `holder`'s."""
    top, numbers = look(objects, key)
    if top and top[0].id == holder.id:
        add(objects, key, numbers, holder, 0.0, 0.0)


def look(objects: Objects, key: str) -> tuple[tuple[Holder, float] | None, list[int]]:
    """((who has it, until when others leave it to them), the numbers that are there)."""
    numbers = numbered(objects, key)
    if not numbers:
        return None, []
    top = parsed(objects.read(place(key, numbers[-1])) or b"{}")
    return top and top[:2], numbers


def numbered(objects: Objects, key: str) -> list[int]:
    named = (NAME.fullmatch(name) for name in objects.names(f"leases/{key}/"))
    return sorted(int(name[2]) for name in named if name and name[1] == key)


def parsed(data: bytes) -> tuple[Holder, float, float] | None:
    """(Who has it, until when others leave it to them, when that was written); None where it was cut off, so
    that nobody was told that it is theirs."""
    try:
        found = json.loads(data)
        until, at = found.pop("until") + SLACK * found.pop("seconds"), found.pop("at", inf)
        return Holder(**found), until, at
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def add(objects: Objects, key: str, numbers: list[int], holder: Holder, until: float, seconds: float) -> bool:
    """Whether the next number is this holder's, and the highest."""
    mine = numbers[-1] + 1 if numbers else 1
    content = asdict(holder) | {"until": until, "seconds": seconds, "at": time.time()}
    if not objects.create(place(key, mine), json.dumps(content).encode(), lasting=False):
        return False
    if numbered(objects, key)[-1:] != [mine]:
        objects.remove(place(key, mine))
        return False
    for old in numbers[: 1 - KEPT]:
        objects.remove(place(key, old))
    return True


def remove(objects: Objects, key: str) -> None:
    """Forget who had the key, as nothing is to be done about it; another driver's live lease stays."""
    holder = holder_of(objects, key)
    if holder is None or holder.id == Holder.here().id:
        objects.clear(f"leases/{key}")


def sweep(objects: Objects, before: float) -> None:
    """Remove the leases that ended before that time."""
    named = [found for name in objects.names("leases/") if (found := NAME.fullmatch(name))]
    tops = {max(some, key=lambda name: int(name[2]))[0] for _, some in groupby(named, lambda name: name[1])}
    for name, data in objects.reads(sorted(tops)):
        if (top := parsed(data)) and max(top[1:]) < before:
            objects.clear(name.rpartition("/")[0])


def place(key: str, number: int) -> str:
    return f"leases/{key}/{number:06}.json"
