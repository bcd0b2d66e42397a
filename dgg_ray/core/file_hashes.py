"""What files hold, as keys have it: a hub revision's commit, a hash of a folder's files, or of one file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

UNREAD = (".md", ".bin", ".pt", ".pth", ".gguf", ".onnx")
COMMIT = re.compile("[0-9a-f]{40}")


def commit_of(name: str, revision: str) -> str:
    """The commit, 40 hex digits, that a hub name's revision stands for here; empty where that is not known.

    A branch or a tag is known from the last time it was fetched to this machine. The hub is not asked: what
    it says may be another commit tomorrow, or on the next machine.
    """
    from huggingface_hub import constants  # here: a study with a model in a folder does without it
    from huggingface_hub.file_download import repo_folder_name

    if COMMIT.fullmatch(revision.lower()):
        return revision.lower()
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    try:
        found = (cache / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return found if COMMIT.fullmatch(found) else ""


def content(folder: Path, unread: tuple[str, ...] = UNREAD) -> str:
    """SHA-256 over names and contents of all files in a folder and below it, but for hidden ones.

    unread: endings of files that are left out; of a model's, notes and pickles, which are not read."""
    return hashed(folder, tuple(map(as_it_is, files(folder, unread))))


def content_of_file(file: Path) -> str:
    """SHA-256 over what a file holds; read anew only where it is not what it was."""
    return hashed_file(as_it_is(file))


@lru_cache(maxsize=1024)
def hashed_file(seen: tuple[str, ...]) -> str:
    """seen: as `hashed` has it of each."""
    with open(seen[0], "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@lru_cache(maxsize=16)
def hashed(folder: Path, seen: tuple[tuple[str, ...], ...]) -> str:
    """seen: the files, and by what it would show that one of them is not what it was."""
    whole = hashlib.sha256()
    for path, *about in seen:
        file = Path(path)
        whole.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        whole.update(bytes.fromhex(hashed_file((path, *about))))
    return whole.hexdigest()


def as_it_is(file: Path) -> tuple[str, ...]:
    about = file.stat()
    return (str(file), *map(str, (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)))


def files(folder: Path, unread: tuple[str, ...] = UNREAD) -> list[Path]:
    """All that may bear on an answer, links followed, by their names below the folder."""

    def walk() -> Iterator[Path]:
        known = set()
        for place, folders, names in os.walk(folder, followlinks=True):
            known.add(os.path.realpath(place))
            inner = (f for f in folders if not f.startswith("."))
            folders[:] = [f for f in inner if os.path.realpath(Path(place, f)) not in known]
            yield from (Path(place, n) for n in names if not n.startswith(".") and not n.endswith(unread))

    return sorted((f for f in walk() if f.is_file()), key=lambda f: f.relative_to(folder).as_posix())
