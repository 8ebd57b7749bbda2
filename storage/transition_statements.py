"""The statement of a transition: the guarded UPDATE of jobs, and what is written beside it.

That is the event and, for jobs that reach a final state, the deliveries of their webhooks and a notification.
It executes nothing, and does not know which columns a transition changes, nor when it may happen.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause, text

from catalogue.states import TERMINAL
from storage.notifications import BULK_DUE, JOBS_ENDED, MAX_IDS, WEBHOOKS_DUE
from storage.transitions import CLAIM, FINISH, Transition

OUTCOME = """jobs.id, account_id, state, attempt, worker, webhook_url, batch_id, tier, lane,
        next_dispatch_at"""
"""What a transition returns of each job, unless its caller asks for more."""


def statement_of(
    transition: Transition,
    values: str,
    guard: str,
    parameters: Mapping[str, Any],
    *,
    detail: str | None = None,
    returning: str = OUTCOME,
    before: str = "",
    beside: str = "",
    after: str = "",
) -> tuple[TextClause, dict[str, Any]]:
    """The statement of one transition and its parameters: the guarded UPDATE, its event and what follows.

    In a final state that is the outbox row and a notification, but for `FINISH`, which its caller announces.
    `before` and `after` are further CTEs.
    """
    is_claim = transition is CLAIM  # which ends nothing, and is planned anew for every job
    announces = transition not in (CLAIM, FINISH)
    bound = {
        **parameters,
        "source": transition.sources.value,
        "transition": transition.name,
        "event_detail": detail,
    }
    if not is_claim:
        bound["terminal"] = [state.value for state in TERMINAL]
    if not is_claim:
        after += _NOTIFIED + (_ANNOUNCED if announces else "")
    return _statement(values, guard, returning, before, beside, after, announces), bound


@lru_cache(maxsize=64)
def _statement(
    values: str, guard: str, returning: str, before: str, beside: str, after: str, announces: bool
) -> TextClause:
    return text(
        f"""
        WITH {before}moved AS (
            UPDATE jobs SET {values} {beside} WHERE jobs.state = :source AND {guard} RETURNING {returning}
        ){_LOGGED}{after}
        SELECT moved.* {", (SELECT count(*) FROM announced) AS num_announced" if announces else ""} FROM moved
        """
    )


_LOGGED = """, logged AS (
            INSERT INTO job_events (job_id, transition, state, attempt, worker, detail)
            SELECT id, :transition, state, attempt, worker, :event_detail FROM moved
        )"""
_NOTIFIED = """, notified AS (
            INSERT INTO webhook_deliveries (id, account_id, job_id, event, url, next_attempt_at)
            SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), account_id, id, 'job.' || state,
                   webhook_url, clock_timestamp()
              FROM moved WHERE webhook_url IS NOT NULL AND state = ANY(:terminal)
            RETURNING event
        )"""
_ANNOUNCED = f""", announced AS (
            SELECT pg_notify(channel, payload)
              FROM (SELECT '{JOBS_ENDED}' AS channel, string_agg(id, ' ') AS payload
                      FROM (SELECT id, (row_number() OVER () - 1) / {MAX_IDS} AS part
                              FROM moved WHERE state = ANY(:terminal)) AS final GROUP BY part
                    UNION ALL SELECT DISTINCT '{WEBHOOKS_DUE}', '' FROM notified
                    UNION ALL SELECT DISTINCT '{BULK_DUE}', tier FROM moved
                               WHERE state = 'queued' AND lane = 'bulk'
                                 AND next_dispatch_at <= clock_timestamp()) AS messages
        )"""
"""Notifications take effect with the commit, and only a CTE that is read is evaluated."""
