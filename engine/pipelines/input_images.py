"""Input images of a request as a pipeline's call takes them: which argument each is, and at what size.

Owns the resizing. It knows the names of a call's arguments and no pipeline, and makes no image up.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from PIL import Image

from catalogue.pipeline_tasks import PipelineTask

Inputs = Mapping[str, tuple[np.ndarray, ...]]
"""By the names of a request's parameters: uint8, RGB `(H, W, 3)`, a mask `(H, W)`."""


def image_arguments(
    task: PipelineTask, inputs: Inputs, takes: Collection[str], size: tuple[int, int]
) -> dict[str, Any]:
    """The arguments for the request's images, of a call that takes these and draws `size` (width, height).

    What an image is drawn over or along is brought to that size, as diffusers' `VaeImageProcessor` does: its
    proportions are not kept. What is edited stays as it is, unless the call draws at the size of its image.
    """
    images = inputs.get("image", ())
    if task == "image-to-image":
        return {"image": _fitted(images[0], size)}
    if task == "inpainting":
        return {"image": _fitted(images[0], size), "mask_image": _fitted_mask(inputs["mask_image"][0], size)}
    if task == "control":
        name = "control_image" if "control_image" in takes else "image"
        return {name: _fitted(inputs["control_image"][0], size)}
    if task == "edit":
        edited = [Image.fromarray(image) if "width" in takes else _fitted(image, size) for image in images]
        if "image" not in takes:
            return {"images": edited}
        return {"image": edited[0] if len(edited) == 1 else edited}
    return {}


def _fitted(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _fitted_mask(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Grey where an edge falls between pixels: the pipeline itself makes it black and white."""
    picture = Image.fromarray(mask)  # Lanczos would ring beside an edge
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
