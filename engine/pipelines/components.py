"""What a pipeline's components are for, by their names: which denoise, and which run once in a call."""

from collections.abc import Sequence

SIDE_MODULES = ("text_encoder", "image_encoder", "image_embedder", "vae", "vqvae", "vqgan", "movq", "safety_")
"""Beginnings of the names of components that run once in a call, before or after the denoising steps."""

DENOISERS = ("transformer", "unet", "decoder")
"""Names of components that denoise, where a pipeline has others besides that run at every step."""


def is_denoiser(name: str) -> bool:
    """Whether a component of this name runs at every denoising step."""
    return not name.removeprefix("prior_").startswith(SIDE_MODULES)


def denoiser_among(names: Sequence[str]) -> str | None:
    """Which of a pipeline's components denoises; a second one, as ZImageOmni's `siglip`, comes after it."""
    found = [name for name in (*DENOISERS, *filter(is_denoiser, names)) if name in names]
    return found[0] if found else None
