"""Properties of the policy for any members in any order, tested with hypothesis."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policy.buckets import MULTIPLES_OF_FOUR
from engine.policy.policy import Policy
from tests.unit.engine.members import LARGE, OTHER, SMALL, Member, flat, rising, run

KEYS = [SMALL, LARGE, OTHER, SMALL._replace(is_pinned=True)]


@st.composite
def members(
    draw: st.DrawFn, lanes: tuple[str, ...] = ("interactive", "bulk"), *, isolated: bool = True
) -> list[Member]:
    """A handful of generations that arrive within two seconds."""
    return [
        Member(
            str(index),
            key=draw(st.sampled_from(KEYS)),
            lane=draw(st.sampled_from(lanes)),
            account=draw(st.sampled_from("abc")),
            num_steps=draw(st.integers(1, 12)),
            submitted_at=draw(st.floats(0, 2)),
            deadline_at=draw(st.none() | st.floats(1, 20)),
            num_rows=draw(st.integers(1, 2)),
            is_isolated=isolated and draw(st.integers(0, 9)) == 0,
        )
        for index in range(draw(st.integers(1, 14)))
    ]


caps = st.integers(1, 16)
profiles = st.sampled_from([flat, rising, lambda _key, _rows: None])


@settings(deadline=None, max_examples=50)
@given(members(), caps, profiles)
def test_every_step_batch_keeps_its_cap_its_key_and_solitude(crowd, cap, profile) -> None:  # type: ignore[no-untyped-def]
    policy = Policy(lambda _: cap, step_seconds=profile)
    for batch in run(policy, crowd, 250):
        assert len({id(member) for member in batch}) == len(batch)
        assert len({member.key for member in batch}) <= 1
        if any(member.is_isolated for member in batch):
            assert len(batch) == 1
        if len(batch) > 1:
            assert sum(member.num_rows for member in batch) <= policy.max_rows(batch[0].key)


@settings(deadline=None, max_examples=50)
@given(members(), caps, profiles)
def test_device_never_idles_while_work_is_there_and_all_of_it_ends(crowd, cap, profile) -> None:  # type: ignore[no-untyped-def]
    """At most one step batch for every step of every member, and none is empty before the last."""
    num_steps = sum(member.num_steps for member in crowd)
    late = 21  # ticks until the last has arrived
    run(Policy(lambda _: cap, step_seconds=profile), crowd, num_steps + late)
    assert all(member.num_steps_left == 0 for member in crowd)


@settings(deadline=None, max_examples=50)
@given(members(), caps)
def test_isolated_generation_is_not_interrupted(crowd, cap) -> None:  # type: ignore[no-untyped-def]
    batches = run(Policy(lambda _: cap, step_seconds=flat), crowd, 250)
    for isolated in (member for member in crowd if member.is_isolated):
        turns = [index for index, batch in enumerate(batches) if isolated in batch]
        assert turns == list(range(turns[0], turns[0] + isolated.num_steps))


@settings(deadline=None, max_examples=50)
@given(members(isolated=False), caps)
def test_interactive_work_waits_for_bulk_work_only_at_aging_turns(crowd, cap) -> None:  # type: ignore[no-untyped-def]
    policy = Policy(lambda _: cap, bulk_patience_seconds=1e9, step_seconds=flat)
    now = 3.0
    for member in crowd:
        member.submitted_at = min(member.submitted_at, now)
    batch = policy.choose(crowd, now)
    if any(member.lane == "interactive" for member in crowd):
        assert batch[0].lane == "interactive"
        lanes = [member.lane for member in batch if member.deadline_at is None]
        assert lanes == sorted(lanes, reverse=True), "bulk work fills up what is left"


@settings(max_examples=3, deadline=None)
@given(members(isolated=False), st.sampled_from([2, 4]), st.integers(0, 3))
def test_nothing_starves_under_an_endless_flood_of_short_work(crowd, cap, account) -> None:  # type: ignore[no-untyped-def]
    """Every tick brings more than the device can do, from one account of the crowd or from another."""
    policy = Policy(lambda _: cap, bulk_patience_seconds=5.0, step_seconds=flat)
    for member in crowd:
        member.deadline_at = None
    flood = [
        Member(f"flood-{tick}-{copy}", account="abcd"[account], num_steps=2, submitted_at=tick * 0.1)
        for tick in range(800)
        for copy in range(cap // 2)
    ]
    run(policy, [*crowd, *flood], 800)
    assert all(member.num_steps_left == 0 for member in crowd)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([(4, 1), (20, 2), (50, 2)]), min_size=2, max_size=3), st.integers(4, 16))
def test_accounts_with_endless_work_share_within_a_quantum(kinds, cap) -> None:  # type: ignore[no-untyped-def]
    crowd = [
        Member(f"{account}-{copy}", account=str(account), num_steps=num_steps * 100, num_rows=num_rows)
        for account, (num_steps, num_rows) in enumerate(kinds)
        for copy in range(8)
    ]
    run(Policy(lambda _: cap, step_seconds=flat), crowd, 150)
    shares = [
        sum(member.row_steps for member in crowd if member.account == str(account))
        for account in range(len(kinds))
    ]
    assert max(shares) - min(shares) <= 10 * MULTIPLES_OF_FOUR.rows(cap)


@settings(deadline=None, max_examples=50)
@given(members(isolated=False), caps)
def test_paused_generation_keeps_its_place(crowd, cap) -> None:  # type: ignore[no-untyped-def]
    """Its steps are neither lost nor repeated, and choosing changes nothing about a member."""
    policy = Policy(lambda _: cap, step_seconds=flat)
    before = [(member.num_steps_left, member.submitted_at, member.has_begun) for member in crowd]
    first, second = policy.order(crowd, 3.0), policy.order(crowd, 3.0)
    policy.choose(crowd, 3.0)
    assert first == second
    assert before == [(member.num_steps_left, member.submitted_at, member.has_begun) for member in crowd]
    run(policy, crowd, 250)
    assert all(member.num_steps_done == member.num_steps for member in crowd)
