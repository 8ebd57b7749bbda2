"""Recognizes the components of a pipeline by name: denoisers, and modules that run once in a call."""

from collections.abc import Sequence

SIDE_MODULES = ("text_encoder", "image_encoder", "image_embedder", "vae", "vqvae", "vqgan", "movq", "safety_")
"""Prefixes of the names of components that run once in a call, before or after the denoising steps."""

DENOISERS = ("transformer", "unet", "decoder")
"""Names of denoisers, most likely first, for pipelines in which other components run at every step too."""


def is_denoiser(name: str) -> bool:
    """Whether a component of this name runs at every denoising step."""
    return not name.removeprefix("prior_").startswith(SIDE_MODULES)


def denoiser_among(names: Sequence[str]) -> str | None:
    """The name of the denoiser among component names, or None; `siglip` of ZImageOmni is not one."""
    found = [name for name in (*DENOISERS, *filter(is_denoiser, names)) if name in names]
    return found[0] if found else None
