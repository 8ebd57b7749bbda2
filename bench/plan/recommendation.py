"""A plan in words, as JSON, and as the `calotype.toml` of its workers.

Owns the reasons that are given for a recommendation. It does not know how it was found, nor how it is shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.plan.configuration import with_caps
from bench.plan.fleets import Fleet, Pool
from bench.plan.outcome import Tried
from bench.plan.profiles import PlanProfile
from bench.plan.search import CHECK_SEEDS, Plan
from catalogue.catalogue import load_catalogue
from catalogue.lanes import MAX_SLOTS, MIN_SLOTS
from catalogue.profile import ProfileKey

MAX_DEVICES_OF_A_HOST = 8
"""Up to so many devices of a kind are taken to be in one machine, each with an entry of `[[workers]]`."""


def reasons(plan: Plan) -> Iterator[str]:
    """Why this fleet, a sentence each; and for each tier whether batching pays on its device."""
    found, goals = plan.recommended, plan.request.goals
    if found is None:
        yield from _refusal(plan)
    else:
        if goals.is_rate_alone:
            yield (
                f"the only goal is to keep up with {_rate(plan)}: the work may take {goals.max_load:.0%} "
                f"of what the devices do in full step batches"
            )
        low, high = found.spread
        yield (
            f"{found.fleet.as_words()}: p95 {found.p95:.3g} s ({low:.3g} to {high:.3g} s) with "
            f"{len(CHECK_SEEDS)} other seeds; {plan.num_met} of them meet the goals"
        )
        if len(found.p95_by_tier) > 1:
            each = ", ".join(f"{tier} {seconds:.3g} s" for tier, seconds in found.p95_by_tier.items())
            yield f"p95 by tier, of which each must meet the goal: {each}"
        if found.bulk_seconds is not None:
            p50, p95, _ = found.bulk_seconds
            yield f"bulk jobs, which have no goal: p50 {p50:.3g} s, p95 {p95:.3g} s"
        yield (
            f"the work takes {_load(found.fleet, plan):.0%} of what these devices do in full step batches; "
            f"they are busy {found.busy_share:.0%} of the time, with {found.mean_rows:.1f} rows a step batch"
        )
        yield from _next_cheaper(plan, found)
        yield from _layouts(plan, found)
        yield from _slots(found.fleet)
    for pool in (found.fleet if found else _any_fleet(plan)).pools:
        for tier, profile in pool.profiles.items():
            yield verdict(tier, profile)
    if not any(one.price_per_hour for one in plan.request.devices):
        told = "no device has a price, so that fleets are compared by their number of devices"
        yield f"{told}, and a budget rules out none" if goals.max_price_per_month else told


def verdict(tier: str, found: PlanProfile) -> str:
    """Whether to batch a tier on a device, by the gain of its step batches."""
    profile = found.profile
    first = profile.steps[0]
    place = f"{tier} on {found.device} ({found.origin})"
    if len(profile.steps) == 1:
        return f"{place}: only step batches of {first.num_rows} are known, so none larger is planned"
    gains = {step.num_rows: step.rows_per_second / first.rows_per_second for step in profile.steps}
    best = max(gains, key=gains.__getitem__)
    if not profile.is_worth_batching:
        gain = f"{best} rows give {gains[best]:.2f} times the rows a second of {first.num_rows}"
        return f"{place}: do not batch: {gain}"
    return (
        f"{place}: batch: the knee is at {profile.knee_rows} rows, {gains[profile.knee_rows]:.2f} times "
        f"the rows a second of {first.num_rows}; {best} rows give {gains[best]:.2f} times"
    )


def _refusal(plan: Plan) -> Iterator[str]:
    goals = plan.request.goals
    met = [f"p95 {goals.p95_seconds:g} s"] if goals.p95_seconds else []
    met += [f"p99 {goals.p99_seconds:g} s"] if goals.p99_seconds else []
    money = goals.max_price_per_month
    met += [f"{money:g} {plan.request.currency} a month"] if money else []
    wanted = f"meets {', '.join(met)}" if met else f"keeps up with {_rate(plan)}"
    yield f"no fleet of these devices {wanted} with enough seeds"
    fastest = min(plan.tried, key=lambda one: one.p95, default=None)
    if fastest is not None:
        price = fastest.fleet.price_per_month
        costs = f"p95 {fastest.p95:.3g} s, {price:.0f} a month"
        yield f"the fastest that was tried: {fastest.fleet.as_words()}, {costs}"
    yield from plan.ruled_out


def _next_cheaper(plan: Plan, found: Tried) -> Iterator[str]:
    cheaper = [one for one in plan.distinct if _money(one.fleet) < _money(found.fleet)]
    if cheaper:
        one = max(cheaper, key=lambda one: (_money(one.fleet), -one.p95))
        state = f"p95 {one.p95:.3g} s" if one.keeps_up else "its queue grows"
        yield f"one step cheaper: {one.fleet.as_words()}: {state}"


def _layouts(plan: Plan, found: Tried) -> Iterator[str]:
    """Whether tiers share workers, and what the best of the other layout needs."""
    is_shared = len(found.fleet.pools) == 1
    if len(plan.request.traffic.tiers) < 2:
        return
    goal = plan.request.goals.p95_seconds
    others = [
        one
        for one in plan.distinct
        if (len(one.fleet.pools) == 1) != is_shared and one.keeps_up and (goal is None or one.p95 <= goal)
    ]
    if others:
        other = min(others, key=lambda one: _money(one.fleet))
        layout = "workers of their own for each tier" if is_shared else "workers that serve all tiers"
        needed = f"{other.fleet.num_workers} devices, for p95 {other.p95:.3g} s: {other.fleet.as_words()}"
        yield f"{layout} would need {needed}"


def _slots(fleet: Fleet) -> Iterator[str]:
    """How many jobs of each lane the workers of each pool take at a time."""
    for pool in fleet.pools:
        place = f"a worker of {' and '.join(pool.tiers)}"
        yield f"{place} takes up to {pool.num_slots} interactive and {pool.num_slots} bulk jobs at a time"
    yield (
        f"these are the default slots of a lane: half as many again as a step batch has rows, "
        f"{MIN_SLOTS} to {MAX_SLOTS}"
    )


def _rate(plan: Plan) -> str:
    return f"{plan.request.traffic.images_per_second:.3g} images/s"


def _load(fleet: Fleet, plan: Plan) -> float:
    work = sum(pool.device_seconds(plan.request.traffic) for pool in fleet.pools)
    return work / fleet.num_workers


def _any_fleet(plan: Plan) -> Fleet:
    return plan.tried[0].fleet if plan.tried else Fleet(())


def _money(fleet: Fleet) -> tuple[float, int]:
    return fleet.price_per_month, fleet.num_workers


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan with everything that was tried, for programs."""
    return {
        "request": plan.request.model_dump(mode="json"),
        "recommended": None if plan.recommended is None else tried_as_json(plan.recommended),
        "seeds_checked": len(CHECK_SEEDS) if plan.recommended else 0,
        "seeds_met": plan.num_met,
        "reasons": list(reasons(plan)),
        "front": [tried_as_json(one) for one in plan.front],
        "tried": [tried_as_json(one) for one in plan.tried],
        "ruled_out": list(plan.ruled_out),
    }


def tried_as_json(tried: Tried) -> dict[str, Any]:
    """A fleet with what it does: medians over its seeds."""
    bulk = tried.bulk_seconds
    return {
        "pools": [_pool_as_json(pool) for pool in tried.fleet.pools],
        "devices": tried.fleet.num_workers,
        **_named(tried.seconds),
        "by_tier": {tier: _named(seconds) for tier, seconds in tried.seconds_by_tier.items()},
        "bulk": None if bulk is None else _named(bulk),
        "p95_low_seconds": tried.spread[0],
        "p95_high_seconds": tried.spread[1],
        "seeds": len(tried.outcomes),
        "keeps_up": tried.keeps_up,
        "busy_share": tried.busy_share,
        "mean_rows": tried.mean_rows,
        "images_per_second": tried.images_per_second,
        "price_per_month": tried.fleet.price_per_month,
        "price_per_image": tried.price_per_image,
    }


def _named(seconds: Sequence[float]) -> dict[str, float]:
    return dict(zip(("p50_seconds", "p95_seconds", "p99_seconds"), seconds, strict=True))


def _pool_as_json(pool: Pool) -> dict[str, Any]:
    return {
        "tiers": list(pool.tiers),
        "devices": pool.num_workers,
        "max_step_batch_rows": dict(pool.max_rows),
        "interactive_slots": pool.num_slots,
        "bulk_slots": pool.num_slots,
        "price_per_hour": pool.price_per_hour,
        "profiles": {
            tier: {"name": one.name, "origin": one.origin, "source": one.source, "url": one.url}
            for tier, one in pool.profiles.items()
        },
    }


def configurations(fleet: Fleet, base: str) -> dict[str, str]:
    """The files for this fleet, made of the text of a `calotype.toml` that has its tiers.

    Row caps and workers replace those of the text; all else stays as it is, comments included. Pools of one
    kind of device that may be in one machine get one file, with an entry for each device; each pool of a
    larger kind gets a file of its own. Raises `PlanError` if the text lacks a tier.
    """
    text = with_caps(base, fleet.max_rows)
    files = {"-".join(tier for pool in part for tier in pool.tiers): part for part in _machines(fleet)}
    return {
        "calotype.toml" if len(files) == 1 else f"calotype-{tiers}.toml": text + _workers(pools)
        for tiers, pools in files.items()
    }


def _machines(fleet: Fleet) -> Iterator[list[Pool]]:
    """The pools of each file: a machine has one kind of device."""
    kinds: dict[tuple[str, float], list[Pool]] = {}
    for pool in fleet.pools:
        kinds.setdefault((_profile_of(pool).device, pool.price_per_hour), []).append(pool)
    for pools in kinds.values():
        if sum(pool.num_workers for pool in pools) <= MAX_DEVICES_OF_A_HOST:
            yield pools
        else:
            yield from ([pool] for pool in pools)


def _workers(pools: Sequence[Pool]) -> str:
    """The `[[workers]]` entries of one file."""
    num_workers = sum(pool.num_workers for pool in pools)
    if num_workers > MAX_DEVICES_OF_A_HOST:
        [pool] = pools
        return f"\n# For {num_workers} devices, on as many machines as they need." + _worker("auto", pool)
    each = [pool for pool in pools for _ in range(pool.num_workers)]
    return "".join(_worker(f"{_device_of(pool)}:{number}", pool) for number, pool in enumerate(each))


def _worker(device: str, pool: Pool) -> str:
    tiers = ", ".join(f'"{tier}"' for tier in pool.tiers)
    slots = f"interactive_slots = {pool.num_slots}\nbulk_slots = {pool.num_slots}"
    return f'\n[[workers]]\ndevice = "{device}"\ntiers = [{tiers}]\n{slots}\n'


def _device_of(pool: Pool) -> str:
    key = _profile_of(pool).profile.key
    return "cpu" if isinstance(key, ProfileKey) and key.num_threads else "cuda"


def _profile_of(pool: Pool) -> PlanProfile:
    return next(iter(pool.profiles.values()))


def write_configurations(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files and read each as a service would; raises `SettingsError` if one is not valid."""
    paths = []
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        load_catalogue(path)
        paths.append(path)
    return paths
