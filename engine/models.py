"""The loaded models of one engine and their limits: where a request becomes a generation or is refused.

Owns the families, the row caps and the coefficient tables. It does not know what is running.
"""

from collections.abc import Mapping
from typing import Any

from engine.buckets import Buckets, at
from engine.errors import RequestInvalid, StrictUnavailable
from engine.families.family import Family, can_cache_steps
from engine.generation import Generation
from engine.native_generation import NativeGeneration
from engine.pipeline_generation import PipelineGeneration
from engine.pipeline_model import PipelineModel
from engine.policy import BatchKey
from engine.request import GenerationRequest
from engine.sampling import CoefficientTables
from engine.self_test import Promise


class Models:
    """Families by name; `row_limits` gives each one's most rows of a step batch up to so many pixels."""

    def __init__(
        self,
        families: Mapping[str, Family | PipelineModel],
        row_limits: Mapping[str, Mapping[int, int]],
        *,
        promise: Promise,
    ) -> None:
        self.families: Mapping[str, Any] = families  # of both kinds, which share what is asked of them here
        self.row_limits = row_limits
        self._promise = promise
        self._tables = {
            name: CoefficientTables(family.scheduler, family.flow_sigmas)
            for name, family in families.items()
            if not isinstance(family, PipelineModel)
        }

    def generation(self, request: GenerationRequest, **state: Any) -> Generation:
        """The request, in flight; raises `RequestInvalid` for what its model cannot do.

        Raises `StrictUnavailable` for a strict request on a device that cannot repeat itself.
        """
        model = self.families.get(request.model)
        if isinstance(model, PipelineModel):
            return PipelineGeneration(request, self._key(request), model, **state)
        return self.native_generation(request, **state)

    def native_generation(self, request: GenerationRequest, **state: Any) -> NativeGeneration:
        """The same, of a family that is written here."""
        key = self._key(request)
        family = self.families[request.model]
        for name in request.parameters.pipeline_parameters:
            raise RequestInvalid(f"pipeline_parameters/{name}: model {request.model!r} cannot use it")
        if request.step_cache > 1 and not can_cache_steps(family):
            raise RequestInvalid(f"step_cache: {request.model!r} has no step cache; only 1 is accepted")
        num_patches = key.latent_height * key.latent_width // family.latents_per_patch**2
        table = self._tables[request.model].table(request.scheduler, request.num_inference_steps, num_patches)
        is_guided = family.needs_guidance_row(request.guidance_scale)
        return NativeGeneration(request, key, table, is_guided=is_guided, **state)

    def _key(self, request: GenerationRequest) -> BatchKey:
        family = self.families.get(request.model)
        if family is None:
            raise RequestInvalid(f"model: {request.model!r} is not loaded here")
        size, pixels = f"width, height: {request.width}x{request.height}", family.pixels_per_latent
        multiple = pixels * family.latents_per_patch
        if request.width % multiple or request.height % multiple:
            raise RequestInvalid(f"{size} is not in steps of {multiple}")
        if family.max_side is not None and max(request.width, request.height) > family.max_side:
            raise RequestInvalid(f"{size} is above {family.max_side}, the longest side of this model")
        max_pixels = max(self.row_limits[request.model])
        if request.width * request.height > max_pixels:
            raise RequestInvalid(f"{size} is above {max_pixels} pixels")
        if request.strict and self._promise == "not repeatable":
            raise StrictUnavailable
        shape = (request.height // pixels, request.width // pixels)
        # Rows of a shape that the self-test has not tried are taken to be equal, but strict means seen.
        is_tried = not family.buckets or shape in family.buckets
        return BatchKey(
            request.model,
            *shape,
            is_pinned=request.strict and (self._promise != "exact" or not is_tried),
            is_alone=request.strict and (self._promise == "within 1/255" or not is_tried),
        )

    def max_rows(self, key: BatchKey) -> int:
        """The most rows of one forward pass: a bucket within the cap of the class of pixels of the key."""
        pixels = key.latent_height * key.latent_width * self.families[key.model].pixels_per_latent ** 2
        limits = self.row_limits[key.model]
        limit = limits[min(max_pixels for max_pixels in limits if max_pixels >= pixels)]
        return self._buckets(key).within(limit)

    def bucket_rows(self, key: BatchKey, num_rows: int) -> int:
        """At how many rows a step batch of this key and so many rows runs."""
        return self._buckets(key).rows(num_rows)

    def _buckets(self, key: BatchKey) -> Buckets:
        return at(self.families[key.model].buckets, key.latent_height, key.latent_width)
