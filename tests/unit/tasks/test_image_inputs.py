"""Files as pixels: what people see when they open them, and what a mask means."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from PIL import Image, ImageCms

from tasks.errors import ImageUnreadable
from tasks.images.inputs import Pixels, mask_pixels, pixels
from tests.fixtures.image_files import (
    HEIGHT,
    WIDTH,
    chunk,
    colour_of_16_bits,
    encoded,
    files_of,
    gray_of_16_bits,
    ink_profile,
    photo,
    png,
    swapped_profile,
    turned,
)

AS_SEEN = np.array(photo())
TURNS: Mapping[int, Callable[[Pixels], Pixels]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: np.rot90(seen, -1),
    7: lambda seen: seen[::-1, ::-1].transpose(1, 0, 2),
    8: lambda seen: np.rot90(seen),
}
"""What each orientation of EXIF asks for (CIPA DC-008, section 4.6.5.1.6), by numpy alone."""


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_pixels_that_are_srgb_are_kept_to_the_bit(file_format: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (None, srgb):
        data = encoded(photo(), file_format, lossless=True, icc_profile=profile)
        found = pixels(data)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, AS_SEEN)


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_as_its_exif_says(orientation: int) -> None:
    np.testing.assert_array_equal(pixels(turned("PNG", orientation)), TURNS[orientation](AS_SEEN))
    gray = mask_pixels(turned("PNG", orientation))
    np.testing.assert_array_equal(gray, TURNS[orientation](np.array(photo().convert("L"))[..., None])[..., 0])


def test_sixteen_bits_keep_their_brightness() -> None:
    found = pixels(gray_of_16_bits([0, 256, 32_768, 65_535]))
    assert found[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    assert pixels(colour_of_16_bits([(0, 32_768, 65_535)]))[0].tolist() == [[0, 128, 255]]
    assert mask_pixels(gray_of_16_bits([0, 32_768, 65_535])).tolist() == [[0, 128, 255]]


def test_few_bits_are_spread_over_all_of_the_brightness() -> None:
    assert pixels(png(4, 1, bits=2, colour_type=0, rows=b"\0\x1b"))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert pixels(png(2, 1, bits=4, colour_type=0, rows=b"\0\x1f"))[0, :, 0].tolist() == [17, 255]
    assert pixels(png(2, 1, bits=1, colour_type=0, rows=b"\0\x40"))[0, :, 0].tolist() == [0, 255]


def test_palettes_and_gray_are_their_colours() -> None:
    colours = [(214, 34, 40), (255, 255, 255), (0, 80, 180)]
    image = Image.new("P", (3, 1))
    image.putpalette([part for colour in colours for part in colour])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image))[0].tolist() == [list(colour) for colour in colours]
    assert pixels(encoded(image, transparency=0))[0].tolist() == [[255] * 3, [255] * 3, [0, 80, 180]]
    assert pixels(encoded(Image.new("L", (1, 1), 7)))[0].tolist() == [[7] * 3]


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)])
    for data in (encoded(image), encoded(image, "WEBP", lossless=True, exact=True)):
        kept, gone, half = pixels(data)[0].tolist()
        assert kept == [200, 0, 0]
        assert gone == [255, 255, 255]
        assert np.abs(np.array(half) - [227, 127, 127]).max() <= 1
    gray = Image.new("LA", (2, 1))
    gray.putdata([(10, 255), (10, 0)])
    assert pixels(encoded(gray))[0, :, 0].tolist() == [10, 255]


def test_one_colour_can_be_transparent_in_bits_of_its_own() -> None:
    assert pixels(gray_of_16_bits([256, 257, 40_000], key=257))[0, :, 0].tolist() == [1, 255, 156]
    found = pixels(colour_of_16_bits([(256, 512, 0), (0, 0, 0)], key=(256, 512, 0)))
    assert found[0].tolist() == [[255] * 3, [0] * 3]
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    assert pixels(encoded(image, transparency=(9, 9, 9)))[0].tolist() == [[255] * 3, [1, 2, 3]]
    few_bits = png(4, 1, bits=2, colour_type=0, rows=b"\0\x1b", more=chunk(b"tRNS", b"\0\1"))
    assert pixels(few_bits)[0, :, 0].tolist() == [0, 255, 170, 255]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_colours_go_through_their_profile(file_format: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    found = pixels(encoded(red, file_format, icc_profile=swapped_profile()))
    assert found[8, 8, 2] > 200 > found[8, 8, 0], "its red is our blue"


def test_cmyk_goes_through_its_profile_or_is_converted_plainly() -> None:
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert pixels(encoded(inks, "JPEG"))[8, 8].tolist() == pytest.approx([0, 255, 255], abs=3)
    assert pixels(encoded(inks, "JPEG", icc_profile=ink_profile()))[8, 8].max() < 10
    paper = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert pixels(encoded(paper, "JPEG", icc_profile=ink_profile()))[8, 8].min() > 245


def test_a_profile_that_cannot_be_used_is_passed_over() -> None:
    for profile in (b"no profile", ink_profile(), swapped_profile()[:200]):
        np.testing.assert_array_equal(pixels(encoded(photo(), icc_profile=profile)), AS_SEEN)


def test_a_mask_says_by_its_luminance_what_is_drawn_anew() -> None:
    image = Image.new("RGB", (3, 1))
    image.putdata([(0, 0, 0), (255, 255, 255), (128, 128, 128)])
    for data in (encoded(image), encoded(image.convert("L")), encoded(image.convert("RGBA"))):
        found = mask_pixels(data)
        assert found.dtype == np.uint8
        assert found.tolist() == [[0, 255, 128]]


def test_a_mask_with_transparency_says_it_by_that_alone() -> None:
    """As OpenAI's clients send it: the image itself with a hole where something else shall be."""
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 255, 255, 255), (0, 0, 0, 0), (9, 9, 9, 100)])
    assert mask_pixels(encoded(image)).tolist() == [[0, 255, 155]]
    assert mask_pixels(encoded(image, "WEBP", lossless=True, exact=True)).tolist() == [[0, 255, 155]]


def test_what_is_not_whole_has_no_pixels() -> None:
    for data in files_of("cut off").values():
        with pytest.raises(ImageUnreadable):
            pixels(data)


def test_the_shape_is_height_then_width() -> None:
    assert pixels(encoded(photo(), "JPEG")).shape == (HEIGHT, WIDTH, 3)
    assert mask_pixels(encoded(photo(), "JPEG")).shape == (HEIGHT, WIDTH)
