"""The models that one engine has loaded, and the checks that a request must pass to become a generation.

Owns the models and their row limits. It does not know which generations are running.
"""

from collections.abc import Mapping
from typing import Any

from catalogue.determinism import NOT_REPEATABLE, DeterminismLevel, sharing_of
from engine.errors import RequestInvalid, StrictUnavailable
from engine.generation import Generation
from engine.pipelines.pipeline_model import PipelineModel
from engine.policy.buckets import Buckets, at
from engine.policy.policy import BatchKey
from engine.request import GenerationRequest


class Models:
    """Models by name; `row_limits` maps each to {most pixels: most rows of a step batch}."""

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
        """Make a generation of the request; `state` is passed to `Generation`.

        Raises `RequestInvalid` if its model cannot draw it, and `StrictUnavailable` for a strict request
        where the determinism level is "not repeatable".
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
            raise RequestInvalid(f"{size} is not a multiple of {multiple}")
        if model.max_side is not None and max(request.width, request.height) > model.max_side:
            raise RequestInvalid(f"{size} is above {model.max_side}, the longest side of this model")
        max_pixels = max(self.row_limits[request.model])
        if request.width * request.height > max_pixels:
            raise RequestInvalid(f"{size} is above {max_pixels} pixels")
        if request.is_strict and self._determinism == NOT_REPEATABLE:
            raise StrictUnavailable
        shape = (request.height // model.pixels_per_latent, request.width // model.pixels_per_latent)
        # Rows of an untested shape are assumed to be equal, but a strict request needs a tested one.
        is_tried = (not model.buckets or shape in model.buckets) and not model.has_shapes_of_its_own(request)
        sharing = sharing_of(self._determinism, is_strict=request.is_strict, is_tried=is_tried)
        return BatchKey(request.model, *shape, is_pinned=sharing != "any", is_alone=sharing == "none")

    def max_rows(self, key: BatchKey) -> int:
        """The most rows of one forward pass: the largest bucket within the row limit for this many pixels."""
        pixels = key.latent_height * key.latent_width * self.by_name[key.model].pixels_per_latent ** 2
        limits = self.row_limits[key.model]
        limit = limits[min(max_pixels for max_pixels in limits if max_pixels >= pixels)]
        return self._buckets(key).within(limit)

    def bucket_rows(self, key: BatchKey, num_rows: int) -> int:
        """The bucket in which a step batch of this key with `num_rows` rows runs."""
        return self._buckets(key).rows(num_rows)

    def _buckets(self, key: BatchKey) -> Buckets:
        return at(self.by_name[key.model].buckets, key.latent_height, key.latent_width)
