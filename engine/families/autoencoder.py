"""The autoencoder of a loaded pipeline as a decoder: from a denoiser's latents to pixels, in its own dtype.

Owns the scale and shift between the two, for any of diffusers' autoencoder classes. It does not choose the
dtype: `engine.loaded_pipeline` has done that by now.
"""

from typing import Any

from torch import Tensor

from engine.errors import LoadError


class Autoencoder:
    """A VAE as its pipeline reads its configuration; raises `LoadError` for an entry that it would lack."""

    def __init__(self, vae: Any, *, takes_shift: bool = False, takes_statistics: bool = False) -> None:
        self._vae = vae
        config, name = vae.config, type(vae).__name__
        self._scale = self._number(config, name, "scaling_factor")
        self._shift = self._number(config, name, "shift_factor") if takes_shift else None
        self._mean: Any = getattr(config, "latents_mean", None) if takes_statistics else None
        self._std: Any = getattr(config, "latents_std", None) if takes_statistics else None

    def _number(self, config: Any, name: str, entry: str) -> float:
        number = getattr(config, entry, None)
        if not isinstance(number, int | float):
            raise LoadError(
                f"its vae ({name}) has no {entry}, without which its latents cannot be read:"
                " take the vae that the model was published with"
            )
        return number

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels `(1, 3, H, W)` in [-1, 1] of `(1, C, h, w)`."""
        latents = latents.to(self._vae.dtype)
        if self._mean is not None and self._std is not None:
            mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (self._mean, self._std))
            latents = latents * std / self._scale + mean
        else:
            latents = latents / self._scale
            if self._shift is not None:
                latents = latents + self._shift
        pixels: Tensor = self._vae.decode(latents, return_dict=False)[0]
        return pixels
