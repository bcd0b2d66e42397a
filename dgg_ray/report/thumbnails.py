"""Small copies of pictures, for a page that holds all it shows."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from dgg_ray.core.image_conversion import to_rgb

SIDE = 160  # pixels of the longer side, at most
SMALL = 64  # pictures below this are shown larger than they are, with their pixels to be seen


def thumbnail(picture: Path | np.ndarray) -> tuple[str, int]:
    """(data URI, width on the page in CSS pixels) of a picture file, or of pixels (H, W, 3) uint8.

    As the model got it (`pixels.shown`). Raises OSError for a file that is no picture, and NoWhite.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture)
    else:
        with Image.open(picture) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG: no more is decoded than is needed
            image = to_rgb(opened)
    small = max(image.size) <= SMALL
    image.thumbnail((SIDE, SIDE))
    data, kind = io.BytesIO(), "PNG" if small else "JPEG"
    image.save(data, kind, **({"optimize": True} if small else {"quality": 80}))
    width = image.width * (SIDE // max(image.size)) if small else image.width
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}", width
