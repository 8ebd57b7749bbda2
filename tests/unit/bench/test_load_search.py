"""The search for the highest rate, against a service of known capacity whose time is computed."""

from dataclasses import dataclass

import pytest

from bench.load.arrivals import constant, poisson
from bench.load.connection import Place
from bench.load.mix import Mix, only
from bench.load.outcomes import Outcome
from bench.load.report import Measurement, conclusions
from bench.load.runs import Bench, Load, Run, find_knee
from bench.load.search import search
from bench.load.setup import Search, _search
from bench.load.summary import Goal, summarise
from bench.load.trace import Trace
from bench.load.utilisation import Use

CAPACITY = 10.0
GOAL = Goal(seconds=1.0)


def served_in_turn(trace: Trace) -> Run:
    """What a device that draws one image after the other makes of the trace."""
    free_at, outcomes = 0.0, []
    for arrival in trace.arrivals:
        free_at = max(free_at, arrival.due_seconds) + 1 / CAPACITY
        outcomes.append(
            Outcome(
                arrival.requests[0],
                "single",
                arrival.due_seconds,
                arrival.due_seconds,
                "succeeded",
                ended_seconds=free_at,
                num_images=1,
            )
        )
    return Run(trace.images_per_second, trace, outcomes, summarise(trace, outcomes, GOAL), Use())


def load(seconds: float) -> Load:
    return Load(Mix(only((64, 64)), only(4), only(1.0)), constant, "constant", seconds, 0.0, 1)


@pytest.mark.parametrize("first_rate", [0.7, 3.0, 9.9, 40.0])
def test_the_search_finds_the_capacity_from_below_and_from_above(first_rate: float) -> None:
    found = find_knee(served_in_turn, load(200), first_rate=first_rate, share=0.9, max_runs=16)
    assert found.is_narrow
    assert found.best is not None
    # A second of backlog is allowed for nine tenths of 200 s: that is half a percent above capacity.
    assert CAPACITY / 1.08 <= found.best.rate <= CAPACITY * 1.02
    assert found.best.result.summary.images_per_second == pytest.approx(found.best.rate, rel=0.02)


def test_beyond_capacity_throughput_stays_and_goodput_falls() -> None:
    below, beyond = served_in_turn(load(100).at(8.0)), served_in_turn(load(100).at(20.0))
    assert below.summary.in_goal_share == 1.0
    assert beyond.summary.images_per_second == pytest.approx(CAPACITY, rel=0.02)
    assert beyond.summary.in_goal_share is not None
    assert beyond.summary.in_goal_share < 0.1


def test_without_a_rate_that_holds_there_is_no_knee() -> None:
    found = search(lambda rate: rate, lambda _: False, first_rate=8.0, max_probes=4)
    assert found.best is None
    assert [one.rate for one in found.probes] == [8.0, 4.0, 2.0, 1.0]


def test_a_service_that_holds_every_rate_has_no_rate_that_failed() -> None:
    found = search(lambda rate: rate, lambda _: True, first_rate=1.0, max_probes=3)
    assert found.lowest_failed is None
    assert not found.is_narrow
    assert found.best is not None
    assert found.best.rate == 4.0


def test_the_search_narrows_the_interval_between_what_held_and_what_failed() -> None:
    answers = iter([True, False, True, False])
    found = search(lambda rate: rate, lambda _: next(answers), first_rate=1.0, max_probes=4)
    assert [one.rate for one in found.probes] == pytest.approx([1.0, 2.0, 2**0.5, 2**0.75])
    assert found.best is not None
    assert found.best.rate == pytest.approx(2**0.5)
    assert found.lowest_failed is not None
    assert found.lowest_failed.rate == pytest.approx(2**0.75)


@dataclass(frozen=True)
class InTurn(Bench):
    """A bench whose service is `served_in_turn`."""

    def run(self, trace: Trace) -> Run:
        return served_in_turn(trace)


def searched(first_rate: float, max_runs: int, *, seconds: float = 200.0) -> tuple[Measurement, str]:
    found = Measurement("ours", {}, GOAL)
    bench = InTurn(Place("http://127.0.0.1:9"), GOAL, 1, 0.0)
    _search(bench, load(seconds), first_rate, Search(0.9, max_runs), found, found.runs.append)
    (said,) = conclusions(found)
    return found, said


def test_the_knee_is_told_as_the_rate_that_was_offered_with_the_lowest_that_failed() -> None:
    """In 3 s, 20.5 requests a second are 62: what was offered is 20.7 images/s."""
    found, said = searched(20.5 / 2**6, 16, seconds=3.0)
    offered = {run.rate for run in found.runs}
    told = found.further["search"]
    assert told["offered_at_knee"] in offered
    assert told["offered_at_knee"] != found.runs[0].trace.drawn["images_per_second"]
    assert told["lowest_failed"] in offered
    assert found.knee is not None
    assert found.knee.rate == told["offered_at_knee"] <= told["lowest_failed"]
    assert said == (
        f"knee: {told['offered_at_knee']:.3g} images/s, the highest offered rate with 90% in goal; "
        f"{told['lowest_failed']:.3g} images/s had less"
    )


def test_a_search_that_ends_early_says_how_wide_the_interval_is() -> None:
    assert searched(4.0, 3)[1].endswith(
        "knee: 8 images/s, the highest offered rate with 90% in goal; 16 images/s had less; --max-runs ended "
        "the search between them"
    )
    assert searched(4.0, 2)[1] == (
        "knee: above 8 images/s: every rate had 90% in goal; allow more --max-runs"
    )
    assert searched(40.0, 2)[1] == "knee: none, no rate had 90% in goal; start lower, with --rate"


def test_the_part_of_a_trace_that_counts_has_exactly_the_rate() -> None:
    mix = Mix(only((64, 64)), only(4), only(1.0))
    trace = Load(mix, poisson, "poisson", 50.0, 7.0, 3).at(4.0)
    assert trace.images_per_second == pytest.approx(4.0)
    assert trace.counted_seconds == 50.0
    other = Load(mix, poisson, "poisson", 50.0, 7.0, 3).at(8.0)
    assert [one.requests for one in other.arrivals][: len(trace.arrivals)] == [
        one.requests for one in trace.arrivals
    ]
