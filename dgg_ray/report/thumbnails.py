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

    picture: a file, converted as for the model (`image_conversion.to_rgb`), or pixels (H, W, 3) in uint8.
    Raises OSError for a file that is not a picture, and what `to_rgb` raises.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture)
    else:
        with Image.open(picture) as file:
            file.draft("RGB", (2 * SIDE, 2 * SIDE))  # so that a JPEG is not decoded at its full size
            image = to_rgb(file)
    enlarge = max(image.size) <= ENLARGE_UP_TO
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    if enlarge:
        image.save(data, "PNG", optimize=True)
        mime_type, width = "image/png", image.width * (SIDE // max(image.size))
    else:
        image.save(data, "JPEG", quality=80)
        mime_type, width = "image/jpeg", image.width
    return f"data:{mime_type};base64,{base64.b64encode(data.getvalue()).decode()}", width
