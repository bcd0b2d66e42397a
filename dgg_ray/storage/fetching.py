"""Data and models that a study names by URL, fetched once for each node into its size-limited cache.

    local_path("s3://bucket/llava")     a folder or file of this machine with the content of the URL
    local_path("/shared/llava")         a path of this machine, as it is

A cache entry is named by the URL and by a listing of it (names, sizes, versions). A URL whose content changed
is fetched again; else the node has it already. A process lists a URL once and keeps the result until it ends,
so that all its reads are of one version.

A `Path` turns `s3://bucket` into `s3:/bucket`; `url_of` turns it back, so that settings may be paths.
`file://` names a path of this machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgg_ray.core import event_log
from dgg_ray.core.errors import PermanentStoreError, StoreError
from dgg_ray.core.hashing import digest
from dgg_ray.storage.backend import MISSING_ERRORS, DamagedError
from dgg_ray.storage.node_cache import NodeCache, pin

if TYPE_CHECKING:
    from dgg_ray.storage.fsspec_backend import FsspecBackend

URL = re.compile(r"([a-zA-Z][\w+.-]+):/+(.*)", re.DOTALL)
TRIES = 3  # for content that changes while it is fetched

_cache = NodeCache()
_fetched: set[str] = set()  # URLs


def set_cache_limit(gigabytes: float) -> None:
    """Set the size of the node's cache for what this process fetches (workers.cache_gb)."""
    global _cache
    _cache = NodeCache(gigabytes=gigabytes)


# -- paths and URLs --------------------------------------------------------------------------------


def url_of(place: str | Path) -> str:
    """Return the URL that a setting names; empty if it is a path of this machine."""
    match = URL.fullmatch(str(place))
    if not match or match[1] == "file":
        return ""
    return f"{match[1]}://{'/' if match[1] == 'local' else ''}{match[2].rstrip('/')}"


def as_path(place: str | Path) -> Path:
    """Return the path as settings hold it: a URL as a path, `file://` and `~` expanded."""
    match = URL.fullmatch(str(place))
    # Path.expanduser raises for an unknown user; a path that stays as it is will not be found.
    return Path(os.path.expanduser(f"/{match[2]}" if match and match[1] == "file" else place))


def absolute(place: str | Path) -> str:
    """Return a URL, or an absolute path."""
    return url_of(place) or str(as_path(place).absolute())


def path_below(path: Path, root: str | Path) -> str:
    """Return the path relative to the root, or as it is if it is not below it."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def resolve_paths(plugin: Any, root: str) -> Any:
    """Return the plug-in with its relative paths resolved against the study's root, a folder or a URL."""
    settings = {f.name: getattr(plugin, f.name) for f in fields(plugin)}
    paths = {name: as_path(value) for name, value in settings.items() if isinstance(value, Path)}
    return replace(
        plugin, **{name: path if url_of(path) else as_path(root) / path for name, path in paths.items()}
    )


# -- fetching --------------------------------------------------------------------------------------


def local_path(place: str | Path) -> Path:
    """Return the place's path on this machine, fetching a URL.

    Raise PermanentStoreError if nothing is there or this machine cannot read it; StoreError if no answer
    comes.
    """
    url = url_of(place)
    return fetch(url) if url else as_path(place)


def needs_no_fetch(place: str | Path) -> bool:
    """Tell whether it is a path of this machine, or a URL that this process has fetched."""
    url = url_of(place)
    return not url or url in _fetched


@cache
def fetch(url: str) -> Path:
    """Return the cache's copy of the URL, fetching it if it is missing or out of date; it stays pinned."""
    from dgg_ray.storage.fsspec_backend import FsspecBackend  # paths of this machine do not wait for fsspec

    source = FsspecBackend(url)
    problem = ""
    for _ in range(TRIES):
        versions = source.list_versions()
        sizes = expected_sizes(url, versions)
        try:
            folder = _cache.get(
                f"{digest(versions)[:16]} {url}",
                partial(download, source, versions),
                partial(verify_sizes, sizes),
                room=sum(sizes.values()),
            )
        except (DamagedError, FileNotFoundError) as error:
            problem = str(error)
            continue
        if pin(folder):
            _fetched.add(url)
            return folder / last_part(url) if "" in versions else folder
    raise StoreError(
        f"{url} keeps changing while it is fetched ({problem}); stop what writes there, then run the study "
        f"again"
    )


def expected_sizes(url: str, versions: Mapping[str, tuple[int, str]]) -> dict[str, int]:
    """Map the cache entry's files to their bytes; raise PermanentStoreError if they may not be fetched."""
    if not versions:
        raise PermanentStoreError(f"nothing is at {url}; check the URL, or upload the files")
    if any(".." in name.split("/") for name in versions):
        raise PermanentStoreError(
            f"{url} holds file names with `..`, which lead out of it; rename these files"
        )
    sizes = {name or last_part(url): size for name, (size, _) in versions.items()}
    if (total := sum(sizes.values())) > _cache.limit_bytes:
        raise PermanentStoreError(
            f"{url} takes {total / 1e9:.3g} GB, but a node's cache is limited to "
            f"{_cache.limit_bytes / 1e9:.3g} GB: raise workers.cache_gb"
        )
    return sizes


def download(source: FsspecBackend, versions: Mapping[str, tuple[int, str]], draft: Path) -> None:
    """Download all files into a draft; raise DamagedError if the source changed meanwhile."""
    began = time.monotonic()
    size = sum(size for size, _ in versions.values())
    event_log.log_event("fetching", url=source.url, files=len(versions), bytes=size)
    source.download_files({name: draft / (name or last_part(source.url)) for name in versions})
    if source.list_versions() != versions:
        raise DamagedError("its files changed during the download")
    event_log.log_event("fetched", url=source.url, seconds=round(time.monotonic() - began, 3))


def verify_sizes(sizes: Mapping[str, int], folder: Path) -> None:
    """Raise DamagedError if a file of the cache entry is missing or has another size."""
    for name, size in sizes.items():
        try:
            same = (folder / name).stat().st_size == size
        except MISSING_ERRORS:
            same = False
        if not same:
            raise DamagedError(f"{name} is missing or has another size")


def last_part(url: str) -> str:
    return url.rpartition("/")[2]
