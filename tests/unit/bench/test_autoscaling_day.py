"""The rules of the manifest keep a simulated fleet calm, let it go to none and back, and lose no job."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from bench.autoscaling.__main__ import FULL_SHARE, PARTS, Sizes, by_queue_length, manifest_rules, with_share
from bench.autoscaling.day import RATE_SECONDS, SIGNALS, Backlog, Conditions, Day, _Day, run_day
from bench.autoscaling.device import H200_512, FleetJob, new_worker
from bench.autoscaling.rules import Rules
from bench.autoscaling.traffic import Arrival, Burst, Traffic, arrivals
from bench.plan.profiles import published
from catalogue.lanes import Lane
from engine.policy.fleet import SimulatedFleet

HOUR = 3600.0
RULES = manifest_rules(max_workers=40)
USUAL = Conditions()


def steady(load: float, hours: float, noise: float = 0.1, seed: int = 1, **fields: Any) -> list[Arrival]:
    """Traffic that would keep `load` devices busy, without a daily wave."""
    rate = load / (H200_512.image_seconds * Traffic(1).mean_images)
    return list(arrivals(Traffic(rate, hours * HOUR, night=1.0, noise=noise, **fields), seed))


def served(jobs: Iterable[Arrival], hours: float, rules: Rules | None = RULES, **conditions: Any) -> Day:
    return run_day(H200_512, jobs, hours * HOUR, rules, replace(USUAL, **conditions))


LANES_OF: dict[Lane, tuple[float, float, int, int, float]] = {
    "interactive": (7.0, 11.0, 1, 2, 0.25),
    "bulk": (13.0, 17.0, 4, 8, 0.5),
}
"""By lane: device seconds of what waits and of what runs, jobs that wait or are held, images a second."""
SERIES = [
    (name, {tier_label: tier, "lane": lane}, value + 1000 * (tier != "sd"))
    for tier in ("sd", "hd")
    for lane, values in LANES_OF.items()
    for (name, tier_label), value in zip(
        (
            ("calotype_queued_device_seconds", "tier"),
            ("calotype_running_device_seconds", "tier"),
            ("calotype_queue_jobs", "tier"),
            ("calotype_held_jobs", "pod_tier"),
            ("calotype_images_total", "tier"),
        ),
        values,
        strict=True,
    )
]
"""What Prometheus has scraped of one API and of one worker for each of two tiers."""
SELECTOR = re.compile(r"(calotype_\w+)\{([^}]*)\}")


def answer_of(query: str) -> float:
    """What Prometheus answers: these queries add up series, of which each process has one for each lane.

    That of a counter stands for its rate.
    """
    form = SELECTOR.sub("x", " ".join(query.split()))
    rate = f"sum(rate(x[{RATE_SECONDS / 60:.0f}m]))"
    assert form in ("max(x) + max(x)", "sum(max by (lane) (x)) + (sum(x) or vector(0))", rate)
    return sum(
        value
        for name, selected in SELECTOR.findall(query)
        for of, labels, value in SERIES
        if of == name and dict(re.findall(r'(\w+)="(\w+)"', selected)).items() <= labels.items()
    )


def test_the_triggers_of_the_manifest_are_those_that_are_simulated() -> None:
    waiting, running, num_queued, num_held, rates = zip(*LANES_OF.values(), strict=True)
    work = dict(zip(LANES_OF, map(sum, zip(waiting, running, strict=True)), strict=True))
    backlog = Backlog(sum(num_queued), sum(num_held), work, rates[0])
    assert {trigger.name: answer_of(trigger.query) for trigger in RULES.triggers} == {
        name: read(backlog) for name, read in SIGNALS.items()
    }
    thresholds = {trigger.name: trigger.threshold for trigger in RULES.triggers}
    assert thresholds["interactive-work"] == pytest.approx(FULL_SHARE * H200_512.full_seconds, abs=0.5)
    assert thresholds["drawn-images"] == pytest.approx(2 * FULL_SHARE / H200_512.image_seconds, abs=0.005)


@pytest.mark.parametrize(("seed", "noise"), [(1, 0.1), (2, 0.1), (3, 0.3)])
def test_a_constant_load_with_noise_hardly_ever_brings_back_a_worker_that_was_just_removed(
    seed: int, noise: float
) -> None:
    day = served(steady(6, 3, noise, seed), 3)
    assert day.num_reversals(since=HOUR) <= 2
    assert day.num_changes(since=HOUR) <= 4 * 2
    assert min(number for at, number in day.workers if at > HOUR) > 6


def test_a_fleet_that_is_ahead_of_its_work_keeps_the_workers_that_its_images_need() -> None:
    """Else it has so little open work that it loses them, and starts others once it is overfull."""
    load, hours = 20, 3
    without = replace(RULES, triggers=tuple(one for one in RULES.triggers if one.name != "drawn-images"))
    jobs = steady(load, hours)
    least = {
        rules: min(number for at, number in served(jobs, hours, rules).workers if at > HOUR)
        for rules in (RULES, without)
    }
    assert least[RULES] > 1.25 * load > least[without]


def test_the_rate_of_images_is_that_of_the_last_ten_minutes() -> None:
    day = _Day(H200_512, RULES, USUAL)
    day.run([Arrival(0.0, 4)], 400.0)
    assert day._scraped["drawn-images"] == pytest.approx(4 / RATE_SECONDS)
    day._go_on(400.0 + RATE_SECONDS)
    assert day._scraped["drawn-images"] == 0


def test_rules_without_windows_would_flap() -> None:
    hasty = replace(RULES, down=replace(RULES.down, stabilization_seconds=0.0))
    assert served(steady(6, 3), 3, hasty).num_reversals(since=HOUR) > 30


def test_all_workers_go_after_the_cooldown_and_the_first_job_brings_one_back() -> None:
    start_seconds = 90.0
    day = served([Arrival(0.0, 1), Arrival(HOUR, 1)], 2, start_seconds=start_seconds)
    first, second = sorted(day.runs, key=lambda run: run.arrived_at)
    (none_at, *_) = [at for at, number in day.workers if number == 0 and at > 0]
    assert none_at - first.ended_at == pytest.approx(RULES.cooldown_seconds, abs=3 * RULES.polling_seconds)
    assert day.num_workers(HOUR - 1) == 0
    image_seconds = H200_512.num_steps * H200_512.steps.at(2)
    longest = start_seconds + image_seconds + 2 * RULES.polling_seconds
    assert start_seconds + image_seconds < second.latency_seconds < longest
    assert day.num_workers(2 * HOUR) == 0


def test_a_burst_ends_without_a_worker_that_is_removed_before_its_jobs_have_ended() -> None:
    jobs = steady(6, 3, burst=Burst(HOUR, 600.0, 4.0))
    day = served(jobs, 3)
    assert len(day.runs) == len(jobs)
    assert max(number for _, number in day.workers) > 2 * day.num_workers(HOUR)
    assert len(day.drains) > 10
    assert day.num_cut(USUAL.drain_seconds) == 0


def test_by_queue_length_workers_are_wanted_only_once_all_are_overfull() -> None:
    jobs = steady(6, 2)
    by_length, by_seconds = (served(jobs, 2, rules).waits() for rules in (by_queue_length(RULES), RULES))
    after_the_start = int(0.75 * len(jobs))
    assert by_length[after_the_start] > 30
    assert by_seconds[after_the_start] < 10


def test_a_lower_threshold_costs_devices_and_saves_waiting() -> None:
    jobs = steady(6, 2)
    few, many = (served(jobs, 2, with_share(RULES, share)) for share in (0.5, 0.2))
    assert many.worker_seconds > 1.2 * few.worker_seconds
    assert sum(many.waits()) < sum(few.waits())


def test_queued_bulk_work_asks_for_the_workers_that_end_it_in_time_and_not_for_more() -> None:
    num_jobs = 1500
    day = served([Arrival(0.0, 4, "bulk")] * num_jobs, 2)
    work = 4 * num_jobs * H200_512.image_seconds
    bulk = next(trigger for trigger in RULES.triggers if trigger.name == "bulk-work")
    assert max(number for _, number in day.workers) == math.ceil(work / bulk.threshold)
    assert len(day.runs) == num_jobs


def test_one_worker_starts_for_a_tier_that_has_no_profile() -> None:
    unknown = replace(RULES, triggers=RULES.triggers[-1:])
    day = served(steady(4, 0.2), 0.2, unknown)
    assert max(number for _, number in day.workers) == 1


def test_the_last_worker_of_a_tier_without_a_profile_stays_while_it_holds_a_job() -> None:
    """Its job is held, and no longer queued, for several times the cooldown."""
    unknown = replace(RULES, triggers=RULES.triggers[-1:])
    slow = replace(H200_512, num_steps=10_000)
    day = run_day(slow, [Arrival(0.0, 1)], HOUR, unknown, USUAL)
    (run,) = day.runs
    assert run.ended_at - run.begun_at > 2 * unknown.cooldown_seconds
    ((drained_at, _),) = day.drains
    assert drained_at - run.ended_at == pytest.approx(
        unknown.cooldown_seconds, abs=3 * unknown.polling_seconds
    )
    assert day.num_cut(USUAL.drain_seconds) == 0


def test_the_seconds_of_workers_are_counted_from_their_start_to_the_end_of_their_drain() -> None:
    day = served([Arrival(0.0, 1)], 1, start_seconds=100.0)
    (start, _), (end, _) = day.workers[-2:]
    assert day.worker_seconds == pytest.approx(end - start)


def test_a_fixed_fleet_is_counted_whole() -> None:
    day = served(steady(2, 1), 1, None, num_workers=4)
    assert day.worker_seconds == pytest.approx(4 * day.seconds)
    assert day.num_changes() == 0


def test_the_traffic_has_its_rate_its_wave_and_its_burst() -> None:
    traffic = Traffic(2.0, 4 * HOUR, night=0.1, burst=Burst(HOUR, 600.0, 3.0))
    assert traffic.rate(2 * HOUR) == pytest.approx(2.0)
    assert traffic.rate(0.0) == pytest.approx(0.2)
    assert traffic.rate(HOUR) == pytest.approx(3 * traffic.rate(3 * HOUR))
    found = list(arrivals(replace(traffic, burst=None), seed=3))
    assert len(found) == pytest.approx(2.0 * 0.55 * 4 * HOUR, rel=0.05)
    assert found == sorted(found, key=lambda job: job.at)
    assert found == list(arrivals(replace(traffic, burst=None), seed=3))


def test_the_signal_of_a_running_job_falls_with_each_of_its_steps() -> None:
    day = _Day(H200_512, None, replace(USUAL, num_workers=1))
    day._fleet.submit(FleetJob(1), 0.0)
    list(day._fleet.run_until(0.0))
    lone_seconds = H200_512.num_steps * H200_512.steps.at(2)
    for share in (0.25, 0.5, 0.75):
        list(day._fleet.run_until(H200_512.encode + share * lone_seconds))
        day._scrape()
        left = (1 - share) * H200_512.image_seconds
        one_step = H200_512.image_seconds / H200_512.num_steps
        assert day._scraped["interactive-work"] == pytest.approx(left, abs=one_step)


def test_the_curve_is_the_published_profile_that_plans_are_made_of() -> None:
    profile = published()["h200-qwen-image-512"].profile
    assert H200_512.steps.at(2) == profile.step_seconds(2)
    assert H200_512.image_seconds == pytest.approx(50 * 0.425 / 8 + 0.035 + 0.017)


def test_a_full_fleet_draws_the_images_that_the_curve_says() -> None:
    fleet = SimulatedFleet([new_worker(H200_512)])
    runs = [fleet.submit(FleetJob(4), 0.0) for _ in range(6)]
    assert len(list(fleet.run())) == 6
    assert max(run.ended_at for run in runs) == pytest.approx(3 * H200_512.full_seconds, rel=0.01)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_benchmark_yields_figures(part: str) -> None:
    names = [figure.figure for figure in PARTS[part](Sizes(num_workers=2, hours=1.2))]
    assert len(names) == len(set(names)) > 0
