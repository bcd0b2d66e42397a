"""Small JSON files that are replaced whole."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any


def write_json(file: Path, content: Any) -> None:
    """Write a small JSON file, replacing an earlier one; a reader sees either one whole."""
    replace_file(file, json.dumps(content, indent=1).encode())


def read_json(file: Path) -> Any:
    """Return the file's content; None if it is missing or cannot be parsed."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def replace_file(file: Path, data: bytes) -> None:
    """Write a file by renaming a draft, so that a reader sees the old or the new content whole."""
    draft = file.with_name(f".{uuid.uuid4().hex}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.write_bytes(data)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
