"""Finds the cheapest fleet that meets the goals, and the front of what else there is.

Capacity by the profiles rules out fleets before anything is simulated; of each layout, device and row cap the
fewest workers that meet the goals are found by doubling and bisection. What that finds is simulated again
with other seeds, the cheapest first. It does not know files, tables or plots.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

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
SHARES_MORE = (0.0, 0.25, 0.5, 1.0)
"""Of the recommended workers, which are added to each pool, for the front: at least 1, 2, 3 and 4."""
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
    is_short: bool = False  # whether a fleet was ruled out because there are too few devices

    @property
    def front(self) -> list[Tried]:
        """The fleets of which none is both cheaper and faster, the cheapest first."""
        found: list[Tried] = []
        for one in sorted(self.distinct, key=lambda one: (_price(one.fleet), one.p95)):
            if one.keeps_up and (not found or one.p95 < found[-1].p95):
                found.append(one)
        return found

    @property
    def distinct(self) -> list[Tried]:
        """Each fleet that was tried once, with the most seeds."""
        found: dict[tuple[str, float], Tried] = {}
        for one in self.tried:
            known = found.get(_name(one.fleet))
            if known is None or len(one.outcomes) > len(known.outcomes):
                found[_name(one.fleet)] = one
        return list(found.values())


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
    found = [
        one for layout in layouts for one in search.candidates(layout, request.devices, profiles, configured)
    ]
    recommended, num_met = search.checked(found)
    return Plan(request, recommended, num_met, tuple(search.tried), tuple(search.ruled_out), search.is_short)


class _Search:
    """The fleets tried so far, for one traffic and its goals."""

    def __init__(self, goals: Goals, traffic: Traffic, overheads: Overheads, say: Say) -> None:
        self._goals = goals
        self._traffic = traffic
        self._overheads = overheads
        self._say = say
        self.tried: list[Tried] = []
        self.ruled_out: list[str] = []
        self.is_short = False

    def candidates(
        self,
        layout: Sequence[tuple[str, ...]],
        devices: Iterable[DeviceOffer],
        profiles: Profiles,
        configured: Mapping[str, int],
    ) -> list["_Candidate"]:
        """For each choice of offers the cheapest fleet of this layout that meets the goals, by their price.

        Pools do not share workers, so that each is searched alone.
        """
        offers, pools = list(devices), []
        for tiers in layout:
            traffic, best = self._traffic.of_tiers(tiers), dict[str, _Fewest]()
            for pool, offer in _pools(tiers, offers, profiles, configured):
                known = best.get(offer.name)
                found = self._fewest(pool, offer, traffic, known, is_whole=len(layout) == 1)
                if found is not None and (known is None or found.is_better_than(known)):
                    best[offer.name] = found
            if not best:
                return []
            pools.append(list(best.values()))
        every = [
            _Candidate(Fleet(tuple(one.pool for one in each)), tuple(one.offer for one in each))
            for each in itertools.product(*pools)
        ]
        every.sort(key=lambda one: _price(one.fleet))
        available = [one for one in every if not one.shortage]
        if not available:
            self._rule_out_short(every[0].fleet.as_words(), every[0].shortage)
        elif len(layout) > 1:
            self._try(available[0].fleet, self._traffic)
        return available

    def checked(self, candidates: Iterable["_Candidate"]) -> tuple[Tried | None, int]:
        """The cheapest that meets the goals with other seeds too, if need be with some more workers."""
        numbers = itertools.count()
        queue = [(_price(one.fleet), next(numbers), 0, one) for one in candidates]
        heapify(queue)
        while queue:
            _, _, num_added, one = heappop(queue)
            if not self._is_affordable(one.fleet):
                break
            self._say(f"checking {one.fleet.as_words()}")
            outcomes = tuple(
                simulate(one.fleet, self._traffic, seed, overheads=self._overheads) for seed in CHECK_SEEDS
            )
            checked = Tried(one.fleet, outcomes)
            self.tried.append(checked)
            num_met = sum(map(self._meets, outcomes))
            if num_met >= ENOUGH_SEEDS:
                self._try_beside(one, checked)
                return checked, num_met
            larger = one.grown(self._weakest(one.fleet, outcomes))
            if larger.shortage:
                self._rule_out_short(larger.fleet.as_words(), larger.shortage)
            elif num_added < MAX_STEPS_UP:
                heappush(queue, (_price(larger.fleet), next(numbers), num_added + 1, larger))
        return None, 0

    def _try_beside(self, chosen: "_Candidate", checked: Tried) -> None:
        """Simulate some devices less and more, so that the front does not end at the goals.

        They see the arrivals that gave the chosen fleet its median p95, so that they differ from it by their
        devices alone.
        """
        seeds = zip(CHECK_SEEDS, checked.outcomes, strict=True)
        seed = next(seed for seed, outcome in seeds if outcome.p95 == checked.p95)
        known = {_name(one.fleet) for one in self.tried}
        for one in chosen.beside():
            if not one.shortage and _name(one.fleet) not in known:
                self._try(one.fleet, self._traffic, seed)

    def _fewest(
        self, pool: Pool, offer: DeviceOffer, traffic: Traffic, best: "_Fewest | None", *, is_whole: bool
    ) -> "_Fewest | None":
        """The fewest workers of the pool that meet the goals, or None; none dearer than `best` is tried."""
        words = Fleet((pool.with_workers(1),)).as_words().partition(" x ")[2]
        if slow := self._slow_alone(pool, traffic):
            self.ruled_out.append(f"{words}: {slow}")
            return None
        least = max(1, math.ceil(pool.device_seconds(traffic) / self._goals.max_load))
        if least > offer.max_count:
            self._rule_out_short(words, f"the work alone needs {least}, and there are {offer.max_count}")
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
            if num == offer.max_count:
                self._rule_out_short(words, f"{offer.max_count} do not meet the goals")
                return None
            failing, num, step = num, min(num + step, offer.max_count), 2 * step
        while num - failing > 1:
            middle = (failing + num) // 2
            failing, num = (failing, middle) if meets(middle) else (middle, num)
        return _Fewest(pool.with_workers(num), offer, seen[num].p95)

    def _rule_out_short(self, words: str, reason: str) -> None:
        """Note a fleet that might do with more devices than there are."""
        self.ruled_out.append(f"{words}: {reason}")
        self.is_short = True

    def _slow_alone(self, pool: Pool, traffic: Traffic) -> str:
        """Which tier misses a goal even on idle workers, in words; empty if none does."""
        for tier, goal in itertools.product(pool.tiers, self._latencies):
            alone = [
                (rate, pool.alone_seconds(job))
                for rate, job in traffic.rates()
                if job.tier == tier and job.lane == "interactive"
            ]
            if alone and (seconds := _quantile(alone, goal.share)) > goal.seconds:
                jobs = f"{100 * goal.share:g} % of the interactive jobs of {tier}"
                return f"{jobs} take up to {seconds:.3g} s alone, on any number"
        return ""

    def _try(self, fleet: Fleet, traffic: Traffic, seed: int = SEED) -> Outcome:
        outcome = self._simulated(fleet, traffic, seed)
        self.tried.append(Tried(fleet, (outcome,)))
        return outcome

    def _simulated(self, fleet: Fleet, traffic: Traffic, seed: int = SEED) -> Outcome:
        outcome = simulate(fleet, traffic, seed, overheads=self._overheads)
        self._say(f"{fleet.as_words()}: p95 {outcome.p95:.3g} s, {outcome.busy_share:.0%} busy")
        return outcome

    def _meets(self, outcome: Outcome) -> bool:
        return outcome.keeps_up and all(self._excess(outcome, tier) <= 1 for tier in outcome.seconds_by_tier)

    def _excess(self, outcome: Outcome, tier: str) -> float:
        """The latency of a tier divided by its goal, of the goal that it misses most; 0 without one."""
        seconds = outcome.seconds_by_tier.get(tier)
        if seconds is None:
            return 0.0
        return max((seconds[goal.place] / goal.seconds for goal in self._latencies), default=0.0)

    def _weakest(self, fleet: Fleet, outcomes: Sequence[Outcome]) -> int:
        """The place of the pool whose jobs grow most, or that misses a goal by most if all keep up."""

        def weakness(place: int) -> tuple[float, float]:
            tiers, failed = fleet.pools[place].tiers, [one for one in outcomes if not self._meets(one)]
            growth = sum(
                one.growth_by_tier.get(tier, 0) for one in failed if not one.keeps_up for tier in tiers
            )
            return growth, max(self._excess(one, tier) for one in failed for tier in tiers)

        return max(range(len(fleet.pools)), key=weakness)

    @property
    def _latencies(self) -> list["_Latency"]:
        goals = ((0.95, 1, self._goals.p95_seconds), (0.99, 2, self._goals.p99_seconds))
        return [_Latency(share, place, limit) for share, place, limit in goals if limit is not None]

    def _is_affordable(self, fleet: Fleet) -> bool:
        limit = self._goals.max_price_per_month
        return limit is None or fleet.price_per_month <= limit


class _Latency(NamedTuple):
    """A goal: the share of jobs that it is for, its place in the seconds of an outcome, and its limit."""

    share: float
    place: int
    seconds: float


@dataclass(frozen=True)
class _Candidate:
    """A fleet that meets the goals with the seed of the search, and the offer of each of its pools."""

    fleet: Fleet
    offers: tuple[DeviceOffer, ...]

    @property
    def shortage(self) -> str:
        """Of which devices it needs more than there are, in words; empty if there are enough."""
        needed: Counter[str] = Counter()
        for pool, offer in zip(self.fleet.pools, self.offers, strict=True):
            needed[offer.name] += pool.num_workers
        for offer in self.offers:
            if needed[offer.name] > offer.max_count:
                return f"{needed[offer.name]} of {offer.name!r} are needed, and there are {offer.max_count}"
        return ""

    def grown(self, place: int, num: int = 1) -> "_Candidate":
        """The same with some workers more in one of its pools."""
        pools = list(self.fleet.pools)
        pools[place] = pools[place].with_workers(pools[place].num_workers + num)
        return _Candidate(Fleet(tuple(pools)), self.offers)

    def beside(self) -> Iterator["_Candidate"]:
        """The same with a worker less in one of its pools, and with some more in all of them."""
        pools = self.fleet.pools
        for place, pool in enumerate(pools):
            if pool.num_workers > 1:
                yield self.grown(place, -1)
        for least, share in enumerate(SHARES_MORE, start=1):
            larger = (
                pool.with_workers(pool.num_workers + max(least, math.ceil(share * pool.num_workers)))
                for pool in pools
            )
            yield _Candidate(Fleet(tuple(larger)), self.offers)


@dataclass(frozen=True)
class _Fewest:
    """A pool with the fewest workers that meet the goals, the offer of its devices, and p95 in seconds."""

    pool: Pool
    offer: DeviceOffer
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


def _name(fleet: Fleet) -> tuple[str, float]:
    """What tells a fleet from the others of a plan."""
    return fleet.as_words(), fleet.price_per_month


def _price(fleet: Fleet) -> tuple[float, int]:
    """By which fleets are compared: money, then devices, for offers without a price."""
    return fleet.price_per_month, fleet.num_workers


def _price_of(pool: Pool) -> tuple[float, int]:
    return _price(Fleet((pool,)))
