"""A folder that is written once, whole or not at all, and noticed when it was damaged since.

    write(root, place, record, fill)   draft → fsync → rename: a reader sees all of it or nothing
    read(root, place)                  its record, checksums verified; damaged ones are set aside

`root` holds what is in between: `drafts/`, and `damaged/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgg_ray.errors import StoreError


def read(root: Path, place: Path, everything: bool = False, again: bool = True) -> dict[str, Any] | None:
    """The folder's record, with the checksum of the record, or of every file, verified."""
    try:
        manifest = json.loads((place / "manifest.json").read_bytes())
        for name in manifest if everything else ("record.json",):
            if hashlib.sha256((place / name).read_bytes()).hexdigest() != manifest[name]:
                raise ValueError(f"{name} is not what was written")
        return json.loads((place / "record.json").read_bytes())
    except FileNotFoundError as error:
        if not place.exists():
            return None
        if again:  # it may have been published between the two looks
            return read(root, place, everything, again=False)
        reason = f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
    set_aside(root, place, reason)
    return None


def set_aside(root: Path, place: Path, reason: str) -> None:
    aside = root / "damaged" / f"{place.name}-{uuid.uuid4().hex[:8]}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.rename(aside)
    except FileNotFoundError:
        return  # another process was first
    warnings.warn(f"{place} is damaged ({reason}); kept as {aside}, done again", stacklevel=3)


def write(root: Path, place: Path, record: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """`fill` writes the files into the folder it is given; `record` is kept beside them, with their bytes.

    The first of two equal publications stays.
    """
    draft = root / "drafts" / uuid.uuid4().hex
    try:
        draft.mkdir(parents=True)
        fill(draft)
        whole = json.dumps(record | {"bytes": weight(draft)}, indent=1, sort_keys=True, allow_nan=False)
        (draft / "record.json").write_text(whole)
        files = sorted(f for f in draft.rglob("*") if f.is_file())
        sums = {str(f.relative_to(draft)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
        (draft / "manifest.json").write_text(json.dumps(sums, indent=1))
        for file in (*files, draft / "manifest.json", *{f.parent for f in files}):
            fsync(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(place)
        except OSError:
            if not place.exists():
                raise
            if read(root, place) is None:  # damaged, and set aside by this look
                draft.rename(place)
        fsync(place.parent)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error}. Free some space or name another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def note(file: Path, content: Any) -> None:
    """Write a small JSON file in one piece, in place of an earlier one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    draft.write_text(json.dumps(content, indent=1, sort_keys=True))
    draft.replace(file)


def noted(file: Path) -> Any:
    """What `note` wrote; None where there is nothing that can be read."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def weight(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def fsync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
