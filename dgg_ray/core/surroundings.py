"""Surroundings that libraries take for granted, filled in where they are missing.

A container may run a process as a user that is in no list, without a home, or allow it few open files. Each
library has a way of its own to fail at that, most of them when they are imported. So it is put right in the
environment, before any is, and processes that are started from here inherit it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dgg_ray.core.errors import DggError

FILES = 65_536  # open at once; Ray on many cores wants thousands
SHORT = 30  # bytes of a folder below which Ray's sockets fit: their paths have at most 107, 77 are its own


def prepare() -> None:
    """Give this process a home, a user's name and as many open files as it may have."""
    home = os.path.expanduser("~")
    if home == "~" or not usable(Path(home)):
        with contextlib.suppress(OSError):  # without any writable folder there is no home to be had
            os.environ["HOME"] = str(made(Path(tempfile.gettempdir()) / f"dgg-home-{os.getuid()}"))
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = os.environ["LOGNAME"] = f"uid{os.getuid()}"
    with contextlib.suppress(OSError, ValueError):
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if most == resource.RLIM_INFINITY else min(most, FILES)
        if now < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def usable(home: Path) -> bool:
    """Whether a home can be written, or is this user's all the same: one mounted for reading holds what
    libraries look for there, such as weights and credentials."""
    return home.is_dir() and (os.access(home, os.W_OK) or owned(home))


def owned(folder: Path) -> bool:
    return folder.stat().st_uid == os.getuid()


def made(folder: Path) -> Path:
    """The folder, of this user alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not owned(folder):
        raise PermissionError(f"{folder} is another user's")
    return folder


def short_folder() -> str:
    """A new folder whose path is so short that sockets fit below it; DggError where none can be had."""
    tried = dict.fromkeys([*places(), "/tmp", "/var/tmp", "/dev/shm"])
    for place in tried:
        if len(os.fsencode(place)) <= SHORT:
            with contextlib.suppress(OSError):
                return tempfile.mkdtemp(prefix="dgg-", dir=place)
    raise DggError(
        f"Ray needs a folder that can be written and whose path has at most {SHORT} bytes, for its sockets; "
        f"tried {', '.join(tried)}. Set TMPDIR to one"
    )


def places() -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield tempfile.gettempdir()


def folder_is_gone() -> bool:
    """Whether the working folder was deleted."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def leave_deleted_folder() -> None:
    """Move to `/` where the working folder was deleted: Ray asks for it, and every path is full by now."""
    if folder_is_gone():
        os.chdir("/")
