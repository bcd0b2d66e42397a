"""Data and models that a study names by URL, fetched once for each node into its capped cache.

    staged("s3://bucket/llava")         a folder, or a single file, of this machine with what lies there
    staged("/shared/llava")             a path of this machine is given as it is

What is fetched is named by its URL and by a listing (names, sizes, versions): where the place changed it is
fetched anew, where it did not the node has it. A process asks once, and keeps what it was given until it
ends, so that all its reads are of one version.

A `Path` turns `s3://bucket` into `s3:/bucket`; `address` turns it back, so that settings may be paths all the
same. `file://` is a path of this machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from dgg_ray.core import event_log
from dgg_ray.core.errors import Refused, StoreError
from dgg_ray.core.hashing import digest
from dgg_ray.storage.backend import GONE, Damaged
from dgg_ray.storage.node_cache import Cache, pin

URL = re.compile(r"([a-zA-Z][\w+.-]+):/+(.*)", re.DOTALL)
TRIES = 3  # of a place that changes while it is fetched

_node = Cache()
_fetched: set[str] = set()  # URLs


def within(gigabytes: float) -> None:
    """The size that this process's fetching keeps the node's cache to (workers.cache_gb)."""
    global _node
    _node = Cache(gigabytes=gigabytes)


# -- names of places -------------------------------------------------------------------------------


def address(place: str | Path) -> str:
    """The URL; empty for a path of this machine."""
    found = URL.fullmatch(str(place))
    if not found or found[1] == "file":
        return ""
    return f"{found[1]}://{'/' if found[1] == 'local' else ''}{found[2].rstrip('/')}"


def path(place: str | Path) -> Path:
    """As a setting holds it: a URL as a path, `file://` and `~` as what they stand for."""
    found = URL.fullmatch(str(place))
    # Path.expanduser raises where there is no such user; a path that stays as it is will not be found.
    return Path(os.path.expanduser(f"/{found[2]}" if found and found[1] == "file" else place))


def full(place: str | Path) -> str:
    """With nothing left that depends on where a process stands."""
    return address(place) or str(path(place).absolute())


def rooted(plugin: Any, root: str) -> Any:
    """Relative paths among the settings, made to start from the study's root, a folder or a URL."""
    paths = {f.name: getattr(plugin, f.name) for f in fields(plugin)}
    found = {name: path(p) for name, p in paths.items() if isinstance(p, Path)}
    return replace(plugin, **{name: p if address(p) else path(root) / p for name, p in found.items()})


# -- fetching --------------------------------------------------------------------------------------


def staged(place: str | Path) -> Path:
    """Where it lies on this machine: fetched there, for a URL.

    Refused where nothing is there, or it cannot be had from here; StoreError where no answer comes.
    """
    url = address(place)
    return fetched(url) if url else path(place)


def at_hand(place: str | Path) -> bool:
    """Whether `staged` has it without fetching: a path of this machine, or what this process has fetched."""
    url = address(place)
    return not url or url in _fetched


@cache
def fetched(url: str) -> Path:
    from dgg_ray.storage.remote_store import Url  # fsspec, which places of this machine do not wait for

    source = Url(url)
    problem = ""
    for _ in range(TRIES):
        there = source.versions()
        files = wanted(url, there)
        try:
            folder = _node.get(
                f"{digest(there)[:16]} {url}",
                lambda draft, there=there: fill(source, there, draft),
                lambda folder, files=files: check(folder, files),
                room=sum(files.values()),
            )
        except (Damaged, FileNotFoundError) as error:
            problem = str(error)
            continue
        if pin(folder):
            _fetched.add(url)
            return folder / tail(url) if "" in there else folder
    raise StoreError(f"{url} changes while it is fetched ({problem}); let it rest, then run the study again")


def wanted(url: str, there: Mapping[str, Any]) -> dict[str, int]:
    """File → bytes of what will lie in the cache; Refused where it may not."""
    if not there:
        raise Refused(f"nothing is at {url}")
    if any(".." in name.split("/") for name in there):
        raise Refused(f"{url} holds names that lead out of it")
    files = {name or tail(url): size for name, (size, _) in there.items()}
    if (total := sum(files.values())) > _node.cap:
        rule = (
            f"takes {total / 1e9:.3g} GB, and a node keeps {_node.cap / 1e9:.3g} GB: raise workers.cache_gb"
        )
        raise Refused(f"{url} {rule}")
    return files


def fill(source: Any, there: Mapping[str, Any], draft: Path) -> None:
    began = time.monotonic()
    event_log.event(
        "fetching", url=source.url, files=len(there), bytes=sum(size for size, _ in there.values())
    )
    source.fetch({name: draft / (name or tail(source.url)) for name in there})
    if source.versions() != there:
        raise Damaged("it is not what it was before")
    event_log.event("fetched", url=source.url, seconds=round(time.monotonic() - began, 3))


def check(folder: Path, files: Mapping[str, int]) -> None:
    for name, size in files.items():
        try:
            same = (folder / name).stat().st_size == size
        except GONE:
            same = False
        if not same:
            raise Damaged(f"{name} is missing or has another size")


def tail(url: str) -> str:
    return url.rpartition("/")[2]
