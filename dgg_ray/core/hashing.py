"""Hashes of JSON values: 64 hex digits that say what something is, however it was written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# `json.dumps` would make one for every key.
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(content: Any) -> str:
    """SHA-256 of a JSON value in canonical form, 64 hex digits; 1 and 1.0 are one number."""
    return hashlib.sha256(CANONICAL.encode(canonical(content)).encode()).hexdigest()


def canonical(content: Any) -> Any:
    """The value with whole floats as integers, so that a setting's spelling does not matter."""
    if isinstance(content, float):
        return int(content) if content.is_integer() else content
    if content is None or isinstance(content, str | int | Canonical):  # before what is slow to tell
        return content
    if isinstance(content, list | tuple):
        return [canonical(value) for value in content]
    if isinstance(content, Mapping):
        return {key: canonical(value) for key, value in content.items()}
    return content


class Canonical(dict[str, Any]):
    """What `canonical` gave, kept: it is not looked through again."""
