"""The worker of the simulation: its step times, its slots, and the device seconds of its jobs.

Owns one published curve and what is assumed beside it. It does not know traffic, nor the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.arrivals import StepTable
from bench.plan.profiles import published
from catalogue.lanes import Lane, default_slots
from engine.policy.candidate import BatchKey
from engine.policy.fleet import SimulatedWorker, WorkerKind
from engine.policy.policy import Policy
from engine.policy.simulation import COARSE_STEPS, SimulatedDevice, SimulatedGeneration

TIER = "sd"


@dataclass(frozen=True)
class DeviceCurve:
    """One kind of device with one model, as the `Costs` of its simulation: every image is guided."""

    name: str
    steps: StepTable
    max_rows: int
    num_steps: int
    encode: float = 0.0
    decode: float = 0.0

    @cached_property
    def image_seconds(self) -> float:
        """Device seconds of an image in full step batches: the unit of the scaling signal."""
        row_seconds = min(self.steps.at(rows) / rows for rows in range(1, self.max_rows + 1))
        return 2 * self.num_steps * row_seconds + self.encode + self.decode

    @property
    def full_seconds(self) -> float:
        """Device seconds of the images that fill a step batch."""
        return self.max_rows / 2 * self.image_seconds

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:  # noqa: ARG002  # one key
        """Seconds of a step."""
        return self.steps.at(num_rows)

    def cached_share(self, key: BatchKey) -> float:  # noqa: ARG002
        """No step is cached."""
        return 1.0

    def encode_seconds(self, key: BatchKey) -> float:  # noqa: ARG002
        """Seconds of encoding the prompts of an image."""
        return self.encode

    def decode_seconds(self, key: BatchKey) -> float:  # noqa: ARG002
        """Seconds of decoding an image."""
        return self.decode


def published_curve(name: str, num_steps: int) -> DeviceCurve:
    """The curve of a published profile, whose row cap is the knee, for images of so many steps."""
    found = published()[name]
    profile = found.profile
    return DeviceCurve(
        f"{found.model} {profile.key.width}x{profile.key.height} on an {found.device} (published)",
        StepTable({step.num_rows: step.seconds for step in found.simulated.steps}),
        profile.knee_rows,
        num_steps,
        profile.encode_seconds,
        profile.decode_seconds,
    )


H200_512 = published_curve("h200-qwen-image-512", num_steps=50)  # the steps of its source


@dataclass(frozen=True)
class FleetJob:
    """A job of some images, alike but for their number."""

    num_images: int
    tier: str = TIER
    lane: Lane = "interactive"
    is_strict: bool = False


KEY = BatchKey(TIER, 64, 64)


def new_worker(curve: DeviceCurve) -> SimulatedWorker[FleetJob]:
    """A worker with an idle device, with the slots that its row cap gives it by default."""
    slots = default_slots(curve.max_rows)
    policy = Policy(
        lambda _: curve.max_rows, step_seconds=curve.step_seconds, bucket_rows=lambda _, num_rows: num_rows
    )
    return SimulatedWorker(
        WorkerKind(frozenset({TIER}), slots, slots),
        SimulatedDevice(policy, curve, steps_per_choice=COARSE_STEPS),
        lambda job, at: _generations(curve, job, at),
    )


def _generations(curve: DeviceCurve, job: FleetJob, at: float) -> Sequence[SimulatedGeneration]:
    return [
        SimulatedGeneration(KEY, curve.num_steps, 2, curve.num_steps, lane=job.lane, submitted_at=at)
        for _ in range(job.num_images)
    ]
