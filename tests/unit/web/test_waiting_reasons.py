"""Each reason is given where it holds and where no weightier one does; its words name what it counts."""

from dataclasses import replace

import pytest

from storage.queue_facts import QueueFacts
from web.estimates.waiting_reasons import RULES, Limits, reason_of

LIMITS = Limits(overdue_seconds=15, max_attempts=5)
NEXT = QueueFacts(
    tier="sd",
    lane="interactive",
    is_dispatched=True,
    seconds_until_due=14,
    seconds_since_dispatch=1,
    num_failures=0,
    last_error=None,
    quarantined=False,
    num_ahead=0,
    num_own_ahead=None,
    num_dispatched=1,
    num_live_workers=1,
    num_slots=12,
    num_busy=0,
)
WITHOUT_BELL = replace(
    NEXT, is_dispatched=False, seconds_since_dispatch=None, num_ahead=None, seconds_until_due=-1
)
BULK = replace(WITHOUT_BELL, lane="bulk", num_own_ahead=1, num_dispatched=16)
FAILED = replace(WITHOUT_BELL, num_failures=2, last_error="storage_unavailable", seconds_until_due=7.6)

CASES = [
    ("no_live_worker", replace(NEXT, num_live_workers=0, num_slots=0), "no live worker serves tier 'sd'"),
    ("no_live_worker", replace(FAILED, num_live_workers=0, num_slots=0), "until one starts"),
    ("retry_backoff", FAILED, "2 of its 5 tries failed, the last with storage_unavailable; "),
    ("retry_backoff", FAILED, "the next may begin in 8 s"),
    ("retry_backoff", replace(FAILED, lane="bulk"), "in 8 s"),
    ("dispatch_due", replace(FAILED, seconds_until_due=-0.1), "the sweeper's next turn"),
    ("dispatch_overdue", replace(NEXT, seconds_since_dispatch=40), "rung 40 s ago and idle workers"),
    ("dispatch_overdue", replace(WITHOUT_BELL, seconds_until_due=-40), "should have been rung 40 s ago"),
    ("dispatch_overdue", replace(BULK, seconds_until_due=-40, num_dispatched=0), "the sweeper or the broker"),
    ("runs_alone", replace(WITHOUT_BELL, quarantined=True), "will run alone"),
    ("bulk_turn", BULK, "accounts taking turns, with 1 job of yours before it"),
    ("bulk_turn", replace(BULK, seconds_until_due=-4000, num_own_ahead=None), "more than 1000 jobs of yours"),
    ("dispatch_due", WITHOUT_BELL, "the sweeper's next turn"),
    (
        "all_slots_busy",
        replace(NEXT, num_busy=12, num_ahead=3, seconds_since_dispatch=4000),
        "all 12 interactive slots of the 1 live worker of tier 'sd' are taken; 3 jobs ahead",
    ),
    ("jobs_ahead", replace(NEXT, num_ahead=1), "1 job ahead in tier 'sd', lane 'interactive'"),
    ("jobs_ahead", replace(NEXT, num_ahead=None), "more than 1000 jobs ahead"),
    ("about_to_start", NEXT, "a worker takes it next"),
]


@pytest.mark.parametrize(("code", "facts", "words"), CASES)
def test_the_first_rule_that_holds_is_the_reason(code: str, facts: QueueFacts, words: str) -> None:
    reason = reason_of(facts, LIMITS)
    assert reason.code == code
    assert words in reason.detail


def test_every_rule_has_a_case() -> None:
    assert {code for code, *_ in CASES} == set(RULES)
