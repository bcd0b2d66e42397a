"""The pixels that a model gets of a picture: what a person sees who opens the file.

turned by EXIF            all eight orientations
transparent in places     laid on white
16 bits of grey           divided by 257: white is 65535, whatever the brightest pixel
32-bit whole numbers      as they are up to 255, divided by 257 up to 65535; beyond that refused
floating point            times 255 up to 1, as they are up to 255; beyond that, below 0 or nan: refused
LAB                       as sRGB
several frames or pages   the first
all else                  as Pillow converts it to RGB; colour profiles are left aside
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image, ImageCms

PIXELS = 1  # raised when pictures that are not plain come out otherwise than before
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[code] for code in (5, 6, 7, 8)}  # after which width is height
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
WHITE_16 = 65535
BITS, INK = 258, 262  # tags of a TIFF: bits for each value; 0 where larger values are darker
ALWAYS_16 = ("PNG", "PPM")  # formats whose mode I is 16 bits of grey


class NoWhite(ValueError):
    """The numbers of a picture do not say which of them is white."""


def shown(image: Image.Image) -> Image.Image:
    """The picture as a person sees it, RGB; NoWhite, or Pillow's errors, where that cannot be told."""
    image.load()
    turn = turn_of(image)
    if image.mode in (*SIXTEEN, "I", "F"):
        seen = of_wide(image)
    elif image.mode == "LAB":
        seen = of_lab(image)
    elif transparent(image):
        seen = on_white(image)
    else:
        seen = image.convert("RGB")
    return seen.transpose(turn) if turn is not None else seen


def plain(image: Image.Image) -> bool:
    """Whether the pixels of a loaded picture are what `convert("RGB")` alone makes of it."""
    simple = image.mode not in (*SIXTEEN, "I", "F", "LAB")
    return simple and not transparent(image) and turn_of(image) is None


def frames(image: Image.Image) -> int:
    """Frames of an animation or pages; 1 for a photo that holds its own previews."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """The turn that EXIF asks for; None for damaged EXIF, which viewers pass over."""
    found = None
    with suppress(Exception):  # SyntaxError, struct.error, …: whatever a damaged block leads to
        found = image.getexif().get(ORIENTATION)  # Pillow has turned a TIFF, and dropped its tag
    return TURNS.get(found) if isinstance(found, int) else None


def transparent(image: Image.Image) -> bool:
    return (
        image.mode in ("RGBA", "LA", "PA", "RGBa")
        or "transparency" in image.info
        or (image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"))
    )


def on_white(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def of_wide(image: Image.Image) -> Image.Image:
    """Show a picture whose numbers do not fit into eight bits."""
    values = np.asarray(image)  # (H, W)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise NoWhite(f"its values run from {low:g} to {high:g}; write it with 8 or 16 bits of grey")
    if image.mode in SIXTEEN or image.format in ALWAYS_16:
        white = float(WHITE_16 if (bits := tiff(image, BITS)) is None else 2**bits - 1)
    else:
        scales = (1.0, 255.0) if image.mode == "F" else (255.0, float(WHITE_16))
        white = next((scale for scale in scales if high <= scale), 0.0)
    if not white:
        raise NoWhite(f"its values run up to {high:g}, and what is white is not known: write it with 16 bits")
    grey = np.rint(values * (255.0 / white)).astype(np.uint8)
    if tiff(image, INK) == 0:
        grey = 255 - grey
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def tiff(image: Image.Image, tag: int) -> int | None:
    """The number under a TIFF's tag; None where it has none, and for other formats."""
    found = getattr(image, "tag_v2", {}).get(tag)
    number = found[0] if isinstance(found, tuple) and found else found
    return number if isinstance(number, int) else None


def of_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    seen = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert seen is not None  # it is None only where the picture is changed in place
    return seen
