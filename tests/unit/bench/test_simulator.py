"""The simulator: what its strategies must do whatever the policy, and that the policy keeps its figures."""

import math
from collections.abc import Callable

import pytest

from bench.arrivals import ANCHOR_STEP_SECONDS, Arrival, StepTable, Work, arrivals
from bench.simulated_strategies import (
    Strategy,
    continuous_fifo,
    continuous_shortest,
    keyed_dynamic,
    oldest_grouped,
    one_at_a_time,
    ours,
    padded_dynamic,
    with_deadlines,
)
from bench.simulator import (
    FIGURES,
    Figure,
    fairness,
    goodput,
    in_time_share,
    p95_gain,
    p95_slowdown,
    p99_slowdown,
    served,
    slowdown_gain,
)

STRATEGIES = [
    one_at_a_time,
    continuous_fifo,
    continuous_shortest,
    ours,
    keyed_dynamic(0.0),
    keyed_dynamic(0.2),
    padded_dynamic(0.0),
    oldest_grouped(0.0, max_requests=8),
    oldest_grouped(0.2, max_requests=8),
]
SIZES = Work(
    tables={16: StepTable(ANCHOR_STEP_SECONDS), 24: StepTable({1: 0.03, 8: 0.12})},
    sizes={16: 0.7, 24: 0.3},
    num_accounts=5,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("work", [Work(), SIZES], ids=["one size", "two sizes"])
def test_every_strategy_serves_every_request_and_none_before_its_time(strategy: Strategy, work: Work) -> None:
    for arrival in served(work, strategy, load=0.5, seed=3, num_requests=500):
        fastest = work.step_seconds(arrival.side, 1)
        assert arrival.latency_seconds >= arrival.num_steps * fastest - 1e-9


@pytest.mark.parametrize("strategy", [continuous_fifo, ours])
def test_device_that_re_forms_its_batches_keeps_up_near_its_capacity(strategy: Strategy) -> None:
    trace = arrivals(Work(), 0.95, 4000, seed=2)
    strategy(Work(), trace)
    rate = len(trace) / max(arrival.ended_at for arrival in trace)
    assert rate >= 0.93 * Work().capacity()


def test_padding_to_the_longest_cannot_keep_up_where_we_can() -> None:
    def last(strategy: Callable[[Work, list[Arrival]], None]) -> float:
        trace = arrivals(Work(), 0.8, 4000, seed=2)
        strategy(Work(), trace)
        return max(arrival.ended_at for arrival in trace)

    assert last(padded_dynamic(0.0)) > 1.3 * last(ours)


def test_lone_request_takes_its_solo_time_on_the_bare_model() -> None:
    work = Work(is_solo_padded=False)
    (arrival,) = arrivals(work, 0.5, 1, seed=1)
    one_at_a_time(work, [arrival])
    assert arrival.slowdown == pytest.approx(1.0)


@pytest.mark.parametrize("strategy", [continuous_fifo, ours, with_deadlines(ours)])
def test_lone_request_takes_its_solo_time_on_our_engine(strategy: Strategy) -> None:
    (arrival,) = arrivals(Work(), 0.5, 1, seed=1)
    strategy(Work(), [arrival])
    assert arrival.slowdown == pytest.approx(1.0)


@pytest.mark.parametrize("strategy", [continuous_fifo, keyed_dynamic(0.0), padded_dynamic(0.2)])
def test_what_is_past_its_deadline_is_dropped_and_is_a_miss(strategy: Strategy) -> None:
    trace = served(Work(), with_deadlines(strategy), load=1.2, seed=1, num_requests=2000)
    dropped = [arrival for arrival in trace if math.isinf(arrival.slowdown)]
    assert dropped
    assert in_time_share(trace) <= 1 - len(dropped) / len(trace)


def test_keyed_batch_waits_for_its_timeout_and_no_longer() -> None:
    work = Work(is_solo_padded=False)
    (arrival,) = arrivals(work, 0.5, 1, seed=1)
    keyed_dynamic(0.2)(work, [arrival])
    assert arrival.latency_seconds == pytest.approx(0.2 + arrival.solo_seconds)


def test_one_seed_is_one_trace() -> None:
    first, second = (
        [
            (arrival.arrived_at, arrival.num_steps, arrival.num_rows)
            for arrival in arrivals(SIZES, 0.7, 50, seed)
        ]
        for seed in (7, 7)
    )
    assert first == second
    assert first != [(a.arrived_at, a.num_steps, a.num_rows) for a in arrivals(SIZES, 0.7, 50, 8)]


def test_step_table_holds_its_points_and_draws_lines_between_and_past_them() -> None:
    table = StepTable({4: 1.0, 8: 2.0})
    assert [table.at(rows) for rows in (2, 4, 6, 8, 12)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 3.0])


def test_more_are_in_time_than_first_come_first_served_at_seven_tenths_of_the_capacity() -> None:
    trace = served(Work(), ours, load=0.7, seed=1, num_requests=6000)
    assert in_time_share(trace) >= in_time_share(served(Work(), continuous_fifo, 0.7, 1, 6000)) + 0.04


def test_deadlines_help_ours_more_than_first_come_first_served() -> None:
    work = Work(is_solo_padded=False)
    fifo, policy = (
        in_time_share(served(work, with_deadlines(strategy), 0.7, 1, 6000))
        for strategy in (continuous_fifo, ours)
    )
    assert policy >= 0.9
    assert policy >= fifo + 0.1


def test_slowdown_is_a_tenth_of_that_of_keyed_batches_at_seven_tenths_of_the_capacity() -> None:
    slow = p95_slowdown(served(Work(), keyed_dynamic(0.0), 0.7, 1, 6000))
    assert slow / p95_slowdown(served(Work(), ours, 0.7, 1, 6000)) >= 8


def test_shortest_first_is_quicker_and_the_longest_pay_for_it() -> None:
    ours_trace, theirs = (served(Work(), strategy, 0.85, 1, 6000) for strategy in (ours, continuous_shortest))
    assert p95_slowdown(theirs) < p95_slowdown(ours_trace)
    assert p99_slowdown(theirs, 50) > p99_slowdown(ours_trace, 50)


def test_a_figure_of_another_order_is_of_that_order() -> None:
    work, how = Work(), {"seeds": (1,), "num_requests": 3000}
    for name, of in (("shortest_slowdown_gain", slowdown_gain), ("fifo_p95_gain", p95_gain)):
        strategy = continuous_shortest if name.startswith("shortest") else continuous_fifo
        assert FIGURES[name](work, **how) == of(work, **how, strategy=strategy) != of(work, **how)  # type: ignore[arg-type]


def test_longest_class_pays_little_for_it() -> None:
    figure = fairness(Work(), seeds=(1,))
    assert isinstance(figure, Figure)
    assert figure.value <= 1.15


def test_goodput_of_keyed_batches_is_far_below_ours() -> None:
    keyed = goodput(Work(), keyed_dynamic(0.0), 1, 2000)
    assert goodput(Work(), with_deadlines(ours), 1, 2000) >= 3.5 * keyed


def test_oldest_grouped_takes_no_request_before_all_groups_have_ended() -> None:
    work = Work(tables={16: StepTable({1: 1.0, 2: 1.0})})
    trace = [
        Arrival(0.0, 4, 1, 16, "a", 4.0),
        Arrival(0.0, 2, 1, 16, "a", 2.0),
        Arrival(0.0, 4, 1, 16, "a", 4.0),
        Arrival(0.5, 2, 1, 16, "a", 2.0),
    ]
    oldest_grouped(0.0, max_requests=3)(work, trace)
    assert [one.ended_at for one in trace] == [4.0, 6.0, 4.0, 8.0]


def test_oldest_grouped_begins_when_it_is_full_or_the_oldest_has_waited() -> None:
    work = Work(tables={16: StepTable({1: 1.0, 2: 1.0})})
    trace = [Arrival(instant, 1, 1, 16, "a", 1.0) for instant in (0.0, 2.0, 9.0)]
    oldest_grouped(5.0, max_requests=2)(work, trace)
    assert [one.ended_at for one in trace] == [3.0, 3.0, 15.0]
