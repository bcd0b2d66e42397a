"""Image conversion to RGB: a model gets the pixels that a person sees who opens the file.

EXIF orientation          applied, all eight
transparency              on white
16-bit grey               divided by 257: white is 65535, whatever the brightest pixel
32-bit integers           up to 255 as they are, up to 65535 divided by 257; larger values are rejected
floating point            up to 1 times 255, up to 255 as they are; larger, negative and nan are rejected
LAB                       as sRGB
several frames or pages   the first
all other modes           as Pillow converts them to RGB; colour profiles are ignored
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image, ImageCms

CONVERSION_VERSION = 1  # raise when images that are not plain RGB give other pixels than before
ORIENTATION_TAG = 0x0112  # EXIF
EXIF_TRANSFORMS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
AXIS_SWAPS = {EXIF_TRANSFORMS[code] for code in (5, 6, 7, 8)}  # these swap width and height
MODES_16 = ("I;16", "I;16B", "I;16L", "I;16N")
WHITE_16 = 65535
BITS_TAG, PHOTOMETRIC_TAG = 258, 262  # TIFF: bits of a value; 0 where larger values are darker
FORMATS_16 = ("PNG", "PPM")  # their mode I is 16-bit grey


class UnknownWhiteLevelError(ValueError):
    """The values of an image do not tell which of them is white."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as a person sees it.

    Raises UnknownWhiteLevelError, or an error of Pillow's, where that is impossible.
    """
    image.load()
    transform = exif_transform(image)
    if image.mode in (*MODES_16, "I", "F"):
        rgb = wide_to_rgb(image)
    elif image.mode == "LAB":
        rgb = lab_to_rgb(image)
    elif is_transparent(image):
        rgb = flatten_on_white(image)
    else:
        rgb = image.convert("RGB")
    return rgb.transpose(transform) if transform is not None else rgb


def is_plain_rgb(image: Image.Image) -> bool:
    """Return whether `convert("RGB")` alone gives the pixels of a loaded image."""
    simple = image.mode not in (*MODES_16, "I", "F", "LAB")
    return simple and not is_transparent(image) and exif_transform(image) is None


def frame_count(image: Image.Image) -> int:
    """Return the number of frames or pages; 1 for a photo that contains its own previews."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def exif_transform(image: Image.Image) -> Image.Transpose | None:
    """Return the transform that EXIF asks for; None for damaged EXIF, which viewers ignore."""
    orientation = None
    with suppress(Exception):  # a damaged block can raise anything: SyntaxError, struct.error, …
        # Pillow applies the orientation of a TIFF on loading, and removes its tag.
        orientation = image.getexif().get(ORIENTATION_TAG)
    return EXIF_TRANSFORMS.get(orientation) if isinstance(orientation, int) else None


def is_transparent(image: Image.Image) -> bool:
    """Return whether the image has an alpha channel or a transparent colour."""
    return (
        image.mode in ("RGBA", "LA", "PA", "RGBa")
        or "transparency" in image.info
        or (image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"))
    )


def flatten_on_white(image: Image.Image) -> Image.Image:
    """Convert an image with transparency to RGB on white."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def wide_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image whose values need more than eight bits to RGB."""
    values = np.asarray(image)  # (H, W)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise UnknownWhiteLevelError(
            f"its values run from {low:g} to {high:g}; write it with 8 or 16 bits of grey"
        )
    grey = np.rint(values * (255.0 / white_level(image, float(high)))).astype(np.uint8)
    if tiff_value(image, PHOTOMETRIC_TAG) == 0:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def white_level(image: Image.Image, high: float) -> float:
    """Return the value of white in an image with values up to `high`."""
    if image.mode in MODES_16 or image.format in FORMATS_16:
        bits = tiff_value(image, BITS_TAG)
        level = float(WHITE_16 if bits is None else 2**bits - 1)
    else:
        levels = (1.0, 255.0) if image.mode == "F" else (255.0, float(WHITE_16))
        level = next((level for level in levels if high <= level), 0.0)
    if not level:
        raise UnknownWhiteLevelError(
            f"its values run up to {high:g}, and the value of white is unknown: write it with 16 bits"
        )
    return level


def tiff_value(image: Image.Image, tag: int) -> int | None:
    """Return the number of a TIFF tag; None where it is absent, and for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else None


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a LAB image to sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    rgb = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert rgb is not None  # it is None only for a conversion in place
    return rgb
