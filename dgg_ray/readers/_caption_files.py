"""Captions from files in COCO's form, and which picture each belongs to.

    {"images": [{"id": 1, "file_name": "0007.jpg"}],
     "annotations": [{"image_id": 1, "caption": "a plum on a plate"}, …]}

Names are what a record is matched by: numbers follow the order of some other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from dgg_ray.core.wording import listing
from dgg_ray.readers._data_faults import Faults, Place
from dgg_ray.readers._records import load_json, text_of

FORM = "must hold `images` [{id, file_name}] and `annotations` [{image_id, caption}]"


@dataclass(frozen=True)
class Captions:
    """by_name: a picture's captions by its whole name; by_tail: whole names by their last part."""

    by_name: Mapping[str, tuple[str, ...]]
    by_tail: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(by_name: Mapping[str, tuple[str, ...]]) -> Captions:
        return Captions(by_name, tails(by_name))

    def find(self, name: str, pictures: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
        """(captions, "") of a picture; or (), and why they are not known where its last part is not enough.

        pictures: the whole names of all of the task's pictures, by their last part.
        """
        if captions := self.by_name.get(name):
            return captions, ""
        tail = Path(name).name
        here, there = pictures.get(tail, ()), self.by_tail.get(tail, ())
        if not there:
            return (), ""
        if len(there) == 1 and there[0] in here:  # the whole name of another picture: it belongs there
            return (), ""
        if len(here) == 1 and len(there) == 1:
            return self.by_name[there[0]], ""
        return (), f"{tail!r} for {listing([*map(repr, here)], 2)}" if len(
            here
        ) > 1 else f"{listing([*map(repr, there)], 2)} for {name!r}"


def tails(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Whole names by their last part."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(Path(name).name, []).append(name)
    return {tail: tuple(whole) for tail, whole in found.items()}


def load_captions(file: Path, faults: Faults) -> Captions:
    """All captions of the file; none after a fault."""
    place = Place("references", str(file))
    before = len(faults.kept)
    data = load_json(file, "references", faults)
    if len(faults.kept) > before:
        return Captions({}, {})
    captions: dict[str, list[str]] = {}
    try:
        names = names_by_id(data["images"], place, faults)
        for i, note in enumerate(data["annotations"]):
            spot = place.at(f"annotations[{i}]")
            if (name := names.get(note["image_id"])) is None:
                faults.add(spot.at("image_id"), "must be the id of one of `images`", repr(note["image_id"]))
                continue
            captions.setdefault(name, []).append(text_of(note["caption"], spot.at("caption"), faults))
    except (KeyError, TypeError) as error:
        faults.add(place, FORM, f"{type(error).__name__}: {error}")
        return Captions({}, {})
    if not captions and len(faults.kept) == before:
        faults.add(place, "must hold at least one caption")
    return Captions.of({name: tuple(texts) for name, texts in captions.items()})


def names_by_id(images: Any, place: Place, faults: Faults) -> dict[Any, str]:
    """Whole names by id: one for each id, and one id for each."""
    names: dict[Any, str] = {}
    ids: dict[str, Any] = {}
    for i, image in enumerate(images):
        id_, name = image["id"], normpath(Path(image["file_name"]))
        if (other := names.setdefault(id_, name)) != name:
            rule = "must be the id of one picture"
            faults.add(place.at(f"images[{i}].id"), rule, f"{id_!r} for {other!r} and {name!r}")
        elif (first := ids.setdefault(name, id_)) != id_:
            rule = "must be the name of one picture"
            faults.add(place.at(f"images[{i}].file_name"), rule, f"{name!r} for {first!r} and {id_!r}")
    return names
