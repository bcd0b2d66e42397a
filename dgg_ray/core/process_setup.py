"""Sets the process up so that libraries start: a home folder, a user name, enough open files, short paths.

A container may run a process as a user without an entry in the user list, without a home, or with a low limit
of open files. Each library fails at that in its own way, most of them on import. So the environment is
repaired before any library is imported, and child processes inherit it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import tempfile
from pathlib import Path

from dgg_ray.core.errors import DggError

OPEN_FILES = 65_536  # wanted at once; Ray needs thousands on a machine with many cores
MAX_FOLDER_BYTES = (
    30  # of a folder for Ray's sockets: a socket's path has at most 107 bytes, Ray's part takes 77
)


def prepare_process() -> None:
    """Give this process a home, a user name, and as many open files as its limits allow."""
    home = os.path.expanduser("~")
    if home == "~" or not usable(Path(home)):
        with contextlib.suppress(OSError):  # no folder is writable, so there can be no home
            os.environ["HOME"] = str(private_folder(Path(tempfile.gettempdir()) / f"dgg-home-{os.getuid()}"))
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = os.environ["LOGNAME"] = f"uid{os.getuid()}"
    with contextlib.suppress(OSError, ValueError):
        soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard_limit == resource.RLIM_INFINITY else min(hard_limit, OPEN_FILES)
        if soft_limit < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard_limit))


def usable(home: Path) -> bool:
    """Return whether the process can use this home: it is writable or belongs to this user.

    A read-only home of this user holds what libraries look for there, such as weights and credentials.
    """
    return home.is_dir() and (os.access(home, os.W_OK) or owned(home))


def owned(folder: Path) -> bool:
    return folder.stat().st_uid == os.getuid()


def private_folder(folder: Path) -> Path:
    """Create the folder for this user alone, and return it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not owned(folder):
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def make_short_folder() -> str:
    """Create a folder with a path short enough for Ray's sockets, and return it.

    Raises DggError where no such folder can be created.
    """
    parents = dict.fromkeys([*temporary_folder(), "/tmp", "/var/tmp", "/dev/shm"])
    for parent in parents:
        if len(os.fsencode(parent)) <= MAX_FOLDER_BYTES:
            with contextlib.suppress(OSError):
                return tempfile.mkdtemp(prefix="dgg-", dir=parent)
    raise DggError(
        f"Ray needs a writable folder for its sockets, with a path of at most {MAX_FOLDER_BYTES} bytes; "
        f"tried {', '.join(parents)}. Set TMPDIR to such a folder"
    )


def temporary_folder() -> list[str]:
    """Return the system's temporary folder, if it has a writable one."""
    try:
        return [tempfile.gettempdir()]
    except OSError:
        return []


def working_folder_is_deleted() -> bool:
    """Return whether the working folder no longer exists."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def leave_deleted_folder() -> None:
    """Change to `/` if the working folder was deleted.

    Ray asks for the working folder when it starts. All paths are absolute by then.
    """
    if working_folder_is_deleted():
        os.chdir("/")
