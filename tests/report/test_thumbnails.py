"""Small copies of pictures, decoded back pixel by pixel."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dgg_ray.report.thumbnails import SIDE, thumbnail


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_small_picture_is_enlarged_without_changing_its_pixels():
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    uri, width = thumbnail(pixels)
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(decoded(uri)), pixels)
    assert width == 6 * (SIDE // 8)


def test_a_large_picture_is_reduced_and_keeps_its_proportions(tmp_path):
    Image.new("RGB", (1600, 400), (200, 30, 30)).save(tmp_path / "wide.png")
    uri, width = thumbnail(tmp_path / "wide.png")
    assert decoded(uri).size == (SIDE, SIDE // 4)
    assert width == SIDE
    assert len(uri) < 4000


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (300, 200), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path / "turned.jpg")[0]).size == (round(SIDE * 200 / 300), SIDE)


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decoded(thumbnail(tmp_path / "clear.png")[0]).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "CMYK", "1"])
def test_a_picture_of_any_mode_has_a_thumbnail(tmp_path, mode):
    file = tmp_path / ("p.tif" if mode in ("CMYK", "I;16") else "p.png")
    Image.new(mode, (20, 10)).save(file)
    assert decoded(thumbnail(file)[0]).size == (20, 10)


def test_a_16_bit_picture_is_shown_as_the_model_sees_it(tmp_path):
    ramp = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(ramp).save(tmp_path / "p.png")
    assert np.asarray(decoded(thumbnail(tmp_path / "p.png")[0])).mean() == pytest.approx(127.5, abs=0.5)


def test_a_file_that_is_not_a_picture_raises_oserror(tmp_path):
    (tmp_path / "p.png").write_text("no")
    with pytest.raises(OSError, match="cannot identify"):
        thumbnail(tmp_path / "p.png")
