"""What a node has fetched, kept on its disk for all of its processes, up to a size.

    $DGG_RAY_CACHE, or ~/.cache/dgg_ray
        entries/HASH-name/     a folder that was filled whole and is never changed; its time is its last use
        locks/HASH             held while one process fills the entry, so that the others wait for it
        drafts/                being filled; they count, and what is a day old was left by a process that died

Least recently used entries go out first. An entry that a process has among its last two, or has pinned, is
locked by it, and stays; locks end with their process. A damaged one goes whoever has it: what they have open
they can read on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from dgg_ray.core.errors import StoreError
from dgg_ray.storage.backend import weight

CACHE_GB = 50.0
HELD = 2  # entries that a process has at hand: a stage's parent, and the stage
DRAFT_S = 86_400.0
_held: OrderedDict[str, int] = OrderedDict()
_pinned: dict[str, int] = {}
_guard = RLock()


@dataclass(frozen=True)
class Cache:
    """root: None is the environment's. gigabytes: the most that its entries take."""

    root: Path | None = None
    gigabytes: float = CACHE_GB

    @property
    def folder(self) -> Path:
        return (
            self.root or Path(os.environ.get("DGG_RAY_CACHE") or "~/.cache/dgg_ray").expanduser().absolute()
        )

    @property
    def cap(self) -> float:
        """Bytes."""
        return self.gigabytes * 1e9

    def draft(self) -> Path:
        draft = self.folder / "drafts" / uuid.uuid4().hex
        draft.mkdir(parents=True)
        return draft

    def place(self, name: str) -> Path:
        tail = re.sub(r"[^\w.-]", "_", name.rstrip("/").rpartition("/")[2])[-40:]
        return self.folder / "entries" / f"{hash_of(name)}-{tail}"

    def get(
        self, name: str, fill: Callable[[Path], None], check: Callable[[Path], None], room: int = 0
    ) -> Path:
        """The folder of that name; where there is none that `check` lets pass, `fill` fills it.

        Both raise what the caller gets; `check` is called again after `fill`.
        room: bytes that are made free of other entries before it is filled.
        """
        place = self.place(name)
        try:
            with self.filling(name):
                if hold(place):
                    try:
                        check(place)
                        return place
                    except ValueError:
                        drop(place)
                        self.evict(place, damaged=True)
                self.trim(room)
                draft = self.draft()
                try:
                    fill(draft)
                    check(draft)
                    if not self.keep(draft, name):
                        check(place)
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(
                f"cannot keep {name} in {self.folder}: {error}. Free some space, lower workers.cache_gb, or "
                f"name another folder as DGG_RAY_CACHE"
            ) from error
        self.trim()
        return place

    def keep(self, draft: Path, name: str) -> bool:
        """Make a filled draft an entry; whether it is one now. An older one of that name stays."""
        place = self.place(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            hold(place)
            return False
        return hold(place)

    def forget(self, name: str) -> None:
        drop(self.place(name))
        self.evict(self.place(name))

    @contextmanager
    def filling(self, name: str) -> Iterator[None]:
        file = self.folder / "locks" / hash_of(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield

    def trim(self, room: int = 0) -> None:
        """Evict until entries and drafts fit, and `room` bytes with them; with a tenth to spare so that it is
        not done for each."""
        total = room
        for draft in (self.folder / "drafts").glob("*"):
            with suppress(OSError):
                if draft.stat().st_mtime < time.time() - DRAFT_S:
                    shutil.rmtree(draft, ignore_errors=True)
                total += weight(draft)
        found: list[tuple[float, int, Path]] = []
        for place in (self.folder / "entries").glob("*"):
            with suppress(OSError):  # another process was first
                found.append((place.stat().st_mtime, weight(place), place))
        total += sum(size for _, size, _ in found)
        if total <= self.cap:
            return
        for _, size, place in sorted(found):
            if total <= 0.9 * self.cap:
                return
            if self.evict(place):
                total -= size

    def evict(self, place: Path, damaged: bool = False) -> bool:
        """Whether it is gone; one that is in use stays, unless it is damaged."""
        try:
            handle = os.open(place, os.O_RDONLY)
        except OSError:
            return False
        gone = self.folder / "drafts" / uuid.uuid4().hex
        try:
            if not damaged:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone.parent.mkdir(parents=True, exist_ok=True)
            place.rename(gone)
        except OSError:
            return False
        finally:
            os.close(handle)
        shutil.rmtree(gone, ignore_errors=True)
        return True


def hold(place: Path) -> bool:
    """Whether the entry is there, and is this process's to look at."""
    with _guard:
        try:
            handle = os.open(place, os.O_RDONLY)
        except OSError:
            return False
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(place))
        except OSError:
            same = False
        if not same:  # evicted before it was locked
            os.close(handle)
            return False
        os.utime(place)
        drop(place)
        _held[str(place)] = handle
        while len(_held) > HELD:
            os.close(_held.popitem(last=False)[1])
        return True


def pin(place: Path) -> bool:
    """As `hold`, until the process ends."""
    with _guard:
        if str(place) not in _pinned and hold(place):
            _pinned[str(place)] = _held.pop(str(place))
        return str(place) in _pinned


def drop(place: Path) -> None:
    with _guard:
        if (handle := _held.pop(str(place), None)) is not None:
            os.close(handle)


def hash_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
