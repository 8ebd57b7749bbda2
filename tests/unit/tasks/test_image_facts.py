"""What a file is, and which are refused: by its bytes alone, and before anything large is decoded."""

import io
import struct
import tracemalloc

import pytest
from PIL import Image

from settings import Settings
from tasks.errors import ImageUnreadable
from tasks.images.facts import MEDIA_TYPES, ImageFacts, ImageLimits, media_type_of, read
from tests.fixtures.image_files import (
    FILES,
    HEIGHT,
    WIDTH,
    bomb,
    encoded,
    files_of,
    many_scans,
    photo,
    turned,
)

FIELDS = Settings.model_fields
LIMITS = ImageLimits(
    FIELDS["max_file_bytes"].default, FIELDS["max_image_pixels"].default, FIELDS["max_image_side"].default
)


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageUnreadable) as refused:
        read(data, limits)
    return str(refused.value)


@pytest.mark.parametrize(
    ("file_format", "media_type"), list(zip(("PNG", "JPEG", "WEBP"), MEDIA_TYPES, strict=True))
)
def test_an_image_says_its_size_and_type(file_format: str, media_type: str) -> None:
    assert read(encoded(photo(), file_format), LIMITS) == ImageFacts(WIDTH, HEIGHT, media_type)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_the_one_after_the_turn_that_exif_asks_for(file_format: str, orientation: int) -> None:
    facts = read(turned(file_format, orientation), LIMITS)
    assert (facts.width, facts.height) == ((HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # what Pillow says of it
def test_broken_exif_turns_nothing_and_breaks_nothing() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert read(encoded(photo(), "JPEG", exif=exif), LIMITS).width == WIDTH


@pytest.mark.parametrize(("side", "fits"), [(16, True), (17, False)])
def test_limits_are_of_each_side_and_of_all_pixels(side: int, fits: bool) -> None:
    for width, height, limits in (
        (side, 1, ImageLimits(10_000, 10_000, 16)),
        (1, side, ImageLimits(10_000, 10_000, 16)),
        (side, 16, ImageLimits(10_000, 256, 100)),
    ):
        for file_format in ("PNG", "JPEG", "WEBP"):
            data = encoded(Image.new("RGB", (width, height)), file_format)
            if fits:
                assert read(data, limits).width == width
            else:
                assert f"has {width} x {height} pixels" in refusal(data, limits)


def test_bytes_are_limited() -> None:
    data = encoded(photo())
    assert read(data, ImageLimits(len(data), 10_000, 100)).width == WIDTH
    assert refusal(data, ImageLimits(len(data) - 1, 10_000, 100)) == f"is larger than {len(data) - 1} bytes"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
def test_what_unfolds_to_too_many_pixels_is_refused_without_room_for_them(kind: str) -> None:
    data = files_of("more pixels than `CALOTYPE_MAX_IMAGE_PIXELS` (a small file may unfold to them)")[kind]
    assert len(data) < 100_000
    tracemalloc.start()
    try:
        assert "has 10000 x 10000 pixels" in refusal(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_canvas_larger_than_its_picture_counts() -> None:
    """Pillow makes room for the canvas twice over as soon as it opens the file."""
    data = files_of("more pixels than `CALOTYPE_MAX_IMAGE_PIXELS` (a small file may unfold to them)")["WebP"]
    with pytest.raises(ImageUnreadable, match="10000 x 10000"):
        read(data, ImageLimits(LIMITS.max_bytes, 99_999_999, LIMITS.max_side))


def test_scans_are_counted_of_the_first_picture_alone() -> None:
    assert read(many_scans(90), LIMITS).width == WIDTH
    assert "scans" in refusal(many_scans(101))
    assert read(encoded(photo(), "JPEG") + b"\xff\xda\0\2" * 500, LIMITS).width == WIDTH


def test_marks_that_never_end_are_not_followed_for_long() -> None:
    assert "segments" in refusal(b"\xff\xd8\xff" + b"\xff\xe0\0\2" * 20_000)


@pytest.mark.parametrize("row", [row for row in FILES if row.startswith(("cut", "PNG that", "animated"))])
def test_what_is_not_whole_or_moves_is_refused_whatever_its_kind(row: str) -> None:
    words = "is animated (2 frames)" if row.startswith("animated") else "is broken"
    for kind, data in files_of(row).items():
        assert refusal(data).startswith(words), kind


@pytest.mark.parametrize("cut", range(1, 60))
def test_no_beginning_of_a_file_is_taken_for_a_whole_one(cut: int) -> None:
    for file_format in ("PNG", "JPEG", "WEBP"):
        refusal(encoded(photo(), file_format)[:cut])


def test_a_frame_count_of_one_is_no_animation() -> None:
    image = encoded(photo(), "PNG", save_all=True, append_images=[])
    assert read(image, LIMITS).width == WIDTH


@pytest.mark.parametrize("kind", files_of("GIF, BMP, TIFF, HEIC, AVIF, SVG, PDF"))
def test_other_formats_are_called_by_their_names(kind: str) -> None:
    data = files_of("GIF, BMP, TIFF, HEIC, AVIF, SVG, PDF")[kind]
    said = refusal(data)
    assert kind in said
    assert "PNG, JPEG and WebP are accepted" in said


def test_the_bytes_decide_and_not_what_follows_them() -> None:
    assert media_type_of(encoded(photo(), "JPEG") + encoded(photo(), "PNG")) == "image/jpeg"


def test_a_limit_of_a_header_is_asked_before_its_data_is_looked_at() -> None:
    """A bomb whose data is nonsense is told of its size: nothing of it was unfolded."""
    data = bytearray(bomb(30_000, 30_000))
    at = data.index(b"IDAT")
    data[at + 4 :] = b"nonsense"
    assert "has 30000 x 30000 pixels" in refusal(bytes(data))


def test_room_is_made_for_one_picture_and_not_for_text_beside_it() -> None:
    with io.BytesIO() as buffer:
        photo().save(buffer, "PNG")
        data = buffer.getvalue()
    length = struct.pack(">I", 2**31 - 1)
    broken = data[:33] + length + b"iTXt" + data[33:]
    assert refusal(broken).startswith("is broken")


def test_a_large_webp_is_seen_to_be_whole_without_being_decoded() -> None:
    data = encoded(Image.new("RGB", (5000, 2600), (1, 2, 3)), "WEBP", lossless=True, method=0)
    tracemalloc.start()
    try:
        assert read(data, LIMITS) == ImageFacts(5000, 2600, "image/webp")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "its pixels are 52 MB"
    finally:
        tracemalloc.stop()
    assert refusal(data[:-4]).startswith("is broken or cut off")
