"""Who runs next, under a simulated clock, and without torch."""

import math
import subprocess
import sys

from catalogue.determinism import PINNED_ROWS
from engine.policy.buckets import MULTIPLES_OF_FOUR, Buckets
from engine.policy.candidate import BatchKey
from engine.policy.due_times import OVERTAKING_STEPS
from engine.policy.policy import Policy
from engine.policy.turns import AGED_SHARE
from tests.unit.engine.members import LARGE, OTHER, SMALL, STEP_SECONDS, Member, bulk, flat, rising, run


def test_policy_is_importable_without_torch() -> None:
    code = "import sys, engine.policy.policy, engine.request, engine.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_buckets_are_multiples_of_four_until_others_are_found() -> None:
    assert [MULTIPLES_OF_FOUR.rows(rows) for rows in (1, 2, 4, 5, 8, 9, 16)] == [4, 4, 4, 8, 8, 12, 16]
    assert [MULTIPLES_OF_FOUR.within(rows) for rows in (1, 4, 6, 15, 16)] == [4, 4, 4, 12, 16]
    assert [Buckets((2, 4, 5, 8)).within(rows) for rows in (1, 2, 3, 6, 16)] == [2, 2, 2, 5, 8]
    assert [Buckets((2, 4, 5, 8)).rows(rows) for rows in (1, 2, 3, 5, 6, 8, 9)] == [2, 2, 4, 5, 8, 8, 12]


def test_pace_of_a_step_batch_is_that_of_its_bucket() -> None:
    """Two rows, at four, take as long as the deadline leaves; three more rows would be a slower bucket."""
    policy = Policy(lambda _: 8, step_seconds=rising, bucket_rows=lambda _, rows: Buckets((4, 5)).rows(rows))
    members = [Member("soon", num_steps=10, deadline_at=1.0), *(Member(str(i), num_rows=1) for i in range(6))]
    assert sum(member.num_rows for member in policy.choose(members, 0.0)) == 4


def test_step_batch_never_exceeds_the_row_cap_of_its_key() -> None:
    policy = Policy(lambda key: 7 if key == SMALL else 4)
    members = [Member(str(i), num_rows=1 + i % 2) for i in range(12)]
    batch = policy.choose(members, 0.0)
    assert sum(member.num_rows for member in batch) == 7
    members = [Member(str(i), key=LARGE) for i in range(12)]
    assert len(policy.choose(members, 0.0)) == 2


def test_one_generation_runs_even_where_the_cap_is_below_its_rows() -> None:
    guided, other = Member("guided", num_rows=2), Member("other", num_rows=1, lane="bulk")
    assert Policy(lambda _: 1).choose([guided, other], 0.0) == [guided]


def test_members_of_a_step_batch_share_their_key() -> None:
    members = [Member("a"), Member("b", key=LARGE), Member("c"), Member("d", key=OTHER)]
    for batch in run(Policy(lambda _: 16), members, 60):
        assert len({member.key for member in batch}) <= 1
    assert all(member.num_steps_left == 0 for member in members)


def test_interactive_work_pauses_bulk_work_at_the_next_step() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    members = bulk(8)
    run(policy, members, 5)
    late = Member("late", submitted_at=0.5)
    batch = run(policy, [*members, late], 1, now=0.5)[0]
    assert batch[0] is late
    assert len(batch) == 4, "the rows that interactive work leaves are filled with bulk work"


def test_interactive_work_of_another_size_pauses_bulk_work_too() -> None:
    policy = Policy(lambda _: 8)
    members = bulk(8)
    run(policy, members, 50)
    batches = run(policy, [*members, Member("late", key=LARGE, submitted_at=5.0)], 20, now=5.0)
    assert [batch[0].name for batch in batches] == ["late"] * 20


def test_interactive_takes_its_first_step_within_two_ticks_even_while_bulk_work_ages() -> None:
    """Everything is full of bulk work that has waited so long that it has turns of its own."""
    for phase in range(round(1 / AGED_SHARE) + 1):
        policy = Policy(lambda _: 8, bulk_patience_seconds=60.0)
        members = [*bulk(8), *bulk(8, key=LARGE)]
        first = Member("first", submitted_at=100.0, num_steps_left=100)
        run(policy, [*members, first], phase, now=100.0)
        late = Member("late", submitted_at=110.0)
        batches = run(policy, [*members, first, late], 2, now=110.0)
        assert any(late in batch for batch in batches)


def test_bulk_work_does_not_starve_under_endless_interactive_work() -> None:
    policy = Policy(lambda _: 8, bulk_patience_seconds=60.0)
    members = [Member("bulk", lane="bulk", key=LARGE, num_steps_left=10)]
    interactive = [Member(f"interactive-{i}", num_steps_left=10_000) for i in range(20)]
    run(policy, [*members, *interactive], 100)
    assert members[0].num_steps_done == 0, "not before its patience has run out"
    batches = run(policy, [*members, *interactive], 100, now=60.0)
    assert members[0].num_steps_left == 0
    assert sum(batch[0].lane == "bulk" for batch in batches) == 10


def test_earliest_deadline_goes_first() -> None:
    policy = Policy(lambda _: 2, step_seconds=flat)
    late, soon = Member("late", deadline_at=4.0), Member("soon", submitted_at=1.0, deadline_at=3.5)
    assert policy.choose([late, soon], 1.0) == [soon]


def test_short_work_goes_before_long_work_that_came_a_little_earlier() -> None:
    policy = Policy(lambda _: 2, step_seconds=flat)
    long, short = Member("long", num_steps=50), Member("short", num_steps=4, submitted_at=1.0)
    assert policy.choose([long, short], 1.0) == [short]


def test_order_is_that_of_arrival_while_no_pace_is_known() -> None:
    first, second = Member("first", num_steps=50), Member("second", num_steps=4, submitted_at=1.0)
    assert Policy(lambda _: 2).order([second, first], 1.0) == [first, second]


def test_pace_that_was_seen_does_for_a_profile() -> None:
    policy = Policy(lambda _: 2)
    run(policy, [Member("seen", num_steps=3)], 3)
    long, short = Member("long", num_steps=50), Member("short", num_steps=4, submitted_at=1.0)
    assert policy.choose([long, short], 1.0) == [short]


def test_work_that_cannot_meet_its_deadline_any_more_goes_last() -> None:
    policy = Policy(lambda _: 2, step_seconds=flat)
    hopeless = Member("hopeless", num_steps=50, deadline_at=2.0)
    hopeful = Member("hopeful", num_steps=5, submitted_at=1.0, deadline_at=100.0)
    assert policy.choose([hopeless, hopeful], 1.0) == [hopeful]


def test_long_work_goes_before_short_work_that_came_its_allowance_later() -> None:
    """Ten times the steps may be overtaken for twelve full steps by the logarithm of ten, and no longer."""
    policy = Policy(lambda _: 2, step_seconds=flat)
    allowance_seconds = OVERTAKING_STEPS * STEP_SECONDS * math.log(10)
    long = Member("long", num_steps=40)
    for seconds_later, expected in ((-0.01, "short"), (0.01, "long")):
        short = Member("short", num_steps=4, submitted_at=allowance_seconds + seconds_later)
        assert policy.order([long, short], short.submitted_at)[0].name == expected


def test_no_generation_joins_that_would_make_a_member_of_the_step_batch_late() -> None:
    policy = Policy(lambda _: 8, step_seconds=rising)
    first, tight = Member("first", deadline_at=9.0), Member("tight", deadline_at=9.1, num_steps=80)
    others = [Member(str(i), submitted_at=4.0) for i in range(3)]
    assert policy.choose([first, tight, *others], 0.0) == [first, tight], "eight rows take 0.2 s, four 0.1 s"
    assert policy.reason_not_fuller == "due"


def test_no_generation_joins_that_would_be_late_in_a_step_batch_that_can_be_larger() -> None:
    policy = Policy(lambda _: 8, step_seconds=rising)
    first, second = Member("first", deadline_at=8.0), Member("second", deadline_at=8.0)
    tight = Member("tight", deadline_at=9.0, num_steps=80)  # it needs all but as long alone
    others = [Member(str(i), submitted_at=1.0) for i in range(3)]
    assert policy.choose([first, second, tight, *others], 0.0) == [first, second, *others[:2]]


def test_what_cannot_meet_its_deadline_slows_down_none_that_can() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    lost, others = Member("lost", deadline_at=1.0), [Member(str(i), deadline_at=5.0) for i in range(2)]
    assert policy.choose([lost, *others], 0.0) == others
    assert policy.reason_not_fuller == "due"
    assert policy.choose([lost], 0.0) == [lost], "the pace is a guess, and no other is there"
    filler = Member("filler", lane="bulk")
    assert policy.choose([lost, filler], 0.0) == [lost, filler], "nor does it wait for bulk work"


def test_step_batch_is_no_larger_than_lets_its_members_meet_their_deadlines() -> None:
    policy = Policy(lambda _: 8, step_seconds=rising)
    members = [Member(str(i), num_steps=10, deadline_at=1.5) for i in range(4)]
    assert len(policy.choose(members, 0.0)) == 2, "eight rows take 0.2 s a step, and four 0.1 s"
    assert policy.reason_not_fuller == "due"
    assert len(policy.choose(members, 1.0)) == 4, "none can be in time any more: as many as fit"


def test_work_without_a_deadline_fills_its_step_batches() -> None:
    policy = Policy(lambda _: 8, step_seconds=rising)
    assert len(policy.choose([Member(str(i)) for i in range(6)], 0.0)) == 4


def test_cached_steps_do_not_make_a_deadline_lost() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    thrifty = Member("thrifty", num_steps=60, step_cache=3, deadline_at=2.5)  # 20 full steps: 2.0 s
    plain = Member("plain", num_steps=60, deadline_at=2.5)
    assert policy.order([plain, thrifty], 0.0) == [thrifty, plain]
    assert policy.choose([thrifty, Member("other")], 0.0)[0] is thrifty


def test_rows_that_would_be_padding_are_for_generations_left_out() -> None:
    policy = Policy(lambda _: 8, step_seconds=flat)
    lost, other = Member("lost", deadline_at=1.0), Member("other", num_rows=1)
    assert policy.choose([lost, other], 0.0) == [other, lost], "three rows run at four"
    assert policy.reason_not_fuller == "alone"


def test_far_deadline_makes_none_later() -> None:
    policy = Policy(lambda _: 2, step_seconds=flat)
    patient, later = Member("patient", deadline_at=3600.0), Member("later", submitted_at=0.1)
    assert policy.order([later, patient], 0.1) == [patient, later]


def test_nothing_waits_behind_later_arrivals_with_near_deadlines_for_ever() -> None:
    policy = Policy(lambda _: 2)
    patient = Member("patient", deadline_at=3600.0)
    hasty = Member("hasty", submitted_at=31.0, deadline_at=36.0)
    assert policy.choose([patient, hasty], 31.0) == [patient]


def test_isolated_generation_runs_alone_from_its_first_step_to_its_last() -> None:
    policy = Policy(lambda _: 8)
    isolated = Member("isolated", is_isolated=True, num_steps_left=5)
    others = [Member(f"other-{i}", submitted_at=1.0, num_steps_left=5) for i in range(3)]
    batches = run(policy, [isolated, *others], 10, now=1.0)
    assert batches[:5] == [[isolated]] * 5
    assert all(len(batch) == 3 for batch in batches[5:])
    assert (
        policy.admit([Member("waiting")], [Member("isolated", is_isolated=True, has_begun=True)], 0.0) == []
    )


def test_S38_others_have_the_device_for_as_long_as_the_quarantined_one_before_them_had() -> None:
    policy = Policy(lambda _: 8)
    quarantined = [Member(f"quarantined-{i}", is_isolated=True, num_steps_left=5) for i in range(3)]
    others = [Member(f"other-{i}", submitted_at=1.0, num_steps_left=20) for i in range(3)]
    batches = run(policy, [*quarantined, *others], 30, now=1.0, step_seconds=lambda *_: 0.125)
    assert [batch[0].name.partition("-")[0] for batch in batches] == (["quarantined"] * 5 + ["other"] * 5) * 3


def test_S38_a_quarantined_job_need_not_wait_until_it_is_the_next_to_be_due() -> None:
    policy = Policy(lambda _: 8)
    others = [Member(f"other-{i}", num_steps=50) for i in range(4)]
    quarantined = Member("quarantined", is_isolated=True, submitted_at=1.0)
    assert policy.choose([*others, quarantined], 1.0) == [quarantined]


def test_S38_a_quarantined_bulk_job_goes_before_no_interactive_work() -> None:
    policy = Policy(lambda _: 8)
    other, quarantined = (
        Member("other", submitted_at=1.0),
        Member("quarantined", is_isolated=True, lane="bulk"),
    )
    assert policy.choose([other, quarantined], 1.0) == [other]


def test_S38_a_newcomer_waits_for_one_quarantined_job_however_many_there_are() -> None:
    policy = Policy(lambda _: 8)
    quarantined = [Member(f"quarantined-{i}", is_isolated=True, num_steps_left=10) for i in range(8)]
    run(policy, quarantined, 25)
    newcomer = Member("newcomer", submitted_at=2.5, num_steps_left=10)
    batches = run(policy, [*quarantined, newcomer], 15, now=2.5)
    assert [newcomer in batch for batch in batches] == [False] * 5 + [True] * 10


def test_S38_quarantined_jobs_follow_each_other_while_no_other_is_there() -> None:
    policy = Policy(lambda _: 8)
    quarantined = [Member(f"quarantined-{i}", is_isolated=True, num_steps_left=5) for i in range(3)]
    assert all(len(batch) == 1 for batch in run(policy, quarantined, 15))


def test_cap_is_halved_when_memory_was_short() -> None:
    policy = Policy(lambda _: 16)
    policy.lower(SMALL, 12)
    assert policy.max_rows(SMALL) == 6
    assert policy.max_rows(LARGE) == 16


def test_pinned_generations_run_at_the_smallest_bucket_only() -> None:
    assert Policy(lambda _: 16).max_rows(BatchKey("m", 16, 16, is_pinned=True)) == PINNED_ROWS


def test_interactive_prompts_are_encoded_before_bulk_ones() -> None:
    waiting = [*bulk(20), Member("late", submitted_at=5.0)]
    admitted = Policy(lambda _: 8).admit(waiting, [], 5.0)
    assert admitted[0].name == "late"
    assert len(admitted) < len(waiting)


def test_bulk_work_is_admitted_although_interactive_work_never_ends() -> None:
    """Whether its text is encoded beside interactive work is for `SideWork` to say."""
    waiting = [*bulk(20), *(Member(f"i{number}", submitted_at=5.0) for number in range(20))]
    lanes = [member.lane for member in Policy(lambda _: 8).admit(waiting, [], 5.0)]
    assert lanes == ["interactive"] * 8 + ["bulk"] * 8


def test_cached_or_split_steps_do_not_make_a_deadline_look_attainable() -> None:
    policy, member = Policy(lambda _: 8), Member("a", num_steps_left=10, deadline_at=9.0)
    others = [Member(f"b{number}", submitted_at=50.0) for number in range(3)]

    def is_last() -> bool:
        return policy.order([member, *others], 0.0)[-1] is member

    def step(seconds: float, **how: bool) -> None:
        policy.choose([member], 0.0)
        policy.stepped(SMALL, seconds, **how)

    step(1.0)
    assert is_last(), "ten seconds are left of nine"
    for _ in range(50):
        step(0.1, is_full=False)
    assert is_last(), "cached rows say nothing about full ones"
    for _ in range(50):
        step(0.1, is_whole=False)
    assert is_last()
    for _ in range(50):
        step(0.1)
    assert not is_last()


def test_it_says_why_a_step_batch_was_not_fuller() -> None:
    policy = Policy(lambda _: 4, step_seconds=flat)
    pinned = SMALL._replace(is_pinned=True)
    cases = [
        ("alone", [Member("alone"), Member("elsewhere", key=LARGE, submitted_at=1.0)]),
        ("cap", [Member(str(i)) for i in range(3)]),
        ("strict", [Member(str(i), key=pinned) for i in range(3)]),
        ("isolated", [Member("isolated", is_isolated=True), Member("other", submitted_at=1.0)]),
        (None, []),
    ]
    for reason, members in cases:
        policy.choose(members, 1.0)
        assert policy.reason_not_fuller == reason
    policy.lower(SMALL, 4)
    policy.choose([Member(str(i)) for i in range(3)], 1.0)
    assert policy.reason_not_fuller == "memory"
