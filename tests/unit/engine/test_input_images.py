"""Input images: which argument each becomes, and at what size."""

import numpy as np
from PIL import Image

from engine.pipelines.task_pipeline import image_arguments

SIZE = (64, 48)  # width, height
PICTURE = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
MASK = np.where(np.arange(96) < 40, 0, 255).astype(np.uint8)[None, :].repeat(96, axis=0)


def test_an_image_to_draw_over_is_brought_to_the_requests_size_as_diffusers_does() -> None:
    [(name, image)] = image_arguments("image-to-image", {"image": (PICTURE,)}, {"image"}, SIZE).items()
    resized = Image.fromarray(PICTURE).resize(SIZE, Image.Resampling.LANCZOS)
    assert (name, image.size) == ("image", SIZE)
    assert image.tobytes() == resized.tobytes()


def test_an_image_of_the_requests_size_keeps_its_bytes() -> None:
    inputs = {"image": (PICTURE,), "mask_image": (MASK,)}
    given = image_arguments("inpainting", inputs, {"image", "mask_image"}, (96, 96))
    assert given["image"].tobytes() == PICTURE.tobytes()
    assert given["mask_image"].tobytes() == MASK.tobytes()


def test_a_mask_is_brought_to_size_without_values_beyond_an_edge() -> None:
    inputs = {"image": (PICTURE,), "mask_image": (MASK,)}
    mask = np.asarray(image_arguments("inpainting", inputs, {"image"}, SIZE)["mask_image"])
    assert mask.shape == (48, 64)
    row = mask[0].astype(int)
    assert (np.diff(row) >= 0).all(), "Lanczos would ring"
    assert (row[0], row[-1]) == (0, 255)


def test_an_image_to_edit_stays_as_it_is_where_the_call_says_its_size_itself() -> None:
    given = image_arguments("edit", {"image": (PICTURE,)}, {"image", "width", "height"}, SIZE)
    assert given["image"].size == (96, 96)
    given = image_arguments("edit", {"image": (PICTURE,)}, {"image"}, SIZE)
    assert given["image"].size == SIZE


def test_several_images_to_edit_are_a_list() -> None:
    two = image_arguments("edit", {"image": (PICTURE, PICTURE)}, {"image", "width"}, SIZE)
    assert [image.size for image in two["image"]] == [(96, 96)] * 2
    assert [*image_arguments("edit", {"image": (PICTURE,)}, {"images", "width"}, SIZE)] == ["images"]


def test_a_control_image_is_the_argument_that_the_call_has_for_it() -> None:
    inputs = {"control_image": (PICTURE,)}
    assert [*image_arguments("control", inputs, {"control_image"}, SIZE)] == ["control_image"]
    assert [*image_arguments("control", inputs, {"image"}, SIZE)] == ["image"]
