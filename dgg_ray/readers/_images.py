"""Image files: a hash of each file's content, and why a file that cannot be decoded is refused.

An image is identified by its content. Its name, size and times do not identify it, as copies may keep them.
Every file is therefore read, which is cheap, but it is decoded only if its content is new. Results are cached
by content in an SQLite file in $XDG_CACHE_HOME/dgg_ray, or ~/.cache/dgg_ray. Losing that file costs time and
nothing else, so its errors are never raised. SQLite keeps it intact while several processes write.
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

from dgg_ray.core import image_conversion

BATCH = 512  # images between two writes to the cache, which an interruption may cost


class ImageInfo(NamedTuple):
    """Facts about an image file.

    digest: SHA-256 of the file's bytes. Where Pillow's conversion alone does not give the image's pixels, the
        version of the rules in image_conversion.py is appended.
    problem: why the file cannot be used; empty if it can.
    frames: number of frames of an animation, or of pages.
    """

    digest: str = ""
    problem: str = ""
    frames: int = 1


def inspect_images(paths: Iterable[Path], cache: Path | None = None) -> dict[Path, ImageInfo]:
    """Return what each file contains.

    cache: the SQLite file; None takes the usual one.
    """
    infos: dict[Path, ImageInfo] = {}
    Image.init()  # load all formats before threads need them
    with (
        closing(ImageCache(cache or cache_file())) as known,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # reading and decoding release the GIL
    ):
        for batch in batches(list(dict.fromkeys(paths))):
            hashes = dict(zip(batch, pool.map(hash_file, batch), strict=True))
            new = []
            for path, (content_hash, problem) in hashes.items():
                if problem:
                    infos[path] = ImageInfo(problem=problem)
                elif info := known.get(content_hash):
                    infos[path] = info
                else:
                    new.append(path)
            decoded = dict(zip(new, pool.map(decode_image, new), strict=True))
            infos.update(decoded)
            if new:
                known.put([info for info in decoded.values() if not info.problem])
    return infos


def hash_file(path: Path) -> tuple[str, str]:
    """Return (SHA-256 of the file, ""), or ("", why it cannot be read)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            return "", "not a file"
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest(), ""
    except OSError as error:
        return "", f"not readable: {error.strerror}"


def decode_image(path: Path) -> ImageInfo:
    """Read an image and decode all of it, as a file that is cut off has an intact header."""
    try:
        content = path.read_bytes()
        if not content:
            return ImageInfo(problem="an empty file")
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # PNG checksums
        with Image.open(io.BytesIO(content)) as image:
            image.draft(None, (1, 1))  # JPEG: all data are read, but few pixels are made
            image.load()
            plain = image_conversion.is_plain_rgb(image)
            frames = image_conversion.frame_count(image)
            if not plain:
                image_conversion.to_rgb(image)
    except Image.UnidentifiedImageError:
        return ImageInfo(problem="not a known image format")
    except image_conversion.UnknownWhiteLevelError as error:
        return ImageInfo(problem=str(error))
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, …
        return ImageInfo(problem=f"cannot be decoded: {error}")
    content_hash = hashlib.sha256(content).hexdigest()
    if plain:
        return ImageInfo(content_hash, frames=frames)
    return ImageInfo(f"{content_hash} {image_conversion.CONVERSION_VERSION}", frames=frames)


def batches(paths: Sequence[Path]) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, BATCH)):
        yield batch


def cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "dgg_ray" / "images.sqlite"


class ImageCache:
    """Images by the hash of their content; it stays in memory if the file cannot be used."""

    NAME = f"image_{image_conversion.CONVERSION_VERSION}"  # results of other rules are ignored
    TABLE = f"CREATE TABLE IF NOT EXISTS {NAME} (content TEXT PRIMARY KEY, digest TEXT, frames INT)"

    def __init__(self, file: Path) -> None:
        self.connection = self._open(file) or self._open(Path(":memory:"))

    def _open(self, file: Path) -> sqlite3.Connection | None:
        connection = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=30)
            connection.execute(self.TABLE)
            connection.execute(f"SELECT content, digest, frames FROM {self.NAME} LIMIT 1")
            return connection
        except (OSError, sqlite3.Error) as error:
            if connection:
                connection.close()
            if type(error) is sqlite3.DatabaseError:  # damaged, not merely locked: the next run starts anew
                with suppress(OSError):
                    file.unlink()
            return None

    def get(self, content_hash: str) -> ImageInfo | None:
        query = f"SELECT digest, frames FROM {self.NAME} WHERE content = ?"
        try:
            row = self.connection.execute(query, (content_hash,)).fetchone() if self.connection else None
        except sqlite3.Error:
            return None
        return ImageInfo(row[0], frames=row[1]) if row else None

    def put(self, infos: Iterable[ImageInfo]) -> None:
        rows = [(info.digest[:64], info.digest, info.frames) for info in infos]
        try:
            if self.connection:
                with self.connection:
                    self.connection.executemany(f"INSERT OR REPLACE INTO {self.NAME} VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            return

    def close(self) -> None:
        if self.connection:
            self.connection.close()
