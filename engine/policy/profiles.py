"""The profiles of all models of one engine: the row caps and the step times that follow from them.

It does not know how a profile is measured or stored.
"""

from collections.abc import Mapping

from catalogue.profile import Profile
from engine.policy.candidate import BatchKey


class EngineProfiles:
    """The profiles of one engine, by model and by the most pixels of the size class that each represents."""

    def __init__(
        self, by_class: Mapping[str, Mapping[int, Profile]], pixels_per_latent: Mapping[str, int]
    ) -> None:
        self._by_class = by_class
        self._pixels_per_latent = pixels_per_latent

    def capped(self, row_limits: Mapping[str, Mapping[int, int]]) -> dict[str, dict[int, int]]:
        """The row limits, lowered to the caps of the profiles."""
        return {
            model: {
                max_pixels: min(rows, profile.max_rows) if profile else rows
                for max_pixels, rows in limits.items()
                for profile in [self._by_class.get(model, {}).get(max_pixels)]
            }
            for model, limits in row_limits.items()
        }

    def step_seconds(self, key: BatchKey, num_rows: int) -> float | None:
        """Seconds of a step, in proportion to the pixels of the measured size; None if not measured."""
        latents = key.latent_height * key.latent_width
        pixels = latents * self._pixels_per_latent.get(key.model, 1) ** 2
        classes = self._by_class.get(key.model, {})
        max_pixels = min((most for most in classes if most >= pixels), default=None)
        if max_pixels is None:
            return None
        profile = classes[max_pixels]
        return profile.step_seconds(num_rows) * pixels / profile.num_pixels
