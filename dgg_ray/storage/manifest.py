"""What is written once, whole or not at all, and noticed when it was damaged since.

    write(objects, name, place, record, fill)   files first, then one manifest, created last
    read(objects, name)                         its record; a damaged one is set aside
    opened(objects, name)                       a local folder with its files, each verified

A manifest is one object: the record, where the files lie, and their SHA-256, under a SHA-256 of its own.
Whoever sees it sees all of it, as its files were there before it. Writers have a place each, so that two of
them never mix their files; the first manifest stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgg_ray.core.errors import StoreError
from dgg_ray.storage.backend import Damaged, Folder, Objects, drafted, sha256

HEAD, MIDDLE, TAIL = b'{"sha256": "', b'", "of":\n', b"}\n"
BODY = len(HEAD) + 64 + len(MIDDLE)


def name_of(key: str, sitting: str = "") -> str:
    """A manifest's name."""
    return f"stages/{key[:2]}/{key}{sitting and '.'}{sitting}.json"


def key_of(name: str) -> str:
    """The stage's key in a manifest's name."""
    return name.rpartition("/")[2].partition(".")[0]


def seal(content: dict[str, Any]) -> bytes:
    """JSON that holds its own checksum."""
    body = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return HEAD + hashlib.sha256(body).hexdigest().encode() + MIDDLE + body + TAIL


def unseal(data: bytes) -> dict[str, Any]:
    """What was sealed; raises Damaged."""
    body = data[BODY : -len(TAIL)]
    if data[len(HEAD) : len(HEAD) + 64] != hashlib.sha256(body).hexdigest().encode():
        raise Damaged("the record is not what was written")
    return json.loads(body)


def manifest(objects: Objects, name: str, data: bytes | None) -> dict[str, Any] | None:
    """What was read under that name as a manifest, {record, files, place}; a damaged one is set aside."""
    if data is None:
        return None
    try:
        return unseal(data)
    except Damaged as error:
        set_aside(objects, name, data, f"is damaged ({error})")
        return None


def read(objects: Objects, name: str) -> dict[str, Any] | None:
    """The record, its checksum verified; None where there is none, or it was damaged."""
    found = manifest(objects, name, objects.read(name))
    return found and found["record"]


def opened(objects: Objects, name: str, shed: str) -> Path | None:
    """A local folder with the files, verified; None where there is none, or one was damaged.

    shed: the object that is there where files were removed on purpose.
    """
    data = objects.read(name, fresh=True)
    if data is None or (found := manifest(objects, name, data)) is None:
        return None
    try:
        return objects.opened(found["place"], found["files"])
    except Damaged as error:
        gone = objects.read(shed) is not None
        why = "was shed of its weights to free space" if gone else f"is damaged ({error})"
        set_aside(objects, name, data, why)
        if gone:
            objects.remove(shed)
        return None


def set_aside(objects: Objects, name: str, data: bytes, why: str) -> None:
    """Put a manifest where it stands for nothing; its files stay where it says."""
    aside = f"damaged/{Path(name).stem}-{uuid.uuid4().hex[:8]}.json"
    if objects.read(name, fresh=True) != data:
        return  # another process was first
    objects.write(aside, data)
    objects.remove(name)
    warnings.warn(f"{name} {why}; kept as {aside}, done again", stacklevel=3)


def write(
    objects: Objects, name: str, kept: str, record: dict[str, Any], fill: Callable[[Path], None] | None
) -> None:
    """`fill` writes the files into the folder it is given; `record` is kept with them, and their bytes.

    kept: where the places of all its writers are. The first of two equal publications stays.
    """
    place = f"{kept}{uuid.uuid4().hex[:12]}"
    try:
        if fill is None:
            return created(objects, name, place, record, {}, 0)
        with drafted(objects) as draft:
            fill(draft)
            files = sorted(file for file in draft.rglob("*") if file.is_file())
            sums = {file.relative_to(draft).as_posix(): sha256(file) for file in files}
            size = sum(file.stat().st_size for file in files)
            mark = f"writers/{Path(place).name}.json"
            if files:  # a writer that dies before its manifest leaves files of which only this tells
                objects.write(mark, json.dumps({"at": time.time(), "place": place, "of": name}).encode())
                objects.put(draft, place)
        created(objects, name, place, record, sums, size)
        if files:
            objects.remove(mark)
    except (OSError, StoreError) as error:
        with suppress(OSError, StoreError):
            if place.encode() not in (objects.read(name, fresh=True) or b""):
                objects.clear(place)
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write {name} in {objects.url}: {error}. Free some space or name another folder"
        ) from error


def created(
    objects: Objects, name: str, place: str, record: dict[str, Any], sums: dict[str, str], size: int
) -> None:
    """Make the manifest of files that are in their place; remove them where another writer was first."""
    data = seal({"record": record | {"bytes": size}, "files": sums, "place": place})
    for _ in range(3):
        if objects.create(name, data):
            return
        if there := manifest(objects, name, objects.read(name, fresh=True)):
            break  # else it was damaged, and set aside by this look
    else:
        raise StoreError(f"{name} in {objects.url} can be neither created nor read; run the study again")
    if sums and there["place"] != place:  # it is ours where the answer to our first try was lost
        objects.clear(place)


def remove(objects: Objects, name: str, kept: str) -> int:
    """Remove a manifest, then those of what belongs to it, then all their files; bytes freed."""
    freed = sum(objects.sizes(name[:-4]).values())
    for each in sorted(objects.names(name[:-4]), key=lambda each: each != name):
        objects.remove(each)
    return freed + objects.clear(kept)


def shed(objects: Objects, name: str, part: str, note: str) -> int:
    """Remove a folder of the files on purpose, of which the note tells; bytes freed."""
    found = manifest(objects, name, objects.read(name, fresh=True))
    if not found or not objects.sizes(f"{found['place']}/{part}/"):
        return 0
    objects.write(note, json.dumps({"part": part, "at": time.time()}).encode())
    return objects.clear(f"{found['place']}/{part}")


def sweep(objects: Objects, before: float) -> None:
    """Remove drafts, and files of writers that made no manifest, begun before that time."""
    for draft in objects.drafts():
        with suppress(OSError):
            if draft.stat().st_mtime < before:
                shutil.rmtree(draft)
    for mark in objects.names("writers/"):
        try:
            left = json.loads(objects.read(mark) or b"{}")
            if left["at"] >= before:
                continue
            found = manifest(objects, left["of"], objects.read(left["of"]))
        except (ValueError, KeyError):
            continue
        if found is None or found["place"] != left["place"]:
            objects.clear(left["place"])
        objects.remove(mark)


# -- beside a store --------------------------------------------------------------------------------


def note(file: Path, content: Any) -> None:
    """Write a small JSON file in one piece, in place of an earlier one."""
    data = json.dumps(content, indent=1, sort_keys=True).encode()
    Folder(file.parent).write(file.name, data)


def noted(file: Path) -> Any:
    """What `note` wrote; None where there is nothing that can be read."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
