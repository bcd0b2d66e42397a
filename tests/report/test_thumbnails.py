"""Small copies of pictures, read back pixel by pixel."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dgg_ray.report.thumbnails import SIDE, thumbnail


def read(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_small_pixels_stay_as_they_are_and_are_shown_larger():
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    uri, width = thumbnail(pixels)
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(read(uri)), pixels)
    assert width == 6 * (SIDE // 8)


def test_a_large_picture_becomes_small_and_keeps_its_shape(tmp_path):
    Image.new("RGB", (1600, 400), (200, 30, 30)).save(tmp_path / "wide.png")
    uri, width = thumbnail(tmp_path / "wide.png")
    assert read(uri).size == (SIDE, SIDE // 4)
    assert width == SIDE
    assert len(uri) < 4000


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (300, 200), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read(thumbnail(tmp_path / "turned.jpg")[0]).size == (round(SIDE * 200 / 300), SIDE)


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read(thumbnail(tmp_path / "clear.png")[0]).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "CMYK", "1"])
def test_a_picture_of_any_kind_has_a_thumbnail(tmp_path, mode):
    file = tmp_path / ("p.tif" if mode in ("CMYK", "I;16") else "p.png")
    Image.new(mode, (20, 10)).save(file)
    assert read(thumbnail(file)[0]).size == (20, 10)


def test_a_picture_of_16_bits_is_shown_as_the_model_saw_it(tmp_path):
    ramp = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(ramp).save(tmp_path / "p.png")
    assert np.asarray(read(thumbnail(tmp_path / "p.png")[0])).mean() == pytest.approx(127.5, abs=0.5)


def test_a_file_that_is_no_picture_raises_oserror(tmp_path):
    (tmp_path / "p.png").write_text("no")
    with pytest.raises(OSError, match="cannot identify"):
        thumbnail(tmp_path / "p.png")
