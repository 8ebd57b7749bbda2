"""What a step costs, measured: seconds by rows for one model, size and device, its knee and its cap.

Plain numbers and the rules that read them; a profile is known by what its numbers depend on, so that a
stale one is never used. It knows no file, no tensor and no clock: `engine.self_test.measure` makes profiles.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from engine.policy.policy import BatchKey

VERSION = 2
MIN_GAIN = 0.05
"""A larger step batch pays if it makes at least this share more rows a second."""
NOISE = 0.01
"""Rates that differ by less are equal as far as a measurement can tell: the smaller step batch is quicker."""


@dataclass(frozen=True)
class ProfileKey:
    """What the numbers of a profile depend on; of weights the shapes, since their values cost nothing."""

    model_digest: str  # of the components' classes, configurations, shapes and dtypes
    dtype: str
    device_name: str  # of the hardware: "NVIDIA H100 80GB HBM3", not "cuda:0"
    num_threads: int  # of a CPU; 0 on a GPU
    torch_version: str
    width: int  # pixels
    height: int

    @cached_property
    def fingerprint(self) -> str:
        """The key and the version in 16 hexadecimal digits."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def device_kind(self) -> str:
        """The device in words."""
        if not self.num_threads:
            return self.device_name
        return f"{self.device_name}, {self.num_threads} thread{'s' if self.num_threads > 1 else ''}"


@dataclass(frozen=True)
class StepCost:
    """One bucket: the median seconds of a step of so many rows, the fastest and the slowest."""

    num_rows: int
    seconds: float
    low_seconds: float
    high_seconds: float
    peak_memory_bytes: int | None = None  # of the process on its GPU, step caches too; None: as on a CPU

    @property
    def rows_per_second(self) -> float:
        """The throughput at this bucket."""
        return self.num_rows / self.seconds


@dataclass(frozen=True)
class Profile:
    """The costs of one model at one size on one kind of device; `steps` is never empty, few rows first."""

    key: ProfileKey
    steps: tuple[StepCost, ...]
    encode_seconds: float  # one prompt
    decode_seconds: float  # one image
    num_guided_rows: int  # of a generation with guidance: 2, or 1 where the model takes the scale as input
    out_of_memory_rows: int | None = None  # the bucket that did not fit, hence the last that is not here
    decode_memory_bytes: int | None = None  # peak; None as above
    cached_share: float = 1.0  # seconds of a step that is shallow for all its rows, of a full one's

    def __post_init__(self) -> None:
        rows = [step.num_rows for step in self.steps]
        seconds = [one.seconds for one in self.steps]
        if not rows or rows != sorted(set(rows)) or min(rows) < 1 or min(seconds) <= 0:
            raise ValueError(f"no profile: rows {rows} must rise, and each take more than no time")

    @property
    def knee_rows(self) -> int:
        """The knee of its steps."""
        return find_knee([(step.num_rows, step.rows_per_second) for step in self.steps])

    @property
    def is_worth_batching(self) -> bool:
        """Whether any larger bucket makes more rows a second than the smallest."""
        return self.knee_rows > self.steps[0].num_rows

    @property
    def max_rows(self) -> int:
        """The cap: the smallest bucket as fast as the fastest; where batching does not pay, the smallest."""
        if not self.is_worth_batching:
            return self.steps[0].num_rows
        best = max(step.rows_per_second for step in self.steps)
        return next(step.num_rows for step in self.steps if step.rows_per_second >= (1 - NOISE) * best)

    def step_seconds(self, num_rows: int) -> float:
        """Seconds of a step of `num_rows`: its bucket's, or beyond the last one in proportion to its rows."""
        last = self.steps[-1]
        found = next((step.seconds for step in self.steps if step.num_rows >= num_rows), None)
        return last.seconds * num_rows / last.num_rows if found is None else found

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, with the version and, for people, what follows from the numbers."""
        found = {
            "knee_rows": self.knee_rows,
            "max_rows": self.max_rows,
            "is_worth_batching": self.is_worth_batching,
        }
        return {"version": VERSION, "fingerprint": self.key.fingerprint, **asdict(self), "found": found}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The profile in what `to_dict` gave; raises `ValueError` for anything else."""
        version = document.get("version") if isinstance(document, Mapping) else None
        if version != VERSION:
            raise ValueError(f"version {version!r} is not {VERSION}")
        try:
            key = ProfileKey(**document["key"])
            steps = tuple(StepCost(**step) for step in document["steps"])
            same = cls.__dataclass_fields__.keys() - {"key", "steps"}
            profile = cls(key=key, steps=steps, **{name: document[name] for name in same})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no profile: {error}") from error
        if document.get("fingerprint") != key.fingerprint:
            raise ValueError("its fingerprint is not that of its key")
        return profile


def find_knee(rates: Sequence[tuple[int, float]]) -> int:
    """The largest bucket that still makes `MIN_GAIN` more rows a second than the knee before it.

    `rates` pairs buckets with their rows a second, few rows first.
    """
    knee_rows, knee_rate = rates[0]
    for num_rows, rate in rates[1:]:
        if rate >= (1 + MIN_GAIN) * knee_rate:
            knee_rows, knee_rate = num_rows, rate
    return knee_rows


class Profiles:
    """The profiles of one engine: by model, and then by the most pixels of the class that each stands for."""

    def __init__(
        self, by_class: Mapping[str, Mapping[int, Profile]], pixels_per_latent: Mapping[str, int]
    ) -> None:
        self._by_class = by_class
        self._pixels_per_latent = pixels_per_latent

    def capped(self, row_limits: Mapping[str, Mapping[int, int]]) -> dict[str, dict[int, int]]:
        """The row limits, lowered to what pays where that is known."""
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
        holding = {
            most: profile for most, profile in self._by_class.get(key.model, {}).items() if most >= pixels
        }
        if not holding:
            return None
        profile = holding[min(holding)]
        return profile.step_seconds(num_rows) * pixels / (profile.key.width * profile.key.height)
