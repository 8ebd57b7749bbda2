"""What is compared: services that differ in workers or batch cap, and requests in their fields.

An arm is a service and a request; each factor is one change of the base arm, but for steps without step
batches, which says what steps change where nothing is batched. It measures nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

NUM_ROWS_OF_AN_IMAGE = 2
"""With guidance, an image has two rows in a step batch; without it, one."""


@dataclass(frozen=True)
class Service:
    """A configuration of `calotype up`: its workers and the cap of step batches in images."""

    name: str
    num_workers: int = 2
    max_images: int = 8
    clock: Literal["wall", "CPU"] = "wall"
    """What seconds on it are of: the time until an answer over HTTP, or that of the processor."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, which share the machine's cores."""
        return tuple(f"cpu:{number}" for number in range(self.num_workers))

    @property
    def max_rows(self) -> int:
        """The cap in rows, as `calotype.toml` has it."""
        return NUM_ROWS_OF_AN_IMAGE * self.max_images


BASE = Service("2 workers, 8 images a step batch")
UNBATCHED = Service("2 workers, no step batches", max_images=1)
SERVICES = (
    BASE,
    Service("2 workers, 2 images a step batch", max_images=2),
    UNBATCHED,
    Service("1 worker, 8 images a step batch", num_workers=1),
)
ENGINE = Service("the engine alone, on one thread", num_workers=1, clock="CPU")
"""What weights are compared on (`bench.table.weights`)."""

REQUEST: Mapping[str, Any] = {
    "width": 128,
    "height": 128,
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "scheduler": "ddim",
}


@dataclass(frozen=True)
class Arm:
    """A request on a service; `setting` is how a plot names it within its factor."""

    factor: str
    setting: str
    service: Service = BASE
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        """The fields of its requests, without prompt and seed."""
        return {**REQUEST, **self.changes}

    @property
    def num_at_once(self) -> int:
        """How many of its images all workers of the service draw together."""
        rows = NUM_ROWS_OF_AN_IMAGE if self.request["guidance_scale"] > 1 else 1
        return self.service.num_workers * (self.service.max_rows // rows)

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.factor}: {self.setting}"


FLOAT32, INT8 = (Arm("weights", setting, ENGINE) for setting in ("float32", "int8"))
BASE_ARM = Arm("base", "20 steps, 128x128")
FACTORS: Mapping[str, Sequence[Arm]] = {
    "steps": [
        Arm("steps", f"{steps}", changes={"num_inference_steps": steps}) for steps in (4, 8, 12, 30, 50)
    ],
    "resolution": [
        Arm("resolution", f"{side}x{side}", changes={"width": side, "height": side}) for side in (64, 192)
    ],
    "batch cap": [Arm("batch cap", f"{one.max_images}", one) for one in SERVICES[1:3]],
    "steps without step batches": [
        Arm("steps without step batches", f"{steps}", UNBATCHED, {"num_inference_steps": steps})
        for steps in (4, 50)
    ],
    "workers": [Arm("workers", "1", SERVICES[3])],
    "guidance": [
        Arm("guidance", "first half", changes={"guidance_cutoff": 0.5}),
        Arm("guidance", "none", changes={"guidance_scale": 1.0}),
    ],
    "step cache": [
        Arm("step cache", f"every {interval}", changes={"step_cache": interval}) for interval in (2, 3, 5)
    ],
    "few-step sampler": [
        Arm(
            "few-step sampler",
            "dpmpp_2m, 8 steps",
            changes={"scheduler": "dpmpp_2m", "num_inference_steps": 8},
        )
    ],
    "weights": [INT8],
}
BASE_SETTINGS: Mapping[str, str] = {
    "steps": "20",
    "resolution": "128x128",
    "batch cap": "8",
    "steps without step batches": "20, with them",
    "workers": "2",
    "guidance": "all steps",
    "step cache": "off",
    "few-step sampler": "ddim, 20 steps",
    "weights": "float32",
}
"""The base arm's setting of each factor."""


def arms() -> list[Arm]:
    """The base arm, then the arms of every factor that is measured on a service."""
    return [BASE_ARM, *(arm for one in FACTORS.values() for arm in one if arm.service is not ENGINE)]
