"""Stores that older versions made: a folder for each stage, read as what is written today.

    ab/abcdef…/record.json manifest.json adapter/…          →  stages/ab/abcdef….json
    ab/abcdef…/exams/0123…/record.json manifest.json …      →  stages/ab/abcdef….0123….json

The manifests were SHA-256 by file; the translation is sealed only where the record's is right. Nothing is
moved, and nothing is written in the old way.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from dgg_ray.storage.backend import Folder, weight
from dgg_ray.storage.manifest import seal

NAME = re.compile(r"stages/(..)/([0-9a-f]+)(?:\.([0-9a-f]+))?\.json")


class OlderFolder(Folder):
    """A folder in which some stages may lie in the old way."""

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        if (data := super().read(name)) is not None or (old := self._old(name)) is None:
            return data
        try:
            record = (self.root / old / "record.json").read_bytes()
            sums = json.loads((self.root / old / "manifest.json").read_bytes())
            if hashlib.sha256(record).hexdigest() != sums.pop("record.json"):
                return b"record.json is not what was written"  # unsealed, so it is set aside
            return seal({"record": json.loads(record), "files": sums, "place": old})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, AttributeError):
            return b"manifest.json is not what was written"

    def names(self, prefix: str) -> list[str]:
        found = set(super().names(prefix))
        if prefix.startswith("stages/"):
            ab, key = prefix[7:9] or "??", prefix[10:].partition(".")[0]
            for pattern in (f"{ab}/{key}*/manifest.json", f"{ab}/{key}*/exams/*/manifest.json"):
                for file in self.root.glob(pattern):
                    _, key_, *exam = (p for p in file.parent.relative_to(self.root).parts if p != "exams")
                    found.add(f"stages/{key_[:2]}/{'.'.join((key_, *exam))}.json")
        return sorted(name for name in found if name.startswith(prefix))

    def modified(self, name: str) -> float | None:
        if (at := super().modified(name)) is None and (old := self._old(name)):
            at = super().modified(f"{old}/manifest.json")
        return at

    def remove(self, name: str) -> None:
        super().remove(name)
        if old := self._old(name):
            super().remove(f"{old}/manifest.json")

    def clear(self, place: str) -> int:
        freed, (kind, _, key) = super().clear(place), place.partition("/")
        old = self.root / key[:2] / key
        if kind == "files" and "/" not in key and old.is_dir():
            freed += weight(old)
            shutil.rmtree(old, ignore_errors=True)
        return freed

    def _old(self, name: str) -> str | None:
        found = NAME.fullmatch(name)
        if found is None:
            return None
        ab, key, exam = found.groups()
        return f"{ab}/{key}/exams/{exam}" if exam else f"{ab}/{key}"


def folder(root: Path) -> Folder:
    """The folder's objects; looks for old stages only where there are any now."""
    return OlderFolder(root) if any(root.glob("[0-9a-f][0-9a-f]")) else Folder(root)
