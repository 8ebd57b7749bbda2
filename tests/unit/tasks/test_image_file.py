"""Files keep what they promise: the pixels where lossless, the same bytes every time, the parameters."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import integers, sampled_from, tuples
from PIL import Image

from tasks.images.file import content_type, encode_image
from tests.fixtures.images import flat_images, grainy_images

SHAPES = tuples(integers(1, 40), integers(1, 40), sampled_from([3]))


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize("output_format", ["png", "webp"])
@settings(deadline=None)  # how long a file takes on a busy machine is no promise
@given(pixels=arrays(np.uint8, SHAPES))
def test_a_lossless_file_holds_the_very_pixels_and_is_the_same_every_time(
    output_format: str, pixels: np.ndarray
) -> None:
    data = encode_image(pixels, output_format)
    assert np.array_equal(np.asarray(opened(data).convert("RGB")), pixels)
    assert encode_image(pixels, output_format) == data


@pytest.mark.parametrize(
    ("output_format", "quality"), [("png", None), ("webp", None), ("webp", 80), ("jpeg", None), ("jpeg", 1)]
)
def test_every_format_is_what_it_says_at_the_size_that_was_drawn(
    output_format: str, quality: int | None
) -> None:
    pixels = grainy_images(64, 1)[0][:48]
    picture = opened(encode_image(pixels, output_format, quality=quality))
    assert (picture.format, picture.size, picture.mode) == (output_format.upper(), (64, 48), "RGB")
    assert Image.MIME[output_format.upper()] == content_type(output_format)


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_a_higher_quality_is_nearer_to_the_pixels_and_larger(output_format: str) -> None:
    pixels = grainy_images(64, 1)[0]
    files = [encode_image(pixels, output_format, quality=quality) for quality in (1, 50, 100)]
    errors = [np.abs(np.asarray(opened(one)).astype(int) - pixels).mean() for one in files]
    assert errors == sorted(errors, reverse=True)
    assert sorted(map(len, files)) == list(map(len, files))


def test_noise_at_the_highest_quality_is_written_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for output_format in ("jpeg", "webp"):
        assert opened(encode_image(noise, output_format, quality=100)).size == (512, 512)


def test_a_jpeg_without_a_quality_has_90() -> None:
    pixels = grainy_images(64, 1)[0]
    assert encode_image(pixels, "jpeg") == encode_image(pixels, "jpeg", quality=90)


def test_a_format_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="gif"):
        encode_image(flat_images(8, 1)[0], "gif")


def test_parameters_are_text_of_a_png_and_leave_its_pixels_alone() -> None:
    pixels = flat_images(64, 1)[0]
    parameters = {"prompt": "ein rötliches Herz, 心\nin two lines", "seed": "7"}
    picture = opened(encode_image(pixels, "png", parameters=parameters))
    assert picture.text == parameters  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(picture), pixels)
    assert opened(encode_image(pixels, "png")).text == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_other_formats_carry_no_parameters(output_format: str) -> None:
    pixels = flat_images(64, 1)[0]
    with_them = encode_image(pixels, output_format, quality=90, parameters={"prompt": "a secret"})
    assert with_them == encode_image(pixels, output_format, quality=90)


def test_our_png_is_at_most_five_percent_larger_than_pillows_default() -> None:
    """On grain, where files are large; a flat drawing of 512² takes a few KB either way."""
    for pixels in grainy_images(128, 2):
        default = io.BytesIO()
        Image.fromarray(pixels).save(default, format="PNG")
        assert len(encode_image(pixels, "png")) <= 1.05 * len(default.getvalue())
