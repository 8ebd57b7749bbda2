"""Bulk work slows interactive work by no more than it may, and gets its share once it has waited too long."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy.bulk_limits import EXPECTED_SECONDS, MIN_RATE_SHARE
from engine.policy.candidate import BatchKey
from engine.policy.policy import Policy
from engine.policy.turns import AGED_SHARE
from tests.unit.engine.members import LARGE, SMALL, Member, bulk, flat, rising, run

KNEE: Mapping[int, float] = {4: 0.1, 8: 0.105, 12: 0.2, 16: 0.3}


def with_a_knee(_key: BatchKey, num_rows: int) -> float:
    return KNEE[num_rows]


def num_rows(batch: list[Member], lane: str | None = None) -> int:
    return sum(member.num_rows for member in batch if lane in (None, member.lane))


def test_bulk_work_fills_step_batches_of_interactive_work_where_rows_cost_nothing() -> None:
    policy = Policy(lambda _: 16, step_seconds=flat)
    assert num_rows(policy.choose([Member("i"), *bulk(20)], 0.0)) == 16


def test_bulk_work_gets_no_more_than_padding_where_rows_cost_time() -> None:
    policy = Policy(lambda _: 16, step_seconds=rising)
    assert num_rows(policy.choose([Member("i"), *bulk(20)], 0.0)) == 4
    assert policy.reason_not_fuller == "lane"
    assert num_rows(policy.choose([Member("i"), Member("j"), *bulk(20)], 0.0)) == 4


@pytest.mark.parametrize(("slowdown", "expected"), [(0.0, 4), (0.1, 8), (1.0, 12), (5.0, 16)])
def test_bulk_work_rides_up_to_the_rows_at_which_the_step_is_slower_by_the_allowed_share(
    slowdown: float, expected: int
) -> None:
    policy = Policy(lambda _: 16, step_seconds=with_a_knee, bulk_slowdown=slowdown)
    assert num_rows(policy.choose([Member("i"), *bulk(20)], 0.0)) == expected


def test_interactive_work_is_not_limited_by_what_bulk_work_may_cost() -> None:
    policy = Policy(lambda _: 16, step_seconds=rising)
    batch = policy.choose([*(Member(str(i)) for i in range(7)), *bulk(20)], 0.0)
    assert num_rows(batch, "interactive") == 14
    assert num_rows(batch) == 16


@pytest.mark.parametrize(("profile", "expected"), [(flat, 16), (rising, 4)])
def test_without_a_profile_rows_that_were_seen_to_cost_time_are_not_given_again(profile, expected) -> None:  # type: ignore[no-untyped-def]
    policy, members = Policy(lambda _: 16), [Member("i", num_steps=200), *bulk(20)]
    first = run(policy, members, 1, step_seconds=profile)[0]
    assert num_rows(first) == 4, "the step without more rows was never seen"
    rows = [num_rows(batch) for batch in run(policy, members, 40, step_seconds=profile)]
    assert rows[10:] == [expected] * 30
    assert sum(row > expected for row in rows) <= 4, "each larger bucket is tried about once"


def test_a_deadline_limits_bulk_work_beside_it_too() -> None:
    policy = Policy(lambda _: 16, step_seconds=with_a_knee, bulk_slowdown=5.0)
    tight = Member("tight", num_steps=10, deadline_at=1.1)
    assert num_rows(policy.choose([tight, *bulk(20)], 0.0)) == 8


def test_bulk_work_alone_fills_its_step_batches() -> None:
    policy = Policy(lambda _: 16, step_seconds=rising)
    assert [num_rows(batch) for batch in run(policy, bulk(20), 50, step_seconds=rising)] == [16] * 50


def test_bulk_steps_are_short_while_interactive_work_is_expected() -> None:
    """One of 20 steps of 0.1 s may wait a tenth of its 2 s: for eight rows, which take 0.2 s."""
    policy = Policy(lambda _: 16, step_seconds=rising)
    run(policy, [Member("i", num_steps=20), *bulk(20)], 20, step_seconds=rising)
    assert num_rows(policy.choose(bulk(20), 10.0)) == 8
    assert policy.reason_not_fuller == "lane"
    assert num_rows(policy.choose(bulk(20), 10.0 + EXPECTED_SECONDS)) == 16


def test_bulk_steps_are_not_so_short_that_much_of_the_device_is_lost() -> None:
    """A step takes 1 s and a sixteenth for each row; four rows would make a quarter of the best rate."""

    def affine(_key: BatchKey, num_rows: int) -> float:
        return 1 + num_rows / 16

    policy = Policy(lambda _: 16, step_seconds=affine)
    run(policy, [Member("i", num_steps=1), *bulk(20)], 1, step_seconds=affine)
    rows = num_rows(policy.choose(bulk(20), 2.0))
    assert rows / affine(SMALL, rows) >= MIN_RATE_SHARE * 16 / affine(SMALL, 16)
    assert rows < 16


@settings(deadline=None)  # on a busy machine an example may take long
@given(
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(sorted),
    st.integers(1, 16),
    st.floats(0, 2),
    st.integers(0, 30),
)
def test_no_step_with_interactive_rows_is_slower_by_more_than_the_share(
    seconds: list[float], cap: int, slowdown: float, num_bulk: int
) -> None:
    def step_seconds(_key: BatchKey, rows: int) -> float:
        return seconds[-(-rows // 4) - 1]

    policy = Policy(lambda _: cap, step_seconds=step_seconds, bulk_slowdown=slowdown)
    batch = policy.choose([Member("i", num_rows=1), *bulk(num_bulk)], 0.0)
    assert batch[0].name == "i"
    without = step_seconds(SMALL, 1)
    assert step_seconds(SMALL, num_rows(batch)) <= (1 + slowdown) * without + 1e-9


def seconds_of(batches: list[list[Member]], lane: str) -> float:
    """Device seconds, at the pace of `rising`, of the step batches that a lane leads."""
    return sum(rising(SMALL, -(-num_rows(batch) // 4) * 4) for batch in batches if batch[0].lane == lane)


def test_aged_bulk_work_gets_its_share_of_the_seconds_and_no_more() -> None:
    """Its steps have more rows than those of interactive work: a share of the turns would be too much."""
    policy = Policy(lambda _: 16, bulk_patience_seconds=60.0, step_seconds=rising)
    members = [Member("i", num_steps=1000, submitted_at=100.0), *bulk(20, key=LARGE)]
    batches = run(policy, members, 400, now=100.0, step_seconds=rising)
    aged = seconds_of(batches, "bulk")
    assert aged / (aged + seconds_of(batches, "interactive")) == pytest.approx(AGED_SHARE, abs=0.02)


def test_bulk_work_waits_for_its_first_step_no_longer_than_its_patience_and_a_step() -> None:
    policy = Policy(lambda _: 16, bulk_patience_seconds=6.0, step_seconds=rising)
    first = run(policy, bulk(20, key=LARGE), 100, step_seconds=rising)  # bulk work has had the device so far
    assert len(first) == 100
    late = Member("late", lane="bulk", key=LARGE, num_steps=4, submitted_at=40.0)
    interactive = [Member(str(i), num_steps=10_000, submitted_at=40.0) for i in range(8)]
    run(policy, [late, *interactive], 30, now=40.0, step_seconds=rising)
    assert late.has_begun
    assert late.ended_at <= 40.0 + 6.0 + 4 * (0.4 + 0.1) / AGED_SHARE


def test_bulk_work_that_rides_along_takes_no_turns_of_its_own() -> None:
    policy = Policy(lambda _: 16, bulk_patience_seconds=60.0, step_seconds=rising)
    members = [Member("i", num_steps=1000, submitted_at=100.0), Member("b", lane="bulk", num_steps=1000)]
    batches = run(policy, members, 200, now=100.0, step_seconds=rising)
    assert all(batch[0].name == "i" and len(batch) == 2 for batch in batches)


def test_aged_work_of_another_size_gets_its_turns_although_that_of_this_size_rides_along() -> None:
    policy = Policy(lambda _: 16, bulk_patience_seconds=60.0, step_seconds=rising)
    riding = Member("riding", lane="bulk", num_steps=1000, submitted_at=1.0)
    left_out = Member("left out", lane="bulk", num_steps=1000, key=LARGE)
    members = [Member("i", num_steps=1000, submitted_at=100.0), riding, left_out]
    batches = run(policy, members, 400, now=100.0, step_seconds=rising)
    assert sum(left_out in batch for batch in batches) >= 0.5 * AGED_SHARE * 400


def test_interactive_work_fills_the_turns_of_aged_bulk_work() -> None:
    policy = Policy(lambda _: 16, bulk_patience_seconds=60.0, step_seconds=rising, bulk_slowdown=0.002)
    members = [*(Member(f"i{i}", num_steps=1000, submitted_at=100.0) for i in range(2)), *bulk(20)]
    turns = [batch for batch in run(policy, members, 200, 100.0, rising) if batch[0].lane == "bulk"]
    assert turns
    assert all(num_rows(batch, "interactive") == 4 for batch in turns)
