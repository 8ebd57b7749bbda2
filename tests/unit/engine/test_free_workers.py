"""Jobs go to workers that hold few, by the pauses that the service's workers make."""

import random
from collections import Counter

import pytest

from engine.policy.free_workers import (
    MAX_PAUSE_SECONDS,
    PAUSE_SECONDS,
    FreeWorkers,
    any_free,
    fewest_jobs,
    first_to_poll,
    joined,
    pause_seconds,
)


def test_a_worker_without_jobs_gets_the_job_at_once() -> None:
    free = {3: ["busy", "busier"], 0: ["idle", "other"]}
    chosen = Counter(first_to_poll(free, random.Random(seed)) for seed in range(200))
    assert set(chosen) == {("idle", 0.0), ("other", 0.0)}


def test_of_busy_workers_the_one_with_fewer_jobs_mostly_polls_first() -> None:
    free = {1: ["one"], 4: ["four"]}
    found = [first_to_poll(free, random.Random(seed)) for seed in range(2000)]
    # A uniform time up to one pause is before a uniform time up to four: 1 - 1 / (2 x 4).
    assert sum(name == "one" for name, _ in found) / 2000 == pytest.approx(0.875, abs=0.03)
    assert 0 < max(seconds for _, seconds in found) <= PAUSE_SECONDS


def test_the_more_workers_there_are_the_sooner_one_polls() -> None:
    def mean_seconds(num_workers: int) -> float:
        free = {2: list(range(num_workers))}
        return sum(first_to_poll(free, random.Random(seed))[1] for seed in range(2000)) / 2000

    # The least of n uniform times up to p is p / (n + 1) on average.
    assert mean_seconds(1) == pytest.approx(2 * PAUSE_SECONDS / 2, rel=0.1)
    assert mean_seconds(9) == pytest.approx(2 * PAUSE_SECONDS / 10, rel=0.1)


def test_no_pause_is_longer_than_the_most() -> None:
    assert [pause_seconds(num_jobs) for num_jobs in (0, 1, 2)] == [0.0, PAUSE_SECONDS, 2 * PAUSE_SECONDS]
    assert pause_seconds(1000) == MAX_PAUSE_SECONDS


def test_the_rules_to_compare_with_know_every_worker_or_the_fewest_jobs_alone() -> None:
    free = {1: ["a"], 5: ["b", "c", "d"]}
    drawn = Counter(any_free(free, random.Random(seed))[0] for seed in range(2000))
    assert all(count == pytest.approx(500, abs=80) for count in drawn.values())
    assert set(drawn) == set("abcd")
    assert fewest_jobs(free, random.Random(1)) == ("a", 0.0)


def test_a_worker_that_leaves_is_chosen_no_more() -> None:
    free = FreeWorkers[str]()
    for name, num_jobs in (("a", 1), ("b", 1), ("c", 2)):
        free.add(name, num_jobs)
    free.discard("a")
    free.discard("a")
    assert free.by_jobs == {1: ["b"], 2: ["c"]}
    free.discard("b")
    free.add("c2", 2)
    free.discard("c")
    assert free.by_jobs == {2: ["c2"]}


def test_workers_of_several_kinds_are_chosen_from_together() -> None:
    assert joined([{0: ["a"], 2: ["b"]}, {2: ["c"]}]) == {0: ["a"], 2: ["b", "c"]}
