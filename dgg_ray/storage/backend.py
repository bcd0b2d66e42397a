"""Small objects by name, and folders of files beside them: all that a store asks of what it lies on.

    read write create names remove        small objects; a name has parts with / between them
    sizes modified                        bytes and times of all that is there
    draft put opened clear                folders of files: filled here, put there, looked at here
    upload download                       one large file, replaced whole (a snapshot)

`Folder` is the one on a file system; `remote.Url` is the one on an object store. What is created stays
as it is; what is written is replaced whole. Looks are strongly right: what was created or removed before
a look began is seen, or missed, by it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GONE = (FileNotFoundError, NotADirectoryError)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Damaged(ValueError):
    """A file is not what was written."""


class Objects:
    """The verbs; `url` is how another machine names the place."""

    url: str
    near = True  # whether one look costs next to nothing

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        """None where there is none.

        fresh: of a stage's manifest, too, which may otherwise be remembered, as it never changes."""
        raise NotImplementedError

    def write(self, name: str, data: bytes) -> None:
        """In place of an earlier one."""
        raise NotImplementedError

    def create(self, name: str, data: bytes, lasting: bool = True) -> bool:
        """Whether it was not there, and is now.

        lasting: it is still there after a power cut, once this returns."""
        raise NotImplementedError

    def names(self, prefix: str) -> list[str]:
        """All names that begin with it, in order."""
        raise NotImplementedError

    def reads(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Objects that were created and that `names` gave, at once where that is quicker."""
        for name in names:
            if (data := self.read(name)) is not None:
                yield name, data

    def remove(self, name: str) -> None:
        """Nothing happens where there is none."""
        raise NotImplementedError

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes by name, of all that begins with it, large files and those of folders too."""
        raise NotImplementedError

    def modified(self, name: str) -> float | None:
        """Seconds since 1970 by the clock of what keeps it; None where it tells none."""
        raise NotImplementedError

    def draft(self) -> Path:
        """A new local folder to fill; its maker removes what is left of it."""
        raise NotImplementedError

    def drafts(self) -> Iterator[Path]:
        """Those that are there."""
        raise NotImplementedError

    def put(self, draft: Path, place: str) -> None:
        """Make a filled draft a place's files; nobody else writes to that place."""
        raise NotImplementedError

    def opened(self, place: str, files: Mapping[str, str]) -> Path:
        """A local folder with a place's files, each with this SHA-256; Damaged where one is not so."""
        raise NotImplementedError

    def clear(self, place: str) -> int:
        """Remove all below a place; bytes freed."""
        raise NotImplementedError

    def upload(self, file: Path, name: str) -> None:
        """Move a local file there, in place of an earlier one."""
        raise NotImplementedError

    def download(self, name: str) -> Path | None:
        """A local file with it; None where there is none. `release` it after use."""
        raise NotImplementedError

    def release(self, file: Path) -> None:
        """A downloaded file is not needed any more."""


@dataclass(frozen=True)
class Folder(Objects):
    """On a file system that several processes, or machines, may share."""

    root: Path

    @property
    def url(self) -> str:  # type: ignore[override]
        return str(self.root.absolute())

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except GONE:
            return None

    def write(self, name: str, data: bytes) -> None:
        file = self.root / name
        draft = file.with_name(f".{uuid.uuid4().hex}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(data)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def create(self, name: str, data: bytes, lasting: bool = True) -> bool:
        """By a hard link, so that it is whole when it is seen.

        Where there are no links it may be seen half written. A power cut may leave one that is cut off
        and of which nobody was told that it is there: its reader checks.
        """
        file = self.root / name
        made(file.parent, lasting)
        draft = f"{file.parent}/.{uuid.uuid4().hex}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                write_all(handle, data)
                os.link(draft, file)
            except FileExistsError:
                if (
                    os.fstat(handle).st_nlink != 2
                ):  # else it is ours: the answer to a first try was lost (NFS)
                    return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._exclusively(file, data)
            finally:
                os.unlink(draft)
            if lasting:  # after the names: one commit of the journal holds all of it
                fsync(handle)
                fsync(file.parent)
            return True
        finally:
            os.close(handle)

    def _exclusively(self, file: Path, data: bytes) -> bool:
        try:
            with file.open("xb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
        except FileExistsError:
            return False
        fsync(file.parent)
        return True

    def names(self, prefix: str) -> list[str]:
        top, _, start = prefix.rpartition("/")
        return sorted(below(self.root / top, f"{top}/" if top else "", start))

    def remove(self, name: str) -> None:
        with suppress(*GONE):
            os.unlink(self.root / name)

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in Folder.names(self, prefix):
            with suppress(*GONE):  # removed meanwhile
                found[name] = (self.root / name).stat().st_size
        return found

    def modified(self, name: str) -> float | None:
        with suppress(*GONE):
            return (self.root / name).stat().st_mtime
        return None

    def draft(self) -> Path:
        draft = self.root / "drafts" / uuid.uuid4().hex
        draft.mkdir(parents=True)
        return draft

    def drafts(self) -> Iterator[Path]:
        yield from self.root.glob("drafts/*")

    def put(self, draft: Path, place: str) -> None:
        files = [file for file in draft.rglob("*") if file.is_file()]
        for file in (*files, *{file.parent for file in files}):
            fsync(file)
        made((self.root / place).parent)
        draft.rename(self.root / place)
        fsync((self.root / place).parent)

    def opened(self, place: str, files: Mapping[str, str]) -> Path:
        folder = self.root / place
        verify(folder, files)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear(self, place: str) -> int:
        folder = self.root / place
        freed = weight(folder)
        shutil.rmtree(folder, ignore_errors=True)
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
def drafted(objects: Objects) -> Iterator[Path]:
    """A draft for as long as it is needed."""
    draft = objects.draft()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def verify(folder: Path, files: Mapping[str, str]) -> None:
    """Raises Damaged where a file is missing, or has another SHA-256."""
    for name, wanted in files.items():
        try:
            found = sha256(folder / name)
        except GONE:
            raise Damaged(f"{name} is missing") from None
        if found != wanted:
            raise Damaged(f"{name} is not what was written")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weight(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(above, name)).st_size
    return total


def below(folder: Path | str, lead: str, start: str = "") -> Iterator[str]:
    """Names of the files below a folder, drafts left out."""
    try:
        entries = list(os.scandir(folder))
    except GONE:
        return
    for entry in entries:
        if entry.name.startswith(start) and not entry.name.startswith("."):
            if entry.is_dir():
                yield from below(entry.path, f"{lead}{entry.name}/")
            else:
                yield lead + entry.name


def made(folder: Path, lasting: bool = True) -> None:
    """Make a folder and those above it; `lasting`: so that they are there after a power cut."""
    if not folder.is_dir():
        made(folder.parent, lasting)
        folder.mkdir(exist_ok=True)
        if lasting:
            fsync(folder.parent)


def write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def fsync(place: Path | int) -> None:
    """Of a file or folder, or of one that is open."""
    handle = place if isinstance(place, int) else os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        if handle is not place:
            os.close(handle)
