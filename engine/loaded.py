"""The loaded models of one engine and their limits: where a request becomes a generation or is refused.

Owns the loaded models and the row caps. It does not know what is running.
"""

from collections.abc import Mapping
from typing import Any

from engine.determinism import DeterminismLevel
from engine.errors import RequestInvalid, StrictUnavailable
from engine.generation import Generation
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.buckets import Buckets, at
from engine.policy.policy import BatchKey
from engine.request import GenerationRequest


class Models:
    """Models by name; `row_limits` gives each one's most rows of a step batch up to so many pixels."""

    def __init__(
        self,
        models: Mapping[str, PipelineModel],
        row_limits: Mapping[str, Mapping[int, int]],
        *,
        determinism: DeterminismLevel,
    ) -> None:
        self.by_name = models
        self.row_limits = row_limits
        self._determinism = determinism

    def generation(self, request: GenerationRequest, **state: Any) -> Generation:
        """The request, in flight; raises `RequestInvalid` for what its model cannot do.

        Raises `StrictUnavailable` for a strict request on a device that cannot repeat itself.
        """
        return Generation(request, self._key(request), self._model(request), **state)

    def _model(self, request: GenerationRequest) -> PipelineModel:
        model = self.by_name.get(request.model)
        if model is None:
            raise RequestInvalid(f"model: {request.model!r} is not loaded here")
        return model

    def _key(self, request: GenerationRequest) -> BatchKey:
        model = self._model(request)
        size, multiple = f"width, height: {request.width}x{request.height}", model.side_multiple
        if request.width % multiple or request.height % multiple:
            raise RequestInvalid(f"{size} is not in steps of {multiple}")
        if model.max_side is not None and max(request.width, request.height) > model.max_side:
            raise RequestInvalid(f"{size} is above {model.max_side}, the longest side of this model")
        max_pixels = max(self.row_limits[request.model])
        if request.width * request.height > max_pixels:
            raise RequestInvalid(f"{size} is above {max_pixels} pixels")
        if request.strict and self._determinism == "not repeatable":
            raise StrictUnavailable
        shape = (request.height // model.pixels_per_latent, request.width // model.pixels_per_latent)
        # Rows of a shape that the self-test has not tried are taken to be equal, but strict means seen.
        is_tried = (not model.buckets or shape in model.buckets) and not model.has_shapes_of_its_own(request)
        return BatchKey(
            request.model,
            *shape,
            is_pinned=request.strict and (self._determinism != "exact" or not is_tried),
            is_alone=request.strict and (self._determinism == "within 1/255" or not is_tried),
        )

    def max_rows(self, key: BatchKey) -> int:
        """The most rows of one forward pass: a bucket within the cap of the class of pixels of the key."""
        pixels = key.latent_height * key.latent_width * self.by_name[key.model].pixels_per_latent ** 2
        limits = self.row_limits[key.model]
        limit = limits[min(max_pixels for max_pixels in limits if max_pixels >= pixels)]
        return self._buckets(key).within(limit)

    def bucket_rows(self, key: BatchKey, num_rows: int) -> int:
        """At how many rows a step batch of this key and so many rows runs."""
        return self._buckets(key).rows(num_rows)

    def _buckets(self, key: BatchKey) -> Buckets:
        return at(self.by_name[key.model].buckets, key.latent_height, key.latent_width)
