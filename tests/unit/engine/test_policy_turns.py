"""Keys and accounts take turns: none gets far ahead of another, however much work it has."""

import pytest

from engine.policy.due_times import QUANTUM_STEPS
from engine.policy.policy import Policy
from engine.policy.turns import MAX_CREDIT, MAX_REMEMBERED, Turns
from tests.unit.engine.members import LARGE, SMALL, Member, flat, run


def flood(account: str, count: int, **changes: object) -> list[Member]:
    return [Member(f"{account}-{i}", account=account, **changes) for i in range(count)]  # type: ignore[arg-type]


def test_keys_share_the_device_seconds_evenly() -> None:
    many = [Member(f"small-{i}", num_steps=1000) for i in range(20)]
    one = Member("large", key=LARGE, num_steps=1000)
    batches = run(Policy(lambda _: 8, step_seconds=flat), [*many, one], 200)
    assert abs(sum(one in batch for batch in batches) - 100) <= QUANTUM_STEPS


def test_key_that_was_away_cannot_save_up() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    here = Member("here", num_steps=1000)
    run(policy, [here], 200)
    back = Member("back", key=LARGE, num_steps=1000, submitted_at=20.0)
    batches = run(policy, [here, back], 100, now=20.0)
    assert sum(back in batch for batch in batches) >= 50 - MAX_CREDIT * QUANTUM_STEPS
    assert sum(back in batch for batch in batches) <= 50 + MAX_CREDIT * QUANTUM_STEPS


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_account_with_a_thousand_jobs_does_not_keep_another_waiting(lane: str) -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    many = flood("many", 1000, lane=lane)
    run(policy, many, 100)
    one = Member("one", account="one", lane=lane, submitted_at=10.0)
    batches = run(policy, [*many, one], 25, now=10.0)
    assert [one in batch for batch in batches[:20]] == [True] * 20, "from its first step to its last"


def test_account_with_a_thousand_jobs_does_not_keep_another_from_being_admitted() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    many = flood("many", 1000)
    run(policy, many, 100)
    one = Member("one", account="one", submitted_at=10.0)
    assert policy.admit([*many, one], many[:20], 10.0)[0] is one


def test_accounts_with_enough_work_get_equal_shares() -> None:
    members = [*flood("large", 40, num_steps=50), *flood("small", 80, num_steps=4), *flood("late", 40)]
    run(Policy(lambda _: 8, step_seconds=flat), members, 100)
    shares = [
        sum(member.row_steps for member in members if member.account == account)
        for account in ("large", "small", "late")
    ]
    assert max(shares) - min(shares) <= (QUANTUM_STEPS + 1) * 8


def test_account_that_comes_back_at_once_finds_its_debts_again() -> None:
    """One job after the other, each of them too short to exhaust a quantum by itself."""
    policy = Policy(lambda _: 2, step_seconds=flat)
    steady = flood("steady", 1, num_steps=1000)
    returning = [
        Member(f"returning-{i}", account="returning", num_steps=4, submitted_at=i * 0.4) for i in range(500)
    ]
    run(policy, [*steady, *returning], 400)
    assert 190 <= steady[0].num_steps_done <= 210


def test_lone_account_may_use_the_whole_device() -> None:
    batches = run(Policy(lambda _: 8, step_seconds=flat), flood("lone", 40), 50)
    assert all(len(batch) == 4 for batch in batches)


def test_bulk_work_of_an_account_costs_it_no_turn_of_its_interactive_work() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    run(policy, flood("busy", 40, lane="bulk"), 200)
    mine, theirs = Member("mine", account="busy"), Member("theirs", account="other", submitted_at=0.1)
    assert policy.order([theirs, mine], 20.0) == [mine, theirs]


def test_turns_remember_a_bounded_number_of_parties() -> None:
    turns: Turns[int] = Turns()
    for party in range(2 * MAX_REMEMBERED):
        turns.charge(party, 1.0)
    assert len(turns._used_seconds) <= MAX_REMEMBERED
    assert turns.ahead({SMALL.latent_width, -1}, 10.0) == set()
