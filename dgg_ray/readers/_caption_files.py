"""Caption files in COCO's form, and which image each caption belongs to.

    {"images": [{"id": 1, "file_name": "0007.jpg"}],
     "annotations": [{"image_id": 1, "caption": "a plum on a plate"}, …]}

Records are matched by image name, because the ids number the images of some other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from dgg_ray.core.phrases import join_names
from dgg_ray.readers._data_files import Faults, Location, load_json, text_of

FORM = "must contain `images` [{id, file_name}] and `annotations` [{image_id, caption}]"


@dataclass(frozen=True)
class CaptionFile:
    """The captions of a file.

    by_path: each image's captions by its path. paths_by_name: the paths by file name.
    """

    by_path: Mapping[str, tuple[str, ...]]
    paths_by_name: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(by_path: Mapping[str, tuple[str, ...]]) -> CaptionFile:
        return CaptionFile(by_path, group_by_file_name(by_path))

    def find(self, path: str, task_images: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
        """Return (captions, "") of an image, or (), and why its file name is ambiguous (else "").

        task_images: the paths of all of the task's images, by file name.
        """
        if captions := self.by_path.get(path):
            return captions, ""
        name = Path(path).name
        in_task, in_file = task_images.get(name, ()), self.paths_by_name.get(name, ())
        if not in_file:
            return (), ""
        if len(in_file) == 1 and in_file[0] in in_task:  # the caption belongs to another image of the task
            return (), ""
        if len(in_task) == 1 and len(in_file) == 1:
            return self.by_path[in_file[0]], ""
        if len(in_task) > 1:
            return (), f"{name!r} for {join_names([*map(repr, in_task)], 2)}"
        return (), f"{join_names([*map(repr, in_file)], 2)} for {path!r}"


def group_by_file_name(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(Path(path).name, []).append(path)
    return {name: tuple(group) for name, group in groups.items()}


def load_captions(file: Path, faults: Faults) -> CaptionFile:
    """Return all captions of the file; none after a fault."""
    location = Location("references", str(file))
    before = len(faults.shown)
    data = load_json(file, "references", faults)
    if len(faults.shown) > before:
        return CaptionFile({}, {})
    captions: dict[str, list[str]] = {}
    try:
        paths = paths_by_id(data["images"], location, faults)
        for i, annotation in enumerate(data["annotations"]):
            entry = location.key(f"annotations[{i}]")
            if (path := paths.get(annotation["image_id"])) is None:
                rule = "must be the id of one of `images`"
                faults.add(entry.key("image_id"), rule, repr(annotation["image_id"]))
                continue
            caption = text_of(annotation["caption"], entry.key("caption"), faults)
            captions.setdefault(path, []).append(caption)
    except (KeyError, TypeError) as error:
        faults.add(location, FORM, f"{type(error).__name__}: {error}")
        return CaptionFile({}, {})
    if not captions and len(faults.shown) == before:
        faults.add(location, "must contain at least one caption")
    return CaptionFile.of({path: tuple(texts) for path, texts in captions.items()})


def paths_by_id(images: Any, location: Location, faults: Faults) -> dict[Any, str]:
    """Map ids to paths; an id of two paths, or a path of two ids, is a fault."""
    paths: dict[Any, str] = {}
    ids: dict[str, Any] = {}
    for i, image in enumerate(images):
        id_, path = image["id"], normpath(Path(image["file_name"]))
        entry = location.key(f"images[{i}]")
        if (other := paths.setdefault(id_, path)) != path:
            faults.add(entry.key("id"), "must be the id of one image", f"{id_!r} for {other!r} and {path!r}")
        elif (first := ids.setdefault(path, id_)) != id_:
            rule = "must be the name of one image"
            faults.add(entry.key("file_name"), rule, f"{path!r} for {first!r} and {id_!r}")
    return paths
