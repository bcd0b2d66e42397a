"""The text of a data file: UTF-8, also packed by gzip; any other encoding or format is called by its name."""

from __future__ import annotations

import codecs
import gzip
import os
import zlib
from pathlib import Path

from dgg_ray.core.errors import Refused
from dgg_ray.readers._data_faults import Faults, Place, near_file
from dgg_ray.storage import fetching

WIDE = {  # the longer marks first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"BZh": "a bzip2 file",
    b"\x80\x04": "a pickle",
    b"SQLite format 3": "an SQLite file",
}
GZIP = b"\x1f\x8b"


def fetch_to_this_machine(place: Path, setting: str, faults: Faults) -> Path | None:
    """Fetch what lies at a URL, and give its place on this machine; None after a fault."""
    try:
        return fetching.staged(place)
    except Refused as error:
        faults.add(Place(setting), f"must be there, and readable from here: {error}")
        return None


def load_text(path: Path, setting: str, faults: Faults) -> str | None:
    """The file's text, with or without a byte order mark, lines ended by \\n; None after a fault."""
    place = Place(setting, str(path))
    if not os.path.exists(path):  # Path.exists raises for names that are too long
        faults.add(Place(setting), "must be a file that exists", gone(path), lambda: near_file(path))
        return None
    if not path.is_file():
        faults.add(Place(setting), "must be a file", str(path))
        return None
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        faults.add(place, "must be readable", getattr(error, "strerror", None) or str(error))
        return None
    if name := alien(content):
        faults.add(place, "must be UTF-8 text", name)
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        faults.add(place._replace(line=line), "must be UTF-8 text", odd_byte(content, error.start))
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def alien(content: bytes) -> str:
    """The file's format where its first bytes show that it is no UTF-8; else empty."""
    wide = next((name for mark, name in WIDE.items() if content.startswith(mark)), "")
    if not wide and b"\0" in content[:4]:  # every second byte, or three of four, in JSON without a mark
        wide = "UTF-16" if content[:4].count(0) == 2 and content[:2].count(0) == 1 else "UTF-32"
    if wide:
        return f"{wide}; convert it: iconv -f {wide} -t UTF-8"
    return next((name for mark, name in FORMATS.items() if content.startswith(mark)), "")


def odd_byte(content: bytes, at: int) -> str:
    """The byte that is no UTF-8, and what it is in the encoding that it probably is from."""
    try:
        character = content[at : at + 1].decode("cp1252")
    except UnicodeDecodeError:
        return f"byte {content[at]:#04x}"
    return f"byte {content[at]:#04x}, which is {character!r} in Latin-1 and Windows-1252"


def gone(path: Path) -> str:
    """A name under which nothing is, and, for a link, where it leads."""
    try:
        return f"{path.name}, a broken link to {os.readlink(path)}" if path.is_symlink() else str(path)
    except (OSError, ValueError):
        return str(path)
