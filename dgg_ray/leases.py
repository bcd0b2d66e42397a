"""Who is at work on what: leases that end by themselves, kept as small objects.

    leases/KEY/000007.json       {id, host, pid, until, seconds}: the highest number is the one that counts

Taking, renewing and giving back all create the next number, so that of two that try at once one succeeds;
where creating is atomic (objects.py), nobody can be given what somebody holds. A lower number is removed only
once several higher ones are there, the highest never: who stopped between a look and a creation finds a
higher one when it looks again, and has lost.

A lease ends by its holder's clock; others take it `seconds` / 4 later, which is how far clocks may be
apart (Notes.check). On the holder's own machine it ends at once when its process is dead.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dgg_ray.objects import Objects

LEASE_S = 60.0
SLACK = 0.25  # of a lease's seconds, before others take it
KEPT = 3  # numbers kept, so that a listing made while one is added and one removed sees one of them


@dataclass(frozen=True)
class Holder:
    """A driver, as others see it. host: a machine since it was started; pid: its process there."""

    id: str
    host: str
    pid: int

    @staticmethod
    def here() -> Holder:
        """This process."""
        return of_process(os.getpid())

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended: only of a process of this machine it is."""
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
    """The host's name; and which start of which machine, as names are not always unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        boot = f"{uuid.getnode():x}"
    return f"{socket.gethostname()}/{boot}"


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
    numbers = sorted(int(name.rpartition("/")[2][:-5]) for name in objects.names(f"leases/{key}/"))
    if not numbers:
        return None, []
    try:
        found = json.loads(objects.read(place(key, numbers[-1])) or b"{}")
        until = found.pop("until") + SLACK * found.pop("seconds")
        return (Holder(**found), until), numbers
    except (ValueError, KeyError, TypeError):
        return None, numbers  # cut off: nobody was told that it is theirs


def add(objects: Objects, key: str, numbers: list[int], holder: Holder, until: float, seconds: float) -> bool:
    """Whether the next number is this holder's, and the highest."""
    mine = numbers[-1] + 1 if numbers else 1
    content = asdict(holder) | {"until": until, "seconds": seconds}
    if not objects.create(place(key, mine), json.dumps(content).encode(), lasting=False):
        return False
    _, now = look(objects, key)
    if now[-1:] != [mine]:
        objects.remove(place(key, mine))
        return False
    for old in numbers[: 1 - KEPT]:
        objects.remove(place(key, old))
    return True


def place(key: str, number: int) -> str:
    return f"leases/{key}/{number:06}.json"
