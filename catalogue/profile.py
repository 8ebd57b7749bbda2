"""What work costs on a kind of device: seconds of a step by rows, of encoding and of decoding.

Plain numbers, and the rules that read them: the knee, the row cap, the seconds of any number of rows. A
profile is found by the fingerprint of everything that its numbers depend on, so that a stale one is never
used. This module does not know how profiles are measured, learned or stored.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Self

VERSION = 3
MIN_GAIN = 0.05
"""Larger step batches are worth it if they make at least this share more rows a second."""
NOISE = 0.01
"""Rates that differ by less are taken to be equal, and the smaller step batch is preferred."""


@dataclass(frozen=True)
class ProfileKey:
    """Everything that the numbers of a profile depend on; of weights only the shapes, not the values."""

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


class PublishedKey(NamedTuple):
    """As much of a key as Postgres stores."""

    fingerprint: str
    device_kind: str
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step of this number of rows: the median, the fastest and the slowest."""

    num_rows: int
    seconds: float
    low_seconds: float
    high_seconds: float
    peak_memory_bytes: int | None = None  # of the process on its GPU, step caches included; None on a CPU

    @classmethod
    def of_median(cls, num_rows: int, seconds: float) -> Self:
        """The cost where only the median is known."""
        return cls(num_rows, seconds, low_seconds=seconds, high_seconds=seconds)

    @property
    def rows_per_second(self) -> float:
        """The throughput at this number of rows."""
        return self.num_rows / self.seconds


@dataclass(frozen=True)
class Profile:
    """The costs of one model at one size on one kind of device; raises `ValueError` for impossible ones."""

    key: ProfileKey | PublishedKey
    steps: tuple[StepCost, ...]  # never empty, few rows first
    encode_seconds: float  # all prompts of one generation
    decode_seconds: float  # one image
    num_guided_rows: int  # of a generation with guidance: 2, or 1 if the model takes the scale as an input
    out_of_memory_rows: int | None = None  # the number of rows that did not fit into memory
    decode_memory_bytes: int | None = None  # peak; None on a CPU
    cached_share: float = (
        1.0  # seconds of a step in which every row is cached, divided by those of a full one
    )
    learned_max_rows: int | None = None  # the configured cap, if the costs were observed, not measured

    def __post_init__(self) -> None:
        rows = [step.num_rows for step in self.steps]
        seconds = [one.seconds for one in self.steps]
        if not rows or rows != sorted(set(rows)) or min(rows) < 1 or min(seconds) <= 0:
            raise ValueError(f"invalid profile: row counts {rows} must increase and step times be positive")

    @property
    def is_learned(self) -> bool:
        """Whether the costs were observed in jobs as they ran."""
        return self.learned_max_rows is not None

    @property
    def num_pixels(self) -> int:
        """Pixels of the measured size."""
        return self.key.width * self.key.height

    @cached_property
    def knee_rows(self) -> int:
        """The largest row count that still makes `MIN_GAIN` more rows a second than the knee before it."""
        knee = self.steps[0]
        for step in self.steps[1:]:
            if step.rows_per_second >= (1 + MIN_GAIN) * knee.rows_per_second:
                knee = step
        return knee.num_rows

    @property
    def is_worth_batching(self) -> bool:
        """Whether any larger step batch makes more rows a second than the smallest."""
        return self.knee_rows > self.steps[0].num_rows

    @cached_property
    def max_rows(self) -> int:
        """The cap of step batches: the fewest rows at the highest rate, or the fewest of all.

        A learned profile keeps the configured cap: it has not seen larger step batches, which is no evidence
        against them.
        """
        if self.learned_max_rows is not None:
            return self.learned_max_rows
        if not self.is_worth_batching:
            return self.steps[0].num_rows
        best = max(step.rows_per_second for step in self.steps)
        return next(step.num_rows for step in self.steps if step.rows_per_second >= (1 - NOISE) * best)

    def step_seconds(self, num_rows: int) -> float:
        """Seconds of a step of `num_rows` rows.

        They are those of the smallest measured row count that holds them; beyond the largest one they grow in
        proportion.
        """
        last = self.steps[-1]
        found = next((step.seconds for step in self.steps if step.num_rows >= num_rows), None)
        return last.seconds * num_rows / last.num_rows if found is None else found

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON, with the version and, for human readers, the values that follow from it."""
        found = {
            "knee_rows": self.knee_rows,
            "max_rows": self.max_rows,
            "is_worth_batching": self.is_worth_batching,
        }
        document = asdict(self)
        del document["learned_max_rows"]
        return {"version": VERSION, "fingerprint": self.key.fingerprint, **document, "found": found}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The measured profile that `to_dict` wrote; raises `ValueError` for anything else."""
        version = document.get("version") if isinstance(document, Mapping) else None
        if version != VERSION:
            raise ValueError(f"version {version!r} is not {VERSION}")
        try:
            key = ProfileKey(**document["key"])
            steps = tuple(StepCost(**step) for step in document["steps"])
            names = {one.name for one in fields(cls)} - {"key", "steps", "learned_max_rows"}
            profile = cls(key=key, steps=steps, **{name: document[name] for name in names})
        except (KeyError, TypeError) as error:
            raise ValueError(f"invalid profile: {error}") from error
        if document.get("fingerprint") != key.fingerprint:
            raise ValueError("the fingerprint of the profile does not match its key")
        return profile
