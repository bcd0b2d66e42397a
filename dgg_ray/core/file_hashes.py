"""Hashes of file contents, as keys use them: a hub revision's commit, a folder's hash, a file's hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

IGNORED_SUFFIXES = (
    ".md",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".onnx",
)  # of a model: notes, and pickles, are not read
COMMIT = re.compile("[0-9a-f]{40}")
FileState = tuple[str, ...]  # path, inode, size, times: equal while the file is unchanged


def hub_commit(name: str, revision: str) -> str:
    """Return the commit, 40 hex digits, of a hub name's revision on this machine; empty where unknown.

    A branch or a tag is known from its last download to this machine. The hub is not asked, because its
    answer may be another commit tomorrow, or on the next machine.
    """
    from huggingface_hub import constants  # late: a study with a model in a folder does not need it
    from huggingface_hub.file_download import repo_folder_name

    if COMMIT.fullmatch(revision.lower()):
        return revision.lower()
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    try:
        commit = (cache / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return commit if COMMIT.fullmatch(commit) else ""


def hash_folder(folder: Path, ignored: tuple[str, ...] = IGNORED_SUFFIXES) -> str:
    """Return SHA-256 over the names and contents of all visible files in a folder and below it.

    ignored: suffixes of files to leave out.
    """
    return _hash_files(folder, tuple(map(file_state, visible_files(folder, ignored))))


def hash_file(file: Path) -> str:
    """Return SHA-256 over a file's content; it is read again only if it has changed."""
    return _hash_file(file_state(file))


@lru_cache(maxsize=1024)
def _hash_file(state: FileState) -> str:
    with open(state[0], "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@lru_cache(maxsize=16)
def _hash_files(folder: Path, states: tuple[FileState, ...]) -> str:
    total = hashlib.sha256()
    for state in states:
        total.update(f"{Path(state[0]).relative_to(folder).as_posix()}\0".encode())
        total.update(bytes.fromhex(_hash_file(state)))
    return total.hexdigest()


def file_state(file: Path) -> FileState:
    """Return the file's path with the values that change when the file does."""
    status = file.stat()
    return (str(file), *map(str, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)))


def visible_files(folder: Path, ignored: tuple[str, ...] = IGNORED_SUFFIXES) -> list[Path]:
    """Return the files below a folder, links followed, sorted by path; without hidden and ignored ones."""
    files = [file for file in _walk(folder, ignored) if file.is_file()]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _walk(folder: Path, ignored: tuple[str, ...]) -> Iterator[Path]:
    visited = set()  # real paths, so that a link to a parent folder ends the walk
    for current, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(current))
        visible = (name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if os.path.realpath(Path(current, name)) not in visited]
        for name in names:
            if not name.startswith(".") and not name.endswith(ignored):
                yield Path(current, name)
