"""The result of a self-test, stored for the next start, and its key.

Owns all that a result depends on, its form as JSON, and the rule for whether it still holds. It knows no
files: the caller passes in a store (`SelfTestResults`).
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

from catalogue.determinism import DETERMINISM_LEVELS
from catalogue.pipeline_tasks import PIPELINE_TASKS
from engine.loading.optimization import Optimization
from engine.pipelines.pipeline_model import Abilities, PipelineModel
from engine.policy.buckets import BUCKET_STEP, Buckets
from engine.self_test.measurement import profile_key
from engine.self_test.self_test import SelfTest
from engine.self_test.time_budget import TimeBudget

VERSION = 4
MIN_MORE_TIME = 1.1
"""A test that spent its time budget runs again if the budget grows by at least this factor."""

Weights = Sequence[tuple[str, int, int]]
"""Name, size (bytes) and modification time (ns) of every file of a model."""


@dataclass(frozen=True)
class SelfTestKey:
    """All facts that a result depends on, as JSON values."""

    facts: Mapping[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the facts and the version, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """Return the facts and the version, converted to JSON and back."""
        plain: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **self.facts}))
        return plain


@dataclass(frozen=True)
class StoredSelfTest:
    """A result, with the facts that decide whether it still holds."""

    result: SelfTest
    output_digest: str  # of the first image, drawn alone on this device at the time of the test
    abilities: Abilities
    tested_at: str  # ISO 8601, for operators
    given_seconds: float | None = None  # the time budget, if it was spent

    def holds(self, output_digest: str, budget: TimeBudget) -> bool:
        """Whether the first image still has the stored digest, and a new test would get no more time.

        The digest detects changes that are not in the key, such as weights changed in place. It is not
        compared for a device that is not repeatable, which has the weakest level anyway.
        """
        if self.given_seconds is not None and budget.left_seconds > MIN_MORE_TIME * self.given_seconds:
            return False
        return self.result.determinism == DETERMINISM_LEVELS[-1] or output_digest == self.output_digest

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
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
        """Read the output of `to_dict`, for these configured row limits; raises `ValueError` if invalid."""
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
            raise ValueError(f"invalid self-test result ({type(error).__name__}: {error})") from error
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
            raise ValueError("invalid self-test result: a value is out of bounds")
        return made


def _are_sound(abilities: Abilities) -> bool:
    found = asdict(abilities)
    num_rows = found.pop("num_guided_rows")
    found.pop("text_padding")  # validated by `Abilities.of_plain`
    tasks = [*found.pop("uncut_tasks"), *found.pop("uncached_tasks")]
    is_known = all(one in PIPELINE_TASKS for one in tasks)
    return (
        is_known
        and type(num_rows) is int
        and num_rows > 0
        and all(type(one) is bool for one in found.values())
    )


class SelfTestResults(Protocol):
    """A store of results that outlives the process."""

    @property
    def machine(self) -> Mapping[str, str]:
        """Facts about this machine and our source that torch does not know; `cpu` is the CPU's name."""

    def read(self, model: str, key: SelfTestKey, row_limits: Mapping[int, int]) -> StoredSelfTest | None:
        """Return the result stored under this key, or None; never raises."""

    def write(self, model: str, key: SelfTestKey, stored: StoredSelfTest) -> None:
        """Store a result; never raises."""


def self_test_key(
    model: PipelineModel,
    weights: Weights,
    row_limits: Mapping[int, int],
    optimization: Optimization,
    machine: Mapping[str, str],
    image: Mapping[str, Any],
) -> SelfTestKey:
    """Return the key of a loaded model on its device; `image` describes the requests of first image and test.

    It includes the key of a profile: digest of the model, dtype, device, threads and torch's version. Weights
    are identified by name, size and modification time: reading gigabytes would take as long as the test.
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
    """Return how torch was built and the settings that decide its choice of kernels."""
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
