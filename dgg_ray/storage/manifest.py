"""Manifests: records that are published whole or not at all, and whose damage is detected.

    publish(backend, name, files_prefix, record, fill)   store the files, then create the manifest
    read_record(backend, name)                           the record; a damaged manifest is quarantined
    open_files(backend, name, removed_mark)              a local folder with the files, each verified

A manifest is one object: the record, the folder of its files, and their SHA-256, under a SHA-256 of its own.
It is created last, so that its readers find the files complete. Every writer stores its files in a folder of
its own, so that two writers never mix theirs; of two equal publications the first manifest stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgg_ray.core.errors import StoreError
from dgg_ray.storage.backend import DamagedError, StorageBackend, sha256, temporary_draft

HEAD, MIDDLE, TAIL = b'{"sha256": "', b'", "content":\n', b"}\n"
BODY = len(HEAD) + 64 + len(MIDDLE)


def manifest_name(key: str, evaluation_id: str = "") -> str:
    """Return the name of a stage's manifest, or of one of its evaluation records'."""
    return f"stages/{key[:2]}/{key}{evaluation_id and '.'}{evaluation_id}.json"


def stage_key_of(name: str) -> str:
    """Return the stage key in a manifest's name."""
    return name.rpartition("/")[2].partition(".")[0]


def seal(content: dict[str, Any]) -> bytes:
    """Serialise the content as JSON that holds its own checksum."""
    body = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return HEAD + hashlib.sha256(body).hexdigest().encode() + MIDDLE + body + TAIL


def unseal(data: bytes) -> dict[str, Any]:
    """Return the sealed content; raise DamagedError if the checksum differs."""
    body = data[BODY : -len(TAIL)]
    if data[len(HEAD) : len(HEAD) + 64] != hashlib.sha256(body).hexdigest().encode():
        raise DamagedError("the record differs from what was written")
    return json.loads(body)


def parse_manifest(backend: StorageBackend, name: str, data: bytes | None) -> dict[str, Any] | None:
    """Return the manifest {record, files, folder}; None, after quarantining it, if it is damaged."""
    if data is None:
        return None
    try:
        return unseal(data)
    except DamagedError as error:
        quarantine(backend, name, data, f"is damaged ({error})")
        return None


def read_record(backend: StorageBackend, name: str) -> dict[str, Any] | None:
    """Return the record, its checksum verified; None if it is missing or damaged."""
    manifest = parse_manifest(backend, name, backend.read(name))
    return manifest and manifest["record"]


def open_files(backend: StorageBackend, name: str, removed_mark: str) -> Path | None:
    """Return a local folder with the manifest's files, verified; None if it is missing or a file is damaged.

    removed_mark: the object that exists if files were removed on purpose.
    """
    data = backend.read(name, fresh=True)
    if data is None or (manifest := parse_manifest(backend, name, data)) is None:
        return None
    try:
        return backend.open_folder(manifest["folder"], manifest["files"])
    except DamagedError as error:
        removed = backend.read(removed_mark) is not None
        reason = "lost its adapter, which was removed to free space" if removed else f"is damaged ({error})"
        quarantine(backend, name, data, reason)
        if removed:
            backend.remove(removed_mark)
        return None


def quarantine(backend: StorageBackend, name: str, data: bytes, reason: str) -> None:
    """Move a manifest to where it counts as none; its files stay in the folder that it names."""
    new_name = f"quarantined/{Path(name).stem}-{uuid.uuid4().hex[:8]}.json"
    if backend.read(name, fresh=True) != data:
        return  # another process was first
    backend.write(new_name, data)
    backend.remove(name)
    warnings.warn(f"{name} {reason}; it was moved to {new_name} and its stage will be repeated", stacklevel=3)


@dataclass
class Draft:
    """A publication that is under way.

    folder: of its files in the store. checksums, size: of these files.
    """

    name: str
    folder: str
    record: Mapping[str, Any]
    checksums: dict[str, str] = field(default_factory=dict)
    size: int = 0


def publish(
    backend: StorageBackend,
    name: str,
    files_prefix: str,
    record: dict[str, Any],
    fill: Callable[[Path], None] | None,
) -> None:
    """Store the files that `fill` writes into a folder, then create the manifest with the record.

    files_prefix: common to the folders of all writers of this manifest. The first of two publications stays.
    """
    draft = Draft(name, f"{files_prefix}{uuid.uuid4().hex[:12]}", record)
    try:
        if fill is None:
            return create_manifest(backend, draft)
        with temporary_draft(backend) as local:
            fill(local)
            files = sorted(file for file in local.rglob("*") if file.is_file())
            draft.checksums = {file.relative_to(local).as_posix(): sha256(file) for file in files}
            draft.size = sum(file.stat().st_size for file in files)
            mark = f"unfinished/{Path(draft.folder).name}.json"
            if files:  # the mark is all that points to the files of a writer that dies before its manifest
                began = {"at": time.time(), "folder": draft.folder, "manifest": name}
                backend.write(mark, json.dumps(began).encode())
                backend.put_folder(local, draft.folder)
        create_manifest(backend, draft)
        if files:
            backend.remove(mark)
    except (OSError, StoreError) as error:
        with suppress(OSError, StoreError):
            if draft.folder.encode() not in (backend.read(name, fresh=True) or b""):
                backend.remove_folder(draft.folder)
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write {name} in {backend.url}: {error}. Free some space or name another folder"
        ) from error


def create_manifest(backend: StorageBackend, draft: Draft) -> None:
    """Create the manifest of stored files; remove the files if another writer's manifest is there already."""
    content = {
        "record": {**draft.record, "bytes": draft.size},
        "files": draft.checksums,
        "folder": draft.folder,
    }
    data = seal(content)
    for _ in range(3):
        if backend.create(draft.name, data):
            return
        # A damaged manifest is quarantined by this look: then creation is tried again.
        if existing := parse_manifest(backend, draft.name, backend.read(draft.name, fresh=True)):
            break
    else:
        raise StoreError(
            f"{draft.name} in {backend.url} can be neither created nor read; run the study again"
        )
    # The existing manifest is ours if the answer to our first try was lost.
    if draft.checksums and existing["folder"] != draft.folder:
        backend.remove_folder(draft.folder)


def remove_manifests(backend: StorageBackend, name: str, files_folder: str) -> int:
    """Remove a stage's manifest, then its evaluation records', then all files; return the bytes freed."""
    prefix = name.removesuffix("json")
    freed = sum(backend.sizes(prefix).values())
    for manifest in sorted(backend.list_names(prefix), key=lambda other: other != name):
        backend.remove(manifest)
    return freed + backend.remove_folder(files_folder)


def remove_part(backend: StorageBackend, name: str, part: str, removed_mark: str) -> int:
    """Remove one folder of a manifest's files on purpose, and mark that; return the bytes freed."""
    manifest = parse_manifest(backend, name, backend.read(name, fresh=True))
    if not manifest or not backend.sizes(f"{manifest['folder']}/{part}/"):
        return 0
    backend.write(removed_mark, json.dumps({"part": part, "at": time.time()}).encode())
    return backend.remove_folder(f"{manifest['folder']}/{part}")


def sweep(backend: StorageBackend, before: float) -> None:
    """Remove drafts, and files of writers that created no manifest, if they began before that time."""
    for draft in backend.list_drafts():
        with suppress(OSError):
            if draft.stat().st_mtime < before:
                shutil.rmtree(draft)
    for mark in backend.list_names("unfinished/"):
        try:
            writer = json.loads(backend.read(mark) or b"{}")
            if writer["at"] >= before:
                continue
            manifest = parse_manifest(backend, writer["manifest"], backend.read(writer["manifest"]))
        except (ValueError, KeyError):
            continue
        if manifest is None or manifest["folder"] != writer["folder"]:
            backend.remove_folder(writer["folder"])
        backend.remove(mark)
