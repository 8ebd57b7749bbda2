"""Why a queued job waits, in a stable code and in words: a table of rules over what Postgres knows of it.

Only what rows show is said: that the broker has lost a bell, for one, can be no more than suspected.
Pure; who reads the rows is `web.estimates.waits`, and threads that wait for a job are `web.waiting`.
"""

from dataclasses import dataclass

from pydantic import BaseModel, Field

from storage.queue_facts import MAX_COUNTED, QueueFacts


class WaitingReason(BaseModel):
    """Why a job waits."""

    code: str = Field(description="Stable; the API page lists them.")
    detail: str


@dataclass(frozen=True)
class Limits:
    """After how long a bell counts as overdue, and how often a job is tried."""

    overdue_seconds: float
    max_attempts: int


def reason_of(facts: QueueFacts, limits: Limits) -> WaitingReason:
    """What must change first for the job to start: the first rule that has something to say."""
    for code, rule in RULES.items():
        detail = rule(facts, limits)
        if detail is not None:
            return WaitingReason(code=code, detail=detail)
    raise AssertionError("the last rule always speaks")


def _no_live_worker(facts: QueueFacts, _: Limits) -> str | None:
    if facts.num_live_workers:
        return None
    return f"no live worker serves tier {facts.tier!r}; the job waits until one starts"


def _retry_backoff(facts: QueueFacts, limits: Limits) -> str | None:
    if facts.is_dispatched or not facts.num_failures or facts.seconds_until_due <= 0:
        return None
    tries = (
        f"{facts.num_failures} of its {limits.max_attempts} tries failed, the last with {facts.last_error}"
    )
    return f"{tries}; the next may begin in {max(1, round(facts.seconds_until_due))} s"


def _dispatch_overdue(facts: QueueFacts, limits: Limits) -> str | None:
    is_fed = facts.lane == "bulk" and facts.num_dispatched > 0
    if facts.num_busy or (is_fed and not facts.is_dispatched):
        return None  # bells are rung and heard: this one has not had its turn
    if facts.seconds_since_dispatch is not None and facts.seconds_since_dispatch > limits.overdue_seconds:
        return (
            f"its bell was rung {facts.seconds_since_dispatch:.0f} s ago and idle workers have not heard it: "
            "the broker may be down or have lost it; the sweeper rings again"
        )
    if not facts.is_dispatched and facts.seconds_until_due < -limits.overdue_seconds:
        return (
            f"its bell should have been rung {-facts.seconds_until_due:.0f} s ago: "
            "the sweeper or the broker may be down, or still catching up"
        )
    return None


def _runs_alone(facts: QueueFacts, _: Limits) -> str | None:
    return (
        "the worker that held it died; a worker that is free takes it up, and it will run alone"
        if facts.quarantined
        else None
    )


def _bulk_turn(facts: QueueFacts, _: Limits) -> str | None:
    if facts.is_dispatched or facts.lane != "bulk":
        return None
    own = _count(facts.num_own_ahead, "job")
    return f"bulk jobs are started a few at a time, accounts taking turns, with {own} of yours before it"


def _dispatch_due(facts: QueueFacts, _: Limits) -> str | None:
    return None if facts.is_dispatched else "its bell is rung at the sweeper's next turn"


def _all_slots_busy(facts: QueueFacts, _: Limits) -> str | None:
    if facts.num_busy < facts.num_slots:
        return None
    workers = _count(facts.num_live_workers, "live worker")
    slots = f"all {facts.num_slots} {facts.lane} slots of the {workers} of tier {facts.tier!r} are taken"
    return f"{slots}; {_count(facts.num_ahead, 'job')} ahead"


def _jobs_ahead(facts: QueueFacts, _: Limits) -> str | None:
    if facts.num_ahead == 0:
        return None
    return f"{_count(facts.num_ahead, 'job')} ahead in tier {facts.tier!r}, lane {facts.lane!r}"


def _about_to_start(facts: QueueFacts, _: Limits) -> str | None:
    return f"its bell has been rung and tier {facts.tier!r} has a free slot: a worker takes it next"


def _count(number: int | None, noun: str) -> str:
    if number is None:
        return f"more than {MAX_COUNTED} {noun}s"
    return f"{number} {noun}{'' if number == 1 else 's'}"


RULES = {
    "no_live_worker": _no_live_worker,
    "retry_backoff": _retry_backoff,
    "runs_alone": _runs_alone,  # before what is said of bells: none is rung for it
    "dispatch_overdue": _dispatch_overdue,
    "bulk_turn": _bulk_turn,
    "dispatch_due": _dispatch_due,
    "all_slots_busy": _all_slots_busy,
    "jobs_ahead": _jobs_ahead,
    "about_to_start": _about_to_start,
}
"""Each is worth saying only where none before it speaks: the order is part of the table."""

ALONE = WaitingReason(
    code="runs_alone",
    detail="the worker that held it died; its new worker runs it as soon as nothing runs beside it",
)
UNREAD = WaitingReason(code="unknown", detail="why it waits could not be read")
LEFT = WaitingReason(code="unknown", detail="it left the queue while this was read")
CODES = frozenset({*RULES, UNREAD.code})
