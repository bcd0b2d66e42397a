"""The RGB pixels that a model gets of an image, worked out by hand for every way of storing images."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dgg_ray.config.task_similarity import grey_statistics
from dgg_ray.core import image_conversion
from dgg_ray.core.interfaces import Example
from dgg_ray.readers import _images
from dgg_ray.training.encoding import load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
GREY = (9, 9, 9)
# Two rows of three: every rotation and reflection changes it.
FLAG = np.array([[RED, GREEN, BLUE], [GREY, WHITE, RED]], dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def rgb(image):
    pixels = image_conversion.to_rgb(image)
    assert pixels.mode == "RGB"
    return np.asarray(pixels)


def greys(image):
    pixels = rgb(image)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0].ravel().tolist()


# -- EXIF ------------------------------------------------------------------------------------------

UPRIGHT = {  # how rows and columns of the file are displayed, from the EXIF standard
    1: FLAG,
    2: FLAG[:, ::-1],  # the first column is on the right
    3: FLAG[::-1, ::-1],
    4: FLAG[::-1],
    5: FLAG.swapaxes(0, 1),  # the first row is on the left
    6: FLAG.swapaxes(0, 1)[:, ::-1],  # the first row is on the right, read from the top
    7: FLAG.swapaxes(0, 1)[::-1, ::-1],
    8: FLAG.swapaxes(0, 1)[::-1],  # the first row is on the left, read from the bottom
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_is_turned_by_its_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[image_conversion.ORIENTATION_TAG] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = opened(Image.fromarray(FLAG), kind, exif=exif, **options)
    assert np.array_equal(rgb(image), UPRIGHT[orientation])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow warns when it opens the file
@pytest.mark.parametrize("exif", [b"Exif\0\0no such thing", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_damaged_exif_data_are_ignored(exif):
    assert rgb(opened(Image.fromarray(FLAG).resize((30, 20)), "JPEG", exif=exif)).shape == (20, 30, 3)


@pytest.mark.parametrize("orientation", [0, 9, 90, 65535])
def test_an_unknown_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[image_conversion.ORIENTATION_TAG] = orientation
    assert np.array_equal(rgb(opened(Image.fromarray(FLAG), "PNG", exif=exif)), FLAG)


# -- more than eight bits --------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_levels(kind, order):
    values = np.array([[0, 257, 300], [32896, 65535, 65000]]).astype(order)  # 257 · 128 = 32896
    if kind == "PNG":
        values = values.astype("<u2")
    assert greys(opened(Image.fromarray(values), kind)) == [0, 1, 1, 128, 255, 253]


def test_a_dark_16_bit_image_stays_dark():
    assert greys(opened(Image.fromarray(np.full((2, 2), 255, dtype=np.uint16)), "PNG")) == [1] * 4


def test_a_tiff_whose_zero_is_white_is_inverted():
    values = np.array([[0, 65535, 257]], dtype=np.uint16)
    assert greys(opened(Image.fromarray(values), "TIFF", tiffinfo={262: 0})) == [255, 0, 254]


def test_12_bit_grey_is_scaled_by_its_own_white():
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (277, 1), (278, 1), (279, 3)]
    head = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = sorted([*tags, (273, head)])
    file = b"II*\0" + struct.pack("<IH", 8, len(entries))
    file += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    file += bytes(4) + bytes([0xFF, 0xF8, 0x00])  # 4095 and 2048, as twelve bits each
    assert greys(Image.open(io.BytesIO(file))) == [255, 128]


def test_a_10_bit_portable_grey_map_is_scaled_by_its_own_white():
    file = b"P5 2 1 1023\n" + struct.pack(">2H", 1023, 512)
    assert greys(Image.open(io.BytesIO(file))) == [255, 128]


@pytest.mark.parametrize(
    ("values", "grey"),
    [([0, 0.2, 1, 0.5], [0, 51, 255, 128]), ([0, 51.2, 255, 128], [0, 51, 255, 128])],
)
def test_floating_point_values_range_up_to_1_or_to_255(values, grey):
    image = Image.fromarray(np.array(values, dtype=np.float32).reshape(2, 2))
    assert greys(opened(image, "TIFF")) == grey


@pytest.mark.parametrize(
    ("values", "grey"),
    [([0, 7, 255, 1], [0, 7, 255, 1]), ([0, 257, 65535, 256], [0, 1, 255, 1])],
)
def test_32_bit_integers_range_up_to_255_or_to_65535(values, grey):
    image = Image.fromarray(np.array(values, dtype=np.int32).reshape(2, 2))
    assert greys(opened(image, "TIFF")) == grey


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([0, 1, 2, 300], np.float32, "up to 300"),
        ([-1, 0, 0, 1], np.float32, "from -1 to 1"),
        ([np.nan, 0, 0, 1], np.float32, "nan"),
        ([0, np.inf, 0, 1], np.float32, "inf"),
        ([0, 1, 2, 70000], np.int32, "up to 70000"),
        ([-5, 1, 2, 3], np.int32, "from -5 to 3"),
    ],
)
def test_values_without_a_known_white_are_refused_with_their_range(tmp_path, values, kind, message):
    file = tmp_path / "a.tif"
    Image.fromarray(np.array(values, dtype=kind).reshape(2, 2)).save(file)
    (info,) = _images.inspect_images([file]).values()
    assert message in info.problem


# -- transparency ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "clear", "ink"), [("RGBA", (0, 0, 0, 0), (10, 20, 30, 255)), ("LA", (0, 0), (9, 255))]
)
def test_a_transparent_background_becomes_white(mode, clear, ink):
    image = Image.new(mode, (2, 1), clear)
    image.putpixel((0, 0), ink)
    assert rgb(opened(image, "PNG"))[0].tolist() == [
        [*(ink[:-1] if mode == "RGBA" else ink[:1] * 3)],
        [*WHITE],
    ]


def test_half_transparent_pixels_are_blended_with_white():
    assert rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("clear", [1, b"\xff\x00"])
def test_the_transparent_colour_of_a_palette_is_white(clear):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert rgb(opened(image, "PNG", transparency=clear))[0].tolist() == [[10, 20, 30], [*WHITE]]


@pytest.mark.parametrize(
    ("image", "clear"),
    [
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (1, 1), 7), 7),
        (Image.fromarray(np.full((1, 1), 1024, dtype=np.uint16)), 1024),
    ],
)
def test_the_transparent_colour_of_a_png_is_white(image, clear):
    assert rgb(opened(image, "PNG", transparency=clear))[0, 0].tolist() == [*WHITE]


def test_a_transparent_gif_background_becomes_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (0, 0, 0, 255))
    assert rgb(opened(image, "GIF"))[0].tolist() == [[0, 0, 0], [*WHITE]]


def test_16_bit_grey_with_transparency_is_blended_with_white():
    rows = b"\0" + struct.pack(">4H", 0, 0, 0, 0xFFFF)  # grey and alpha: transparent, then black
    assert rgb(Image.open(io.BytesIO(png(4, 16, rows, 2))))[0].tolist() == [[*WHITE], [0, 0, 0]]


def png(colour, bits, rows, width, height=1):
    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# -- colours ---------------------------------------------------------------------------------------


def test_one_bit_is_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert greys(opened(image, "PNG")) == [0, 255]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])  # JPEG holds it inverted, as Adobe does
def test_cmyk_is_converted_to_rgb(kind):
    assert rgb(opened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind))[0, 0].tolist() == [*RED]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces_are_converted_to_rgb(mode):
    red = Image.new("RGB", (2, 2), (200, 30, 40))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = opened(ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB"), "TIFF")
    else:
        image = red.convert(mode)
    assert np.abs(rgb(image)[0, 0].astype(int) - (200, 30, 40)).max() <= 3  # rounding in the colour space


# -- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_used_and_all_are_counted(tmp_path, kind):
    frames = [Image.new("RGB", (4, 4), (level, level, level)) for level in (0, 120, 255)]
    file = tmp_path / f"a.{kind.lower()}"
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(Example("1", "?", "a", file))).max() == 0
    assert _images.inspect_images([file])[file].frames == 3
    assert _images.inspect_images([file])[file].frames == 3  # from the cache


# -- users of the conversion ------------------------------------------------------------------------------


def test_training_and_task_similarity_use_the_same_pixels(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16)).save(file)
    example = Example("1", "?", "a", file)
    assert np.asarray(load_image(example)).tolist() == [[[128] * 3] * 4] * 4
    assert grey_statistics(example) == (128 // 32, 0)


def test_pixels_of_an_example_are_not_converted():
    assert np.array_equal(np.asarray(load_image(Example("1", "?", "a", FLAG))), FLAG)


def test_the_digest_of_an_image_that_is_not_plain_rgb_includes_the_conversion_version(tmp_path):
    plain, clear, turned = tmp_path / "plain.png", tmp_path / "clear.png", tmp_path / "turned.png"
    exif = Image.Exif()
    exif[image_conversion.ORIENTATION_TAG] = 6
    Image.fromarray(FLAG).save(plain)
    Image.fromarray(FLAG).convert("RGBA").save(clear)
    Image.fromarray(FLAG).save(turned, exif=exif)
    for _ in "new", "from the cache":
        digests = {path.stem: p.digest for path, p in _images.inspect_images([plain, clear, turned]).items()}
        assert len(digests["plain"]) == 64
        assert digests["clear"][64:] == digests["turned"][64:] == f" {image_conversion.CONVERSION_VERSION}"


def test_an_image_with_too_many_pixels_is_refused(tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(png(0, 8, b"", 60_000, 60_000))
    assert "60000" in (problem := _images.decode_image(file).problem) or "3600000000 pixels" in problem
