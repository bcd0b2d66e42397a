"""Keys of a record that the reader does not read: which are accepted, which are noted, and which are faults.

    an image or another medium (`image_path`, `images`, `video`, …)    a fault, unless it names the record's
                                                                       own image again
    a misspelt key (`choises`)                                         a fault that names the right key
    content that a model should be shown (`system`, `tools`)           a fault
    numbers and known metadata (`width`, `source`, `question_type`)    accepted
    everything else (`hint`, `options`)                                noted, with the number of records

The decision is made from names and values alone, as no list of names is ever complete.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from dgg_ray.readers._data_files import Faults, Location


def word_set(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
IMAGE_WORDS = word_set("image images img imgs picture pictures pic pics photo photos pixel pixels media")
MEDIA_WORDS = IMAGE_WORDS | word_set(
    "frame frames video videos clip clips audio audios sound sounds speech depth cloud clouds pointcloud pcd"
)
# These may follow a medium's name, which then still names the medium: `image_path`, `video_file_2`.
SUFFIX_WORDS = word_set(
    "path paths file files filename filenames filepath name names url urls uri link bytes base64 b64 base",
    "data list value values raw content",
)
METADATA_WORDS = word_set(
    "id ids uid uuid qid type types kind category categories class source sources origin dataset split",
    "subset task topic subject domain skill grade difficulty level language lang license licence author",
    "copyright date year time timestamp created version width height size sizes shape area bbox bboxes",
    "box boxes metadata meta info tag tags hash md5 sha1 sha256 checksum index idx number num count",
    "counts length score scores confidence rating quality",
)
INSTRUCTION_WORDS = frozenset(("system", "tools", "functions"))  # a model should be shown these values
SYNONYMS = {  # other data sets' words for our keys
    **dict.fromkeys(("question", "questions", "query", "prompt", "instruction", "input"), "text"),
    **dict.fromkeys(("label", "output", "response", "target", "truth", "gt", "solution"), "answer"),
    **dict.fromkeys(("answers", "captions", "caption"), "references"),
    **dict.fromkeys(("options", "option", "choice", "candidates"), "choices"),
}
OPTIONAL_KEYS = ("references", "choices")  # a record that is complete otherwise may lack these by mistake
LOSS_WORDS = frozenset(("weight", "weights", "loss", "train", "mask"))  # their numbers say what is trained
IMAGE_SUFFIX = r"\.(png|jpe?g|jp2|webp|bmp|gif|tiff?|heic|avif|ppm)"
OTHER_SUFFIX = r"\.(mp4|avi|mov|mkv|webm|wav|mp3|flac|ogg|ply|pcd|npy)"
MEDIA_FILE = re.compile(
    rf"(data:(image|video|audio)/.*|.*({IMAGE_SUFFIX}|{OTHER_SUFFIX})(\?.*)?)",
    re.IGNORECASE | re.DOTALL,
)
IMAGE_SUFFIX_AT_END = re.compile(rf"{IMAGE_SUFFIX}$", re.IGNORECASE)
URL_HOST = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)


class UnreadKey(NamedTuple):
    """A key that is not read, and what its name suggests.

    may_hold_image: its value may be an image.
    is_medium: it names an image or another medium.
    mentions_medium: a file under it is a further image (`image_b`).
    is_instruction: a model should be shown its value.
    is_metadata: it may be ignored.
    is_loss_weight: its numbers say what is trained.
    misspells: the key that was probably meant; empty if none is close.
    synonym_of: our optional key of that meaning; empty if there is none.
    """

    key: str
    may_hold_image: bool
    is_medium: bool
    mentions_medium: bool
    is_instruction: bool
    is_metadata: bool
    is_loss_weight: bool
    misspells: str
    synonym_of: str


def check_unread_keys(
    fields: Mapping[str, Any], keys: tuple[str, ...], image: Any, location: Location, faults: Faults
) -> set[str]:
    """Add faults and notes for the keys that are not read; return the keys that faulty ones stand for.

    keys: those that are read. image: the record's image, as it is written there.
    """
    meant_keys: set[str] = set()
    for unread in classify_keys(tuple(fields), keys):
        value = fields[unread.key]
        if is_empty(value) or is_harmless_metadata(unread, value, image):
            continue
        location_of_key, found = location.key(unread.key), describe_value(value)
        if unread.is_instruction:
            rule = "is not shown to a model: write it into the question, or leave it out"
            faults.add(location_of_key, rule, found)
        elif holds_another_medium(unread, value, image):
            meant = unread.misspells or ("image" if unread.may_hold_image and "image" in keys else "")
            rule = "no such key" if meant else "cannot be shown to a model; only one image per record can"
            faults.add(location_of_key, rule, found, lambda name=meant: name)
            meant_keys.add("image")
        elif unread.misspells:
            faults.add(location_of_key, "no such key", found, lambda name=unread.misspells: name)
            meant_keys.add(unread.misspells)
        elif is_worth_a_note(unread, value, image):
            hint = f"; did you mean `{unread.synonym_of}`?" if unread.synonym_of else ""
            faults.add_note(location, "ignored keys", f"`{unread.key}`{hint}")
    return meant_keys


def is_harmless_metadata(unread: UnreadKey, value: Any, image: Any) -> bool:
    """Tell whether it is metadata of a record with an image, and not the local file of another one."""
    if not unread.is_metadata or is_empty(image):
        return False
    return not (names_another_file(value, image) and not is_remote(value))


def is_worth_a_note(unread: UnreadKey, value: Any, image: Any) -> bool:
    if names_another_file(value, image):
        return True
    if unread.is_metadata or names_same_image(value, image):
        return False
    return unread.is_loss_weight or not is_number(value)


@lru_cache(maxsize=4096)  # the records of a file have few patterns of keys
def classify_keys(found_keys: tuple[str, ...], keys: tuple[str, ...]) -> tuple[UnreadKey, ...]:
    """Classify the keys that are not read by their names."""
    absent = [key for key in keys if key not in found_keys]
    return tuple(classify_key(key, keys, absent) for key in found_keys if key not in keys)


def classify_key(key: str, keys: tuple[str, ...], absent: list[str]) -> UnreadKey:
    words = [word.lower() for word in WORD.findall(key)]
    while words and (words[-1] in SUFFIX_WORDS or words[-1].isdigit()) and set(words[:-1]) & MEDIA_WORDS:
        words.pop()
    last = words[-1] if words else ""
    plain = re.sub(r"\W", "", key).lower()
    misspells = plain if plain in keys else ""
    is_metadata = last in METADATA_WORDS
    if not (misspells or is_metadata or last in MEDIA_WORDS or plain in SYNONYMS):
        misspells = next(iter(difflib.get_close_matches(plain, absent, n=1, cutoff=0.85)), "")
    synonyms = (SYNONYMS.get(word) for word in words)
    return UnreadKey(
        key=key,
        may_hold_image=last in IMAGE_WORDS or last not in MEDIA_WORDS,
        is_medium=last in MEDIA_WORDS,
        mentions_medium=bool(set(words) & MEDIA_WORDS) and not is_metadata,
        is_instruction=bool(set(words) & INSTRUCTION_WORDS),
        is_metadata=is_metadata,
        is_loss_weight=bool(set(words) & LOSS_WORDS),
        misspells=misspells,
        synonym_of=next((name for name in synonyms if name in OPTIONAL_KEYS and name in absent), ""),
    )


def holds_another_medium(unread: UnreadKey, value: Any, image: Any) -> bool:
    """Tell whether the value is an image or another medium beyond the record's own image."""
    if is_number(value) or names_same_image(value, image):
        return False
    if is_empty(image):
        return unread.is_medium or looks_like_file(value)
    return not is_remote(value) and (unread.is_medium or (unread.mentions_medium and looks_like_file(value)))


def names_another_file(value: Any, image: Any) -> bool:
    return looks_like_file(value) and not names_same_image(value, image)


def is_remote(value: Any) -> bool:
    """Tell whether it is a web address, which says where an image came from."""
    return isinstance(value, str) and "://" in value


def is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def looks_like_file(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(looks_like_file, value))
    if isinstance(value, Mapping):
        return "bytes" in value or looks_like_file(value.get("path"))
    return isinstance(value, str) and MEDIA_FILE.fullmatch(value.strip()) is not None


def names_same_image(value: Any, image: Any) -> bool:
    """Tell whether a value names the record's image again.

    It may do so by a longer or shorter path, another address or another image suffix. `B/1.png` is not
    `A/1.png`, and `1.mp4` is not `1.png`.
    """
    name, image_name = unwrap(value), unwrap(image)
    if not (isinstance(name, str) and isinstance(image_name, str)):
        return False
    parts, image_parts = path_parts(name), path_parts(image_name)
    common = min(len(parts), len(image_parts))
    return common > 0 and parts[-common:] == image_parts[-common:]


def path_parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file of a path or an address, without host, query and image suffix."""
    path = PurePosixPath("/", URL_HOST.sub("", name.strip(), count=1).partition("?")[0].replace("\\", "/"))
    return tuple(IMAGE_SUFFIX_AT_END.sub("", str(path)).split("/")[1:])


def unwrap(value: Any) -> Any:
    """Return the item of a list of one item; any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def is_empty(value: Any) -> bool:
    """Tell whether it is null, "", [], {} or a list of these, as tables with fixed columns contain them."""
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or value == {} or (isinstance(value, str) and not value.strip())


def describe_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return repr(value) if isinstance(value, str | list) else ""
