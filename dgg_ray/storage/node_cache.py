"""The node's cache: fetched files on its disk, shared by all its processes, up to a size.

    $DGG_RAY_CACHE, or ~/.cache/dgg_ray
        entries/HASH-name/     a folder that was filled whole and never changes; its time is its last use
        locks/HASH             locked while one process fills the entry, so that the others wait for it
        drafts/                folders that are being filled; they count, and one that is a day old was left
                               by a process that died

Least recently used entries are evicted first. An entry stays while a process has it among its last two, or
has pinned it: the process then holds a lock on it, which ends with the process. A damaged entry is evicted in
any case; open files of it stay readable.
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
from dgg_ray.storage.backend import folder_size

CACHE_GB = 50.0
IN_USE = 2  # entries that a process keeps locked: a stage's parent, and the stage
DRAFT_S = 86_400.0
_in_use: OrderedDict[str, int] = OrderedDict()  # entry → open handle that locks it
_pinned: dict[str, int] = {}
_guard = RLock()


@dataclass(frozen=True)
class NodeCache:
    """The cache in one folder.

    root: the folder; None takes the environment's.
    gigabytes: limit for entries and drafts.
    """

    root: Path | None = None
    gigabytes: float = CACHE_GB

    @property
    def folder(self) -> Path:
        if self.root:
            return self.root
        return Path(os.environ.get("DGG_RAY_CACHE") or "~/.cache/dgg_ray").expanduser().absolute()

    @property
    def limit_bytes(self) -> float:
        return self.gigabytes * 1e9

    def make_draft(self) -> Path:
        draft = self.folder / "drafts" / uuid.uuid4().hex
        draft.mkdir(parents=True)
        return draft

    def entry_path(self, name: str) -> Path:
        readable = re.sub(r"[^\w.-]", "_", name.rstrip("/").rpartition("/")[2])[-40:]
        return self.folder / "entries" / f"{hash_name(name)}-{readable}"

    def get(
        self, name: str, fill: Callable[[Path], None], check: Callable[[Path], None], room: int = 0
    ) -> Path:
        """Return the entry's folder; if there is none, or `check` rejects it, `fill` fills a new one.

        Errors of both are raised as they are. `check` is called again after `fill`.

        room: bytes to free of other entries before the new one is filled.
        """
        entry = self.entry_path(name)
        try:
            with self._fill_lock(name):
                if use(entry):
                    try:
                        check(entry)
                        return entry
                    except ValueError:
                        stop_using(entry)
                        self.evict(entry, damaged=True)
                self.trim(room)
                draft = self.make_draft()
                try:
                    fill(draft)
                    check(draft)
                    if not self.add(draft, name):
                        check(entry)
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
        return entry

    def add(self, draft: Path, name: str) -> bool:
        """Make a filled draft an entry, unless one of that name exists; return whether it can be used now."""
        entry = self.entry_path(name)
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            use(entry)
            return False
        return use(entry)

    def remove(self, name: str) -> None:
        """Remove the entry, unless another process uses it."""
        stop_using(self.entry_path(name))
        self.evict(self.entry_path(name))

    @contextmanager
    def _fill_lock(self, name: str) -> Iterator[None]:
        file = self.folder / "locks" / hash_name(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield

    def trim(self, room: int = 0) -> None:
        """Evict entries until the rest, all drafts and `room` bytes fit.

        Once the limit is exceeded a tenth of it is freed in addition, so that this is not done for every
        entry.
        """
        total = room
        for draft in (self.folder / "drafts").glob("*"):
            with suppress(OSError):
                if draft.stat().st_mtime < time.time() - DRAFT_S:
                    shutil.rmtree(draft, ignore_errors=True)
                total += folder_size(draft)
        entries: list[tuple[float, int, Path]] = []
        for entry in (self.folder / "entries").glob("*"):
            with suppress(OSError):  # another process was first
                entries.append((entry.stat().st_mtime, folder_size(entry), entry))
        total += sum(size for _, size, _ in entries)
        if total <= self.limit_bytes:
            return
        for _, size, entry in sorted(entries):
            if total <= 0.9 * self.limit_bytes:
                return
            if self.evict(entry):
                total -= size

    def evict(self, entry: Path, damaged: bool = False) -> bool:
        """Remove an entry; return False if it is in use and not damaged, so that it stays."""
        try:
            handle = os.open(entry, os.O_RDONLY)
        except OSError:
            return False
        evicted = self.folder / "drafts" / uuid.uuid4().hex
        try:
            if not damaged:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            evicted.parent.mkdir(parents=True, exist_ok=True)
            entry.rename(evicted)
        except OSError:
            return False
        finally:
            os.close(handle)
        shutil.rmtree(evicted, ignore_errors=True)
        return True


def use(entry: Path) -> bool:
    """Lock an entry for this process, as its latest; return whether the entry exists."""
    with _guard:
        try:
            handle = os.open(entry, os.O_RDONLY)
        except OSError:
            return False
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(entry))
        except OSError:
            same = False
        if not same:  # evicted before it was locked
            os.close(handle)
            return False
        os.utime(entry)
        stop_using(entry)
        _in_use[str(entry)] = handle
        while len(_in_use) > IN_USE:
            os.close(_in_use.popitem(last=False)[1])
        return True


def pin(entry: Path) -> bool:
    """Lock an entry until this process ends; return whether the entry exists."""
    with _guard:
        if str(entry) not in _pinned and use(entry):
            _pinned[str(entry)] = _in_use.pop(str(entry))
        return str(entry) in _pinned


def stop_using(entry: Path) -> None:
    with _guard:
        if (handle := _in_use.pop(str(entry), None)) is not None:
            os.close(handle)


def hash_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
