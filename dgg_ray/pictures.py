"""A hash of every picture that decodes, and what is wrong with every one that does not.

A picture is read and decoded once: its hash is kept by (path, size, time of change) in an SQLite
file under $XDG_CACHE_HOME/dgg_ray, or ~/.cache/dgg_ray. Losing that file costs time and nothing
else, so trouble with it is never raised; SQLite keeps it whole when several processes write.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

BATCH = 512  # pictures between two writes: what an interruption may cost
SETTLED_S = 2.0  # a file changed this recently may change again without a new time: it is not kept

Key = tuple[str, int, int]  # path, size in bytes, time of change in ns


class Picture(NamedTuple):
    """digest: SHA-256 of the file's bytes; problem: why it is no picture, empty where it is one."""

    digest: str = ""
    problem: str = ""


def inspect(paths: Iterable[Path], cache: Path | None = None) -> dict[Path, Picture]:
    """What each file holds; `cache` is the SQLite file where it is not the usual one."""
    found: dict[Path, Picture] = {}
    unread: list[tuple[Path, Key]] = []
    with closing(Cache(cache or cache_file())) as kept:
        for path in dict.fromkeys(paths):
            try:
                about = path.stat()
            except OSError as error:
                found[path] = Picture(problem=f"not readable: {error.strerror}")
                continue
            key = (str(path), about.st_size, about.st_mtime_ns)
            if not stat.S_ISREG(about.st_mode):  # opening a pipe would wait for ever
                found[path] = Picture(problem="not a file")
            elif digest := kept.get(key):
                found[path] = Picture(digest)
            else:
                unread.append((path, key))
        Image.init()  # all formats, before threads ask for them
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and decoding let go of the GIL
            for batch in batches(unread):
                pictures = list(pool.map(look, [path for path, _ in batch]))
                found.update({path: picture for (path, _), picture in zip(batch, pictures, strict=True)})
                kept.put([(*key, p.digest) for (_, key), p in zip(batch, pictures, strict=True) if p.digest])
    return found


def look(path: Path) -> Picture:
    """Read a picture and decode all of it: a file that is cut off has a sound header."""
    try:
        content = path.read_bytes()
        if not content:
            return Picture(problem="an empty file")
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # PNG checksums
        with Image.open(io.BytesIO(content)) as image:
            image.draft(None, (1, 1))  # JPEG: all data are read, few pixels are made
            image.load()
    except Image.UnidentifiedImageError:
        return Picture(problem="no picture format is recognised")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, …
        return Picture(problem=f"does not decode: {error}")
    return Picture(hashlib.sha256(content).hexdigest())


def batches(items: Sequence[tuple[Path, Key]]) -> Iterator[list[tuple[Path, Key]]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


def cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "dgg_ray" / "pictures.sqlite"


class Cache:
    """Hashes by path, size and time of change; in memory only where the file cannot be used."""

    TABLE = "CREATE TABLE IF NOT EXISTS picture (path TEXT PRIMARY KEY, size INT, changed INT, digest TEXT)"

    def __init__(self, file: Path) -> None:
        self.connection = self.open(file) or self.open(Path(":memory:"))

    def open(self, file: Path) -> sqlite3.Connection | None:
        connection = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=30)
            connection.execute(self.TABLE)
            connection.execute("SELECT path, size, changed, digest FROM picture LIMIT 1")
            return connection
        except (OSError, sqlite3.Error) as error:
            if connection:
                connection.close()
            if type(error) is sqlite3.DatabaseError:  # damaged, not merely locked: begin anew next time
                with suppress(OSError):
                    file.unlink()
            return None

    def get(self, key: Key) -> str:
        """The hash, or empty."""
        query = "SELECT digest FROM picture WHERE path = ? AND size = ? AND changed = ?"
        try:
            row = self.connection.execute(query, key).fetchone() if self.connection else None
        except sqlite3.Error:
            return ""
        return row[0] if row else ""

    def put(self, rows: Iterable[tuple[str, int, int, str]]) -> None:
        settled = (time.time() - SETTLED_S) * 1e9
        try:
            if self.connection:
                with self.connection:
                    insert = "INSERT OR REPLACE INTO picture VALUES (?, ?, ?, ?)"
                    self.connection.executemany(insert, [row for row in rows if row[2] < settled])
        except sqlite3.Error:
            return

    def close(self) -> None:
        if self.connection:
            self.connection.close()
