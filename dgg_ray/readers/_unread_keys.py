"""Keys of a record that the reader does not read: which may pass, which are told, and which are faults.

    a picture or another medium (`image_path`, `images`, `video`, …)   a fault, unless it is the record's
                                                                       own picture once more
    a key misspelt (`choises`)                                         a fault with the right one
    what a model should have been told (`system`, `tools`)             a fault
    numbers and known metadata (`width`, `source`, `question_type`)    pass
    all else (`hint`, `options`)                                       told, with the number of records

Told from names and values alone: no list of names is ever whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from dgg_ray.readers._data_faults import Faults, Place


def words_of(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
PICTURE = words_of("image images img imgs picture pictures pic pics photo photos pixel pixels media")
MEDIA = PICTURE | words_of(
    "frame frames video videos clip clips audio audios sound sounds speech depth cloud clouds pointcloud pcd"
)
# What may follow a medium's name and leave it one: `image_path`, `video_file_2`.
WHERE = words_of(
    "path paths file files filename filenames filepath name names url urls uri link bytes base64 b64 base",
    "data list value values raw content",
)
METADATA = words_of(
    "id ids uid uuid qid type types kind category categories class source sources origin dataset split",
    "subset task topic subject domain skill grade difficulty level language lang license licence author",
    "copyright date year time timestamp created version width height size sizes shape area bbox bboxes",
    "box boxes metadata meta info tag tags hash md5 sha1 sha256 checksum index idx number num count",
    "counts length score scores confidence rating quality",
)
UNTOLD = frozenset(("system", "tools", "functions"))  # words whose values a model should have been told
OTHERS = {  # other data sets' words for our keys
    **dict.fromkeys(("question", "questions", "query", "prompt", "instruction", "input"), "text"),
    **dict.fromkeys(("label", "output", "response", "target", "truth", "gt", "solution"), "answer"),
    **dict.fromkeys(("answers", "captions", "caption"), "references"),
    **dict.fromkeys(("options", "option", "choice", "candidates"), "choices"),
}
OPTIONAL = ("references", "choices")  # what a record that is otherwise whole may lack by mistake
WEIGHS = frozenset(("weight", "weights", "loss", "train", "mask"))  # numbers that say what is learned
SHOWN = r"\.(png|jpe?g|jp2|webp|bmp|gif|tiff?|heic|avif|ppm)"
OTHER = r"\.(mp4|avi|mov|mkv|webm|wav|mp3|flac|ogg|ply|pcd|npy)"
FILE = re.compile(
    rf"(data:(image|video|audio)/.*|.*({SHOWN}|{OTHER})(\?.*)?)",
    re.IGNORECASE | re.DOTALL,
)
ENDING = re.compile(rf"{SHOWN}$", re.IGNORECASE)
HOST = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)


class Odd(NamedTuple):
    """A key that is not read, and what its name says of it.

    picture: it may hold one. medium: it holds a picture or another medium. beside: a file in it is a further
    one (`image_b`). untold: a model should have been told. passes: it is metadata. weighs: its numbers say
    what is learned. near: the key that it misspells. other: our word for it.
    """

    key: str
    picture: bool
    medium: bool
    beside: bool
    untold: bool
    passes: bool
    weighs: bool
    near: str
    other: str


def check(
    fields: Mapping[str, Any], keys: tuple[str, ...], image: Any, place: Place, faults: Faults
) -> set[str]:
    """Note or fault what is not read; the keys that should have been there in place of those at fault.

    keys: those that are read. image: the record's picture, as it is written there.
    """
    meant: set[str] = set()
    pictured = not empty(image)
    for odd in odd_keys(tuple(fields), keys):
        value = fields[odd.key]
        another = looks_like_file(value) and not same(value, image)
        if empty(value) or (odd.passes and pictured and not (another and is_here(value))):
            continue
        if odd.untold:
            rule = "is not shown to a model: write it into the question, or leave it out"
            faults.add(place.at(odd.key), rule, describe_value(value))
        elif carries(odd, value, image):
            near = odd.near or ("image" if odd.picture and "image" in keys else "")
            rule = "no such key" if near else "cannot be shown to a model; one picture for each record can"
            faults.add(place.at(odd.key), rule, describe_value(value), lambda near=near: near)
            meant.add("image")
        elif odd.near:
            faults.add(place.at(odd.key), "no such key", describe_value(value), lambda near=odd.near: near)
            meant.add(odd.near)
        elif another or (not (odd.passes or same(value, image)) and (odd.weighs or not is_number(value))):
            hint = f"; did you mean `{odd.other}`?" if odd.other else ""
            faults.note(place, "keys that are not read", f"`{odd.key}`{hint}")
    return meant


@lru_cache(maxsize=4096)
def odd_keys(found: tuple[str, ...], keys: tuple[str, ...]) -> tuple[Odd, ...]:
    """Findings on keys that are not read, by their names; records of one file have few patterns."""
    absent = [key for key in keys if key not in found]
    return tuple(odd_key(key, keys, absent) for key in found if key not in keys)


def odd_key(key: str, keys: tuple[str, ...], absent: list[str]) -> Odd:
    words = [word.lower() for word in WORD.findall(key)]
    while words and (words[-1] in WHERE or words[-1].isdigit()) and set(words[:-1]) & MEDIA:
        words.pop()
    last = words[-1] if words else ""
    plain = re.sub(r"\W", "", key).lower()
    near = plain if plain in keys else ""
    metadata = last in METADATA
    if not (near or metadata or last in MEDIA or plain in OTHERS):
        near = next(iter(difflib.get_close_matches(plain, absent, n=1, cutoff=0.85)), "")
    other = next((name for word in words if (name := OTHERS.get(word)) in OPTIONAL and name in absent), "")
    untold, weighs = bool(set(words) & UNTOLD), bool(set(words) & WEIGHS)
    picture, medium = last in PICTURE or last not in MEDIA, last in MEDIA
    beside = bool(set(words) & MEDIA) and not metadata
    return Odd(key, picture, medium, beside, untold, metadata, weighs, near, other)


def carries(odd: Odd, value: Any, image: Any) -> bool:
    """Whether a key holds a picture or another medium beyond the record's own picture."""
    if is_number(value) or same(value, image):
        return False
    if empty(image):
        return odd.medium or looks_like_file(value)
    return is_here(value) and (odd.medium or (odd.beside and looks_like_file(value)))


def is_here(value: Any) -> bool:
    """Whether it is no address, which says where the picture came from."""
    return not (isinstance(value, str) and "://" in value)


def is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def looks_like_file(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(looks_like_file, value))
    if isinstance(value, Mapping):
        return "bytes" in value or looks_like_file(value.get("path"))
    return isinstance(value, str) and FILE.fullmatch(value.strip()) is not None


def same(value: Any, image: Any) -> bool:
    """Whether a value names the record's picture once more: by a longer or shorter path, another address
    or another picture's ending. `B/1.png` is not `A/1.png`, and `1.mp4` is not `1.png`."""
    one, other = single(value), single(image)
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    a, b = steps(one), steps(other)
    n = min(len(a), len(b))
    return n > 0 and a[-n:] == b[-n:]


def steps(name: str) -> tuple[str, ...]:
    """The folders and the file of a path or an address, without host, query and a picture's ending."""
    path = PurePosixPath("/", HOST.sub("", name.strip(), count=1).partition("?")[0].replace("\\", "/"))
    return tuple(ENDING.sub("", str(path)).split("/")[1:])


def single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def empty(value: Any) -> bool:
    """null, "", [], {} and lists of these: a table with columns for all its records leaves them so."""
    if isinstance(value, list):
        return all(map(empty, value))
    return value is None or value == {} or (isinstance(value, str) and not value.strip())


def describe_value(value: Any) -> str:
    return repr(value) if isinstance(value, str | list) else "a mapping" if isinstance(value, Mapping) else ""
