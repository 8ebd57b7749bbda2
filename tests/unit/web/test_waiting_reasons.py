"""The first rule that applies gives the reason, and its words name what it counts."""

from dataclasses import replace

import pytest

from storage.queue_facts import QueueFacts
from web.estimates.waiting_reasons import RULES, Limits, reason_of

LIMITS = Limits(overdue_seconds=15, max_attempts=5, worker_alive_seconds=10)
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
    num_live_workers=1,
    num_slots=12,
    num_busy=0,
)
NOT_DISPATCHED = replace(
    NEXT, is_dispatched=False, seconds_since_dispatch=None, num_ahead=None, seconds_until_due=-1
)
BULK = replace(NOT_DISPATCHED, lane="bulk", num_own_ahead=1)
FAILED = replace(NOT_DISPATCHED, num_failures=2, last_error="storage_unavailable", seconds_until_due=7.6)

CASES = [
    ("tier_paused", replace(NEXT, pause_reason="new weights"), "tier 'sd' is paused (new weights); the job"),
    ("tier_paused", replace(NEXT, pause_reason="", num_live_workers=0), "tier 'sd' is paused; the job waits"),
    ("no_live_worker", replace(NEXT, num_live_workers=0, num_slots=0), "no live worker serves tier 'sd'"),
    ("no_live_worker", replace(FAILED, num_live_workers=0, num_slots=0), "until one starts"),
    ("retry_backoff", FAILED, "2 of 5 attempts failed, the last with storage_unavailable; "),
    ("retry_backoff", FAILED, "the next may start in 8 s"),
    ("retry_backoff", replace(FAILED, lane="bulk"), "in 8 s"),
    ("dispatch_due", replace(FAILED, seconds_until_due=-0.1), "the sweeper dispatches it in its next round"),
    ("dispatch_overdue", replace(NEXT, seconds_since_dispatch=40), "dispatched 40 s ago, but no idle worker"),
    ("dispatch_overdue", replace(NOT_DISPATCHED, seconds_until_due=-40), "been dispatched 40 s ago"),
    (
        "dispatch_overdue",
        replace(BULK, seconds_until_due=-40),
        "due for 40 s, but no idle worker has claimed",
    ),
    ("runs_alone", replace(NOT_DISPATCHED, quarantined=True), "runs it in isolation"),
    ("bulk_turn", BULK, "in turn between accounts; 1 job of yours ahead of it"),
    (
        "bulk_turn",
        replace(BULK, seconds_until_due=-4000, num_busy=1, num_own_ahead=None),
        "more than 1000 jobs of yours",
    ),
    ("dispatch_due", NOT_DISPATCHED, "the sweeper dispatches it in its next round"),
    (
        "all_slots_busy",
        replace(NEXT, num_busy=12, num_ahead=3, seconds_since_dispatch=4000),
        "all 12 interactive slots of the 1 live worker of tier 'sd' are in use; 3 jobs ahead",
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
