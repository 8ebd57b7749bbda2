"""Finds the cheapest fleet that meets the goals, and the front of what else there is.

Capacity by the profiles rules out most fleets before anything is simulated; of each layout, device and row
cap the fewest workers that meet the goals are found by doubling and bisection. What is recommended is
simulated again with other seeds. It does not know files, tables or plots.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.plan.fleets import Fleet, Pool, caps_to_try
from bench.plan.outcome import NO_OVERHEADS, Outcome, Tried, simulate
from bench.plan.profiles import PlanProfile
from bench.plan.request import DeviceOffer, Goals, PlanRequest
from bench.plan.traffic import Traffic
from engine.policy.fleet import Overheads

SEED = 1  # of the search; all candidates see the same arrivals
CHECK_SEEDS = (11, 12, 13, 14, 15)
ENOUGH_SEEDS = 4
"""A fleet is recommended if it meets the goals with at least so many of the seeds of the check."""
MAX_STEPS_UP = 4
"""Workers that are added, one by one, to a fleet that does not pass the check."""
NOISE = 0.02
"""Latencies that differ by less are taken to be equal, and the smaller step batches are preferred."""

Say = Callable[[str], None]
Profiles = Mapping[tuple[str, str], PlanProfile]
"""By device and tier."""


@dataclass(frozen=True)
class Plan:
    """The recommended fleet if the goals can be met, everything that was tried, and what was ruled out."""

    request: PlanRequest
    recommended: Tried | None
    num_met: int  # seeds of the check with which the recommended fleet meets the goals
    tried: tuple[Tried, ...]
    ruled_out: tuple[str, ...] = field(default=())

    @property
    def front(self) -> list[Tried]:
        """The fleets of which none is both cheaper and faster, the cheapest first."""
        found: list[Tried] = []
        for one in sorted(self.tried, key=lambda one: (_price(one.fleet), one.p95)):
            if one.keeps_up and (not found or one.p95 < found[-1].p95):
                found.append(one)
        return found


def find_plan(
    request: PlanRequest,
    profiles: Profiles,
    configured: Mapping[str, int],
    *,
    overheads: Overheads = NO_OVERHEADS,
    say: Say = lambda _: None,
) -> Plan:
    """Search; `configured` has the caps of `calotype.toml` by tier, which are tried too."""
    search = _Search(request.goals, request.traffic, overheads, say)
    tiers = request.traffic.tiers
    layouts: list[list[tuple[str, ...]]] = [[tuple(tiers)]]
    if len(tiers) > 1:
        layouts.append([(tier,) for tier in tiers])
    cheapest = (search.cheapest(layout, request.devices, profiles, configured) for layout in layouts)
    found = [fleet for fleet in cheapest if fleet is not None]
    recommended, num_met = search.checked(sorted(found, key=_price))
    return Plan(request, recommended, num_met, tuple(search.tried), tuple(search.ruled_out))


class _Search:
    """The fleets tried so far, for one traffic and its goals."""

    def __init__(self, goals: Goals, traffic: Traffic, overheads: Overheads, say: Say) -> None:
        self._goals = goals
        self._traffic = traffic
        self._overheads = overheads
        self._say = say
        self.tried: list[Tried] = []
        self.ruled_out: list[str] = []

    def cheapest(
        self,
        layout: Sequence[tuple[str, ...]],
        devices: Iterable[DeviceOffer],
        profiles: Profiles,
        configured: Mapping[str, int],
    ) -> Fleet | None:
        """The cheapest fleet of this layout that meets the goals, or None: the pools do not share workers."""
        offers, pools = list(devices), []
        for tiers in layout:
            traffic, best = self._traffic.of_tiers(tiers), None
            for pool, offer in _pools(tiers, offers, profiles, configured):
                found = self._fewest(pool, offer, traffic, best, is_whole=len(layout) == 1)
                if found is not None and (best is None or found.is_better_than(best)):
                    best = found
            if best is None:
                return None
            pools.append(best.pool)
        fleet = Fleet(tuple(pools))
        if len(layout) > 1:
            self._try(fleet, self._traffic)
        return fleet

    def checked(self, fleets: Iterable[Fleet]) -> tuple[Tried | None, int]:
        """The first of these that meets the goals with other seeds too, if need be with some more workers."""
        for fleet in fleets:
            for larger in itertools.islice(_growing(fleet), MAX_STEPS_UP):
                if not self._is_affordable(larger):
                    break
                self._say(f"checking {larger.as_words()}")
                outcomes = tuple(
                    simulate(larger, self._traffic, seed, overheads=self._overheads) for seed in CHECK_SEEDS
                )
                checked = Tried(larger, outcomes)
                self.tried.append(checked)
                num_met = sum(self._meets(one) for one in outcomes)
                if num_met >= ENOUGH_SEEDS:
                    return checked, num_met
        return None, 0

    def _fewest(
        self, pool: Pool, offer: DeviceOffer, traffic: Traffic, best: "_Fewest | None", *, is_whole: bool
    ) -> "_Fewest | None":
        """The fewest workers of the pool that meet the goals, or None; none dearer than `best` is tried."""
        words = Fleet((pool.with_workers(1),)).as_words().partition(" x ")[2]
        alone = _quantile([(rate, pool.alone_seconds(job)) for rate, job in traffic.rates()], 0.95)
        if self._goals.p95_seconds is not None and alone > self._goals.p95_seconds:
            self.ruled_out.append(f"{words}: 95 % of jobs take up to {alone:.3g} s alone, on any number")
            return None
        least = max(1, math.ceil(pool.device_seconds(traffic) / self._goals.max_load))
        if least > offer.max_count:
            self.ruled_out.append(f"{words}: the work alone needs {least}, and there are {offer.max_count}")
            return None
        if best is not None and _price_of(pool.with_workers(least)) > _price_of(best.pool):
            self.ruled_out.append(f"{words}: {least} for the work alone cost more than what was found")
            return None
        seen: dict[int, Outcome] = {}

        def meets(num_workers: int) -> bool:
            fleet = Fleet((pool.with_workers(num_workers),))
            seen[num_workers] = self._try(fleet, traffic) if is_whole else self._simulated(fleet, traffic)
            return self._meets(seen[num_workers])

        failing, step, num = least - 1, 1, least
        while not meets(num):
            failing, num, step = num, num + step, 2 * step
            if num > offer.max_count:
                self.ruled_out.append(f"{words}: {offer.max_count} do not meet the goals")
                return None
        while num - failing > 1:
            middle = (failing + num) // 2
            failing, num = (failing, middle) if meets(middle) else (middle, num)
        return _Fewest(pool.with_workers(num), seen[num].p95)

    def _try(self, fleet: Fleet, traffic: Traffic) -> Outcome:
        outcome = self._simulated(fleet, traffic)
        self.tried.append(Tried(fleet, (outcome,)))
        return outcome

    def _simulated(self, fleet: Fleet, traffic: Traffic) -> Outcome:
        outcome = simulate(fleet, traffic, SEED, overheads=self._overheads)
        self._say(f"{fleet.as_words()}: p95 {outcome.p95:.3g} s, {outcome.busy_share:.0%} busy")
        return outcome

    def _meets(self, outcome: Outcome) -> bool:
        limits = ((1, self._goals.p95_seconds), (2, self._goals.p99_seconds))
        return outcome.keeps_up and all(
            seconds[index] <= limit
            for index, limit in limits
            if limit is not None
            for seconds in outcome.seconds_by_tier.values()
        )

    def _is_affordable(self, fleet: Fleet) -> bool:
        limit = self._goals.max_price_per_month
        return limit is None or fleet.price_per_month <= limit


@dataclass(frozen=True)
class _Fewest:
    """A pool with the fewest workers that meet the goals, and its p95 in seconds."""

    pool: Pool
    p95: float

    def is_better_than(self, other: "_Fewest") -> bool:
        """Whether it is cheaper, or as cheap and about as fast with smaller step batches."""
        own, others = _price_of(self.pool), _price_of(other.pool)
        return own < others or (own == others and self.p95 <= (1 + NOISE) * other.p95)


def _pools(
    tiers: tuple[str, ...],
    devices: Iterable[DeviceOffer],
    profiles: Profiles,
    configured: Mapping[str, int],
) -> Iterator[tuple[Pool, DeviceOffer]]:
    """A pool for each device that has profiles of all these tiers, and for each choice of caps."""
    for offer in devices:
        if not all(tier in offer.profiles for tier in tiers):
            continue
        of_tier = {tier: profiles[offer.name, tier] for tier in tiers}
        caps = {tier: caps_to_try(of_tier[tier], configured.get(tier)) for tier in tiers}
        levels = range(max(map(len, caps.values())))
        seen = set()
        for level in reversed(levels):  # the largest first: it needs the fewest workers for the work alone
            chosen = {tier: rows[min(level, len(rows) - 1)] for tier, rows in caps.items()}
            if tuple(chosen.values()) not in seen:
                seen.add(tuple(chosen.values()))
                yield Pool(of_tier, chosen, 1, offer.price_per_hour), offer


def _growing(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, then with a worker more in the pool in which it makes most of a difference, and so on."""
    while True:
        yield fleet
        smallest = min(range(len(fleet.pools)), key=lambda index: fleet.pools[index].num_workers)
        fleet = Fleet(
            tuple(
                pool.with_workers(pool.num_workers + 1) if index == smallest else pool
                for index, pool in enumerate(fleet.pools)
            )
        )


def _quantile(weighted: Sequence[tuple[float, float]], share: float) -> float:
    """The value that `share` of the weight does not exceed."""
    ordered = sorted((value, weight) for weight, value in weighted)
    limit = share * sum(weight for _, weight in ordered)
    for value, total in zip(
        (value for value, _ in ordered), itertools.accumulate(weight for _, weight in ordered), strict=True
    ):
        if total >= limit:
            return value
    return ordered[-1][0]


def _price(fleet: Fleet) -> tuple[float, int]:
    """By which fleets are compared: money, then devices, for offers without a price."""
    return fleet.price_per_month, fleet.num_workers


def _price_of(pool: Pool) -> tuple[float, int]:
    return _price(Fleet((pool,)))
