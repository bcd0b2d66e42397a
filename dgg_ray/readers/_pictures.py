"""Every picture's file looked at: a hash of its content, and the problem of each that does not decode.

A picture is known by its content, never by its name, size or times, which a copy may keep: each file
is read, which is cheap, and decoded only if this content never was. What is known of a content is
kept in an SQLite file under $XDG_CACHE_HOME/dgg_ray, or ~/.cache/dgg_ray. Losing that file costs time
and nothing else, so trouble with it is never raised; SQLite keeps it whole when several processes write.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dgg_ray.core import pixels

BATCH = 512  # pictures between two writes: what an interruption may cost


class Picture(NamedTuple):
    """A file's picture.

    digest: SHA-256 of the file's bytes, with the version of the rules in pixels.py where they, and not
        Pillow's conversion alone, make its pixels; problem: why it is no picture, empty where it is one.
    frames: of an animation, or pages.
    """

    digest: str = ""
    problem: str = ""
    frames: int = 1


def inspect(paths: Iterable[Path], cache: Path | None = None) -> dict[Path, Picture]:
    """What each file holds; `cache` is the SQLite file where it is not the usual one."""
    found: dict[Path, Picture] = {}
    Image.init()  # all formats, before threads ask for them
    with (
        closing(Cache(cache or cache_file())) as kept,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # reading and decoding let go of the GIL
    ):
        for batch in batches(list(dict.fromkeys(paths))):
            contents = dict(zip(batch, pool.map(content_of, batch), strict=True))
            new = []
            for path, (hash_, problem) in contents.items():
                if problem:
                    found[path] = Picture(problem=problem)
                elif picture := kept.get(hash_):
                    found[path] = picture
                else:
                    new.append(path)
            seen = dict(zip(new, pool.map(look, new), strict=True))
            found.update(seen)
            if new:
                kept.put([picture for picture in seen.values() if not picture.problem])
    return found


def content_of(path: Path) -> tuple[str, str]:
    """(SHA-256 of the file, ""), or ("", what is wrong)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            return "", "not a file"
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest(), ""
    except OSError as error:
        return "", f"not readable: {error.strerror}"


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
            plain, frames = pixels.plain(image), pixels.frames(image)
            if not plain:
                pixels.shown(image)
    except Image.UnidentifiedImageError:
        return Picture(problem="no picture format is recognised")
    except pixels.NoWhite as error:
        return Picture(problem=str(error))
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, …
        return Picture(problem=f"does not decode: {error}")
    hash_ = hashlib.sha256(content).hexdigest()
    return Picture(hash_ if plain else f"{hash_} {pixels.PIXELS}", frames=frames)


def batches(items: Sequence[Path]) -> Iterator[list[Path]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


def cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "dgg_ray" / "pictures.sqlite"


class Cache:
    """Pictures by the hash of their content; in memory only where the file cannot be used."""

    NAME = f"picture_{pixels.PIXELS}"  # what older rules made of a picture is not asked for
    TABLE = f"CREATE TABLE IF NOT EXISTS {NAME} (content TEXT PRIMARY KEY, digest TEXT, frames INT)"

    def __init__(self, file: Path) -> None:
        self.connection = self.open(file) or self.open(Path(":memory:"))

    def open(self, file: Path) -> sqlite3.Connection | None:
        connection = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=30)
            connection.execute(self.TABLE)
            connection.execute("DROP TABLE IF EXISTS picture")  # pictures by their size and time
            connection.execute(f"SELECT content, digest, frames FROM {self.NAME} LIMIT 1")
            return connection
        except (OSError, sqlite3.Error) as error:
            if connection:
                connection.close()
            if type(error) is sqlite3.DatabaseError:  # damaged, not merely locked: begin anew next time
                with suppress(OSError):
                    file.unlink()
            return None

    def get(self, content: str) -> Picture | None:
        query = f"SELECT digest, frames FROM {self.NAME} WHERE content = ?"
        try:
            row = self.connection.execute(query, (content,)).fetchone() if self.connection else None
        except sqlite3.Error:
            return None
        return Picture(row[0], frames=row[1]) if row else None

    def put(self, pictures: Iterable[Picture]) -> None:
        rows = [(picture.digest[:64], picture.digest, picture.frames) for picture in pictures]
        try:
            if self.connection:
                with self.connection:
                    self.connection.executemany(f"INSERT OR REPLACE INTO {self.NAME} VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            return

    def close(self) -> None:
        if self.connection:
            self.connection.close()
