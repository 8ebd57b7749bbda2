"""A fleet as a candidate: pools of equal workers with their tiers, row caps and slots, and their capacity.

Owns what a worker of a pool costs in seconds and what it can do at most, by its profiles alone. It does not
know traffic as it arrives, nor latencies.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.plan.profiles import PlanProfile
from bench.plan.traffic import PlannedJob, Traffic
from catalogue.lanes import default_slots
from catalogue.step_cache import num_full_steps
from engine.policy.candidate import BatchKey
from engine.policy.fleet import SimulatedWorker, WorkerKind
from engine.policy.policy import Policy
from engine.policy.simulation import COARSE_STEPS, SimulatedDevice, SimulatedGeneration

HOURS_PER_MONTH = 730.0

Slowing = Callable[[], float]


@dataclass(frozen=True)
class Pool:
    """Equal workers, each on one device: their tiers with profiles and caps, slots, and a device's price."""

    profiles: Mapping[str, PlanProfile]  # by tier
    max_rows: Mapping[str, int]  # by tier
    num_workers: int
    price_per_hour: float = 0.0
    slots: int | None = None  # of each lane; None follows the cap, as in a worker

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers of its workers."""
        return tuple(self.profiles)

    @property
    def num_slots(self) -> int:
        """The slots of each lane of a worker."""
        return self.slots or default_slots(max(self.max_rows.values()))

    def with_workers(self, num_workers: int) -> "Pool":
        """The same pool with another number of workers."""
        return replace(self, num_workers=num_workers)

    def device_seconds(self, traffic: Traffic) -> float:
        """Device seconds of the work that arrives for it in a second, in full step batches.

        Workers are needed for at least so many seconds a second, whatever the policy does.
        """
        return sum(
            rate * self.least_seconds(job) for rate, job in traffic.rates() if job.tier in self.profiles
        )

    def least_seconds(self, job: PlannedJob) -> float:
        """Device seconds of a job whose every step is in a step batch of the best size within the cap."""
        if job.is_strict:
            return self.alone_seconds(job)
        costs, key = WorkerCosts(self), _key_of(job)
        cap = self.max_rows[job.tier]
        row_seconds = min(costs.step_seconds(key, rows) / rows for rows in range(1, cap + 1))
        guided, others = self._full_steps(job)
        num_row_steps = guided * self.profiles[job.tier].profile.num_guided_rows + others
        ends = costs.encode_seconds(key) + costs.decode_seconds(key)
        return job.num_images * (num_row_steps * row_seconds + ends)

    def alone_seconds(self, job: PlannedJob) -> float:
        """Seconds of a job alone on an idle worker: no fleet answers sooner."""
        costs, key = WorkerCosts(self), _key_of(job)

        def step_seconds(each: int) -> float:
            """Seconds in which every image of the job has a step, of so many rows each."""
            cap = each if job.is_strict else max(each, self.max_rows[job.tier])
            num_batches = math.ceil(job.num_images * each / cap)
            return num_batches * costs.step_seconds(key, min(job.num_images * each, cap))

        guided, others = self._full_steps(job)
        steps = guided * step_seconds(self.profiles[job.tier].profile.num_guided_rows)
        steps += others * step_seconds(1)
        return steps + job.num_images * (costs.encode_seconds(key) + costs.decode_seconds(key))

    def _full_steps(self, job: PlannedJob) -> tuple[float, float]:
        """The steps of an image with guidance, and those without; a cached one is its share of a full one."""
        share, guided = self.profiles[job.tier].profile.cached_share, job.num_guided_steps
        full = num_full_steps(job.step_cache, job.num_steps)
        full_others = num_full_steps(job.step_cache, job.num_steps, first=guided)

        def counted(num_steps: int, num_full: int) -> float:
            return num_full + share * (num_steps - num_full)

        return counted(guided, full - full_others), counted(job.num_steps - guided, full_others)

    def workers(self, slowing: Slowing = lambda: 1.0) -> Iterable[SimulatedWorker[PlannedJob]]:
        """Its workers, idle; `slowing` multiplies the seconds of the device, as other programs do."""
        kind = WorkerKind(frozenset(self.tiers), self.num_slots, self.num_slots)
        for _ in range(self.num_workers):
            costs = WorkerCosts(self, slowing)
            policy = Policy(
                lambda key: self.max_rows[key.model],
                step_seconds=costs.profiled_seconds,
                bucket_rows=lambda _, num_rows: num_rows,  # a profile has the seconds of each bucket
            )
            device = SimulatedDevice(policy, costs, steps_per_choice=COARSE_STEPS)
            yield SimulatedWorker(kind, device, self._generations_of)

    def _generations_of(self, job: PlannedJob, at: float) -> Sequence[SimulatedGeneration]:
        profile = self.profiles[job.tier].profile
        return [
            SimulatedGeneration(
                _key_of(job),
                job.num_steps,
                profile.num_guided_rows,
                job.num_guided_steps,
                job.step_cache,
                lane=job.lane,
                submitted_at=at,
            )
            for _ in range(job.num_images)
        ]


@dataclass(frozen=True)
class Fleet:
    """Pools that together serve all tiers; no tier is in two of them."""

    pools: tuple[Pool, ...]

    @property
    def num_workers(self) -> int:
        """Devices of all pools."""
        return sum(pool.num_workers for pool in self.pools)

    @property
    def price_per_month(self) -> float:
        """What its devices cost in a month of 730 hours."""
        return HOURS_PER_MONTH * sum(pool.num_workers * pool.price_per_hour for pool in self.pools)

    @property
    def max_rows(self) -> dict[str, int]:
        """The caps of all tiers."""
        return {tier: rows for pool in self.pools for tier, rows in pool.max_rows.items()}

    def as_words(self) -> str:
        """Its pools in words."""
        parts = []
        for pool in self.pools:
            caps = ", ".join(f"{tier} up to {rows} rows" for tier, rows in pool.max_rows.items())
            device = next(iter(pool.profiles.values())).device
            parts.append(f"{pool.num_workers} x {device}: {caps}")
        return "; ".join(parts)


class WorkerCosts:
    """The costs of a pool's device, from its profiles, in proportion to the pixels of a key."""

    def __init__(self, pool: Pool, slowing: Slowing = lambda: 1.0) -> None:
        self._profiles = {tier: one.simulated for tier, one in pool.profiles.items()}
        self._slowing = slowing

    def profiled_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Seconds of a step as the profile has them, which the policy is given."""
        profile = self._profiles[key.model]
        return profile.step_seconds(num_rows) * key.latent_height * key.latent_width / profile.num_pixels

    def step_seconds(self, key: BatchKey, num_rows: int) -> float:
        """Seconds of a step as it runs."""
        return self._slowing() * self.profiled_seconds(key, num_rows)

    def cached_share(self, key: BatchKey) -> float:
        """Seconds of a step in which every row is cached, divided by those of a full step."""
        return self._profiles[key.model].cached_share

    def encode_seconds(self, key: BatchKey) -> float:
        """Seconds of encoding, which does not depend on the size."""
        return self._slowing() * self._profiles[key.model].encode_seconds

    def decode_seconds(self, key: BatchKey) -> float:
        """Seconds of decoding."""
        profile = self._profiles[key.model]
        scale = key.latent_height * key.latent_width / profile.num_pixels
        return self._slowing() * profile.decode_seconds * scale


def _key_of(job: PlannedJob) -> BatchKey:
    # How strict jobs share step batches depends on the device, which a plan does not know: here they do not.
    return BatchKey(job.tier, job.height, job.width, is_pinned=job.is_strict, is_alone=job.is_strict)


def caps_to_try(profile: PlanProfile, configured: int | None = None) -> list[int]:
    """Row caps that a plan compares: the least step batch, the knee, the profile's cap, the configured one.

    A cap holds one generation with guidance at least. A configured one above that of the profile is left out,
    since a worker lowers it to the profile's.
    """
    one = profile.profile
    least = max(one.steps[0].num_rows, one.num_guided_rows)
    found = {least, one.knee_rows, one.max_rows, min(configured or one.max_rows, one.max_rows)}
    return sorted(rows for rows in found if least <= rows <= max(one.steps[-1].num_rows, least))
