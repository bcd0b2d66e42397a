"""Storage backends: small objects by name, and folders of files, on one kind of storage.

    read write create list_names remove                small objects; a name has parts with / between them
    sizes modified_at                                  bytes and times of everything that is stored
    make_draft put_folder open_folder remove_folder    folders of files: filled locally, then stored whole
    upload download release                            one large file, replaced whole (a checkpoint)

`LocalBackend` stores on a file system, `fsspec_backend.FsspecBackend` at a URL, `memory.MemoryBackend` in
this process. A created object never changes; a written object is replaced whole. Reads and listings are
strongly consistent: they show every creation and removal that ended before they began.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dgg_ray.core.json_files import replace_file

MISSING_ERRORS = (FileNotFoundError, NotADirectoryError)
NO_LINK_ERRNOS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class DamagedError(ValueError):
    """A stored file or record differs from what was written."""


class StorageBackend(ABC):
    """The operations that a stage store needs of the storage below it.

    url: the address by which other machines reach the storage.
    is_local: whether one access takes microseconds, rather than a request over a network.
    """

    url: str
    is_local = True

    # -- small objects -----------------------------------------------------------------------------

    @abstractmethod
    def read(self, name: str, fresh: bool = False) -> bytes | None:
        """Return the object's content; None if it does not exist.

        fresh: ask the storage even for a manifest that this process remembers, as manifests never change.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write the object, replacing an earlier one."""

    @abstractmethod
    def create(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Create the object; return False if it exists already.

        durable: the object survives a power cut once this returns.
        """

    @abstractmethod
    def list_names(self, prefix: str) -> list[str]:
        """List all names that begin with the prefix, sorted."""

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) of created, listed objects, read in parallel where that is faster."""
        for name in names:
            if (data := self.read(name)) is not None:
                yield name, data

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove the object, if it exists."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Map every name with the prefix to its bytes, including large files and those of folders."""

    @abstractmethod
    def modified_at(self, name: str) -> float | None:
        """Return the object's time in seconds since 1970, by the storage's clock; None if it has no time."""

    def remembered_manifests(self, key: str) -> Mapping[str, bytes]:
        """Return those manifests of a stage that this process has read, by name, without any access."""
        return {}

    def with_timeout(self, seconds: float) -> StorageBackend:
        """Return the same storage, whose requests fail after so many seconds."""
        return self

    # -- folders of files, and large files ---------------------------------------------------------

    def make_draft(self) -> Path:
        """Create a local folder to fill; the caller removes what is left of it."""
        raise NotImplementedError

    def list_drafts(self) -> Iterator[Path]:
        """Yield the drafts that exist on this machine."""
        raise NotImplementedError

    def put_folder(self, draft: Path, folder: str) -> None:
        """Store a filled draft as the folder; each folder has one writer."""
        raise NotImplementedError

    def open_folder(self, folder: str, checksums: Mapping[str, str]) -> Path:
        """Return a local folder with the stored files; raise DamagedError if a SHA-256 differs."""
        raise NotImplementedError

    def remove_folder(self, folder: str) -> int:
        """Remove everything below the folder; return the bytes freed."""
        raise NotImplementedError

    def upload(self, file: Path, name: str) -> None:
        """Move a local file into the storage, replacing an earlier one."""
        raise NotImplementedError

    def download(self, name: str) -> Path | None:
        """Return a local copy of the file, to be passed to `release`; None if the file does not exist."""
        raise NotImplementedError

    def release(self, file: Path) -> None:  # noqa: B027 - a backend without copies has nothing to do
        """Give up a downloaded file after its use."""


@dataclass(frozen=True)
class LocalBackend(StorageBackend):
    """Storage on a file system, which several processes or machines may share."""

    root: Path

    @property
    def url(self) -> str:  # type: ignore[override]
        return str(self.root.absolute())

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except MISSING_ERRORS:
            return None

    def write(self, name: str, data: bytes) -> None:
        replace_file(self.root / name, data)

    def create(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Create the object by a hard link, so that readers see it whole.

        A file system without links may show it half written. A power cut may leave an object that is cut off;
        as its creation was never confirmed, its reader must check.
        """
        file = self.root / name
        make_folder(file.parent, durable)
        draft = f"{file.parent}/.{uuid.uuid4().hex}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                write_all(handle, data)
                os.link(draft, file)
            except FileExistsError:
                # Two links mean that our first try succeeded and its answer was lost (NFS).
                if os.fstat(handle).st_nlink != 2:
                    return False
            except OSError as error:
                if error.errno not in NO_LINK_ERRNOS:
                    raise
                return self._create_exclusively(file, data)
            finally:
                os.unlink(draft)
            if durable:  # after the names: one commit of the journal holds all of it
                fsync(handle)
                fsync(file.parent)
            return True
        finally:
            os.close(handle)

    def _create_exclusively(self, file: Path, data: bytes) -> bool:
        try:
            with file.open("xb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
        except FileExistsError:
            return False
        fsync(file.parent)
        return True

    def list_names(self, prefix: str) -> list[str]:
        folder, _, start = prefix.rpartition("/")
        return sorted(walk_names(self.root / folder, f"{folder}/" if folder else "", start))

    def remove(self, name: str) -> None:
        with suppress(*MISSING_ERRORS):
            os.unlink(self.root / name)

    def sizes(self, prefix: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name in LocalBackend.list_names(self, prefix):
            with suppress(*MISSING_ERRORS):  # removed since the listing
                sizes[name] = (self.root / name).stat().st_size
        return sizes

    def modified_at(self, name: str) -> float | None:
        with suppress(*MISSING_ERRORS):
            return (self.root / name).stat().st_mtime
        return None

    def make_draft(self) -> Path:
        draft = self.root / "drafts" / uuid.uuid4().hex
        draft.mkdir(parents=True)
        return draft

    def list_drafts(self) -> Iterator[Path]:
        yield from self.root.glob("drafts/*")

    def put_folder(self, draft: Path, folder: str) -> None:
        files = [file for file in draft.rglob("*") if file.is_file()]
        for file in (*files, *{file.parent for file in files}):
            fsync(file)
        make_folder((self.root / folder).parent)
        draft.rename(self.root / folder)
        fsync((self.root / folder).parent)

    def open_folder(self, folder: str, checksums: Mapping[str, str]) -> Path:
        path = self.root / folder
        verify_files(path, checksums)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove_folder(self, folder: str) -> int:
        path = self.root / folder
        freed = folder_size(path)
        shutil.rmtree(path, ignore_errors=True)
        return freed

    def upload(self, file: Path, name: str) -> None:
        fsync(file)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(self.root / name)

    def download(self, name: str) -> Path | None:
        file = self.root / name
        return file if file.exists() else None


# -- files -----------------------------------------------------------------------------------------


@contextmanager
def temporary_draft(backend: StorageBackend) -> Iterator[Path]:
    """Create a draft and remove what is left of it at the end."""
    draft = backend.make_draft()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def verify_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Raise DamagedError if a file is missing or has another SHA-256."""
    for name, expected in checksums.items():
        try:
            actual = sha256(folder / name)
        except MISSING_ERRORS:
            raise DamagedError(f"{name} is missing") from None
        if actual != expected:
            raise DamagedError(f"{name} differs from what was written")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(above, name)).st_size
    return total


def walk_names(folder: Path | str, prefix: str, start: str = "") -> Iterator[str]:
    """Yield the names of the files below a folder, each with the prefix; hidden drafts are left out."""
    try:
        entries = list(os.scandir(folder))
    except MISSING_ERRORS:
        return
    for entry in entries:
        if entry.name.startswith(start) and not entry.name.startswith("."):
            if entry.is_dir():
                yield from walk_names(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name


def make_folder(folder: Path, durable: bool = True) -> None:
    """Create a folder and its parents; `durable`: they survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent, durable)
        folder.mkdir(exist_ok=True)
        if durable:
            fsync(folder.parent)


def write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def fsync(target: Path | int) -> None:
    """Flush a file or folder, given by path or by open handle, to the disk."""
    handle = target if isinstance(target, int) else os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        if handle is not target:
            os.close(handle)
