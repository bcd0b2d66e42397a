"""Thumbnails as data URIs, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from dgg_ray.core.image_conversion import to_rgb

SIDE = 160  # pixels of the longer side, at most
ENLARGE_UP_TO = 64  # pixels of the longer side: smaller pictures are enlarged without smoothing


def thumbnail(picture: Path | np.ndarray) -> tuple[str, int]:
    """Return the data URI of a small copy of a picture, and its width on the page in CSS pixels.

    picture, errors: see `small_copy`.
    """
    data, mime_type, (width, height) = small_copy(picture, SIDE)
    if max(width, height) <= ENLARGE_UP_TO:
        width *= SIDE // max(width, height)
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}", width


def small_copy(picture: Path | np.ndarray, side: int) -> tuple[bytes, str, tuple[int, int]]:
    """Return a copy of a picture that browsers show, its media type, and its width and height.

    It is a PNG for a picture of at most ENLARGE_UP_TO pixels, else a JPEG.

    picture: a file, converted as for the model (`image_conversion.to_rgb`), or pixels (H, W, 3) in uint8.
    side: pixels of the copy's longer side, at most.
    Raises OSError for a file that is not a picture, and what `to_rgb` raises.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture)
    else:
        with Image.open(picture) as file:
            file.draft("RGB", (2 * side, 2 * side))  # so that a JPEG is not decoded at its full size
            image = to_rgb(file)
    is_small = max(image.size) <= ENLARGE_UP_TO
    image.thumbnail((side, side))
    data = io.BytesIO()
    if is_small:
        image.save(data, "PNG", optimize=True)
    else:
        image.save(data, "JPEG", quality=80)
    return data.getvalue(), "image/png" if is_small else "image/jpeg", image.size
