"""What steps, encodings and decodings took here as generations ran: the last of each, and their medians.

The engine thread adds, other threads read. It does not know profiles or tiers, nor who needs the numbers;
what is measured on purpose is `engine.self_test.measure`'s.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from engine.policy.policy import BatchKey

NUM_KEPT = 64
"""Of each kind and size, the last; so that what changes with the machine's load is forgotten."""
MIN_SEEN = 3
"""Fewer say nothing: the first one of a process warms up, and a median needs company."""

K = TypeVar("K")
Shape = tuple[str, int, int]  # model, latent height, latent width


@dataclass(frozen=True)
class Costs:
    """What one model costs at sizes of one kind, for each latent pixel where it grows with the size."""

    step_seconds: Mapping[int, float]  # of full steps, by bucket; never empty
    encode_seconds: float  # all prompts of a generation, from the cache of embeddings too
    decode_seconds: float
    cached_share: float  # seconds of a step that is shallow for all its rows, of a full one's; 1: not seen


class SeenCosts:
    """The costs of one engine; a step of full rows and shallow ones together is not kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._full: dict[tuple[Shape, int], deque[float]] = _kept()
        self._cached: dict[tuple[Shape, int], deque[float]] = _kept()
        self._encodings: dict[str, deque[float]] = _kept()
        self._decodings: dict[Shape, deque[float]] = _kept()

    def saw_step(self, key: BatchKey, bucket: int, seconds: float, *, full_share: float = 1.0) -> None:
        """Take note of a step batch at `bucket` rows; `full_share` of its rows ran the whole model."""
        place = (_shape(key), bucket)
        with self._lock:
            if full_share == 1:
                self._full[place].append(seconds)
            elif not full_share:
                self._cached[place].append(seconds)

    def saw_encoding(self, key: BatchKey, seconds: float) -> None:
        """Take note of what the prompts of one generation took."""
        with self._lock:
            self._encodings[key.model].append(seconds)

    def saw_decoding(self, key: BatchKey, seconds: float) -> None:
        """Take note of what one image took."""
        with self._lock:
            self._decodings[_shape(key)].append(seconds)

    def costs(self, model: str, min_latents: int, max_latents: int) -> Costs | None:
        """What the model costs at sizes of so many latent pixels; None while too little was seen.

        Of each bucket it is the largest size that counts: from there down costs are about in proportion.
        """
        with self._lock:  # the engine thread waits for it, so that nothing is computed here
            all_full = {place: list(seen) for place, seen in self._full.items() if place[0][0] == model}
            all_cached = {place: list(seen) for place, seen in self._cached.items() if place[0][0] == model}
            all_decodings = {
                shape: list(seen) for shape, seen in self._decodings.items() if shape[0] == model
            }
            encodings = list(self._encodings.get(model, ()))
        full, cached = _medians(all_full, MIN_SEEN), _medians(all_cached, MIN_SEEN)
        decodings = _medians(all_decodings, 1)
        fits = [
            shape
            for shape in sorted({shape for shape, _ in full}, key=_latents)
            if min_latents <= _latents(shape) <= max_latents and shape in decodings
        ]
        if not fits:
            return None
        steps = {
            rows: seconds / _latents(shape)
            for shape in fits  # small ones first, so that a larger one takes their place
            for (other, rows), seconds in full.items()
            if other == shape
        }
        shares = [cached[place] / full[place] for place in cached if place[0] in fits and place in full]
        return Costs(
            step_seconds=dict(sorted(steps.items())),
            encode_seconds=sum(encodings) / len(encodings) if encodings else 0.0,
            decode_seconds=decodings[fits[-1]] / _latents(fits[-1]),
            cached_share=min(1.0, max(shares, default=1.0)),
        )


def _medians(seen: Mapping[K, list[float]], least: int) -> dict[K, float]:
    """Of all that were seen at least so often."""
    return {place: median(seconds) for place, seconds in seen.items() if len(seconds) >= least}


def _kept() -> defaultdict[K, deque[float]]:
    return defaultdict(lambda: deque(maxlen=NUM_KEPT))


def _shape(key: BatchKey) -> Shape:
    return key.model, key.latent_height, key.latent_width


def _latents(shape: Shape) -> int:
    return shape[1] * shape[2]
