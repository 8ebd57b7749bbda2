"""The result of a self-test, kept for the next start, and what it depends on.

Owns the key of a result, its form as plain data, and the rule by which it still holds. It knows no file:
whoever loads models passes in where results are kept (`SelfTestResults`).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol, Self

import torch

from catalogue.pipeline_tasks import PIPELINE_TASKS
from engine.determinism import DETERMINISM_LEVELS, SelfTest
from engine.loading.optimization import Optimization
from engine.pipelines.pipeline_model import Abilities, PipelineModel
from engine.policy.buckets import BUCKET_STEP, Buckets
from engine.self_test.measure import profile_key
from engine.self_test.time_budget import TimeBudget

VERSION = 4
MIN_MORE_TIME = 1.1
"""A test that its time budget cut short runs again once it may take this many times as long."""

Weights = Sequence[tuple[str, int, int]]
"""Of every file of a model: its name, its bytes, and when it was last written (ns)."""


@dataclass(frozen=True)
class SelfTestKey:
    """All that the result depends on, as JSON has it."""

    facts: Mapping[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """The facts and the version in 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """The facts and the version, as they are after a way through JSON."""
        plain: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **self.facts}))
        return plain


@dataclass(frozen=True)
class KeptSelfTest:
    """A result with what tells whether it still holds."""

    result: SelfTest
    output_digest: str  # of an image that the model draws alone, as this device computed it at the test
    abilities: Abilities
    tested_at: str  # ISO 8601, for people
    given_seconds: float | None = None  # of a time budget that did not suffice

    def holds(self, output_digest: str, budget: TimeBudget) -> bool:
        """Whether an image has the digest of then, and no more time is to be had.

        So a result is void even where the cause shows in no fact of the key, as weights changed in place.
        A device that is not repeatable cannot be asked, and has the weakest promise already.
        """
        if self.given_seconds is not None and budget.left_seconds > MIN_MORE_TIME * self.given_seconds:
            return False
        return self.result.determinism == DETERMINISM_LEVELS[-1] or output_digest == self.output_digest

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "determinism": self.result.determinism,
            "row_limits": [[pixels, rows] for pixels, rows in self.result.row_limits.items()],
            "buckets": [[*shape, list(one.sizes)] for shape, one in self.result.buckets.items()],
            "output_digest": self.output_digest,
            "tested_at": self.tested_at,
            "given_seconds": self.given_seconds,
            "abilities": asdict(self.abilities),
        }

    @classmethod
    def from_dict(cls, document: Any, configured: Mapping[int, int]) -> Self:
        """What `to_dict` made, for these configured row limits; raises `ValueError` for anything else."""
        try:
            limits = {int(pixels): int(rows) for pixels, rows in document["row_limits"]}
            buckets = {
                (int(height), int(width)): Buckets(tuple(map(int, sizes)))
                for height, width, sizes in document["buckets"]
            }
            given = document["given_seconds"]
            result = SelfTest(document["determinism"], limits, buckets)
            abilities = Abilities.of_plain(document["abilities"])
            digest, tested_at = str(document["output_digest"]), str(document["tested_at"])
            made = cls(result, digest, abilities, tested_at, given)
            datetime.fromisoformat(made.tested_at)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not the result of a self-test ({type(error).__name__}: {error})") from error
        sizes_are_sound = all(
            list(one.sizes) == sorted(set(one.sizes)) and min(one.sizes, default=1) > 0
            for one in buckets.values()
        )
        limits_are_sound = limits.keys() == configured.keys() and all(
            0 < rows <= max(BUCKET_STEP, configured[pixels]) for pixels, rows in limits.items()
        )
        time_is_sound = given is None or isinstance(given, int | float)
        is_sound = sizes_are_sound and limits_are_sound and time_is_sound and _are_sound(abilities)
        if result.determinism not in DETERMINISM_LEVELS or not is_sound:
            raise ValueError("not the result of a self-test: a value is out of bounds")
        return made


def _are_sound(abilities: Abilities) -> bool:
    found = asdict(abilities)
    num_rows = found.pop("num_guided_rows")
    found.pop("text_padding")  # judged as it was read
    tasks = [*found.pop("uncut_tasks"), *found.pop("uncached_tasks")]
    is_known = all(one in PIPELINE_TASKS for one in tasks)
    return (
        is_known
        and type(num_rows) is int
        and num_rows > 0
        and all(type(one) is bool for one in found.values())
    )


class SelfTestResults(Protocol):
    """Where results are kept between two starts."""

    @property
    def machine(self) -> Mapping[str, str]:
        """What torch cannot tell of this machine, `cpu` (its name) among it, and of our own source."""

    def read(self, model: str, key: SelfTestKey, row_limits: Mapping[int, int]) -> KeptSelfTest | None:
        """The result of exactly this key, or nothing; raises nothing."""

    def write(self, model: str, key: SelfTestKey, kept: KeptSelfTest) -> None:
        """Keep it; raises nothing."""


def self_test_key(
    model: PipelineModel,
    weights: Weights,
    row_limits: Mapping[int, int],
    optimization: Optimization,
    machine: Mapping[str, str],
    image: Mapping[str, Any],
) -> SelfTestKey:
    """The key of a loaded model on its device; `image` says what is drawn of it, and how.

    It shares with a profile the digest of the model, the dtype, the device, its threads and torch's version.
    Weights are known by name, size and time of writing: to read gigabytes would cost what is to be saved.
    """
    side = math.isqrt(max(row_limits)) // model.side_multiple * model.side_multiple
    return SelfTestKey(
        {
            "image": image,
            **model.settings,
            "costs": asdict(profile_key(model, side, side, machine["cpu"])),
            "weights": sorted(map(list, weights)),
            "row_limits": sorted(map(list, row_limits.items())),
            "optimization": asdict(optimization),
            "machine": dict(machine),
            "torch": _torch_facts(model.device),
        }
    )


def _torch_facts(device: torch.device) -> dict[str, Any]:
    """How torch was built and what decides its choice of kernels."""
    facts: dict[str, Any] = {
        "build": torch.__config__.show(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "float32_precision": torch.get_float32_matmul_precision(),
        "is_deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn  # untyped
        gpu = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": [gpu.name, gpu.major, gpu.minor, gpu.total_memory, gpu.multi_processor_count],
            "cuda": torch.version.cuda,
            "cudnn": [cudnn.version(), cudnn.benchmark],
            "tf32": [torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32],
        }
    return facts
