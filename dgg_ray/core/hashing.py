"""Digests of JSON values that do not depend on how a value was written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# One encoder for all keys; `json.dumps` would create one on each call.
ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(content: Any) -> str:
    """Return SHA-256 of a JSON value in canonical form, 64 hex digits; 1 and 1.0 are one number."""
    return hashlib.sha256(ENCODER.encode(canonical(content)).encode()).hexdigest()


def canonical(content: Any) -> Any:
    """Return the value with whole floats as integers, so that 1 and 1.0 give one digest."""
    if isinstance(content, float):
        return int(content) if content.is_integer() else content
    if content is None or isinstance(content, str | int | Canonical):  # the quick checks come first
        return content
    if isinstance(content, list | tuple):
        return [canonical(value) for value in content]
    if isinstance(content, Mapping):
        return {key: canonical(value) for key, value in content.items()}
    return content


class Canonical(dict[str, Any]):
    """A result of `canonical`; `canonical` returns it as it is."""
